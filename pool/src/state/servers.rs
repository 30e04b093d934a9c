//! Servers: joining, renewing, draining, leaving.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::dispatch::Touched;
use super::tokens::check_name;
use crate::alloc::Gpu;
use crate::model::{GpuFacts, LeaseId, SERVER_GPUS_MAX, ServerFacts, ServerId, Stage};
use crate::state::{Key, Lease, Load, Pool, Refusal, Server};

/// Longest name of a server, a model and so on.
const NAME_BYTES_MAX: usize = 200;
/// Addresses of a server.
const ADDRESSES_MAX: usize = 16;
/// Memory of a GPU.
const MEMORY_BYTES_MAX: u64 = 1 << 50;

/// A server is to end a lease: refuse what comes with it, end its sessions, and confirm.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct EndOrder {
    /// Which.
    pub lease: LeaseId,
    /// Why, for the log and the client.
    pub reason: String,
}

/// A server that has joined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Its number.
    pub server: ServerId,
    /// Whether it is new to the pool.
    pub new: bool,
}

impl Pool {
    /// A server joins with a join token, of which that is one use. A server that is refused uses nothing up.
    ///
    /// # Errors
    /// The token is unknown, expired or used up; as [`Pool::register`].
    pub fn join(
        &mut self,
        now_ms: u64,
        token_hash: &str,
        credential_hash: &str,
        facts: ServerFacts,
    ) -> Result<Registration, Refusal> {
        let id = self.usable_join_token(now_ms, token_hash)?;
        let registration = self.register(now_ms, None, credential_hash, facts)?;
        if let Some(join) = self.joins.get_mut(&id) {
            join.uses_left = join.uses_left.saturating_sub(1);
        }
        self.mark(Key::Join(id));
        Ok(registration)
    }

    fn usable_join_token(&self, now_ms: u64, token_hash: &str) -> Result<u32, Refusal> {
        let unknown = || Refusal::Unauthorized("this join token is not known".to_owned());
        let found = self
            .joins
            .iter()
            .find(|(_, join)| join.token_hash == token_hash);
        let (id, join) = found.ok_or_else(unknown)?;
        if join.expires_ms <= now_ms {
            return Err(Refusal::Unauthorized(
                "this join token has expired".to_owned(),
            ));
        }
        if join.uses_left == 0 {
            return Err(Refusal::Unauthorized(
                "this join token is used up".to_owned(),
            ));
        }
        Ok(*id)
    }

    /// The server that has this credential.
    #[must_use]
    pub fn server_by_credential(&self, hash: &str) -> Option<ServerId> {
        // Blake3 of a random secret: comparing hashes tells nothing about the secret.
        let found = self
            .servers
            .iter()
            .find(|(_, it)| it.credential_hash == hash);
        found.map(|(id, _)| *id)
    }

    /// A server joins, or comes back: `known` is the one that its credential names.
    ///
    /// # Errors
    /// A field that cannot be; another server has the name and is up; the pool has forgotten the one that it was.
    pub fn register(
        &mut self,
        now_ms: u64,
        known: Option<ServerId>,
        credential_hash: &str,
        facts: ServerFacts,
    ) -> Result<Registration, Refusal> {
        check_facts(&facts)?;
        let named = self.server_names.get(&facts.name).copied();
        let id = match (known, named) {
            // Between its first word and now an administrator has removed it.
            (Some(known), _) if !self.servers.contains_key(&known) => return Err(unknown()),
            (Some(known), Some(named)) if known != named => return Err(taken(&facts.name)),
            (Some(known), _) => known,
            (None, Some(named)) if self.servers.get(&named).is_some_and(|it| it.up) => {
                return Err(taken(&facts.name));
            }
            (None, Some(named)) => named,
            (None, None) => ServerId(self.meta.next_server),
        };
        let new = !self.servers.contains_key(&id);
        if new {
            self.meta.next_server = id.0 + 1;
            self.mark(Key::Meta);
            self.servers.insert(id, joined(now_ms, &facts));
        }
        let name = facts.name.clone();
        let lost = self.update_facts(id, facts);
        if let Some(server) = self.servers.get_mut(&id) {
            server.credential_hash = credential_hash.to_owned();
            server.up = true;
            server.seen_ms = now_ms;
            server.load = Load::default();
        }
        for lease in lost {
            let reason = format!("a GPU of {name} is gone or failed");
            self.end(now_ms, lease, "pool", &reason);
        }
        self.mark(Key::Server(id));
        self.note(
            now_ms,
            &name,
            "server.register",
            &name,
            if new { "new" } else { "back" },
        );
        self.sync_node(id);
        self.dispatch(now_ms, Touched::Servers(&[id]));
        Ok(Registration { server: id, new })
    }

