//! Servers and their GPUs: what people see of them, and what they themselves do.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::extract::{Caller, Joining, Member, Named, Sent};
use super::problem::{Failures, Refused};
use super::{App, wait};
use crate::core::Look;
use crate::grant::SKEW_MS_MAX;
use crate::model::{Check, Outcome};
use crate::secrets::{SecretKind, generate, hash};
use crate::state::views::{GpuView, ServerView, Summary};
use crate::state::{Pool, Refusal, Topic};
use crate::wire::{Orders, Register, Registered, RenewServer};

/// How many times a server renews within the time that it has.
const RENEWALS: u64 = 3;

/// List all GPUs, with who holds what of them.
#[utoipa::path(get, path = "/v1/gpus", tag = "servers", responses(
    (status = 200, description = "GPUs", body = Vec<GpuView>),
    Failures
))]
pub(crate) async fn gpus(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<GpuView>>, Refused> {
    let mut views = app.core.call(|pool, _| pool.gpu_views()).await?;
    if caller.sees_all().is_err() {
        // How much is free is everyone's business, who has it is not.
        let parts = views.iter_mut().flat_map(|gpu| &mut gpu.parts);
        for part in parts.filter(|part| part.client != caller.name) {
            part.client.clear();
        }
    }
    Ok(Json(views))
}

/// The pool in numbers.
#[utoipa::path(get, path = "/v1/summary", tag = "servers", responses(
    (status = 200, description = "Numbers", body = Summary),
    Failures
))]
pub(crate) async fn summary(
    State(app): State<App>,
    _caller: Caller,
) -> Result<Json<Summary>, Refused> {
    let summary = app.core.call(|pool, now_ms| pool.summary(now_ms));
    Ok(Json(summary.await?))
}

/// List servers.
#[utoipa::path(get, path = "/v1/servers", tag = "servers", responses(
    (status = 200, description = "Servers", body = Vec<ServerView>),
    Failures
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<ServerView>>, Refused> {
    let mut views = app.core.call(|pool, _| pool.server_views()).await?;
    if caller.sees_all().is_err() {
        views
            .iter_mut()
            .for_each(|server| server.load.leases.clear());
    }
    Ok(Json(views))
}

/// Forget a server that is down; what is held on it ends.
#[utoipa::path(delete, path = "/v1/servers/{name}", tag = "servers", params(("name" = String, Path)), responses(
    (status = 204, description = "It is forgotten"),
    Failures
))]
pub(crate) async fn remove(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named,
) -> Result<StatusCode, Refused> {
    caller.admin()?;
    let done = app
        .core
        .call(move |pool, now_ms| pool.remove_server(now_ms, &name, &caller.name));
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Grant nothing more on a server; what runs there goes on.
#[utoipa::path(post, path = "/v1/servers/{name}/drain", tag = "servers", params(("name" = String, Path)), responses(
    (status = 204, description = "It is drained"),
    Failures
))]
pub(crate) async fn drain(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named,
) -> Result<StatusCode, Refused> {
    set_draining(&app, caller, name, true).await
}

/// Grant on a server again.
#[utoipa::path(post, path = "/v1/servers/{name}/undrain", tag = "servers", params(("name" = String, Path)), responses(
    (status = 204, description = "It is used again"),
    Failures
))]
pub(crate) async fn undrain(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named,
) -> Result<StatusCode, Refused> {
    set_draining(&app, caller, name, false).await
}

