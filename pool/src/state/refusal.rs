//! Why the pool does not do what it was asked.
#![forbid(unsafe_code)]

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::format::{bytes, gpus, span};

/// A limit that a request would exceed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct OverQuota {
    /// Which limit: a field of a quota.
    pub limit: String,
    /// Whose: a client's name, or `group NAME`.
    pub owner: String,
    /// The limit.
    pub max: u64,
    /// How much is used.
    pub used: u64,
    /// How much more was wanted.
    pub wanted: u64,
    /// The leases that use it.
    pub by: Vec<String>,
}

impl fmt::Display for OverQuota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The limit as people think of it, and how its numbers are read.
        let hours = |seconds: u64| format!("{} GPU-hours", gpus(seconds.saturating_mul(10) / 36));
        let (what, read): (&str, &dyn Fn(u64) -> String) = match self.limit.as_str() {
            "shares_permille_max" => ("GPUs at once", &gpus),
            "memory_bytes_max" => ("memory at once", &bytes),
            "share_seconds_per_day_max" => ("GPU time in one day", &hours),
            "request_gpus_max" => ("GPUs in one request", &|count| count.to_string()),
            "hold_ms_max" => ("length of a lease", &span),
            other => (other, &|count| count.to_string()),
        };
        let (owner, limit) = (&self.owner, &self.limit);
        let (max, used, wanted) = (read(self.max), read(self.used), read(self.wanted));
        write!(
            f,
            "over the quota of {owner}: {what} ({limit}): {max} at most, {used} used, {wanted} more wanted"
        )
    }
}

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field of the request.
    #[error("{field}: {detail}")]
    Field {
        /// Where it is in the request: `gpus`, `quota.priority`, `server.gpus[1].uuid`.
        field: String,
        /// What is wrong.
        detail: String,
    },
    /// Not a valid token for this.
    #[error("{0}")]
    Unauthorized(String),
    /// Valid, and not allowed to do this.
    #[error("{0}")]
    Forbidden(String),
    /// No such thing.
    #[error("{0}")]
    NotFound(String),
    /// It contradicts what is.
    #[error("{0}")]
    Conflict(String),
    /// Over a quota.
    #[error("{0}")]
    Quota(Box<OverQuota>),
    /// Nothing is free, and the client does not wait.
    #[error("{0}")]
    Busy(String),
    /// It would never fit.
    #[error("{0}")]
    NeverFits(String),
    /// The clocks differ.
    #[error("{0}")]
    Clock(String),
}

impl Refusal {
    pub(crate) fn field(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::Field {
            field: field.into(),
            detail: detail.into(),
        }
    }
}
