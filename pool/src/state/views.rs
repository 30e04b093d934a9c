//! What clients, servers, people and pages are shown.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{
    ClientId, LeaseId, NetAddress, Purpose, Quota, ServerId, Stage, WHOLE_PERMILLE,
};
use crate::state::{End, GpuNow, Lease, Load, LogEntry, Pool, Role, Work};

/// A GPU of the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GpuView {
    /// Its server's name.
    pub server: String,
    /// Its number there.
    pub index: u16,
    /// Its UUID.
    pub uuid: String,
    /// Model.
    pub name: String,
    /// Compute capability, 90 for 9.0.
    pub sm: u32,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Memory that nobody holds.
    pub memory_free_bytes: u64,
    /// Share that nobody holds.
    pub share_free_permille: u16,
    /// Whether it answers, as its server said last.
    #[serde(default = "yes")]
    pub healthy: bool,
    /// Whether it can be handed out now: healthy, on a server that is up and not drained.
    pub usable: bool,
    /// Set aside for the request that has waited longest.
    pub set_aside: bool,
    /// Who holds parts of it.
    pub parts: Vec<PartView>,
    /// Memory that programs have allocated; nothing where its server does not say.
    #[serde(default)]
    pub used_bytes: Option<u64>,
    /// How it is now; nothing where its server does not say, or does not answer.
    #[serde(default)]
    pub now: Option<GpuNow>,
}

/// A pool that does not say takes all for healthy.
fn yes() -> bool {
    true
}

/// A part of a GPU that is held.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PartView {
    /// By this lease.
    pub lease: LeaseId,
    /// Of this client.
    pub client: String,
    /// Share.
    pub share_permille: u16,
    /// Memory.
    pub memory_bytes: u64,
}

/// A server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ServerView {
    /// Name.
    pub name: String,
    /// `up`, `draining` or `down`.
    pub state: String,
    /// `cuda`, `soft` or `null`.
    pub kind: String,
    /// Addresses.
    pub addresses: Vec<NetAddress>,
    /// Whether it speaks RDMA.
    pub rdma: bool,
    /// Version of CUDA.
    pub cuda_version: String,
    /// Version of the driver.
    pub driver_version: String,
    /// Place in the network.
    pub switch: String,
    /// Version of farcall.
    pub version: String,
    /// How many GPUs it has.
    pub gpus: usize,
    /// Leases that hold parts of them.
    pub leases: usize,
    /// When it was last heard of.
    pub seen_ms: u64,
    /// What it says of its work.
    pub load: Load,
}

/// A part of a lease, for its client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PieceView {
    /// Name of the server.
    pub server: String,
    /// Where to reach it.
    pub address: String,
    /// The GPU.
    pub uuid: String,
    /// Its model.
    pub name: String,
    /// Share.
    pub share_permille: u16,
    /// Memory.
    pub memory_bytes: u64,
}

/// A lease.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeaseView {
    /// Number; written `L12`.
    pub lease: LeaseId,
    /// Whose.
    pub client: String,
    /// How far it has come.
    pub stage: Stage,
    /// Why.
    pub purpose: Purpose,
    /// What it is for.
    pub label: String,
    /// GPUs wanted.
    pub gpus: u16,
    /// Share wanted of each.
    pub share_permille: u16,
    /// What it has.
    pub pieces: Vec<PieceView>,
    /// When it was asked for.
    pub queued_ms: u64,
    /// When it was granted.
    pub granted_ms: Option<u64>,
    /// When its time is over.
    pub expires_ms: Option<u64>,
    /// When it was last used.
    pub active_ms: u64,
    /// Sessions that are open.
    pub sessions: u32,
    /// Device memory that they have allocated.
    #[serde(default)]
    pub used_bytes: u64,
    /// What they do, on all servers together; nothing where no server says.
    #[serde(default)]
    pub work: Option<Work>,
    /// Place in the queue, from 1.
    pub place: Option<usize>,
    /// Length of the queue.
    pub waiting: usize,
    /// The quota that it waits for.
    pub over_quota: Option<String>,
    /// What will happen to it.
    pub warning: Option<String>,
    /// Why and when it ended.
    pub end: Option<End>,
    /// Rises with each change; to be given as `seen` when waiting for the next.
    pub version: u64,
}

