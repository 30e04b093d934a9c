//! The interface is what its document says: every operation is driven through its answers, each of which is held against the
//! document (`common/contract.rs`). What the document does not allow is in `malformed.rs`.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use common::setting::{Setting, full_body, place};
use common::{World, facts};
use farcall_pool::state::Change;
use farcall_pool::store::{MemoryStore, Records, Store, StoreError, Version};
use serde_json::{Value, json};

/// All answers of success, and the refusals of those who may not, cannot be found, or come too late.
#[test]
fn every_operation_answers_as_the_document_says() {
    let setting = Setting::new();
    let world = &setting.world;
    let expect = |method: &str, path: &str, body: Value, status: u16| {
        let (found, answer) = setting.send(method, path, &body);
        assert_eq!(found, status, "{method} {path}: {answer}");
        answer
    };
    // A lease that waits, so that everything about the queue is there to be seen.
    let waiting = json!({"gpus": 2, "purpose": "reservation"});
    expect("POST", "/v1/leases?wait=true", waiting.clone(), 202);
    assert_eq!(expect("POST", "/v1/leases", waiting, 409)["status"], 409);
    for operation in &world.contract.operations {
        let is_end = operation.method == "DELETE";
        if operation.path == "/v1/leases" || is_end {
            continue;
        }
        let path = match operation.path.as_str() {
            "/v1/history" => "/v1/history?of=cluster&range=7d".to_owned(),
            "/v1/log" => "/v1/log?after=0".to_owned(),
            _ => place(operation),
        };
        let body = operation.body.as_ref().map(|_| full_body(operation));
        let (status, answer) = setting.send(&operation.method, &path, &body.unwrap_or(Value::Null));
        assert!(status < 300, "{} {path}: {answer}", operation.method);
    }
    // Now there are figures of everything; also those of clients have been shaped.
    expect("GET", "/v1/leases?all=true&ended=true", Value::Null, 200);
    for (token, path) in [
        (&setting.client, "/v1/gpus"),
        (&setting.client, "/v1/servers"),
        (&setting.viewer, "/v1/tokens"),
    ] {
        assert_eq!(world.raw("GET", path, Some(token), b"").0, 200);
    }
    // What is over a quota, is taken, or is of another time.
    let own = json!({"quota": {"request_gpus_max": 1}});
    expect("PATCH", "/v1/tokens/ann", own, 204);
    let two = json!({"gpus": 2}).to_string();
    let (status, over) = world.raw("POST", "/v1/leases", Some(&setting.client), two.as_bytes());
    assert_eq!((status, &over["quota"]["max"]), (403, &json!(1)), "{over}");
    expect("POST", "/v1/tokens", json!({"name": "ann"}), 409);
    expect("DELETE", "/v1/servers/s0", Value::Null, 409);
    expect("DELETE", "/v1/tokens/admin", Value::Null, 409);
    let late = json!({"server": serde_json::to_value(facts("s0")).unwrap(), "clock_ms": 0});
    expect("POST", "/v1/register", late, 409);
    // What there is not.
    for operation in &world.contract.operations {
        if !operation.path.contains('{') || operation.path.starts_with("/v1/groups") {
            continue;
        }
        let path = operation
            .path
            .replace("{lease}", "L999")
            .replace("{name}", "nobody");
        let body = operation.body.as_ref().map(|_| full_body(operation));
        expect(&operation.method, &path, body.unwrap_or(Value::Null), 404);
    }
    // The ends.
    expect("DELETE", "/v1/leases/L1", Value::Null, 204);
    expect("GET", "/v1/leases/L1", Value::Null, 200);
    expect("DELETE", "/v1/tokens/ann", Value::Null, 204);
    silence(&setting, "s0");
    expect("DELETE", "/v1/servers/s0", Value::Null, 204);
    for operation in &world.contract.operations {
        let (seen, wanted) = (
            world.contract.seen(operation),
            world.contract.successes(operation),
        );
        let (method, path) = (&operation.method, &operation.path);
        assert!(
            !wanted.is_empty() && wanted.is_subset(&seen),
            "{method} {path} has shown {seen:?} of {wanted:?}"
        );
    }
}

