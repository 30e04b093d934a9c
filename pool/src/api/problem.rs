//! Refusals as problem documents (RFC 9457).
#![forbid(unsafe_code)]

use axum::body::Body;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa::IntoResponses;

use crate::core::Unavailable;
use crate::state::Refusal;
use crate::wire::Problem;

/// Media type of problem documents.
const PROBLEM: &str = "application/problem+json";

/// What every operation answers when it does not do what it was asked, for the document: the answers themselves are [`Refused`].
#[derive(IntoResponses)]
#[allow(dead_code)]
pub(crate) enum Failures {
    /// Refused; where a part of the request is wrong, `field` names it
    #[response(status = "4XX", content_type = "application/problem+json")]
    Refused(Problem),
    /// The pool cannot answer now
    #[response(status = "5XX", content_type = "application/problem+json")]
    Failed(Problem),
}

/// A problem as an answer.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Box<Problem>);

impl Refused {
    pub(crate) fn new(status: StatusCode, kind: &str, title: &str, detail: String) -> Self {
        Self(Box::new(Problem {
            kind: format!("urn:farcall:problem:{kind}"),
            title: title.to_owned(),
            status: status.as_u16(),
            detail,
            field: None,
            quota: None,
        }))
    }

    pub(crate) fn field(field: impl Into<String>, detail: String) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let mut refused = Self::new(status, "field", "A field cannot be used", detail);
        refused.0.field = Some(field.into());
        refused
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::Field { field, detail } => Self::field(field, detail),
            Refusal::Unauthorized(_) => Self::new(
                StatusCode::UNAUTHORIZED,
                "token",
                "The token cannot be used",
                detail,
            ),
            Refusal::Forbidden(_) => Self::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "The token may not do this",
                detail,
            ),
            Refusal::NotFound(_) => {
                Self::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
            }
            Refusal::Conflict(_) => Self::new(
                StatusCode::CONFLICT,
                "conflict",
                "It contradicts what is",
                detail,
            ),
            Refusal::Quota(over) => {
                let mut refused =
                    Self::new(StatusCode::FORBIDDEN, "quota", "Over the quota", detail);
                refused.0.quota = Some(*over);
                refused
            }
            Refusal::Busy(_) => Self::new(StatusCode::CONFLICT, "busy", "Nothing is free", detail),
            Refusal::NeverFits(_) => Self::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "never-fits",
                "The pool could never grant this",
                detail,
            ),
            Refusal::Clock(_) => {
                Self::new(StatusCode::CONFLICT, "clock", "The clocks differ", detail)
            }
        }
    }
}

impl From<Unavailable> for Refused {
    fn from(error: Unavailable) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "unavailable",
            "The pool cannot answer now",
            error.to_string(),
        )
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status =
            StatusCode::from_u16(self.0.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = serde_json::to_vec(&self.0).unwrap_or_default();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = status;
        let kind = header::HeaderValue::from_static(PROBLEM);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}
