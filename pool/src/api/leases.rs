//! Asking for GPUs, keeping them, giving them back.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Caller, Named, Options, Sent};
use super::problem::{Failures, Refused};
use super::{App, wait};
use crate::core::Look;
use crate::grant::{Grant, GrantedGpu, HOLDER_BYTES_MAX};
use crate::model::{Ask, LeaseId, Stage};
use crate::state::views::LeaseView;
use crate::state::{Pool, Refusal, Topic};
use crate::wire::{LeaseAnswer, RenewLease, SignedGrant};

/// How many times a client renews within the time that it has.
const RENEWALS: u64 = 3;

/// How a request waits.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct AskOptions {
    /// Whether it waits in the queue if it does not fit now.
    #[serde(default)]
    wait: bool,
    /// Whom the grants are for: a number drawn for each use of the lease.
    #[serde(default)]
    holder: String,
}

/// For whom a lease is shown.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShowOptions {
    /// Whom the grants are for: a number drawn for each use of the lease.
    #[serde(default)]
    holder: String,
}

/// Which leases.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListOptions {
    /// Everyone's; needs more than a client's token.
    #[serde(default)]
    all: bool,
    /// Also those that have ended, as long as they are remembered.
    #[serde(default)]
    ended: bool,
}

/// Ask for GPUs.
#[utoipa::path(post, path = "/v1/leases", tag = "leases", params(AskOptions), request_body = Ask, responses(
    (status = 201, description = "Granted", body = LeaseAnswer),
    (status = 202, description = "In the queue: renew the lease to follow it", body = LeaseAnswer),
    Failures
))]
pub(crate) async fn ask(
    State(app): State<App>,
    caller: Caller,
    Options(options): Options<AskOptions>,
    Sent(ask): Sent<Ask>,
) -> Result<(StatusCode, Json<LeaseAnswer>), Refused> {
    caller.may_ask()?;
    check_holder(&options.holder)?;
    let asked = app.core.call(move |pool, now_ms| {
        let outcome = pool.ask(now_ms, caller.client, ask, options.wait)?;
        found(pool, outcome.lease)
    });
    let answer = answer(&app, asked.await??, &options.holder);
    let status = if answer.lease.stage == Stage::Queued {
        StatusCode::ACCEPTED
    } else {
        StatusCode::CREATED
    };
    Ok((status, Json(answer)))
}

/// List leases.
#[utoipa::path(get, path = "/v1/leases", tag = "leases", params(ListOptions), responses(
    (status = 200, description = "Leases, oldest first", body = Vec<LeaseView>),
    Failures
))]
pub(crate) async fn list(
    State(app): State<App>,
    caller: Caller,
    Options(options): Options<ListOptions>,
) -> Result<Json<Vec<LeaseView>>, Refused> {
    if options.all {
        caller.sees_all()?;
    }
    let client = (!options.all).then_some(caller.client);
    let views = app
        .core
        .call(move |pool, _| pool.lease_views(client, options.ended));
    Ok(Json(views.await?))
}

/// Show a lease, with its grants. Its client acknowledges it with that.
#[utoipa::path(get, path = "/v1/leases/{lease}", tag = "leases", params(("lease" = String, Path), ShowOptions), responses(
    (status = 200, description = "The lease", body = LeaseAnswer),
    Failures
))]
pub(crate) async fn show(
    State(app): State<App>,
    caller: Caller,
    Named(lease): Named,
    Options(options): Options<ShowOptions>,
) -> Result<Json<LeaseAnswer>, Refused> {
    let id = lease_id(&lease)?;
    check_holder(&options.holder)?;
    let seen = app.core.call(move |pool, _| {
        pool.acknowledge(caller.client, id);
        let view = found(pool, id)?;
        let own = pool.lease_views(Some(caller.client), true);
        if caller.sees_all().is_err() && !own.iter().any(|lease| lease.lease == id) {
            return Err(Refusal::NotFound(format!("no lease {id}")));
        }
        Ok(view)
    });
    Ok(Json(answer(&app, seen.await??, &options.holder)))
}

