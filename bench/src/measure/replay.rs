//! Recorded programs, played again through the built library, a transport and an executor on `null`: what a step costs
//! the client and the server, and how much longer it takes the farther the server is.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::unix::process::parent_id;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use farcall_fixtures::replay::driver::Driver;
use farcall_fixtures::replay::phases::Phase;
use farcall_fixtures::replay::{self, Report};
use farcall_fixtures::{Stats, server};
use farcall_gpu_exec::EXECUTOR_COMMAND;
use farcall_marshal::calltrace::{self, Step};

use crate::environment;
use crate::figure::{Beside, Figure, Target};
use crate::net::Transport;
use crate::serving::{Executors, serving};

/// The step for which the promises are.
const PROMISED: &str = "train_step";
/// The phase of a record without marks.
const WHOLE: &str = "all";
/// The promise: client processor time of that step.
const CLIENT_CPU_MS: f64 = 0.6;
/// The promise: how much longer that step may take with so much added to the round trip.
const SLOWDOWN: (u32, f64) = (100, 1.05);

/// What stands beside a step's time: the same if every call that the client cannot answer by itself waited, computed from
/// the time at the shortest way and the number of those calls.
pub const CALL_BY_CALL: &str = "call by call (computed)";
/// The same, measured: with `FARCALL_CALL_BY_CALL`.
pub const CALL_BY_CALL_MEASURED: &str = "call by call (measured)";

/// Why the promise of the way is not judged.
const NOT_FROM_NOUGHT: &str =
    "what 100 us more cost is judged beside 0 us: --added-rtt-us 0,... with that first";

/// Runs call by call, at most.
const CALL_BY_CALL_RUNS: u32 = 2;

/// How to measure.
#[derive(Clone, Debug)]
pub struct Replay<'a> {
    /// The record.
    pub trace: &'a Path,
    /// Backend.
    pub transport: Transport,
    /// Microseconds that are added to the round trip; the first is what the others are compared with.
    pub added_rtt_us: &'a [u32],
    /// Runs of each kind; the least of them counts, as other programs only ever make a step longer.
    pub runs: u32,
}

/// Plays a record in this process: through the library that was built with this program, or, `hollow`, through functions
/// that do nothing.
///
/// # Errors
/// The record or the library cannot be read.
pub fn play(program: &Path, trace: &Path, is_hollow: bool) -> Result<Report, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", trace.display());
    let file = std::fs::read(trace).map_err(|error| failed(&error))?;
    let steps = calltrace::unpack(&file).map_err(|error| failed(&error))?;
    let steps = with_phases(steps);
    let driver = if is_hollow {
        Driver::hollow()
    } else {
        let library = program.with_file_name("libcuda.so");
        Driver::open_at(&library).map_err(|error| error.to_string())?
    };
    Ok(replay::play_watched(driver, steps, siblings_cpu))
}

/// A record of a program that marks nothing is one phase.
fn with_phases(mut steps: Vec<Step>) -> Vec<Step> {
    let is_mark = |step: &Step| matches!(step, Step::Mark(_));
    if !steps.iter().any(is_mark) {
        steps.insert(0, Step::Mark(WHOLE.to_owned()));
    }
    steps
}

/// `replay/*`: for each phase of the record its time and its processor time on both sides, how often it waits, what it
/// sends, and the time with a longer way; beside that what it would be if every call that the client cannot answer by
/// itself waited for the server.
///
/// Processor time of the client is that of the whole process less that of a replay through functions that do nothing.
///
/// # Errors
/// A run fails.
pub fn replay(program: &Path, how: &Replay<'_>) -> Result<Vec<Figure>, String> {
    let counted = counts(program, how.trace, how.transport)?;
    if counted.is_empty() {
        return Err(format!("{}: no driver calls in it", how.trace.display()));
    }
    let mut hollow = Phases::new();
    for _ in 0..how.runs.max(1) {
        take_least(&mut hollow, one(program, how, None, &[])?);
    }
    let ways = ways(program, how)?;
    let mut figures = Vec::new();
    for (name, counts) in &counted {
        let phase = Named {
            name,
            title: format!("replay/{}/{}/{name}", record_name(how.trace), how.transport),
        };
        figures.extend(of_phase(&phase, counts, &hollow, &ways));
    }
    Ok(figures)
}

/// Runs over each way in turn, so that what else the machine does befalls all alike.
fn ways(program: &Path, how: &Replay<'_>) -> Result<Vec<Way>, String> {
    let way = |rtt: &u32| Way {
        rtt_us: *rtt,
        batched: Phases::new(),
        call_by_call: Phases::new(),
    };
    let mut ways: Vec<Way> = how.added_rtt_us.iter().map(way).collect();
    for round in 0..how.runs.max(1) {
        for way in &mut ways {
            let added = ("FARCALL_ADDED_RTT_US", way.rtt_us.to_string());
            let run = |envs: &[(&str, String)]| {
                on_server(program, |address| one(program, how, Some(address), envs))
            };
            take_least(&mut way.batched, run(std::slice::from_ref(&added))?);
            // It takes long, and no other program makes it much longer.
            if round < CALL_BY_CALL_RUNS {
                let each_waits = ("FARCALL_CALL_BY_CALL", "1".to_owned());
                take_least(&mut way.call_by_call, run(&[added, each_waits])?);
            }
        }
    }
    Ok(ways)
}