/// A token; its secret is known to nobody but its owner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenView {
    /// Name of the token and its client.
    pub name: String,
    /// What it may do.
    pub role: Role,
    /// Its group.
    pub group: Option<String>,
    /// Whether it is refused.
    pub disabled: bool,
    /// When it was made.
    pub created_ms: u64,
    /// When it expires.
    pub expires_ms: Option<u64>,
    /// Whether it can log in with a password.
    pub has_password: bool,
    /// Its own limits.
    pub quota: Quota,
    /// What holds for it: its own limits, and the pool's where it has none.
    pub limits: Quota,
    /// Shares that it holds.
    pub shares_permille: u64,
    /// Memory that it holds.
    pub memory_bytes: u64,
    /// GPU-seconds used today.
    pub share_seconds_today: u64,
    /// Requests and leases.
    pub leases: usize,
    /// What its sessions do; nothing where no server says.
    #[serde(default)]
    pub work: Option<Work>,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct GroupView {
    /// Name.
    pub name: String,
    /// Its limits.
    pub quota: Quota,
    /// Shares that its clients hold.
    pub shares_permille: u64,
    /// Memory that its clients hold.
    pub memory_bytes: u64,
    /// GPU-seconds used today.
    pub share_seconds_today: u64,
}

/// The pool in numbers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Summary {
    /// Servers that are up and not drained.
    pub servers_up: usize,
    /// Servers that grant nothing more.
    pub servers_draining: usize,
    /// Servers that do not answer.
    pub servers_down: usize,
    /// GPUs of all servers.
    pub gpus: usize,
    /// GPUs that can be handed out now.
    pub gpus_usable: usize,
    /// Shares of usable GPUs that are held.
    pub shares_held_permille: u64,
    /// Memory of usable GPUs.
    pub memory_bytes: u64,
    /// Memory of usable GPUs that is held.
    pub memory_held_bytes: u64,
    /// Requests that wait.
    pub waiting: usize,
    /// How long the oldest has waited.
    pub waiting_ms_max: u64,
    /// Leases that hold GPUs.
    pub leases: usize,
    /// Open sessions, as servers report them.
    pub sessions: u32,
}

impl Pool {
    /// How far a lease has come.
    #[must_use]
    pub fn stage(&self, id: LeaseId) -> Option<Stage> {
        self.leases.get(&id).map(|lease| lease.stage)
    }

    /// One lease.
    #[must_use]
    pub fn lease_view(&self, id: LeaseId) -> Option<LeaseView> {
        let lease = self.leases.get(&id)?;
        let pieces = lease.pieces.iter().filter_map(|piece| {
            let facts = &self.servers.get(&piece.server)?.facts;
            let gpu = facts.gpus.get(usize::from(piece.gpu))?;
            Some(PieceView {
                server: facts.name.clone(),
                address: facts.addresses.first()?.address.clone(),
                uuid: gpu.uuid.clone(),
                name: gpu.name.clone(),
                share_permille: piece.share_permille,
                memory_bytes: piece.memory_bytes,
            })
        });
        let queued = lease.stage == Stage::Queued;
        let (used_bytes, work) = self.use_of(id, lease);
        Some(LeaseView {
            lease: id,
            client: self.client_name(lease.client),
            stage: lease.stage,
            purpose: lease.ask.purpose,
            label: lease.ask.label.clone(),
            gpus: lease.ask.gpus,
            share_permille: lease.ask.share_permille,
            pieces: pieces.collect(),
            queued_ms: lease.queued_ms,
            granted_ms: lease.granted_ms,
            expires_ms: lease.expires_ms,
            active_ms: lease.active_ms,
            sessions: lease.sessions.values().sum(),
            used_bytes,
            work,
            place: queued.then(|| self.queue.place_of((lease.tag, id))),
            waiting: self.queue.len(),
            over_quota: lease.over_quota.as_ref().map(ToString::to_string),
            warning: lease.warning.clone(),
            end: lease.end.clone(),
            version: lease.version,
        })
    }