    /// A server is there, says what it does, and what it has ended.
    ///
    /// # Errors
    /// No such server.
    pub fn renew_server(
        &mut self,
        now_ms: u64,
        id: ServerId,
        mut load: Load,
        ended: &[LeaseId],
    ) -> Result<(), Refusal> {
        let no_server = || Refusal::NotFound("the server is not registered".to_owned());
        let server = self.servers.get_mut(&id).ok_or_else(no_server)?;
        server.seen_ms = now_ms;
        let came_back = !std::mem::replace(&mut server.up, true);
        load.tidy(&server.facts.gpus);
        // Of leases that it does not name, nothing runs there.
        for lease in &server.holds {
            if let Some(lease) = self.leases.get_mut(lease) {
                lease.sessions.remove(&id);
            }
        }
        for used in &load.leases {
            if let Some(lease) = self.leases.get_mut(&used.lease) {
                lease.sessions.insert(id, used.sessions);
                if used.sessions > 0 {
                    let active_ms = now_ms.saturating_sub(used.idle_ms);
                    lease.active_ms = lease.active_ms.max(active_ms);
                }
            }
        }
        server.load = load;
        for lease in ended {
            self.confirm(*lease, id);
        }
        let has_lost = self.lose_gpus(now_ms, id);
        if came_back {
            self.mark(Key::Server(id));
            self.sync_node(id);
            let name = self.name_of(id);
            self.note(now_ms, &name, "server.up", &name, "answers again");
        }
        if came_back || has_lost || !ended.is_empty() {
            self.dispatch(now_ms, Touched::Servers(&[id]));
        }
        Ok(())
    }

    /// What the server has to end: leases that are over, and those it should not have.
    #[must_use]
    pub fn orders(&self, id: ServerId) -> Vec<EndOrder> {
        let Some(server) = self.servers.get(&id) else {
            return Vec::new();
        };
        let order = |lease: LeaseId| {
            let found = self.leases.get(&lease);
            let reason = match found {
                Some(found) if found.stage == Stage::Held && holds(found, id) => return None,
                Some(found) => found.end.as_ref().map(|end| end.reason.clone()),
                None => None,
            };
            let reason = reason.unwrap_or_else(|| "the pool knows no such lease".to_owned());
            Some(EndOrder { lease, reason })
        };
        let reported = server
            .load
            .leases
            .iter()
            .filter(|used| used.sessions > 0)
            .map(|used| used.lease);
        let suspects: BTreeSet<LeaseId> = server.holds.iter().copied().chain(reported).collect();
        suspects.into_iter().filter_map(order).collect()
    }

    /// Leases that ended so short ago that a grant for them may still be valid: a server that has just
    /// started must refuse them.
    #[must_use]
    pub fn recently_ended(&self, id: ServerId) -> Vec<EndOrder> {
        let ended = self.leases.iter().filter_map(|(lease, found)| {
            let end = found.end.as_ref()?;
            holds(found, id).then(|| EndOrder {
                lease: *lease,
                reason: end.reason.clone(),
            })
        });
        ended.collect()
    }

