//! Everything that the document of the interface does not allow is refused with a problem document that names it.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use common::setting::{Setting, full_body, place};
use common::{World, facts};
use farcall_pool::core::wall_ms;
use serde_json::{Value, json};

/// Each part of each body with a value that the document does not allow there, missing, or beside one that it does not have:
/// refused, and named.
#[test]
fn every_malformed_part_of_every_body_is_named() {
    let setting = Setting::new();
    let contract = &setting.world.contract;
    let mut tried = 0;
    for operation in contract.operations.iter().filter(|it| it.body.is_some()) {
        let (path, whole) = (place(operation), full_body(operation));
        assert!(contract.allows(operation, &whole), "{path}: {whole}");
        let mut refused = |body: &Value, field: &str| {
            let (status, problem) = setting.send(&operation.method, &path, body);
            let what = format!("{} {path} {body}: {problem}", operation.method);
            assert_eq!(status, 422, "{what}");
            let found = problem["field"].as_str();
            let found = found.unwrap_or_else(|| panic!("no field is named: {what}"));
            assert!(is_or_is_in(found, field), "{field}: {what}");
            tried += 1;
        };
        for part in parts(&whole) {
            let pointer = part.pointer();
            let old = whole.pointer(&pointer).unwrap();
            for wrong in wrong_values() {
                // Servers may be newer or older than the pool: what they say of themselves may have other fields.
                let of_servers = ["load", "server"]
                    .iter()
                    .any(|it| pointer.trim_start_matches('/').starts_with(it));
                if of_servers && wrong.is_object() {
                    continue;
                }
                let mut body = whole.clone();
                *body.pointer_mut(&pointer).unwrap() = wrong;
                if !contract.allows(operation, &body) {
                    refused(&body, &part.name());
                }
            }
            // Beyond what a number's format says, which is not in the schema.
            for wrong in no_whole_numbers().filter(|_| old.is_u64() || old.is_i64()) {
                let mut body = whole.clone();
                *body.pointer_mut(&pointer).unwrap() = wrong;
                refused(&body, &part.name());
            }
            let Some((last, parent)) = part.0.split_last() else {
                continue;
            };
            let parent = Part(parent.to_vec());
            let mut body = whole.clone();
            let object = body.pointer_mut(&parent.pointer()).unwrap();
            if let (Some(object), Step::Field(name)) = (object.as_object_mut(), last) {
                object.remove(name);
                if !contract.allows(operation, &body) {
                    refused(&body, &part.name());
                }
            }
        }
        let mut body = whole.clone();
        body["colour"] = json!("red");
        refused(&body, "colour");
    }
    assert!(tried > 500, "{tried}");
}

/// A body that is no JSON, in many ways, and what only looks like it.
#[test]
fn every_broken_body_is_refused() {
    let setting = Setting::new();
    let world = &setting.world;
    for operation in world
        .contract
        .operations
        .iter()
        .filter(|it| it.body.is_some())
    {
        let (path, whole) = (place(operation), full_body(operation).to_string());
        let token = Some(setting.token(&path));
        let refused = |body: &[u8]| {
            let (status, problem) = world.raw(&operation.method, &path, token, body);
            let body = String::from_utf8_lossy(body);
            let what = format!("{} {path} {body}: {problem}", operation.method);
            assert_eq!(status, 422, "{what}");
            assert!(problem["field"].is_string(), "{what}");
        };
        for end in 0..whole.len() {
            refused(&whole.as_bytes()[..end]);
        }
        let twice = whole.replacen('{', &format!("{{{},", first_field(&whole)), 1);
        let deep = "[".repeat(100_000);
        for body in [
            twice.as_bytes(),
            format!("{whole}{whole}").as_bytes(),
            format!("\u{feff}{whole}").as_bytes(),
            whole.replace('"', "'").as_bytes(),
            deep.as_bytes(),
            b"null",
            b"\xff\xfe{\0}\0",
            b"gpus=1&share_permille=500",
        ] {
            refused(body);
        }
        let huge = vec![b' '; 300 << 10];
        let sent = world.raw(&operation.method, &path, token, &huge);
        let in_chunks = world.raw_chunked(&operation.method, &path, token, &huge);
        for (status, problem) in [sent, in_chunks] {
            assert_eq!(status, 413, "{} {path}: {problem}", operation.method);
            assert!(problem["detail"].as_str().unwrap().contains("262144"));
        }
    }
}

