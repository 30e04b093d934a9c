//! The dashboard: pages for people, drawn here, without anything from elsewhere.
//!
//! Every page reads without JavaScript; with it, parts that changed are replaced when the pool says so
//! ([`events`]). Actions are forms; what they do is what the interface does.
#![forbid(unsafe_code)]

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};

use crate::api::App;

mod actions;
mod chart;
pub(crate) mod csv;
mod events;
mod format;
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

/// Headers of every page.
async fn guard(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
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
