//! The HTTP and JSON interface: everything that people, clients and servers can do.
//!
//! Answers other than 2xx are problem documents. Waiting answers (`wait_ms`) come when there is news, or
//! after that time.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{StatusCode, Uri};
use utoipa::OpenApi as _;
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::problem::Refused;
use crate::core::Core;
use crate::grant::Signer;

mod admin;
mod extract;
mod leases;
mod listen;
mod problem;
mod servers;

pub use listen::{ListenError, ListenOptions, Serving};

/// Longest body.
pub(crate) const BODY_BYTES_MAX: usize = 256 << 10;
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What every request has at hand.
#[derive(Clone)]
pub struct App {
    /// The pool.
    pub core: Core,
    /// Its key.
    pub signer: Arc<Signer>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(info(
    title = "farcall pool",
    description = "Hands out the GPUs of many servers. Every request but GET /v1/health has a token: \
                   `Authorization: Bearer TOKEN`. Answers other than 2xx are problem documents (RFC 9457)."
))]
struct Document;

/// All routes, and the document that describes them.
pub fn routes() -> (Router<App>, OpenApi) {
    OpenApiRouter::<App>::with_openapi(Document::openapi())
        .routes(routes!(admin::health))
        .routes(routes!(leases::ask, leases::list))
        .routes(routes!(leases::show, leases::release))
        .routes(routes!(leases::renew))
        .routes(routes!(servers::gpus))
        .routes(routes!(servers::summary))
        .routes(routes!(servers::list))
        .routes(routes!(servers::remove))
        .routes(routes!(servers::drain))
        .routes(routes!(servers::undrain))
        .routes(routes!(servers::register))
        .routes(routes!(servers::renew))
        .routes(routes!(admin::tokens, admin::create_token))
        .routes(routes!(admin::change_token, admin::revoke_token))
        .routes(routes!(admin::groups))
        .routes(routes!(admin::group_quota))
        .routes(routes!(admin::create_join))
        .routes(routes!(admin::settings, admin::set_settings))
        .routes(routes!(admin::log))
        .split_for_parts()
}

/// The whole service. Pages can be merged into it: they get the same [`App`].
pub fn service(app: App) -> Router {
    let (router, document) = routes();
    let document = document.to_json().unwrap_or_default();
    let serve_document = move || {
        let document = document.clone();
        async move { ([("content-type", "application/json")], document) }
    };
    router
        .route("/v1/openapi.json", axum::routing::get(serve_document))
        .fallback(no_such_place)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

async fn no_such_place(uri: Uri) -> Refused {
    let detail = format!(
        "there is no {}; /v1/openapi.json says what there is",
        uri.path()
    );
    Refused::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail)
}

async fn no_such_method(uri: Uri) -> Refused {
    let detail = format!("{} does not take this method", uri.path());
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Refused::new(status, "method", "Not with this method", detail)
}

fn wait(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms).min(WAIT_MAX)
}
