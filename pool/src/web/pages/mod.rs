//! What the pages show: each asks the pool once, and draws a template.
#![forbid(unsafe_code)]

mod charts;
mod clients;
mod cluster;
mod gpu;
mod log;
mod queue;
mod servers;
mod settings;

pub(crate) use clients::{client, clients};
pub(crate) use cluster::cluster;
pub(crate) use gpu::gpu;
pub(crate) use log::log;
pub(crate) use queue::queue;
pub(crate) use servers::{server, servers};
pub(crate) use settings::settings;

use serde::Deserialize;

use charts::{charts, gpu_charts};

use super::visitor::Oops;
use crate::api::App;
use crate::format::{bytes, bytes_per_s, gpus, machine_time, micros, part_gpus, per_s, span, time};
use crate::history::{Range, Series};
use crate::model::{Check, Outcome, Quota, Stage};
use crate::state::Work;
use crate::state::views::LeaseView;

/// How far back the charts of a page go.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub(crate) struct RangeQuery {
    #[serde(default)]
    pub(crate) range: Range,
}

/// A time in the past, as pages write it.
#[derive(Debug)]
pub(crate) struct When {
    pub(crate) machine: String,
    pub(crate) full: String,
    pub(crate) ago: String,
}

impl When {
    fn new(at_ms: u64, now_ms: u64) -> Self {
        Self {
            machine: machine_time(at_ms),
            full: time(at_ms),
            ago: span(now_ms.saturating_sub(at_ms)),
        }
    }
}

/// What sessions do, in words; a dash where it is not known.
#[derive(Debug)]
pub(crate) struct WorkCells {
    /// GPUs that their kernels keep busy.
    pub(crate) gpus: String,
    pub(crate) calls: String,
    pub(crate) received: String,
    pub(crate) sent: String,
    /// How calls travel, and how long a round trip takes.
    pub(crate) way: String,
}

impl WorkCells {
    fn new(work: Option<&Work>) -> Self {
        let write = |text: &dyn Fn(&Work) -> Option<String>| {
            work.and_then(text).unwrap_or_else(|| "–".to_owned())
        };
        Self {
            gpus: write(&|work| work.computing_gpus.map(part_gpus)),
            calls: write(&|work| Some(per_s(work.calls_per_s))),
            received: write(&|work| Some(bytes_per_s(work.received_bytes_per_s))),
            sent: write(&|work| Some(bytes_per_s(work.sent_bytes_per_s))),
            way: write(&|work| {
                let transports = work.transports.join(", ");
                match (transports.is_empty(), work.rtt_us) {
                    (true, _) => None,
                    (false, None) => Some(transports),
                    (false, Some(us)) => Some(format!("{transports}, {}", micros(us))),
                }
            }),
        }
    }
}

/// A lease in a table.
#[derive(Debug)]
pub(crate) struct LeaseRow {
    pub(crate) lease: String,
    pub(crate) client: String,
    pub(crate) label: String,
    pub(crate) wants: String,
    pub(crate) servers: Vec<String>,
    pub(crate) memory: String,
    /// Memory that its sessions have allocated, of what it holds.
    pub(crate) used: String,
    pub(crate) work: WorkCells,
    pub(crate) since: When,
    pub(crate) ends: String,
    pub(crate) sessions: u32,
    pub(crate) state: &'static str,
    pub(crate) detail: String,
    pub(crate) place: usize,
    pub(crate) is_open: bool,
}

impl LeaseRow {
    fn new(view: &LeaseView, now_ms: u64) -> Self {
        let mut servers: Vec<String> = view.pieces.iter().map(|it| it.server.clone()).collect();
        servers.dedup();
        let memory: u64 = view.pieces.iter().map(|piece| piece.memory_bytes).sum();
        let idle_ms = now_ms.saturating_sub(view.active_ms);
        let (state, detail) = match view.stage {
            Stage::Queued => ("waiting", view.over_quota.clone().unwrap_or_default()),
            Stage::Held if view.warning.is_some() => {
                ("warned", view.warning.clone().unwrap_or_default())
            }
            Stage::Held if view.sessions > 0 && idle_ms < 15_000 => ("in use", String::new()),
            Stage::Held if view.sessions > 0 => ("idle", format!("for {}", span(idle_ms))),
            Stage::Held => ("held", String::new()),
            Stage::Ending => ("ending", reason(view)),
            Stage::Ended => ("ended", reason(view)),
        };
        let since_ms = match (&view.end, view.granted_ms) {
            (Some(end), _) => end.at_ms,
            (None, granted_ms) => granted_ms.unwrap_or(view.queued_ms),
        };
        Self {
            lease: view.lease.to_string(),
            client: view.client.clone(),
            label: view.label.clone(),
            wants: match (view.gpus, u64::from(view.share_permille)) {
                (count, 1000) => count.to_string(),
                (1, share) => gpus(share),
                (count, share) => format!("{count} × {}", gpus(share)),
            },
            servers,
            used: if memory == 0 {
                "–".to_owned()
            } else {
                format!("{} of {}", bytes(view.used_bytes), bytes(memory))
            },
            work: WorkCells::new(view.work.as_ref()),
            memory: if memory == 0 {
                "–".to_owned()
            } else {
                bytes(memory)
            },
            since: When::new(since_ms, now_ms),
            ends: view.expires_ms.map_or_else(
                || "–".to_owned(),
                |at_ms| span(at_ms.saturating_sub(now_ms)),
            ),
            sessions: view.sessions,
            state,
            detail,
            place: view.place.unwrap_or(0),
            is_open: matches!(view.stage, Stage::Queued | Stage::Held),
        }
    }
}

