//! GPUs of a pool for a command: asked for, waited for, kept while it runs, given back.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use farcall_pool::client::{ClientError, PoolClient};
use farcall_pool::model::{Ask, LeaseId, Purpose, Stage};
use farcall_pool::wire::{LeaseAnswer, RenewLease, SignedGrant};
use nix::sys::signal::{SigSet, Signal};
use tempfile::TempDir;

use super::args::{PoolArgs, RequestArgs, WantArgs};
use super::{client, failure, ms};
use crate::args::{DeviceCount, ServerArgs, ShareArgs};
use crate::failure::{Failure, code};

/// How often the place in the queue is looked at.
const PROGRESS: Duration = Duration::from_secs(2);
/// Between attempts to reach a pool that does not answer.
const RETRY: Duration = Duration::from_secs(1);
// What a pool grants, a program can use.
const _: () = assert!(farcall_pool::model::LEASE_SERVERS_MAX == farcall_config::SERVERS_MAX);

/// GPUs that are held for a command.
#[derive(Debug)]
pub(crate) struct Held {
    pool: PoolClient,
    answer: LeaseAnswer,
    grants: Vec<SignedGrant>,
    /// Whom the grants are for: this use of the lease.
    holder: String,
    /// Whether it is given back in the end: a reservation is not.
    ours: bool,
    /// Holds the grants' file.
    private: TempDir,
    keeper: Option<Keeper>,
}

#[derive(Debug)]
struct Keeper {
    stopped: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

/// Gets GPUs, waiting for them if that is wanted. Blocks.
pub(crate) fn hold(
    pool: &PoolArgs,
    want: &WantArgs,
    share: &ShareArgs,
    lease: Option<LeaseId>,
    label: &str,
) -> Result<Held, Failure> {
    let pool = client(pool)?;
    let holder = random_name()?;
    let answer = match lease {
        Some(lease) => renewed(&pool, lease, &holder)?,
        None => {
            let ask = ask(want, gpus(share)?, share.memory_bytes, label);
            ask_and_wait(&pool, &ask, want.wait, &holder, |_| {})?
        }
    };
    let private = tempfile::Builder::new().prefix("farcall-").tempdir();
    let private = private.map_err(|error| {
        let what = format!("cannot make a directory: {error}");
        Failure::new(code::FAILED, what, "make room in TMPDIR")
    })?;
    let grants = grants(&answer)?.to_vec();
    write_grants(private.path(), &grants)?;
    Ok(Held {
        pool,
        answer,
        grants,
        holder,
        ours: lease.is_none(),
        private,
        keeper: None,
    })
}

impl Held {
    /// Keeps it while the command runs: starts a thread. Block signals before.
    pub(crate) fn keep(&mut self) -> Result<(), Failure> {
        let stopped = Arc::new(AtomicBool::new(false));
        let watch = Watch {
            pool: self.pool.clone(),
            directory: self.private.path().to_owned(),
            seen: self.answer.lease.version,
            within_ms: self.answer.renew_within_ms,
            lease: self.answer.lease.lease,
            holder: self.holder.clone(),
            stopped: stopped.clone(),
            warned: None,
        };
        let thread = std::thread::Builder::new()
            .name("lease".to_owned())
            .spawn(move || watch.run());
        let thread = thread.map_err(|error| {
            Failure::new(
                code::FAILED,
                format!("no thread: {error}"),
                "check ulimit -u",
            )
        })?;
        self.keeper = Some(Keeper { stopped, thread });
        Ok(())
    }

    /// The servers and the share for the command.
    pub(crate) fn session(
        &self,
        server: &ServerArgs,
        share: &ShareArgs,
    ) -> (ServerArgs, ShareArgs) {
        let addresses: Vec<&str> = self.grants.iter().map(|it| it.address.as_str()).collect();
        let gpus = self.grants.iter().map(|grant| grant.gpus);
        let mut network = server.network.clone();
        network.tls = network.tls.or_else(|| self.certificates());
        let server = ServerArgs {
            server: Some(addresses.join(",")),
            network,
            token_file: Some(grant_file(self.private.path())),
        };
        let share = ShareArgs {
            each: gpus
                .map(|gpus| u32::try_from(gpus).unwrap_or(u32::MAX))
                .collect(),
            ..share.clone()
        };
        (server, share)
    }

