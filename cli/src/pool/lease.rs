//! Which lease a command uses.
#![forbid(unsafe_code)]

use clap::Args;
use farcall_pool::model::LeaseId;

/// A lease that is there already, instead of one that is asked for.
#[derive(Args, Clone, Debug)]
pub(crate) struct LeaseArgs {
    /// Use GPUs that `farcall request` has reserved; -m may limit the program further
    #[arg(
        long,
        value_name = "LEASE",
        env = "FARCALL_LEASE",
        requires = "pool",
        conflicts_with_all = ["devices", "share_permille", "filters", "servers", "near", "wait", "idle", "label"]
    )]
    pub(crate) lease: Option<LeaseId>,
}
