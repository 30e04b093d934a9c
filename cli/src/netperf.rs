//! `farcall netperf`: what the way to a server is worth, and what would make it better.
#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use farcall_config::format_size;
use farcall_gpu_exec::FetchError;
use farcall_transport::{PathReport, ProbePlan, probe};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::args::NetperfArgs;
use crate::connect;
use crate::failure::{Failure, written};
use crate::table::{self, Align};

/// Above this a program that waits often is slowed down noticeably.
const RTT_US_RECOMMENDED: u64 = 50;
const MTU_BYTES_RECOMMENDED: u32 = 9000;
/// RDMA registers rings and staging memory: less than this does not even hold those of a few sessions.
const MEMLOCK_BYTES_RECOMMENDED: u64 = 64 << 20;
/// A hundredth round trip that is so many times the median is worth a word.
const JITTER_RECOMMENDED: u64 = 5;

pub(crate) fn netperf(args: &NetperfArgs) -> Result<ExitCode, Failure> {
    let config = connect::single(&args.server)?;
    let report = probe(&config.connect_options(), &ProbePlan::default()).map_err(|error| {
        connect::unavailable(&FetchError::Connect(error), &config, &args.server)
    })?;
    let advice = advice(&report, &Host::of_this_process());
    let out = &mut io::stdout().lock();
    written(if args.json {
        write_json(out, &config.server, &report, &advice)
    } else {
        write_text(out, &config.server, &report, &advice)
    })
}

/// What the advice depends on beside the path.
#[derive(Clone, Copy, Debug)]
struct Host {
    has_rdma: bool,
    /// Memory that a process may lock; `None` = any.
    memlock_bytes: Option<u64>,
}

impl Host {
    fn of_this_process() -> Self {
        let devices = std::fs::read_dir("/sys/class/infiniband");
        let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(u64::MAX, |(soft, _)| soft);
        Self {
            has_rdma: devices.is_ok_and(|mut devices| devices.next().is_some()),
            memlock_bytes: (limit != u64::MAX).then_some(limit),
        }
    }
}

/// What would make it better, a line each.
fn advice(report: &PathReport, host: &Host) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(trips) = report.round_trips.first() {
        let us = trips.p50_ns / 1000;
        if us > RTT_US_RECOMMENDED {
            lines.push(format!(
                "RTT {us} us is above the recommended {RTT_US_RECOMMENDED} us"
            ));
        }
        let times = trips.p99_ns / trips.p50_ns.max(1);
        if times > JITTER_RECOMMENDED {
            lines.push(format!(
                "one round trip in a hundred takes {times} times the median: look for other load on the two hosts and the path"
            ));
        }
    }
    if let Some(path) = &report.path {
        if path.mtu_bytes < MTU_BYTES_RECOMMENDED && !path.peer.ip().is_loopback() {
            lines.push(format!(
                "MTU {}, {MTU_BYTES_RECOMMENDED} recommended",
                path.mtu_bytes
            ));
        }
        if path.retransmits > 0 {
            lines.push(format!(
                "{} packets were sent again: the network drops some",
                path.retransmits
            ));
        }
    }
    let memlock = host.memlock_bytes.filter(|_| host.has_rdma);
    if let Some(bytes) = memlock.filter(|bytes| *bytes < MEMLOCK_BYTES_RECOMMENDED) {
        lines.push(format!(
            "memlock too low for RDMA: ulimit -l is {}, set `ulimit -l unlimited`",
            bytes / 1024
        ));
    }
    lines
}

fn write_json(
    out: &mut dyn Write,
    server: &str,
    report: &PathReport,
    advice: &[String],
) -> io::Result<()> {
    let trips: Vec<Value> = report
        .round_trips
        .iter()
        .map(|trips| {
            json!({
                "bytes": trips.record_bytes, "count": trips.count, "p50_ns": trips.p50_ns, "p90_ns": trips.p90_ns,
                "p99_ns": trips.p99_ns, "p999_ns": trips.p999_ns, "max_ns": trips.max_ns,
            })
        })
        .collect();
    let path = report.path.map(|path| {
        json!({
            "local": path.local.to_string(), "peer": path.peer.to_string(), "mtu_bytes": path.mtu_bytes,
            "kernel_rtt_us": path.kernel_rtt_us, "retransmits": path.retransmits,
        })
    });
    let value = json!({
        "server": server, "transport": report.transport, "reason": report.reason, "round_trips": trips,
        "up_bytes_per_s": report.up_bytes_per_s, "down_bytes_per_s": report.down_bytes_per_s, "path": path,
        "advice": advice,
    });
    serde_json::to_writer_pretty(&mut *out, &value)?;
    writeln!(out)
}

