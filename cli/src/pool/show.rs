//! Listings.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use farcall_config::format_size;
use farcall_pool::core::wall_ms;
use farcall_pool::model::{Quota, Stage};
use farcall_pool::state::views::{GpuView, GroupView, LeaseView, ServerView, TokenView};
use farcall_pool::state::{LogEntry, Work};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::args::{LeasesArgs, LogArgs, PoolArgs, ShowArgs};
use super::{client, failure};
use crate::failure::{Failure, written};
use crate::table::{self, Align};

/// `farcall gpus`.
pub(crate) fn gpus(args: &ShowArgs) -> Result<ExitCode, Failure> {
    list(&args.pool, "/v1/gpus", args.json, &GPUS, gpu_row)
}

pub(super) fn gpu_row(gpu: &GpuView) -> Vec<String> {
    let holders: Vec<String> = gpu
        .parts
        .iter()
        .map(|part| format!("{} {}", part.lease, share(part.share_permille.into())))
        .collect();
    let now = gpu.now.clone().unwrap_or_default();
    let percent = |part: Option<f64>| known(part, |part| format!("{:.0}%", 100.0 * part));
    vec![
        gpu.server.clone(),
        gpu.index.to_string(),
        gpu.name.clone(),
        share(gpu.share_free_permille.into()),
        format_size(gpu.memory_free_bytes),
        format_size(gpu.memory_bytes),
        match (gpu.healthy, gpu.usable) {
            (false, _) => "lost",
            (true, false) => "no",
            (true, true) => "yes",
        }
        .to_owned(),
        percent(now.computing),
        percent(now.utilization),
        known(now.temperature_c, |degrees| format!("{degrees:.0}C")),
        known(now.power_w, |watts| format!("{watts:.0}W")),
        holders.join(", "),
    ]
}

/// What is not known is a dash, and no zero.
fn known(value: Option<f64>, write: impl Fn(f64) -> String) -> String {
    value.map_or_else(|| "-".to_owned(), write)
}

pub(super) const GPUS: [(&str, Align); 12] = [
    ("server", Align::Left),
    ("gpu", Align::Right),
    ("name", Align::Left),
    ("free", Align::Right),
    ("memory free", Align::Right),
    ("memory", Align::Right),
    ("usable", Align::Left),
    ("at work", Align::Right),
    ("driver", Align::Right),
    ("temp", Align::Right),
    ("power", Align::Right),
    ("held by", Align::Left),
];

/// `farcall leases`.
pub(crate) fn leases(args: &LeasesArgs) -> Result<ExitCode, Failure> {
    let path = format!("/v1/leases?all={}&ended={}", args.all, args.ended);
    list(&args.pool, &path, args.json, &LEASES, lease_row)
}

pub(super) fn lease_row(lease: &LeaseView) -> Vec<String> {
    let state = match lease.stage {
        Stage::Queued => format!("place {} of {}", lease.place.unwrap_or(0), lease.waiting),
        Stage::Held => lease.warning.clone().unwrap_or_else(|| "held".to_owned()),
        Stage::Ending | Stage::Ended => lease
            .end
            .as_ref()
            .map_or_else(|| "ended".to_owned(), |end| end.reason.clone()),
    };
    let mut servers: Vec<&str> = lease.pieces.iter().map(|it| it.server.as_str()).collect();
    servers.dedup();
    let mut row = vec![
        lease.lease.to_string(),
        lease.client.clone(),
        format!("{} x {}", lease.gpus, share(lease.share_permille.into())),
        servers.join(","),
        lease.sessions.to_string(),
    ];
    row.extend(work_cells(lease.work.as_ref()));
    row.extend([
        ago(lease.granted_ms.unwrap_or(lease.queued_ms)),
        lease.expires_ms.map_or_else(|| "-".to_owned(), until),
        state,
        lease.label.clone(),
    ]);
    row
}

/// What sessions do: GPUs at work, calls per second, bytes per second in and out, the way and its round trip.
fn work_cells(work: Option<&Work>) -> [String; 5] {
    let rate = |rate: f64| known(Some(rate), |rate| format!("{rate:.0}"));
    let Some(work) = work else {
        return std::array::from_fn(|_| "-".to_owned());
    };
    // Never negative, and far from the limits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let bytes = |rate: f64| format!("{}/s", format_size(rate.max(0.0).round() as u64));
    let mut way = work.transports.join(",");
    if let (false, Some(us)) = (way.is_empty(), work.rtt_us) {
        way = format!("{way} {us:.0}us");
    }
    [
        known(work.computing_gpus, |gpus| format!("{gpus:.2}")),
        rate(work.calls_per_s),
        bytes(work.received_bytes_per_s),
        bytes(work.sent_bytes_per_s),
        way,
    ]
}

pub(super) const LEASES: [(&str, Align); 14] = [
    ("lease", Align::Left),
    ("client", Align::Left),
    ("gpus", Align::Left),
    ("servers", Align::Left),
    ("sessions", Align::Right),
    ("at work", Align::Right),
    ("calls/s", Align::Right),
    ("in", Align::Right),
    ("out", Align::Right),
    ("way", Align::Left),
    ("since", Align::Right),
    ("ends in", Align::Right),
    ("state", Align::Left),
    ("for", Align::Left),
];

