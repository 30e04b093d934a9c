//! The pool as a state machine: no clock, no I/O, no threads. Every operation gets the time, changes the
//! state, and notes which records changed and who waits for that.
//!
//! A GPU's part is granted again only after its server has confirmed that nothing of the lease before runs
//! there: a lease that ends is first `Ending`, and holds what it held until then.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rustc_hash::FxHashMap;
use serde::de::DeserializeOwned;

use crate::alloc::queue::Shape;
use crate::alloc::{Cluster, Queue};
use crate::model::{ClientId, LeaseId, Piece, ServerId, Settings, Stage};

pub(crate) use records::{Client, Group, Join, Key, Lease, Meta, Server};
pub use records::{End, LeaseUse, Load, LogEntry, Role};
pub use refusal::{OverQuota, Refusal};

mod check;
mod clock;
mod dispatch;
mod leases;
mod quota;
mod records;
mod refusal;
mod sample;
mod servers;
mod tick;
mod tokens;
pub mod views;
mod work;

pub use leases::AskOutcome;
pub(crate) use sample::gpu_thing;
pub(crate) use servers::unknown as unknown_server;
pub use servers::{EndOrder, Registration};
pub use tokens::{NewToken, TokenChange};
pub use work::{GpuNow, Work};

/// Entries of the log that are kept.
const LOG_MAX: usize = 10_000;

/// Something that callers wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// A lease changed.
    Lease(LeaseId),
    /// A server has something to do.
    Server(ServerId),
}

/// A record to be written: its value, or `None` where it is gone.
pub type Change = (String, Option<Vec<u8>>);

/// The pool.
#[derive(Debug, Default)]
pub struct Pool {
    pub(crate) meta: Meta,
    pub(crate) servers: BTreeMap<ServerId, Server>,
    pub(crate) server_names: FxHashMap<String, ServerId>,
    pub(crate) clients: BTreeMap<ClientId, Client>,
    pub(crate) client_names: FxHashMap<String, ClientId>,
    pub(crate) token_hashes: FxHashMap<String, ClientId>,
    pub(crate) groups: BTreeMap<String, Group>,
    pub(crate) joins: BTreeMap<u32, Join>,
    pub(crate) leases: BTreeMap<LeaseId, Lease>,
    /// Requests that wait or hold, by their keys.
    keys: FxHashMap<(ClientId, String), LeaseId>,
    pub(crate) log: VecDeque<LogEntry>,
    cluster: Cluster,
    queue: Queue,
    switches: FxHashMap<String, u32>,
    /// Rises when servers or GPUs change.
    epoch: u64,
    pin: Option<Pin>,
    dirty: BTreeSet<Key>,
    woken: BTreeSet<Topic>,
    /// Day of the last tick.
    day: u64,
}

/// GPUs that are set aside for the request that has waited longest.
#[derive(Debug)]
struct Pin {
    lease: LeaseId,
    gpus: Vec<Piece>,
    /// Servers as they were when it was looked whose turn it is.
    epoch: u64,
}

/// A record that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the record {key} cannot be read: {why}")]
pub struct BadRecord {
    /// Its name.
    pub key: String,
    /// What is wrong.
    pub why: String,
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The pool that these records describe, as it goes on at `now_ms`: everyone has the full time to be
    /// heard of again.
    ///
    /// # Errors
    /// A record that cannot be read.
    pub fn load(
        records: impl IntoIterator<Item = (String, Vec<u8>)>,
        now_ms: u64,
    ) -> Result<Self, BadRecord> {
        let mut pool = Self::new();
        for (key, value) in records {
            pool.load_record(&key, &value).map_err(|why| BadRecord {
                key: key.clone(),
                why,
            })?;
        }
        pool.connect(now_ms);
        Ok(pool)
    }

    fn load_record(&mut self, key: &str, value: &[u8]) -> Result<(), String> {
        let (kind, name) = key.split_once('/').unwrap_or((key, ""));
        match kind {
            "meta" => self.meta = parse(value)?,
            "server" => drop(self.servers.insert(ServerId(number(name)?), parse(value)?)),
            "client" => drop(self.clients.insert(ClientId(number(name)?), parse(value)?)),
            "group" => drop(self.groups.insert(name.to_owned(), parse(value)?)),
            "join" => drop(self.joins.insert(number(name)?, parse(value)?)),
            "lease" => drop(self.leases.insert(LeaseId(number(name)?), parse(value)?)),
            "log" => self.log.push_back(parse(value)?),
            _ => return Err("a newer version wrote it".to_owned()),
        }
        Ok(())
    }

    /// Rebuilds all that is derived.
    fn connect(&mut self, now_ms: u64) {
        for (id, client) in &self.clients {
            self.client_names.insert(client.name.clone(), *id);
            self.token_hashes.insert(client.token_hash.clone(), *id);
        }
        let servers: Vec<ServerId> = self.servers.keys().copied().collect();
        for id in servers {
            if let Some(server) = self.servers.get_mut(&id) {
                server.seen_ms = now_ms;
                server.version = now_ms;
                self.server_names.insert(server.facts.name.clone(), id);
            }
            self.sync_node(id);
        }
        let leases: Vec<LeaseId> = self.leases.keys().copied().collect();
        for id in leases {
            self.connect_lease(id, now_ms);
        }
        self.day = quota::day_of(now_ms);
    }

