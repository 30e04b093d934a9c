//! Servers: all of them, and one.
#![forbid(unsafe_code)]

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::Response;

use super::super::chart::Chart;
use super::super::map::{Bars, Colours, bars};
use super::super::visitor::{Oops, Shell, Visitor, draw};
use super::gpu::{known, power, temperature};
use super::{LeaseRow, Meter, RangeQuery, When, WorkCells, charts, history, outcome_name, worst};
use crate::api::App;
use crate::format::{bytes, gpus, part, span};
use crate::history::Range;
use crate::model::{Check, Outcome};
use crate::state::Refusal;
use crate::state::views::{GpuView, LeaseView, ServerView};

#[derive(Template)]
#[template(path = "servers.html")]
struct ServersPage {
    shell: Shell,
    servers: Vec<ServerRow>,
}

struct ServerRow {
    name: String,
    state: String,
    kind: String,
    bars: Bars,
    held: String,
    count: usize,
    leases: usize,
    used: String,
    cuda: String,
    switch: String,
    seen: When,
    /// Class and words.
    health: Option<(String, String)>,
}

/// All servers.
pub(crate) async fn servers(State(app): State<App>, visitor: Visitor) -> Result<Response, Oops> {
    let seen = app
        .core
        .call(|pool, now_ms| (pool.server_views(), pool.gpu_views(), now_ms));
    let (views, all_gpus, now_ms) = seen.await?;
    let colours = Colours::of(&all_gpus);
    let mut rest = all_gpus.as_slice();
    let mut rows = Vec::with_capacity(views.len());
    for view in &views {
        let (own, others) = rest.split_at(view.gpus.min(rest.len()));
        rest = others;
        rows.push(row(view, own, &colours, now_ms));
    }
    draw(&ServersPage {
        shell: Shell::new(&app, &visitor, "servers", "Servers"),
        servers: rows,
    })
}

fn row(view: &ServerView, own: &[GpuView], colours: &Colours, now_ms: u64) -> ServerRow {
    ServerRow {
        name: view.name.clone(),
        state: view.state.clone(),
        kind: view.kind.clone(),
        bars: bars(own, colours),
        held: held(own),
        count: own.len(),
        leases: view.leases,
        used: bytes(view.load.used_bytes.iter().sum()),
        cuda: view.cuda_version.clone(),
        switch: view.switch.clone(),
        seen: When::new(view.seen_ms, now_ms),
        health: health(&view.load.checks),
    }
}

fn health(checks: &[Check]) -> Option<(String, String)> {
    let (worst, count) = worst(checks);
    let name = outcome_name(worst?);
    let text = match worst? {
        Outcome::Ok => name.to_owned(),
        _ => format!("{count} {name}"),
    };
    Some((name.to_lowercase(), text))
}

fn held(own: &[GpuView]) -> String {
    let free = own.iter().map(|gpu| u64::from(gpu.share_free_permille));
    gpus((own.len() as u64 * 1000).saturating_sub(free.sum()))
}

#[derive(Template)]
#[template(path = "server.html")]
struct ServerPage {
    shell: Shell,
    range: Range,
    view: ServerView,
    facts: Vec<(&'static str, String)>,
    gpus: Vec<GpuRow>,
    leases: Vec<LeaseRow>,
    checks: Vec<CheckRow>,
    charts: Vec<Chart>,
}

struct GpuRow {
    index: u16,
    name: String,
    uuid: String,
    state: &'static str,
    bars: Bars,
    held: String,
    clients: Vec<(usize, String, String)>,
    memory: Meter,
    memory_text: String,
    used: String,
    computing: String,
    utilization: String,
    temperature: String,
    power: String,
}

/// A health check in a table.
pub(super) struct CheckRow {
    pub(super) name: String,
    pub(super) outcome: &'static str,
    pub(super) found: String,
    pub(super) meaning: String,
    pub(super) advice: String,
    pub(super) at: When,
}

pub(super) fn check_rows(checks: &[Check], now_ms: u64) -> Vec<CheckRow> {
    let row = |check: &Check| CheckRow {
        name: check.name.clone(),
        outcome: outcome_name(check.outcome),
        found: check.found.clone(),
        meaning: check.meaning.clone(),
        advice: check.advice.clone(),
        at: When::new(check.at_ms, now_ms),
    };
    checks.iter().map(row).collect()
}

pub(super) fn gpu_state(gpu: &GpuView) -> &'static str {
    match (gpu.healthy, gpu.usable, gpu.set_aside) {
        (false, ..) => "lost",
        (true, false, _) => "not usable",
        (true, true, true) => "set aside",
        (true, true, false) => "usable",
    }
}

