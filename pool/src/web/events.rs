//! Server-sent events: that something changed, not what. Pages then ask for what they show. How servers work is told
//! without a change of records: so there is an event at least every `refresh_ms` of the settings.
#![forbid(unsafe_code)]

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream::{Stream, unfold};

use super::visitor::Visitor;
use crate::api::App;

/// Between two events at least, so that a busy pool does not keep its watchers busy.
const APART: Duration = Duration::from_secs(1);
/// A stream of `change` events.
pub(crate) async fn events(
    State(app): State<App>,
    visitor: Visitor,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let changes = app.core.changes();
    let client = visitor.session.client;
    let stream = unfold(
        (app, changes, 0_u64, APART),
        move |(app, mut changes, sent, refresh)| async move {
            if sent > 0 {
                tokio::time::sleep(APART).await;
                let rest = refresh.saturating_sub(APART);
                // A closed channel is a pool that ends: the connection will, too.
                if let Ok(Err(_)) = tokio::time::timeout(rest, changes.changed()).await {
                    return None;
                }
                changes.mark_unchanged();
            }
            // A session that is over hears nothing more.
            let checked = app.core.call(move |pool, now_ms| {
                let refresh = Duration::from_millis(pool.settings().refresh_ms);
                pool.check_client(now_ms, client).is_ok().then_some(refresh)
            });
            let refresh = checked.await.ok().flatten()?;
            let event = Event::default().event("change").data(sent.to_string());
            Some((Ok(event), (app, changes, sent + 1, refresh)))
        },
    );
    Sse::new(stream).keep_alive(KeepAlive::default())
}
