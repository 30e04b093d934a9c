//! What is counted: each hot path with the program that runs it and the function that bounds it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::{Path, PathBuf};
use std::process::Command;

use farcall_gpu_exec::EXECUTOR_COMMAND;

use super::callgrind::{self, Counted, Counts};
use super::work;
use crate::environment;
use crate::serving::{Executors, serving};

/// Calls of a counted run.
const CALLS: u64 = 5000;
/// Launches that are counted one by one.
const LAUNCHES: u64 = 1500;
/// Fewer of a kind say nothing: the first ones of a burst leave at once, most of the others gather.
const LAUNCHES_MIN: usize = 8;
/// Launches between two waits: so few that nobody waits for room, which would be counted as well.
const BURST: u64 = 50;
/// How long clients wait for a counted server.
const CONNECT_TIMEOUT_MS: &str = "60000";
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
    /// A client's launch that leaves at once, or one that only gathers: which of them a launch is depends on the moment.
    Launch { leaves: bool },
    /// The executor's side of a launch: from a frame to its end on the device, which is `null`.
    Server,
    /// The part of it before the device: the frame's records decoded and handed on.
    Dispatch,
}

/// The system's functions that send, and those that receive, as callgrind names them.
const SENDING: [&str; 4] = ["send", "__send", "sendmsg", "writev"];
const RECEIVING: [&str; 4] = ["recv", "__recv", "recvmsg", "readv"];

/// Names of all paths, in the order in which they are shown.
#[must_use]
pub fn names() -> Vec<String> {
    let driver = DRIVER.iter().map(|(name, _)| (*name).to_owned());
    driver
        .chain(work::names().into_iter().filter(|name| name != "nothing"))
        .collect()
}

const DRIVER: [(&str, Kind); 7] = [
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
        "client/cuLaunchKernel_issue",
        Kind::Launch { leaves: false },
    ),
    ("client/cuLaunchKernel_send", Kind::Launch { leaves: true }),
    ("server/cuLaunchKernel_decode_dispatch", Kind::Dispatch),
    ("server/cuLaunchKernel_whole", Kind::Server),
];

/// Counts paths. A run that several paths are taken from is made once.
#[derive(Debug)]
pub struct Counter<'a> {
    program: &'a Path,
    scratch: &'a Path,
    /// How often everything was forgotten: files of earlier runs have other names.
    attempt: u32,
    runs: BTreeMap<String, Vec<Counts>>,
}

impl<'a> Counter<'a> {
    /// `program` is `farcall-bench`, and the libraries lie beside it; `scratch` is a folder for what valgrind writes.
    #[must_use]
    pub fn new(program: &'a Path, scratch: &'a Path) -> Self {
        Self {
            program,
            scratch,
            attempt: 0,
            runs: BTreeMap::new(),
        }
    }

    /// The next counts come from new runs.
    pub fn forget(&mut self) {
        self.runs.clear();
        self.attempt += 1;
    }

    /// Counts a path.
    ///
    /// # Errors
    /// No such path, valgrind is missing, or a program fails.
    pub fn count(&mut self, name: &str) -> Result<Count, String> {
        let known = DRIVER.iter().find(|(known, _)| *known == name);
        match known.map_or(Kind::Work, |(_, kind)| *kind) {
            Kind::Work => self.in_process(name),
            Kind::Client { call, function } => {
                let run = |program: &Path, out: &Path| {
                    client(program, call, CALLS, |of| {
                        callgrind::count(function, of, out)
                    })
                };
                Ok(per(self.once(call, run)?, CALLS))
            }
            Kind::Launch { leaves } => {
                let run = |program: &Path, out: &Path| {
                    client(program, "launch", LAUNCHES, |of| {
                        callgrind::count_each("cuLaunchKernel", of, out)
                    })
                };
                launch(self.run("launch", run)?, leaves)
            }
            Kind::Server => Ok(per(self.once("server", server)?, CALLS)),
            Kind::Dispatch => dispatch(self.once("server", server)?),
        }
    }

    fn in_process(&mut self, name: &str) -> Result<Count, String> {
        // The loop itself.
        let nothing = self.work("nothing")?.total;
        let mut counts = self.work(name)?.clone();
        counts.total = counts.total.saturating_sub(nothing);
        Ok(per(&counts, TIMES))
    }

