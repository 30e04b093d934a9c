//! Who waits, in which order, and what becomes of it: the pool in virtual time.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{ask, facts, token};
use farcall_pool::model::{Ask, ClientId, LeaseId, Purpose, Quota, ServerId, Stage};
use farcall_pool::state::{Load, NewToken, Pool, Refusal, Role};

/// A pool with servers of two GPUs, and clients by name.
struct Virtual {
    pool: Pool,
    now_ms: u64,
    servers: Vec<ServerId>,
    clients: BTreeMap<String, ClientId>,
}

impl Virtual {
    fn new(servers: &[&str]) -> Self {
        let mut pool = Pool::new();
        let now_ms = 1_700_000_000_000;
        let servers = servers.iter().map(|name| {
            let joined = pool.register(now_ms, None, name, facts(name));
            joined.unwrap().server
        });
        let servers = servers.collect();
        Self {
            pool,
            now_ms,
            servers,
            clients: BTreeMap::new(),
        }
    }

    fn client(&mut self, name: &str) -> ClientId {
        self.limited(name, Quota::default())
    }

    fn limited(&mut self, name: &str, quota: Quota) -> ClientId {
        let new = NewToken {
            quota,
            ..token(name, Role::Client)
        };
        let made = self.pool.create_token(self.now_ms, new, name, "test");
        let client = made.unwrap();
        self.clients.insert(name.to_owned(), client);
        client
    }

    fn ask(&mut self, client: ClientId, ask: Ask) -> LeaseId {
        let asked = self.pool.ask(self.now_ms, client, ask, true);
        asked.unwrap().lease
    }

    fn drain(&mut self, server: &str, draining: bool) {
        let drained = self.pool.drain(self.now_ms, server, draining, "test");
        drained.unwrap();
    }

    fn stage(&self, lease: LeaseId) -> Stage {
        self.pool.stage(lease).unwrap()
    }

    fn place(&self, lease: LeaseId) -> Option<usize> {
        self.pool.lease_view(lease).unwrap().place
    }

    /// Ends a lease; its servers confirm that.
    fn end(&mut self, lease: LeaseId) {
        let released = self
            .pool
            .release(self.now_ms, None, lease, "test", "released");
        released.unwrap();
        self.servers_renew();
    }

    /// The pool ends and starts again, from what its store has.
    fn restart(&mut self) {
        let records = self.pool.all_records();
        self.pool = Pool::load(records, self.now_ms).unwrap();
    }

    /// Time passes; who waits is there, and the servers are.
    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        for view in self.pool.lease_views(None, false) {
            if view.stage == Stage::Queued {
                let owner = self.clients[&view.client];
                self.pool.renew(self.now_ms, owner, view.lease).unwrap();
            }
        }
        self.servers_renew();
        self.pool.tick(self.now_ms);
        assert_eq!(self.pool.faults(), Vec::<String>::new());
    }

    fn servers_renew(&mut self) {
        for server in self.servers.clone() {
            let orders = self.pool.orders(server);
            let over: Vec<LeaseId> = orders.into_iter().map(|it| it.lease).collect();
            let renewed = self
                .pool
                .renew_server(self.now_ms, server, Load::default(), &over);
            renewed.unwrap();
        }
    }
}

fn on(server: &str, gpus: u16, share_permille: u16) -> Ask {
    Ask {
        servers: vec![server.to_owned()],
        ..ask(gpus, share_permille)
    }
}

/// What `first` wants cannot be had, and a stream of small requests does not keep the next large one waiting for ever.
fn large_one_is_served_behind(mut world: Virtual, blocker: &str, first: LeaseId) {
    let (large, small) = (world.client("large"), world.client("small"));
    let mut held: Vec<LeaseId> = (0..4).map(|_| world.ask(small, on("s0", 1, 500))).collect();
    let large = world.ask(large, on("s0", 1, 1000));
    assert_eq!(world.stage(large), Stage::Queued);
    for _ in 0..200 {
        world.pass(500);
        held.push(world.ask(small, on("s0", 1, 500)));
        let oldest = held.remove(0);
        world.end(oldest);
        if world.stage(large) == Stage::Held {
            assert_eq!(world.stage(first), Stage::Queued, "{blocker}");
            return;
        }
    }
    panic!("it starves behind one that {blocker}");
}

#[test]
fn one_that_no_server_can_serve_now_keeps_nobody_waiting() {
    let mut world = Virtual::new(&["s0", "s1"]);
    world.drain("s1", true);
    let first = world.client("first");
    let first = world.ask(first, on("s1", 1, 1000));
    large_one_is_served_behind(world, "wants a drained server", first);
}

