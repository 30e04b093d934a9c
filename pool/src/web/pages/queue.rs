//! Who waits, who holds, and what ended lately.
#![forbid(unsafe_code)]

use askama::Template;
use axum::extract::State;
use axum::response::Response;

use super::super::visitor::{Oops, Shell, Visitor, draw};
use super::LeaseRow;
use crate::api::App;
use crate::model::Stage;

/// Rows of each table; the rest is counted.
const ROWS_MAX: usize = 200;

#[derive(Template)]
#[template(path = "queue.html")]
struct QueuePage {
    shell: Shell,
    waiting: Vec<LeaseRow>,
    waiting_more: usize,
    held: Vec<LeaseRow>,
    held_more: usize,
    ended: Vec<LeaseRow>,
}

/// The page.
pub(crate) async fn queue(State(app): State<App>, visitor: Visitor) -> Result<Response, Oops> {
    let seen = app
        .core
        .call(|pool, now_ms| (pool.lease_views(None, true), now_ms));
    let (leases, now_ms) = seen.await?;
    let rows = |stages: &[Stage]| -> Vec<LeaseRow> {
        let chosen = leases.iter().filter(|lease| stages.contains(&lease.stage));
        chosen.map(|lease| LeaseRow::new(lease, now_ms)).collect()
    };
    let mut waiting = rows(&[Stage::Queued]);
    waiting.sort_by_key(|row| row.place);
    let mut held = rows(&[Stage::Held, Stage::Ending]);
    // Those that need somebody first, then the newest.
    held.reverse();
    held.sort_by_key(|row| row.state != "warned");
    let mut ended = rows(&[Stage::Ended]);
    ended.reverse();
    ended.truncate(20);
    let cut = |rows: &mut Vec<LeaseRow>| {
        let more = rows.len().saturating_sub(ROWS_MAX);
        rows.truncate(ROWS_MAX);
        more
    };
    let (waiting_more, held_more) = (cut(&mut waiting), cut(&mut held));
    draw(&QueuePage {
        shell: Shell::new(&app, &visitor, "queue", "Queue and leases"),
        waiting,
        waiting_more,
        held,
        held_more,
        ended,
    })
}
