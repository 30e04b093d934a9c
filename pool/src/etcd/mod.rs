//! etcd, through the JSON gateway that each of its members has on its client port (`/v3/...`): no generated code and no second
//! HTTP stack. Every call blocks for a bounded time.
//!
//! Keys are `farcall/pool/...`: `leader` is held by the node that decides, with a lease ([`election`]); `record/...`,
//! `version` and `journal` belong to [`crate::store::EtcdStore`].
#![forbid(unsafe_code)]

pub mod election;

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

use crate::client::{ClientError, read_authority};

/// For one answer of one member.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// No member is asked later than this: a call takes twice as long at most.
const ASK_WITHIN: Duration = Duration::from_secs(1);
/// Longest call.
pub(crate) const CALL_MAX: Duration = Duration::from_secs(2);
/// Longest answer: a page of records.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Keys of a page.
const PAGE: u32 = 500;

/// Why etcd did not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EtcdError {
    /// An endpoint cannot be used.
    #[error("{url:?} is not an etcd endpoint: write http://HOST:PORT or https://HOST:PORT")]
    Endpoint {
        /// As given.
        url: String,
    },
    /// The file with etcd's authority cannot be used.
    #[error("{0}")]
    Authority(String),
    /// No member answers, or they cannot agree. What was asked may have happened.
    #[error("etcd: {0}")]
    Unreachable(String),
    /// An answer that etcd does not give.
    #[error("etcd: the answer cannot be read: {0}")]
    Answer(String),
}

/// The members of one etcd cluster. Clones share connections.
#[derive(Clone)]
pub struct Etcd {
    agent: Agent,
    endpoints: Arc<[String]>,
    /// The one that answered last.
    current: Arc<AtomicUsize>,
}

/// A key as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) value: Vec<u8>,
    /// Revision at which it was made.
    pub(crate) created: i64,
    /// Lease that it ends with; 0 = none.
    pub(crate) lease: i64,
}

/// What must hold for a transaction.
#[derive(Clone, Debug)]
pub(crate) enum Compare<'a> {
    /// The key was made at this revision; 0: it is not there.
    Created(&'a str, i64),
    /// The key has this value.
    Value(&'a str, &'a [u8]),
}

/// What a transaction does.
#[derive(Clone, Debug)]
pub(crate) enum Operation<'a> {
    /// Sets a key; `lease` 0 = for ever.
    Put {
        key: &'a str,
        value: &'a [u8],
        lease: i64,
    },
    Delete(&'a str),
}

/// How a transaction ended.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    Done,
    /// A comparison did not hold; these keys as they were then.
    Refused(Vec<Entry>),
}

impl Etcd {
    /// The cluster with these members (`http://HOST:PORT`), trusted by the authority in a file where they have TLS. Connects to
    /// nothing yet.
    ///
    /// # Errors
    /// An endpoint or the file cannot be used.
    pub fn new(endpoints: &[String], authority: Option<&Path>) -> Result<Self, EtcdError> {
        let endpoints: Arc<[String]> = endpoints
            .iter()
            .map(|url| url.trim().trim_end_matches('/').to_owned())
            .collect();
        let is_url = |url: &&String| !(url.starts_with("http://") || url.starts_with("https://"));
        if let Some(url) = endpoints.iter().find(is_url) {
            return Err(EtcdError::Endpoint { url: url.clone() });
        }
        if endpoints.is_empty() {
            return Err(EtcdError::Endpoint { url: String::new() });
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .unversioned_rustls_crypto_provider(provider);
        if let Some(path) = authority {
            let roots = read_authority(path)
                .map_err(|error: ClientError| EtcdError::Authority(error.to_string()))?;
            tls = tls.root_certs(RootCerts::new_with_certs(&roots));
        }
        let config = Agent::config_builder()
            .tls_config(tls.build())
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(ANSWER_TIMEOUT))
            .timeout_global(Some(ANSWER_TIMEOUT))
            .build();
        Ok(Self {
            agent: config.new_agent(),
            endpoints,
            current: Arc::default(),
        })
    }

