//! How it was.
#![forbid(unsafe_code)]

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::IntoParams;

use super::App;
use super::extract::{Caller, Options};
use super::problem::{Failures, Refused};
use crate::history::{Range, Series};

/// Of what, and how far back.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(crate) struct HistoryOptions {
    /// `cluster`, `server/NAME`, `gpu/SERVER/UUID` or `client/NAME`.
    of: String,
    /// `1h`, `24h`, `7d` or `30d`.
    #[serde(default)]
    #[param(value_type = String)]
    range: Range,
}

/// Figures over time. Something that was never seen has no lines.
#[utoipa::path(get, path = "/v1/history", tag = "pool", params(HistoryOptions), responses(
    (status = 200, description = "Figures", body = Series),
    Failures
))]
pub(crate) async fn history(
    State(app): State<App>,
    caller: Caller,
    Options(options): Options<HistoryOptions>,
) -> Result<Json<Series>, Refused> {
    if options.of != format!("client/{}", caller.name) {
        caller.sees_all()?;
    }
    let (history, now_ms) = (app.history.clone(), app.core.now_ms());
    let read =
        tokio::task::spawn_blocking(move || history.series(&options.of, options.range, now_ms));
    let read = read.await.map_err(|error| failed(error.to_string()))?;
    Ok(Json(read.map_err(|error| failed(error.to_string()))?))
}

fn failed(why: String) -> Refused {
    let status = StatusCode::INTERNAL_SERVER_ERROR;
    Refused::new(status, "internal", "The history cannot be read", why)
}