#[test]
fn one_that_is_over_its_quota_keeps_nobody_waiting() {
    let mut world = Virtual::new(&["s0", "s1"]);
    let quota = Quota {
        shares_permille_max: Some(2000),
        ..Quota::default()
    };
    let first = world.limited("first", quota);
    world.ask(first, on("s1", 2, 1000));
    // It would not fit, so that it is over its quota is not looked at before.
    let first = world.ask(first, on("s1", 2, 1000));
    large_one_is_served_behind(world, "is over its quota", first);
}

/// GPUs are set aside for who is first of those that could be served, also when another server serves again.
#[test]
fn a_server_that_is_back_serves_who_is_first() {
    let mut world = Virtual::new(&["s0", "s1"]);
    let [holder, small, first, second] =
        ["holder", "small", "first", "second"].map(|name| world.client(name));
    world.ask(holder, on("s0", 2, 1000));
    let held = (0..4).map(|_| world.ask(small, on("s1", 1, 500)));
    let mut held: Vec<LeaseId> = held.collect();
    world.drain("s1", true);
    let first = world.ask(first, on("s1", 1, 1000));
    let second = world.ask(second, on("s0", 2, 1000));
    // For the second, as the first cannot be served.
    world.pass(20_000);
    world.drain("s1", false);
    for _ in 0..200 {
        world.pass(500);
        held.push(world.ask(small, on("s1", 1, 500)));
        let oldest = held.remove(0);
        world.end(oldest);
        if world.stage(first) == Stage::Held {
            return assert_eq!(world.place(second), Some(1));
        }
    }
    panic!("it starves behind GPUs that are set aside for one behind it");
}

/// What a client got without anybody having to wait, and what it no longer waits for, is not held against it.
#[test]
fn use_of_an_empty_pool_costs_no_place_in_the_queue() {
    let mut world = Virtual::new(&["s0"]);
    let [busy, other] = ["busy", "other"].map(|name| world.client(name));
    for _ in 0..100 {
        let lease = world.ask(busy, ask(2, 1000));
        assert_eq!(world.stage(lease), Stage::Held);
        world.pass(1000);
        world.end(lease);
    }
    let all = world.ask(busy, ask(2, 1000));
    let waiting: Vec<LeaseId> = (0..50).map(|_| world.ask(busy, ask(2, 1000))).collect();
    waiting.iter().for_each(|lease| world.end(*lease));
    world.pass(1000);
    let before = world.ask(busy, ask(2, 1000));
    world.pass(1000);
    let behind = world.ask(other, ask(2, 1000));
    assert_eq!(
        (world.place(before), world.place(behind)),
        (Some(1), Some(2))
    );
    // While it waits, its own requests stand apart, and the other's go between them.
    let third = world.ask(busy, ask(2, 1000));
    assert_eq!(world.place(third), Some(3));
    let more = world.ask(other, ask(1, 1000));
    assert_eq!(world.place(more), Some(4));
    world.pass(1000);
    world.end(all);
    assert_eq!(world.stage(before), Stage::Held);
}

