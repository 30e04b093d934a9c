//! Bodies of requests and answers that are not views.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::model::{LeaseId, Quota, ServerFacts, ServerId};
use crate::state::views::LeaseView;
use crate::state::{EndOrder, Load, OverQuota};

/// A signed grant, and where it is good.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SignedGrant {
    /// Name of the server.
    pub server: String,
    /// Where to reach it.
    pub address: String,
    /// Fingerprint of the server's certificate, `sha256:...`: with it a client knows the server over TLS. Empty where it has none.
    #[serde(default)]
    pub tls: String,
    /// How many GPUs it gives there.
    pub gpus: usize,
    /// To be shown to the server as the token.
    pub token: String,
    /// No session can be opened with it after that.
    pub expires_ms: u64,
}

/// A lease, for its client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LeaseAnswer {
    /// The lease.
    pub lease: LeaseView,
    /// One for each of its servers, while it is held.
    pub grants: Vec<SignedGrant>,
    /// How often it must be renewed at least.
    pub renew_within_ms: u64,
}

/// Renews a lease, and waits for news of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RenewLease {
    /// `version` of the lease as last seen: the answer comes when it is another.
    pub seen: u64,
    /// How long to wait for that; at most 30 s.
    pub wait_ms: u64,
    /// Whom the grants are for: a number drawn for each use of the lease, 64 letters and digits at most. Servers let one holder in from
    /// one address only.
    pub holder: String,
}

/// A server joins or comes back. Its token is a join token or its credential.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Register {
    /// What it is.
    pub server: ServerFacts,
    /// Its clock.
    pub clock_ms: u64,
}

/// A server has joined.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Registered {
    /// Its number.
    pub server: ServerId,
    /// To be shown from now on instead of a join token; only in the answer to one.
    pub credential: Option<String>,
    /// Public key of the pool's grants.
    pub grant_key: String,
    /// How often it must renew at least.
    pub renew_within_ms: u64,
    /// Leases whose grants it must refuse from the start.
    pub refuse: Vec<EndOrder>,
    /// How long a grant can be valid: so long it must remember what it refuses.
    pub grant_ms: u64,
}

/// A server is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RenewServer {
    /// What it does.
    pub load: Load,
    /// Leases of which nothing runs here any more, nor can.
    pub ended: Vec<LeaseId>,
    /// `version` of the last answer: the answer comes when it is another.
    pub seen: u64,
    /// How long to wait for that; at most 30 s.
    pub wait_ms: u64,
    /// Its clock; nothing where the server does not say.
    pub clock_ms: Option<u64>,
}

/// What a server is to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Orders {
    /// Leases to end, and to confirm the next time.
    pub end: Vec<EndOrder>,
    /// Rises when there is something new.
    pub version: u64,
    /// What is wrong with the server's clock: by more than a minute, grants are refused.
    #[serde(default)]
    pub clock: Option<String>,
}

/// A secret, shown this once.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NewSecret {
    /// What it is called.
    pub name: String,
    /// The secret.
    pub token: String,
}

/// A join token to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewJoin {
    /// For the log.
    pub name: String,
    /// How long it is valid.
    pub valid_ms: u64,
    /// How many servers may join with it.
    pub uses: u32,
}

/// A password for the dashboard.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// At least 12 characters; without it, only the token logs in.
    pub password: Option<String>,
}

impl std::fmt::Debug for NewPassword {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewPassword").finish_non_exhaustive()
    }
}

/// A group's limits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupQuota {
    /// The limits, all of them.
    pub quota: Quota,
}

/// The pool is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Alive {
    /// `ok`.
    pub status: String,
    /// Its clock.
    pub now_ms: u64,
    /// Version of farcall.
    pub version: String,
}

/// What went wrong (RFC 9457).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Which kind: `urn:farcall:problem:...`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The kind in words.
    pub title: String,
    /// HTTP status.
    pub status: u16,
    /// What went wrong this time.
    pub detail: String,
    /// The field of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub field: Option<String>,
    /// The quota that would be exceeded.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub quota: Option<OverQuota>,
}

impl std::fmt::Debug for NewSecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewSecret")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
