//! Grants what fits, in order.
//!
//! Between two operations no request that is first in its line fits. So when a server gets something back,
//! only that server has to be looked at, and of each line only the first.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use crate::alloc::cluster::Eligible;
use crate::alloc::place::{Wanted, on_server, place};
use crate::alloc::queue::{Entry, Line, Shape};
use crate::alloc::{Cluster, Gpu, Node};
use crate::model::{
    Ask, ClientId, GpuFacts, LEASE_SERVERS_MAX, LeaseId, Piece, ServerId, Stage, WHOLE_PERMILLE,
};
use crate::state::{Key, Pin, Pool, Refusal, Topic};

/// What may have become possible.
#[derive(Clone, Copy, Debug)]
pub(super) enum Touched<'a> {
    /// Anything.
    All,
    /// These servers have more than before.
    Servers(&'a [ServerId]),
}

impl Pool {
    /// Grants all that has become possible.
    pub(super) fn dispatch(&mut self, now_ms: u64, touched: Touched<'_>) {
        self.try_pinned(now_ms);
        let shapes: Vec<Arc<Shape>> = self.queue.lines.keys().cloned().collect();
        let mut heads: BinaryHeap<Reverse<(Entry, usize)>> = BinaryHeap::new();
        for (index, shape) in shapes.iter().enumerate() {
            if let Some(first) = self.first_that_fits(shape, touched) {
                heads.push(Reverse((first, index)));
            }
        }
        while let Some(Reverse((entry, index))) = heads.pop() {
            let shape = &shapes[index];
            if self.try_entry(now_ms, shape, entry, touched)
                && let Some(next) = self.first_that_fits(shape, touched)
            {
                heads.push(Reverse((next, index)));
            }
        }
        self.refresh_pin(now_ms);
    }

    /// For when nothing was given back, but a quota or a pin may have been.
    pub(super) fn dispatch_fresh(&mut self, now_ms: u64) {
        self.dispatch(now_ms, Touched::Servers(&[]));
    }

    /// Tries the newest request of a line, if it is the first there. Whether it was granted.
    pub(super) fn try_line(&mut self, now_ms: u64, shape: &Arc<Shape>, id: LeaseId) -> bool {
        self.refresh_line(shape);
        let line = self.queue.lines.get(&**shape);
        match line.and_then(|line| line.waiting.first().copied()) {
            Some(entry) if entry.1 == id => {
                self.try_entry(now_ms, shape, entry, Touched::All);
                let stage = self.leases.get(&id).map(|lease| lease.stage);
                if let Some(line) = self.queue.lines.get_mut(&**shape) {
                    line.fresh = false;
                }
                stage == Some(Stage::Held)
            }
            _ => {
                self.refresh_pin(now_ms);
                false
            }
        }
    }

    /// Requests that waited for a quota of which something was given back stand in line again.
    pub(super) fn requeue_over_quota(&mut self, client: ClientId) {
        let group = self.clients.get(&client).and_then(|it| it.group.clone());
        let affected: Vec<ClientId> = self
            .queue
            .over_quota
            .keys()
            .filter(|id| {
                **id == client
                    || group.is_some()
                        && self.clients.get(id).and_then(|it| it.group.as_ref()) == group.as_ref()
            })
            .copied()
            .collect();
        for client in affected {
            for (tag, id) in self.queue.take_over_quota(client) {
                let Some(lease) = self.leases.get_mut(&id) else {
                    continue;
                };
                lease.over_quota = None;
                let shape = Arc::new(lease.shape());
                self.queue.join(shape.clone(), (tag, id));
                if let Some(line) = self.queue.lines.get_mut(&*shape) {
                    line.fresh = true;
                }
            }
        }
    }

    /// GPUs that are as a request wants them.
    pub(super) fn eligible(&self, ask: &Ask, shape: &Shape) -> Eligible {
        let mut bits = vec![0_u64; self.cluster.nodes.len()];
        for (ServerId(id), server) in &self.servers {
            let facts = &server.facts;
            if !ask.servers.is_empty() && !ask.servers.contains(&facts.name) {
                continue;
            }
            let within = |gpu: &GpuFacts| {
                let max = shape.gpu_memory_bytes_max;
                max.is_none_or(|max| shape.need.memory_on(gpu.memory_bytes) <= max)
            };
            let wanted = |gpu: &GpuFacts| {
                let mut filters = ask.filters.iter();
                within(gpu) && filters.all(|filter| filter.matches(facts, gpu))
            };
            let matching = facts.gpus.iter().take(64).enumerate();
            let matching = matching.filter(|(_, gpu)| wanted(gpu));
            let of_server = matching.fold(0, |bits, (index, _)| bits | 1 << index);
            if let Some(entry) = bits.get_mut(*id as usize) {
                *entry = of_server;
            }
        }
        Eligible(bits)
    }

