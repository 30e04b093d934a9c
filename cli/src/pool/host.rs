//! What a server tells its pool: sessions, what they do, GPUs and the machine.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use farcall_gpu_exec::{DeviceKind, Inventory, LeaseActivity, ServerUsage, Sessions};
use farcall_pool::agent::Host;
use farcall_pool::client::PoolClient;
use farcall_pool::model::{Check, LeaseId};
use farcall_pool::state::{GpuNow, LeaseUse, Load, Work};

use super::meter::{Meter, microseconds};
use crate::health::{self, cuda_check, gpu_checks};
use crate::nvml::{self, Found, Reading};

/// For the supervisor's answer; its loop never blocks for long.
const ANSWER: Duration = Duration::from_secs(5);
/// Executors are asked for their counts at most so often.
const COUNTS: Duration = Duration::from_secs(1);

/// The supervisor, for the agent.
pub(super) struct PoolHost {
    sessions: Sessions,
    serves_gpus: bool,
    cuda_version: u32,
    /// UUIDs of the devices, by number.
    uuids: Vec<String>,
    machine: health::Watch,
    gpus: nvml::Watch,
    counted: Mutex<Counted>,
}

/// What the supervisor has counted.
#[derive(Default)]
struct Counted {
    meter: Meter,
    usage: Option<ServerUsage>,
}

impl PoolHost {
    /// Begins to look at the machine and its GPUs, on threads that end with this.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn start(
        pool: PoolClient,
        sessions: Sessions,
        inventory: &Inventory,
    ) -> io::Result<Self> {
        let serves_gpus = inventory.kind == DeviceKind::Cuda;
        let devices = inventory.devices.iter();
        Ok(Self {
            sessions,
            serves_gpus,
            cuda_version: inventory.driver_version,
            uuids: devices.map(|device| device.uuid.clone()).collect(),
            machine: health::Watch::start(pool, serves_gpus)?,
            gpus: nvml::Watch::start()?,
            counted: Mutex::default(),
        })
    }

    fn checks(&self, gpus: Option<&Found>) -> Vec<Check> {
        let mut checks = self.machine.checks();
        checks.push(cuda_check(self.cuda_version));
        let found = gpus.map(|found| gpu_checks(found, &self.uuids, self.serves_gpus));
        checks.extend(found.into_iter().flatten());
        checks
    }

    /// Each device, by number.
    fn gpus_now(&self, counted: &Counted, found: Option<&Found>) -> Vec<GpuNow> {
        let readings = found.and_then(|found| found.as_ref().ok());
        let devices = counted.usage.as_ref().map(|usage| &usage.devices);
        let now = |(device, uuid): (usize, &String)| {
            let readings = readings.into_iter().flatten();
            let reading = readings.clone().find(|reading| reading.uuid == *uuid);
            GpuNow {
                uuid: uuid.clone(),
                is_lost: devices
                    .and_then(|devices| devices.get(device))
                    .is_some_and(|device| device.is_lost),
                computing: counted.meter.computing(device),
                ..reading.map_or_else(GpuNow::default, gpu_now)
            }
        };
        self.uuids.iter().enumerate().map(now).collect()
    }
}

impl Host for PoolHost {
    fn load(&self) -> Option<Load> {
        let activity = self.sessions.activity(ANSWER)?;
        let mut counted = self.counted.lock().unwrap_or_else(PoisonError::into_inner);
        let last = counted.meter.last();
        if last.is_none_or(|last| last.elapsed() >= COUNTS)
            && let Some(usage) = self.sessions.usage(ANSWER)
        {
            counted.meter.add(Instant::now(), &usage);
            counted.usage = Some(usage);
        }
        let found = self.gpus.found();
        let works = counted.meter.leases();
        Some(Load {
            sessions: activity.sessions,
            used_bytes: activity.used_bytes,
            leases: lease_uses(activity.leases, works, counted.usage.as_ref()),
            checks: self.checks(found.as_ref()),
            gpus: self.gpus_now(&counted, found.as_ref()),
        })
    }

    fn end(&self, lease: LeaseId, reason: &str) {
        self.sessions.end_lease(lease.0, reason);
    }
}