/// Waits until the pool has given a server up.
fn silence(setting: &Setting, name: &str) {
    let (_, mut settings) = setting.send("GET", "/v1/settings", &Value::Null);
    settings["server_ttl_ms"] = json!(500);
    assert_eq!(setting.send("PUT", "/v1/settings", &settings).0, 204);
    let began = Instant::now();
    loop {
        let (_, servers) = setting.send("GET", "/v1/servers", &Value::Null);
        let mut servers = servers.as_array().unwrap().iter();
        if servers.any(|it| it["name"] == name && it["state"] == "down") {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "it stays up");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// Without a token, with a wrong one, with one that is good for something else: each operation says so as the document has it.
#[test]
fn who_may_not_is_refused_everywhere() {
    let setting = Setting::new();
    let world = &setting.world;
    for operation in &world.contract.operations {
        let (method, path) = (operation.method.as_str(), place(operation));
        if path == "/v1/health" {
            assert_eq!(world.raw(method, &path, None, b"").0, 200);
            continue;
        }
        let strangers = [
            None,
            Some(""),
            Some("fct_guess"),
            Some("fcj_guess"),
            Some("fcs_guess"),
            Some("\u{e9}"),
        ];
        // Whoever asks is judged once it is clear what for: so the body is one that can be.
        let body = operation.body.as_ref().map(|_| full_body(operation));
        let body = body.unwrap_or_else(|| json!({})).to_string();
        for token in strangers {
            let (status, problem) = world.raw(method, &path, token, body.as_bytes());
            assert_eq!(status, 401, "{method} {path} {token:?}: {problem}");
        }
        let is_servers = path == "/v1/register" || path == "/v1/renew";
        let other = if is_servers {
            &world.admin
        } else {
            &setting.credential
        };
        let (status, problem) = world.raw(method, &path, Some(other), body.as_bytes());
        assert_eq!(status, 401, "{method} {path}: {problem}");
        let is_everyones = [
            "/v1/leases",
            "/v1/leases/L1",
            "/v1/leases/L1/renew",
            "/v1/gpus",
            "/v1/servers",
            "/v1/summary",
        ];
        if is_servers || is_everyones.contains(&path.as_str()) {
            continue;
        }
        let body = operation.body.as_ref().map(|_| full_body(operation));
        let body = body.map_or_else(String::new, |body| body.to_string());
        let path = match path.as_str() {
            "/v1/history" => "/v1/history?of=cluster".to_owned(),
            _ => path,
        };
        let (status, problem) = world.raw(method, &path, Some(&setting.client), body.as_bytes());
        assert_eq!(status, 403, "{method} {path}: {problem}");
    }
}

/// A pool whose store has failed says so, in every answer.
#[test]
fn a_pool_that_cannot_answer_says_so() {
    let (store, breaks) = Brittle::new();
    let world = World::with_store(Box::new(store));
    breaks.store(true, SeqCst);
    let new = json!({"name": "ann"}).to_string();
    let token = Some(world.admin.as_str());
    assert_eq!(
        world.raw("POST", "/v1/tokens", token, new.as_bytes()).0,
        503
    );
    for operation in &world.contract.operations {
        let path = match operation.path.as_str() {
            // Read from another file.
            "/v1/history" => continue,
            _ => place(operation),
        };
        let secret = match path.as_str() {
            "/v1/register" | "/v1/renew" => "fcs_any",
            _ => &world.admin,
        };
        let (status, problem) = world.raw(&operation.method, &path, Some(secret), b"{}");
        assert_eq!(status, 503, "{} {path}: {problem}", operation.method);
    }
}

/// Keeps records until it is broken.
struct Brittle(MemoryStore, Arc<AtomicBool>);

impl Brittle {
    fn new() -> (Self, Arc<AtomicBool>) {
        let breaks = Arc::default();
        (Self(MemoryStore::default(), Arc::clone(&breaks)), breaks)
    }
}

impl Store for Brittle {
    fn load(&mut self) -> Result<Records, StoreError> {
        self.0.load()
    }

    fn commit(&mut self, expected: Version, changes: &[Change]) -> Result<Version, StoreError> {
        if self.1.load(SeqCst) {
            return Err(StoreError::Failed {
                path: "pool.redb".to_owned(),
                why: "no space left on device".to_owned(),
            });
        }
        self.0.commit(expected, changes)
    }
}

#[test]
fn the_document_is_whole() {
    let world = World::new();
    let document = &world.contract.document;
    assert!(world.contract.operations.len() >= 20);
    assert_eq!(
        document["components"]["securitySchemes"]["token"]["scheme"],
        "bearer"
    );
    for operation in &world.contract.operations {
        let (method, path) = (&operation.method, &operation.path);
        let said = &document["paths"][path][method.to_lowercase()];
        assert!(said["summary"].is_string(), "{method} {path}");
        let needs_token = said["security"] != json!([{}]);
        assert_eq!(needs_token, path != "/v1/health", "{method} {path}");
        for kind in ["4XX", "5XX"] {
            let content = &said["responses"][kind]["content"];
            assert!(
                content["application/problem+json"].is_object(),
                "{method} {path}"
            );
        }
    }
    // It is what the pool serves.
    let (status, served) = world.raw("GET", "/v1/openapi.json", None, b"");
    assert_eq!((status, &served), (200, document));
    let mut references = Vec::new();
    collect(document, &mut references);
    assert!(references.len() > 20);
    for reference in references {
        let pointer = reference.trim_start_matches('#');
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

fn collect(value: &Value, references: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            if let Some(Value::String(reference)) = fields.get("$ref") {
                references.push(reference.clone());
            }
            fields.values().for_each(|value| collect(value, references));
        }
        Value::Array(items) => items.iter().for_each(|value| collect(value, references)),
        _ => {}
    }
}
