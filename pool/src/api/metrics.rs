//! The pool for Prometheus: text format 0.0.4, names and units as docs/metrics.md has them.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::App;
use super::extract::Caller;
use super::problem::{Failures, Refused};
use crate::model::Outcome;
use crate::state::views::{GpuView, ServerView, TokenView};
use crate::state::{GpuNow, Pool, Work};
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};

/// Everything for Prometheus. Needs the token of a viewer or an administrator.
#[utoipa::path(get, path = "/metrics", tag = "pool", responses(
    (status = 200, description = "Metrics", content_type = "text/plain", body = String),
    Failures
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
    write_gpus(&mut text, &gpus);
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

type Family<T> = (&'static str, &'static str, fn(&T) -> Option<f64>);

const GPU: [Family<GpuView>; 5] = [
    (
        "farcall_gpu_usable",
        "1 if the GPU can be handed out.",
        |gpu| Some(f64::from(u8::from(gpu.usable))),
    ),
    (
        "farcall_gpu_held_ratio",
        "Share of the GPU that is held.",
        |gpu| Some(1.0 - f64::from(gpu.share_free_permille) / 1000.0),
    ),
    ("farcall_gpu_memory_bytes", "Memory of the GPU.", |gpu| {
        Some(number(gpu.memory_bytes))
    }),
    (
        "farcall_gpu_memory_held_bytes",
        "Memory of the GPU that is held.",
        |gpu| {
            let held = gpu.memory_bytes.saturating_sub(gpu.memory_free_bytes);
            Some(number(held))
        },
    ),
    (
        "farcall_gpu_memory_used_bytes",
        "Memory of the GPU that programs have allocated.",
        |gpu| gpu.used_bytes.map(number),
    ),
];

/// What is not known of a GPU has no sample.
const GPU_NOW: [Family<GpuNow>; 7] = [
    (
        "farcall_gpu_computing_ratio",
        "Part of the time in which kernels of sessions ran.",
        |now| now.computing,
    ),
    (
        "farcall_gpu_utilization_ratio",
        "Part of the time in which some kernel ran (NVML).",
        |now| now.utilization,
    ),
    (
        "farcall_gpu_temperature_celsius",
        "Temperature of the chip (NVML).",
        |now| now.temperature_c,
    ),
    (
        "farcall_gpu_power_watts",
        "Power that the board takes (NVML).",
        |now| now.power_w,
    ),
    (
        "farcall_gpu_ecc_corrected_errors",
        "Memory errors since the driver was loaded that ECC corrected (NVML).",
        |now| now.ecc_corrected.map(number),
    ),
    (
        "farcall_gpu_ecc_uncorrected_errors",
        "Memory errors since the driver was loaded that ECC could not correct (NVML).",
        |now| now.ecc_uncorrected.map(number),
    ),
    (
        "farcall_gpu_xid",
        "The last critical error that the driver told of since the server was started (Xid).",
        |now| now.xid.map(number),
    ),
];

fn write_gpus(text: &mut Text, gpus: &[GpuView]) {
    write_families(text, gpus, &GPU, |gpu| Some(gpu));
    write_families(text, gpus, &GPU_NOW, |gpu| gpu.now.as_ref());
}

fn write_families<T>(
    text: &mut Text,
    gpus: &[GpuView],
    families: &[Family<T>],
    part: fn(&GpuView) -> Option<&T>,
) {
    for (name, help, read) in families {
        text.family(name, "gauge", help);
        for gpu in gpus {
            let index = gpu.index.to_string();
            let labels = [
                ("server", gpu.server.as_str()),
                ("gpu", &index),
                ("uuid", &gpu.uuid),
            ];
            if let Some(value) = part(gpu).and_then(read) {
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
    for (name, help, read) in CLIENT_WORK {
        text.family(name, "gauge", help);
        for token in &tokens {
            let group = token.group.as_deref().unwrap_or_default();
            if let Some(value) = token.work.as_ref().and_then(read) {
                text.value(name, &[("client", &token.name), ("group", group)], value);
            }
        }
    }
}

const CLIENT_WORK: [Family<Work>; 5] = [
    (
        "farcall_client_calls_per_second",
        "Driver calls of the client that reach a device.",
        |work| Some(work.calls_per_s),
    ),
    (
        "farcall_client_received_bytes_per_second",
        "Traffic from the client to servers.",
        |work| Some(work.received_bytes_per_s),
    ),
    (
        "farcall_client_sent_bytes_per_second",
        "Traffic from servers to the client.",
        |work| Some(work.sent_bytes_per_s),
    ),
    (
        "farcall_client_gpus_computing",
        "GPUs that the client's kernels keep busy: 0.5 is half of one GPU's time.",
        |work| work.computing_gpus,
    ),
    (
        "farcall_client_round_trip_seconds_max",
        "Round trip of the client's slowest session.",
        |work| work.rtt_us.map(|us| us / 1e6),
    ),
];

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
