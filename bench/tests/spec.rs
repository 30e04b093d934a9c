//! SPEC.md names every promised figure, with a command that exists and a value or the reason for none.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use farcall_bench::gate::budget::Budgets;
use farcall_marshal::catalogue::CALLS;

/// Every promise. A new one is added here first.
const PROMISED: &[&str] = &[
    "main/blocking-call",
    "main/launch-issue",
    "main/trips-start-up",
    "main/trips-waiting-call",
    "main/idle-memory",
    "main/demo",
    "count/local-call",
    "count/encode",
    "count/decode-dispatch",
    "net/rtt-shm",
    "net/rtt-tcp",
    "net/rtt-verbs",
    "net/peers-tcp",
    "net/peers-shm",
    "net/bulk-tcp",
    "net/bulk-shm",
    "net/bulk-verbs",
    "net/flood-shm",
    "net/flood-tcp",
    "net/tail",
    "net/jitter",
    "net/idle-cpu",
    "net/idle-registered",
    "stacks/functions",
    "stacks/trips-training",
    "stacks/trips-inference",
    "stacks/trips-graph",
    "stacks/trips-decode",
    "stacks/trips-import",
    "stacks/second-upload",
    "stacks/added-rtt-training",
    "stacks/added-rtt-decode",
    "stacks/shim-time",
    "stacks/local-call-time",
    "replay/client-cpu",
    "replay/added-rtt",
    "gpu/session-open",
    "gpu/shares",
    "gpu/package",
    "gpu/training",
    "gpu/inference",
    "gpu/decode",
    "gpu/copies",
    "gpu/added-rtt",
    "pool/grants",
    "pool/grant-latency",
    "pool/utilisation",
    "dashboard/first-page",
    "dashboard/page-bytes",
    "survive/dead-peer",
    "survive/neighbour",
    "survive/sessions",
    "survive/scenarios",
    "survive/grace",
];

/// Promises that are instruction counts: the most that a budget may be made, however it is accepted.
const PROMISED_MAX: &[(&str, u32)] = &[
    ("count/local-call", 40),
    ("count/encode", 300),
    ("count/decode-dispatch", 400),
];

struct Row {
    id: String,
    promise: String,
    command: String,
    measured: String,
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn rows() -> Vec<Row> {
    let text = fs::read_to_string(repository().join("SPEC.md")).unwrap();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| id |"));
    lines
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
            assert_eq!(cells.len(), 4, "four columns: {line}");
            assert!(
                cells.iter().all(|cell| !cell.is_empty()),
                "no empty cell: {line}"
            );
            Row {
                id: cells[0].to_owned(),
                promise: cells[1].to_owned(),
                command: cells[2].trim_matches('`').to_owned(),
                measured: cells[3].to_owned(),
            }
        })
        .collect()
}

#[test]
fn every_promise_is_there_once() {
    let ids: Vec<String> = rows().into_iter().map(|row| row.id).collect();
    let set: BTreeSet<&str> = ids.iter().map(String::as_str).collect();
    assert_eq!(set.len(), ids.len(), "a promise stands there twice");
    let promised: BTreeSet<&str> = PROMISED.iter().copied().collect();
    let missing: Vec<_> = promised.difference(&set).collect();
    let unknown: Vec<_> = set.difference(&promised).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "missing: {missing:?}, unknown: {unknown:?}"
    );
}

#[test]
fn every_promise_has_a_value_or_the_reason_for_none() {
    for row in rows() {
        let reason = row.measured.strip_prefix("not measured");
        match reason {
            Some(reason) => assert!(
                reason.starts_with(": ") && reason.len() > 10,
                "{}: why not?",
                row.id
            ),
            None => assert!(
                row.measured.contains(|c: char| c.is_ascii_digit()),
                "{}: no number in {:?}",
                row.id,
                row.measured
            ),
        }
    }
}

#[test]
fn every_command_exists() {
    for row in rows() {
        let words: Vec<&str> = row.command.split(' ').collect();
        let exists = match words[..] {
            ["farcall-bench", ..] => is_understood(&words[1..]),
            ["cargo", ..] => is_of_the_workspace(&words),
            [script, ..] => repository().join(script).is_file(),
            [] => false,
        };
        assert!(exists, "{}: there is no {:?}", row.id, row.command);
    }
}