fn write_text(
    out: &mut dyn Write,
    server: &str,
    report: &PathReport,
    advice: &[String],
) -> io::Result<()> {
    writeln!(out, "{server} over {}: {}", report.transport, report.reason)?;
    if let Some(path) = &report.path {
        writeln!(
            out,
            "path {} -> {}, MTU {}, {} us by the kernel's count, {} packets sent again",
            path.local, path.peer, path.mtu_bytes, path.kernel_rtt_us, path.retransmits
        )?;
    }
    let titles = [
        "round trip",
        "p50 us",
        "p90 us",
        "p99 us",
        "p99.9 us",
        "max us",
    ];
    let header = titles.map(|title| (title, Align::Right));
    let rows: Vec<Vec<String>> = report
        .round_trips
        .iter()
        .map(|trips| {
            let times = [
                trips.p50_ns,
                trips.p90_ns,
                trips.p99_ns,
                trips.p999_ns,
                trips.max_ns,
            ];
            let size = format_size(u64::try_from(trips.record_bytes).unwrap_or(u64::MAX));
            std::iter::once(size).chain(times.map(us)).collect()
        })
        .collect();
    table::write(out, &header, &rows)?;
    for (direction, rate) in [
        ("to the server", report.up_bytes_per_s),
        ("from the server", report.down_bytes_per_s),
    ] {
        if let Some(rate) = rate {
            let (gb, rest) = (rate / 1_000_000_000, rate / 10_000_000 % 100);
            writeln!(out, "{direction}: {gb}.{rest:02} GB/s")?;
        }
    }
    for line in advice {
        writeln!(out, "advice: {line}")?;
    }
    Ok(())
}

/// Nanoseconds as microseconds with a decimal.
fn us(ns: u64) -> String {
    format!("{}.{}", ns / 1000, ns / 100 % 10)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Host, advice, write_json, write_text};
    use farcall_transport::{PathInfo, PathReport, RoundTrips};

    fn report(p50_us: u64, mtu_bytes: u32, peer: &str) -> PathReport {
        PathReport {
            transport: "tcp",
            reason: "asked for".to_owned(),
            round_trips: vec![RoundTrips {
                record_bytes: 64,
                count: 10,
                p50_ns: p50_us * 1000,
                p90_ns: p50_us * 1100,
                p99_ns: p50_us * 1200,
                p999_ns: p50_us * 1300,
                max_ns: p50_us * 1400,
            }],
            up_bytes_per_s: Some(2_950_000_000),
            down_bytes_per_s: None,
            path: Some(PathInfo {
                local: "10.0.0.2:5000".parse().unwrap(),
                peer: peer.parse().unwrap(),
                mtu_bytes,
                kernel_rtt_us: 20,
                retransmits: 0,
            }),
        }
    }

    const FINE: Host = Host {
        has_rdma: true,
        memlock_bytes: None,
    };

    #[test]
    fn advice_only_where_something_is_wrong() {
        assert!(advice(&report(30, 9000, "10.0.0.1:7474"), &FINE).is_empty());
        assert!(advice(&report(50, 1500, "127.0.0.1:7474"), &FINE).is_empty());
        let lines = advice(&report(80, 1500, "10.0.0.1:7474"), &FINE);
        assert_eq!(
            lines,
            [
                "RTT 80 us is above the recommended 50 us",
                "MTU 1500, 9000 recommended"
            ]
        );
        let low = Host {
            has_rdma: true,
            memlock_bytes: Some(64 << 10),
        };
        let lines = advice(&report(30, 9000, "10.0.0.1:7474"), &low);
        assert_eq!(
            lines,
            ["memlock too low for RDMA: ulimit -l is 64, set `ulimit -l unlimited`"]
        );
        let low = Host {
            has_rdma: false,
            ..low
        };
        assert!(advice(&report(30, 9000, "10.0.0.1:7474"), &low).is_empty());
        let mut jumpy = report(10, 9000, "10.0.0.1:7474");
        jumpy.round_trips[0].p99_ns = 70_000;
        jumpy.path.as_mut().unwrap().retransmits = 3;
        let lines = advice(&jumpy, &FINE);
        assert!(
            lines[0].contains("7 times") && lines[1].starts_with("3 packets"),
            "{lines:?}"
        );
    }

    #[test]
    fn both_forms_say_the_same() {
        let (report, advice) = (report(80, 1500, "10.0.0.1:7474"), vec!["a".to_owned()]);
        let mut out = Vec::new();
        write_text(&mut out, "gpu1:7474", &report, &advice).unwrap();
        let text = String::from_utf8(out).unwrap();
        for part in [
            "gpu1:7474 over tcp: asked for",
            "MTU 1500",
            "80.0",
            "2.95 GB/s",
            "advice: a",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let mut out = Vec::new();
        write_json(&mut out, "gpu1:7474", &report, &advice).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(value["round_trips"][0]["p50_ns"], 80_000);
        assert_eq!(value["path"]["mtu_bytes"], 1500);
        assert_eq!(value["down_bytes_per_s"], serde_json::Value::Null);
    }
}
