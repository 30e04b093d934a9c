//! Requests and what becomes of them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::alloc::Tag;
use crate::alloc::queue::Shape;
use crate::model::{
    ASK_GPUS_MAX, Ask, ClientId, LEASE_SERVERS_MAX, LeaseId, Piece, Purpose, ServerId, Stage,
    WHOLE_PERMILLE,
};
use crate::state::{End, Key, Lease, Pool, Refusal, Topic};

/// What one step of priority is worth.
const PRIORITY_MS: i64 = 300_000;
/// How much later a client's next request counts as having come while this one waits, per whole GPU that it asks for.
const SPACING_MS: i64 = 10_000;
/// Longest label.
const LABEL_BYTES_MAX: usize = 200;
/// Longest key of a request.
const KEY_BYTES_MAX: usize = 64;
/// Filters and server names of a request.
const CONDITIONS_MAX: usize = 64;
/// Requests and leases of one client.
const CLIENT_LEASES_MAX: usize = 10_000;

/// What became of a request at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskOutcome {
    /// Its lease.
    pub lease: LeaseId,
    /// Whether it has its GPUs already.
    pub granted: bool,
}

impl Pool {
    /// Takes a request. Without `wait` it is granted now or refused. One that has come before, by its key, is what it was.
    ///
    /// # Errors
    /// The key of another request; a field that cannot be, over a quota, would never fit; or nothing free and `wait` is false.
    pub fn ask(
        &mut self,
        now_ms: u64,
        client: ClientId,
        ask: Ask,
        wait: bool,
    ) -> Result<AskOutcome, Refusal> {
        check_fields(&ask)?;
        if let Some(known) = self.asked_before(client, &ask)? {
            return Ok(known);
        }
        self.check_alone(client, &ask)?;
        let memory_max = self.memory_max(client, &ask);
        let shape = Arc::new(Shape::of(&ask, memory_max));
        self.check_could_fit(&ask, &shape)?;
        if !wait {
            self.check_now(now_ms, client, &ask)?;
        }
        let owner = self.clients.get_mut(&client);
        let owner = owner.ok_or_else(|| Refusal::NotFound("no such client".to_owned()))?;
        if owner.leases.len() >= CLIENT_LEASES_MAX {
            return Err(Refusal::Busy(format!(
                "{} has {CLIENT_LEASES_MAX} requests and leases already",
                owner.name
            )));
        }
        let tag_before = owner.next_tag;
        let tag = self.tag(now_ms, client, &ask);
        let id = LeaseId(self.meta.next_lease + 1);
        self.meta.next_lease += 1;
        self.keep_key(client, &ask.key, id);
        let lease = queued(now_ms, client, ask, memory_max, tag);
        self.leases.insert(id, lease);
        self.queue.join(shape.clone(), (tag, id));
        if let Some(owner) = self.clients.get_mut(&client) {
            owner.leases.insert(id);
            owner.waiting += 1;
        }
        let granted = self.try_line(now_ms, &shape, id);
        if !granted && !wait {
            let refusal = self.why_not(id);
            self.forget_request(id, &shape, (tag, id), tag_before);
            return Err(refusal);
        }
        if granted && let Some(owner) = self.clients.get_mut(&client) {
            // Nobody had to wait for what it got.
            owner.next_tag = tag_before;
        }
        self.mark(Key::Meta);
        // Where its next request stands.
        self.mark(Key::Client(client));
        self.mark(Key::Lease(id));
        Ok(AskOutcome { lease: id, granted })
    }

    /// A client is there, and may know of this lease.
    ///
    /// # Errors
    /// No such lease of this client.
    pub fn renew(&mut self, now_ms: u64, client: ClientId, id: LeaseId) -> Result<(), Refusal> {
        let lease = self.leases.get_mut(&id).filter(|it| it.client == client);
        let lease = lease.ok_or_else(|| no_lease(id))?;
        lease.seen_ms = now_ms;
        Ok(())
    }

    /// A client knows that it has this reservation: it looks at it, or renews it, after it was granted.
    pub fn acknowledge(&mut self, client: ClientId, id: LeaseId) {
        let lease = self.leases.get_mut(&id);
        let lease = lease.filter(|it| it.client == client && it.stage == Stage::Held);
        let is_news = |it: &&mut Lease| !it.acknowledged && it.ask.purpose == Purpose::Reservation;
        if let Some(lease) = lease.filter(is_news) {
            lease.acknowledged = true;
            self.mark(Key::Lease(id));
        }
    }

    /// The client does not want it any more, or an administrator takes it (`client` is `None` then).
    ///
    /// # Errors
    /// No such lease of this client.
    pub fn release(
        &mut self,
        now_ms: u64,
        client: Option<ClientId>,
        id: LeaseId,
        actor: &str,
        reason: &str,
    ) -> Result<(), Refusal> {
        let lease = self.leases.get(&id);
        let lease = lease.filter(|lease| client.is_none_or(|client| client == lease.client));
        if lease.is_none() {
            return Err(no_lease(id));
        }
        self.end(now_ms, id, actor, reason);
        self.dispatch_fresh(now_ms);
        Ok(())
    }