/// With `--help` behind them arguments are read, but nothing is measured.
fn is_understood(args: &[&str]) -> bool {
    let mut command = Command::new(env!("CARGO_BIN_EXE_farcall-bench"));
    let output = command.args(args).arg("--help").output().unwrap();
    output.status.success()
}

/// Package, bench and test that a command of cargo names.
fn is_of_the_workspace(words: &[&str]) -> bool {
    let after = |option: &str| {
        let at = words.iter().position(|word| *word == option)?;
        words.get(at + 1).copied()
    };
    let Some(package) = after("-p").and_then(|name| name.strip_prefix("farcall-")) else {
        return false;
    };
    let folder = repository().join(package);
    let file = |option: &str, within: &str| {
        after(option).is_none_or(|name| folder.join(within).join(format!("{name}.rs")).is_file())
    };
    folder.join("Cargo.toml").is_file() && file("--bench", "benches") && file("--test", "tests")
}

#[test]
fn commands_that_mean_nothing_are_found() {
    assert!(is_understood(&[
        "rtt",
        "--transport",
        "shm",
        "--size",
        "64"
    ]));
    for wrong in [
        &["rtt", "--transport", "pigeon"][..],
        &["rtt", "--sise", "64"],
        &["main-job", "--only", "everything"],
        &["measure"],
    ] {
        assert!(!is_understood(wrong), "{wrong:?}");
    }
    let is_there = |command: &str| is_of_the_workspace(&command.split(' ').collect::<Vec<_>>());
    assert!(is_there("cargo bench -p farcall-bench --bench session"));
    assert!(!is_there("cargo bench -p farcall-bench --bench sessions"));
    assert!(!is_there("cargo nextest run -p farcall-nothing"));
}

#[test]
fn functions_are_those_of_the_catalogue() {
    let implemented = CALLS.iter().filter(|call| call.implemented).count();
    let rows = rows();
    let row = rows
        .iter()
        .find(|row| row.id == "stacks/functions")
        .unwrap();
    let stated: usize = row.measured.split(' ').next().unwrap().parse().unwrap();
    assert_eq!(stated, implemented, "SPEC.md beside the catalogue");
    assert!(implemented >= 300, "{implemented}");
}

#[test]
fn counts_are_those_of_the_budgets() {
    let text = fs::read_to_string(repository().join("bench/budgets.toml")).unwrap();
    let budgets: Budgets = toml::from_str(&text).unwrap();
    for row in rows() {
        let Some(name) = row.command.strip_prefix("farcall-bench gate --only ") else {
            continue;
        };
        let budget = budgets
            .path
            .get(name)
            .unwrap_or_else(|| panic!("{}: no path {name}", row.id));
        let stated: f64 = row.measured.split(' ').next().unwrap().parse().unwrap();
        assert!(
            (stated - budget.instructions).abs() < 0.06,
            "{}: {stated} here, {} in bench/budgets.toml",
            row.id,
            budget.instructions
        );
    }
}

#[test]
fn budgets_are_no_more_than_what_is_promised() {
    let text = fs::read_to_string(repository().join("bench/budgets.toml")).unwrap();
    let budgets: Budgets = toml::from_str(&text).unwrap();
    let rows = rows();
    for (id, most) in PROMISED_MAX {
        let row = rows.iter().find(|row| row.id == *id).unwrap();
        let promise = format!("at most {most} instructions");
        assert!(row.promise.ends_with(&promise), "{id}: {}", row.promise);
        let path = row.command.strip_prefix("farcall-bench gate --only ");
        let counted = budgets.path[path.unwrap()].instructions;
        assert!(
            counted <= f64::from(*most),
            "{id}: {counted} in bench/budgets.toml, {most} promised"
        );
    }
    let counts = rows.iter().filter(|row| row.id.starts_with("count/"));
    assert_eq!(
        counts.count(),
        PROMISED_MAX.len(),
        "one without its maximum"
    );
}