    /// Grants nothing more on a server, or again.
    ///
    /// # Errors
    /// No such server.
    pub fn drain(
        &mut self,
        now_ms: u64,
        name: &str,
        draining: bool,
        actor: &str,
    ) -> Result<(), Refusal> {
        let id = self.server_named(name)?;
        if let Some(server) = self.servers.get_mut(&id) {
            server.draining = draining;
        }
        self.mark(Key::Server(id));
        let action = if draining { "drain" } else { "undrain" };
        self.note(now_ms, actor, action, name, "");
        self.sync_node(id);
        self.dispatch(now_ms, Touched::Servers(&[id]));
        Ok(())
    }

    /// Forgets a server; what is held on it ends.
    ///
    /// # Errors
    /// No such server; it is up.
    pub fn remove_server(&mut self, now_ms: u64, name: &str, actor: &str) -> Result<(), Refusal> {
        let id = self.server_named(name)?;
        if self.servers.get(&id).is_some_and(|server| server.up) {
            return Err(Refusal::Conflict(format!(
                "{name} is up; stop it there first, or drain it"
            )));
        }
        let holds = self.servers.get(&id).map(|it| it.holds.clone());
        for lease in holds.unwrap_or_default() {
            self.end(now_ms, lease, actor, &format!("{name} was removed"));
            self.confirm(lease, id);
        }
        self.servers.remove(&id);
        self.server_names.remove(name);
        self.mark(Key::Server(id));
        self.note(now_ms, actor, "server.remove", name, "");
        self.sync_node(id);
        self.dispatch_fresh(now_ms);
        Ok(())
    }

    /// Fingerprints of the certificates of a lease's servers, by their names.
    pub(crate) fn certificates(&self, id: LeaseId) -> BTreeMap<String, String> {
        let pieces = self.leases.get(&id).map(|lease| &lease.pieces);
        let servers = pieces.into_iter().flatten();
        let servers = servers.filter_map(|piece| self.servers.get(&piece.server));
        servers
            .map(|server| (server.facts.name.clone(), server.facts.tls.clone()))
            .collect()
    }

    pub(crate) fn server_named(&self, name: &str) -> Result<ServerId, Refusal> {
        let found = self.server_names.get(name).copied();
        found.ok_or_else(|| Refusal::NotFound(format!("no server {name:?}")))
    }

    pub(crate) fn name_of(&self, id: ServerId) -> String {
        let server = self.servers.get(&id);
        server.map_or_else(String::new, |server| server.facts.name.clone())
    }

    /// Marks a silent server down; what is held on it ends.
    pub(super) fn server_down(&mut self, now_ms: u64, id: ServerId) {
        let Some(server) = self.servers.get_mut(&id) else {
            return;
        };
        server.up = false;
        let (name, holds) = (server.facts.name.clone(), server.holds.clone());
        self.mark(Key::Server(id));
        self.sync_node(id);
        self.note(now_ms, "pool", "server.down", &name, "it does not answer");
        for lease in holds {
            let reason = format!("server {name} does not answer");
            self.end(now_ms, lease, "pool", &reason);
        }
    }

    /// Takes GPUs out of use of which the server says that they are lost; what is held of them ends. Whether there are such.
    fn lose_gpus(&mut self, now_ms: u64, id: ServerId) -> bool {
        let Some(server) = self.servers.get_mut(&id) else {
            return false;
        };
        let now = &server.load.gpus;
        let mut lost = Vec::new();
        for (index, gpu) in server.facts.gpus.iter_mut().enumerate() {
            if gpu.healthy && now.get(index).is_some_and(|now| now.is_lost) {
                gpu.healthy = false;
                lost.push(index);
            }
        }
        if lost.is_empty() {
            return false;
        }
        let name = server.facts.name.clone();
        for lease in self.without_gpu(id) {
            let reason = format!("a GPU of {name} is gone or failed");
            self.end(now_ms, lease, "pool", &reason);
        }
        for index in lost {
            let detail = format!("GPU {index} does not answer");
            self.note(now_ms, &name, "gpu.lost", &name, detail);
        }
        self.mark(Key::Server(id));
        self.sync_node(id);
        true
    }

