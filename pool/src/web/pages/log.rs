//! Who did what, newest first.
#![forbid(unsafe_code)]

use askama::Template;
use axum::extract::{Query, State};
use axum::response::Response;
use serde::Deserialize;

use super::super::visitor::{Oops, Shell, Visitor, draw};
use super::When;
use crate::api::App;
use crate::state::LogEntry;

/// Entries of one page.
const ENTRIES: usize = 100;

#[derive(Template)]
#[template(path = "log.html")]
struct LogPage {
    shell: Shell,
    words: String,
    entries: Vec<EntryRow>,
    older: Option<u64>,
}

struct EntryRow {
    seq: u64,
    at: When,
    entry: LogEntry,
}

/// Which part.
#[derive(Debug, Deserialize)]
pub(crate) struct LogQuery {
    /// Only entries in which these words are.
    #[serde(default)]
    words: String,
    /// Only entries before this one.
    before: Option<u64>,
}

/// The page.
pub(crate) async fn log(
    State(app): State<App>,
    visitor: Visitor,
    Query(query): Query<LogQuery>,
) -> Result<Response, Oops> {
    let seen = app
        .core
        .call(|pool, now_ms| (pool.log_entries(None, usize::MAX), now_ms));
    let (entries, now_ms) = seen.await?;
    let words = query.words.trim().to_lowercase();
    let is_wanted = |entry: &LogEntry| {
        let fields = [&entry.actor, &entry.action, &entry.subject, &entry.detail];
        let has = |word: &str| {
            fields
                .iter()
                .any(|field| field.to_lowercase().contains(word))
        };
        words.split_whitespace().all(has) && query.before.is_none_or(|seq| entry.seq < seq)
    };
    let mut wanted = entries.into_iter().rev().filter(is_wanted);
    let rows: Vec<EntryRow> = wanted
        .by_ref()
        .take(ENTRIES)
        .map(|entry| EntryRow {
            seq: entry.seq,
            at: When::new(entry.at_ms, now_ms),
            entry,
        })
        .collect();
    let is_more = wanted.next().is_some();
    draw(&LogPage {
        shell: Shell::new(&app, &visitor, "log", "Log"),
        older: rows.last().filter(|_| is_more).map(|row| row.seq),
        words: query.words,
        entries: rows,
    })
}
