//! Tokens, quotas, settings, the log.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::extract::{Caller, Named, Options, Sent};
use super::problem::{Failures, Refused};
use crate::model::Settings;
use crate::secrets::{SecretKind, generate, hash};
use crate::state::views::{GroupView, TokenView};
use crate::state::{LogEntry, NewToken, Role, TokenChange};
use crate::web::{csv, password};
use crate::wire::{Alive, GroupQuota, NewJoin, NewPassword, NewSecret};

/// Entries of the log in one answer.
const LOG_ENTRIES_MAX: usize = 1000;

/// Whether the pool is there; needs no token.
#[utoipa::path(get, path = "/v1/health", tag = "pool", security(()), responses(
    (status = 200, description = "It is", body = Alive),
    Failures
))]
pub(crate) async fn health(State(app): State<App>) -> Result<Json<Alive>, Refused> {
    let now_ms = app.core.call(|_, now_ms| now_ms).await?;
    Ok(Json(Alive {
        status: "ok".to_owned(),
        now_ms,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }))
}

/// List tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "pool", responses(
    (status = 200, description = "Tokens", body = Vec<TokenView>),
    Failures
))]
pub(crate) async fn tokens(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<TokenView>>, Refused> {
    caller.sees_all()?;
    let views = app.core.call(|pool, now_ms| pool.token_views(now_ms));
    Ok(Json(views.await?))
}

/// Make a token. Its secret is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/tokens", tag = "pool", request_body = NewToken, responses(
    (status = 201, description = "Made", body = NewSecret),
    Failures
))]
pub(crate) async fn create_token(
    State(app): State<App>,
    caller: Caller,
    Sent(new): Sent<NewToken>,
) -> Result<(StatusCode, Json<NewSecret>), Refused> {
    caller.admin()?;
    let token = generate(SecretKind::Token).map_err(failed)?;
    let (hash, name) = (hash(&token), new.name.clone());
    let made = app
        .core
        .call(move |pool, now_ms| pool.create_token(now_ms, new, &hash, &caller.name));
    made.await??;
    Ok((StatusCode::CREATED, Json(NewSecret { name, token })))
}

/// Extend, limit, disable or enable a token.
#[utoipa::path(patch, path = "/v1/tokens/{name}", tag = "pool", params(("name" = String, Path)),
    request_body = TokenChange, responses(
    (status = 204, description = "Changed"),
    Failures
))]
pub(crate) async fn change_token(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named,
    Sent(change): Sent<TokenChange>,
) -> Result<StatusCode, Refused> {
    caller.admin()?;
    let done = app
        .core
        .call(move |pool, now_ms| pool.change_token(now_ms, &name, change, &caller.name));
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Let a token's owner log in to the dashboard with a password, or with the token only.
#[utoipa::path(put, path = "/v1/tokens/{name}/password", tag = "pool", params(("name" = String, Path)),
    request_body = NewPassword, responses(
    (status = 204, description = "Set"),
    Failures
))]
pub(crate) async fn set_password(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named,
    Sent(new): Sent<NewPassword>,
) -> Result<StatusCode, Refused> {
    // Whose own it is may set it, but not who can only ask for GPUs: they have no use for it.
    if caller.name != name || caller.role == Role::Client {
        caller.admin()?;
    }
    let hashed = match new.password {
        Some(password) => {
            if let Some(complaint) = password::complaint(&password) {
                return Err(Refused::field("password", complaint));
            }
            let hashed = app.web.hashing().hash(password).await;
            Some(hashed.ok_or_else(|| failed(std::io::Error::other("no randomness")))?)
        }
        None => None,
    };
    let done = app
        .core
        .call(move |pool, now_ms| pool.set_password(now_ms, &name, hashed, &caller.name));
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a token void for ever; what it holds ends.
#[utoipa::path(delete, path = "/v1/tokens/{name}", tag = "pool", params(("name" = String, Path)), responses(
    (status = 204, description = "Void"),
    Failures
))]
pub(crate) async fn revoke_token(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named,
) -> Result<StatusCode, Refused> {
    caller.admin()?;
    let done = app
        .core
        .call(move |pool, now_ms| pool.revoke_token(now_ms, &name, &caller.name));
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// List groups.
#[utoipa::path(get, path = "/v1/groups", tag = "pool", responses(
    (status = 200, description = "Groups", body = Vec<GroupView>),
    Failures
))]
pub(crate) async fn groups(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Vec<GroupView>>, Refused> {
    caller.sees_all()?;
    let views = app.core.call(|pool, now_ms| pool.group_views(now_ms));
    Ok(Json(views.await?))
}

/// Limit a group.
#[utoipa::path(put, path = "/v1/groups/{name}/quota", tag = "pool", params(("name" = String, Path)),
    request_body = GroupQuota, responses(
    (status = 204, description = "Limited"),
    Failures
))]
pub(crate) async fn group_quota(
    State(app): State<App>,
    caller: Caller,
    Named(name): Named,
    Sent(body): Sent<GroupQuota>,
) -> Result<StatusCode, Refused> {
    caller.admin()?;
    let done = app
        .core
        .call(move |pool, now_ms| pool.set_group_quota(now_ms, &name, body.quota, &caller.name));
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Make a token with which servers join. It is in this answer and nowhere else.
#[utoipa::path(post, path = "/v1/joins", tag = "pool", request_body = NewJoin, responses(
    (status = 201, description = "Made", body = NewSecret),
    Failures
))]
pub(crate) async fn create_join(
    State(app): State<App>,
    caller: Caller,
    Sent(new): Sent<NewJoin>,
) -> Result<(StatusCode, Json<NewSecret>), Refused> {
    caller.admin()?;
    let token = generate(SecretKind::Join).map_err(failed)?;
    let (hash, name) = (hash(&token), new.name.clone());
    let made = app.core.call(move |pool, now_ms| {
        pool.create_join(
            now_ms,
            &new.name,
            new.valid_ms,
            new.uses,
            &hash,
            &caller.name,
        )
    });
    made.await??;
    Ok((StatusCode::CREATED, Json(NewSecret { name, token })))
}