/// `"name":value` of the first field of an object.
fn first_field(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap();
    let (name, value) = value.as_object().unwrap().iter().next().unwrap();
    format!("{}:{value}", json!(name))
}

/// What the document cannot say of values, and what stands in paths and behind the `?`.
#[test]
fn values_that_cannot_be_are_named() {
    let setting = Setting::new();
    let long = "x".repeat(300);
    let server = |pointer: &str, value: Value| {
        let mut body =
            json!({"server": serde_json::to_value(facts("s0")).unwrap(), "clock_ms": wall_ms()});
        *body.pointer_mut(pointer).unwrap() = value;
        body
    };
    let settings = |field: &str, value: Value| {
        let (_, mut settings) = setting.send("GET", "/v1/settings", &Value::Null);
        *settings.pointer_mut(field).unwrap() = value;
        settings
    };
    let (ask, tokens, register) = ("/v1/leases", "/v1/tokens", "/v1/register");
    for (method, path, body, field) in [
        ("POST", ask, json!({"gpus": 0}), "gpus"),
        ("POST", ask, json!({"gpus": 2000}), "gpus"),
        (
            "POST",
            ask,
            json!({"gpus": 1, "share_permille": 0}),
            "share_permille",
        ),
        (
            "POST",
            ask,
            json!({"gpus": 1, "share_permille": 1001}),
            "share_permille",
        ),
        (
            "POST",
            ask,
            json!({"gpus": 1, "memory_bytes": 0}),
            "memory_bytes",
        ),
        (
            "POST",
            ask,
            json!({"gpus": 1, "filters": ["gpu.name=H100", "gpu.colour=red"]}),
            "filters[1]",
        ),
        (
            "POST",
            ask,
            json!({"gpus": 1, "filters": vec!["gpu.name=H100"; 65]}),
            "filters",
        ),
        (
            "POST",
            ask,
            json!({"gpus": 1, "servers": ["nowhere"]}),
            "servers",
        ),
        ("POST", ask, json!({"gpus": 1, "near": long}), "near"),
        ("POST", ask, json!({"gpus": 1, "label": long}), "label"),
        ("POST", ask, json!({"gpus": 1, "hold_ms": 0}), "hold_ms"),
        ("POST", ask, json!({"gpus": 1, "idle_ms": 0}), "idle_ms"),
        ("POST", tokens, json!({"name": "a b"}), "name"),
        ("POST", tokens, json!({"name": "bob", "group": ""}), "group"),
        (
            "POST",
            tokens,
            json!({"name": "bob", "valid_ms": 0}),
            "valid_ms",
        ),
        (
            "POST",
            tokens,
            json!({"name": "bob", "quota": {"priority": 11}}),
            "quota.priority",
        ),
        (
            "PATCH",
            "/v1/tokens/ann",
            json!({"valid_ms": 0}),
            "valid_ms",
        ),
        (
            "PATCH",
            "/v1/tokens/ann",
            json!({"quota": {"priority": -11}}),
            "quota.priority",
        ),
        (
            "PUT",
            "/v1/tokens/ann/password",
            json!({"password": "short"}),
            "password",
        ),
        (
            "PUT",
            "/v1/groups/a%20b/quota",
            json!({"quota": {}}),
            "name",
        ),
        (
            "PUT",
            "/v1/groups/team/quota",
            json!({"quota": {"priority": 99}}),
            "quota.priority",
        ),
        (
            "POST",
            "/v1/joins",
            json!({"name": "s", "valid_ms": 0, "uses": 1}),
            "valid_ms",
        ),
        (
            "POST",
            "/v1/joins",
            json!({"name": "s", "valid_ms": 9, "uses": 0}),
            "uses",
        ),
        (
            "POST",
            "/v1/joins",
            json!({"name": "", "valid_ms": 9, "uses": 1}),
            "name",
        ),
        (
            "PUT",
            "/v1/settings",
            settings("/client_ttl_ms", json!(1)),
            "client_ttl_ms",
        ),
        (
            "PUT",
            "/v1/settings",
            settings("/server_ttl_ms", json!(1)),
            "server_ttl_ms",
        ),
        (
            "PUT",
            "/v1/settings",
            settings("/grant_ms", json!(1)),
            "grant_ms",
        ),
        (
            "PUT",
            "/v1/settings",
            settings("/refresh_ms", json!(1)),
            "refresh_ms",
        ),
        (
            "PUT",
            "/v1/settings",
            settings("/idle_ms", json!(0)),
            "idle_ms",
        ),
        (
            "PUT",
            "/v1/settings",
            settings("/default_quota/priority", json!(11)),
            "default_quota.priority",
        ),
        (
            "POST",
            register,
            server("/server/name", json!("a/b")),
            "server.name",
        ),
        (
            "POST",
            register,
            server("/server/kind", json!(long)),
            "server.kind",
        ),
        (
            "POST",
            register,
            server("/server/switch", json!(long)),
            "server.switch",
        ),
        (
            "POST",
            register,
            server("/server/cuda_version", json!("13\n")),
            "server.cuda_version",
        ),
        (
            "POST",
            register,
            server("/server/addresses", json!([])),
            "server.addresses",
        ),
        (
            "POST",
            register,
            server("/server/addresses/0/address", json!("")),
            "server.addresses[0].address",
        ),
        (
            "POST",
            register,
            server("/server/addresses/0/network", json!("")),
            "server.addresses[0].network",
        ),
        (
            "POST",
            register,
            server("/server/gpus", json!([])),
            "server.gpus",
        ),
        (
            "POST",
            register,
            server("/server/gpus/1/uuid", json!("GPU-s0-0")),
            "server.gpus[1].uuid",
        ),
        (
            "POST",
            register,
            server("/server/gpus/1/name", json!(long)),
            "server.gpus[1].name",
        ),
        (
            "POST",
            register,
            server("/server/gpus/1/memory_bytes", json!(0)),
            "server.gpus[1].memory_bytes",
        ),
        ("GET", "/v1/leases/twelve", Value::Null, "lease"),
        (
            "GET",
            "/v1/leases/L99999999999999999999",
            Value::Null,
            "lease",
        ),
        ("DELETE", "/v1/leases/L-1", Value::Null, "lease"),
        ("GET", "/v1/leases/%ff", Value::Null, "path"),
        ("GET", "/v1/leases?al=true", Value::Null, "al"),
        ("GET", "/v1/leases?all=perhaps", Value::Null, "all"),
        ("GET", "/v1/leases?ended=1", Value::Null, "ended"),
        (
            "POST",
            "/v1/leases?wait=perhaps",
            json!({"gpus": 1}),
            "wait",
        ),
        ("GET", "/v1/log?after=-1", Value::Null, "after"),
        ("GET", "/v1/history", Value::Null, "of"),
        (
            "GET",
            "/v1/history?of=cluster&range=1y",
            Value::Null,
            "range",
        ),
    ] {
        let (status, problem) = setting.send(method, path, &body);
        assert_eq!(status, 422, "{method} {path} {body}: {problem}");
        assert_eq!(problem["field"], field, "{method} {path} {body}: {problem}");
    }
    let world = &setting.world;
    assert_eq!(world.raw("GET", "/v1/nothing", None, b"").0, 404);
    assert_eq!(world.raw("DELETE", "/v1/health", None, b"").0, 405);
    assert_eq!(world.raw("POST", "/v1/gpus", None, b"{}").0, 405);
}