    /// Every key that begins so, all as of one moment.
    pub(crate) fn all(&self, prefix: &str) -> Result<Vec<Entry>, EtcdError> {
        let end = end_of(prefix);
        let mut start = prefix.as_bytes().to_vec();
        let (mut entries, mut revision) = (Vec::new(), 0_i64);
        loop {
            let page: RangeAnswer = self.call(
                "/v3/kv/range",
                &json!({
                    "key": STANDARD.encode(&start),
                    "range_end": STANDARD.encode(&end),
                    "limit": PAGE.to_string(),
                    "revision": revision.to_string(),
                }),
            )?;
            revision = number(&page.header.revision)?;
            for pair in page.kvs {
                entries.push(pair.entry()?);
            }
            match entries.last() {
                Some(last) if page.more => {
                    start = last.key.as_bytes().to_vec();
                    start.push(0);
                }
                _ => return Ok(entries),
            }
        }
    }

    /// Does all operations if all comparisons hold, else none, and then reads `otherwise`.
    pub(crate) fn transact(
        &self,
        compare: &[Compare<'_>],
        operations: &[Operation<'_>],
        otherwise: &[&str],
    ) -> Result<Outcome, EtcdError> {
        let read = |key: &&str| json!({"request_range": {"key": STANDARD.encode(key)}});
        let answer: TransactAnswer = self.call(
            "/v3/kv/txn",
            &json!({
                "compare": compare.iter().map(Compare::to_json).collect::<Vec<_>>(),
                "success": operations.iter().map(Operation::to_json).collect::<Vec<_>>(),
                "failure": otherwise.iter().map(read).collect::<Vec<_>>(),
            }),
        )?;
        if answer.succeeded {
            return Ok(Outcome::Done);
        }
        let pairs = answer.responses.into_iter();
        let pairs = pairs.flat_map(|response| response.response_range.kvs);
        let entries: Result<Vec<Entry>, EtcdError> = pairs.map(Pair::entry).collect();
        Ok(Outcome::Refused(entries?))
    }

    /// A lease that ends when it is not kept alive for so long.
    pub(crate) fn grant(&self, ttl: Duration) -> Result<i64, EtcdError> {
        let body = json!({"TTL": ttl.as_secs().to_string()});
        let answer: LeaseAnswer = self.call("/v3/lease/grant", &body)?;
        number(&answer.id)
    }

    /// Keeps a lease alive. False: it has ended.
    pub(crate) fn keep(&self, lease: i64) -> Result<bool, EtcdError> {
        let body = json!({"ID": lease.to_string()});
        let answer: KeepAnswer = self.call("/v3/lease/keepalive", &body)?;
        Ok(number(&answer.result.ttl)? > 0)
    }

    /// Ends a lease and the keys that have it.
    pub(crate) fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        let _: Value = self.call("/v3/lease/revoke", &json!({"ID": lease.to_string()}))?;
        Ok(())
    }

    /// Asks the member that answered last, then the others.
    fn call<T: DeserializeOwned>(&self, path: &str, body: &Value) -> Result<T, EtcdError> {
        let body = body.to_string();
        let first = self.current.load(Ordering::Relaxed);
        let (mut why, since) = (String::new(), Instant::now());
        for offset in 0..self.endpoints.len() {
            let at = (first + offset) % self.endpoints.len();
            if since.elapsed() >= ASK_WITHIN {
                // The next call begins here.
                self.current.store(at, Ordering::Relaxed);
                break;
            }
            match self.ask(&format!("{}{path}", self.endpoints[at]), &body) {
                Ok(text) => {
                    self.current.store(at, Ordering::Relaxed);
                    return serde_json::from_str(&text)
                        .map_err(|error| EtcdError::Answer(format!("{error}: {text:.200}")));
                }
                Err(error) => why = format!("{}: {error}", self.endpoints[at]),
            }
        }
        Err(EtcdError::Unreachable(why))
    }

    fn ask(&self, url: &str, body: &str) -> Result<String, String> {
        let request = self.agent.post(url).content_type("application/json");
        let mut answer = request.send(body).map_err(|error| error.to_string())?;
        let status = answer.status();
        let text = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = text.read_to_string().map_err(|error| error.to_string())?;
        if status.is_success() {
            Ok(text)
        } else {
            Err(format!("status {status}: {}", text.trim()))
        }
    }
}

impl fmt::Debug for Etcd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Etcd")
            .field("endpoints", &self.endpoints)
            .finish_non_exhaustive()
    }
}

