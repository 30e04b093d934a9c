//! The words that pool, servers and clients share.
//!
//! Times are milliseconds since the Unix epoch (`_ms`), memory is in bytes (`_bytes`), shares of a GPU's
//! compute are in thousandths (`_permille`).
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::filter::Filter;

/// A whole GPU, in thousandths.
pub const WHOLE_PERMILLE: u16 = 1000;
/// GPUs that one server can have.
pub const SERVER_GPUS_MAX: usize = 64;
/// Servers that one lease can have GPUs of: as many as one program can use.
pub const LEASE_SERVERS_MAX: usize = 16;
/// GPUs that one request can ask for.
pub const ASK_GPUS_MAX: u16 = 1024;

/// Number of a server; names are for people.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct ServerId(pub u32);

/// Number of a client, that is of its token.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct ClientId(pub u32);

/// Number of a lease, from the moment that it is asked for. Written `L12`.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(transparent)]
pub struct LeaseId(pub u64);

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "L{}", self.0)
    }
}

impl FromStr for LeaseId {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_prefix(['L', 'l'])
            .unwrap_or(text)
            .parse()
            .map(Self)
            .map_err(|_| format!("{text:?} is not a lease; a lease is written L12"))
    }
}

/// One GPU, as its server reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GpuFacts {
    /// Unique in the world, `GPU-...`.
    pub uuid: String,
    /// Model, as the driver names it.
    pub name: String,
    /// All of its memory.
    pub memory_bytes: u64,
    /// Compute capability, 90 for 9.0.
    pub sm: u32,
    /// Whether it may be handed out.
    pub healthy: bool,
}

/// Where a server is reached on one network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetAddress {
    /// `management`, `gpu` or what the administrator calls it.
    pub network: String,
    /// `HOST:PORT`.
    pub address: String,
}

/// What a server says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServerFacts {
    /// Unique in the pool.
    pub name: String,
    /// The first is the one that clients use.
    pub addresses: Vec<NetAddress>,
    /// `cuda`, `soft` or `null`.
    pub kind: String,
    /// Whether it speaks RDMA.
    pub rdma: bool,
    /// Version of the driver, `580.95` or empty.
    pub driver_version: String,
    /// Version of CUDA, `13.0`.
    pub cuda_version: String,
    /// Place in the network, outermost switch first: `hall1/rack7/leaf2`; empty where nobody said.
    pub switch: String,
    /// Version of farcall.
    pub version: String,
    /// Fingerprint of the certificate that it has over TLS, `sha256:...`; empty where it has none.
    #[serde(default)]
    pub tls: String,
    /// Its GPUs.
    pub gpus: Vec<GpuFacts>,
}

/// How a check went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, and could be better or may fail later.
    Warning,
    /// Something does not work.
    Failed,
}

/// One thing about a machine that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Check {
    /// What was looked at: `memlock`, `mtu`, `rdma`...
    pub name: String,
    /// How it went.
    pub outcome: Outcome,
    /// What was found.
    pub found: String,
    /// What that means.
    #[serde(default)]
    pub meaning: String,
    /// What to do; empty where nothing is to be done.
    #[serde(default)]
    pub advice: String,
    /// When it was looked at.
    #[serde(default)]
    pub at_ms: u64,
}

/// Why GPUs are wanted, which decides how long they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// For one command: given back when the client stops renewing.
    Run,
    /// Until released, expired or idle.
    Reservation,
}

/// What a client asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Ask {
    /// How many GPUs.
    pub gpus: u16,
    /// Share of each GPU, 1 to 1000 thousandths.
    #[serde(default = "whole")]
    pub share_permille: u16,
    /// Memory on each GPU; without it, the share's part of the GPU's.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// What the GPUs and their servers must be like: `gpu.name=H100`.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub filters: Vec<Filter>,
    /// Names of the servers that may serve; empty = all.
    #[serde(default)]
    pub servers: Vec<String>,
    /// Whether all GPUs must be on one server; otherwise that is only preferred.
    #[serde(default)]
    pub same_server: bool,
    /// The client's place in the network, as servers write theirs; empty = unknown.
    #[serde(default)]
    pub near: String,
    /// Why.
    #[serde(default = "run")]
    pub purpose: Purpose,
    /// How long it may be held.
    #[serde(default)]
    pub hold_ms: Option<u64>,
    /// How long it may be unused; without it, the pool's setting.
    #[serde(default)]
    pub idle_ms: Option<u64>,
    /// What it is for, shown to people.
    #[serde(default)]
    pub label: String,
    /// Drawn by the client, 64 letters, digits and `-_` at most: a request that comes again with the same key is the same request, and
    /// has the same lease as long as that waits or is held. Empty = each is another.
    #[serde(default)]
    pub key: String,
}

fn whole() -> u16 {
    WHOLE_PERMILLE
}

fn run() -> Purpose {
    Purpose::Run
}

/// A part of one GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// Where.
    pub server: ServerId,
    /// Number of the GPU among its server's.
    pub gpu: u16,
    /// Share of its compute.
    pub share_permille: u16,
    /// Memory on it.
    pub memory_bytes: u64,
}

/// How far a lease has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// It waits.
    Queued,
    /// It has its GPUs.
    Held,
    /// It is over, and servers have not all confirmed that nothing of it runs.
    Ending,
    /// It is over.
    Ended,
}

/// Limits of a client or a group; `None` = no limit of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Quota {
    /// Thousandths of GPUs held at once.
    pub shares_permille_max: Option<u64>,
    /// Device memory held at once.
    pub memory_bytes_max: Option<u64>,
    /// GPU-seconds (share x time) in one day (UTC).
    pub share_seconds_per_day_max: Option<u64>,
    /// GPUs in one request.
    pub request_gpus_max: Option<u16>,
    /// Longest lease.
    pub hold_ms_max: Option<u64>,
    /// Each step is worth five minutes of waiting; -10 to 10.
    pub priority: Option<i8>,
}

/// Times and defaults of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A client that has not renewed for so long has lost what it held for a command.
    pub client_ttl_ms: u64,
    /// A server that has not renewed for so long is down.
    pub server_ttl_ms: u64,
    /// A lease that has not been used for so long is taken back; `None` = never.
    pub idle_ms: Option<u64>,
    /// How long a signed grant opens sessions without a new one.
    pub grant_ms: u64,
    /// After waiting so long the first in the queue gets GPUs set aside.
    pub patience_ms: u64,
    /// Open pages of the dashboard ask for new figures that often; of changes they hear at once.
    #[serde(default = "refresh_ms_default")]
    pub refresh_ms: u64,
    /// Quota of a client that has none.
    pub default_quota: Quota,
}

/// As often as servers tell what they do.
fn refresh_ms_default() -> u64 {
    5000
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            client_ttl_ms: 30_000,
            server_ttl_ms: 15_000,
            idle_ms: Some(60 * 60_000),
            grant_ms: 10 * 60_000,
            patience_ms: 10_000,
            refresh_ms: refresh_ms_default(),
            default_quota: Quota::default(),
        }
    }
}
