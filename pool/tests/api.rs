//! The HTTP interface as any program sees it: a pool in this process, plain sockets, raw requests.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{World, ask, facts, token};
use farcall_pool::api::{App, ListenOptions, Serving};
use farcall_pool::client::{ClientError, PoolClient};
use farcall_pool::core::{Core, wall_ms};
use farcall_pool::grant::{Signer, Verifier};
use farcall_pool::history::{History, Series};
use farcall_pool::model::{Outcome, ServerFacts, Stage};
use farcall_pool::state::Role;
use farcall_pool::state::views::ServerView;
use farcall_pool::store::MemoryStore;
use farcall_pool::wire::{
    LeaseAnswer, NewJoin, NewPassword, NewSecret, Orders, Register, Registered, RenewLease,
    RenewServer,
};
use serde_json::{Value, json};

#[test]
fn bad_input_is_refused_and_the_field_is_named() {
    let world = World::new();
    let cases = [
        (json!({}), "gpus"),
        (json!({"gpus": "two"}), "gpus"),
        (json!({"gpus": 0}), "gpus"),
        (json!({"gpus": 70_000}), "gpus"),
        (json!({"gpus": 1, "share_permille": 1001}), "share_permille"),
        (json!({"gpus": 1, "memory_bytes": -1}), "memory_bytes"),
        (
            json!({"gpus": 1, "filters": ["gpu.colour=red"]}),
            "filters[0]",
        ),
        (json!({"gpus": 1, "servers": ["nowhere"]}), "servers"),
        (json!({"gpus": 1, "purpose": "fun"}), "purpose"),
        (json!({"gpus": 1, "colour": "red"}), "colour"),
        (json!([]), "."),
    ];
    for (body, field) in cases {
        let text = body.to_string();
        let (status, problem) =
            world.raw("POST", "/v1/leases", Some(&world.admin), text.as_bytes());
        assert_eq!(status, 422, "{text}: {problem}");
        assert_eq!(problem["field"], field, "{text}: {problem}");
        assert_eq!(problem["status"], 422);
    }
    let (status, _) = world.raw("POST", "/v1/leases", Some(&world.admin), b"{\"gpus\": ");
    assert_eq!(status, 422);
    let huge = vec![b' '; 300 << 10];
    let (status, problem) = world.raw("POST", "/v1/leases", Some(&world.admin), &huge);
    assert_eq!(status, 413, "{problem}");
    assert_eq!(world.raw("GET", "/v1/nothing", None, b"").0, 404);
    assert_eq!(world.raw("DELETE", "/v1/health", None, b"").0, 405);
    let (status, problem) = world.raw("GET", "/v1/leases/twelve", Some(&world.admin), b"");
    assert_eq!((status, &problem["field"]), (422, &json!("lease")));
}

#[test]
fn each_token_is_good_for_its_own() {
    let world = World::new();
    let make = |name: &str, role| -> String {
        let made: NewSecret = world
            .admin()
            .post("/v1/tokens", &token(name, role), Duration::ZERO)
            .unwrap();
        made.token
    };
    let (client, viewer) = (make("ann", Role::Client), make("eve", Role::Viewer));
    let (server, _) = world.join("s0");
    for (path, client_may, viewer_may) in [
        ("/v1/tokens", false, true),
        ("/v1/log", false, true),
        ("/v1/settings", false, true),
        ("/v1/leases?all=true", false, true),
        ("/v1/gpus", true, true),
        ("/v1/leases", true, true),
    ] {
        for (token, may) in [(&client, client_may), (&viewer, viewer_may)] {
            let status = world.raw("GET", path, Some(token), b"").0;
            assert_eq!(status, if may { 200 } else { 403 }, "{path}");
        }
        assert_eq!(world.raw("GET", path, None, b"").0, 401, "{path}");
        assert_eq!(
            world.raw("GET", path, Some("fct_guess"), b"").0,
            401,
            "{path}"
        );
    }
    let body = serde_json::to_vec(&ask(1, 1000)).unwrap();
    assert_eq!(world.raw("POST", "/v1/leases", Some(&viewer), &body).0, 403);
    assert_eq!(world.raw("POST", "/v1/leases", Some(&client), &body).0, 201);
    // One client's lease is not another's.
    let other = make("bob", Role::Client);
    assert_eq!(world.raw("GET", "/v1/leases/L1", Some(&other), b"").0, 404);
    assert_eq!(
        world.raw("DELETE", "/v1/leases/L1", Some(&other), b"").0,
        404
    );
    assert_eq!(
        world.raw("DELETE", "/v1/leases/L1", Some(&client), b"").0,
        204
    );
    // A server's credential opens nothing but its own.
    assert_eq!(
        server.get::<Value>("/v1/gpus").unwrap_err().status(),
        Some(401)
    );
}