    fn connect_lease(&mut self, id: LeaseId, now_ms: u64) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        lease.seen_ms = now_ms;
        lease.active_ms = now_ms;
        // Another than any that was told before.
        lease.version = now_ms;
        let (stage, client) = (lease.stage, lease.client);
        let held: Vec<Piece> = lease.unconfirmed().collect();
        let all = lease.pieces.clone();
        let (tag, shape) = (lease.tag, lease.shape());
        self.cluster.take(&held);
        for piece in &held {
            if let Some(server) = self.servers.get_mut(&piece.server) {
                server.holds.insert(id);
            }
        }
        if let Some(client) = self.clients.get_mut(&client)
            && matches!(stage, Stage::Queued | Stage::Held)
        {
            client.leases.insert(id);
            if !lease.ask.key.is_empty() {
                self.keys.insert((lease.client, lease.ask.key.clone()), id);
            }
            client.waiting += u32::from(stage == Stage::Queued);
        }
        match stage {
            Stage::Queued => self.queue.join(shape.into(), (tag, id)),
            Stage::Held => self.add_held(client, &all),
            Stage::Ending | Stage::Ended => {}
        }
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.meta.settings
    }

    /// What changed since the last call, to be made durable before anyone is answered.
    pub fn take_changes(&mut self) -> Vec<Change> {
        let keys = std::mem::take(&mut self.dirty);
        keys.into_iter()
            .map(|key| (key.text(), self.value(&key)))
            .collect()
    }

    /// All records, as a store would have them.
    #[must_use]
    pub fn all_records(&self) -> Vec<(String, Vec<u8>)> {
        let keys = std::iter::once(Key::Meta)
            .chain(self.servers.keys().copied().map(Key::Server))
            .chain(self.clients.keys().copied().map(Key::Client))
            .chain(self.groups.keys().cloned().map(Key::Group))
            .chain(self.joins.keys().copied().map(Key::Join))
            .chain(self.leases.keys().copied().map(Key::Lease))
            .chain(self.log.iter().map(|entry| Key::Log(entry.seq)));
        keys.filter_map(|key| Some((key.text(), self.value(&key)?)))
            .collect()
    }

    /// Who has something to hear since the last call.
    pub fn take_woken(&mut self) -> BTreeSet<Topic> {
        std::mem::take(&mut self.woken)
    }

    fn value(&self, key: &Key) -> Option<Vec<u8>> {
        fn json<T: serde::Serialize>(value: &T) -> Option<Vec<u8>> {
            // These types have only string keys and finite numbers.
            serde_json::to_vec(value).ok()
        }
        match key {
            Key::Meta => json(&self.meta),
            Key::Server(id) => self.servers.get(id).and_then(json),
            Key::Client(id) => self.clients.get(id).and_then(json),
            Key::Group(name) => self.groups.get(name).and_then(json),
            Key::Join(id) => self.joins.get(id).and_then(json),
            Key::Lease(id) => self.leases.get(id).and_then(json),
            Key::Log(seq) => {
                let first = self.log.front()?.seq;
                let index = usize::try_from(seq.checked_sub(first)?).ok()?;
                self.log.get(index).and_then(json)
            }
        }
    }

    pub(crate) fn mark(&mut self, key: Key) {
        self.dirty.insert(key);
    }

    fn wake(&mut self, topic: Topic) {
        match topic {
            Topic::Lease(id) => {
                if let Some(lease) = self.leases.get_mut(&id) {
                    lease.version += 1;
                }
            }
            Topic::Server(id) => {
                if let Some(server) = self.servers.get_mut(&id) {
                    server.version += 1;
                }
            }
        }
        self.woken.insert(topic);
    }

    /// Writes a line into the log.
    pub(crate) fn note(
        &mut self,
        now_ms: u64,
        actor: &str,
        action: &str,
        subject: impl Into<String>,
        detail: impl Into<String>,
    ) {
        let seq = self.meta.next_log;
        self.meta.next_log += 1;
        self.mark(Key::Meta);
        self.mark(Key::Log(seq));
        self.log.push_back(LogEntry {
            seq,
            at_ms: now_ms,
            actor: actor.to_owned(),
            action: action.to_owned(),
            subject: subject.into(),
            detail: detail.into(),
        });
        if self.log.len() > LOG_MAX
            && let Some(old) = self.log.pop_front()
        {
            self.mark(Key::Log(old.seq));
        }
    }
}

impl Lease {
    /// Where it stands in line.
    pub(crate) fn shape(&self) -> Shape {
        Shape::of(&self.ask, self.gpu_memory_bytes_max)
    }

    /// Pieces that have not been given back.
    pub(crate) fn unconfirmed(&self) -> impl Iterator<Item = Piece> + '_ {
        let holds = matches!(self.stage, Stage::Held | Stage::Ending);
        self.pieces
            .iter()
            .filter(move |piece| holds && !self.confirmed.contains(&piece.server))
            .copied()
    }
}

fn parse<T: DeserializeOwned>(value: &[u8]) -> Result<T, String> {
    serde_json::from_slice(value).map_err(|error| error.to_string())
}

fn number<T: std::str::FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "no number".to_owned())
}