fn reason(view: &LeaseView) -> String {
    view.end
        .as_ref()
        .map_or_else(String::new, |end| end.reason.clone())
}

/// A part of something, as a meter shows it.
#[derive(Debug)]
pub(crate) struct Meter {
    pub(crate) part: u64,
    pub(crate) all: u64,
}

impl Meter {
    pub(crate) fn percent(&self) -> u64 {
        crate::format::percent(self.part, self.all).min(100)
    }
}

/// A limit in words, with a meter where something counts against it.
#[derive(Debug)]
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) text: String,
    pub(crate) meter: Option<Meter>,
}

/// What a quota allows and how much of it is used.
fn limits(quota: &Quota, shares: u64, memory: u64, seconds: u64) -> Vec<Limit> {
    let used = |name, part: String, all: Option<String>, meter| Limit {
        name,
        text: all.map_or_else(|| part.clone(), |all| format!("{part} of {all}")),
        meter,
    };
    let meter = |part, all: Option<u64>| all.map(|all| Meter { part, all });
    let hours = |seconds: u64| gpus(seconds * 1000 / 3600);
    let mut limits = vec![
        used(
            "GPUs",
            gpus(shares),
            quota.shares_permille_max.map(gpus),
            meter(shares, quota.shares_permille_max),
        ),
        used(
            "Memory",
            bytes(memory),
            quota.memory_bytes_max.map(bytes),
            meter(memory, quota.memory_bytes_max),
        ),
        used(
            "GPU-hours today",
            hours(seconds),
            quota.share_seconds_per_day_max.map(hours),
            meter(seconds, quota.share_seconds_per_day_max),
        ),
    ];
    let others = [
        (
            "GPUs in one request",
            quota.request_gpus_max.map(|max| format!("at most {max}")),
        ),
        ("Longest lease", quota.hold_ms_max.map(span)),
        ("Priority", quota.priority.map(|steps| steps.to_string())),
    ];
    let others = others.into_iter().filter_map(|(name, text)| {
        text.map(|text| Limit {
            name,
            text,
            meter: None,
        })
    });
    limits.extend(others);
    limits
}

/// What the fields of a quota's form hold.
#[derive(Debug, Default)]
pub(crate) struct QuotaFields {
    pub(crate) gpus: String,
    pub(crate) memory_gib: String,
    pub(crate) hours_per_day: String,
    pub(crate) request_gpus: String,
    pub(crate) longest_hours: String,
    pub(crate) priority: String,
}

impl QuotaFields {
    fn new(quota: &Quota) -> Self {
        // Shown with three digits.
        #[allow(clippy::cast_precision_loss)]
        let scaled = |value: Option<u64>, unit: f64| {
            value.map_or_else(String::new, |value| {
                let text = format!("{:.3}", value as f64 / unit);
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            })
        };
        Self {
            gpus: scaled(quota.shares_permille_max, 1000.0),
            memory_gib: scaled(quota.memory_bytes_max, f64::from(1 << 30)),
            hours_per_day: scaled(quota.share_seconds_per_day_max, 3600.0),
            request_gpus: quota
                .request_gpus_max
                .map_or_else(String::new, |it| it.to_string()),
            longest_hours: scaled(quota.hold_ms_max, 3_600_000.0),
            priority: quota.priority.map_or_else(String::new, |it| it.to_string()),
        }
    }
}

/// The worst of some checks, and how many are not well.
fn worst(checks: &[Check]) -> (Option<Outcome>, usize) {
    let bad = checks.iter().filter(|check| check.outcome != Outcome::Ok);
    (checks.iter().map(|check| check.outcome).max(), bad.count())
}

fn outcome_name(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Ok => "OK",
        Outcome::Warning => "warning",
        Outcome::Failed => "failed",
    }
}

/// Reads history on a thread that may block.
async fn history(app: &App, thing: String, range: Range) -> Result<Series, Oops> {
    let (history, now_ms) = (app.history.clone(), app.core.now_ms());
    let read = tokio::task::spawn_blocking(move || history.series(&thing, range, now_ms));
    let read = read.await.map_err(|error| error.to_string());
    let read = read.and_then(|series| series.map_err(|error| error.to_string()));
    // A page without charts is better than none.
    Ok(read.unwrap_or_else(|error| {
        ::log::warn!("history: {error}");
        Series::default()
    }))
}