    fn work(&mut self, name: &str) -> Result<&Counts, String> {
        self.once(name, |program, out| {
            let counted = Counted {
                program,
                args: &["count", name, &TIMES.to_string()],
                envs: &[],
            };
            callgrind::count("farcall_bench::gate::work::counted", &counted, out)
        })
    }

    fn once(
        &mut self,
        key: &str,
        run: impl FnOnce(&Path, &Path) -> Result<Counts, String>,
    ) -> Result<&Counts, String> {
        let counts = self.run(key, |program, out| Ok(vec![run(program, out)?]))?;
        counts.first().ok_or_else(|| format!("{key}: no counts"))
    }

    fn run(
        &mut self,
        key: &str,
        run: impl FnOnce(&Path, &Path) -> Result<Vec<Counts>, String>,
    ) -> Result<&[Counts], String> {
        match self.runs.entry(key.to_owned()) {
            Entry::Occupied(known) => Ok(known.into_mut()),
            Entry::Vacant(new) => {
                let name = format!("{}-{}.out", key.replace('/', "-"), self.attempt);
                let out = self.scratch.join(name);
                Ok(new.insert(run(self.program, &out)?))
            }
        }
    }
}

/// Counts a client's calls against a server that is not counted.
fn client<T>(
    program: &Path,
    call: &str,
    times: u64,
    count: impl FnOnce(&Counted<'_>) -> Result<T, String>,
) -> Result<T, String> {
    let with = Executors {
        command: vec![program.into(), EXECUTOR_COMMAND.into()],
        is_unconfined: false,
    };
    serving(with, |address| {
        let (times, burst) = (times.to_string(), BURST.to_string());
        count(&Counted {
            program,
            args: &["calls", call, &times, "--burst", &burst],
            envs: &[("FARCALL_SERVER", address.to_owned())],
        })
    })
}

/// The median of the launches that left at once, or of those that called the system for nothing. A launch that looked for
/// acknowledgements is neither.
fn launch(calls: &[Counts], leaves: bool) -> Result<Count, String> {
    let does = |counts: &Counts, what: &[&str]| {
        let mut names = counts.functions.keys();
        names.any(|name| what.contains(&name.as_str()))
    };
    let is_one = |call: &&Counts| does(call, &SENDING) == leaves && !does(call, &RECEIVING);
    let mut those: Vec<&Counts> = calls.iter().filter(is_one).collect();
    if those.len() < LAUNCHES_MIN {
        let (few, of) = (those.len(), calls.len());
        let what = if leaves { "left at once" } else { "gathered" };
        return Err(format!("{few} of {of} launches {what}: too few to count"));
    }
    those.sort_by_key(|call| call.total);
    Ok(per(those[those.len() / 2], 1))
}

/// A counted executor, and a client that is not.
fn server(program: &Path, out: &Path) -> Result<Counts, String> {
    // Each executor writes its own file: those that stand ready count nothing.
    let pattern = out.with_extension("%p.out");
    let function = "*Session*farcall_transport::endpoint::Handler>::on_frame";
    let mut executor = callgrind::prefix(function, &pattern, &[]);
    executor.extend([program.into(), EXECUTOR_COMMAND.into()]);
    let with = Executors {
        command: executor,
        is_unconfined: true,
    };
    serving(with, |address| {
        let (calls, burst) = (CALLS.to_string(), BURST.to_string());
        let mut command = Command::new(program);
        environment::clear(&mut command);
        command.args(["calls", "launch", &calls, "--burst", &burst]);
        command.env("FARCALL_SERVER", address);
        // An executor under callgrind takes its time to start.
        command.env("FARCALL_CONNECT_TIMEOUT_MS", CONNECT_TIMEOUT_MS);
        let output = command.output().map_err(|error| error.to_string())?;
        if output.status.success() {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
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

#[cfg(test)]
mod tests {
    use super::{Counts, LAUNCHES_MIN, launch};

    #[test]
    fn launches_that_leave_are_told_from_those_that_gather() {
        let call = |total: u64, function: &str| Counts {
            total,
            functions: [(function.to_owned(), total)].into(),
            ..Counts::default()
        };
        let mut calls = vec![call(500, "cuLaunchKernel"); 30];
        calls.extend(vec![call(900, "recv"); 40]);
        calls.extend(vec![call(1200, "send"); LAUNCHES_MIN]);
        let of = |leaves| launch(&calls, leaves).map(|count| count.instructions);
        assert_eq!((of(false), of(true)), (Ok(500.0), Ok(1200.0)));
        assert!(launch(&calls[..70], true).is_err());
    }
}
