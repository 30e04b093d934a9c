//! The commands that talk to a pool, all through its HTTP interface.
//!
//! - `hold` gets GPUs and keeps them while a command runs;
//! - `member` lets a server join with its `addresses`, `host` tells the pool what it does, by means of `meter`;
//! - `serve` is the pool itself, `admin` what administrators do, `show` the listings.
#![forbid(unsafe_code)]

mod addresses;
mod admin;
pub(crate) mod args;
mod hold;
mod host;
pub(crate) mod lease;
mod live;
mod member;
mod meter;
mod serve;
mod serve_args;
mod show;

use std::process::ExitCode;
use std::time::Duration;

use farcall_config::read_token_file;
use farcall_pool::client::{ClientError, PoolClient};

pub(crate) use admin::{command, release};
pub(crate) use hold::{hold, request};
pub(crate) use live::Now;
pub(crate) use member::serve_in_pool;
pub(crate) use show::{gpus, leases};

use crate::connect::config_failure;
use crate::failure::{Failure, code};
use args::PoolArgs;

/// The pool that was named, shown the token that was named.
pub(crate) fn client(args: &PoolArgs) -> Result<PoolClient, Failure> {
    let url = args.pool.as_deref().ok_or_else(|| {
        Failure::new(
            code::CONFIG,
            "no pool was named",
            "name it with --pool URL or FARCALL_POOL",
        )
    })?;
    let token = match &args.pool_token_file {
        Some(path) => {
            let token = read_token_file(path).map_err(|error| config_failure(&error))?;
            Some(token.expose().to_owned())
        }
        None => std::env::var("FARCALL_POOL_TOKEN").ok(),
    };
    let token = token.filter(|token| !token.trim().is_empty());
    PoolClient::new(
        url,
        args.pool_ca.as_deref(),
        token.as_deref().map(str::trim),
    )
    .map_err(|error| failure(&error))
}

/// What went wrong, and what to do.
pub(crate) fn failure(error: &ClientError) -> Failure {
    let (number, advice) = match error {
        ClientError::Url { .. } | ClientError::Authority { .. } => (
            code::CONFIG,
            "`farcall pool init` made ca.pem; the pool's administrator has it",
        ),
        ClientError::Unreachable { .. } => (
            code::UNAVAILABLE,
            "check that `farcall pool serve` runs there, the address, and ca.pem (--pool-ca)",
        ),
        ClientError::Answer { .. } => (
            code::UNAVAILABLE,
            "check the address; use the same farcall version on both machines",
        ),
        ClientError::Refused(problem) => refused(problem.status, &problem.kind),
    };
    let mut what = error.to_string();
    if let ClientError::Refused(problem) = error {
        if let Some(field) = &problem.field {
            what = format!("{field}: {what}");
        }
        if let Some(quota) = &problem.quota
            && !quota.by.is_empty()
        {
            what = format!("{what}\n  used by {}", quota.by.join("; "));
        }
    }
    Failure::new(number, what, advice)
}

fn refused(status: u16, kind: &str) -> (u8, &'static str) {
    match (status, kind.rsplit(':').next().unwrap_or_default()) {
        (401, _) => (
            code::NOT_PERMITTED,
            "give a valid token with --pool-token-file FILE or FARCALL_POOL_TOKEN",
        ),
        (_, "quota") => (
            code::NOT_PERMITTED,
            "release something, ask for less, wait with --wait TIME, or ask an administrator",
        ),
        (403, _) => (code::NOT_PERMITTED, "ask an administrator"),
        (_, "busy") => (
            code::UNAVAILABLE,
            "wait for it with --wait TIME; `farcall gpus` shows what is free",
        ),
        (_, "never-fits") => (
            code::UNAVAILABLE,
            "ask for less, or relax --filter and --servers; `farcall gpus` shows what there is",
        ),
        (503, _) => (code::UNAVAILABLE, "try again in a moment"),
        (404, _) => (
            code::FAILED,
            "`farcall leases` and `farcall pool servers` list names",
        ),
        _ => (code::FAILED, "see farcall --help"),
    }
}

/// For times that go over the wire.
fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4)
}

fn done(result: Result<(), ClientError>) -> Result<ExitCode, Failure> {
    result
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| failure(&error))
}
