//! What `--stats` counts: calls, waits, bytes, time, in all and since each mark of the program.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use farcall_marshal::catalogue::{CALLS, CallInfo};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::global;
use crate::process::Process;

type PerCall = [AtomicU64; CALLS.len() + 1];

static COUNTS: PerCall = [const { AtomicU64::new(0) }; CALLS.len() + 1];
/// Round trips by the call that waited.
static WAITS: PerCall = [const { AtomicU64::new(0) }; CALLS.len() + 1];
static NANOSECONDS: AtomicU64 = AtomicU64::new(0);
/// Bytes of code that went to servers, as they travelled.
static MODULE_BYTES: AtomicU64 = AtomicU64::new(0);
/// Bytes of copies between servers: from one to the other, and through this process.
static DIRECT_BYTES: AtomicU64 = AtomicU64::new(0);
static CARRIED_BYTES: AtomicU64 = AtomicU64::new(0);
/// The phases so far.
static MARKS: Mutex<Vec<Mark>> = Mutex::new(Vec::new());

/// The beginning of a phase.
struct Mark {
    name: String,
    at: Snapshot,
    /// Of the process that marked it; the child of a fork has its own phases.
    epoch: u32,
}

thread_local! {
    /// The call that this thread is in.
    static RUNNING: Cell<u16> = const { Cell::new(0) };
    /// How often it has waited.
    static WAITED: Cell<u32> = const { Cell::new(0) };
}

/// This thread enters a call.
pub(crate) fn entered(info: &CallInfo) {
    RUNNING.set(info.number);
    WAITED.set(0);
}

/// This thread leaves a call after that time.
pub(crate) fn left(info: &CallInfo, ns: u64) {
    NANOSECONDS.fetch_add(ns, Ordering::Relaxed);
    add(&COUNTS, info.number);
}

/// The call that this thread is in is about to wait for a server.
pub(crate) fn round_trip() {
    add(&WAITS, RUNNING.get());
    WAITED.set(WAITED.get().saturating_add(1));
}

/// How often the call that this thread is in, or was in last, has waited for a server.
pub(crate) fn waited() -> u32 {
    WAITED.get()
}

/// So many bytes of a module are sent.
pub(crate) fn module_sent(bytes: usize) {
    MODULE_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}

/// So many bytes were copied from one server to another.
pub(crate) fn crossed(bytes: usize, is_direct: bool) {
    let counter = if is_direct {
        &DIRECT_BYTES
    } else {
        &CARRIED_BYTES
    };
    counter.fetch_add(bytes as u64, Ordering::Relaxed);
}

