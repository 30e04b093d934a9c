//! The dashboard: pages for people, drawn here, without anything from elsewhere.
//!
//! Every page reads without JavaScript; with it, parts that changed are replaced when the pool says so
//! ([`events`]). Actions are forms; what they do is what the interface does.
#![forbid(unsafe_code)]

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::api::App;

mod actions;
mod chart;
pub(crate) mod csv;
mod events;
mod limiter;
mod login;
mod map;
mod pages;
pub(crate) mod password;
mod session;
mod visitor;

pub(crate) use visitor::not_found;

/// Nothing but what this pool serves, no inline script or style, in nobody's frame.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
     connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";

/// Longer than any page.
const PAGE_BYTES_MAX: usize = 16 << 20;
/// Of zstd: a millisecond for a large page.
const COMPRESSION_LEVEL: i32 = 3;

/// What the pages need beside the pool.
#[derive(Debug, Default)]
pub struct Web {
    sessions: session::Sessions,
    limiter: limiter::Limiter,
    hashing: password::Hashing,
}

impl Web {
    pub(crate) fn hashing(&self) -> &password::Hashing {
        &self.hashing
    }
}

/// All pages.
pub(crate) fn routes() -> Router<App> {
    Router::new()
        .route("/", get(pages::cluster))
        .route("/servers", get(pages::servers))
        .route("/servers/{name}", get(pages::server))
        .route("/servers/{name}/{action}", post(actions::server))
        .route("/servers/{name}/gpus/{index}", get(pages::gpu))
        .route("/clients", get(pages::clients).post(actions::issue))
        .route("/clients/{name}", get(pages::client))
        .route("/clients/{name}/{action}", post(actions::client))
        .route("/groups", post(actions::group))
        .route("/joins", post(actions::join))
        .route("/queue", get(pages::queue))
        .route("/leases/{lease}/end", post(actions::end))
        .route("/settings", get(pages::settings).post(actions::settings))
        .route("/log", get(pages::log))
        .route("/log.csv", get(csv::log))
        .route("/events", get(events::events))
        .route("/login", get(login::form).post(login::login))
        .route("/logout", post(login::logout))
        .route("/assets/dashboard.css", get(style))
        .route("/assets/dashboard.js", get(script))
        .route("/favicon.ico", get(icon))
        .layer(from_fn(guard))
}

async fn style() -> Response {
    asset(
        "text/css; charset=utf-8",
        include_str!("../../assets/dashboard.css"),
    )
}

async fn script() -> Response {
    asset(
        "text/javascript; charset=utf-8",
        include_str!("../../assets/dashboard.js"),
    )
}

async fn icon() -> Response {
    asset("image/svg+xml", include_str!("../../assets/icon.svg"))
}

fn asset(kind: &'static str, text: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "public, max-age=300"),
    ];
    (headers, text).into_response()
}

/// Headers of every page, and pages compressed for browsers that take it: charts are long lists of numbers.
async fn guard(request: Request, next: Next) -> Response {
    let accepted = request.headers().get(header::ACCEPT_ENCODING);
    let takes_zstd = accepted
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.split([',', ';']).any(|word| word.trim() == "zstd"));
    let mut response = next.run(request).await;
    if takes_zstd {
        response = compressed(response).await;
    }
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers
        .entry(header::CACHE_CONTROL)
        .or_insert(HeaderValue::from_static("no-store"));
    response
}

/// Pages alone. What an attacker learns of a page by its length (BREACH) needs requests with the visitor's cookie, which is of this
/// site alone (`SameSite=Strict`).
async fn compressed(response: Response) -> Response {
    let is_page = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/html"));
    if !is_page {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let Ok(page) = axum::body::to_bytes(body, PAGE_BYTES_MAX).await else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let Ok(small) = zstd::bulk::compress(&page, COMPRESSION_LEVEL) else {
        return Response::from_parts(parts, page.into());
    };
    parts.headers.remove(header::CONTENT_LENGTH);
    let encoding = HeaderValue::from_static("zstd");
    parts.headers.insert(header::CONTENT_ENCODING, encoding);
    let vary = HeaderValue::from_static("accept-encoding");
    parts.headers.append(header::VARY, vary);
    Response::from_parts(parts, small.into())
}
