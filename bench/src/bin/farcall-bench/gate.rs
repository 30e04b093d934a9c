//! `gate` and `compare`: has a change made it slower?
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use farcall_bench::figure::Figure;
use farcall_bench::gate::budget::{Budget, Budgets, head, head_of_steps};
use farcall_bench::gate::compare::compare;
use farcall_bench::gate::paths::{self, Count, Counter};
use farcall_bench::gate::steps;
use farcall_bench::run::Run;

use crate::output::Keep;

/// Times that a path is counted when it seems to have grown: its whole runs depend a little on the moment.
const ATTEMPTS: usize = 3;

/// Counts every path and every step of the recorded programs, and judges them; with a note, keeps the counts as the new
/// budgets instead.
pub(crate) fn gate(accept: Option<&str>, only: &[String], keep: &Keep) -> Result<bool, String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("budgets.toml");
    let mut budgets = read(&file)?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let compiler = rustc();
    if !budgets.rustc.is_empty() && budgets.rustc != compiler {
        eprintln!(
            "note: the budgets are of {}, this is {compiler}: expect small changes",
            budgets.rustc
        );
    }
    let is_accepted = accept.is_some();
    let mut figures = Vec::new();
    let of_paths = count_paths(&mut budgets, &program, only, is_accepted, &mut figures)?;
    let of_steps = count_steps(&mut budgets, &program, only, is_accepted, &mut figures)?;
    keep.run(&Run::now(figures, None))?;
    let Some(note) = accept else {
        return Ok(of_paths && of_steps);
    };
    (budgets.note, budgets.rustc) = (note.to_owned(), compiler);
    let text = toml::to_string(&budgets).map_err(|error| error.to_string())?;
    fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    println!("kept in {}", file.display());
    Ok(true)
}

fn is_wanted(name: &str, only: &[String]) -> bool {
    only.is_empty() || only.iter().any(|part| name.contains(part))
}

/// Whether every path keeps its budget; accepted, the counts become the budgets.
fn count_paths(
    budgets: &mut Budgets,
    program: &Path,
    only: &[String],
    is_accepted: bool,
    figures: &mut Vec<Figure>,
) -> Result<bool, String> {
    let names = paths::names();
    if is_accepted {
        budgets.path.retain(|name, _| names.contains(name));
    }
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut counter = Counter::new(program, scratch.path());
    let mut is_kept = true;
    print!("{}", head());
    for name in names.into_iter().filter(|name| is_wanted(name, only)) {
        let budget = budgets.path.get(&name).cloned();
        let count = least(&name, budget.as_ref(), &mut counter)?;
        let title = format!("count/{name}");
        figures.push(Figure::new(title, "instructions", count.instructions));
        match (&budget, is_accepted) {
            (Some(budget), _) => print!("{}", budget.verdict(&name, &count)),
            (None, true) => print!("{}", Budget::of(&count).verdict(&name, &count)),
            (None, false) => println!(
                "{name:<44} {:>10.1} has no budget (--accept NOTE)",
                count.instructions
            ),
        }
        is_kept &= budget.is_some_and(|budget| !budget.is_exceeded(&count));
        if is_accepted {
            budgets.path.insert(name, Budget::of(&count));
        }
    }
    Ok(is_kept)
}

/// The least of several counts, where the first seems to have grown.
fn least(name: &str, budget: Option<&Budget>, counter: &mut Counter<'_>) -> Result<Count, String> {
    let mut least = counter.count(name)?;
    for _ in 1..ATTEMPTS {
        if budget.is_none_or(|budget| !budget.is_exceeded(&least)) {
            break;
        }
        counter.forget();
        let again = counter.count(name)?;
        if again.instructions < least.instructions {
            least = again;
        }
    }
    Ok(least)
}

/// Whether every step does exactly what it is budgeted to do; accepted, that becomes the budget.
fn count_steps(
    budgets: &mut Budgets,
    program: &Path,
    only: &[String],
    is_accepted: bool,
    figures: &mut Vec<Figure>,
) -> Result<bool, String> {
    let records = steps::records()?;
    if is_accepted {
        let is_there = |step: &String| {
            let record = step.split('/').next().unwrap_or_default();
            records.iter().any(|(name, _)| name == record)
        };
        budgets.step.retain(|step, _| is_there(step));
    }
    let mut is_kept = true;
    print!("\n{}", head_of_steps());
    // With the name of a step, other records need not be played.
    let may_have = |record: &str| {
        let in_record = |part: &String| part.contains(record) || !part.contains('/');
        only.is_empty() || only.iter().any(in_record)
    };
    for (record, file) in records.iter().filter(|(record, _)| may_have(record)) {
        for (name, step) in steps::of_record(program, record, file)? {
            if !is_wanted(&name, only) {
                continue;
            }
            for (what, value) in [("trips", step.trips), ("bytes", step.bytes_out)] {
                figures.push(Figure::new(
                    format!("step/{name}/{what}"),
                    what,
                    value as f64,
                ));
            }
            let budget = budgets.step.get(&name);
            print!("{}", step.verdict(&name, budget));
            is_kept &= budget == Some(&step);
            if is_accepted {
                budgets.step.insert(name, step);
            }
        }
    }
    Ok(is_kept)
}

fn read(file: &Path) -> Result<Budgets, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Budgets::default()),
        Err(error) => Err(failed(&error)),
        Ok(text) => toml::from_str(&text).map_err(|error| failed(&error)),
    }
}

fn rustc() -> String {
    let output = Command::new("rustc").arg("--version").output();
    output.map_or_else(
        |_| "unknown".to_owned(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

/// Runs two builds of this program in turns, with the same arguments, and says where they differ.
pub(crate) fn compare_builds(
    a: &Path,
    b: &Path,
    pairs: usize,
    args: &[OsString],
) -> Result<bool, String> {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        // Who comes first takes turns, too.
        if pair.is_multiple_of(2) {
            of_a.push(one(a, args)?);
            of_b.push(one(b, args)?);
        } else {
            of_b.push(one(b, args)?);
            of_a.push(one(a, args)?);
        }
        eprintln!("pair {} of {pairs}", pair + 1);
    }
    println!("{:<44} {:>8} {:>8}  verdict", "figure", "B / A", "p");
    for (name, found) in compare(&of_a, &of_b) {
        let verdict = if found.p < 0.01 {
            "differs"
        } else {
            "no difference shown"
        };
        println!(
            "{name:<44} {:>8.3} {:>8.4}  {verdict}",
            found.ratio, found.p
        );
    }
    Ok(true)
}

fn one(program: &Path, args: &[OsString]) -> Result<BTreeMap<String, f64>, String> {
    let output = Command::new(program).args(args).arg("--json").output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let run: Run = serde_json::from_slice(&output.stdout).map_err(|error| {
        let text = String::from_utf8_lossy(&output.stderr);
        format!(
            "{} gives no figures: {error}\n{text}",
            PathBuf::from(program).display()
        )
    })?;
    Ok(run
        .figures
        .into_iter()
        .map(|figure| (figure.name, figure.value))
        .collect())
}
