//! The first page: the whole pool at a glance.
#![forbid(unsafe_code)]

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;

use super::super::chart::Chart;
use super::super::map::{Bars, Colours, Key, bars, keys};
use super::super::visitor::{Oops, Shell, Visitor, draw, escaped};
use super::{Meter, RangeQuery, charts, history, worst};
use crate::api::App;
use crate::format::{bytes, gpus, percent, span};
use crate::history::{Figure, Range};
use crate::model::Outcome;
use crate::state::Pool;
use crate::state::views::{GpuView, ServerView, Summary};

/// Lines of the list of what needs attention; the rest is counted.
const ATTENTION_MAX: usize = 8;
/// A request that waits longer needs attention.
const LONG_WAIT_MS: u64 = 15 * 60_000;

#[derive(Template)]
#[template(path = "cluster.html")]
struct ClusterPage {
    shell: Shell,
    range: Range,
    numbers: Vec<Number>,
    attention: Vec<Attention>,
    attention_more: usize,
    servers: Vec<MapServer>,
    keys: Vec<Key>,
    charts: Vec<Chart>,
}

/// A figure that is read from afar.
struct Number {
    id: &'static str,
    name: &'static str,
    value: String,
    unit: String,
    detail: String,
    meter: Option<Meter>,
}

struct Attention {
    style: &'static str,
    place: String,
    what: String,
    text: String,
}

struct MapServer {
    name: String,
    state: String,
    bars: Bars,
}

struct Seen {
    summary: Summary,
    gpus: Vec<GpuView>,
    servers: Vec<ServerView>,
    busy: f64,
    used_bytes: u64,
    warned: usize,
}

/// The page.
pub(crate) async fn cluster(
    State(app): State<App>,
    visitor: Visitor,
    Query(query): Query<RangeQuery>,
) -> Result<Response, Oops> {
    let seen = app.core.call(see).await?;
    let series = history(&app, "cluster".to_owned(), query.range).await?;
    let colours = Colours::of(&seen.gpus);
    let mut rest = seen.gpus.as_slice();
    let mut servers = Vec::with_capacity(seen.servers.len());
    for server in &seen.servers {
        let (own, others) = rest.split_at(server.gpus.min(rest.len()));
        rest = others;
        servers.push(MapServer {
            name: server.name.clone(),
            state: server.state.clone(),
            bars: bars(own, &colours),
        });
    }
    let mut attention = attention(&seen);
    let attention_more = attention.len().saturating_sub(ATTENTION_MAX);
    attention.truncate(ATTENTION_MAX);
    draw(&ClusterPage {
        shell: Shell::new(&app, &visitor, "cluster", "Cluster"),
        range: query.range,
        numbers: numbers(&seen),
        attention,
        attention_more,
        servers,
        keys: keys(&seen.gpus, &colours),
        charts: charts(&series, query.range),
    })
}

fn see(pool: &mut Pool, now_ms: u64) -> Seen {
    let servers = pool.server_views();
    let sample = pool.sample(now_ms);
    let busy = sample
        .first()
        .map_or(0.0, |(_, it)| it.get(Figure::GpusBusy));
    let used = servers.iter().filter(|server| server.state != "down");
    let used_bytes = used.flat_map(|server| &server.load.used_bytes).sum();
    Seen {
        summary: pool.summary(now_ms),
        gpus: pool.gpu_views(),
        servers,
        busy: f64::from(busy),
        used_bytes,
        warned: pool.warned(),
    }
}

fn numbers(seen: &Seen) -> Vec<Number> {
    let summary = &seen.summary;
    let usable = summary.gpus_usable as u64 * 1000;
    let held = summary.shares_held_permille;
    // A sum of shares.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let busy = (seen.busy * 1000.0).round().max(0.0) as u64;
    let unusable = summary.gpus - summary.gpus_usable;
    let number = |id, name, value, unit: &str, detail, meter| Number {
        id,
        name,
        value,
        unit: unit.to_owned(),
        detail,
        meter,
    };
    let up = summary.servers_up;
    let all = up + summary.servers_draining + summary.servers_down;
    vec![
        number(
            "n-free",
            "Free",
            gpus(usable.saturating_sub(held)),
            "GPUs",
            match unusable {
                0 => format!("of {}", summary.gpus),
                _ => format!("of {} usable, {unusable} are not", summary.gpus_usable),
            },
            None,
        ),
        number(
            "n-held",
            "Held",
            gpus(held),
            "GPUs",
            format!("{} % by {} leases", percent(held, usable), summary.leases),
            Some(Meter {
                part: held,
                all: usable,
            }),
        ),
        number(
            "n-busy",
            "In use",
            gpus(busy),
            "GPUs",
            format!("{} % of what is held", percent(busy, held)),
            Some(Meter {
                part: busy,
                all: usable,
            }),
        ),
        number(
            "n-memory",
            "Memory held",
            percent(summary.memory_held_bytes, summary.memory_bytes).to_string(),
            "%",
            format!(
                "{} of {}; {} allocated",
                bytes(summary.memory_held_bytes),
                bytes(summary.memory_bytes),
                bytes(seen.used_bytes)
            ),
            Some(Meter {
                part: summary.memory_held_bytes,
                all: summary.memory_bytes,
            }),
        ),
        number(
            "n-queue",
            "Queue",
            summary.waiting.to_string(),
            if summary.waiting == 1 {
                "request"
            } else {
                "requests"
            },
            match summary.waiting {
                0 => "nobody waits".to_owned(),
                _ => format!("the oldest for {}", span(summary.waiting_ms_max)),
            },
            None,
        ),
        number(
            "n-servers",
            "Servers",
            up.to_string(),
            "up",
            match (summary.servers_draining, summary.servers_down) {
                (0, 0) => format!("of {all}; {} sessions", summary.sessions),
                (draining, down) => format!("of {all}; {draining} draining, {down} down"),
            },
            None,
        ),
    ]
}

/// What an administrator should look at, worst first.
fn attention(seen: &Seen) -> Vec<Attention> {
    let mut found = Vec::new();
    for server in &seen.servers {
        let place = format!("/servers/{}", escaped(&server.name));
        let add = |style, text| Attention {
            style,
            place: place.clone(),
            what: server.name.clone(),
            text,
        };
        if server.state == "down" {
            found.push(add("bad", "does not answer".to_owned()));
            continue;
        }
        match worst(&server.load.checks) {
            (Some(Outcome::Failed), count) => {
                found.push(add("bad", format!("{count} health checks are not well")));
            }
            (Some(Outcome::Warning), count) => {
                let plural = if count == 1 { "" } else { "s" };
                found.push(add("warn", format!("{count} health warning{plural}")));
            }
            _ => {}
        }
        if server.state == "draining" {
            found.push(add("note", "is draining".to_owned()));
        }
    }
    if seen.summary.waiting_ms_max > LONG_WAIT_MS {
        found.push(Attention {
            style: "warn",
            place: "/queue".to_owned(),
            what: "Queue".to_owned(),
            text: format!(
                "somebody has waited for {}",
                span(seen.summary.waiting_ms_max)
            ),
        });
    }
    if seen.warned > 0 {
        found.push(Attention {
            style: "note",
            place: "/queue".to_owned(),
            what: "Leases".to_owned(),
            text: format!("{} unused, soon taken back", seen.warned),
        });
    }
    found.sort_by_key(|it| match it.style {
        "bad" => 0,
        "warn" => 1,
        _ => 2,
    });
    found
}