    /// What servers that are up say of a lease.
    fn use_of(&self, id: LeaseId, lease: &Lease) -> (u64, Option<Work>) {
        let mut servers: Vec<ServerId> = lease.pieces.iter().map(|piece| piece.server).collect();
        servers.sort_unstable();
        servers.dedup();
        let servers = servers.iter().filter_map(|server| self.servers.get(server));
        let used = servers.filter(|server| server.up).filter_map(|server| {
            let mut leases = server.load.leases.iter();
            leases.find(|used| used.lease == id)
        });
        let used: Vec<_> = used.collect();
        let work = Work::sum(used.iter().filter_map(|used| used.work.as_ref()));
        (used.iter().map(|used| used.used_bytes).sum(), work)
    }

    fn work_of(&self, client: &crate::state::Client) -> Option<Work> {
        let leases = client.leases.iter();
        let leases = leases.filter_map(|id| Some((*id, self.leases.get(id)?)));
        let works: Vec<Work> = leases
            .filter_map(|(id, lease)| self.use_of(id, lease).1)
            .collect();
        Work::sum(works.iter())
    }

    /// Leases of one client, or of all; over ones too if `ended`.
    #[must_use]
    pub fn lease_views(&self, client: Option<ClientId>, ended: bool) -> Vec<LeaseView> {
        self.leases
            .iter()
            .filter(|(_, it)| client.is_none_or(|client| client == it.client))
            .filter(|(_, it)| ended || matches!(it.stage, Stage::Queued | Stage::Held))
            .filter_map(|(id, _)| self.lease_view(*id))
            .collect()
    }

    /// All GPUs.
    #[must_use]
    pub fn gpu_views(&self) -> Vec<GpuView> {
        let of_server = |id: &ServerId| self.gpus_of(*id);
        self.servers.keys().flat_map(of_server).collect()
    }

    fn gpus_of(&self, id: ServerId) -> Vec<GpuView> {
        let (Some(server), Some(node)) = (self.servers.get(&id), self.cluster.node(id)) else {
            return Vec::new();
        };
        let leases = server
            .holds
            .iter()
            .filter_map(|lease| Some((*lease, self.leases.get(lease)?)));
        let parts: Vec<_> = leases
            .flat_map(|(id, lease)| lease.unconfirmed().map(move |piece| (id, lease, piece)))
            .filter(|(_, _, piece)| piece.server == id)
            .collect();
        let gpus = server.facts.gpus.iter().zip(&node.gpus);
        // What a silent server said last is not how it is now.
        let load = server.up.then_some(&server.load);
        let view = |(index, (facts, gpu)): (u16, (&crate::model::GpuFacts, &crate::alloc::Gpu))| {
            let parts = parts.iter().filter(|(_, _, piece)| piece.gpu == index);
            GpuView {
                server: server.facts.name.clone(),
                index,
                uuid: facts.uuid.clone(),
                name: facts.name.clone(),
                sm: facts.sm,
                memory_bytes: facts.memory_bytes,
                memory_free_bytes: gpu.memory_free_bytes,
                share_free_permille: gpu.share_free_permille,
                healthy: gpu.healthy,
                usable: node.open && gpu.healthy,
                set_aside: gpu.pinned,
                used_bytes: load.and_then(|load| load.used_bytes.get(usize::from(index)).copied()),
                now: load.and_then(|load| load.gpus.get(usize::from(index)).cloned()),
                parts: parts
                    .map(|(id, lease, piece)| PartView {
                        lease: *id,
                        client: self.client_name(lease.client),
                        share_permille: piece.share_permille,
                        memory_bytes: piece.memory_bytes,
                    })
                    .collect(),
            }
        };
        (0..).zip(gpus).map(view).collect()
    }

    /// All servers.
    #[must_use]
    pub fn server_views(&self) -> Vec<ServerView> {
        let view = |server: &crate::state::Server| ServerView {
            name: server.facts.name.clone(),
            state: match (server.up, server.draining) {
                (false, _) => "down",
                (true, true) => "draining",
                (true, false) => "up",
            }
            .to_owned(),
            kind: server.facts.kind.clone(),
            addresses: server.facts.addresses.clone(),
            rdma: server.facts.rdma,
            cuda_version: server.facts.cuda_version.clone(),
            driver_version: server.facts.driver_version.clone(),
            switch: server.facts.switch.clone(),
            version: server.facts.version.clone(),
            gpus: server.facts.gpus.len(),
            leases: server.holds.len(),
            seen_ms: server.seen_ms,
            load: server.load.clone(),
        };
        self.servers.values().map(view).collect()
    }