    /// Gives up what is set aside: others may have it.
    pub(super) fn unpin(&mut self, now_ms: u64) {
        let Some(pin) = self.pin.take() else {
            return;
        };
        let mut servers: Vec<ServerId> = Vec::new();
        for piece in &pin.gpus {
            if let Some(gpu) = self.cluster.gpu_mut(piece) {
                gpu.pinned = false;
            }
            servers.push(piece.server);
        }
        servers.dedup();
        self.dispatch(now_ms, Touched::Servers(&servers));
    }

    /// The first of a line if it would fit.
    fn first_that_fits(&mut self, shape: &Arc<Shape>, touched: Touched<'_>) -> Option<Entry> {
        self.refresh_line(shape);
        let line = self.queue.lines.get_mut(&**shape)?;
        let first = *line.waiting.first()?;
        let wanted = wanted(shape, line, false);
        let fits = match touched {
            Touched::Servers(servers) if !line.fresh => find(&self.cluster, &wanted, servers),
            _ => place(&self.cluster, &wanted),
        };
        if fits.is_none() {
            line.fresh = false;
        }
        fits.map(|_| first)
    }

    /// Grants the first of a line if it fits and is within its quota; one that is over it steps out of the
    /// line. Whether the line has another first now.
    fn try_entry(
        &mut self,
        now_ms: u64,
        shape: &Arc<Shape>,
        entry: Entry,
        touched: Touched<'_>,
    ) -> bool {
        let Some(line) = self.queue.lines.get(&**shape) else {
            return false;
        };
        let wanted = wanted(shape, line, false);
        let placed = match touched {
            Touched::Servers(servers) if !line.fresh => find(&self.cluster, &wanted, servers),
            _ => place(&self.cluster, &wanted),
        };
        placed.is_some_and(|pieces| {
            self.grant_or_set_aside(now_ms, shape, entry, &pieces);
            true
        })
    }

    fn grant_or_set_aside(
        &mut self,
        now_ms: u64,
        shape: &Arc<Shape>,
        entry: Entry,
        pieces: &[Piece],
    ) {
        if self.set_aside_if_over(now_ms, shape, entry, pieces) {
            return;
        }
        let Some(lease) = self.leases.get(&entry.1) else {
            return;
        };
        let client = lease.client;
        self.leave_queue(shape, client, entry);
        self.grant(now_ms, entry.1, pieces);
    }

    /// Lets a request wait for its client's quota if these pieces would be over it. Whether they would.
    fn set_aside_if_over(
        &mut self,
        now_ms: u64,
        shape: &Arc<Shape>,
        entry: Entry,
        pieces: &[Piece],
    ) -> bool {
        let Some(lease) = self.leases.get(&entry.1) else {
            return false;
        };
        let client = lease.client;
        let within = self.check_now(now_ms, client, &lease.ask);
        let Err(Refusal::Quota(over)) = within.and_then(|()| self.check_memory(client, pieces))
        else {
            return false;
        };
        self.queue.set_aside(shape, client, entry);
        if let Some(lease) = self.leases.get_mut(&entry.1) {
            lease.over_quota = Some(over);
        }
        self.wake(Topic::Lease(entry.1));
        true
    }