/// `farcall pool servers`.
pub(super) fn servers(args: &ShowArgs) -> Result<ExitCode, Failure> {
    let header = [
        ("server", Align::Left),
        ("state", Align::Left),
        ("address", Align::Left),
        ("kind", Align::Left),
        ("CUDA", Align::Left),
        ("RDMA", Align::Left),
        ("gpus", Align::Right),
        ("leases", Align::Right),
        ("sessions", Align::Right),
        ("switch", Align::Left),
    ];
    list(
        &args.pool,
        "/v1/servers",
        args.json,
        &header,
        |server: &ServerView| {
            let address = server.addresses.first().map(|it| it.address.clone());
            vec![
                server.name.clone(),
                server.state.clone(),
                address.unwrap_or_default(),
                server.kind.clone(),
                server.cuda_version.clone(),
                if server.rdma { "yes" } else { "no" }.to_owned(),
                server.gpus.to_string(),
                server.leases.to_string(),
                server.load.sessions.to_string(),
                server.switch.clone(),
            ]
        },
    )
}

/// `farcall pool token list`.
pub(super) fn tokens(args: &ShowArgs) -> Result<ExitCode, Failure> {
    let header = [
        ("token", Align::Left),
        ("role", Align::Left),
        ("group", Align::Left),
        ("state", Align::Left),
        ("expires in", Align::Right),
        ("gpus", Align::Right),
        ("memory", Align::Right),
        ("limits", Align::Left),
    ];
    list(
        &args.pool,
        "/v1/tokens",
        args.json,
        &header,
        |token: &TokenView| {
            vec![
                token.name.clone(),
                format!("{:?}", token.role).to_lowercase(),
                token.group.clone().unwrap_or_default(),
                if token.disabled { "disabled" } else { "good" }.to_owned(),
                token.expires_ms.map_or_else(|| "-".to_owned(), until),
                share(token.shares_permille),
                format_size(token.memory_bytes),
                limits(&token.quota),
            ]
        },
    )
}

/// `farcall pool quota groups`.
pub(super) fn groups(args: &ShowArgs) -> Result<ExitCode, Failure> {
    let header = [
        ("group", Align::Left),
        ("gpus", Align::Right),
        ("memory", Align::Right),
        ("GPU-seconds today", Align::Right),
        ("limits", Align::Left),
    ];
    list(
        &args.pool,
        "/v1/groups",
        args.json,
        &header,
        |group: &GroupView| {
            vec![
                group.name.clone(),
                share(group.shares_permille),
                format_size(group.memory_bytes),
                group.share_seconds_today.to_string(),
                limits(&group.quota),
            ]
        },
    )
}

/// `farcall pool log`.
pub(super) fn log(args: &LogArgs) -> Result<ExitCode, Failure> {
    if args.csv {
        let text = client(&args.show.pool)?.get_text("/v1/log.csv");
        let text = text.map_err(|error| failure(&error))?;
        return written(io::stdout().lock().write_all(text.as_bytes()));
    }
    let args = &args.show;
    let header = [
        ("ago", Align::Right),
        ("who", Align::Left),
        ("what", Align::Left),
        ("on", Align::Left),
        ("", Align::Left),
    ];
    list(
        &args.pool,
        "/v1/log",
        args.json,
        &header,
        |entry: &LogEntry| {
            vec![
                ago(entry.at_ms),
                entry.actor.clone(),
                entry.action.clone(),
                entry.subject.clone(),
                entry.detail.clone(),
            ]
        },
    )
}

fn list<T: DeserializeOwned + Serialize>(
    pool: &PoolArgs,
    path: &str,
    as_json: bool,
    header: &[(&str, Align)],
    row: impl Fn(&T) -> Vec<String>,
) -> Result<ExitCode, Failure> {
    let items: Vec<T> = client(pool)?.get(path).map_err(|error| failure(&error))?;
    let out = &mut io::stdout().lock();
    if as_json {
        return written(json(out, &items));
    }
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    written(table::write(out, header, &rows))
}

pub(super) fn json(out: &mut dyn Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// A thousand years: what `forever` comes to.
const FOREVER_S: u64 = 365_000 * 86_400;

fn share(permille: u64) -> String {
    let text = format!("{}.{:03}", permille / 1000, permille % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn ago(at_ms: u64) -> String {
    time(wall_ms().saturating_sub(at_ms))
}

fn until(at_ms: u64) -> String {
    time(at_ms.saturating_sub(wall_ms()))
}

fn time(ms: u64) -> String {
    match ms / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds @ 172_800..FOREVER_S => format!("{} d", seconds / 86_400),
        FOREVER_S.. => "for ever".to_owned(),
    }
}

fn limits(quota: &Quota) -> String {
    let mut limits = Vec::new();
    if let Some(max) = quota.shares_permille_max {
        limits.push(format!("{} gpus", share(max)));
    }
    if let Some(max) = quota.memory_bytes_max {
        limits.push(format_size(max));
    }
    if let Some(max) = quota.share_seconds_per_day_max {
        limits.push(format!("{max} GPU-seconds a day"));
    }
    if let Some(max) = quota.request_gpus_max {
        limits.push(format!("{max} gpus a request"));
    }
    if let Some(max) = quota.hold_ms_max {
        limits.push(format!("leases of {}", time(max)));
    }
    if let Some(priority) = quota.priority {
        limits.push(format!("priority {priority}"));
    }
    limits.join(", ")
}

#[cfg(test)]
mod tests {
    use super::{share, time};

    #[test]
    fn times_are_short() {
        assert_eq!(time(119_999), "119 s");
        assert_eq!(time(3 * 86_400_000), "3 d");
        assert_eq!(time(u64::MAX / 4), "for ever");
    }

    #[test]
    fn shares_are_short() {
        assert_eq!(share(1000), "1");
        assert_eq!(share(500), "0.5");
        assert_eq!(share(2050), "2.05");
        assert_eq!(share(0), "0");
    }
}