    /// All tokens.
    #[must_use]
    pub fn token_views(&self, now_ms: u64) -> Vec<TokenView> {
        let view = |(id, client): (&ClientId, &crate::state::Client)| TokenView {
            name: client.name.clone(),
            role: client.role,
            group: client.group.clone(),
            disabled: client.disabled,
            created_ms: client.created_ms,
            expires_ms: client.expires_ms,
            has_password: client.password_hash.is_some(),
            quota: client.quota.clone(),
            limits: self.quota_of(*id),
            shares_permille: client.used.held.shares_permille,
            memory_bytes: client.used.held.memory_bytes,
            share_seconds_today: seconds(client.used.until(now_ms)),
            leases: client.leases.len(),
            work: self.work_of(client),
        };
        self.clients.iter().map(view).collect()
    }

    /// All groups.
    #[must_use]
    pub fn group_views(&self, now_ms: u64) -> Vec<GroupView> {
        let view = |(name, group): (&String, &crate::state::Group)| GroupView {
            name: name.clone(),
            quota: group.quota.clone(),
            shares_permille: group.used.held.shares_permille,
            memory_bytes: group.used.held.memory_bytes,
            share_seconds_today: seconds(group.used.until(now_ms)),
        };
        self.groups.iter().map(view).collect()
    }

    /// The pool in numbers.
    #[must_use]
    pub fn summary(&self, now_ms: u64) -> Summary {
        let mut summary = Summary::default();
        for (id, server) in &self.servers {
            match (server.up, server.draining) {
                (false, _) => summary.servers_down += 1,
                (true, true) => summary.servers_draining += 1,
                (true, false) => summary.servers_up += 1,
            }
            summary.sessions += server.load.sessions;
            let Some(node) = self.cluster.node(*id) else {
                continue;
            };
            summary.gpus += node.gpus.len();
            for gpu in node.gpus.iter().filter(|gpu| node.open && gpu.healthy) {
                summary.gpus_usable += 1;
                summary.shares_held_permille += u64::from(WHOLE_PERMILLE - gpu.share_free_permille);
                summary.memory_bytes += gpu.memory_total_bytes;
                summary.memory_held_bytes += gpu.memory_total_bytes - gpu.memory_free_bytes;
            }
        }
        for lease in self.leases.values() {
            match lease.stage {
                Stage::Queued => {
                    summary.waiting += 1;
                    let waited_ms = now_ms.saturating_sub(lease.queued_ms);
                    summary.waiting_ms_max = summary.waiting_ms_max.max(waited_ms);
                }
                Stage::Held => summary.leases += 1,
                Stage::Ending | Stage::Ended => {}
            }
        }
        summary
    }

    /// Entries of the log after `after`, or the newest.
    #[must_use]
    pub fn log_entries(&self, after: Option<u64>, count_max: usize) -> Vec<LogEntry> {
        let skipped = match after {
            Some(seq) => self.log.partition_point(|entry| entry.seq <= seq),
            None => self.log.len().saturating_sub(count_max),
        };
        let entries = self.log.iter().skip(skipped).take(count_max);
        entries.cloned().collect()
    }

    /// Leases whose clients have been told that they will lose them.
    #[must_use]
    pub fn warned(&self) -> usize {
        let leases = self.leases.values();
        let warned = leases.filter(|it| it.stage == Stage::Held && it.warning.is_some());
        warned.count()
    }

    /// Entries of the log that were ever written.
    #[must_use]
    pub fn log_count(&self) -> u64 {
        self.meta.next_log
    }

    /// Rises when a server has something new to do.
    #[must_use]
    pub fn server_version(&self, id: ServerId) -> u64 {
        self.servers.get(&id).map_or(0, |server| server.version)
    }

    /// Name of a client; empty if it is gone.
    pub(crate) fn client_name(&self, id: ClientId) -> String {
        let client = self.clients.get(&id);
        client.map_or_else(String::new, |client| client.name.clone())
    }
}

fn seconds(permille_ms: u64) -> u64 {
    permille_ms / (1000 * u64::from(WHOLE_PERMILLE))
}
