//! The HTTP and JSON interface: everything that people, clients and servers can do.
//!
//! Answers other than 2xx are problem documents. Waiting answers (`wait_ms`) come when there is news, or
//! after that time.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{IntoResponse as _, Response};
use utoipa::openapi::OpenApi;
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::{Modify, OpenApi as _};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use self::problem::Refused;
use crate::core::{Core, Unavailable};
use crate::grant::Signer;
use crate::history::{History, INTERVAL_MS};
use crate::web::{self, Web};
use crate::wire::Problem;

mod admin;
pub(crate) mod extract;
mod history;
mod leases;
mod listen;
mod metrics;
mod problem;
mod servers;

pub use listen::{ListenError, ListenOptions, Role, Serving};

/// Longest body.
pub(crate) const BODY_BYTES_MAX: usize = 256 << 10;
/// Longest wait.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// What every request has at hand.
#[derive(Clone)]
pub struct App {
    pub(crate) core: Core,
    pub(crate) signer: Arc<Signer>,
    pub(crate) history: Arc<History>,
    pub(crate) web: Arc<Web>,
}

impl App {
    /// A pool, the key of its grants, and its history.
    #[must_use]
    pub fn new(core: Core, signer: Signer, history: History) -> Self {
        Self {
            core,
            signer: Arc::new(signer),
            history: Arc::new(history),
            web: Arc::default(),
        }
    }

    /// The same with a key and a history that outlive the pool's thread.
    #[must_use]
    pub fn sharing(core: Core, signer: Arc<Signer>, history: Arc<History>) -> Self {
        Self {
            core,
            signer,
            history,
            web: Arc::default(),
        }
    }

    /// Samples the pool into its history, every ten seconds until it ends.
    pub async fn sample(self) {
        let mut last_slot = 0;
        loop {
            let now_ms = self.core.now_ms();
            let slot = now_ms / INTERVAL_MS;
            if slot == last_slot {
                let rest_ms = INTERVAL_MS - now_ms % INTERVAL_MS;
                tokio::time::sleep(Duration::from_millis(rest_ms)).await;
                continue;
            }
            last_slot = slot;
            let sampled = self.core.call(|pool, now_ms| (now_ms, pool.sample(now_ms)));
            let (at_ms, samples) = match sampled.await {
                Ok(sampled) => sampled,
                Err(Unavailable::Overloaded) => continue,
                Err(Unavailable::Stopped) => return,
            };
            let history = self.history.clone();
            let recorded = tokio::task::spawn_blocking(move || history.record(at_ms, samples));
            if let Ok(Err(error)) = recorded.await {
                log::error!("a sample is lost: {error}");
            }
        }
    }
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    pub(crate) address: IpAddr,
    pub(crate) is_tls: bool,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App").finish_non_exhaustive()
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "farcall pool",
        description = "Hands out the GPUs of many servers. Every request but GET /v1/health has a token: \
                       `Authorization: Bearer TOKEN`. Answers other than 2xx are problem documents (RFC 9457)."
    ),
    components(schemas(Problem)),
    modifiers(&Tokens),
    security(("token" = []))
)]
struct Document;

/// How a token is shown.
struct Tokens;

impl Modify for Tokens {
    fn modify(&self, document: &mut OpenApi) {
        let bearer = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        let components = document.components.get_or_insert_default();
        components.add_security_scheme("token", bearer);
    }
}

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
        .routes(routes!(admin::log_csv))
        .routes(routes!(admin::set_password))
        .routes(routes!(history::history))
        .routes(routes!(metrics::metrics))
        .split_for_parts()
}

/// The whole service: interface and pages.
pub fn service(app: App) -> Router {
    let (router, document) = routes();
    let document = document.to_json().unwrap_or_default();
    let serve_document = move || {
        let document = document.clone();
        async move { ([("content-type", "application/json")], document) }
    };
    router
        .route("/v1/openapi.json", axum::routing::get(serve_document))
        .merge(web::routes())
        .fallback(no_such_place)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(app)
}

async fn no_such_place(uri: Uri, headers: HeaderMap) -> Response {
    if let Some(page) = web::not_found(&headers, uri.path()) {
        return page;
    }
    let detail = format!(
        "there is no {}; /v1/openapi.json says what there is",
        uri.path()
    );
    Refused::new(StatusCode::NOT_FOUND, "not-found", "Not found", detail).into_response()
}

async fn no_such_method(uri: Uri) -> Refused {
    let detail = format!("{} does not take this method", uri.path());
    let status = StatusCode::METHOD_NOT_ALLOWED;
    Refused::new(status, "method", "Not with this method", detail)
}

fn wait(wait_ms: u64) -> Duration {
    Duration::from_millis(wait_ms).min(WAIT_MAX)
}
