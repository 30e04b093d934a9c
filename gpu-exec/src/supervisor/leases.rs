//! The keeper's part for a pool: sessions by lease, how they are used, and their end.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use super::admission::{Activity, Admitted, AdmittedDevice, LeaseActivity};
use super::executors::Executor;
use super::keeper::Keeper;
use crate::control::{self, Order};
use crate::device::describe::{DeviceSpec, LOST_ADVICE, device_uuid};
use crate::inventory::uuid_text;

/// Leases that are remembered as ended; their numbers rise.
const ENDED_MAX: usize = 1 << 16;

/// How a session was seen to work, the last time that somebody looked.
#[derive(Debug)]
pub(crate) struct Seen {
    frames: u64,
    since: Instant,
}

impl Seen {
    pub(crate) fn new() -> Self {
        Self {
            frames: 0,
            since: Instant::now(),
        }
    }
}

impl Keeper {
    /// The devices that a grant names, as this server numbers them.
    ///
    /// # Errors
    /// In words for the client.
    pub(super) fn granted_devices(
        &self,
        admitted: &Admitted,
        wanted: u32,
        limit_bytes: u64,
    ) -> Result<Vec<DeviceSpec>, String> {
        if let Some(reason) = self.ended.get(&admitted.lease) {
            return Err(format!("the lease L{} has ended: {reason}", admitted.lease));
        }
        let granted = admitted.devices.len();
        let count = if wanted == 0 {
            granted
        } else {
            wanted as usize
        };
        if count > granted {
            return Err(format!("{wanted} devices wanted, the grant has {granted}"));
        }
        let find = |part: &AdmittedDevice| {
            let named = |device: &&DeviceSpec| {
                let uuid = device_uuid(self.plan.kind, device.ordinal);
                uuid.is_some_and(|uuid| uuid_text(&uuid) == part.uuid)
            };
            let found = self.plan.devices.iter().find(named);
            let device = found.ok_or_else(|| format!("this server has no {}", part.uuid))?;
            let limit_bytes = part.memory_bytes.min(limit_bytes).min(device.total_bytes);
            Ok(DeviceSpec {
                limit_bytes,
                share_permille: part.share_permille,
                ..device.clone()
            })
        };
        let devices: Vec<DeviceSpec> = admitted
            .devices
            .iter()
            .take(count)
            .map(find)
            .collect::<Result<_, String>>()?;
        let is_lost = |device: &&DeviceSpec| self.board.is_lost(device.ordinal as usize);
        match devices.iter().find(is_lost) {
            Some(device) => Err(format!(
                "GPU {} of this server is lost: {LOST_ADVICE}",
                device.ordinal
            )),
            None => Ok(devices),
        }
    }

    /// What goes on.
    pub(super) fn activity(&mut self) -> Activity {
        let mut activity = Activity::default();
        let mut leases: BTreeMap<u64, LeaseActivity> = BTreeMap::new();
        let mut count = |lease: u64, idle: Duration| {
            if lease == 0 {
                return;
            }
            let entry = leases.entry(lease).or_insert(LeaseActivity {
                lease,
                sessions: 0,
                idle,
                used_bytes: 0,
            });
            entry.sessions += 1;
            entry.idle = entry.idle.min(idle);
        };
        for executor in self.executors.values_mut() {
            let Some(serving) = executor.serving_mut() else {
                continue;
            };
            activity.sessions += 1;
            let pulse = self.ledger.pulse(serving.slot);
            if pulse.frames != serving.seen.frames || pulse.is_waited_for {
                serving.seen = Seen {
                    frames: pulse.frames,
                    since: Instant::now(),
                };
            }
            count(serving.lease, serving.seen.since.elapsed());
        }
        for client in &self.waiting {
            count(client.lease(), Duration::ZERO);
        }
        let devices = self.plan.devices.iter();
        let used = devices.map(|device| self.ledger.used(device.ordinal as usize));
        activity.used_bytes = used.collect();
        activity.leases = leases.into_values().collect();
        for used in &mut activity.leases {
            let devices = self.plan.devices.iter();
            let bytes =
                devices.map(|it| self.ledger.used_by_lease(it.ordinal as usize, used.lease));
            used.used_bytes = bytes.sum();
        }
        activity
    }

    /// Ends the sessions of a lease; no more are opened for it.
    pub(super) fn end_lease(&mut self, lease: u64, reason: &str) {
        self.ended.insert(lease, reason.to_owned());
        if self.ended.len() > ENDED_MAX {
            self.ended.pop_first();
        }
        let text = format!("the lease L{lease} has ended: {reason}");
        let (over, others) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition(|client| client.lease() == lease);
        self.waiting = others;
        for client in Vec::from(over) {
            client.refuse(&text);
        }
        for executor in self.executors.values_mut() {
            let serves = executor
                .serving()
                .is_some_and(|serving| serving.lease == lease && serving.ending.is_none());
            if serves {
                close(executor, &text);
            }
        }
    }

    /// Executors that do not end a session when told to are ended.
    pub(super) fn kill_overdue(&self, patience: Duration) {
        for executor in self.executors.values() {
            let overdue = executor
                .serving()
                .and_then(|serving| serving.ending)
                .is_some_and(|since| since.elapsed() > patience);
            if overdue {
                executor.kill();
            }
        }
    }

    /// Whether some session is about to end because its lease has.
    pub(super) fn is_ending(&self) -> bool {
        let mut serving = self.executors.values().filter_map(Executor::serving);
        serving.any(|serving| serving.ending.is_some())
    }
}

/// Tells an executor to end its session, and its client why.
pub(super) fn close(executor: &mut Executor, text: &str) {
    let order = Order::Close {
        reason: text.to_owned(),
    };
    let sent = executor
        .socket()
        .map(|control| control::send(control.as_fd(), &order, &[], &[], &[]));
    if !matches!(sent, Some(Ok(()))) {
        executor.kill();
    }
    if let Some(serving) = executor.serving_mut() {
        serving.ending = Some(Instant::now());
        serving.farewell = Some(text.to_owned());
    }
}
