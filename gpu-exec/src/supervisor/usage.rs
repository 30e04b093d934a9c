//! What devices and sessions have had: for metrics and for people.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::executors::{Executor, Serving};
use super::keeper::Keeper;
use crate::DeviceKind;
use crate::control::{self, Order};
use crate::device::describe::{device_uuid, driver_version};
use crate::inventory::uuid_text;
use crate::share::board::Usage;

/// Leases whose ended sessions are remembered; their numbers rise.
const LEASES_MAX: usize = 4096;
/// How long executors have to say what they counted; who says nothing is reported as before.
const PATIENCE: Duration = Duration::from_millis(500);

/// A server, now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ServerUsage {
    /// The server's name for itself.
    pub server_name: String,
    /// Which device serves.
    pub kind: DeviceKind,
    /// CUDA driver version that it stands for, as `cuDriverGetVersion` gives it.
    pub driver_version: u32,
    /// By number on the server.
    pub devices: Vec<DeviceNow>,
    /// Those that are open, oldest first.
    pub sessions: Vec<SessionNow>,
    /// Sessions that are over.
    pub sessions_ended: u64,
    /// Whether the device time of all sessions is measured; else only that of those which take turns.
    #[serde(default)]
    pub is_measured: bool,
    /// Leases of a pool that have been used, by number; of many the newest. Not in the JSON: sessions are.
    #[serde(skip)]
    pub leases: Vec<LeaseTotals>,
}

/// What all sessions of a lease have had, ended ones included.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseTotals {
    /// Which.
    pub lease: u64,
    /// Driver calls that reached the device.
    pub records: u64,
    /// Bytes from the client, calls and copies.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// Time that kernels ran, on all devices together, in nanoseconds.
    pub busy_ns: u64,
    /// How calls of the newest session with a known round trip travel; empty until there is one.
    pub transport: String,
    /// That session's estimated round trip to the client, in nanoseconds.
    pub rtt_ns: u64,
}

/// A device; what was counted includes sessions that are over.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DeviceNow {
    /// Number on the server.
    pub ordinal: u32,
    /// `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`; empty where the driver does not say.
    pub uuid: String,
    /// Memory in bytes.
    pub total_bytes: u64,
    /// Allocated by all sessions.
    pub used_bytes: u64,
    /// Sessions that have it.
    pub sessions: u32,
    /// Time that kernels ran, in nanoseconds.
    pub busy_ns: u64,
    /// Kernels; a graph counts as one on `cuda`.
    pub kernels: u64,
    /// It does not answer any more.
    pub is_lost: bool,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SessionNow {
    /// Number, not used again while the server runs.
    pub session: u64,
    /// Program, process, host and address.
    pub client: String,
    /// Lease of the pool; 0 = none.
    pub lease: u64,
    /// Since it was opened, in milliseconds.
    pub age_ms: u64,
    /// Driver calls that reached the device.
    pub records: u64,
    /// Bytes from the client, calls and copies.
    pub bytes_in: u64,
    /// Bytes to the client.
    pub bytes_out: u64,
    /// How calls travel: `tcp`, `shm`, `verbs`; empty until its executor has said it.
    #[serde(default)]
    pub transport: String,
    /// Estimated round trip to the client, in nanoseconds; 0 = not known yet.
    #[serde(default)]
    pub rtt_ns: u64,
    /// Its devices, in the order of the program's ordinals.
    pub devices: Vec<SessionPart>,
}

/// A session's part of a device.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SessionPart {
    /// Number on the server.
    pub ordinal: u32,
    /// Allocated.
    pub used_bytes: u64,
    /// What it may allocate.
    pub limit_bytes: u64,
    /// Share of the compute, in thousandths.
    pub share_permille: u16,
    /// Time that its kernels ran, in nanoseconds.
    pub busy_ns: u64,
    /// Its kernels.
    pub kernels: u64,
}

/// Where an answer about the usage goes.
pub(crate) type UsageAnswer = SyncSender<ServerUsage>;

/// What sessions had that are over.
#[derive(Debug, Default)]
pub(crate) struct Past {
    devices: BTreeMap<u32, Usage>,
    sessions: u64,
    leases: BTreeMap<u64, LeaseTotals>,
}

impl Past {
    /// Adds a session of a lease that is over.
    fn add_to_lease(&mut self, session: LeaseTotals) {
        self.leases.entry(session.lease).or_default().add(session);
        if self.leases.len() > LEASES_MAX {
            self.leases.pop_first();
        }
    }
}

impl LeaseTotals {
    /// Adds what a session of the lease has had.
    fn add(&mut self, session: Self) {
        self.lease = session.lease;
        self.records += session.records;
        self.bytes_in += session.bytes_in;
        self.bytes_out += session.bytes_out;
        self.busy_ns += session.busy_ns;
        if session.rtt_ns > 0 {
            (self.transport, self.rtt_ns) = (session.transport, session.rtt_ns);
        }
    }
}

/// Who waits for what executors count.
#[derive(Debug, Default)]
pub(crate) struct Counting {
    answers: Vec<UsageAnswer>,
    missing: BTreeSet<u64>,
    since: Option<Instant>,
}

impl Counting {
    /// Whether somebody waits.
    pub(crate) fn is_waiting(&self) -> bool {
        self.since.is_some()
    }
}