/// The way to a value.
#[derive(Clone)]
struct Part(Vec<Step>);

#[derive(Clone)]
enum Step {
    Field(String),
    Index(usize),
}

impl Part {
    fn pointer(&self) -> String {
        let steps = self.0.iter().map(|step| match step {
            Step::Field(name) => format!("/{name}"),
            Step::Index(index) => format!("/{index}"),
        });
        steps.collect()
    }

    /// As problems name it.
    fn name(&self) -> String {
        let steps = self.0.iter().map(|step| match step {
            Step::Field(name) => format!(".{name}"),
            Step::Index(index) => format!("[{index}]"),
        });
        let name: String = steps.collect();
        name.trim_start_matches('.').to_owned()
    }
}

/// Every part of a value but the whole.
fn parts(value: &Value) -> Vec<Part> {
    let below = |step: Step, value: &Value| {
        let own = std::iter::once(Part(vec![step.clone()]));
        let deeper = parts(value).into_iter().map(move |part| {
            let steps = std::iter::once(step.clone()).chain(part.0);
            Part(steps.collect())
        });
        own.chain(deeper).collect::<Vec<_>>()
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .flat_map(|(name, value)| below(Step::Field(name.clone()), value))
            .collect(),
        Value::Array(items) => (0..)
            .zip(items)
            .flat_map(|(index, value)| below(Step::Index(index), value))
            .collect(),
        _ => Vec::new(),
    }
}

