//! What is counted: each hot path with the program that runs it and the function that bounds it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use farcall_gpu_exec::EXECUTOR_COMMAND;

use super::callgrind::{self, Counts};
use super::work;
use crate::serving::{Executors, serving};

/// Launches, and calls of other kinds, of a counted run.
const CALLS: u64 = 5000;
/// Launches between two waits: so few that nobody waits for room, which would be counted as well.
const BURST: u64 = 50;
/// Clients that may give up on a counted server that is not ready.
const CLIENTS_MAX: u32 = 12;
/// Repetitions of a path within one process.
const TIMES: u64 = 1000;

/// Instructions of one path, per call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Count {
    /// All.
    pub instructions: f64,
    /// By function, callees not included.
    pub functions: BTreeMap<String, f64>,
}

/// A hot path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Within this program: see [`work`].
    Work,
    /// A driver call through the built library, in bursts of calls named so.
    Client {
        call: &'static str,
        function: &'static str,
    },
    /// The client's launches, without what sends: how often it sends depends on the moment.
    Issue,
    /// The sending alone, per time.
    Flush,
    /// The executor's side of a launch: from a frame to its end on the device, which is `null`.
    Server,
    /// The part of it before the device: the frame's records decoded and handed on.
    Dispatch,
}

/// What sends, waits or receives within an append.
const SENDING: [&str; 3] = [
    "Endpoint>::transmit",
    "Endpoint>::trailing_edge",
    "Endpoint>::wait_for_room",
];

/// Names of all paths, in the order in which they are shown.
#[must_use]
pub fn names() -> Vec<String> {
    let driver = DRIVER.iter().map(|(name, _)| (*name).to_owned());
    driver
        .chain(work::names().into_iter().filter(|name| name != "nothing"))
        .collect()
}

const DRIVER: [(&str, Kind); 8] = [
    (
        "client/cuCtxGetDevice",
        Kind::Client {
            call: "context-device",
            function: "cuCtxGetDevice",
        },
    ),
    (
        "client/cuDeviceGetAttribute",
        Kind::Client {
            call: "device-attribute",
            function: "cuDeviceGetAttribute",
        },
    ),
    (
        "client/cuPointerGetAttribute",
        Kind::Client {
            call: "pointer-attribute",
            function: "cuPointerGetAttribute",
        },
    ),
    (
        "client/cuLaunchKernel_whole",
        Kind::Client {
            call: "launch",
            function: "cuLaunchKernel",
        },
    ),
    ("client/cuLaunchKernel_issue", Kind::Issue),
    ("client/batch_flush", Kind::Flush),
    ("server/cuLaunchKernel_decode_dispatch", Kind::Dispatch),
    ("server/cuLaunchKernel_whole", Kind::Server),
];

/// Counts a path. `program` is `farcall-bench`, and the libraries lie beside it.
///
/// # Errors
/// No such path, valgrind is missing, or a program fails.
pub fn count(name: &str, program: &Path, scratch: &Path) -> Result<Count, String> {
    let out = scratch.join(format!("{}.out", name.replace('/', "-")));
    let known = DRIVER.iter().find(|(known, _)| *known == name);
    match known.map_or(Kind::Work, |(_, kind)| *kind) {
        Kind::Work => in_process(name, program, &out),
        Kind::Client { call, function } => {
            let counts = client(call, function, program, &out)?;
            Ok(per(&counts, CALLS))
        }
        Kind::Issue => issue(&client("launch", "cuLaunchKernel", program, &out)?),
        Kind::Flush => flush(&client("launch", "cuLaunchKernel", program, &out)?),
        Kind::Server => Ok(per(&server(program, &out)?, CALLS)),
        Kind::Dispatch => dispatch(&server(program, &out)?),
    }
}

fn in_process(name: &str, program: &Path, out: &Path) -> Result<Count, String> {
    let times = TIMES.to_string();
    let one = |name: &str| {
        let args = ["count", name, times.as_str()];
        callgrind::count(
            "farcall_bench::gate::work::counted",
            program,
            &args,
            &[],
            out,
        )
    };
    // The loop itself.
    let nothing = one("nothing")?.total;
    let mut counts = one(name)?;
    counts.total = counts.total.saturating_sub(nothing);
    Ok(per(&counts, TIMES))
}

/// A client's calls against a server that is not counted.
fn client(call: &str, function: &str, program: &Path, out: &Path) -> Result<Counts, String> {
    let executor = vec![program.into(), EXECUTOR_COMMAND.into()];
    let with = Executors {
        command: executor,
        is_unconfined: false,
    };
    serving(with, |address| {
        let (calls, burst) = (CALLS.to_string(), BURST.to_string());
        let args = ["calls", call, &calls, "--burst", &burst];
        callgrind::count(
            function,
            program,
            &args,
            &[("FARCALL_SERVER", address.to_owned())],
            out,
        )
    })
}

