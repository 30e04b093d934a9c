//! Times and defaults of the pool.
#![forbid(unsafe_code)]

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::super::visitor::{Oops, Shell, Visitor, draw};
use super::QuotaFields;
use crate::api::App;

#[derive(Template)]
#[template(path = "settings.html")]
struct SettingsPage {
    shell: Shell,
    times: Vec<TimeField>,
    fields: QuotaFields,
}

struct TimeField {
    name: &'static str,
    label: &'static str,
    unit: &'static str,
    help: &'static str,
    value: String,
    is_optional: bool,
}

/// The page.
pub(crate) async fn settings(State(app): State<App>, visitor: Visitor) -> Result<Response, Oops> {
    let settings = app.core.call(|pool, _| pool.settings().clone()).await?;
    let field =
        |name, label, unit, help, value: Option<u64>, unit_ms: u64, is_optional| TimeField {
            name,
            label,
            unit,
            help,
            value: value.map_or_else(String::new, |value| scaled(value, unit_ms)),
            is_optional,
        };
    let times = vec![
        field(
            "idle_min",
            "Idle time",
            "minutes",
            "A lease that is unused for so long is taken back, after a warning. Empty: never.",
            settings.idle_ms,
            60_000,
            true,
        ),
        field(
            "client_ttl_s",
            "Silence of a client",
            "seconds",
            "A client that is silent for so long has lost what it held for a command.",
            Some(settings.client_ttl_ms),
            1000,
            false,
        ),
        field(
            "server_ttl_s",
            "Silence of a server",
            "seconds",
            "A server that is silent for so long is down.",
            Some(settings.server_ttl_ms),
            1000,
            false,
        ),
        field(
            "grant_min",
            "Grants",
            "minutes",
            "How long a signed grant opens sessions without a new one.",
            Some(settings.grant_ms),
            60_000,
            false,
        ),
        field(
            "patience_s",
            "Patience",
            "seconds",
            "Once the first in the queue has waited so long, GPUs are set aside for it.",
            Some(settings.patience_ms),
            1000,
            false,
        ),
        field(
            "refresh_s",
            "Refresh",
            "seconds",
            "Open pages ask for new figures that often; what changes they show at once.",
            Some(settings.refresh_ms),
            1000,
            false,
        ),
    ];
    draw(&SettingsPage {
        shell: Shell::new(&app, &visitor, "settings", "Settings"),
        times,
        fields: QuotaFields::new(&settings.default_quota),
    })
}

// Three digits are shown.
#[allow(clippy::cast_precision_loss)]
fn scaled(value_ms: u64, unit_ms: u64) -> String {
    let text = format!("{:.3}", value_ms as f64 / unit_ms as f64);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