/// Leases that have sessions, and those that had some a moment ago.
fn lease_uses(
    active: Vec<LeaseActivity>,
    mut works: BTreeMap<u64, Work>,
    usage: Option<&ServerUsage>,
) -> Vec<LeaseUse> {
    let mut uses = Vec::with_capacity(active.len());
    for lease in active {
        let work = works.remove(&lease.lease).unwrap_or_default();
        uses.push(LeaseUse {
            lease: LeaseId(lease.lease),
            sessions: lease.sessions,
            idle_ms: super::ms(lease.idle),
            used_bytes: lease.used_bytes,
            work: usage.map(|usage| with_ways(work, lease.lease, usage)),
        });
    }
    let over = works.into_iter().map(|(lease, work)| LeaseUse {
        lease: LeaseId(lease),
        sessions: 0,
        idle_ms: 0,
        used_bytes: 0,
        work: Some(work),
    });
    uses.extend(over);
    uses
}

/// With the ways of the open sessions of a lease.
fn with_ways(mut work: Work, lease: u64, usage: &ServerUsage) -> Work {
    for session in usage.sessions.iter().filter(|it| it.lease == lease) {
        if !session.transport.is_empty() && !work.transports.contains(&session.transport) {
            work.transports.push(session.transport.clone());
        }
        if session.rtt_ns > 0 {
            let rtt_us = microseconds(session.rtt_ns);
            work.rtt_us = Some(work.rtt_us.map_or(rtt_us, |slowest| slowest.max(rtt_us)));
        }
    }
    work.transports.sort();
    if usage.is_measured && work.computing_gpus.is_none() {
        // Measured, and nothing ran.
        work.computing_gpus = Some(0.0);
    }
    work
}

fn gpu_now(reading: &Reading) -> GpuNow {
    GpuNow {
        utilization: reading.utilization,
        temperature_c: reading.temperature_c,
        power_w: reading.power_w,
        power_limit_w: reading.power_limit_w,
        ecc_corrected: reading.ecc_corrected,
        ecc_uncorrected: reading.ecc_uncorrected,
        xid: reading.xid.map(|xid| xid.number),
        ..GpuNow::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use farcall_gpu_exec::{DeviceKind, LeaseActivity, ServerUsage, SessionNow};
    use farcall_pool::state::Work;

    use super::lease_uses;

    fn session(lease: u64, transport: &str, rtt_ns: u64) -> SessionNow {
        SessionNow {
            session: 0,
            client: String::new(),
            lease,
            age_ms: 0,
            records: 0,
            bytes_in: 0,
            bytes_out: 0,
            transport: transport.to_owned(),
            rtt_ns,
            devices: Vec::new(),
        }
    }

    #[test]
    fn leases_have_their_ways_and_a_moment_afterwards_still_their_work() {
        let usage = ServerUsage {
            server_name: String::new(),
            kind: DeviceKind::Soft,
            driver_version: 13_000,
            devices: Vec::new(),
            sessions: vec![
                session(1, "tcp", 40_000),
                session(1, "shm", 2_500),
                session(2, "", 0),
            ],
            sessions_ended: 0,
            is_measured: true,
            leases: Vec::new(),
        };
        let active = |lease| LeaseActivity {
            lease,
            sessions: 1,
            idle: Duration::ZERO,
            used_bytes: 7,
        };
        let work = Work {
            calls_per_s: 3.0,
            ..Work::default()
        };
        let works = BTreeMap::from([(1, work.clone()), (9, work.clone())]);
        let uses = lease_uses(vec![active(1), active(2)], works, Some(&usage));
        let first = uses[0].work.clone().unwrap_or_default();
        assert_eq!(first.transports, ["shm", "tcp"]);
        assert_eq!((first.rtt_us, first.calls_per_s), (Some(40.0), 3.0));
        assert_eq!(first.computing_gpus, Some(0.0));
        let second = uses[1].work.clone().unwrap_or_default();
        assert_eq!((second.rtt_us, second.transports.len()), (None, 0));
        assert_eq!((uses[2].lease.0, uses[2].sessions), (9, 0));
        assert_eq!(uses[2].work, Some(work));
        assert_eq!(
            lease_uses(vec![active(1)], BTreeMap::new(), None)[0].work,
            None
        );
    }
}
