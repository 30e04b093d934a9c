//! Clients, that is tokens: all of them with their groups, and one.
#![forbid(unsafe_code)]

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::response::Response;

use super::super::chart::Chart;
use super::super::visitor::{Oops, Shell, Visitor, draw};
use super::{LeaseRow, Limit, QuotaFields, RangeQuery, WorkCells, charts, history, limits};
use crate::api::App;
use crate::format::{bytes, gpus, span, time};
use crate::history::Range;
use crate::state::views::{GroupView, TokenView};
use crate::state::{Refusal, Role};

/// Ended leases on a client's page, the newest.
const ENDED_MAX: usize = 20;

#[derive(Template)]
#[template(path = "clients.html")]
struct ClientsPage {
    shell: Shell,
    clients: Vec<ClientRow>,
    groups: Vec<GroupRow>,
}

struct ClientRow {
    name: String,
    role: &'static str,
    group: String,
    state: &'static str,
    expires: String,
    held: String,
    memory: String,
    hours: String,
    leases: usize,
    work: WorkCells,
}

struct GroupRow {
    name: String,
    limits: Vec<Limit>,
    fields: QuotaFields,
}

/// All clients and groups.
pub(crate) async fn clients(State(app): State<App>, visitor: Visitor) -> Result<Response, Oops> {
    let seen = app
        .core
        .call(|pool, now_ms| (pool.token_views(now_ms), pool.group_views(now_ms), now_ms));
    let (tokens, groups, now_ms) = seen.await?;
    draw(&ClientsPage {
        shell: Shell::new(&app, &visitor, "clients", "Clients"),
        clients: tokens.iter().map(|token| row(token, now_ms)).collect(),
        groups: groups.iter().map(group_row).collect(),
    })
}

fn row(token: &TokenView, now_ms: u64) -> ClientRow {
    ClientRow {
        name: token.name.clone(),
        role: role_name(token.role),
        group: token.group.clone().unwrap_or_default(),
        state: state(token, now_ms),
        expires: match token.expires_ms {
            None => "never".to_owned(),
            Some(at_ms) if at_ms <= now_ms => "expired".to_owned(),
            Some(at_ms) => format!("in {}", span(at_ms - now_ms)),
        },
        held: gpus(token.shares_permille),
        memory: bytes(token.memory_bytes),
        hours: gpus(token.share_seconds_today * 1000 / 3600),
        leases: token.leases,
        work: WorkCells::new(token.work.as_ref()),
    }
}

fn group_row(group: &GroupView) -> GroupRow {
    let GroupView {
        shares_permille,
        memory_bytes,
        share_seconds_today,
        ..
    } = *group;
    GroupRow {
        name: group.name.clone(),
        limits: limits(
            &group.quota,
            shares_permille,
            memory_bytes,
            share_seconds_today,
        ),
        fields: QuotaFields::new(&group.quota),
    }
}

fn state(token: &TokenView, now_ms: u64) -> &'static str {
    match token.expires_ms {
        _ if token.disabled => "disabled",
        Some(at_ms) if at_ms <= now_ms => "expired",
        _ => "valid",
    }
}

fn role_name(role: Role) -> &'static str {
    match role {
        Role::Admin => "admin",
        Role::Viewer => "viewer",
        Role::Client => "client",
    }
}

#[derive(Template)]
#[template(path = "client.html")]
struct ClientPage {
    shell: Shell,
    range: Range,
    name: String,
    role: &'static str,
    state: &'static str,
    group: Option<String>,
    disabled: bool,
    has_password: bool,
    /// Whether it is the visitor's own.
    is_own: bool,
    created: String,
    expires: String,
    limits: Vec<Limit>,
    fields: QuotaFields,
    now: Vec<(&'static str, String)>,
    open: Vec<LeaseRow>,
    ended: Vec<LeaseRow>,
    charts: Vec<Chart>,
}

/// One client.
pub(crate) async fn client(
    State(app): State<App>,
    visitor: Visitor,
    Path(name): Path<String>,
    Query(query): Query<RangeQuery>,
) -> Result<Response, Oops> {
    let asked = name.clone();
    let seen = app.core.call(move |pool, now_ms| {
        let missing = || Refusal::NotFound(format!("There is no client {asked}."));
        let id = pool.client_named(&asked).map_err(|_| missing())?;
        let tokens = pool.token_views(now_ms);
        let token = tokens.into_iter().find(|token| token.name == asked);
        let leases = pool.lease_views(Some(id), true);
        Ok::<_, Refusal>((token.ok_or_else(missing)?, leases, now_ms))
    });
    let (token, leases, now_ms) = seen.await??;
    let series = history(&app, format!("client/{name}"), query.range).await?;
    let rows = leases.iter().map(|lease| LeaseRow::new(lease, now_ms));
    let (open, mut ended): (Vec<_>, Vec<_>) = rows.partition(|row| row.is_open);
    ended.reverse();
    ended.truncate(ENDED_MAX);
    draw(&ClientPage {
        is_own: visitor.caller.name == name,
        shell: Shell::new(&app, &visitor, "clients", &name),
        range: query.range,
        role: role_name(token.role),
        state: state(&token, now_ms),
        group: token.group.clone(),
        disabled: token.disabled,
        has_password: token.has_password,
        created: time(token.created_ms),
        expires: token.expires_ms.map_or_else(|| "never".to_owned(), time),
        limits: limits(
            &token.limits,
            token.shares_permille,
            token.memory_bytes,
            token.share_seconds_today,
        ),
        fields: QuotaFields::new(&token.quota),
        now: now(WorkCells::new(token.work.as_ref())),
        open,
        ended,
        charts: charts(&series, query.range),
        name,
    })
}

/// What all its sessions do.
fn now(work: WorkCells) -> Vec<(&'static str, String)> {
    vec![
        ("GPUs at work", work.gpus),
        ("Calls/s", work.calls),
        ("Network, from it", work.received),
        ("Network, to it", work.sent),
        ("Way", work.way),
    ]
}
