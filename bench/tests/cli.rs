//! `farcall-bench` on the command line: what it prints, keeps and refuses.
#![allow(clippy::unwrap_used, missing_docs)]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use farcall_bench::run::{self, Run};

const BENCH: &str = env!("CARGO_BIN_EXE_farcall-bench");
/// A measurement that takes next to no time.
const SHORT: [&str; 6] = ["--duration", "0.05", "--warm-up", "0", "--rounds", "1"];

fn bench(args: &[&str]) -> Output {
    let mut command = Command::new(BENCH);
    command.args(args).stdin(Stdio::null()).output().unwrap()
}

fn with(args: &[&str], more: &[&str]) -> Output {
    bench(&[args, more].concat())
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `farcall-bench server`, until it is dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start() -> Self {
        let mut command = Command::new(BENCH);
        command.args(["server", "--listen", "127.0.0.1:0"]);
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        let stdout = process.stdout.take().unwrap();
        BufReader::new(stdout).read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("serving on ").unwrap().to_owned();
        Self { process, address }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_client_measures_a_server_and_a_report_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("results/two-hosts.ndjson");
    let server = Server::start();
    let args = ["client", &server.address, "--json", "--save-to"];
    let args = [&args[..], &[kept.to_str().unwrap()]].concat();
    let output = with(&args, &SHORT);
    // Nothing is promised of two hosts.
    assert!(output.status.success(), "{}", stderr(&output));
    let run: Run = serde_json::from_slice(&output.stdout).unwrap();
    assert!(run.server.is_some() && run.command.starts_with("client "));
    let kinds = run
        .figures
        .iter()
        .map(|figure| figure.name.split('/').next().unwrap());
    let kinds: BTreeSet<&str> = kinds.collect();
    for kind in ["rtt", "jitter", "gap_spread", "achieved", "flood", "bulk"] {
        assert!(kinds.contains(kind), "{kind}: {kinds:?}");
    }
    assert!(run.figures.iter().all(|figure| figure.value.is_finite()));
    report_of(folder.path(), &kept);
}

/// A test is built without optimization, and such runs are shown to nobody: this one is made one that is.
fn report_of(folder: &Path, kept: &Path) {
    let (results, out) = (kept.parent().unwrap(), folder.join("report"));
    let args = [
        "report",
        "--results",
        results.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ];
    let mut runs = run::load(results).unwrap().runs;
    assert_eq!(runs.len(), 1);
    if runs[0].is_debug_build {
        let refused = bench(&args);
        assert_eq!(refused.status.code(), Some(2), "{}", stderr(&refused));
    }
    runs[0].is_debug_build = false;
    fs::remove_file(kept).unwrap();
    runs[0].save(kept).unwrap();
    fs::write(results.join("cut-off.ndjson"), "{\"schema\":").unwrap();
    let made = bench(&args);
    assert!(made.status.success(), "{}", stderr(&made));
    assert!(stderr(&made).contains("skipped") && stderr(&made).contains("cut-off.ndjson:1"));
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(page.contains("rtt/tcp/64B") && page.contains("bulk/tcp/up/64MiB"));
    assert!(
        fs::read_to_string(out.join("report.md"))
            .unwrap()
            .contains("| rtt/tcp/64B |")
    );
}

#[test]
fn a_build_is_compared_with_itself() {
    let measurement = [
        "--",
        "rtt",
        "--size",
        "8",
        "--duration",
        "0.01",
        "--warm-up",
        "0",
    ];
    let output = with(&["compare", BENCH, BENCH, "--pairs", "2"], &measurement);
    let (table, notes) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{notes}");
    assert!(
        table.contains("rtt/tcp/8B") && table.contains("no difference shown"),
        "{table}"
    );
    assert!(notes.contains("2 pairs cannot show"), "{notes}");
    // Where the exit code would say nothing, nothing is measured.
    let judged = [
        "compare",
        BENCH,
        BENCH,
        "--fail-slower",
        "5",
        "--pairs",
        "2",
    ];
    let output = with(&judged, &measurement);
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert!(stderr(&output).contains("--pairs 8"), "{}", stderr(&output));
}

#[test]
fn a_recorded_program_is_played_over_two_ways() {
    let record = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/traces/torch-cu12.calls");
    let args = [
        "replay",
        record.to_str().unwrap(),
        "--runs",
        "1",
        "--transport",
        "tcp",
        "--json",
    ];
    let output = with(&args, &["--added-rtt-us", "0,10"]);
    assert!(
        output.status.code().is_some_and(|code| code < 2),
        "{}",
        stderr(&output)
    );
    let run: Run = serde_json::from_slice(&output.stdout).unwrap();
    let figure = |what: &str| {
        let name = format!("replay/torch-cu12/tcp/train_step/{what}");
        let found = run.figures.iter().find(|figure| figure.name == name);
        found.unwrap_or_else(|| panic!("no {name}"))
    };
    assert!(figure("calls").value > 1000.0 && figure("trips").value == 0.0);
    assert_eq!(figure("wall@0us").ratio(), None);
    let far = figure("wall@10us");
    assert_eq!(
        far.limit().map(|limit| limit.name.as_str()),
        Some("at 0 us")
    );
    assert!(far.ratio().is_some_and(|ratio| ratio > 0.0));
}

/// Options that would measure nothing, or something else than asked for: each is refused at once, with a word that helps.
#[test]
fn what_cannot_be_measured_is_refused() {
    for (line, word) in [
        ("rtt --duration 0", "0.001"),
        ("rtt --rounds 0", "1..="),
        ("rtt --size 0", "1 to 1GiB"),
        ("rtt --pin 0,0", "two cores"),
        ("rtt --pin 0", "CLIENT,SERVER"),
        ("rtt --transport pigeon", "tcp, tls, shm"),
        ("rtt --server there:1 --peers", "cannot be used with"),
        (
            "rtt --server there:1 --listen 127.0.0.1",
            "cannot be used with",
        ),
        ("jitter --rate=-1", "0.001 to"),
        ("mix --rate 0", "0.001 to"),
        ("mix --clients 0", "1..="),
        ("mix --peers", "--peers"),
        ("mix --rounds 3", "--rounds"),
        ("idle --server there:1", "--server"),
        ("client there --peers", "--peers"),
        ("launch --server there:1", "--server"),
        ("launch --peers", "--peers"),
        ("launch --launches 0", "1.."),
        ("launch --transport tls", "rtt, bulk and flood"),
        ("flood --records 0", "1..="),
        ("replay a.calls --transport tls", "rtt, bulk and flood"),
        ("replay a.calls --runs 0", "1.."),
        ("replay no-such.calls", "no-such.calls"),
        ("main-job --only everything", "blocking"),
        ("main-job --launches 0", "1.."),
        ("gate --only everything", "ring/push"),
        ("gate --accept=", "reason"),
        ("compare a b --pairs 0 -- rtt", "1..="),
        ("compare no-such-a no-such-b -- rtt", "no-such-a"),
    ] {
        let began = Instant::now();
        let output = bench(&line.split(' ').collect::<Vec<_>>());
        let said = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{line}: {said}");
        assert!(said.contains(word), "{line}: {said}");
        // What is measured by default takes longer.
        assert!(
            began.elapsed() < Duration::from_secs(2),
            "{line}: {:?}",
            began.elapsed()
        );
    }
}
