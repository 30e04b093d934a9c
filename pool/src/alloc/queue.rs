//! Who waits, in which order. Requests that need the same wait in one line: if its first does not fit,
//! none of it does.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::cluster::{Eligible, Need};
use crate::model::{Ask, ClientId, LeaseId};

/// A request's place in the order: the time at which it counts as having come.
///
/// That is its arrival, later by what the same client has asked for just before, earlier by its priority.
/// It never changes, and all that come long enough after it are behind it: nobody starves.
pub(crate) type Tag = i64;

/// Waiting in line.
pub(crate) type Entry = (Tag, LeaseId);

/// What requests that stand in one line have in common.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Shape {
    pub(crate) need: Need,
    filters: Vec<crate::filter::Filter>,
    servers: Vec<String>,
    pub(crate) same_server: bool,
    near: String,
    /// What it may need of one GPU, so that no placement is over its quota.
    pub(crate) gpu_memory_bytes_max: Option<u64>,
}

impl Shape {
    pub(crate) fn of(ask: &Ask, gpu_memory_bytes_max: Option<u64>) -> Self {
        Self {
            need: Need {
                gpus: ask.gpus,
                share_permille: ask.share_permille,
                memory_bytes: ask.memory_bytes,
            },
            filters: ask.filters.clone(),
            servers: ask.servers.clone(),
            same_server: ask.same_server,
            near: ask.near.clone(),
            gpu_memory_bytes_max,
        }
    }
}

/// One line.
#[derive(Debug, Default)]
pub(crate) struct Line {
    pub(crate) waiting: BTreeSet<Entry>,
    pub(crate) eligible: Eligible,
    pub(crate) near: Vec<u32>,
    /// Which state of the registry `eligible` was made of.
    pub(crate) epoch: u64,
    /// Whether `eligible` was made at all.
    pub(crate) known: bool,
    /// Whether servers could grant its requests if nobody else had anything, where that was looked at since.
    pub(crate) possible: Option<bool>,
    /// Whether its first has to be looked for everywhere.
    pub(crate) fresh: bool,
}

/// All lines.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    pub(crate) lines: FxHashMap<Arc<Shape>, Line>,
    /// Requests over their client's or group's quota, by client: they wait for their own.
    pub(crate) over_quota: FxHashMap<ClientId, BTreeSet<Entry>>,
    /// Everyone, in order. Who is granted stands near the front, who comes near the end: either moves few.
    order: VecDeque<Entry>,
}

impl Queue {
    /// Adds a request to its line.
    pub(crate) fn join(&mut self, shape: Arc<Shape>, entry: Entry) {
        if let Err(at) = self.order.binary_search(&entry) {
            self.order.insert(at, entry);
        }
        self.lines.entry(shape).or_default().waiting.insert(entry);
    }

    /// Removes a request from wherever it waits.
    pub(crate) fn leave(&mut self, shape: &Shape, client: ClientId, entry: Entry) {
        if let Ok(at) = self.order.binary_search(&entry) {
            self.order.remove(at);
        }
        if let Some(line) = self.lines.get_mut(shape) {
            line.waiting.remove(&entry);
            if line.waiting.is_empty() {
                self.lines.remove(shape);
            }
        }
        if let Some(waiting) = self.over_quota.get_mut(&client) {
            waiting.remove(&entry);
            if waiting.is_empty() {
                self.over_quota.remove(&client);
            }
        }
    }

    /// Lets a request wait for its client's quota.
    pub(crate) fn set_aside(&mut self, shape: &Shape, client: ClientId, entry: Entry) {
        if let Some(line) = self.lines.get_mut(shape) {
            line.waiting.remove(&entry);
        }
        self.over_quota.entry(client).or_default().insert(entry);
    }

    /// Requests that waited for a client's quota.
    pub(crate) fn take_over_quota(&mut self, client: ClientId) -> BTreeSet<Entry> {
        self.over_quota.remove(&client).unwrap_or_default()
    }

    /// Place in the order, from 1.
    pub(crate) fn place_of(&self, entry: Entry) -> usize {
        let (Ok(at) | Err(at)) = self.order.binary_search(&entry);
        at + 1
    }

    /// How many wait.
    pub(crate) fn len(&self) -> usize {
        self.order.len()
    }
}