#[test]
fn a_lease_from_the_queue_to_its_end() {
    let world = World::new();
    let (server, registered) = world.join("s0");
    let admin = world.admin();
    let first: LeaseAnswer = admin
        .post("/v1/leases?holder=h0", &ask(2, 1000), Duration::ZERO)
        .unwrap();
    assert_eq!(first.lease.stage, Stage::Held);
    let verifier = Verifier::new(&registered.grant_key, "s0").unwrap();
    let grant = verifier
        .verify(first.grants[0].token.as_bytes(), wall_ms())
        .unwrap();
    assert_eq!((grant.lease, grant.gpus.len()), (first.lease.lease, 2));
    // Each way to a grant says whom it is for.
    let holder_of = |answer: &LeaseAnswer| {
        let token = answer.grants[0].token.as_bytes();
        verifier.verify(token, wall_ms()).unwrap().holder
    };
    assert_eq!(holder_of(&first), "h0");
    let shown = admin.get("/v1/leases/L1?holder=h1").unwrap();
    assert_eq!(holder_of(&shown), "h1");
    assert_eq!(holder_of(&admin.get("/v1/leases/L1").unwrap()), "");

    let refused = admin.post::<LeaseAnswer>("/v1/leases", &ask(1, 500), Duration::ZERO);
    assert_eq!(refused.unwrap_err().status(), Some(409));
    let second: LeaseAnswer = admin
        .post("/v1/leases?wait=true", &ask(1, 500), Duration::ZERO)
        .unwrap();
    assert_eq!(
        (second.lease.stage, second.lease.place),
        (Stage::Queued, Some(1))
    );

    // The second hears of its GPU the moment that the server confirms the end of the first.
    let path = format!("/v1/leases/{}/renew", second.lease.lease);
    let renewal = RenewLease {
        seen: second.lease.version,
        wait_ms: 30_000,
        holder: "h2".to_owned(),
    };
    let waiting = {
        let admin = admin.clone();
        std::thread::spawn(move || {
            admin
                .post::<LeaseAnswer>(&path, &renewal, Duration::from_secs(30))
                .unwrap()
        })
    };
    admin
        .order::<()>(farcall_pool::client::DELETE, "/v1/leases/L1", None)
        .unwrap();
    let renew = |ended| RenewServer {
        ended,
        ..RenewServer::default()
    };
    let orders: Orders = server
        .post("/v1/renew", &renew(Vec::new()), Duration::ZERO)
        .unwrap();
    assert_eq!(orders.end[0].lease, first.lease.lease);
    assert!(!waiting.is_finished(), "before the server has confirmed");
    let _: Orders = server
        .post("/v1/renew", &renew(vec![first.lease.lease]), Duration::ZERO)
        .unwrap();
    let granted = waiting.join().unwrap();
    assert_eq!(
        (granted.lease.stage, granted.grants.len()),
        (Stage::Held, 1)
    );
    assert_eq!(holder_of(&granted), "h2");
}

#[test]
fn a_clock_that_is_wrong_is_named() {
    let world = World::new();
    let (server, _) = world.join("s0");
    let register = |clock_ms| {
        let body = Register {
            server: facts("s0"),
            clock_ms,
        };
        server.post::<Registered>("/v1/register", &body, Duration::ZERO)
    };
    assert!(
        register(wall_ms() - 50_000).is_ok(),
        "a minute is tolerated"
    );
    let error = register(wall_ms() + 120_000).unwrap_err();
    let ClientError::Refused(problem) = &error else {
        panic!("{error}");
    };
    assert!(problem.kind.ends_with(":clock"), "{problem:?}");
    assert!(problem.detail.contains("ahead"), "{problem:?}");
    // One that goes wrong later is named, too, to the server and to who looks at it; what runs there goes on.
    let renew = |clock_ms| {
        let body = RenewServer {
            clock_ms: Some(clock_ms),
            ..RenewServer::default()
        };
        let orders: Orders = server.post("/v1/renew", &body, Duration::ZERO).unwrap();
        let servers: Vec<ServerView> = world.admin().get("/v1/servers").unwrap();
        let checks = servers[0].load.checks.iter();
        let failed = checks.filter(|it| it.outcome == Outcome::Failed).count();
        (orders.clock, failed)
    };
    assert_eq!(renew(wall_ms() + 50_000), (None, 0));
    let (what, failed) = renew(wall_ms() - 120_000);
    assert!(what.unwrap().contains("behind"));
    assert_eq!(failed, 1);
    assert_eq!(renew(wall_ms()), (None, 0));
}