/// Times and defaults.
#[utoipa::path(get, path = "/v1/settings", tag = "pool", responses(
    (status = 200, description = "Settings", body = Settings),
    Failures
))]
pub(crate) async fn settings(
    State(app): State<App>,
    caller: Caller,
) -> Result<Json<Settings>, Refused> {
    caller.sees_all()?;
    let settings = app.core.call(|pool, _| pool.settings().clone());
    Ok(Json(settings.await?))
}

/// Change times and defaults, all of them.
#[utoipa::path(put, path = "/v1/settings", tag = "pool", request_body = Settings, responses(
    (status = 204, description = "Changed"),
    Failures
))]
pub(crate) async fn set_settings(
    State(app): State<App>,
    caller: Caller,
    Sent(settings): Sent<Settings>,
) -> Result<StatusCode, Refused> {
    caller.admin()?;
    let done = app
        .core
        .call(move |pool, now_ms| pool.set_settings(now_ms, settings, &caller.name));
    done.await??;
    Ok(StatusCode::NO_CONTENT)
}

/// Which part of the log.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct LogOptions {
    /// Only entries with a greater `seq`.
    after: Option<u64>,
}

/// Who did what, oldest first; at most 1000 entries, the newest if `after` is not given.
#[utoipa::path(get, path = "/v1/log", tag = "pool", params(LogOptions), responses(
    (status = 200, description = "Entries", body = Vec<LogEntry>),
    Failures
))]
pub(crate) async fn log(
    State(app): State<App>,
    caller: Caller,
    Options(options): Options<LogOptions>,
) -> Result<Json<Vec<LogEntry>>, Refused> {
    caller.sees_all()?;
    let entries = app
        .core
        .call(move |pool, _| pool.log_entries(options.after, LOG_ENTRIES_MAX));
    Ok(Json(entries.await?))
}

/// All that is kept of the log, oldest first, as CSV.
#[utoipa::path(get, path = "/v1/log.csv", tag = "pool", responses(
    (status = 200, description = "A line for each entry, below a head line", content_type = "text/csv", body = String),
    Failures
))]
pub(crate) async fn log_csv(State(app): State<App>, caller: Caller) -> Result<Response, Refused> {
    caller.sees_all()?;
    Ok(csv::file(&app).await?)
}

fn failed(error: std::io::Error) -> Refused {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Refused::new(status, "internal", "The pool failed", error.to_string())
}
