//! Why the pool does not do what it was asked.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

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

/// Why not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A field of the request.
    #[error("{field}: {detail}")]
    Field {
        /// Its name in the request.
        field: &'static str,
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
    #[error("over the quota of {}: {} is at most {}, {} used, {} more wanted", .0.owner, .0.limit, .0.max, .0.used, .0.wanted)]
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
    pub(crate) fn field(field: &'static str, detail: impl Into<String>) -> Self {
        Self::Field {
            field,
            detail: detail.into(),
        }
    }
}