/// A server that tries again and again with a name that is taken leaves the token to the others.
#[test]
fn a_server_that_is_refused_uses_no_join_token_up() {
    let world = World::new();
    let (_server, _) = world.join("s0");
    let new = NewJoin {
        name: "two".to_owned(),
        valid_ms: 60_000,
        uses: 2,
    };
    let join: NewSecret = world
        .admin()
        .post("/v1/joins", &new, Duration::ZERO)
        .unwrap();
    let register = |facts| {
        let body = Register {
            server: facts,
            clock_ms: wall_ms(),
        };
        let joining = world.client(&join.token);
        joining.post::<Registered>("/v1/register", &body, Duration::ZERO)
    };
    for _ in 0..3 {
        assert_eq!(register(facts("s0")).unwrap_err().status(), Some(409));
        let no_gpus = ServerFacts {
            gpus: Vec::new(),
            ..facts("s1")
        };
        assert_eq!(register(no_gpus).unwrap_err().status(), Some(422));
    }
    assert!(register(facts("s1")).is_ok());
    assert!(register(facts("s2")).is_ok());
    assert_eq!(register(facts("s3")).unwrap_err().status(), Some(401));
}

#[test]
fn plain_http_is_for_this_machine_only() {
    let core = Core::start(Box::new(MemoryStore::default()), |_| {}).unwrap();
    let history = History::in_memory().unwrap();
    let app = App::new(core, Signer::generate().unwrap(), history);
    let options = ListenOptions {
        address: "0.0.0.0:0".to_owned(),
        tls: None,
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    assert!(runtime.block_on(Serving::bind(&options, app)).is_err());
    assert!(PoolClient::new("http://pool.example:7475", None, None).is_err());
    assert!(PoolClient::new("https://pool.example:7475", None, None).is_err());
    assert!(PoolClient::new("http://127.0.0.1:7475", None, None).is_ok());
}

#[test]
fn metrics_are_documented_and_for_viewers() {
    let world = World::new();
    let (_server, _) = world.join("s0");
    let admin = world.admin();
    let text = admin.get_text("/metrics").unwrap();
    let documented = include_str!("../../docs/metrics.md");
    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<&str> = names.filter_map(|line| line.split(' ').next()).collect();
    assert!(names.len() > 20, "{names:?}");
    for name in names {
        assert!(
            documented.contains(&format!("`{name}`")),
            "{name} is not documented"
        );
    }
    assert!(text.contains("\nfarcall_pool_gpus_usable 2\n"), "{text}");
    assert!(text.contains("farcall_gpu_held_ratio{server=\"s0\",gpu=\"1\",uuid=\"GPU-s0-1\"} 0\n"));
    let new = token("ann", Role::Client);
    let ann: NewSecret = admin.post("/v1/tokens", &new, Duration::ZERO).unwrap();
    let ann = world.client(&ann.token);
    assert_eq!(ann.get_text("/metrics").unwrap_err().status(), Some(403));
    assert_eq!(ann.get_text("/v1/log.csv").unwrap_err().status(), Some(403));
    assert_eq!(
        ann.get::<Series>("/v1/history?of=cluster")
            .unwrap_err()
            .status(),
        Some(403)
    );
    assert!(
        ann.get::<Series>("/v1/history?of=client/ann&range=7d")
            .unwrap()
            .lines
            .is_empty()
    );
}

#[test]
fn passwords_are_set_by_those_who_may() {
    let world = World::new();
    let admin = world.admin();
    let set = |client: &PoolClient, name: &str, password: Option<&str>| {
        let body = NewPassword {
            password: password.map(str::to_owned),
        };
        let path = format!("/v1/tokens/{name}/password");
        let done = client.order(farcall_pool::client::PUT, &path, Some(&body));
        done.map_err(|error| error.status().unwrap_or(0))
    };
    assert_eq!(set(&admin, "admin", Some("short")), Err(422));
    assert_eq!(
        set(&admin, "nobody", Some("correct horse battery")),
        Err(404)
    );
    assert_eq!(set(&admin, "admin", Some("correct horse battery")), Ok(()));
    let new = token("dora", Role::Viewer);
    let dora: NewSecret = admin.post("/v1/tokens", &new, Duration::ZERO).unwrap();
    let dora = world.client(&dora.token);
    assert_eq!(set(&dora, "admin", None), Err(403));
    assert_eq!(set(&dora, "dora", Some("correct horse battery")), Ok(()));
    let log = admin.get_text("/v1/log.csv").unwrap();
    assert!(log.contains(",dora,password.set,dora,"), "{log}");
    assert!(!log.contains("argon2"), "{log}");
}
