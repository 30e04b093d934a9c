//! Means over the last seconds, from counters that a server looks at again and again.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use farcall_gpu_exec::{LeaseTotals, ServerUsage};
use farcall_pool::state::Work;

/// Means are over this time at least, once it has passed.
const WINDOW: Duration = Duration::from_secs(10);

/// The counters at some times, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    looks: VecDeque<Look>,
}

#[derive(Debug)]
struct Look {
    at: Instant,
    leases: BTreeMap<u64, LeaseTotals>,
    /// Time that kernels ran, by device.
    busy_ns: Vec<u64>,
    is_measured: bool,
}

impl Meter {
    /// When it was last told something.
    pub(crate) fn last(&self) -> Option<Instant> {
        self.looks.back().map(|look| look.at)
    }

    /// Takes the counters of one time, later than those before.
    pub(crate) fn add(&mut self, at: Instant, usage: &ServerUsage) {
        self.looks.push_back(Look {
            at,
            leases: usage
                .leases
                .iter()
                .map(|it| (it.lease, it.clone()))
                .collect(),
            busy_ns: usage.devices.iter().map(|it| it.busy_ns).collect(),
            is_measured: usage.is_measured,
        });
        // Of those that are old enough, the youngest is enough.
        while self.looks.get(1).is_some_and(|it| at - it.at >= WINDOW) {
            self.looks.pop_front();
        }
    }

    /// What each lease did; nothing of those that were not used. Empty until there are two looks.
    pub(crate) fn leases(&self) -> BTreeMap<u64, Work> {
        let Some((before, now, seconds)) = self.span() else {
            return BTreeMap::new();
        };
        let work = |now_has: &LeaseTotals| {
            let had = before.leases.get(&now_has.lease);
            let had = had.cloned().unwrap_or_default();
            let rate = |now: u64, before: u64| rate(now.saturating_sub(before), seconds);
            Work {
                calls_per_s: rate(now_has.records, had.records),
                received_bytes_per_s: rate(now_has.bytes_in, had.bytes_in),
                sent_bytes_per_s: rate(now_has.bytes_out, had.bytes_out),
                computing_gpus: now
                    .is_measured
                    .then(|| rate(now_has.busy_ns, had.busy_ns) / 1e9),
                // Sessions may come and go between two looks: what the newest has said stands for them.
                transports: (now_has.rtt_ns > 0)
                    .then(|| now_has.transport.clone())
                    .into_iter()
                    .collect(),
                rtt_us: (now_has.rtt_ns > 0).then(|| microseconds(now_has.rtt_ns)),
            }
        };
        let changed = now
            .leases
            .iter()
            .filter(|(lease, totals)| before.leases.get(lease) != Some(totals));
        changed
            .map(|(lease, totals)| (*lease, work(totals)))
            .collect()
    }

    /// Part of the time in which kernels ran on a device; nothing where that is not known.
    pub(crate) fn computing(&self, device: usize) -> Option<f64> {
        let (before, now, seconds) = self.span()?;
        let busy_ns = now.busy_ns.get(device)?;
        let ran_ns = busy_ns.saturating_sub(*before.busy_ns.get(device)?);
        now.is_measured
            .then(|| (rate(ran_ns, seconds) / 1e9).min(1.0))
    }

    fn span(&self) -> Option<(&Look, &Look, f64)> {
        let (before, now) = (self.looks.front()?, self.looks.back()?);
        let seconds = (now.at - before.at).as_secs_f64();
        (seconds > 0.0).then_some((before, now, seconds))
    }
}

/// Counts in ten seconds are far below 2^53.
#[allow(clippy::cast_precision_loss)]
fn rate(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

/// Nanoseconds as microseconds.
pub(super) fn microseconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use farcall_gpu_exec::{DeviceKind, DeviceNow, LeaseTotals, ServerUsage};

    use super::Meter;

    fn usage(is_measured: bool, busy_ns: u64, leases: &[(u64, u64)]) -> ServerUsage {
        let totals = |(lease, records): &(u64, u64)| LeaseTotals {
            lease: *lease,
            records: *records,
            bytes_in: 1000 * records,
            bytes_out: 10 * records,
            busy_ns,
            transport: "tcp".to_owned(),
            rtt_ns: 40_000 * (records / 500),
        };
        ServerUsage {
            server_name: String::new(),
            kind: DeviceKind::Soft,
            driver_version: 13_000,
            devices: vec![DeviceNow {
                ordinal: 0,
                uuid: String::new(),
                total_bytes: 1,
                used_bytes: 0,
                sessions: 0,
                busy_ns,
                kernels: 0,
                is_lost: false,
            }],
            sessions: Vec::new(),
            sessions_ended: 0,
            is_measured,
            leases: leases.iter().map(totals).collect(),
        }
    }

    #[test]
    fn rates_are_means_over_the_window() {
        let (start, mut meter) = (Instant::now(), Meter::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        meter.add(at(0), &usage(true, 0, &[(1, 100)]));
        assert!(meter.leases().is_empty(), "one look says nothing");
        assert_eq!(meter.computing(0), None);
        meter.add(at(4), &usage(true, 2_000_000_000, &[(1, 500), (2, 80)]));
        let leases = meter.leases();
        let found = |lease: u64| leases[&lease].calls_per_s;
        assert!((found(1) - 100.0).abs() < 1e-9 && (found(2) - 20.0).abs() < 1e-9);
        assert!((leases[&1].received_bytes_per_s - 1e5).abs() < 1e-6);
        assert!((leases[&1].sent_bytes_per_s - 1e3).abs() < 1e-6);
        assert_eq!(leases[&1].computing_gpus, Some(0.5));
        let way = |lease: u64| (leases[&lease].rtt_us, leases[&lease].transports.len());
        assert_eq!((way(1), way(2)), ((Some(40.0), 1), (None, 0)));
        assert_eq!(meter.computing(0), Some(0.5));
        // What was before the window counts no more.
        for seconds in [9, 14, 19] {
            meter.add(
                at(seconds),
                &usage(true, 2_000_000_000, &[(1, 500), (2, 80)]),
            );
        }
        assert!(meter.leases().is_empty(), "{:?}", meter.leases());
        assert_eq!(meter.computing(0), Some(0.0));
        assert_eq!(meter.computing(1), None);
    }

    #[test]
    fn what_is_not_measured_is_not_known() {
        let (start, mut meter) = (Instant::now(), Meter::default());
        meter.add(start, &usage(false, 0, &[(1, 1)]));
        meter.add(start + Duration::from_secs(2), &usage(false, 0, &[(1, 5)]));
        assert_eq!(meter.computing(0), None);
        assert_eq!(meter.leases()[&1].computing_gpus, None);
    }
}
