//! Budgets and what became of them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::only::Only;
use super::paths::Count;
use super::toolchain::Toolchain;

/// Growth that fails.
const GROWTH_MAX: f64 = 0.02;
/// Instructions that may always come and go: counts of whole runs are divided by the calls.
const SLACK: f64 = 1.0;

/// The file of budgets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budgets {
    /// Why they are what they are: the note of whoever accepted them all last.
    pub note: String,
    /// What they were counted with.
    #[serde(default)]
    pub with: Toolchain,
    /// By name of a path or step that was accepted by itself since: the note.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub notes: BTreeMap<String, String>,
    /// By name of the path.
    pub path: BTreeMap<String, Budget>,
    /// By record and its step, such as `torch-cu13/train_step`.
    #[serde(default)]
    pub step: BTreeMap<String, Step>,
}

impl Budgets {
    /// Paths and steps that are wanted and have a budget, but were not `seen`: they are gone, or lost their names.
    #[must_use]
    pub fn vanished(&self, only: Only<'_>, seen: &BTreeSet<String>) -> Vec<String> {
        let names = self.path.keys().chain(self.step.keys());
        let vanished = names.filter(|name| only.wants(name) && !seen.contains(*name));
        vanished.cloned().collect()
    }

    /// Whether what is wanted may become budgets.
    ///
    /// # Errors
    /// A part of them, counted with other tools than the rest.
    pub fn may_accept(&self, with: &Toolchain, only: Only<'_>) -> Result<(), String> {
        match &self.with.differences(with)[..] {
            [first, ..] if !only.is_all() => Err(format!(
                "the other budgets were counted with other tools ({first}): accept all, without --only"
            )),
            _ => Ok(()),
        }
    }

    /// What was `seen` has been made the budgets, for the reason that `note` gives: those that are gone go.
    pub fn accept(&mut self, note: &str, with: Toolchain, only: Only<'_>, seen: &BTreeSet<String>) {
        for name in self.vanished(only, seen) {
            self.path.remove(&name);
            self.step.remove(&name);
            self.notes.remove(&name);
        }
        if only.is_all() {
            self.notes.clear();
            (self.note, self.with) = (note.to_owned(), with);
        } else {
            let notes = seen.iter().map(|name| (name.clone(), note.to_owned()));
            self.notes.extend(notes);
        }
    }
}

/// What a step of a recorded program does: exact, as nothing of it depends on the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// Blocking round trips.
    pub trips: u64,
    /// Bytes of the records and transfers that the client sends.
    pub bytes_out: u64,
}

impl Step {
    /// A line about the step, which was budgeted so.
    #[must_use]
    pub fn verdict(&self, name: &str, budget: Option<&Self>) -> String {
        let word = match budget {
            Some(budget) if budget == self => "as budgeted".to_owned(),
            Some(budget) => format!(
                "DIFFERS from {} and {} (--accept NOTE keeps it)",
                budget.trips, budget.bytes_out
            ),
            None => "has no budget (--accept NOTE)".to_owned(),
        };
        let Self { trips, bytes_out } = self;
        format!("{name:<44} {trips:>10} {bytes_out:>10}            {word}\n")
    }
}

/// The head of the table that [`Step::verdict`] continues.
#[must_use]
pub fn head_of_steps() -> String {
    format!(
        "{:<44} {:>10} {:>10}\n",
        "step of a recorded program", "trips", "bytes out"
    )
}

/// The budget of a path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budget {
    /// Instructions per call.
    pub instructions: f64,
    /// By function, callees not included: not judged, but shown when the path grew.
    #[serde(default)]
    pub functions: BTreeMap<String, f64>,
}

impl Budget {
    /// Of a count, rounded so that the file says no more than was counted.
    #[must_use]
    pub fn of(count: &Count) -> Self {
        let rounded = |value: f64| (value * 10.0).round() / 10.0;
        let functions = count
            .functions
            .iter()
            .map(|(name, own)| (name.clone(), rounded(*own)));
        Self {
            instructions: rounded(count.instructions),
            functions: functions.collect(),
        }
    }

    /// Whether a count is more than the budget allows.
    #[must_use]
    pub fn is_exceeded(&self, count: &Count) -> bool {
        count.instructions > self.instructions * (1.0 + GROWTH_MAX) + SLACK
    }

    /// A line about the path; where it grew, with the functions that did, largest growth first.
    #[must_use]
    pub fn verdict(&self, name: &str, count: &Count) -> String {
        let growth = (count.instructions / self.instructions - 1.0) * 100.0;
        let word = if self.is_exceeded(count) {
            "GREW"
        } else if count.instructions < self.instructions * (1.0 - GROWTH_MAX) - SLACK {
            "shrank (--accept NOTE keeps it)"
        } else {
            "as budgeted"
        };
        let (now, then) = (count.instructions, self.instructions);
        let mut out = format!("{name:<44} {now:>10.1} {then:>10.1} {growth:>+7.1} %  {word}\n");
        if self.is_exceeded(count) {
            for (function, change) in self.growth(count).into_iter().take(8) {
                let _ = writeln!(out, "    {change:>+9.1}  {function}");
            }
        }
        out
    }

