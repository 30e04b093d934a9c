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