/// What was measured over a way.
struct Way {
    rtt_us: u32,
    batched: Phases,
    call_by_call: Phases,
}

/// Of a phase, the least of several runs.
type Phases = BTreeMap<String, Phase>;

/// What a phase does, whenever and wherever it is played.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Driver calls.
    pub calls: u64,
    /// Calls that the client does not answer by itself.
    pub remote: u64,
    /// Blocking round trips.
    pub trips: u64,
    /// Bytes that the client sends, without what batching adds to them.
    pub bytes_out: u64,
    /// Bytes of both ways, with that: it varies a little.
    bytes: u64,
}

/// A phase, and how its figures' names begin.
struct Named<'a> {
    name: &'a str,
    title: String,
}

/// `torch-cu13` of `fixtures/traces/torch-cu13.calls`.
fn record_name(trace: &Path) -> String {
    let stem = trace.file_stem().unwrap_or_default();
    stem.to_string_lossy().replace('/', "-")
}

fn of_phase(phase: &Named<'_>, counts: &Counts, hollow: &Phases, ways: &[Way]) -> Vec<Figure> {
    let Named { name, title } = phase;
    let is_promised = *name == PROMISED;
    let figure =
        |what: &str, unit: &str, value: f64| Figure::new(format!("{title}/{what}"), unit, value);
    let mut figures = vec![
        figure("calls", "calls", counts.calls as f64),
        figure("trips", "trips", counts.trips as f64),
        figure("bytes", "bytes", counts.bytes as f64),
    ];
    let Some((near, first)) = ways
        .first()
        .and_then(|way| Some((way.rtt_us, way.batched.get(*name)?)))
    else {
        return figures;
    };
    let player = hollow.get(*name).cloned().unwrap_or_default();
    let own_ms = first.client_cpu_ns.saturating_sub(player.client_cpu_ns) as f64 / 1e6;
    let mut client = figure("client_cpu", "ms", own_ms);
    if is_promised {
        client = client.target(Target::Value(CLIENT_CPU_MS));
    }
    figures.push(client);
    figures.push(figure("server_cpu", "ms", first.server_cpu_ns as f64 / 1e6));
    let near_ms = first.wall_ns as f64 / 1e6;
    for way in ways {
        let Some(phase) = way.batched.get(*name) else {
            continue;
        };
        let rtt = way.rtt_us;
        let mut wall = figure(&format!("wall@{rtt}us"), "ms", phase.wall_ns as f64 / 1e6);
        if rtt != near {
            wall = wall.beside(&format!("at {near} us"), near_ms);
        }
        let each_waits = near_ms + f64::from(rtt - near.min(rtt)) * counts.remote as f64 / 1e3;
        // No limits: what is promised is promised of the way alone.
        wall = wall.with(Beside::new(CALL_BY_CALL, each_waits).peer());
        if let Some(measured) = way.call_by_call.get(*name) {
            let measured_ms = measured.wall_ns as f64 / 1e6;
            wall = wall.with(Beside::new(CALL_BY_CALL_MEASURED, measured_ms).peer());
        }
        if is_promised && rtt == SLOWDOWN.0 {
            wall = match near {
                0 => wall.target(Target::Ratio(SLOWDOWN.1)),
                _ => wall.note(format!("{title}: {NOT_FROM_NOUGHT}")),
            };
        }
        figures.push(wall);
    }
    figures
}

/// One run with statistics, which take time of their own: what each phase of a record does, in the order of the record.
///
/// # Errors
/// The run fails.
pub fn counts(
    program: &Path,
    trace: &Path,
    transport: Transport,
) -> Result<Vec<(String, Counts)>, String> {
    let how = Replay {
        trace,
        transport,
        added_rtt_us: &[],
        runs: 1,
    };
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let file = folder.path().join("stats.json");
    let counting = [("FARCALL_STATS", file.display().to_string())];
    on_server(program, |address| {
        one(program, &how, Some(address), &counting)
    })?;
    let stats = Stats::read(&file).ok_or("the replay left no statistics")?;
    let phases = stats.phases.iter().map(|phase| {
        let by_client = ["local", "cached"];
        let remote = phase.by_class.iter();
        let remote = remote.filter(|(class, _)| !by_client.contains(&class.as_str()));
        let counts = Counts {
            calls: phase.calls,
            remote: remote.map(|(_, calls)| calls).sum(),
            trips: phase.blocking_round_trips,
            bytes_out: phase.record_bytes_out,
            bytes: phase.bytes_out + phase.bytes_in,
        };
        (phase.name.clone(), counts)
    });
    Ok(phases.collect())
}

