//! One instruction per line, with its result by the PTX ISA.
//!
//! `opcode d=RESULT operands...`: h, r, l are registers of 16, 32 and 64 bits with hexadecimal values,
//! `p=` is a predicate result, `p:1` a predicate source, `#` a literal. A destination `x|y=a|b` has two parts.
#![allow(clippy::unwrap_used, missing_docs)]

mod common;

use std::fmt::Write as _;

use common::{Args, Device};

const TABLE: &str = include_str!("semantics.txt");

/// A line of the table, turned into a kernel.
struct Case<'a> {
    line: &'a str,
    results: Vec<(char, u64)>,
    kernel: String,
}

fn class(c: char) -> (&'static str, &'static str) {
    match c {
        'h' => ("b16", "u16"),
        'r' => ("b32", "u32"),
        'l' => ("b64", "u64"),
        _ => ("pred", "pred"),
    }
}

fn case<'a>(number: usize, line: &'a str) -> Case<'a> {
    let mut words = line.split_whitespace();
    let opcode = words.next().unwrap();
    let (classes, values) = words.next().unwrap().split_once('=').unwrap();
    let results: Vec<_> = classes
        .split('|')
        .zip(values.split('|'))
        .map(|(c, v)| {
            (
                c.chars().next().unwrap(),
                u64::from_str_radix(v, 16).unwrap(),
            )
        })
        .collect();
    let mut body = String::new();
    let mut operands = Vec::new();
    let destinations: Vec<_> = (0..results.len()).map(|i| format!("%d{i}")).collect();
    for (i, (c, _)) in results.iter().enumerate() {
        writeln!(body, ".reg .{} %d{i};", class(*c).0).unwrap();
    }
    operands.push(destinations.join("|"));
    for (i, word) in words.enumerate() {
        if let Some(literal) = word.strip_prefix('#') {
            operands.push(literal.to_owned());
            continue;
        }
        let (c, value) = word.split_once(':').unwrap();
        let c = c.chars().next().unwrap();
        writeln!(body, ".reg .{} %s{i};", class(c).0).unwrap();
        match c {
            'p' => writeln!(body, "setp.ne.u32 %s{i}, {value}, 0;").unwrap(),
            c => writeln!(body, "mov.{} %s{i}, 0x{value};", class(c).0).unwrap(),
        }
        operands.push(format!("%s{i}"));
    }
    writeln!(body, "{opcode} {};", operands.join(", ")).unwrap();
    for (i, (c, _)) in results.iter().enumerate() {
        match c {
            'p' => writeln!(body, "selp.u64 %out, 1, 0, %d{i};").unwrap(),
            'l' => writeln!(body, "mov.b64 %out, %d{i};").unwrap(),
            c => writeln!(body, "cvt.u64.{} %out, %d{i};", class(*c).1).unwrap(),
        }
        writeln!(body, "st.global.u64 [%at+{}], %out;", 8 * i).unwrap();
    }
    let kernel = format!(
        ".entry k{number}(.param .u64 at)\n{{\n.reg .b64 %at, %out;\nld.param.u64 %at, [at];\n{body}ret;\n}}\n"
    );
    Case {
        line,
        results,
        kernel,
    }
}

#[test]
fn every_line_of_the_table() {
    let lines = TABLE
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty() && !l.starts_with("//"));
    let cases: Vec<_> = lines.enumerate().map(|(i, line)| case(i, line)).collect();
    assert!(
        cases.len() > 250,
        "the table has only {} lines",
        cases.len()
    );
    let device = Device::new();
    let out = device.upload(&[0u64; 2]);
    let mut wrong = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let text = format!(
            ".version 8.7\n.target sm_100\n.address_size 64\n{}",
            case.kernel
        );
        if let Err(error) = farcall_ptx::Module::parse(&text) {
            wrong.push(format!("{}\n    {error}", case.line));
            continue;
        }
        let module = device.load(&text);
        let kernel = module.kernel(&format!("k{i}")).unwrap();
        device
            .launch(&kernel, [1, 1, 1], [1, 1, 1], &Args::new().arg(out))
            .unwrap();
        let got = device.download::<u64>(out, 2);
        for ((_, want), got) in case.results.iter().zip(got) {
            if *want != got {
                wrong.push(format!("{}\n    got {got:x}", case.line));
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {} lines are wrong:\n{}",
        wrong.len(),
        cases.len(),
        wrong.join("\n")
    );
}