    /// The certificates by which the pool knows its servers, where they have any; what was typed, or configured, counts more.
    fn certificates(&self) -> Option<String> {
        let is_configured =
            std::env::var_os(farcall_config::vars::TLS).is_some_and(|it| !it.is_empty());
        let known: BTreeSet<&str> = self.grants.iter().map(|grant| grant.tls.as_str()).collect();
        // Where only some have one, the program ends with the name of one that has not: nobody falls back.
        let known: Vec<&str> = known.into_iter().filter(|it| !it.is_empty()).collect();
        (!is_configured && !known.is_empty()).then(|| known.join(","))
    }

    /// Gives it back.
    pub(crate) fn release(mut self) {
        if let Some(keeper) = self.keeper.take() {
            keeper.stopped.store(true, Ordering::SeqCst);
            keeper.thread.thread().unpark();
        }
        if !self.ours {
            return;
        }
        let path = format!("/v1/leases/{}", self.answer.lease.lease);
        let released = self
            .pool
            .order::<()>(farcall_pool::client::DELETE, &path, None);
        if let Err(error) = released {
            eprintln!("farcall: the lease was not given back, and lapses by itself: {error}");
        }
    }
}

/// Follows a lease while its command runs.
struct Watch {
    pool: PoolClient,
    directory: PathBuf,
    seen: u64,
    within_ms: u64,
    lease: LeaseId,
    holder: String,
    stopped: Arc<AtomicBool>,
    warned: Option<String>,
}

impl Watch {
    fn run(mut self) {
        let mut unreachable = false;
        while !self.stopped.load(Ordering::SeqCst) {
            let body = RenewLease {
                seen: self.seen,
                wait_ms: self.within_ms,
                holder: self.holder.clone(),
            };
            let path = format!("/v1/leases/{}/renew", self.lease);
            let wait = Duration::from_millis(self.within_ms);
            match self.pool.post::<LeaseAnswer>(&path, &body, wait) {
                Ok(answer) => {
                    unreachable = false;
                    if !self.take(&answer) {
                        return;
                    }
                }
                Err(error @ ClientError::Refused(_)) if error.status() != Some(503) => {
                    return eprintln!("farcall: the lease {} is lost: {error}", self.lease);
                }
                Err(error) => {
                    if !std::mem::replace(&mut unreachable, true) {
                        eprintln!(
                            "farcall: the pool does not answer, the command goes on: {error}"
                        );
                    }
                    std::thread::park_timeout(RETRY);
                }
            }
        }
    }