/// One of each kind: where a schema allows one, it forbids the others.
fn wrong_values() -> [Value; 7] {
    [
        Value::Null,
        json!(true),
        json!("x"),
        json!(7),
        json!(-7.5),
        json!([[7]]),
        json!({"x": 1}),
    ]
}

/// In no range, or not whole.
fn no_whole_numbers() -> impl Iterator<Item = Value> {
    let beyond = serde_json::from_str("18446744073709551616").unwrap();
    [json!(-1000), json!(0.5), beyond].into_iter()
}

/// Whether a problem's field is this one or a part of it.
fn is_or_is_in(found: &str, field: &str) -> bool {
    let rest = found.strip_prefix(field);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['[', '.']))
}

/// Below HTTP there is nobody yet who could name a field: the connection ends with a status alone, and the pool goes on.
#[test]
fn what_is_no_request_ends_its_connection_and_nothing_else() {
    let world = World::new();
    let many = "x-header: value\r\n".repeat(200);
    let cases = [
        ("nonsense\r\n\r\n".to_owned(), Some(400)),
        ("GET / HTTP/9.9\r\nhost: pool\r\n\r\n".to_owned(), Some(400)),
        (
            "GET /\u{1} HTTP/1.1\r\nhost: pool\r\n\r\n".to_owned(),
            Some(400),
        ),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), Some(431)),
        (
            format!("GET /{} HTTP/1.1\r\nhost: pool\r\n\r\n", "a".repeat(70_000)),
            Some(414),
        ),
        (
            format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20)),
            Some(431),
        ),
        (
            "\u{16}\u{3}\u{1} what TLS begins with\r\n\r\n".to_owned(),
            Some(400),
        ),
    ];
    for (request, status) in cases {
        let mut stream = TcpStream::connect(world.address).unwrap();
        // What is refused unread may not find a reader, nor its answer one.
        let _ = stream.write_all(request.as_bytes());
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8(answer).unwrap();
        let told = answer
            .split(' ')
            .nth(1)
            .and_then(|it| it.parse::<u16>().ok());
        let shown = &request[..request.len().min(60)];
        assert!(
            told == status || answer.is_empty() && request.len() > 100_000,
            "{shown}: {answer}"
        );
        assert!(
            answer.is_empty() || answer.ends_with("\r\n\r\n"),
            "{shown}: {answer}"
        );
        assert_eq!(world.raw("GET", "/v1/health", None, b"").0, 200);
    }
}
