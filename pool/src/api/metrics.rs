//! The pool for Prometheus: text format 0.0.4, names and units as docs/metrics.md has them.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use rustc_hash::FxHashMap;

use super::App;
use super::extract::Caller;
use super::problem::Refused;
use crate::model::Outcome;
use crate::state::Pool;
use crate::state::views::{GpuView, ServerView, TokenView};
use crate::wire::Problem;

/// Everything for Prometheus. Needs the token of a viewer or an administrator.
#[utoipa::path(get, path = "/metrics", tag = "pool", responses(
    (status = 200, description = "Metrics", content_type = "text/plain", body = String),
    (status = "4XX", description = "Refused", body = Problem)
))]
pub(crate) async fn metrics(State(app): State<App>, caller: Caller) -> Result<Response, Refused> {
    caller.sees_all()?;
    let text = app.core.call(|pool, now_ms| write(pool, now_ms)).await?;
    let kind = [(
        header::CONTENT_TYPE,
        "text/plain; version=0.0.4; charset=utf-8",
    )];
    Ok((kind, text).into_response())
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = write!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        self.0.push_str(name);
        for (index, (label, text)) in labels.iter().enumerate() {
            let before = if index == 0 { '{' } else { ',' };
            let text = text
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            let _ = write!(self.0, "{before}{label}=\"{text}\"");
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = writeln!(self.0, " {value}");
    }

    fn single(&mut self, name: &str, kind: &str, help: &str, value: f64) {
        self.family(name, kind, help);
        self.value(name, &[], value);
    }
}

/// What Prometheus reads.
fn write(pool: &Pool, now_ms: u64) -> String {
    let mut text = Text(String::new());
    let (servers, gpus) = (pool.server_views(), pool.gpu_views());
    write_pool(&mut text, pool, now_ms, &servers);
    write_servers(&mut text, &servers, now_ms);
    write_gpus(&mut text, &servers, &gpus);
    write_clients(&mut text, &pool.token_views(now_ms));
    text.0
}

fn write_pool(text: &mut Text, pool: &Pool, now_ms: u64, servers: &[ServerView]) {
    let summary = pool.summary(now_ms);
    text.family(
        "farcall_pool_info",
        "gauge",
        "Always 1; the version is a label.",
    );
    text.value(
        "farcall_pool_info",
        &[("version", env!("CARGO_PKG_VERSION"))],
        1.0,
    );
    let name = "farcall_pool_servers";
    text.family(name, "gauge", "Servers by state.");
    for state in ["up", "draining", "down"] {
        let count = servers
            .iter()
            .filter(|server| server.state == state)
            .count();
        text.value(name, &[("state", state)], number(count as u64));
    }
    for (name, help, value) in [
        (
            "farcall_pool_gpus",
            "GPUs of all servers.",
            summary.gpus as u64,
        ),
        (
            "farcall_pool_gpus_usable",
            "GPUs that can be handed out.",
            summary.gpus_usable as u64,
        ),
        (
            "farcall_pool_memory_bytes",
            "Device memory of usable GPUs.",
            summary.memory_bytes,
        ),
        (
            "farcall_pool_memory_held_bytes",
            "Device memory of usable GPUs that is held.",
            summary.memory_held_bytes,
        ),
        (
            "farcall_pool_leases",
            "Leases that hold GPUs.",
            summary.leases as u64,
        ),
        (
            "farcall_pool_sessions",
            "Open sessions.",
            summary.sessions.into(),
        ),
        (
            "farcall_pool_queue_length",
            "Requests that wait.",
            summary.waiting as u64,
        ),
    ] {
        text.single(name, "gauge", help, number(value));
    }
    text.single(
        "farcall_pool_gpus_held",
        "gauge",
        "Usable GPUs that are held, in shares: 0.5 is half a GPU.",
        number(summary.shares_held_permille) / 1000.0,
    );
    text.single(
        "farcall_pool_queue_wait_seconds_max",
        "gauge",
        "How long the oldest request has waited.",
        number(summary.waiting_ms_max) / 1000.0,
    );
    text.single(
        "farcall_pool_log_entries_total",
        "counter",
        "Entries that were written into the log.",
        number(pool.log_count()),
    );
}

