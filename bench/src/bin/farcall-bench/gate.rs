//! `gate`: counts against budgets.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use farcall_bench::figure::Figure;
use farcall_bench::gate::budget::{Budget, Budgets, Step, head, head_of_steps};
use farcall_bench::gate::only::Only;
use farcall_bench::gate::paths::{self, Count, Counter};
use farcall_bench::gate::steps;
use farcall_bench::gate::toolchain::Toolchain;
use farcall_bench::run::Before;

use crate::output::Keep;

/// Times that a path is counted when it seems to have grown: its whole runs depend a little on the moment.
const ATTEMPTS: usize = 3;

/// What `gate` is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Told {
    /// Makes what is counted the new budgets, for this reason.
    #[arg(long, value_name = "NOTE", value_parser = note)]
    accept: Option<String>,
    /// Only paths and steps whose name holds one of these.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    #[command(flatten)]
    keep: Keep,
}

/// Counts every path and every step of the recorded programs, and judges them; with a note, keeps the counts as the new
/// budgets instead.
pub(crate) fn gate(told: &Told) -> Result<bool, String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("budgets.toml");
    let before = Before::here();
    let mut gate = Gate {
        budgets: read(&file)?,
        only: Only(&told.only),
        is_accepted: told.accept.is_some(),
        records: steps::records()?,
        program: std::env::current_exe().map_err(|error| error.to_string())?,
        seen: BTreeSet::new(),
        figures: Vec::new(),
        is_kept: true,
    };
    gate.refuse_unknown()?;
    let with = Toolchain::here();
    for difference in gate.budgets.with.differences(&with) {
        eprintln!("note: the budgets were counted with {difference}: expect small changes");
    }
    if gate.is_accepted {
        gate.budgets.may_accept(&with, gate.only)?;
    }
    gate.count_paths()?;
    gate.count_steps()?;
    gate.name_vanished();
    told.keep.run(&before.run(gate.figures, None))?;
    let Some(note) = &told.accept else {
        return Ok(gate.is_kept);
    };
    gate.budgets.accept(note, with, gate.only, &gate.seen);
    let text = toml::to_string(&gate.budgets).map_err(|error| error.to_string())?;
    fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
    println!("kept in {}", file.display());
    Ok(true)
}

/// The budgets, and what has come of them.
struct Gate<'a> {
    budgets: Budgets,
    only: Only<'a>,
    /// Whether what is counted becomes the budget.
    is_accepted: bool,
    records: Vec<(String, PathBuf)>,
    program: PathBuf,
    /// Paths and steps that were counted.
    seen: BTreeSet<String>,
    figures: Vec<Figure>,
    is_kept: bool,
}

impl Gate<'_> {
    /// With a word that is nothing's name, nothing would be judged, and all would seem well.
    fn refuse_unknown(&self) -> Result<(), String> {
        let paths = paths::names();
        let names = paths.iter().chain(self.budgets.step.keys());
        let names: Vec<&str> = names.map(String::as_str).collect();
        let records: Vec<&str> = self.records.iter().map(|(name, _)| name.as_str()).collect();
        match self.only.unknown(&names, &records) {
            Some(word) => Err(format!(
                "--only {word:?} is part of no name: {}; steps of {}",
                paths.join(", "),
                records.join(", ")
            )),
            None => Ok(()),
        }
    }

    fn count_paths(&mut self) -> Result<(), String> {
        let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
        let program = self.program.clone();
        let mut counter = Counter::new(&program, scratch.path());
        print!("{}", head());
        let (only, names) = (self.only, paths::names().into_iter());
        for name in names.filter(|name| only.wants(name)) {
            let count = least(&name, self.budgets.path.get(&name), &mut counter)?;
            self.take_path(name, &count);
        }
        Ok(())
    }

    fn take_path(&mut self, name: String, count: &Count) {
        let title = format!("count/{name}");
        let figure = Figure::new(title, "instructions", count.instructions);
        self.figures.push(figure);
        let budget = self.budgets.path.get(&name);
        match (budget, self.is_accepted) {
            (Some(budget), _) => print!("{}", budget.verdict(&name, count)),
            (None, true) => print!("{}", Budget::of(count).verdict(&name, count)),
            (None, false) => println!(
                "{name:<44} {:>10.1} has no budget (--accept NOTE)",
                count.instructions
            ),
        }
        self.is_kept &= budget.is_some_and(|budget| !budget.is_exceeded(count));
        if self.is_accepted {
            self.budgets.path.insert(name.clone(), Budget::of(count));
        }
        self.seen.insert(name);
    }

    fn count_steps(&mut self) -> Result<(), String> {
        print!("\n{}", head_of_steps());
        // With the name of a step, other records need not be played.
        let (only, records) = (self.only, std::mem::take(&mut self.records));
        let played = records
            .iter()
            .filter(|(record, _)| only.may_want_step_of(record));
        for (record, file) in played {
            for (name, step) in steps::of_record(&self.program, record, file)? {
                if only.wants(&name) {
                    self.take_step(name, step);
                }
            }
        }
        Ok(())
    }

    fn take_step(&mut self, name: String, step: Step) {
        for (what, value) in [("trips", step.trips), ("bytes", step.bytes_out)] {
            let title = format!("step/{name}/{what}");
            self.figures.push(Figure::new(title, what, value as f64));
        }
        let budget = self.budgets.step.get(&name);
        print!("{}", step.verdict(&name, budget));
        self.is_kept &= budget == Some(&step);
        if self.is_accepted {
            self.budgets.step.insert(name.clone(), step);
        }
        self.seen.insert(name);
    }

    /// What has a budget and was not counted is not kept: nobody would see how it grew.
    fn name_vanished(&mut self) {
        for name in self.budgets.vanished(self.only, &self.seen) {
            self.is_kept = false;
            println!("{name:<44} is GONE (--accept NOTE drops its budget)");
        }
    }
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

fn read(file: &Path) -> Result<Budgets, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    match fs::read_to_string(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Budgets::default()),
        Err(error) => Err(failed(&error)),
        Ok(text) => toml::from_str(&text).map_err(|error| failed(&error)),
    }
}

/// Whoever reads the budgets later learns from it why they grew.
fn note(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("the reason why the budgets change".to_owned()),
        note => Ok(note.to_owned()),
    }
}
