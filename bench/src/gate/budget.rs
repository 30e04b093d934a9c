//! Budgets and what became of them.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::paths::Count;

/// Growth that fails.
const GROWTH_MAX: f64 = 0.02;
/// Instructions that may always come and go: counts of whole runs are divided by the calls.
const SLACK: f64 = 1.0;

/// The file of budgets.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Budgets {
    /// Why they are what they are: the note of whoever accepted them last.
    pub note: String,
    /// The compiler that they were counted with.
    pub rustc: String,
    /// By name of the path.
    pub path: BTreeMap<String, Budget>,
    /// By record and its step, such as `torch-cu13/train_step`.
    #[serde(default)]
    pub step: BTreeMap<String, Step>,
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
    use super::{Budget, Count, Step};

    fn count(instructions: f64, functions: &[(&str, f64)]) -> Count {
        Count {
            instructions,
            functions: functions
                .iter()
                .map(|(name, own)| ((*name).to_owned(), *own))
                .collect(),
        }
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