    fn grant(&mut self, now_ms: u64, id: LeaseId, pieces: &[Piece]) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let client = lease.client;
        let hold_ms = lease.ask.hold_ms;
        lease.stage = Stage::Held;
        lease.pieces = pieces.to_vec();
        lease.granted_ms = Some(now_ms);
        lease.active_ms = now_ms;
        lease.over_quota = None;
        self.cluster.take(pieces);
        self.charge(now_ms, client, pieces);
        let hold_ms = hold_ms.or_else(|| self.hold_ms_max(client));
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.expires_ms = hold_ms.map(|hold_ms| now_ms.saturating_add(hold_ms));
        }
        for piece in pieces {
            if let Some(server) = self.servers.get_mut(&piece.server) {
                server.holds.insert(id);
            }
        }
        self.mark(Key::Lease(id));
        self.wake(Topic::Lease(id));
        let name = self.clients.get(&client).map(|it| it.name.clone());
        let detail = format!("{} GPU parts", pieces.len());
        self.note(
            now_ms,
            &name.unwrap_or_default(),
            "grant",
            id.to_string(),
            detail,
        );
    }

    /// What the line may have, of the servers as they are now.
    fn refresh_line(&mut self, shape: &Arc<Shape>) {
        let Some(line) = self.queue.lines.get(&**shape) else {
            return;
        };
        if line.epoch == self.epoch && line.known {
            return;
        }
        let first = line.waiting.first().and_then(|it| self.leases.get(&it.1));
        let Some(ask) = first.map(|lease| lease.ask.clone()) else {
            return;
        };
        let (eligible, near) = (self.eligible(&ask, shape), self.switch_numbers(&ask.near));
        if let Some(line) = self.queue.lines.get_mut(&**shape) {
            line.eligible = eligible;
            line.near = near;
            line.possible = None;
            line.epoch = self.epoch;
            line.known = true;
            line.fresh = true;
        }
    }

    /// The request for which GPUs are set aside may have those too.
    fn try_pinned(&mut self, now_ms: u64) {
        let Some(id) = self.pin.as_ref().map(|pin| pin.lease) else {
            return;
        };
        let lease = self.leases.get(&id);
        let Some(lease) = lease.filter(|lease| lease.stage == Stage::Queued) else {
            return self.drop_pin();
        };
        let (shape, tag) = (Arc::new(lease.shape()), lease.tag);
        self.refresh_line(&shape);
        let Some(line) = self.queue.lines.get(&*shape) else {
            return self.drop_pin();
        };
        if !line.waiting.contains(&(tag, id)) {
            return self.drop_pin();
        }
        let wanted = wanted(&shape, line, true);
        if let Some(pieces) = place(&self.cluster, &wanted) {
            self.grant_or_set_aside(now_ms, &shape, (tag, id), &pieces);
            self.drop_pin();
        }
    }

    /// As [`Self::unpin`] in the middle of a dispatch: what was set aside is looked at by all lines.
    pub(super) fn drop_pin(&mut self) {
        let Some(pin) = self.pin.take() else {
            return;
        };
        for piece in &pin.gpus {
            if let Some(gpu) = self.cluster.gpu_mut(piece) {
                gpu.pinned = false;
            }
        }
        for line in self.queue.lines.values_mut() {
            line.fresh = true;
        }
    }

    /// Sets GPUs aside for the first of all that could have some as servers are now, once it has waited long enough.
    fn refresh_pin(&mut self, now_ms: u64) {
        // Who could have what is the same as long as no server changes.
        if self.pin.as_ref().is_some_and(|it| it.epoch == self.epoch) {
            return;
        }
        let shapes: Vec<Arc<Shape>> = self.queue.lines.keys().cloned().collect();
        let mut heads: BinaryHeap<Reverse<(Entry, usize)>> = BinaryHeap::new();
        for (index, shape) in shapes.iter().enumerate() {
            self.refresh_line(shape);
            heads.extend(self.possible_head(shape).map(|it| Reverse((it, index))));
        }
        while let Some(Reverse((entry, index))) = heads.pop() {
            let has_pin = self.pin.as_ref().is_some_and(|it| it.lease == entry.1);
            if has_pin || !self.is_patient(now_ms, entry.1) {
                break;
            }
            let shape = &shapes[index];
            let gpus = self.closest_for(shape);
            if !self.set_aside_if_over(now_ms, shape, entry, &gpus) {
                self.set_pin(entry.1, gpus);
                break;
            }
            heads.extend(self.possible_head(shape).map(|it| Reverse((it, index))));
        }
        let epoch = self.epoch;
        if let Some(pin) = &mut self.pin {
            pin.epoch = epoch;
        }
    }

    /// Whether it has waited so long that GPUs may be set aside for it.
    fn is_patient(&self, now_ms: u64, id: LeaseId) -> bool {
        let queued_ms = self.leases.get(&id).map_or(now_ms, |lease| lease.queued_ms);
        now_ms.saturating_sub(queued_ms) >= self.meta.settings.patience_ms
    }

    /// The first of a line whose requests servers could grant if nobody else had anything.
    fn possible_head(&mut self, shape: &Shape) -> Option<Entry> {
        let line = self.queue.lines.get_mut(shape)?;
        let first = line.waiting.first().copied()?;
        // Looked at when somebody has to wait, and not for each of those who need not: it takes longer than to place one.
        let possible = line
            .possible
            .unwrap_or_else(|| !closest(&self.cluster, &wanted(shape, line, true)).is_empty());
        line.possible = Some(possible);
        possible.then_some(first)
    }

    fn closest_for(&self, shape: &Shape) -> Vec<Piece> {
        let line = self.queue.lines.get(shape);
        line.map_or_else(Vec::new, |line| {
            closest(&self.cluster, &wanted(shape, line, true))
        })
    }

    fn set_pin(&mut self, lease: LeaseId, gpus: Vec<Piece>) {
        self.drop_pin();
        for piece in &gpus {
            if let Some(gpu) = self.cluster.gpu_mut(piece) {
                gpu.pinned = true;
            }
        }
        self.pin = Some(Pin {
            lease,
            gpus,
            epoch: self.epoch,
        });
    }
}