/// Say that the client is there, and wait for news. A lease that is not renewed or shown within the time after it was granted is taken back,
/// a reservation, too: its client may not have heard of it.
#[utoipa::path(post, path = "/v1/leases/{lease}/renew", tag = "leases", params(("lease" = String, Path)),
    request_body = RenewLease, responses(
    (status = 200, description = "The lease, with fresh grants", body = LeaseAnswer),
    Failures
))]
pub(crate) async fn renew(
    State(app): State<App>,
    caller: Caller,
    Named(lease): Named,
    Sent(renewal): Sent<RenewLease>,
) -> Result<Json<LeaseAnswer>, Refused> {
    let id = lease_id(&lease)?;
    check_holder(&renewal.holder)?;
    let client = caller.client;
    // What becomes of it while this request waits, the client may never hear.
    let is_first = Arc::new(AtomicBool::new(true));
    let look = move |pool: &mut Pool, now_ms: u64| {
        if is_first.swap(false, Ordering::Relaxed) {
            pool.acknowledge(client, id);
        }
        let view = pool
            .renew(now_ms, client, id)
            .and_then(|()| found(pool, id));
        match view {
            Ok((view, terms)) if view.version == renewal.seen => {
                Look::SameAsBefore(Ok((view, terms)))
            }
            other => Look::Answer(other),
        }
    };
    let followed = app
        .core
        .follow(Topic::Lease(id), wait(renewal.wait_ms), look);
    Ok(Json(answer(&app, followed.await??, &renewal.holder)))
}

/// Give a lease back, or leave the queue.
#[utoipa::path(delete, path = "/v1/leases/{lease}", tag = "leases", params(("lease" = String, Path)), responses(
    (status = 204, description = "It has ended"),
    Failures
))]
pub(crate) async fn release(
    State(app): State<App>,
    caller: Caller,
    Named(lease): Named,
) -> Result<StatusCode, Refused> {
    caller.may_ask()?;
    let id = lease_id(&lease)?;
    let done = app.core.call(move |pool, now_ms| {
        let name = caller.name.clone();
        let reason = format!("released by {name}");
        pool.release(now_ms, caller.scope(), id, &name, &reason)
    });
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

fn lease_id(text: &str) -> Result<LeaseId, Refused> {
    text.parse()
        .map_err(|why: String| Refused::field("lease", why))
}

fn found(pool: &Pool, id: LeaseId) -> Result<(LeaseView, Terms), Refusal> {
    let view = pool.lease_view(id);
    let view = view.ok_or_else(|| Refusal::NotFound(format!("no lease {id}")))?;
    let settings = pool.settings();
    let terms = Terms {
        grant_ms: settings.grant_ms,
        client_ttl_ms: settings.client_ttl_ms,
        tls: pool.certificates(id),
    };
    Ok((view, terms))
}

/// What a client needs of a lease beside what everyone sees.
#[derive(Clone, Debug)]
struct Terms {
    grant_ms: u64,
    client_ttl_ms: u64,
    /// Certificates of its servers, by their names.
    tls: BTreeMap<String, String>,
}

fn check_holder(holder: &str) -> Result<(), Refused> {
    let good = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if holder.len() > HOLDER_BYTES_MAX || !holder.chars().all(good) {
        let why = format!("it is not at most {HOLDER_BYTES_MAX} letters, digits and -_");
        return Err(Refused::field("holder", why));
    }
    Ok(())
}

fn answer(app: &App, (lease, terms): (LeaseView, Terms), holder: &str) -> LeaseAnswer {
    let grants = if lease.stage == Stage::Held {
        grants(app, &lease, &terms, holder)
    } else {
        Vec::new()
    };
    LeaseAnswer {
        lease,
        grants,
        renew_within_ms: terms.client_ttl_ms / RENEWALS,
    }
}

/// One grant for each server of a lease.
fn grants(app: &App, lease: &LeaseView, terms: &Terms, holder: &str) -> Vec<SignedGrant> {
    let now_ms = app.core.now_ms();
    let mut servers: BTreeMap<&str, (&str, Vec<GrantedGpu>)> = BTreeMap::new();
    for piece in &lease.pieces {
        let entry = servers
            .entry(&piece.server)
            .or_insert_with(|| (&piece.address, Vec::new()));
        entry.1.push(GrantedGpu {
            uuid: piece.uuid.clone(),
            memory_bytes: piece.memory_bytes,
            share_permille: piece.share_permille,
        });
    }
    let expires_ms = now_ms.saturating_add(terms.grant_ms);
    let expires_ms = expires_ms.min(lease.expires_ms.unwrap_or(u64::MAX));
    let sign = |(server, (address, gpus)): (&str, (&str, Vec<GrantedGpu>))| SignedGrant {
        server: server.to_owned(),
        address: address.to_owned(),
        tls: terms.tls.get(server).cloned().unwrap_or_default(),
        gpus: gpus.len(),
        token: app.signer.sign(&Grant {
            lease: lease.lease,
            client: lease.client.clone(),
            server: server.to_owned(),
            gpus,
            holder: holder.to_owned(),
            issued_ms: now_ms,
            expires_ms,
        }),
        expires_ms,
    };
    servers.into_iter().map(sign).collect()
}
