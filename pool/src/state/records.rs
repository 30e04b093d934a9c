//! What is kept, one record per server, client, group, lease and join token.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::alloc::Tag;
use crate::model::{
    Ask, Check, ClientId, GpuFacts, LeaseId, Piece, Quota, ServerFacts, ServerId, Settings, Stage,
};
use crate::state::{GpuNow, OverQuota, Work};

/// Name of a record in the store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Key {
    Meta,
    Server(ServerId),
    Client(ClientId),
    Group(String),
    Join(u32),
    Lease(LeaseId),
    Log(u64),
}

impl Key {
    /// As the store spells it: records of a kind lie together.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Meta => "meta".to_owned(),
            Self::Server(ServerId(id)) => format!("server/{id:010}"),
            Self::Client(ClientId(id)) => format!("client/{id:010}"),
            Self::Group(name) => format!("group/{name}"),
            Self::Join(id) => format!("join/{id:010}"),
            Self::Lease(LeaseId(id)) => format!("lease/{id:020}"),
            Self::Log(seq) => format!("log/{seq:020}"),
        }
    }
}

/// Counters and settings.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub(crate) next_server: u32,
    pub(crate) next_client: u32,
    pub(crate) next_join: u32,
    pub(crate) next_lease: u64,
    pub(crate) next_log: u64,
    pub(crate) settings: Settings,
}

/// A server that has joined.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) facts: ServerFacts,
    pub(crate) credential_hash: String,
    pub(crate) draining: bool,
    pub(crate) up: bool,
    pub(crate) joined_ms: u64,
    #[serde(skip)]
    pub(crate) seen_ms: u64,
    /// Leases with a piece on it, as long as the piece is not given back.
    #[serde(skip)]
    pub(crate) holds: BTreeSet<LeaseId>,
    /// Load, as last reported.
    #[serde(skip)]
    pub(crate) load: Load,
    #[serde(skip)]
    pub(crate) version: u64,
}

/// What a server says of its work.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Load {
    /// Sessions that are open.
    pub sessions: u32,
    /// Device memory in use, in the order of its GPUs.
    pub used_bytes: Vec<u64>,
    /// Sessions and unused time of each lease that has been used here.
    pub leases: Vec<LeaseUse>,
    /// How its machine is.
    pub checks: Vec<Check>,
    /// How its GPUs are, in their order; empty where the server does not say.
    pub gpus: Vec<GpuNow>,
}

impl Load {
    /// In the order in which the pool has the server's GPUs, without what cannot be.
    pub(super) fn tidy(&mut self, gpus: &[GpuFacts]) {
        if !self.gpus.is_empty() {
            let told = std::mem::take(&mut self.gpus);
            let used = std::mem::take(&mut self.used_bytes);
            for facts in gpus {
                let at = told.iter().position(|gpu| gpu.uuid == facts.uuid);
                let gpu = at.and_then(|at| told.get(at)).cloned();
                self.gpus.push(gpu.unwrap_or_default());
                let used = at.and_then(|at| used.get(at)).copied();
                self.used_bytes.push(used.unwrap_or(0));
            }
        }
        self.gpus.iter_mut().for_each(GpuNow::tidy);
        let works = self.leases.iter_mut().filter_map(|used| used.work.as_mut());
        works.for_each(Work::tidy);
    }

    /// What all sessions of leases do; nothing where the server does not say.
    #[must_use]
    pub fn work(&self) -> Option<Work> {
        Work::sum(self.leases.iter().filter_map(|used| used.work.as_ref()))
    }
}

/// How a lease is used on one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeaseUse {
    /// Which.
    pub lease: LeaseId,
    /// Sessions that are open.
    pub sessions: u32,
    /// Time since its last driver call; 0 while something runs.
    pub idle_ms: u64,
    /// Device memory that its sessions have allocated.
    #[serde(default)]
    pub used_bytes: u64,
    /// What its sessions do; nothing where the server does not say.
    #[serde(default)]
    pub work: Option<Work>,
}