fn write_servers(text: &mut Text, servers: &[ServerView], now_ms: u64) {
    let name = "farcall_server_up";
    text.family(name, "gauge", "1 if the server answers.");
    for server in servers {
        let is_up = f64::from(u8::from(server.state != "down"));
        text.value(
            name,
            &[("server", &server.name), ("kind", &server.kind)],
            is_up,
        );
    }
    let name = "farcall_server_seen_seconds";
    text.family(name, "gauge", "Time since the server was last heard of.");
    for server in servers {
        let ago_ms = now_ms.saturating_sub(server.seen_ms);
        text.value(name, &[("server", &server.name)], number(ago_ms) / 1000.0);
    }
    let name = "farcall_server_sessions";
    text.family(name, "gauge", "Open sessions of the server.");
    for server in servers {
        text.value(
            name,
            &[("server", &server.name)],
            server.load.sessions.into(),
        );
    }
    let name = "farcall_server_check";
    text.family(name, "gauge", "Health check: 0 OK, 1 warning, 2 failed.");
    for server in servers {
        for check in &server.load.checks {
            let value = match check.outcome {
                Outcome::Ok => 0.0,
                Outcome::Warning => 1.0,
                Outcome::Failed => 2.0,
            };
            text.value(
                name,
                &[("server", &server.name), ("check", &check.name)],
                value,
            );
        }
    }
}

fn write_gpus(text: &mut Text, servers: &[ServerView], gpus: &[GpuView]) {
    let loads = servers.iter();
    let loads: FxHashMap<&str, &[u64]> = loads
        .map(|server| (server.name.as_str(), server.load.used_bytes.as_slice()))
        .collect();
    let used = |gpu: &GpuView| {
        let used = loads.get(gpu.server.as_str())?;
        used.get(usize::from(gpu.index)).copied()
    };
    type Read<'a> = &'a dyn Fn(&GpuView) -> Option<f64>;
    let families: [(&str, &str, Read<'_>); 5] = [
        (
            "farcall_gpu_usable",
            "1 if the GPU can be handed out.",
            &|gpu| Some(f64::from(u8::from(gpu.usable))),
        ),
        (
            "farcall_gpu_held_ratio",
            "Share of the GPU that is held.",
            &|gpu| Some(1.0 - f64::from(gpu.share_free_permille) / 1000.0),
        ),
        ("farcall_gpu_memory_bytes", "Memory of the GPU.", &|gpu| {
            Some(number(gpu.memory_bytes))
        }),
        (
            "farcall_gpu_memory_held_bytes",
            "Memory of the GPU that is held.",
            &|gpu| {
                Some(number(
                    gpu.memory_bytes.saturating_sub(gpu.memory_free_bytes),
                ))
            },
        ),
        (
            "farcall_gpu_memory_used_bytes",
            "Memory of the GPU that programs have allocated.",
            &|gpu| used(gpu).map(number),
        ),
    ];
    for (name, help, read) in families {
        text.family(name, "gauge", help);
        for gpu in gpus {
            let index = gpu.index.to_string();
            let labels = [
                ("server", gpu.server.as_str()),
                ("gpu", &index),
                ("uuid", &gpu.uuid),
            ];
            if let Some(value) = read(gpu) {
                text.value(name, &labels, value);
            }
        }
    }
}

fn write_clients(text: &mut Text, tokens: &[TokenView]) {
    let held = tokens
        .iter()
        .filter(|it| it.leases > 0 || it.share_seconds_today > 0);
    let tokens: Vec<&TokenView> = held.collect();
    type Read = fn(&TokenView) -> f64;
    let families: [(&str, &str, Read); 4] = [
        (
            "farcall_client_gpus_held",
            "GPUs that the client holds, in shares.",
            |it| number(it.shares_permille) / 1000.0,
        ),
        (
            "farcall_client_memory_held_bytes",
            "Device memory that the client holds.",
            |it| number(it.memory_bytes),
        ),
        (
            "farcall_client_gpu_seconds_today",
            "Share times time since midnight (UTC).",
            |it| number(it.share_seconds_today),
        ),
        (
            "farcall_client_leases",
            "Requests and leases of the client.",
            |it| number(it.leases as u64),
        ),
    ];
    for (name, help, read) in families {
        text.family(name, "gauge", help);
        for token in &tokens {
            let group = token.group.as_deref().unwrap_or_default();
            text.value(
                name,
                &[("client", &token.name), ("group", group)],
                read(token),
            );
        }
    }
}

/// Exact up to 2^53, as all numbers of Prometheus.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::Text;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text(String::new());
        text.value("a", &[("b", "x\"y\\z\n"), ("c", "d")], 1.5);
        assert_eq!(text.0, "a{b=\"x\\\"y\\\\z\\n\",c=\"d\"} 1.5\n");
    }
}