fn issue(counts: &Counts) -> Result<Count, String> {
    let sending: u64 = sending(counts).map(|(_, total)| total).sum();
    let mut count = per(counts, CALLS);
    count.instructions -= sending as f64 / CALLS as f64;
    if sending == 0 {
        return Err(format!(
            "none of {SENDING:?} was called: has it another name now?"
        ));
    }
    Ok(count)
}

fn flush(counts: &Counts) -> Result<Count, String> {
    let (times, total) = sending(counts)
        .next()
        .filter(|(times, _)| *times > 0)
        .ok_or_else(|| format!("{} was not called: has it another name now?", SENDING[0]))?;
    Ok(Count {
        instructions: total as f64 / times as f64,
        functions: BTreeMap::new(),
    })
}

/// How often each of [`SENDING`] was called from an append, and what it took.
fn sending(counts: &Counts) -> impl Iterator<Item = (u64, u64)> {
    SENDING.iter().map(|name| {
        let calls = counts
            .calls
            .iter()
            .filter(|(callee, _)| callee.ends_with(name));
        calls.fold((0, 0), |sum, (_, call)| {
            (sum.0 + call.times, sum.1 + call.total)
        })
    })
}

/// A counted executor, and a client that is not.
fn server(program: &Path, out: &Path) -> Result<Counts, String> {
    // Each executor writes its own file: those that stand ready count nothing.
    let pattern = out.with_extension("%p.out");
    let function = "*Session*farcall_transport::endpoint::Handler>::on_frame";
    let mut executor = callgrind::prefix(function, &pattern);
    executor.extend([program.into(), EXECUTOR_COMMAND.into()]);
    let with = Executors {
        command: executor,
        is_unconfined: true,
    };
    serving(with, |address| {
        let (calls, burst) = (CALLS.to_string(), BURST.to_string());
        let mut command = Command::new(program);
        command.args(["calls", "launch", &calls, "--burst", &burst]);
        command.env("FARCALL_SERVER", address);
        let mut attempts = 0;
        loop {
            let output = command.output().map_err(|error| error.to_string())?;
            attempts += 1;
            let text = String::from_utf8_lossy(&output.stderr);
            match output.status.success() {
                true => return Ok(()),
                // On a busy machine an executor under callgrind takes longer to start than a client waits for it.
                false if attempts < CLIENTS_MAX && text.contains("handshake within") => {}
                false => return Err(text.into_owned()),
            }
        }
    })?;
    executors(out)
}

/// What a launch costs an executor from the frame until its device has the decoded record.
fn dispatch(counts: &Counts) -> Result<Count, String> {
    let is_of_device = |name: &str| name.contains("Dispatch for farcall_gpu_exec::device::");
    let of_device = counts.calls.iter().filter(|(name, _)| is_of_device(name));
    let taken: u64 = of_device.map(|(_, call)| call.total).sum();
    if taken == 0 {
        return Err("no device got a record: are its functions still called so?".to_owned());
    }
    let counts = Counts {
        total: counts.total.saturating_sub(taken),
        // The others are called by the device.
        functions: counts
            .functions
            .iter()
            .filter(|(name, _)| name.contains("::executor::session::"))
            .map(|(name, own)| (name.clone(), *own))
            .collect(),
        calls: BTreeMap::new(),
    };
    Ok(per(&counts, CALLS))
}

/// The counts of the executor that had the session.
fn executors(out: &Path) -> Result<Counts, String> {
    let folder = out.parent().unwrap_or(Path::new("."));
    let stem = out
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let entries = std::fs::read_dir(folder).map_err(|error| error.to_string())?;
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(&format!("{stem}.")) && name.ends_with(".out")
    });
    let counts = files.iter().filter_map(|file| callgrind::read(file).ok());
    let best = counts.max_by_key(|counts| counts.total);
    best.ok_or_else(|| {
        "no executor counted anything: is valgrind installed (apt-get install valgrind)?".to_owned()
    })
}

fn per(counts: &Counts, calls: u64) -> Count {
    let each = |total: u64| total as f64 / calls as f64;
    // What is done less than once in twenty calls is no hot path's.
    let functions = counts
        .functions
        .iter()
        .map(|(name, own)| (name.clone(), each(*own)));
    Count {
        instructions: each(counts.total),
        functions: functions.filter(|(_, own)| *own >= 0.5).collect(),
    }
}
