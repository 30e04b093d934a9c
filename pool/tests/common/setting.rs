//! A pool in which there is one of everything, and a body for each of its operations.

use std::time::Duration;

use farcall_pool::core::wall_ms;
use farcall_pool::state::Role;
use farcall_pool::wire::{NewSecret, Registered};
use serde_json::{Value, json};

use super::contract::Operation;
use super::{World, facts, token};

/// A world with a server of which two GPUs are held, and tokens of each kind.
pub(crate) struct Setting {
    pub(crate) world: World,
    pub(crate) client: String,
    pub(crate) viewer: String,
    pub(crate) credential: String,
}

impl Setting {
    pub(crate) fn new() -> Self {
        let world = World::new();
        let make = |name: &str, role| -> String {
            let new = token(name, role);
            let made: NewSecret = world
                .admin()
                .post("/v1/tokens", &new, Duration::ZERO)
                .unwrap();
            made.token
        };
        let (client, viewer) = (make("ann", Role::Client), make("eve", Role::Viewer));
        let (_, registered): (_, Registered) = world.join("s0");
        let setting = Self {
            client,
            viewer,
            credential: registered.credential.unwrap(),
            world,
        };
        let (status, lease) = setting.send("POST", "/v1/leases", &full_ask());
        assert_eq!((status, &lease["lease"]["lease"]), (201, &json!(1)));
        setting
    }

    /// Who may do this.
    pub(crate) fn token(&self, path: &str) -> &str {
        match path {
            "/v1/register" | "/v1/renew" => &self.credential,
            _ => &self.world.admin,
        }
    }

    /// As someone who may.
    pub(crate) fn send(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let text = match body {
            Value::Null => String::new(),
            body => body.to_string(),
        };
        let token = Some(self.token(path));
        self.world.raw(method, path, token, text.as_bytes())
    }
}

/// A body of each operation that has one, with every field, also those that can be left out.
pub(crate) fn full_body(operation: &Operation) -> Value {
    let quota = json!({"shares_permille_max": 2000, "memory_bytes_max": 1_u64 << 38, "share_seconds_per_day_max": 36_000,
        "request_gpus_max": 4, "hold_ms_max": 3_600_000, "priority": -2});
    match (operation.method.as_str(), operation.path.as_str()) {
        ("POST", "/v1/leases") => full_ask(),
        ("POST", "/v1/leases/{lease}/renew") => json!({"seen": 0, "wait_ms": 0, "holder": "h1"}),
        ("POST", "/v1/register") => {
            json!({"server": serde_json::to_value(facts("s0")).unwrap(), "clock_ms": wall_ms()})
        }
        ("POST", "/v1/renew") => full_load(),
        ("POST", "/v1/tokens") => {
            json!({"name": "bob", "role": "client", "group": "team", "quota": quota, "valid_ms": 60_000})
        }
        ("PATCH", "/v1/tokens/{name}") => {
            json!({"valid_ms": 60_000, "disabled": false, "quota": quota})
        }
        ("PUT", "/v1/tokens/{name}/password") => json!({"password": "correct horse battery"}),
        ("PUT", "/v1/groups/{name}/quota") => json!({"quota": quota}),
        ("POST", "/v1/joins") => json!({"name": "servers", "valid_ms": 60_000, "uses": 2}),
        ("PUT", "/v1/settings") => {
            json!({"client_ttl_ms": 30_000, "server_ttl_ms": 15_000, "idle_ms": 3_600_000, "grant_ms": 600_000,
                "patience_ms": 10_000, "refresh_ms": 5000, "default_quota": quota})
        }
        other => panic!("no body is known here for {other:?}"),
    }
}

pub(crate) fn full_ask() -> Value {
    json!({"gpus": 2, "share_permille": 500, "memory_bytes": 1_u64 << 30, "filters": ["gpu.name=H100"], "servers": ["s0"],
        "same_server": true, "near": "hall1/rack7", "purpose": "reservation", "hold_ms": 3_600_000, "idle_ms": 600_000,
        "label": "a test", "key": "k1"})
}

fn full_load() -> Value {
    let work = json!({"calls_per_s": 1.5, "received_bytes_per_s": 2.5, "sent_bytes_per_s": 3.5, "computing_gpus": 0.5,
        "transports": ["tcp"], "rtt_us": 40.5});
    let gpu = |uuid: &str| {
        json!({"uuid": uuid, "is_lost": false, "computing": 0.5, "utilization": 0.5, "temperature_c": 40.0, "power_w": 300.0,
            "power_limit_w": 700.0, "ecc_corrected": 1, "ecc_uncorrected": 2, "xid": 31})
    };
    let check = json!({"name": "mtu", "outcome": "warning", "found": "1500", "meaning": "It is small.", "advice": "Set it.",
        "at_ms": 7});
    let lease = json!({"lease": 1, "sessions": 1, "idle_ms": 0, "used_bytes": 7, "work": work});
    json!({"seen": 0, "wait_ms": 0, "ended": [77], "clock_ms": wall_ms(), "load": {"sessions": 1, "used_bytes": [1, 2], "leases": [lease],
        "checks": [check], "gpus": [gpu("GPU-s0-0"), gpu("GPU-s0-1")]}})
}

/// Something that there is, for the names in a path.
pub(crate) fn place(operation: &Operation) -> String {
    let name = match operation.path.split('/').nth(2) {
        Some("servers") => "s0",
        Some("tokens") => "ann",
        _ => "team",
    };
    operation
        .path
        .replace("{lease}", "L1")
        .replace("{name}", name)
}