    fn growth(&self, count: &Count) -> Vec<(String, f64)> {
        let mut changes: BTreeMap<&String, f64> = BTreeMap::new();
        for (name, own) in &count.functions {
            *changes.entry(name).or_default() += own;
        }
        for (name, own) in &self.functions {
            *changes.entry(name).or_default() -= own;
        }
        let grown = changes.into_iter().filter(|(_, change)| *change >= 0.5);
        let mut grown: Vec<_> = grown.map(|(name, change)| (name.clone(), change)).collect();
        grown.sort_by(|a, b| b.1.total_cmp(&a.1));
        grown
    }
}

/// The head of the table that [`Budget::verdict`] continues.
#[must_use]
pub fn head() -> String {
    format!(
        "{:<44} {:>10} {:>10} {:>9}\n",
        "instructions per call", "now", "budget", "change"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Budget, Budgets, Count, Only, Step, Toolchain};

    fn count(instructions: f64, functions: &[(&str, f64)]) -> Count {
        Count {
            instructions,
            functions: functions
                .iter()
                .map(|(name, own)| ((*name).to_owned(), *own))
                .collect(),
        }
    }

    fn budgets() -> Budgets {
        let path = |name: &str| (name.to_owned(), Budget::default());
        let step = |name: &str| (name.to_owned(), Step::default());
        Budgets {
            note: "all of them".to_owned(),
            path: ["ring/push", "ring/pop"].map(path).into(),
            step: ["torch/train", "torch/decode"].map(step).into(),
            ..Budgets::default()
        }
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn what_vanished_is_not_kept_and_goes_when_the_rest_is_accepted() {
        let mut budgets = budgets();
        let seen = names(&["ring/push", "torch/train"]);
        let all = Only(&[]);
        assert_eq!(budgets.vanished(all, &seen), ["ring/pop", "torch/decode"]);
        let steps = ["torch".to_owned()];
        assert_eq!(budgets.vanished(Only(&steps), &seen), ["torch/decode"]);
        budgets.accept("why", Toolchain::default(), all, &seen);
        assert_eq!(budgets.note, "why");
        assert!(budgets.path.len() == 1 && budgets.step.len() == 1);
        assert!(budgets.vanished(all, &seen).is_empty());
    }

    #[test]
    fn a_part_that_is_accepted_does_not_stamp_the_rest() {
        let mut budgets = budgets();
        let (words, seen) = (["ring".to_owned()], names(&["ring/push"]));
        let (only, with) = (Only(&words), Toolchain::default());
        budgets.accept("part", with, only, &seen);
        assert_eq!(budgets.note, "all of them");
        assert_eq!(budgets.notes["ring/push"], "part");
        assert!(!budgets.path.contains_key("ring/pop") && budgets.step.len() == 2);
        let text = toml::to_string(&budgets).expect("a file");
        assert_eq!(toml::from_str(&text), Ok(budgets.clone()), "{text}");
        budgets.with.rustc = "rustc 1.0.0".to_owned();
        let now = Toolchain {
            rustc: "rustc 2.0.0".to_owned(),
            ..Toolchain::default()
        };
        assert!(budgets.may_accept(&now, only).is_err());
        assert_eq!(budgets.may_accept(&now, Only(&[])), Ok(()));
    }

    #[test]
    fn steps_are_exact() {
        let budget = Step {
            trips: 0,
            bytes_out: 48_000,
        };
        assert!(
            budget
                .verdict("train", Some(&budget))
                .contains("as budgeted")
        );
        let waits = Step { trips: 1, ..budget };
        let text = waits.verdict("train", Some(&budget));
        assert!(text.contains("DIFFERS from 0 and 48000"), "{text}");
        assert!(waits.verdict("train", None).contains("no budget"));
    }

    #[test]
    fn more_than_two_percent_fails_and_names_the_function() {
        let budget = Budget::of(&count(500.0, &[("append", 300.0), ("encode", 200.0)]));
        assert!(!budget.is_exceeded(&count(510.0, &[])));
        let grown = count(
            540.0,
            &[("append", 300.0), ("encode", 190.0), ("log", 50.0)],
        );
        assert!(budget.is_exceeded(&grown));
        let text = budget.verdict("launch", &grown);
        assert!(
            text.contains("GREW") && text.contains("+50.0  log"),
            "{text}"
        );
        assert!(
            !text.contains("encode") && !text.contains("append"),
            "{text}"
        );
        assert!(
            budget
                .verdict("launch", &count(400.0, &[]))
                .contains("shrank")
        );
    }
}