impl Compare<'_> {
    fn to_json(&self) -> Value {
        match self {
            Self::Created(key, revision) => json!({
                "key": STANDARD.encode(key),
                "target": "CREATE",
                "result": "EQUAL",
                "create_revision": revision.to_string(),
            }),
            Self::Value(key, value) => json!({
                "key": STANDARD.encode(key),
                "target": "VALUE",
                "result": "EQUAL",
                "value": STANDARD.encode(value),
            }),
        }
    }
}

impl Operation<'_> {
    fn to_json(&self) -> Value {
        match self {
            Self::Put { key, value, lease } => json!({"request_put": {
                "key": STANDARD.encode(key),
                "value": STANDARD.encode(value),
                "lease": lease.to_string(),
            }}),
            Self::Delete(key) => json!({"request_delete_range": {"key": STANDARD.encode(key)}}),
        }
    }
}

/// The first key that does not begin so.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

// Numbers of 64 bits come as texts, and what is zero or empty is left out.

#[derive(Default, Deserialize)]
#[serde(default)]
struct Header {
    revision: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RangeAnswer {
    header: Header,
    kvs: Vec<Pair>,
    more: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Pair {
    key: String,
    value: String,
    create_revision: String,
    lease: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct TransactAnswer {
    succeeded: bool,
    responses: Vec<Response>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Response {
    response_range: RangeAnswer,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LeaseAnswer {
    #[serde(rename = "ID")]
    id: String,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KeepAnswer {
    result: KeptAnswer,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct KeptAnswer {
    #[serde(rename = "TTL")]
    ttl: String,
}

impl Pair {
    fn entry(self) -> Result<Entry, EtcdError> {
        let decoded = |text: &str| {
            STANDARD
                .decode(text)
                .map_err(|error| EtcdError::Answer(error.to_string()))
        };
        let key = String::from_utf8(decoded(&self.key)?);
        Ok(Entry {
            key: key.map_err(|error| EtcdError::Answer(error.to_string()))?,
            value: decoded(&self.value)?,
            created: number(&self.create_revision)?,
            lease: number(&self.lease)?,
        })
    }
}

fn number(text: &str) -> Result<i64, EtcdError> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse()
        .map_err(|_| EtcdError::Answer(format!("{text:?} is no number")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Etcd, Pair, RangeAnswer, TransactAnswer, end_of};

    #[test]
    fn answers_as_etcd_3_4_writes_them() {
        let range = r#"{"header":{"cluster_id":"14841639068965178418","member_id":"10276657743932975437","revision":"7","raft_term":"2"},
            "kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"7","version":"3","value":"YmFy","lease":"7587"}],"more":true,"count":"9"}"#;
        let mut range: RangeAnswer = serde_json::from_str(range).unwrap();
        assert!(range.more && range.header.revision == "7");
        let entry = range.kvs.remove(0).entry().unwrap();
        assert_eq!(
            (entry.key.as_str(), entry.value.as_slice()),
            ("foo", &b"bar"[..])
        );
        assert_eq!((entry.created, entry.lease), (2, 7587));
        let refused = r#"{"header":{"revision":"7"},"responses":[{"response_range":{"header":{"revision":"7"},"kvs":[{"key":"Zm9v","value":""}],"count":"1"}}]}"#;
        let refused: TransactAnswer = serde_json::from_str(refused).unwrap();
        assert!(!refused.succeeded);
        assert_eq!(refused.responses[0].response_range.kvs.len(), 1);
        let foreign = Pair {
            key: "%%".to_owned(),
            ..Pair::default()
        };
        assert!(foreign.entry().is_err());
    }

    #[test]
    fn endpoints_are_urls() {
        assert!(Etcd::new(&["http://127.0.0.1:2379/".to_owned()], None).is_ok());
        for bad in [&["127.0.0.1:2379".to_owned()][..], &[]] {
            assert!(Etcd::new(bad, None).is_err());
        }
        assert_eq!(end_of("a/"), b"a0");
    }
}