impl Keeper {
    /// Asks all executors what they have counted; answers when they have said it.
    pub(super) fn count(&mut self, answer: UsageAnswer) {
        self.counting.answers.push(answer);
        self.counting.since.get_or_insert_with(Instant::now);
        for (id, executor) in &self.executors {
            if executor.serving().is_some() && ask(executor) {
                self.counting.missing.insert(*id);
            }
        }
        self.answer_if_complete();
    }

    /// An executor has said what it counted, or never will.
    pub(super) fn counted(&mut self, id: u64) {
        self.counting.missing.remove(&id);
        self.answer_if_complete();
    }

    /// Executors that do not answer keep nobody waiting.
    pub(super) fn answer_overdue(&mut self) {
        let since = self.counting.since;
        if since.is_some_and(|since| since.elapsed() > PATIENCE) {
            self.counting.missing.clear();
            self.answer_if_complete();
        }
    }

    /// Adds up a session that is over; its device time.
    pub(super) fn note_end(&mut self, serving: &Serving) -> Duration {
        let mut busy_ns = 0;
        for device in &serving.devices {
            let usage = self.board.usage(serving.slot, *device as usize);
            let past = self.past.devices.entry(*device).or_default();
            past.busy_ns += usage.busy_ns;
            past.launches += usage.launches;
            busy_ns += usage.busy_ns;
        }
        self.past.sessions += 1;
        if serving.lease != 0 {
            self.past.add_to_lease(LeaseTotals {
                lease: serving.lease,
                records: serving.counts.records,
                bytes_in: serving.counts.bytes_in,
                bytes_out: serving.counts.bytes_out,
                busy_ns,
                transport: serving.counts.transport.clone(),
                rtt_ns: serving.counts.rtt_ns,
            });
        }
        Duration::from_nanos(busy_ns)
    }

    fn answer_if_complete(&mut self) {
        if !self.counting.missing.is_empty() || self.counting.since.take().is_none() {
            return;
        }
        let usage = self.usage();
        for answer in std::mem::take(&mut self.counting.answers) {
            // Who asked may have gone.
            drop(answer.try_send(usage.clone()));
        }
    }

    fn usage(&self) -> ServerUsage {
        let sessions: Vec<SessionNow> = self
            .executors
            .iter()
            .filter_map(|(id, executor)| Some(self.session_now(*id, executor.serving()?)))
            .collect();
        let devices = self.plan.devices.iter().map(|device| {
            let ordinal = device.ordinal;
            let past = self.past.devices.get(&ordinal).copied().unwrap_or_default();
            let parts = sessions.iter().flat_map(|session| &session.devices);
            let parts: Vec<_> = parts.filter(|part| part.ordinal == ordinal).collect();
            DeviceNow {
                ordinal,
                uuid: device_uuid(self.plan.kind, ordinal)
                    .map_or_else(String::new, |uuid| uuid_text(&uuid)),
                total_bytes: device.total_bytes,
                used_bytes: self.ledger.used(ordinal as usize),
                sessions: u32::try_from(parts.len()).unwrap_or(u32::MAX),
                busy_ns: past.busy_ns + parts.iter().map(|part| part.busy_ns).sum::<u64>(),
                kernels: past.launches + parts.iter().map(|part| part.kernels).sum::<u64>(),
                is_lost: self.board.is_lost(ordinal as usize),
            }
        });
        ServerUsage {
            server_name: self.plan.server_name.clone(),
            kind: self.plan.kind,
            driver_version: driver_version(self.plan.kind),
            devices: devices.collect(),
            leases: self.lease_totals(&sessions),
            sessions,
            sessions_ended: self.past.sessions,
            is_measured: self.plan.measure,
        }
    }

    fn lease_totals(&self, sessions: &[SessionNow]) -> Vec<LeaseTotals> {
        let mut leases = self.past.leases.clone();
        for session in sessions.iter().filter(|session| session.lease != 0) {
            leases.entry(session.lease).or_default().add(LeaseTotals {
                lease: session.lease,
                records: session.records,
                bytes_in: session.bytes_in,
                bytes_out: session.bytes_out,
                busy_ns: session.devices.iter().map(|part| part.busy_ns).sum(),
                transport: session.transport.clone(),
                rtt_ns: session.rtt_ns,
            });
        }
        leases.into_values().collect()
    }

    fn session_now(&self, id: u64, serving: &Serving) -> SessionNow {
        let parts = serving.parts.iter().map(|part| {
            let device = part.ordinal as usize;
            let usage = self.board.usage(serving.slot, device);
            SessionPart {
                ordinal: part.ordinal,
                used_bytes: self.ledger.used_by(serving.slot, device),
                limit_bytes: part.limit_bytes,
                share_permille: part.share_permille,
                busy_ns: usage.busy_ns,
                kernels: usage.launches,
            }
        });
        SessionNow {
            session: id,
            client: serving.client.clone(),
            lease: serving.lease,
            age_ms: u64::try_from(serving.since.elapsed().as_millis()).unwrap_or(u64::MAX),
            records: serving.counts.records,
            bytes_in: serving.counts.bytes_in,
            bytes_out: serving.counts.bytes_out,
            transport: serving.counts.transport.clone(),
            rtt_ns: serving.counts.rtt_ns,
            devices: parts.collect(),
        }
    }
}

/// Whether an executor will say what it counted.
fn ask(executor: &Executor) -> bool {
    let sent = executor
        .socket()
        .map(|control| control::send(control.as_fd(), &Order::Count, &[], &[], &[]));
    matches!(sent, Some(Ok(())))
}