fn add(per_call: &PerCall, number: u16) {
    if let Some(count) = per_call.get(usize::from(number)) {
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// The child of a fork counts from nothing. Atomic stores only.
pub(crate) fn reset() {
    NANOSECONDS.store(0, Ordering::Relaxed);
    for bytes in [&MODULE_BYTES, &DIRECT_BYTES, &CARRIED_BYTES] {
        bytes.store(0, Ordering::Relaxed);
    }
    for count in COUNTS.iter().chain(&WAITS) {
        count.store(0, Ordering::Relaxed);
    }
}

/// A phase of the program begins here.
pub(crate) fn mark(name: String, process: Option<&Process>) {
    MARKS.lock().push(Mark {
        name,
        at: Snapshot::now(process),
        epoch: global::epoch(),
    });
}

/// Everything that is counted, at one moment.
#[derive(Clone)]
struct Snapshot {
    counts: Vec<u64>,
    waits: Vec<u64>,
    ns: u64,
    module_bytes: u64,
    direct_bytes: u64,
    carried_bytes: u64,
    frames: u64,
    sends: [u64; SENDS.len()],
    sleeps: u64,
    bytes_out: u64,
    /// Those of records and bulk transfers, however they were batched: the same in every run of a program.
    record_bytes_out: u64,
    bytes_in: u64,
}

/// Why batches of records leave, by the names in the statistics.
type SendCount = fn(&farcall_transport::Stats) -> u64;
const SENDS: [(&str, SendCount); 5] = [
    ("nothing_in_flight", |stats| stats.flush_idle),
    ("acknowledged", |stats| stats.flush_ack),
    ("full", |stats| stats.flush_full),
    ("call_waits", |stats| stats.flush_forced),
    ("gathered_long_enough", |stats| stats.flush_timer),
];

impl Snapshot {
    fn now(process: Option<&Process>) -> Self {
        let load = |of: &PerCall| of.iter().map(|c| c.load(Ordering::Relaxed)).collect();
        let stats: Vec<farcall_transport::Stats> = process.map_or_else(Vec::new, |p| {
            p.sessions.iter().map(|s| s.endpoint.stats()).collect()
        });
        let sum =
            |field: fn(&farcall_transport::Stats) -> u64| stats.iter().map(field).sum::<u64>();
        Self {
            counts: load(&COUNTS),
            waits: load(&WAITS),
            ns: NANOSECONDS.load(Ordering::Relaxed),
            module_bytes: MODULE_BYTES.load(Ordering::Relaxed),
            direct_bytes: DIRECT_BYTES.load(Ordering::Relaxed),
            carried_bytes: CARRIED_BYTES.load(Ordering::Relaxed),
            frames: sum(|s| s.frames_out) + sum(|s| s.frames_in),
            sends: SENDS.map(|(_, count)| sum(count)),
            sleeps: sum(|s| s.sleeps),
            bytes_out: sum(|s| s.bytes_out) + sum(|s| s.bulk_bytes_out),
            record_bytes_out: sum(|s| s.record_bytes_out) + sum(|s| s.bulk_bytes_out),
            bytes_in: sum(|s| s.bytes_in) + sum(|s| s.bulk_bytes_in),
        }
    }

    /// What was counted since `earlier`.
    fn since(&self, earlier: &Self) -> Self {
        let less = |now: &[u64], then: &[u64]| {
            now.iter()
                .zip(then)
                .map(|(now, then)| now.saturating_sub(*then))
                .collect()
        };
        Self {
            counts: less(&self.counts, &earlier.counts),
            waits: less(&self.waits, &earlier.waits),
            ns: self.ns.saturating_sub(earlier.ns),
            module_bytes: self.module_bytes.saturating_sub(earlier.module_bytes),
            direct_bytes: self.direct_bytes.saturating_sub(earlier.direct_bytes),
            carried_bytes: self.carried_bytes.saturating_sub(earlier.carried_bytes),
            frames: self.frames.saturating_sub(earlier.frames),
            sends: std::array::from_fn(|why| {
                let at = |of: &Self| of.sends.get(why).copied().unwrap_or(0);
                at(self).saturating_sub(at(earlier))
            }),
            sleeps: self.sleeps.saturating_sub(earlier.sleeps),
            bytes_out: self.bytes_out.saturating_sub(earlier.bytes_out),
            record_bytes_out: self
                .record_bytes_out
                .saturating_sub(earlier.record_bytes_out),
            bytes_in: self.bytes_in.saturating_sub(earlier.bytes_in),
        }
    }

    fn to_json(&self) -> Map<String, Value> {
        let mut by_class: Map<String, Value> = Map::new();
        let mut by_function = Map::new();
        let mut waits_by_function = Map::new();
        for info in &CALLS {
            let at = |of: &[u64]| of.get(usize::from(info.number)).copied().unwrap_or(0);
            let (count, waits) = (at(&self.counts), at(&self.waits));
            if count > 0 {
                by_function.insert(info.symbol.to_owned(), count.into());
                let class = by_class.entry(info.class.name()).or_insert(0.into());
                *class = (class.as_u64().unwrap_or(0) + count).into();
            }
            if waits > 0 {
                waits_by_function.insert(info.symbol.to_owned(), waits.into());
            }
        }
        let mut object = Map::new();
        object.insert("calls".to_owned(), self.counts.iter().sum::<u64>().into());
        object.insert("by_class".to_owned(), by_class.into());
        object.insert("by_function".to_owned(), by_function.into());
        object.insert(
            "blocking_round_trips".to_owned(),
            self.waits.iter().sum::<u64>().into(),
        );
        object.insert("waits_by_function".to_owned(), waits_by_function.into());
        object.insert("frames".to_owned(), self.frames.into());
        let sends = SENDS.iter().zip(self.sends);
        let sends: Map<String, Value> = sends
            .filter(|(_, count)| *count > 0)
            .map(|((why, _), count)| ((*why).to_owned(), count.into()))
            .collect();
        object.insert("sends".to_owned(), sends.into());
        object.insert("sleeps".to_owned(), self.sleeps.into());
        object.insert("bytes_out".to_owned(), self.bytes_out.into());
        object.insert("record_bytes_out".to_owned(), self.record_bytes_out.into());
        object.insert("bytes_in".to_owned(), self.bytes_in.into());
        object.insert("module_bytes_out".to_owned(), self.module_bytes.into());
        if self.direct_bytes + self.carried_bytes > 0 {
            object.insert(
                "server_to_server_bytes".to_owned(),
                self.direct_bytes.into(),
            );
            object.insert(
                "server_to_server_bytes_through_client".to_owned(),
                self.carried_bytes.into(),
            );
        }
        object.insert("ns_in_calls".to_owned(), self.ns.into());
        object
    }
}

/// The statistics as `--stats` writes them: the whole run, and each phase between two marks.
pub(crate) fn to_json(process: Option<&Process>) -> Map<String, Value> {
    let now = Snapshot::now(process);
    let mut object = now.to_json();
    object.insert("phases".to_owned(), phases(&now).into());
    object
}

fn phases(now: &Snapshot) -> Vec<Value> {
    // A thread of the parent may have held the lock when this process was forked.
    let Some(marks) = MARKS.try_lock() else {
        return Vec::new();
    };
    let own: Vec<&Mark> = marks
        .iter()
        .filter(|mark| mark.epoch == global::epoch())
        .collect();
    let ends = own
        .iter()
        .skip(1)
        .map(|mark| &mark.at)
        .chain(std::iter::once(now));
    own.iter()
        .zip(ends)
        .map(|(mark, end)| {
            let mut phase = end.since(&mark.at).to_json();
            phase.insert("name".to_owned(), json!(mark.name));
            phase.into()
        })
        .collect()
}