fn wanted<'a>(shape: &Shape, line: &'a Line, may_use_pinned: bool) -> Wanted<'a> {
    Wanted {
        need: shape.need,
        eligible: &line.eligible,
        same_server: shape.same_server,
        near: &line.near,
        may_use_pinned,
    }
}

/// A placement that uses one of these servers, or spans several.
fn find(cluster: &Cluster, wanted: &Wanted<'_>, servers: &[ServerId]) -> Option<Vec<Piece>> {
    let single = servers
        .iter()
        .find_map(|server| on_server(cluster, *server, wanted));
    if single.is_some() || servers.is_empty() || wanted.same_server || wanted.need.gpus < 2 {
        return single;
    }
    place(cluster, wanted)
}

/// The GPUs that are closest to being free enough: on one server if one could do, else on several.
fn closest(cluster: &Cluster, wanted: &Wanted<'_>) -> Vec<Piece> {
    let count = usize::from(wanted.need.gpus);
    let mut best: Option<(u32, Vec<(u32, Piece)>)> = None;
    let mut everywhere = Vec::new();
    for (server, node) in cluster.iter().filter(|(_, node)| node.open) {
        let mut here = missing_on(node, server, wanted);
        here.sort_by_key(|(missing, piece)| (*missing, piece.gpu));
        if !wanted.same_server {
            everywhere.extend(here.iter().copied());
        }
        if here.len() < count {
            continue;
        }
        here.truncate(count);
        let sum = here.iter().map(|(missing, _)| missing).sum();
        if best.as_ref().is_none_or(|(least, _)| sum < *least) {
            best = Some((sum, here));
        }
    }
    let chosen = best.map(|(_, here)| here).unwrap_or_else(|| {
        everywhere.sort_by_key(|(missing, piece)| (*missing, piece.server, piece.gpu));
        on_few_servers(everywhere, count)
    });
    if chosen.len() < count {
        return Vec::new();
    }
    chosen.into_iter().map(|(_, piece)| piece).collect()
}

/// The first of these, best first, on as many servers as a lease may have: where those do not suffice, on the servers with the most.
fn on_few_servers(best_first: Vec<(u32, Piece)>, count: usize) -> Vec<(u32, Piece)> {
    let chosen = |servers: &BTreeSet<ServerId>| {
        let there = best_first.iter();
        let there = there.filter(|(_, piece)| servers.contains(&piece.server));
        there.take(count).copied().collect::<Vec<_>>()
    };
    let mut rooms: BTreeMap<ServerId, usize> = BTreeMap::new();
    let mut first = BTreeSet::new();
    for (_, piece) in &best_first {
        *rooms.entry(piece.server).or_default() += 1;
        if first.len() < LEASE_SERVERS_MAX {
            first.insert(piece.server);
        }
    }
    let near = chosen(&first);
    if near.len() >= count {
        return near;
    }
    let mut largest: Vec<(usize, ServerId)> = rooms.iter().map(|(id, room)| (*room, *id)).collect();
    largest.sort_unstable_by_key(|(room, id)| (Reverse(*room), *id));
    let largest = largest.into_iter().take(LEASE_SERVERS_MAX);
    chosen(&largest.map(|(_, id)| id).collect())
}

/// For each GPU that could do: how far it is from being free enough.
fn missing_on(node: &Node, server: ServerId, wanted: &Wanted<'_>) -> Vec<(u32, Piece)> {
    let bits = wanted.eligible.of(server);
    if bits == 0 {
        return Vec::new();
    }
    let could = |(index, gpu): &(usize, &Gpu)| {
        bits >> index & 1 == 1 && gpu.healthy && gpu.could_fit(&wanted.need)
    };
    let gpus = node.gpus.iter().take(64).enumerate().filter(could);
    gpus.map(|(index, gpu)| {
        let memory_bytes = wanted.need.memory_on(gpu.memory_total_bytes);
        let share = wanted
            .need
            .share_permille
            .saturating_sub(gpu.share_free_permille);
        let memory = u128::from(memory_bytes.saturating_sub(gpu.memory_free_bytes))
            * u128::from(WHOLE_PERMILLE)
            / u128::from(gpu.memory_total_bytes.max(1));
        let piece = Piece {
            server,
            gpu: u16::try_from(index).unwrap_or(0),
            share_permille: wanted.need.share_permille,
            memory_bytes,
        };
        let memory = u32::try_from(memory).unwrap_or(u32::MAX / 64);
        (u32::from(share) + memory, piece)
    })
    .collect()
}