    /// Ends a lease: nothing may be opened with it any more, and its servers end what runs.
    pub(super) fn end(&mut self, now_ms: u64, id: LeaseId, actor: &str, reason: &str) {
        let Some(lease) = self.leases.get_mut(&id) else {
            return;
        };
        let (before, client, tag) = (lease.stage, lease.client, lease.tag);
        if matches!(before, Stage::Ending | Stage::Ended) {
            return;
        }
        lease.end = Some(End {
            reason: reason.to_owned(),
            at_ms: now_ms,
        });
        let pieces = lease.pieces.clone();
        let shape = lease.shape();
        self.keys.remove(&(client, lease.ask.key.clone()));
        lease.stage = if before == Stage::Queued {
            Stage::Ended
        } else {
            Stage::Ending
        };
        self.mark(Key::Lease(id));
        if let Some(client) = self.clients.get_mut(&client) {
            client.leases.remove(&id);
        }
        self.wake(Topic::Lease(id));
        if before == Stage::Queued {
            self.leave_queue(&shape, client, (tag, id));
            if self.pin.as_ref().is_some_and(|pin| pin.lease == id) {
                self.unpin(now_ms);
            }
        } else {
            self.discharge(now_ms, client, &pieces);
            let servers: BTreeSet<ServerId> = pieces.iter().map(|piece| piece.server).collect();
            for server in servers {
                self.wake(Topic::Server(server));
            }
            self.requeue_over_quota(client);
        }
        self.note(now_ms, actor, "end", id.to_string(), reason);
    }

    /// A server confirms that nothing of this lease runs there, nor can: its pieces are free.
    pub(super) fn confirm(&mut self, id: LeaseId, server: ServerId) {
        let Some(lease) = self
            .leases
            .get_mut(&id)
            .filter(|lease| lease.stage == Stage::Ending)
        else {
            return;
        };
        let freed: Vec<Piece> = lease
            .unconfirmed()
            .filter(|piece| piece.server == server)
            .collect();
        if freed.is_empty() {
            return;
        }
        lease.confirmed.insert(server);
        if lease.unconfirmed().next().is_none() {
            lease.stage = Stage::Ended;
        }
        for piece in &freed {
            self.cluster.give_back(piece);
        }
        if let Some(server) = self.servers.get_mut(&server) {
            server.holds.remove(&id);
        }
        self.mark(Key::Lease(id));
    }

    /// The lease of a request that has come before: its answer was lost, or the node that it was sent to.
    fn asked_before(&self, client: ClientId, ask: &Ask) -> Result<Option<AskOutcome>, Refusal> {
        let Some(id) = self.keys.get(&(client, ask.key.clone())).copied() else {
            return Ok(None);
        };
        match self.leases.get(&id) {
            Some(lease) if lease.ask == *ask => Ok(Some(AskOutcome {
                lease: id,
                granted: lease.stage == Stage::Held,
            })),
            _ => Err(Refusal::field(
                "key",
                format!("it is that of another request, {id}"),
            )),
        }
    }

    fn keep_key(&mut self, client: ClientId, key: &str, id: LeaseId) {
        if !key.is_empty() {
            self.keys.insert((client, key.to_owned()), id);
        }
    }

    fn tag(&mut self, now_ms: u64, client: ClientId, ask: &Ask) -> Tag {
        let priority = i64::from(self.quota_of(client).priority.unwrap_or(0).clamp(-10, 10));
        let cost = SPACING_MS * i64::from(ask.gpus) * i64::from(ask.share_permille)
            / i64::from(WHOLE_PERMILLE);
        let now = i64::try_from(now_ms).unwrap_or(i64::MAX / 2);
        let Some(client) = self.clients.get_mut(&client) else {
            return now;
        };
        // What it wanted in the past counts as long as it waits for some of it.
        let came = match client.waiting {
            0 => now,
            _ => client.next_tag.max(now),
        };
        client.next_tag = came + cost.max(1);
        came - priority * PRIORITY_MS
    }

