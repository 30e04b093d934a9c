//! `farcall coverage`: which driver calls are implemented, from the catalogue.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use farcall_marshal::catalogue::{CALLS, CallInfo, Class};
use serde::Serialize;

use crate::args::CoverageArgs;
use crate::failure::{Failure, written};
use crate::table::{self, Align};

const CLASSES: [Class; 5] = [
    Class::Local,
    Class::Cached,
    Class::OneWay,
    Class::Blocking,
    Class::Refused,
];

pub(crate) fn coverage(args: &CoverageArgs) -> Result<ExitCode, Failure> {
    let wanted = |call: &CallInfo| match (args.implemented, args.missing) {
        (true, _) => call.implemented,
        (_, true) => !call.implemented && call.class != Class::Refused,
        _ => true,
    };
    let out = &mut io::BufWriter::new(io::stdout().lock());
    let result = if args.json {
        write_json(out, &wanted)
    } else {
        write_text(out, &wanted)
    };
    written(result.and_then(|()| out.flush()))
}

#[derive(Serialize)]
struct Report {
    total: usize,
    implemented: usize,
    refused: usize,
    by_class: Vec<Count>,
    calls: Vec<Row>,
}

#[derive(Serialize)]
struct Count {
    class: &'static str,
    total: usize,
    implemented: usize,
}

#[derive(Serialize)]
struct Row {
    number: u16,
    symbol: &'static str,
    base: &'static str,
    since: u32,
    class: &'static str,
    implemented: bool,
    refusal: &'static str,
}

fn count(class: Class) -> Count {
    let calls = || CALLS.iter().filter(|call| call.class == class);
    Count {
        class: class.name(),
        total: calls().count(),
        implemented: calls().filter(|call| call.implemented).count(),
    }
}

fn write_json(out: &mut dyn Write, wanted: &dyn Fn(&CallInfo) -> bool) -> io::Result<()> {
    let row = |call: &CallInfo| Row {
        number: call.number,
        symbol: call.symbol,
        base: call.base,
        since: call.since,
        class: call.class.name(),
        implemented: call.implemented,
        refusal: call.refusal,
    };
    let report = Report {
        total: CALLS.len(),
        implemented: CALLS.iter().filter(|call| call.implemented).count(),
        refused: count(Class::Refused).total,
        by_class: CLASSES.map(count).into(),
        calls: CALLS.iter().filter(|call| wanted(call)).map(row).collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &report)?;
    writeln!(out)
}

fn write_text(out: &mut dyn Write, wanted: &dyn Fn(&CallInfo) -> bool) -> io::Result<()> {
    let mut rows: Vec<Vec<String>> = CLASSES.map(count).iter().map(summary_row).collect();
    let all = CLASSES.map(count);
    rows.push(summary_row(&Count {
        class: "all",
        total: all.iter().map(|count| count.total).sum(),
        implemented: all.iter().map(|count| count.implemented).sum(),
    }));
    // What is refused for good is not missing.
    let refused = count(Class::Refused).total;
    for (row, missing) in [(4, 0), (5, missing_of_all() - refused)] {
        if let Some(cell) = rows.get_mut(row).and_then(|row| row.get_mut(2)) {
            *cell = missing.to_string();
        }
    }
    let header = [
        ("class", Align::Left),
        ("implemented", Align::Right),
        ("missing", Align::Right),
        ("calls", Align::Right),
    ];
    table::write(out, &header, &rows)?;
    for class in CLASSES {
        let mut calls: Vec<&CallInfo> = CALLS
            .iter()
            .filter(|call| call.class == class && wanted(call))
            .collect();
        if calls.is_empty() {
            continue;
        }
        calls.sort_by_key(|call| call.symbol);
        writeln!(out, "\n{}", class.name())?;
        for call in calls {
            let state = match call.class {
                Class::Refused => "refused",
                _ if call.implemented => "implemented",
                _ => "missing",
            };
            writeln!(
                out,
                "  {state:<11}  {}  since {}.{}",
                call.symbol,
                call.since / 1000,
                call.since % 1000 / 10
            )?;
        }
    }
    Ok(())
}

fn missing_of_all() -> usize {
    CALLS.iter().filter(|call| !call.implemented).count()
}

fn summary_row(count: &Count) -> Vec<String> {
    let missing = count.total - count.implemented;
    vec![
        count.class.to_owned(),
        count.implemented.to_string(),
        missing.to_string(),
        count.total.to_string(),
    ]
}
