//! `gate` and `compare`: has a change made it slower?
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use farcall_bench::gate::budget::{Budget, Budgets, head};
use farcall_bench::gate::compare::compare;
use farcall_bench::gate::paths::{self, Count};
use farcall_bench::run::Run;

/// Times that a path is counted when it seems to have grown: its whole runs depend a little on the moment.
const ATTEMPTS: usize = 3;

/// Counts every path and judges it; with a note, keeps the counts as the new budgets instead.
pub(crate) fn gate(accept: Option<&str>, only: &[String]) -> Result<bool, String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("budgets.toml");
    let mut budgets = read(&file)?;
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let compiler = rustc();
    if !budgets.rustc.is_empty() && budgets.rustc != compiler {
        eprintln!(
            "note: the budgets are of {}, this is {compiler}: expect small changes",
            budgets.rustc
        );
    }
    print!("{}", head());
    let mut is_kept = true;
    let wanted = |name: &String| only.is_empty() || only.iter().any(|part| name.contains(part));
    for name in paths::names().into_iter().filter(wanted) {
        let budget = budgets.path.get(&name).cloned();
        let count = least(&name, budget.as_ref(), &program, scratch.path())?;
        match (&budget, accept) {
            (Some(budget), _) => print!("{}", budget.verdict(&name, &count)),
            (None, Some(_)) => print!("{}", Budget::of(&count).verdict(&name, &count)),
            (None, None) => println!(
                "{name:<44} {:>10.1} has no budget (--accept NOTE)",
                count.instructions
            ),
        }
        is_kept &= budget.is_some_and(|budget| !budget.is_exceeded(&count));
        if accept.is_some() {
            budgets.path.insert(name, Budget::of(&count));
        }
    }
    let Some(note) = accept else {
        return Ok(is_kept);
    };
    budgets.path.retain(|name, _| paths::names().contains(name));
    (budgets.note, budgets.rustc) = (note.to_owned(), compiler);
    let text = toml::to_string(&budgets).map_err(|error| error.to_string())?;
    fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    println!("kept in {}", file.display());
    Ok(true)
}

fn least(
    name: &str,
    budget: Option<&Budget>,
    program: &Path,
    scratch: &Path,
) -> Result<Count, String> {
    let mut least = paths::count(name, program, scratch)?;
    for _ in 1..ATTEMPTS {
        if budget.is_none_or(|budget| !budget.is_exceeded(&least)) {
            break;
        }
        let again = paths::count(name, program, scratch)?;
        if again.instructions < least.instructions {
            least = again;
        }
    }
    Ok(least)
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