/// What a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Everything.
    Admin,
    /// See everything, change nothing.
    Viewer,
    /// Ask for GPUs.
    Client,
}

/// GPU time used on one day.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Used {
    /// Days since the epoch.
    pub(crate) day: u64,
    /// Share x time, up to `at_ms`.
    pub(crate) permille_ms: u64,
    pub(crate) at_ms: u64,
    #[serde(skip)]
    pub(crate) held: Held,
}

/// What is held now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Held {
    pub(crate) shares_permille: u64,
    pub(crate) memory_bytes: u64,
}

/// A client, that is a token.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Client {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) group: Option<String>,
    pub(crate) token_hash: String,
    /// Of the password that opens the dashboard, if there is one (argon2, PHC string).
    #[serde(default)]
    pub(crate) password_hash: Option<String>,
    pub(crate) quota: Quota,
    pub(crate) created_ms: u64,
    pub(crate) expires_ms: Option<u64>,
    pub(crate) disabled: bool,
    pub(crate) used: Used,
    /// Where in the order its next request stands at the earliest.
    #[serde(default)]
    pub(crate) next_tag: Tag,
    /// Its leases that wait or hold.
    #[serde(skip)]
    pub(crate) leases: BTreeSet<LeaseId>,
    /// How many of them wait.
    #[serde(skip)]
    pub(crate) waiting: u32,
}

/// Clients with a common quota.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Group {
    pub(crate) quota: Quota,
    pub(crate) used: Used,
}

/// Lets servers join.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Join {
    pub(crate) name: String,
    pub(crate) token_hash: String,
    pub(crate) expires_ms: u64,
    pub(crate) uses_left: u32,
}

/// Why and when a lease ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct End {
    /// For people.
    pub reason: String,
    /// When.
    pub at_ms: u64,
}

/// A request, and what became of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Lease {
    pub(crate) client: ClientId,
    pub(crate) ask: Ask,
    /// What it may need of one GPU, so that no placement is over its client's quota.
    #[serde(default)]
    pub(crate) gpu_memory_bytes_max: Option<u64>,
    pub(crate) stage: Stage,
    pub(crate) tag: Tag,
    pub(crate) queued_ms: u64,
    pub(crate) granted_ms: Option<u64>,
    pub(crate) expires_ms: Option<u64>,
    /// Empty until it is granted.
    pub(crate) pieces: Vec<Piece>,
    /// Servers that have confirmed that nothing of it runs; their pieces are given back.
    pub(crate) confirmed: BTreeSet<ServerId>,
    pub(crate) end: Option<End>,
    /// Whether the client of a reservation has been there since it was granted: one that nobody knows of is taken back.
    #[serde(default = "acknowledged")]
    pub(crate) acknowledged: bool,
    /// When the client was last heard of.
    #[serde(skip)]
    pub(crate) seen_ms: u64,
    /// When it was last used.
    #[serde(skip)]
    pub(crate) active_ms: u64,
    /// What the client has been told it will lose, and when.
    #[serde(skip)]
    pub(crate) warning: Option<String>,
    #[serde(skip)]
    pub(crate) sessions: BTreeMap<ServerId, u32>,
    /// Rises with every change that a client wants to hear of.
    #[serde(skip)]
    pub(crate) version: u64,
    /// The limit that it waits for.
    #[serde(skip)]
    pub(crate) over_quota: Option<Box<OverQuota>>,
}

/// Of leases that an older version has granted.
fn acknowledged() -> bool {
    true
}

/// Who did what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LogEntry {
    /// Rises by one.
    pub seq: u64,
    /// When.
    pub at_ms: u64,
    /// Name of a token, or `pool`.
    pub actor: String,
    /// `grant`, `end`, `drain`, `token.create` and so on.
    pub action: String,
    /// On what.
    pub subject: String,
    /// For people.
    pub detail: String,
}