/// The least of each time of each phase.
fn take_least(of: &mut Phases, report: Report) {
    for phase in report.phases {
        let least = of.entry(phase.name.clone()).or_insert(phase.clone());
        least.wall_ns = least.wall_ns.min(phase.wall_ns);
        least.client_cpu_ns = least.client_cpu_ns.min(phase.client_cpu_ns);
        least.server_cpu_ns = least.server_cpu_ns.min(phase.server_cpu_ns);
    }
}

fn on_server<T>(program: &Path, run: impl FnOnce(&str) -> Result<T, String>) -> Result<T, String> {
    let executors = Executors {
        command: vec![program.into(), EXECUTOR_COMMAND.into()],
        is_unconfined: false,
    };
    serving(executors, run)
}

/// One replay in a process of its own; without a server a hollow one.
fn one(
    program: &Path,
    how: &Replay<'_>,
    server: Option<&str>,
    settings: &[(&str, String)],
) -> Result<Report, String> {
    let mut command = Command::new(program);
    environment::clear(&mut command);
    command.arg("play").arg(how.trace);
    match server {
        Some(address) => command
            .env("FARCALL_SERVER", address)
            .env("FARCALL_TRANSPORT", how.transport.name()),
        None => command.arg("--hollow"),
    };
    command.envs(settings.iter().map(|(name, value)| (name, value)));
    let output = command.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let report: Report =
        serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
    if server.is_some() && !(report.otherwise.is_empty() && report.left_out.is_empty()) {
        return Err(format!(
            "calls returned something else than when they were recorded: {:?}, {:?}",
            report.otherwise, report.left_out
        ));
    }
    Ok(report)
}

/// Processor time of the other children of this process's parent: the executors.
fn siblings_cpu() -> Duration {
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let parent = i32::try_from(parent_id()).unwrap_or(0);
    let siblings = server::children(parent).into_iter();
    siblings.filter(|pid| *pid != own).map(cpu_of).sum()
}

/// Processor time of all threads of a process, to the nanosecond (proc(5), `schedstat`).
fn cpu_of(pid: i32) -> Duration {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else {
        return Duration::ZERO;
    };
    let ns = threads.flatten().filter_map(|thread| {
        let text = std::fs::read_to_string(thread.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(ns.sum())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use farcall_marshal::calltrace;

    use super::{
        CALL_BY_CALL, Counts, Named, PROMISED, Phase, Phases, Step, Way, of_phase, record_name,
        with_phases,
    };
    use crate::figure::Figure;

    fn walls(added_rtt_us: &[u32]) -> Vec<Figure> {
        let phase = |wall_ns| Phase {
            wall_ns,
            ..Phase::default()
        };
        let way = |rtt_us: &u32| Way {
            rtt_us: *rtt_us,
            batched: [(PROMISED.to_owned(), phase(1_000_000))].into(),
            call_by_call: Phases::new(),
        };
        let ways: Vec<Way> = added_rtt_us.iter().map(way).collect();
        let named = Named {
            name: PROMISED,
            title: format!("replay/torch/shm/{PROMISED}"),
        };
        let figures = of_phase(&named, &Counts::default(), &Phases::new(), &ways);
        let is_wall = |figure: &Figure| figure.name.contains("/wall@");
        figures.into_iter().filter(is_wall).collect()
    }

    #[test]
    fn the_way_is_judged_beside_none_at_all() {
        let kept = |added_rtt_us: &[u32]| {
            let walls = walls(added_rtt_us);
            let of = walls.iter().find(|figure| figure.name.ends_with("@100us"));
            of.map(|figure| (figure.is_kept(), figure.ratio(), figure.notes.len()))
        };
        assert_eq!(kept(&[0, 100]), Some((Some(true), Some(1.0), 0)));
        // Nothing to be judged beside: that is no kept promise, and it is said.
        assert_eq!(kept(&[100]), Some((None, None, 1)));
        assert_eq!(kept(&[50, 100]), Some((None, Some(1.0), 1)));
        let walls = walls(&[0, 100]);
        assert_eq!(walls[0].name, "replay/torch/shm/train_step/wall@0us");
        assert_eq!(walls[0].ratio(), None, "no ratio to itself");
        assert!(walls[0].beside.iter().any(|b| b.name == CALL_BY_CALL));
    }

    #[test]
    fn a_record_without_marks_is_one_phase() {
        let kernel = || Step::Variable {
            module: calltrace::Token(1),
            name: "v".to_owned(),
            bytes: 4,
        };
        let marked = vec![kernel(), Step::Mark("train".to_owned())];
        assert_eq!(with_phases(marked.clone()), marked);
        let whole = with_phases(vec![kernel()]);
        assert_eq!(whole, [Step::Mark("all".to_owned()), kernel()]);
    }

    #[test]
    fn records_have_names_of_their_own() {
        let names = ["torch-cu12", "torch-cu13"]
            .map(|name| record_name(Path::new(&format!("fixtures/traces/{name}.calls"))));
        assert_eq!(names, ["torch-cu12", "torch-cu13"]);
    }
}