/// A program can have devices of 16 servers: no more are granted, and GPUs are set aside on no more.
#[test]
fn no_lease_has_more_servers_than_a_program_can_use() {
    let names: Vec<String> = (0..20).map(|index| format!("s{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut world = Virtual::new(&names);
    let client = world.client("ann");
    let never = world.pool.ask(world.now_ms, client, ask(33, 1000), true);
    let Err(Refusal::NeverFits(why)) = never else {
        panic!("{never:?}");
    };
    assert!(why.contains("no 16 servers") && why.contains("32"), "{why}");
    // One GPU of each server is busy: 20 are free, of more servers than it may have. Those that are set aside are of 16.
    let small: Vec<LeaseId> = (0..20).map(|_| world.ask(client, ask(1, 1000))).collect();
    let small: Vec<LeaseId> = small
        .into_iter()
        .chain((0..20).map(|_| world.ask(client, ask(1, 1000))))
        .collect();
    let large = world.ask(client, ask(32, 1000));
    world.pass(20_000);
    for lease in small {
        world.end(lease);
        world.pass(1000);
        if world.stage(large) == Stage::Held {
            let view = world.pool.lease_view(large).unwrap();
            let servers: BTreeSet<&str> = view.pieces.iter().map(|it| &*it.server).collect();
            assert_eq!((view.pieces.len(), servers.len()), (32, 16));
            return;
        }
    }
    panic!("it is never served");
}

/// A client that dies while it waits, or before it has its answer, leaves no reservation that nobody knows of.
#[test]
fn a_reservation_that_nobody_has_heard_of_is_taken_back() {
    let mut world = Virtual::new(&["s0"]);
    let client = world.client("ann");
    let reservation = Ask {
        purpose: Purpose::Reservation,
        ..ask(1, 1000)
    };
    let [heard_of, not] = [0, 1].map(|_| world.ask(client, reservation.clone()));
    let late = world.ask(client, reservation);
    world.pool.acknowledge(client, late);
    world.pool.acknowledge(client, heard_of);
    world.pass(20_000);
    // It restarts, and everyone has the full time.
    world.restart();
    world.pass(20_000);
    assert_eq!(world.stage(not), Stage::Held);
    world.pass(15_000);
    world.pass(100);
    let stages = [heard_of, not].map(|it| world.stage(it));
    assert_eq!(stages, [Stage::Held, Stage::Ended]);
    // What waited has it now: that it was there while it waited is no word of what it has got.
    assert_eq!(world.stage(late), Stage::Held);
    world.pass(25_000);
    assert_eq!(world.stage(late), Stage::Held);
    world.pass(10_000);
    world.pass(100);
    assert_eq!(world.stage(late), Stage::Ended);
    assert_eq!(world.stage(heard_of), Stage::Held);
}

/// A request that is sent twice, because its answer did not come, is one.
#[test]
fn a_request_that_comes_again_is_the_same() {
    let mut world = Virtual::new(&["s0"]);
    let [ann, bob] = ["ann", "bob"].map(|name| world.client(name));
    let keyed = |gpus, key: &str| Ask {
        key: key.to_owned(),
        ..ask(gpus, 1000)
    };
    let held = world.ask(ann, keyed(2, "k1"));
    let waits = world.ask(ann, keyed(1, "k2"));
    for _ in 0..2 {
        assert_eq!(world.ask(ann, keyed(2, "k1")), held);
        assert_eq!(world.ask(ann, keyed(1, "k2")), waits);
        world.restart();
    }
    assert_eq!(world.place(waits), Some(1));
    // The key is the client's own, and of one request.
    let others = world.ask(bob, keyed(1, "k2"));
    assert_ne!(others, waits);
    let other = world.pool.ask(world.now_ms, ann, keyed(2, "k2"), true);
    assert!(matches!(&other, Err(Refusal::Field { field, .. }) if field == "key"));
    // One that was refused, or is over, is not there any more.
    for _ in 0..2 {
        let refused = world.pool.ask(world.now_ms, ann, keyed(1, "k3"), false);
        assert!(matches!(refused, Err(Refusal::Busy(_))), "{refused:?}");
    }
    world.end(held);
    let again = world.ask(ann, keyed(2, "k1"));
    assert_ne!(again, held);
    world.pass(100);
}

/// The clock is set, by a day on and by a day back: nobody loses time, place or GPUs by that.
#[test]
fn a_clock_that_is_set_changes_nothing() {
    const DAY_MS: u64 = 24 * 3_600_000;
    let mut world = Virtual::new(&["s0"]);
    let clients = ["ann", "bob", "eve"].map(|name| world.client(name));
    let held = Ask {
        hold_ms: Some(600_000),
        ..ask(2, 1000)
    };
    let held = world.ask(clients[0], held);
    let waits = [clients[1], clients[1], clients[2]].map(|it| world.ask(it, ask(1, 1000)));
    world.pass(10_000);
    let places = |world: &Virtual| waits.map(|lease| world.place(lease).unwrap());
    let before = places(&world);
    for to_ms in [world.now_ms + DAY_MS, world.now_ms] {
        world.pool.clock_was_set(world.now_ms, to_ms);
        world.now_ms = to_ms;
        world.pool.renew(to_ms, clients[0], held).unwrap();
        assert_eq!(places(&world), before);
        let more = world.ask(clients[2], ask(1, 1000));
        assert_eq!(world.place(more), Some(4), "who comes later is behind");
        world.end(more);
        world.pass(20_000);
        world.pool.renew(world.now_ms, clients[0], held).unwrap();
        assert_eq!(world.stage(held), Stage::Held);
    }
    // It has its ten minutes, and they are over.
    for _ in 0..28 {
        world.pass(20_000);
        world.pool.renew(world.now_ms, clients[0], held).unwrap();
    }
    assert_eq!(world.stage(held), Stage::Ending);
    let used = world.pool.token_views(world.now_ms);
    let used = used.iter().find(|it| it.name == "ann").unwrap();
    assert!(
        (1100..=1200).contains(&used.share_seconds_today),
        "{used:?}"
    );
}