    /// Whether an empty pool of the servers that have joined could ever grant this.
    fn check_could_fit(&self, ask: &Ask, shape: &Shape) -> Result<(), Refusal> {
        for name in &ask.servers {
            if !self.server_names.contains_key(name) {
                return Err(Refusal::field(
                    "servers",
                    format!("no server {name:?} has joined"),
                ));
            }
        }
        let eligible = self.eligible(ask, shape);
        let mut counts = Vec::new();
        for (server, node) in self.cluster.iter() {
            let bits = eligible.of(server);
            let could = |(index, gpu): &(usize, &crate::alloc::Gpu)| {
                *index < 64 && bits >> index & 1 == 1 && gpu.could_fit(&shape.need)
            };
            let count = node.gpus.iter().enumerate().filter(could).count();
            counts.push(count);
        }
        counts.sort_unstable_by(|one, other| other.cmp(one));
        let sum: usize = counts.iter().sum();
        let most = counts.first().copied().unwrap_or(0);
        let together: usize = counts.iter().take(LEASE_SERVERS_MAX).sum();
        let wanted = usize::from(ask.gpus);
        if sum < wanted {
            let quota = shape
                .gpu_memory_bytes_max
                .map_or("", |_| ", within the memory quota");
            return Err(Refusal::NeverFits(format!(
                "{wanted} GPUs like that are wanted{quota}, and the pool has {sum}, used ones included"
            )));
        }
        if together < wanted {
            return Err(Refusal::NeverFits(format!(
                "{wanted} GPUs like that are wanted, and no {LEASE_SERVERS_MAX} servers, as many as one program can use, have more than {together}"
            )));
        }
        if ask.same_server && most < wanted {
            return Err(Refusal::NeverFits(format!(
                "{wanted} GPUs like that are wanted on one server, and no server has more than {most}"
            )));
        }
        Ok(())
    }

    fn why_not(&self, id: LeaseId) -> Refusal {
        if let Some(over) = self.leases.get(&id).and_then(|it| it.over_quota.clone()) {
            return Refusal::Quota(over);
        }
        let waiting = self.queue.len().saturating_sub(1);
        Refusal::Busy(format!(
            "no GPUs like that are free now; {waiting} requests wait"
        ))
    }

    /// It waits no more.
    pub(super) fn leave_queue(&mut self, shape: &Shape, client: ClientId, entry: (Tag, LeaseId)) {
        self.queue.leave(shape, client, entry);
        if let Some(client) = self.clients.get_mut(&client) {
            client.waiting = client.waiting.saturating_sub(1);
        }
    }

    /// As if it had never been.
    fn forget_request(&mut self, id: LeaseId, shape: &Shape, entry: (Tag, LeaseId), tag: Tag) {
        let Some(lease) = self.leases.remove(&id) else {
            return;
        };
        self.meta.next_lease = id.0.saturating_sub(1);
        self.leave_queue(shape, lease.client, entry);
        self.keys.remove(&(lease.client, lease.ask.key));
        if let Some(client) = self.clients.get_mut(&lease.client) {
            client.leases.remove(&id);
            client.next_tag = tag;
        }
    }
}

pub(super) fn no_lease(id: LeaseId) -> Refusal {
    Refusal::NotFound(format!("no lease {id}"))
}

fn queued(
    now_ms: u64,
    client: ClientId,
    ask: Ask,
    gpu_memory_bytes_max: Option<u64>,
    tag: Tag,
) -> Lease {
    Lease {
        client,
        ask,
        gpu_memory_bytes_max,
        stage: Stage::Queued,
        tag,
        queued_ms: now_ms,
        granted_ms: None,
        expires_ms: None,
        pieces: Vec::new(),
        confirmed: BTreeSet::new(),
        end: None,
        acknowledged: false,
        seen_ms: now_ms,
        active_ms: now_ms,
        warning: None,
        sessions: BTreeMap::new(),
        version: 1,
        over_quota: None,
    }
}

fn check_fields(ask: &Ask) -> Result<(), Refusal> {
    let bad = |field, detail: String| Err(Refusal::field(field, detail));
    if ask.gpus == 0 || ask.gpus > ASK_GPUS_MAX {
        return bad("gpus", format!("{} is not 1 to {ASK_GPUS_MAX}", ask.gpus));
    }
    if ask.share_permille == 0 || ask.share_permille > WHOLE_PERMILLE {
        return bad(
            "share_permille",
            format!("{} is not 1 to {WHOLE_PERMILLE}", ask.share_permille),
        );
    }
    if ask.memory_bytes == Some(0) {
        return bad("memory_bytes", "0 bytes are of no use".to_owned());
    }
    if ask.filters.len() > CONDITIONS_MAX {
        return bad("filters", format!("more than {CONDITIONS_MAX}"));
    }
    if ask.servers.len() > CONDITIONS_MAX {
        return bad("servers", format!("more than {CONDITIONS_MAX}"));
    }
    for (field, text) in [("label", &ask.label), ("near", &ask.near)] {
        if text.len() > LABEL_BYTES_MAX {
            return bad(field, format!("longer than {LABEL_BYTES_MAX} bytes"));
        }
    }
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if ask.key.len() > KEY_BYTES_MAX || !ask.key.chars().all(is_plain) {
        let why = format!("it is not at most {KEY_BYTES_MAX} letters, digits and -_");
        return bad("key", why);
    }
    if ask.hold_ms == Some(0) {
        return bad("hold_ms", "0 ms are of no use".to_owned());
    }
    if ask.idle_ms == Some(0) {
        return bad("idle_ms", "it would be taken back at once".to_owned());
    }
    Ok(())
}
