//! The other side of the interface: what the `farcall` command and servers call. Blocks.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::Agent;
use ureq::http::Request;

pub use ureq::http::Method;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, TlsProvider, parse_pem};

use crate::tls::is_loopback;
use crate::wire::Problem;

/// For one answer, beyond what it was asked to wait.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest answer: the GPUs of a large pool.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Removes.
pub const DELETE: Method = Method::DELETE;
/// Changes in part.
pub const PATCH: Method = Method::PATCH;
/// Does.
pub const POST: Method = Method::POST;
/// Replaces.
pub const PUT: Method = Method::PUT;

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The URL cannot be used.
    #[error("{url:?} is not the URL of a pool: {why}")]
    Url {
        /// As given.
        url: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The file with the pool's authority cannot be used.
    #[error("{path}: {why}")]
    Authority {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// No answer: unreachable, not trusted, gone.
    #[error("{url}: {why}")]
    Unreachable {
        /// The pool.
        url: String,
        /// What the system said.
        why: String,
    },
    /// The pool says no.
    #[error("{}", .0.detail)]
    Refused(Box<Problem>),
    /// It is not a pool, or one of another version.
    #[error("{url}: the answer is not a pool's: {why}")]
    Answer {
        /// The pool.
        url: String,
        /// What was found.
        why: String,
    },
}

impl ClientError {
    /// The status of a refusal.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused(problem) => Some(problem.status),
            _ => None,
        }
    }
}

/// A pool, and the token that it is shown. Clones share connections.
#[derive(Clone)]
pub struct PoolClient {
    agent: Agent,
    /// URLs.
    nodes: Arc<[String]>,
    /// The one that answered last.
    current: Arc<AtomicUsize>,
    token: Option<String>,
}

impl PoolClient {
    /// A pool at `url` (`https://HOST:PORT`, or `http://` on this machine), trusted because its certificate
    /// comes from the authority in `authority`. Several, separated by commas, are nodes of one pool: who does not answer is passed
    /// over. Connects to nothing yet.
    ///
    /// # Errors
    /// A URL or the file cannot be used.
    pub fn new(
        url: &str,
        authority: Option<&Path>,
        token: Option<&str>,
    ) -> Result<Self, ClientError> {
        let nodes = url.split(',').map(|url| check_url(url, authority));
        let nodes: Arc<[String]> = nodes.collect::<Result<_, _>>()?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider);
        if let Some(path) = authority {
            tls = tls.root_certs(RootCerts::new_with_certs(&read_authority(path)?));
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(ANSWER_TIMEOUT))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            nodes,
            current: Arc::default(),
            token: token.map(str::to_owned),
        })
    }

    /// The pool's URL: of the node that answered last.
    #[must_use]
    pub fn url(&self) -> &str {
        let at = self.current.load(Ordering::Relaxed);
        self.nodes.get(at).map_or("", String::as_str)
    }

    /// The same pool, shown another token.
    #[must_use]
    pub fn with_token(&self, token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..self.clone()
        }
    }

    /// Reads.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let text = self.send(Method::GET, path, Vec::new(), Duration::ZERO)?;
        self.parse(&text)
    }

    /// Reads something that is not JSON.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn get_text(&self, path: &str) -> Result<String, ClientError> {
        self.send(Method::GET, path, Vec::new(), Duration::ZERO)
    }

    /// Sends a body and reads the answer, which may take `wait` longer than usual.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
        wait: Duration,
    ) -> Result<T, ClientError> {
        let text = self.send(Method::POST, path, json(body), wait)?;
        self.parse(&text)
    }

    /// Does something that has no answer; without a body where `body` is `None`.
    ///
    /// # Errors
    /// No answer, or a refusal.
    pub fn order<B: Serialize>(
        &self,
        method: Method,
        path: &str,
        body: Option<&B>,
    ) -> Result<(), ClientError> {
        let body = body.map_or_else(Vec::new, json);
        self.send(method, path, body, Duration::ZERO).map(|_| ())
    }

    /// Asks the node that answered last, then the others.
    fn send(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        wait: Duration,
    ) -> Result<String, ClientError> {
        let first = self.current.load(Ordering::Relaxed);
        let mut outcome = self.send_to(self.url(), method.clone(), path, body.clone(), wait);
        for offset in 1..self.nodes.len() {
            if !matches!(outcome, Err(ClientError::Unreachable { .. })) {
                break;
            }
            let at = (first + offset) % self.nodes.len();
            self.current.store(at, Ordering::Relaxed);
            outcome = self.send_to(self.url(), method.clone(), path, body.clone(), wait);
        }
        outcome
    }

    fn send_to(
        &self,
        node: &str,
        method: Method,
        path: &str,
        body: Vec<u8>,
        wait: Duration,
    ) -> Result<String, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{node}{path}"))
            .header("content-type", "application/json");
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let unreachable = |why: String| ClientError::Unreachable {
            url: node.to_owned(),
            why,
        };
        let request = request
            .body(body)
            .map_err(|error| unreachable(error.to_string()))?;
        let request = self
            .agent
            .configure_request(request)
            .timeout_global(Some(ANSWER_TIMEOUT + wait))
            .build();
        let answer = self.agent.run(request);
        let mut answer = answer.map_err(|error| unreachable(error.to_string()))?;
        let status = answer.status();
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = text
            .read_to_string()
            .map_err(|error| unreachable(error.to_string()))?;
        if status.is_success() {
            return Ok(text);
        }
        Err(match serde_json::from_str::<Problem>(&text) {
            Ok(problem) => ClientError::Refused(Box::new(problem)),
            Err(_) => self.answer(format!("status {status}")),
        })
    }

    fn parse<T: DeserializeOwned>(&self, text: &str) -> Result<T, ClientError> {
        serde_json::from_str(text).map_err(|error| self.answer(error.to_string()))
    }

    fn answer(&self, why: String) -> ClientError {
        ClientError::Answer {
            url: self.url().to_owned(),
            why,
        }
    }
}

impl fmt::Debug for PoolClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolClient")
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

fn check_url(url: &str, authority: Option<&Path>) -> Result<String, ClientError> {
    let url = url.trim().trim_end_matches('/').to_owned();
    let bad = |why| ClientError::Url {
        url: url.clone(),
        why,
    };
    if let Some(rest) = url.strip_prefix("http://") {
        let host = rest.rsplit_once(':').map_or(rest, |(host, _)| host);
        if !is_loopback(host) {
            return Err(bad("plain http is for this machine only; write https://"));
        }
    } else if !url.starts_with("https://") {
        return Err(bad("write https://HOST:PORT"));
    } else if authority.is_none() {
        return Err(bad(
            "https needs the pool's authority, the file ca.pem: --pool-ca FILE",
        ));
    }
    Ok(url)
}

/// These bodies have only string keys and finite numbers.
fn json<B: Serialize>(body: &B) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

pub(crate) fn read_authority(path: &Path) -> Result<Vec<Certificate<'static>>, ClientError> {
    let bad = |why: String| ClientError::Authority {
        path: path.display().to_string(),
        why,
    };
    let text = std::fs::read(path).map_err(|error| bad(error.to_string()))?;
    let certificates: Vec<_> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(bad("there is no certificate in it".to_owned()));
    }
    Ok(certificates)
}
