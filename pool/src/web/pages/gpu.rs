//! One GPU.
#![forbid(unsafe_code)]

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::Response;

use super::super::chart::Chart;
use super::super::visitor::{Oops, Shell, Visitor, draw};
use super::servers::{CheckRow, check_rows};
use super::{RangeQuery, WorkCells, gpu_charts, history};
use crate::api::App;
use crate::format::{bytes, gpus, part};
use crate::history::Range;
use crate::state::views::{GpuView, LeaseView, PartView};
use crate::state::{GpuNow, Refusal, gpu_thing};

#[derive(Template)]
#[template(path = "gpu.html")]
struct GpuPage {
    shell: Shell,
    range: Range,
    server: String,
    index: u16,
    state: &'static str,
    facts: Vec<(&'static str, String)>,
    parts: Vec<PartRow>,
    checks: Vec<CheckRow>,
    charts: Vec<Chart>,
}

/// What one lease has of it.
struct PartRow {
    lease: String,
    client: String,
    share: String,
    memory: String,
    work: WorkCells,
}

/// The page.
pub(crate) async fn gpu(
    State(app): State<App>,
    visitor: Visitor,
    Path((server, index)): Path<(String, u16)>,
    Query(query): Query<RangeQuery>,
) -> Result<Response, Oops> {
    let asked = server.clone();
    let seen = app.core.call(move |pool, now_ms| {
        let mut gpus = pool.gpu_views().into_iter();
        let gpu = gpus.find(|gpu| gpu.server == asked && gpu.index == index);
        let missing = || Refusal::NotFound(format!("There is no GPU {index} of {asked}."));
        let gpu = gpu.ok_or_else(missing)?;
        let leases = gpu.parts.iter();
        let leases: Vec<LeaseView> = leases
            .filter_map(|part| pool.lease_view(part.lease))
            .collect();
        let servers = pool.server_views().into_iter();
        let mut checks = servers
            .filter(|server| server.name == asked)
            .flat_map(|server| server.load.checks)
            .collect::<Vec<_>>();
        checks.retain(|check| check.name.starts_with(&format!("gpu {index} ")));
        Ok::<_, Refusal>((gpu, leases, checks, now_ms))
    });
    let (gpu, leases, checks, now_ms) = seen.await??;
    let series = history(&app, gpu_thing(&server, &gpu.uuid), query.range).await?;
    let title = format!("GPU {index} of {server}");
    draw(&GpuPage {
        shell: Shell::new(&app, &visitor, "servers", &title),
        range: query.range,
        server,
        index,
        state: super::servers::gpu_state(&gpu),
        facts: facts(&gpu),
        parts: gpu
            .parts
            .iter()
            .map(|part| part_row(part, &leases))
            .collect(),
        checks: check_rows(&checks, now_ms),
        charts: gpu_charts(&series, query.range),
    })
}

fn facts(gpu: &GpuView) -> Vec<(&'static str, String)> {
    let held = gpu.memory_bytes.saturating_sub(gpu.memory_free_bytes);
    let now = gpu.now.clone().unwrap_or_default();
    vec![
        ("Model", gpu.name.clone()),
        ("UUID", gpu.uuid.clone()),
        (
            "Compute capability",
            format!("{}.{}", gpu.sm / 10, gpu.sm % 10),
        ),
        ("Held", gpus(1000 - u64::from(gpu.share_free_permille))),
        ("Memory", bytes(gpu.memory_bytes)),
        ("Memory held", bytes(held)),
        ("Allocated", known(gpu.used_bytes, bytes)),
        ("Clients' kernels", known(now.computing, part)),
        ("At work, as the driver says", known(now.utilization, part)),
        ("Temperature", temperature(&now)),
        ("Power", power(&now)),
        ("ECC errors", ecc(&now)),
        ("Last Xid", known(now.xid, |number| number.to_string())),
    ]
}

fn part_row(part: &PartView, leases: &[LeaseView]) -> PartRow {
    let lease = leases.iter().find(|lease| lease.lease == part.lease);
    PartRow {
        lease: part.lease.to_string(),
        client: part.client.clone(),
        share: gpus(part.share_permille.into()),
        memory: bytes(part.memory_bytes),
        work: WorkCells::new(lease.and_then(|lease| lease.work.as_ref())),
    }
}

/// What is not known is a dash, and no zero.
pub(super) fn known<T>(value: Option<T>, write: impl Fn(T) -> String) -> String {
    value.map_or_else(|| "–".to_owned(), write)
}

pub(super) fn temperature(now: &GpuNow) -> String {
    known(now.temperature_c, |degrees| format!("{degrees:.0} °C"))
}

pub(super) fn power(now: &GpuNow) -> String {
    known(now.power_w, |watts| match now.power_limit_w {
        Some(limit) => format!("{watts:.0} of {limit:.0} W"),
        None => format!("{watts:.0} W"),
    })
}

pub(super) fn ecc(now: &GpuNow) -> String {
    let corrected = known(now.ecc_corrected, |count| format!("{count} corrected"));
    known(now.ecc_uncorrected, |count| {
        format!("{count} not, {corrected}")
    })
}
