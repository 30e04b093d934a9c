//! The log as a file for spreadsheets (RFC 4180).
#![forbid(unsafe_code)]

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse as _, Response};

use super::visitor::{Oops, Visitor};
use crate::api::App;
use crate::core::Unavailable;
use crate::format::machine_time;
use crate::state::LogEntry;

/// All that is kept of the log.
pub(crate) async fn log(State(app): State<App>, _visitor: Visitor) -> Result<Response, Oops> {
    Ok(file(&app).await?)
}

/// It as an answer.
///
/// # Errors
/// The pool does not answer.
pub(crate) async fn file(app: &App) -> Result<Response, Unavailable> {
    let entries = app.core.call(|pool, _| pool.log_entries(None, usize::MAX));
    let text = write(&entries.await?);
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (
            header::CONTENT_DISPOSITION,
            "attachment; filename=\"farcall-pool-log.csv\"",
        ),
    ];
    Ok((headers, text).into_response())
}

/// One line for each entry, below a head line.
pub(crate) fn write(entries: &[LogEntry]) -> String {
    let mut text = String::from("number,time,who,what,on,detail\r\n");
    for entry in entries {
        let fields = [
            entry.seq.to_string(),
            machine_time(entry.at_ms),
            entry.actor.clone(),
            entry.action.clone(),
            entry.subject.clone(),
            entry.detail.clone(),
        ];
        let fields: Vec<String> = fields.iter().map(|field| quoted(field)).collect();
        text.push_str(&fields.join(","));
        text.push_str("\r\n");
    }
    text
}

/// A spreadsheet would run what begins like a formula: it gets an apostrophe, as is the custom.
fn quoted(field: &str) -> String {
    let is_formula = field.starts_with(['=', '+', '-', '@', '\t', '\r']);
    let field = if is_formula {
        format!("'{field}")
    } else {
        field.to_owned()
    };
    if field.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", field.replace('"', "\"\""))
    } else {
        field
    }
}

#[cfg(test)]
mod tests {
    use super::write;
    use crate::state::LogEntry;

    #[test]
    fn fields_are_quoted_where_they_must_be() {
        let entry = LogEntry {
            seq: 7,
            at_ms: 0,
            actor: "ann".to_owned(),
            action: "end".to_owned(),
            subject: "=HYPERLINK()".to_owned(),
            detail: "say \"no\", please".to_owned(),
        };
        let text = write(&[entry]);
        let line = text.lines().nth(1);
        let right = "7,1970-01-01T00:00:00Z,ann,end,'=HYPERLINK(),\"say \"\"no\"\", please\"";
        assert_eq!(line, Some(right));
    }
}