async fn set_draining(
    app: &App,
    caller: Caller,
    name: String,
    draining: bool,
) -> Result<StatusCode, Refused> {
    caller.admin()?;
    let done = app
        .core
        .call(move |pool, now_ms| pool.drain(now_ms, &name, draining, &caller.name));
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// A server joins with a join token, or comes back with its credential.
#[utoipa::path(post, path = "/v1/register", tag = "server side", request_body = Register, responses(
    (status = 200, description = "It has joined", body = Registered),
    Failures
))]
pub(crate) async fn register(
    State(app): State<App>,
    joining: Joining,
    Sent(body): Sent<Register>,
) -> Result<Json<Registered>, Refused> {
    check_clock(app.core.now_ms(), body.clock_ms)?;
    let credential = match &joining {
        Joining::Join(_) => Some(generate(SecretKind::Credential).map_err(no_randomness)?),
        Joining::Known(..) => None,
    };
    let new_hash = credential.as_deref().map(hash);
    let grant_key = app.signer.public();
    let registered = app.core.call(move |pool, now_ms| {
        let registration = match joining {
            Joining::Join(hash) => {
                pool.join(now_ms, &hash, &new_hash.unwrap_or_default(), body.server)
            }
            Joining::Known(server, hash) => pool.register(now_ms, Some(server), &hash, body.server),
        }?;
        Ok::<_, Refusal>(Registered {
            server: registration.server,
            credential,
            grant_key,
            renew_within_ms: pool.settings().server_ttl_ms / RENEWALS,
            refuse: pool.recently_ended(registration.server),
            grant_ms: pool.settings().grant_ms,
        })
    });
    Ok(Json(registered.await??))
}

/// A server is there, says what it does, and waits for something to do.
#[utoipa::path(post, path = "/v1/renew", tag = "server side", request_body = RenewServer, responses(
    (status = 200, description = "What it is to do", body = Orders),
    Failures
))]
pub(crate) async fn renew(
    State(app): State<App>,
    Member(server, _): Member,
    Sent(body): Sent<RenewServer>,
) -> Result<Json<Orders>, Refused> {
    let (seen, wait_ms) = (body.seen, body.wait_ms);
    let now_ms = app.core.now_ms();
    let clock = body.clock_ms.and_then(|theirs_ms| skew(now_ms, theirs_ms));
    let mut load = body.load;
    load.checks
        .extend(clock.as_deref().map(|found| failed_clock(now_ms, found)));
    let renewed = app.core.call(move |pool, now_ms| {
        pool.renew_server(now_ms, server, load, &body.ended)
            .map(|()| pool.report_within_ms(server))
    });
    let waiting = wait(wait_ms.min(renewed.await??));
    let look = move |pool: &mut Pool, _| {
        let orders = Orders {
            end: pool.orders(server),
            version: pool.server_version(server),
            clock: clock.clone(),
        };
        if orders.version != seen {
            Look::Answer(orders)
        } else {
            Look::SameAsBefore(orders)
        }
    };
    let orders = app.core.follow(Topic::Server(server), waiting, look);
    Ok(Json(orders.await?))
}

fn check_clock(ours_ms: u64, theirs_ms: u64) -> Result<(), Refused> {
    match skew(ours_ms, theirs_ms) {
        None => Ok(()),
        Some(what) => Err(Refusal::Clock(what).into()),
    }
}

/// How a server's clock differs from the pool's, if it does by more than is tolerated.
fn skew(ours_ms: u64, theirs_ms: u64) -> Option<String> {
    let apart_ms = ours_ms.abs_diff(theirs_ms);
    if apart_ms <= SKEW_MS_MAX {
        return None;
    }
    let which = if theirs_ms > ours_ms {
        "ahead"
    } else {
        "behind"
    };
    Some(format!(
        "the server's clock is {} s {which} of the pool's; a minute is tolerated: set it (NTP)",
        apart_ms / 1000
    ))
}

/// For those who look at a server's health.
fn failed_clock(now_ms: u64, found: &str) -> Check {
    Check {
        name: "clock".to_owned(),
        outcome: Outcome::Failed,
        found: found.to_owned(),
        meaning: "The server refuses grants: to it they are expired, or from the future."
            .to_owned(),
        advice: "Set the clocks of pool and server, by NTP for instance.".to_owned(),
        at_ms: now_ms,
    }
}

fn no_randomness(error: std::io::Error) -> Refused {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Refused::new(status, "internal", "The pool failed", error.to_string())
}