    /// Leases that hold a part of a GPU which cannot be used any more.
    fn without_gpu(&self, id: ServerId) -> Vec<LeaseId> {
        let Some(server) = self.servers.get(&id) else {
            return Vec::new();
        };
        let lost = |lease: &&LeaseId| {
            let pieces = self.leases.get(lease).map(|lease| &lease.pieces);
            pieces.into_iter().flatten().any(|piece| {
                let gpu = server.facts.gpus.get(usize::from(piece.gpu));
                piece.server == id && gpu.is_none_or(|gpu| !gpu.healthy)
            })
        };
        server.holds.iter().filter(lost).copied().collect()
    }

    /// Numbers of a server's GPUs of which something is held.
    fn held_places(&self, id: ServerId) -> BTreeSet<usize> {
        let holds = self.servers.get(&id).map(|server| &server.holds);
        let leases = holds.into_iter().flatten();
        let leases = leases.filter_map(|lease| self.leases.get(lease));
        let pieces = leases.flat_map(Lease::unconfirmed);
        let own = pieces.filter(|piece| piece.server == id);
        own.map(|piece| usize::from(piece.gpu)).collect()
    }

    /// Takes a server's facts over; GPUs keep their numbers while something is held of them. Leases that have lost a GPU.
    fn update_facts(&mut self, id: ServerId, mut facts: ServerFacts) -> Vec<LeaseId> {
        let held = self.held_places(id);
        let Some(server) = self.servers.get_mut(&id) else {
            return Vec::new();
        };
        let mut reported = std::mem::take(&mut facts.gpus);
        let known = server.facts.gpus.iter().map(|old| {
            // One whose memory has changed is another: what was held of it does not fit it.
            let same =
                |gpu: &GpuFacts| gpu.uuid == old.uuid && gpu.memory_bytes == old.memory_bytes;
            let found = reported.iter().position(same);
            found.map(|at| reported.remove(at))
        });
        let known: Vec<Option<GpuFacts>> = known.collect();
        let mut others = reported.into_iter();
        let places = known.into_iter().zip(&server.facts.gpus).enumerate();
        let places = places.map(|(at, (gpu, old))| {
            // Only what is held needs the place of a GPU that is gone.
            let another = || {
                if held.contains(&at) {
                    None
                } else {
                    others.next()
                }
            };
            gpu.or_else(another).unwrap_or_else(|| GpuFacts {
                healthy: false,
                ..old.clone()
            })
        });
        let mut gpus: Vec<GpuFacts> = places.collect();
        gpus.extend(others);
        gpus.truncate(SERVER_GPUS_MAX);
        facts.gpus = gpus;
        self.server_names.remove(&server.facts.name);
        self.server_names.insert(facts.name.clone(), id);
        server.facts = facts;
        self.without_gpu(id)
    }

    /// Makes the allocator's entry of a server anew, of what is known and held.
    pub(super) fn sync_node(&mut self, id: ServerId) {
        self.epoch += 1;
        let touches_pin = |pin: &super::Pin| pin.gpus.iter().any(|piece| piece.server == id);
        if self.pin.as_ref().is_some_and(touches_pin) {
            self.drop_pin();
        }
        let Some(server) = self.servers.get(&id) else {
            self.cluster.node_mut(id).gpus.clear();
            self.cluster.node_mut(id).open = false;
            return;
        };
        let (switch, open) = (server.facts.switch.clone(), server.up && !server.draining);
        let gpus = server.facts.gpus.iter();
        let gpus: Vec<Gpu> = gpus
            .map(|gpu| Gpu::new(gpu.memory_bytes, gpu.healthy))
            .collect();
        let held: Vec<_> = server
            .holds
            .iter()
            .filter_map(|lease| self.leases.get(lease))
            .flat_map(Lease::unconfirmed)
            .filter(|piece| piece.server == id)
            .collect();
        let switch = self.switch_numbers(&switch);
        let node = self.cluster.node_mut(id);
        node.gpus = gpus;
        node.open = open;
        node.switch = switch;
        self.cluster.take(&held);
    }

