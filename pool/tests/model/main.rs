//! Random operations against a model that knows only what servers and clients saw: no GPU is ever
//! over-committed, nothing that fits waits for ever, and what was committed is all that there is. A failure names its seed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod admin;
mod liveness;
mod world;

use farcall_pool::model::{Ask, LeaseId, Purpose, Stage};
use farcall_pool::state::{LeaseUse, Load};
use world::{GIB, SERVERS, World};

fn run(seeds: std::ops::Range<u64>, steps: u64) -> u64 {
    let mut operations = 0;
    for seed in seeds {
        let outcome = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..steps {
                world.step();
            }
            world.everyone_is_served();
            world.operations
        });
        match outcome {
            Ok(count) => operations += count,
            Err(panic) => {
                eprintln!("seed {seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    operations
}

/// So many runs of a thousand operations; more of them in `scripts/nightly pool`.
const SEEDS: u64 = 2000;

/// Two million operations, on two threads.
#[test]
fn never_over_committed_and_nobody_waits_for_ever() {
    let seeds = std::env::var("FARCALL_MODEL_SEEDS").ok();
    let seeds = seeds.map_or(SEEDS, |text| text.parse().unwrap());
    let halves = std::thread::scope(|scope| {
        let halves = [0..seeds / 2, seeds / 2..seeds];
        let halves = halves.map(|seeds| scope.spawn(|| run(seeds, 1000)));
        halves.map(|half| half.join().unwrap())
    });
    assert_eq!(halves.iter().sum::<u64>(), 1000 * seeds);
}

/// Small requests come for ever; the large one before them is served all the same.
#[test]
fn a_stream_of_small_requests_starves_no_large_one() {
    let mut world = World::new(1);
    for index in 0..SERVERS {
        world.register_server(index);
    }
    let ask = |gpus: u16, share_permille: u16| Ask {
        gpus,
        share_permille,
        memory_bytes: Some(GIB),
        filters: Vec::new(),
        servers: Vec::new(),
        same_server: true,
        near: String::new(),
        purpose: Purpose::Reservation,
        hold_ms: None,
        idle_ms: None,
        label: String::new(),
        key: String::new(),
    };
    let (small, large) = (world.clients[4], world.clients[3]);
    let mut held: Vec<LeaseId> = Vec::new();
    for _ in 0..60 {
        held.push(
            world
                .pool
                .ask(world.now_ms, small, ask(1, 250), true)
                .unwrap()
                .lease,
        );
    }
    let large_ask = Ask {
        memory_bytes: Some(GIB),
        ..ask(3, 1000)
    };
    let large = world
        .pool
        .ask(world.now_ms, large, large_ask, true)
        .unwrap();
    assert!(!large.granted);
    for round in 0..2000 {
        world.now_ms += 100;
        // One small lease ends, and one more is wanted.
        let views = world.pool.lease_views(None, false);
        for view in views.iter().filter(|it| it.stage == Stage::Queued) {
            let client = if view.lease == large.lease {
                world.clients[3]
            } else {
                small
            };
            world.pool.renew(world.now_ms, client, view.lease).unwrap();
        }
        let first = held.remove(0);
        let _ = world
            .pool
            .release(world.now_ms, None, first, "test", "done");
        held.push(
            world
                .pool
                .ask(world.now_ms, small, ask(1, 250), true)
                .unwrap()
                .lease,
        );
        for index in 0..SERVERS {
            world.renew_one(index, true);
            world.renew_one(index, true);
        }
        world.pool.tick(world.now_ms);
        world.check();
        if world.pool.lease_view(large.lease).unwrap().stage == Stage::Held {
            assert!(round > 10, "it was never in anyone's way");
            return;
        }
    }
    panic!("the large request starves");
}

/// A server's silence is not idleness, and nothing is taken back without a warning.
#[test]
fn idle_as_far_as_the_server_has_told() {
    let mut world = World::new(1);
    world.register_server(0);
    let server = world.servers[0].id.unwrap();
    let ask = Ask {
        gpus: 1,
        share_permille: 250,
        memory_bytes: Some(GIB),
        filters: Vec::new(),
        servers: Vec::new(),
        same_server: true,
        near: String::new(),
        purpose: Purpose::Reservation,
        hold_ms: None,
        idle_ms: Some(3_000),
        label: String::new(),
        key: String::new(),
    };
    let asked = world.pool.ask(world.now_ms, world.clients[4], ask, true);
    let lease = asked.unwrap().lease;
    assert_eq!(world.pool.report_within_ms(server), 150);
    // After so much time, told so much unused time or nothing: stage, and whether there is a warning.
    for (passed_ms, told_ms, stage, is_warned) in [
        (4_000, None, Stage::Held, false),
        (0, Some(0), Stage::Held, false),
        (2_800, Some(2_800), Stage::Held, true),
        (0, Some(0), Stage::Held, false),
        (4_000, None, Stage::Held, false),
        (0, Some(4_000), Stage::Held, true),
        (0, None, Stage::Ending, true),
    ] {
        world.now_ms += passed_ms;
        if let Some(idle_ms) = told_ms {
            let used = LeaseUse {
                lease,
                sessions: 1,
                idle_ms,
                used_bytes: 0,
                work: None,
            };
            let load = Load {
                leases: vec![used],
                ..Load::default()
            };
            let renewed = world.pool.renew_server(world.now_ms, server, load, &[]);
            renewed.unwrap();
        }
        world.pool.tick(world.now_ms);
        let view = world.pool.lease_view(lease).unwrap();
        assert_eq!((view.stage, view.warning.is_some()), (stage, is_warned));
    }
}
