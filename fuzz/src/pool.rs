//! What comes to a pool, and to a server from a pool's clients.

use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use farcall_pool::api::{App, service};
use farcall_pool::core::Core;
use farcall_pool::grant::{Grant, Signer, Verifier};
use farcall_pool::history::History;
use farcall_pool::model::Quota;
use farcall_pool::secrets::{SecretKind, generate, hash};
use farcall_pool::state::{NewToken, Role};
use farcall_pool::store::MemoryStore;
use tower_service::Service as _;

/// Grants: as anyone shows them, and what would be in one that a pool has signed.
pub fn grants(bytes: &[u8]) {
    static VERIFIER: OnceLock<Verifier> = OnceLock::new();
    let verifier = VERIFIER.get_or_init(|| {
        let signer = Signer::generate().expect("randomness");
        Verifier::new(&signer.public(), "a1").expect("a key of its own")
    });
    assert!(
        verifier.verify(bytes, 1_000_000).is_err(),
        "signed by nobody"
    );
    let _ = serde_json::from_slice::<Grant>(bytes);
}

/// A pool without servers, and a token of an administrator.
struct Pool {
    runtime: tokio::runtime::Runtime,
    router: Router,
    bearer: String,
    requests: u32,
}

/// A fresh pool after so many requests: what they leave is not to fill memory.
const REQUESTS_MAX: u32 = 2000;
/// Answers that wait for news are not waited for.
const PATIENCE: Duration = Duration::from_millis(20);

impl Pool {
    fn new() -> Self {
        let core = Core::start(Box::new(MemoryStore::default()), |_| {}).expect("a core");
        let admin = generate(SecretKind::Token).expect("randomness");
        let new = NewToken {
            name: "admin".to_owned(),
            role: Role::Admin,
            group: None,
            quota: Quota::default(),
            valid_ms: None,
        };
        let token = hash(&admin);
        let made =
            core.call_blocking(move |pool, now_ms| pool.create_token(now_ms, new, &token, "fuzz"));
        made.expect("a core that runs").expect("a token");
        let history = History::in_memory().expect("a history");
        let app = App::new(core, Signer::generate().expect("randomness"), history);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        Self {
            runtime: runtime.expect("a runtime"),
            router: service(app),
            bearer: format!("Bearer {admin}"),
            requests: 0,
        }
    }

    fn request(&mut self, method: &str, path: &str, body: &[u8]) -> Option<StatusCode> {
        self.requests += 1;
        let request = Request::builder().method(method).uri(path);
        let request = request.header("authorization", &self.bearer);
        let request = request.body(Body::from(body.to_vec())).ok()?;
        let answer = self.router.call(request);
        let answer = async { tokio::time::timeout(PATIENCE, answer).await };
        let answer = self.runtime.block_on(answer).ok()?;
        answer.ok().map(|answer| answer.status())
    }
}

/// A request of an administrator: `METHOD PATH`, a new line, the body.
pub fn http(bytes: &[u8]) {
    static POOL: OnceLock<Mutex<Pool>> = OnceLock::new();
    let mut lines = bytes.splitn(2, |byte| *byte == b'\n');
    let head = lines.next().and_then(|head| std::str::from_utf8(head).ok());
    let Some((method, path)) = head.and_then(|head| head.split_once(' ')) else {
        return;
    };
    // Needs the peer's address, which a listener adds.
    if path.starts_with("/login") {
        return;
    }
    let pool = POOL.get_or_init(|| Mutex::new(Pool::new()));
    let mut pool = pool.lock().unwrap_or_else(PoisonError::into_inner);
    if pool.requests >= REQUESTS_MAX {
        *pool = Pool::new();
    }
    let status = pool.request(method, path, lines.next().unwrap_or_default());
    assert_ne!(
        status,
        Some(StatusCode::INTERNAL_SERVER_ERROR),
        "{method} {path}"
    );
}