    pub(super) fn switch_numbers(&mut self, path: &str) -> Vec<u32> {
        let mut prefix = String::new();
        let mut numbers = Vec::new();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            prefix.push('/');
            prefix.push_str(part);
            let next = u32::try_from(self.switches.len()).unwrap_or(u32::MAX);
            numbers.push(*self.switches.entry(prefix.clone()).or_insert(next));
        }
        numbers
    }
}

fn holds(lease: &Lease, server: ServerId) -> bool {
    lease.pieces.iter().any(|piece| piece.server == server)
}

/// A server that is told so forgets its credential, and may join again.
pub(crate) fn unknown() -> Refusal {
    Refusal::Unauthorized("the pool does not know this server any more".to_owned())
}

fn taken(name: &str) -> Refusal {
    Refusal::Conflict(format!(
        "another server called {name:?} is up; give this one another --name"
    ))
}

fn joined(now_ms: u64, facts: &ServerFacts) -> Server {
    Server {
        facts: ServerFacts {
            gpus: Vec::new(),
            ..facts.clone()
        },
        credential_hash: String::new(),
        draining: false,
        up: true,
        joined_ms: now_ms,
        seen_ms: now_ms,
        holds: BTreeSet::new(),
        load: Load::default(),
        version: 1,
    }
}

fn check_facts(facts: &ServerFacts) -> Result<(), Refusal> {
    let bad = |field: String, detail: &str| {
        let field = format!("server.{field}");
        Err(Refusal::field(field, detail))
    };
    let is_short = |text: &str| text.len() <= NAME_BYTES_MAX && !text.contains(char::is_control);
    let is_name = |text: &str| !text.is_empty() && is_short(text);
    // It stands in paths of the interface, and in lists on command lines.
    check_name("server.name", &facts.name, NAME_BYTES_MAX)?;
    for (field, text) in [
        ("kind", &facts.kind),
        ("driver_version", &facts.driver_version),
        ("cuda_version", &facts.cuda_version),
        ("switch", &facts.switch),
        ("version", &facts.version),
        ("tls", &facts.tls),
    ] {
        if !is_short(text) {
            return bad(field.to_owned(), "too long, or with control characters");
        }
    }
    if facts.addresses.is_empty() || facts.addresses.len() > ADDRESSES_MAX {
        return bad("addresses".to_owned(), "there must be 1 to 16");
    }
    for (index, it) in facts.addresses.iter().enumerate() {
        for (field, text) in [("network", &it.network), ("address", &it.address)] {
            if !is_name(text) {
                let field = format!("addresses[{index}].{field}");
                return bad(field, "empty, too long, or with control characters");
            }
        }
    }
    if facts.gpus.is_empty() || facts.gpus.len() > SERVER_GPUS_MAX {
        return bad("gpus".to_owned(), "there must be 1 to 64");
    }
    let mut uuids = BTreeSet::new();
    for (index, gpu) in facts.gpus.iter().enumerate() {
        let of_gpu = |field: &str| format!("gpus[{index}].{field}");
        if !is_name(&gpu.uuid) || !uuids.insert(&gpu.uuid) {
            return bad(of_gpu("uuid"), "empty, too long, or there twice");
        }
        if !is_short(&gpu.name) {
            return bad(of_gpu("name"), "too long, or with control characters");
        }
        if gpu.memory_bytes == 0 || gpu.memory_bytes > MEMORY_BYTES_MAX {
            return bad(of_gpu("memory_bytes"), "a size that no GPU has");
        }
    }
    Ok(())
}
