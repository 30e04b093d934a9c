//! The scripts that measure: what they refuse, and that they do all that they say.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../scripts")
        .join(name)
}

fn run(name: &str, args: &[&str]) -> (Output, String) {
    let output = Command::new(script(name)).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output, said)
}

/// The list of steps, the description at the top and the functions name the same.
#[test]
fn every_step_of_the_night_is_described_and_does_something() {
    let text = fs::read_to_string(script("nightly")).unwrap();
    let list = text.lines().find_map(|line| line.strip_prefix("STEPS=("));
    let steps: Vec<&str> = list.unwrap().trim_end_matches(')').split(' ').collect();
    let described = text.lines().filter_map(|line| line.strip_prefix("#   "));
    let described: Vec<&str> = described
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(steps, described);
    for step in steps {
        let function = format!("\n{step}() {{");
        assert!(text.contains(&function), "{step} does nothing");
    }
}

#[test]
fn an_unknown_step_of_the_night_is_refused_before_anything_runs() {
    // A function of the script that is no step is refused as well.
    for unknown in ["pools", "die"] {
        let (output, said) = run("nightly", &["pool", unknown]);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{said}"
        );
        assert!(said.contains(&format!("no step '{unknown}'")), "{said}");
    }
}

#[test]
fn a_link_that_cannot_be_made_is_refused_before_the_vm_starts() {
    for (option, value) in [
        ("--rtt", "fast"),
        ("--jitter", "1ms"),
        ("--loss", "much"),
        ("--rate", "0x10"),
        ("--transport", "pigeon"),
    ] {
        let (output, said) = run("testbed-vm", &[option, value]);
        assert!(!output.status.success() && said.contains(option), "{said}");
    }
}

/// The VM's disk is gone with it, but for what is mounted into it.
#[test]
fn results_of_the_testbed_are_kept() {
    let text = fs::read_to_string(script("testbed-vm")).unwrap();
    assert!(text.contains("--dir \"$REPO/bench/results\""));
}

#[test]
fn a_commit_that_does_not_exist_is_not_compared() {
    let (output, said) = run("perf-gate", &["ab", "no-such-commit", "HEAD"]);
    assert!(!output.status.success(), "{said}");
    // It ends there, and does not go on to run what was not built.
    assert!(
        output.stdout.is_empty() && !said.contains("farcall-bench"),
        "{said}"
    );
}
