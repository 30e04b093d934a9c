//! `farcall health`: whether this machine, the ways from it and the pool are well, and what to do where not.
#![forbid(unsafe_code)]

mod gpus;
mod host;
mod network;
mod packets;
mod path;
mod watch;

pub(crate) use watch::Watch;

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use farcall_pool::client::PoolClient;
use farcall_pool::core::wall_ms;
use farcall_pool::model::{Check, Outcome};
use farcall_pool::state::views::{ServerView, Summary};
use farcall_pool::wire::Alive;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use nix::sys::statvfs::statvfs;
use serde::Serialize;

use crate::failure::{Failure, code, written};
use crate::nvml::{self, Found};
use crate::pool::args::ShowArgs;
use crate::pool::{client, failure as pool_failure};
use crate::table::{self, Align};

/// Servers that are tried, of a large pool.
const SERVERS_MAX: usize = 16;
/// For the first answer of a GPU's driver, which may have to wake the GPU.
const NVML_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Report {
    checks: Vec<Check>,
    /// Nothing where no pool was named.
    pool: Option<Summary>,
}

/// `farcall health`.
pub(crate) fn health(args: &ShowArgs) -> Result<ExitCode, Failure> {
    let mut report = Report {
        checks: host_checks(false),
        pool: None,
    };
    let gpus = nvml::read_once(NVML_PATIENCE);
    report.checks.extend(gpu_checks(&gpus, &[], false));
    if args.pool.pool.is_some() {
        let pool = client(&args.pool)?;
        let summary = pool.get("/v1/summary");
        report.pool = Some(summary.map_err(|error| pool_failure(&error))?);
        report.checks.extend(pool_checks(&pool));
        let servers = server_checks(&pool);
        report
            .checks
            .extend(servers.map_err(|error| pool_failure(&error))?);
    }
    let out = &mut io::stdout().lock();
    if args.json {
        let shown = serde_json::to_writer_pretty(&mut *out, &report);
        written(shown.map_err(io::Error::from).and_then(|()| writeln!(out)))?;
    } else {
        written(print(out, &report))?;
    }
    verdict(&report)
}

/// What a server tells its pool of its machine. `wants_gpu`: it serves real GPUs. Reads some files.
pub(crate) fn host_checks(wants_gpu: bool) -> Vec<Check> {
    let root = Path::new("/");
    let mut checks = vec![
        host::driver(root, wants_gpu),
        host::memlock(memlock_bytes()),
    ];
    checks.push(network::mtu(root));
    checks.push(network::rdma(root));
    if let Some(place) = state_place()
        && let Ok(space) = statvfs(&place)
    {
        let (free, all) = (space.blocks_available(), space.blocks());
        let unit = space.fragment_size();
        checks.push(host::disk(&place, free * unit, all * unit));
    }
    let paths = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let paths: Vec<PathBuf> = std::env::split_paths(&paths).collect();
    let preload = std::env::var("LD_PRELOAD").unwrap_or_default();
    let ours = std::env::var_os("FARCALL_LIB_DIR").map(PathBuf::from);
    checks.push(host::libraries(&paths, &preload, ours.as_deref()));
    checks
}

/// GPUs, as NVML tells of them. `served`: UUIDs of those that matter, all where it is empty.
pub(crate) fn gpu_checks(found: &Found, served: &[String], wants_gpu: bool) -> Vec<Check> {
    gpus::gpus(found, served, wants_gpu)
}

/// Version of the kernel's NVIDIA driver, if it is loaded.
pub(crate) fn driver_version() -> Option<String> {
    host::driver_version(Path::new("/"))
}

/// What programs on a server can count on. `version`: as `cuDriverGetVersion` gives it.
pub(crate) fn cuda_check(version: u32) -> Check {
    host::cuda(version)
}