/// One server.
pub(crate) async fn server(
    State(app): State<App>,
    visitor: Visitor,
    Path(name): Path<String>,
    Query(query): Query<RangeQuery>,
) -> Result<Response, Oops> {
    let asked = name.clone();
    let seen = app.core.call(move |pool, now_ms| {
        let views = pool.server_views();
        let view = views.into_iter().find(|view| view.name == asked);
        let view = view.ok_or_else(|| Refusal::NotFound(format!("There is no server {asked}.")))?;
        let mut gpus = pool.gpu_views();
        gpus.retain(|gpu| gpu.server == asked);
        let mut leases = pool.lease_views(None, false);
        leases.retain(|lease| lease.pieces.iter().any(|piece| piece.server == asked));
        Ok::<_, Refusal>((view, gpus, leases, now_ms))
    });
    let (view, own, leases, now_ms) = seen.await??;
    let series = history(&app, format!("server/{name}"), query.range).await?;
    let colours = Colours::of(&own);
    draw(&ServerPage {
        shell: Shell::new(&app, &visitor, "servers", &name),
        range: query.range,
        facts: facts(&view, now_ms),
        gpus: gpu_rows(&own, &colours),
        leases: lease_rows(&view, &leases, now_ms),
        checks: check_rows(&view.load.checks, now_ms),
        charts: charts(&series, query.range),
        view,
    })
}

fn facts(view: &ServerView, now_ms: u64) -> Vec<(&'static str, String)> {
    let or_dash = |text: &str| if text.is_empty() { "–" } else { text }.to_owned();
    let addresses: Vec<String> = view
        .addresses
        .iter()
        .map(|it| format!("{} ({})", it.address, it.network))
        .collect();
    // What a silent server said last is not how it is now.
    let work = view.load.work().filter(|_| view.state != "down");
    let work = WorkCells::new(work.as_ref());
    vec![
        ("Address", or_dash(&addresses.join(", "))),
        ("Device", view.kind.clone()),
        ("CUDA", or_dash(&view.cuda_version)),
        ("Driver", or_dash(&view.driver_version)),
        ("RDMA", if view.rdma { "yes" } else { "no" }.to_owned()),
        ("Switch", or_dash(&view.switch)),
        ("farcall", view.version.clone()),
        ("Sessions", view.load.sessions.to_string()),
        ("GPUs at work", work.gpus),
        ("Calls/s", work.calls),
        ("Network, from clients", work.received),
        ("Network, to clients", work.sent),
        (
            "Last heard of",
            format!("{} ago", span(now_ms.saturating_sub(view.seen_ms))),
        ),
    ]
}

fn gpu_rows(own: &[GpuView], colours: &Colours) -> Vec<GpuRow> {
    let row = |gpu: &GpuView| {
        let mut clients: Vec<(usize, String, String)> = gpu
            .parts
            .iter()
            .map(|part| {
                let share = gpus(part.share_permille.into());
                (colours.get(&part.client), part.client.clone(), share)
            })
            .collect();
        clients.sort();
        let now = gpu.now.clone().unwrap_or_default();
        let held_bytes = gpu.memory_bytes.saturating_sub(gpu.memory_free_bytes);
        GpuRow {
            index: gpu.index,
            name: gpu.name.clone(),
            uuid: gpu.uuid.clone(),
            state: gpu_state(gpu),
            bars: bars(std::slice::from_ref(gpu), colours),
            held: gpus(1000 - u64::from(gpu.share_free_permille)),
            clients,
            memory: Meter {
                part: held_bytes,
                all: gpu.memory_bytes,
            },
            memory_text: format!("{} of {}", bytes(held_bytes), bytes(gpu.memory_bytes)),
            used: known(gpu.used_bytes, bytes),
            computing: known(now.computing, part),
            utilization: known(now.utilization, part),
            temperature: temperature(&now),
            power: power(&now),
        }
    };
    own.iter().map(row).collect()
}

/// Leases with what this server says of them, instead of what all do.
fn lease_rows(view: &ServerView, leases: &[LeaseView], now_ms: u64) -> Vec<LeaseRow> {
    let row = |lease: &LeaseView| {
        let mut row = LeaseRow::new(lease, now_ms);
        let used = view.load.leases.iter().find(|it| it.lease == lease.lease);
        row.sessions = used.map_or(0, |used| used.sessions);
        let pieces = lease.pieces.iter().filter(|it| it.server == view.name);
        let held: u64 = pieces.map(|piece| piece.memory_bytes).sum();
        row.work = WorkCells::new(used.and_then(|used| used.work.as_ref()));
        let used = used.map_or(0, |used| used.used_bytes);
        row.used = format!("{} of {}", bytes(used), bytes(held));
        row
    };
    leases.iter().map(row).collect()
}