    /// Whether it is still held.
    fn take(&mut self, answer: &LeaseAnswer) -> bool {
        if self.stopped.load(Ordering::SeqCst) {
            return false;
        }
        if let Some(end) = &answer.lease.end {
            eprintln!(
                "farcall: the lease {} has ended: {}; CUDA calls of the command fail from now on",
                self.lease, end.reason
            );
            return false;
        }
        if answer.lease.warning != self.warned {
            if let Some(warning) = &answer.lease.warning {
                eprintln!("farcall: the lease {}: {warning}", self.lease);
            }
            self.warned.clone_from(&answer.lease.warning);
        }
        self.seen = answer.lease.version;
        // Programs that start later read the file anew.
        let written = grants(answer).and_then(|grants| write_grants(&self.directory, grants));
        if let Err(error) = written {
            error.print();
        }
        true
    }
}

/// `farcall request`.
pub(crate) fn request(args: &RequestArgs) -> Result<ExitCode, Failure> {
    let pool = client(&args.pool)?;
    let asked = GiveBack::on_signals(&pool)?;
    let ask = Ask {
        purpose: Purpose::Reservation,
        hold_ms: args.hold.filter(|hold| *hold != Duration::MAX).map(ms),
        ..ask(&args.want, args.gpus, args.memory_bytes, "")
    };
    let answer = ask_and_wait(&pool, &ask, args.want.wait, "", |lease| asked.keep(lease))?;
    // A pool takes back what nobody says to have heard of.
    let answer = renewed(&pool, answer.lease.lease, "")?;
    let out = &mut std::io::stdout().lock();
    crate::failure::written(if args.json {
        serde_json::to_writer_pretty(&mut *out, &answer.lease)
            .map_err(std::io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        writeln!(out, "{}", answer.lease.lease)
    })
}

/// What is given back when a signal ends the process.
#[derive(Clone, Default)]
struct GiveBack(Arc<Mutex<Option<LeaseId>>>);

impl GiveBack {
    /// From here on signals that end a process give back first what it has asked for. Starts a thread.
    fn on_signals(pool: &PoolClient) -> Result<Self, Failure> {
        let failed = |error: String| Failure::new(code::FAILED, error, "this should not happen");
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
            .into_iter()
            .collect();
        // In every thread that is started from here on.
        set.thread_block()
            .map_err(|error| failed(error.to_string()))?;
        let (kept, pool) = (Self::default(), pool.clone());
        let shared = kept.clone();
        let thread = std::thread::Builder::new().name("signals".to_owned());
        let thread = thread.spawn(move || {
            if let Ok(signal) = set.wait() {
                let lease = shared.0.lock().ok().and_then(|lease| *lease);
                if let Some(lease) = lease {
                    let path = format!("/v1/leases/{lease}");
                    // It lapses by itself if this does not arrive.
                    let _ = pool.order::<()>(farcall_pool::client::DELETE, &path, None);
                }
                std::process::exit(128 + signal as i32);
            }
        });
        thread.map_err(|error| failed(error.to_string()))?;
        Ok(kept)
    }

    fn keep(&self, lease: LeaseId) {
        if let Ok(mut kept) = self.0.lock() {
            *kept = Some(lease);
        }
    }
}

fn ask(want: &WantArgs, gpus: u16, memory_bytes: Option<u64>, label: &str) -> Ask {
    Ask {
        gpus,
        share_permille: want.share_permille,
        memory_bytes,
        filters: want.filters.clone(),
        servers: want.servers.clone(),
        same_server: false,
        near: want.near.clone(),
        purpose: Purpose::Run,
        hold_ms: None,
        idle_ms: want.idle.filter(|idle| *idle != Duration::MAX).map(ms),
        key: String::new(),
        label: want
            .label
            .as_deref()
            .unwrap_or(label)
            .chars()
            .take(100)
            .collect(),
    }
}

fn gpus(share: &ShareArgs) -> Result<u16, Failure> {
    match share.devices {
        None => Ok(1),
        Some(DeviceCount(Some(count))) => Ok(u16::try_from(count).unwrap_or(u16::MAX)),
        Some(DeviceCount(None)) => Err(Failure::new(
            2,
            "`all` devices of a pool cannot be asked for",
            "say how many with -n N",
        )),
    }
}

/// Asks, and waits in the queue for `wait` at most.
fn ask_and_wait(
    pool: &PoolClient,
    ask: &Ask,
    wait: Option<Duration>,
    holder: &str,
    asked: impl FnOnce(LeaseId),
) -> Result<LeaseAnswer, Failure> {
    // Another node may be asked again where the answer of the first does not come.
    let ask = Ask {
        key: random_name()?,
        ..ask.clone()
    };
    let path = format!("/v1/leases?wait={}&holder={holder}", wait.is_some());
    let mut answer: LeaseAnswer = pool
        .post(&path, &ask, Duration::ZERO)
        .map_err(|error| failure(&error))?;
    asked(answer.lease.lease);
    let deadline = Instant::now().checked_add(wait.unwrap_or_default());
    let mut progress = Progress::new();
    while answer.lease.stage == Stage::Queued {
        progress.show(&answer);
        let left = deadline.map_or(PROGRESS, |at| at.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            progress.end();
            return give_up(pool, &answer);
        }
        let wait = left.min(PROGRESS);
        let body = RenewLease {
            seen: answer.lease.version,
            wait_ms: ms(wait).max(1),
            holder: holder.to_owned(),
        };
        let path = format!("/v1/leases/{}/renew", answer.lease.lease);
        match pool.post(&path, &body, wait) {
            Ok(newer) => answer = newer,
            // It may come back, and our place with it.
            Err(ClientError::Unreachable { .. }) => std::thread::park_timeout(RETRY.min(left)),
            Err(error) => return Err(failure(&error)),
        }
    }
    progress.end();
    match &answer.lease.end {
        None => Ok(answer),
        Some(end) => Err(Failure::new(
            code::UNAVAILABLE,
            format!(
                "the request {} has ended: {}",
                answer.lease.lease, end.reason
            ),
            "ask again",
        )),
    }
}

/// A lease that is there already, with grants for this holder.
fn renewed(pool: &PoolClient, lease: LeaseId, holder: &str) -> Result<LeaseAnswer, Failure> {
    let body = RenewLease {
        holder: holder.to_owned(),
        ..RenewLease::default()
    };
    let path = format!("/v1/leases/{lease}/renew");
    pool.post(&path, &body, Duration::ZERO)
        .map_err(|error| failure(&error))
}

/// A name that nobody else has.
fn random_name() -> Result<String, Failure> {
    farcall_pool::secrets::random_name().map_err(|error| {
        let what = format!("the system has no randomness: {error}");
        Failure::new(code::FAILED, what, "this should not happen")
    })
}

fn give_up(pool: &PoolClient, answer: &LeaseAnswer) -> Result<LeaseAnswer, Failure> {
    let path = format!("/v1/leases/{}", answer.lease.lease);
    // It lapses by itself if this does not arrive.
    let _ = pool.order::<()>(farcall_pool::client::DELETE, &path, None);
    let why = answer.lease.over_quota.clone();
    let why = why.unwrap_or_else(|| format!("{} requests wait", answer.lease.waiting));
    Err(Failure::new(
        code::UNAVAILABLE,
        format!("nothing became free in time: {why}"),
        "wait longer (--wait TIME), or ask for less; `farcall gpus` shows what is free",
    ))
}

/// A line on stderr that says how long it may take.
struct Progress {
    terminal: bool,
    began: Instant,
    last: String,
}

impl Progress {
    fn new() -> Self {
        Self {
            terminal: std::io::stderr().is_terminal(),
            began: Instant::now(),
            last: String::new(),
        }
    }

    fn show(&mut self, answer: &LeaseAnswer) {
        let lease = &answer.lease;
        let place = lease.place.unwrap_or(0);
        let text = match &lease.over_quota {
            Some(why) => format!("waiting for a quota: {why}"),
            None => format!("waiting for GPUs: place {place} of {}", lease.waiting),
        };
        if self.terminal {
            let waited = self.began.elapsed().as_secs();
            eprint!("\r\x1b[Kfarcall: {text}, {waited} s");
            let _ = std::io::stderr().flush();
        } else if text != self.last {
            eprintln!("farcall: {text}");
        }
        self.last = text;
    }

    fn end(&self) {
        if self.terminal && !self.last.is_empty() {
            eprint!("\r\x1b[K");
        }
    }
}

/// The grants of a lease, one for each of its servers, always in the same order.
fn grants(answer: &LeaseAnswer) -> Result<&[SignedGrant], Failure> {
    if !answer.grants.is_empty() {
        return Ok(&answer.grants);
    }
    let lease = answer.lease.lease;
    Err(Failure::new(
        code::UNAVAILABLE,
        match &answer.lease.end {
            Some(end) => format!("the lease {lease} has ended: {}", end.reason),
            None => format!("the lease {lease} still waits"),
        },
        "`farcall leases` lists yours",
    ))
}

fn grant_file(directory: &Path) -> PathBuf {
    directory.join("grant")
}

/// A line for each server.
fn write_grants(directory: &Path, grants: &[SignedGrant]) -> Result<(), Failure> {
    let write = || {
        let beside = directory.join("grant.new");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        for grant in grants {
            writeln!(file, "{}", grant.token)?;
        }
        std::fs::rename(&beside, grant_file(directory))
    };
    write().map_err(|error| {
        let what = format!("{}: {error}", directory.display());
        Failure::new(code::FAILED, what, "make room in TMPDIR")
    })
}
