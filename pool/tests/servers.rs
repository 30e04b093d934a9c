//! Servers join, leave and come back: the pool in virtual time.
#![allow(clippy::unwrap_used)]

mod common;

use common::facts;
use farcall_pool::state::{Pool, Refusal};

const NOW_MS: u64 = 1_700_000_000_000;

/// A server that is removed while it registers does not take another's number.
#[test]
fn numbers_of_servers_are_used_once() {
    let mut pool = Pool::new();
    let join = |pool: &mut Pool, name: &str| pool.register(NOW_MS, None, name, facts(name));
    let first = join(&mut pool, "s0").unwrap().server;
    let second = join(&mut pool, "s1").unwrap().server;
    pool.tick(NOW_MS + 60_000);
    pool.remove_server(NOW_MS, "s0", "test").unwrap();
    let back = pool.register(NOW_MS, Some(first), "s0", facts("s0"));
    assert!(matches!(back, Err(Refusal::Unauthorized(_))), "{back:?}");
    let third = join(&mut pool, "s2").unwrap().server;
    assert!(third != first && third != second, "{third:?}");
    assert_eq!(pool.server_views().len(), 2);
}

/// Names stand in paths of the interface and in lists on command lines.
#[test]
fn names_of_servers_are_plain() {
    let mut pool = Pool::new();
    for name in [
        "gpu 1",
        "gpu1?",
        "gpu#1",
        "gpu%31",
        "gpu1,gpu2",
        "gpu/1",
        "gpü1",
        "",
    ] {
        let refused = pool.register(NOW_MS, None, "hash", facts(name));
        let is_named =
            matches!(&refused, Err(Refusal::Field { field, .. }) if field == "server.name");
        assert!(is_named, "{name:?}: {refused:?}");
    }
    let long = "g".repeat(150);
    for name in ["gpu1", "GPU-1_a.rack7.example", "ann@gpu1", &long] {
        assert!(
            pool.register(NOW_MS, None, name, facts(name)).is_ok(),
            "{name:?}"
        );
    }
}

/// GPUs whose memory changes (a driver, a MIG layout) are others; what nobody holds of those before does not use the places up.
#[test]
fn gpus_that_are_gone_leave_their_places() {
    let mut pool = Pool::new();
    let id = pool
        .register(NOW_MS, None, "s0", facts("s0"))
        .unwrap()
        .server;
    for change in 1..100 {
        let mut changed = facts("s0");
        for gpu in &mut changed.gpus {
            gpu.memory_bytes += change << 20;
        }
        pool.register(NOW_MS, Some(id), "s0", changed).unwrap();
        let gpus = pool.gpu_views();
        assert_eq!(gpus.len(), 2, "change {change}");
        assert!(
            gpus.iter()
                .all(|gpu| gpu.memory_free_bytes == (80 << 30) + (change << 20))
        );
    }
}
