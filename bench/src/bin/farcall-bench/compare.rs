//! `compare`: two builds of this program in turns.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args;
use farcall_bench::gate::compare::{Comparison, Measured, compare, pairs_needed};
use farcall_bench::run::Run;

/// What `compare` is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Told {
    /// The one.
    a: PathBuf,
    /// The other.
    b: PathBuf,
    /// Pairs of runs; at least 8 to show anything, of many figures more.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pairs: u32,
    /// The exit code is 1 if B is shown to be slower than A by more than that in any figure.
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    fail_slower: Option<f64>,
    /// A measurement, for example: rtt --transport shm --size 64 --duration 1
    #[arg(last = true, required = true)]
    args: Vec<OsString>,
}

type Figures = BTreeMap<String, Measured>;

/// Runs both with the same arguments and says which is slower, and how surely.
pub(crate) fn compare_builds(told: &Told) -> Result<bool, String> {
    let pairs = usize::try_from(told.pairs).map_err(|error| error.to_string())?;
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for pair in 0..pairs {
        // Who comes first takes turns, too.
        if pair.is_multiple_of(2) {
            of_a.push(one(&told.a, &told.args)?);
            of_b.push(one(&told.b, &told.args)?);
        } else {
            of_b.push(one(&told.b, &told.args)?);
            of_a.push(one(&told.a, &told.args)?);
        }
        if pair == 0 {
            refuse_too_few(told, pairs, compare(&of_a, &of_b).len())?;
        }
        eprintln!("pair {} of {pairs}", pair + 1);
    }
    Ok(show(&compare(&of_a, &of_b), told.fail_slower))
}

/// Nothing could come of the pairs that are to be made: better said now than after all of them.
fn refuse_too_few(told: &Told, pairs: usize, figures: usize) -> Result<(), String> {
    if figures == 0 {
        return Err("the two have no figure in common: there is nothing to compare".to_owned());
    }
    let needed = pairs_needed(figures);
    if pairs >= needed {
        return Ok(());
    }
    let text =
        format!("{pairs} pairs cannot show a difference in {figures} figures: --pairs {needed}");
    match told.fail_slower {
        Some(_) => Err(text),
        None => {
            eprintln!("note: {text}");
            Ok(())
        }
    }
}

/// Prints the table; false if one is slower than it may be.
fn show(compared: &BTreeMap<String, Comparison>, fail_slower: Option<f64>) -> bool {
    println!("{:<44} {:>8} {:>8}  verdict", "figure", "B / A", "p");
    let mut is_kept = true;
    for (name, found) in compared {
        let is_failure = fail_slower.is_some_and(|percent| found.is_slower_by(percent));
        is_kept &= !is_failure;
        let (ratio, p, verdict) = (found.ratio, found.p, found.verdict());
        let mark = if is_failure {
            ", by more than it may be"
        } else {
            ""
        };
        println!("{name:<44} {ratio:>8.3} {p:>8.4}  {verdict}{mark}");
    }
    is_kept
}

fn one(program: &Path, args: &[OsString]) -> Result<Figures, String> {
    let output = Command::new(program).args(args).arg("--json").output();
    let output = output.map_err(|error| format!("{}: {error}", program.display()))?;
    let run: Run = serde_json::from_slice(&output.stdout).map_err(|error| {
        let text = String::from_utf8_lossy(&output.stderr);
        format!("{} gives no figures: {error}\n{text}", program.display())
    })?;
    let figures = run.figures.into_iter().map(|figure| {
        let measured = Measured {
            value: figure.value,
            is_more_better: figure.is_more_better(),
        };
        (figure.name, measured)
    });
    Ok(figures.collect())
}

fn percent(text: &str) -> Result<f64, String> {
    let percent: f64 = text.parse().map_err(|_| format!("no number: {text:?}"))?;
    if (0.0..=1000.0).contains(&percent) {
        Ok(percent)
    } else {
        Err("0 to 1000".to_owned())
    }
}