/// The pool and its clock, as seen from here. Blocks on the network.
pub(crate) fn pool_checks(pool: &PoolClient) -> Vec<Check> {
    let host = pool.url().split("://").nth(1).unwrap_or_default();
    let mut checks = vec![path::pool(path::handshake(host))];
    let began = Instant::now();
    if let Ok(alive) = pool.get::<Alive>("/v1/health") {
        // The pool looked at its clock half a round trip ago, about.
        let half_ms = u64::try_from(began.elapsed().as_millis() / 2).unwrap_or(0);
        checks.push(path::clock(wall_ms().abs_diff(alive.now_ms + half_ms)));
    }
    checks.extend(packets::packets(host).map(|found| packets::way("pool", found, false)));
    checks
}

/// The servers of a pool, as seen from here. Blocks on the network.
fn server_checks(pool: &PoolClient) -> Result<Vec<Check>, farcall_pool::client::ClientError> {
    let servers: Vec<ServerView> = pool.get("/v1/servers")?;
    let up = servers.iter().filter(|server| server.state != "down");
    let mut checks = Vec::new();
    for server in up.take(SERVERS_MAX) {
        if let Some(address) = server.addresses.first() {
            let (name, address) = (&server.name, &address.address);
            checks.push(path::server(name, path::handshake(address)));
            let found = packets::packets(address);
            checks.extend(found.map(|found| packets::way(name, found, true)));
        }
    }
    Ok(checks)
}

fn print(out: &mut dyn io::Write, report: &Report) -> io::Result<()> {
    let header = [
        ("check", Align::Left),
        ("result", Align::Left),
        ("found", Align::Left),
    ];
    let row = |check: &Check| {
        vec![
            check.name.clone(),
            word(check.outcome).to_owned(),
            check.found.clone(),
        ]
    };
    let rows: Vec<Vec<String>> = report.checks.iter().map(row).collect();
    table::write(out, &header, &rows)?;
    for check in report
        .checks
        .iter()
        .filter(|check| check.outcome != Outcome::Ok)
    {
        writeln!(
            out,
            "\n{}: {}\n  {}",
            check.name, check.meaning, check.advice
        )?;
    }
    if let Some(pool) = &report.pool {
        writeln!(
            out,
            "\npool: {} servers up, {} draining, {} down; {} GPUs usable; {} waiting",
            pool.servers_up,
            pool.servers_draining,
            pool.servers_down,
            pool.gpus_usable,
            pool.waiting
        )?;
    }
    Ok(())
}

fn verdict(report: &Report) -> Result<ExitCode, Failure> {
    let down = report.pool.as_ref().map_or(0, |pool| pool.servers_down);
    if down > 0 {
        return Err(Failure::new(
            code::UNAVAILABLE,
            format!("{down} servers do not answer"),
            "`farcall pool servers` says which; `farcall pool remove NAME` forgets one for good",
        ));
    }
    let failed = report
        .checks
        .iter()
        .filter(|check| check.outcome == Outcome::Failed);
    let failed: Vec<&str> = failed.map(|check| check.name.as_str()).collect();
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let what = format!("failed: {}", failed.join(", "));
    Err(Failure::new(
        code::UNAVAILABLE,
        what,
        "see above what each means and what to do",
    ))
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "OK",
        Outcome::Warning => "warning",
        Outcome::Failed => "FAILED",
    }
}

/// `Some(0)` where the system does not say.
fn memlock_bytes() -> Option<u64> {
    let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap_or_default();
    (soft != RLIM_INFINITY).then_some(soft)
}

/// Where credentials and caches are kept, or the folder above that exists.
fn state_place() -> Option<PathBuf> {
    let home = PathBuf::from(std::env::var_os("HOME")?).join(".local/state/farcall");
    home.ancestors()
        .find(|place| place.exists())
        .map(Path::to_owned)
}

/// One check, looked at now.
fn check(name: &str, outcome: Outcome, found: &str, meaning: &str, advice: &str) -> Check {
    Check {
        name: name.to_owned(),
        outcome,
        found: found.to_owned(),
        meaning: meaning.to_owned(),
        advice: if outcome == Outcome::Ok { "" } else { advice }.to_owned(),
        at_ms: wall_ms(),
    }
}
