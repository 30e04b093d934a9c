//! Every limit of a quota, whoever's it is: what is refused, what is said of it, and what a request waits for.
#![allow(clippy::unwrap_used)]

mod common;

use common::{ask, facts, token};
use farcall_pool::model::{Ask, ClientId, LeaseId, Quota, ServerId, Settings, Stage};
use farcall_pool::state::{Load, NewToken, OverQuota, Pool, Refusal, Role, TokenChange};

const GIB: u64 = 1 << 30;
const HOUR_MS: u64 = 3_600_000;
/// 2023-11-14, ten in the morning (UTC).
const TEN_MS: u64 = 1_699_956_000_000;

/// Whose limit it is.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Owner {
    Client,
    Group,
    Default,
}

const OWNERS: [Owner; 3] = [Owner::Client, Owner::Group, Owner::Default];

/// Four servers of two GPUs of 80 GiB; ann and bob are a team, eve is nobody's.
struct World {
    pool: Pool,
    now_ms: u64,
    servers: Vec<ServerId>,
    ann: ClientId,
    bob: ClientId,
    eve: ClientId,
}

impl World {
    fn new(owner: Owner, quota: &Quota) -> Self {
        let (mut pool, now_ms) = (Pool::new(), TEN_MS);
        let settings = Settings {
            client_ttl_ms: 24 * HOUR_MS,
            server_ttl_ms: 24 * HOUR_MS,
            idle_ms: None,
            default_quota: match owner {
                Owner::Default => quota.clone(),
                _ => Quota::default(),
            },
            ..Settings::default()
        };
        pool.set_settings(now_ms, settings, "test").unwrap();
        let servers = ["s0", "s1", "s2", "s3"];
        let servers = servers.map(|name| pool.register(now_ms, None, name, facts(name)));
        let mut client = |name: &str, group: Option<&str>| {
            let new = NewToken {
                group: group.map(str::to_owned),
                quota: match owner {
                    Owner::Client if name == "ann" => quota.clone(),
                    _ => Quota::default(),
                },
                ..token(name, Role::Client)
            };
            pool.create_token(now_ms, new, name, "test").unwrap()
        };
        let (ann, bob) = (client("ann", Some("team")), client("bob", Some("team")));
        let eve = client("eve", None);
        if owner == Owner::Group {
            let set = pool.set_group_quota(now_ms, "team", quota.clone(), "test");
            set.unwrap();
        }
        let servers = servers.into_iter().map(|it| it.unwrap().server).collect();
        Self {
            pool,
            now_ms,
            servers,
            ann,
            bob,
            eve,
        }
    }

    /// Who shares the limit with ann: she herself, but where it is the group's.
    fn holder(&self, owner: Owner) -> ClientId {
        match owner {
            Owner::Group => self.bob,
            _ => self.ann,
        }
    }

    fn hold(&mut self, client: ClientId, wanted: Ask) -> LeaseId {
        let asked = self.pool.ask(self.now_ms, client, labelled(wanted), false);
        asked.unwrap().lease
    }

    fn waits(&mut self, wanted: Ask) -> LeaseId {
        let asked = self.pool.ask(self.now_ms, self.ann, wanted, true).unwrap();
        assert!(!asked.granted);
        asked.lease
    }

    /// What ann is told, whether she would wait or not.
    fn refusal(&mut self, wanted: Ask) -> OverQuota {
        match self.pool.ask(self.now_ms, self.ann, wanted, false) {
            Err(Refusal::Quota(over)) => *over,
            other => panic!("{other:?}"),
        }
    }

    fn may_have(&mut self, client: ClientId, wanted: Ask) {
        let lease = self.hold(client, wanted);
        self.end(lease);
    }

    fn end(&mut self, lease: LeaseId) {
        let released = self.pool.release(self.now_ms, None, lease, "test", "over");
        released.unwrap();
        self.renew();
    }

    fn renew(&mut self) {
        for server in self.servers.clone() {
            let over = self.pool.orders(server).into_iter().map(|it| it.lease);
            let over: Vec<LeaseId> = over.collect();
            let renewed = self
                .pool
                .renew_server(self.now_ms, server, Load::default(), &over);
            renewed.unwrap();
        }
        assert_eq!(self.pool.faults(), Vec::<String>::new());
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        self.renew();
        self.pool.tick(self.now_ms);
    }

    fn stage(&self, lease: LeaseId) -> Stage {
        self.pool.stage(lease).unwrap()
    }

    fn restart(&mut self) {
        let records = self.pool.all_records();
        self.pool = Pool::load(records, self.now_ms).unwrap();
    }
}

fn labelled(wanted: Ask) -> Ask {
    Ask {
        label: "train.py".to_owned(),
        ..wanted
    }
}

fn with_memory(gpus: u16, memory_bytes: u64) -> Ask {
    Ask {
        memory_bytes: Some(memory_bytes),
        ..ask(gpus, 100)
    }
}

/// What is said of a limit: its field, whose it is, how much there is, is used, is wanted, and by what.
fn says(owner: Owner, limit: &str, numbers: [u64; 3], by: &[&str]) -> OverQuota {
    let [max, used, wanted] = numbers;
    OverQuota {
        limit: limit.to_owned(),
        owner: match owner {
            Owner::Group => "group team".to_owned(),
            _ => "ann".to_owned(),
        },
        max,
        used,
        wanted,
        by: by.iter().map(|text| (*text).to_owned()).collect(),
    }
}

fn of(owner: Owner) -> &'static str {
    match owner {
        Owner::Group => "bob",
        _ => "ann",
    }
}

#[test]
fn gpus_at_once() {
    for owner in OWNERS {
        let quota = Quota {
            shares_permille_max: Some(1500),
            ..Quota::default()
        };
        let mut world = World::new(owner, &quota);
        let held = world.hold(world.holder(owner), ask(1, 1000));
        let by = format!("L1: 1 x 1 of {} train.py", of(owner));
        let refused = world.refusal(ask(2, 300));
        assert_eq!(
            refused,
            says(owner, "shares_permille_max", [1500, 1000, 600], &[&by])
        );
        let text = refused.to_string();
        assert!(
            text.contains("1.5 at most, 1 used, 0.6 more wanted"),
            "{text}"
        );
        world.may_have(world.ann, ask(1, 500));
        if owner != Owner::Default {
            world.may_have(world.eve, ask(2, 1000));
        }
        // One that waits says what it waits for, and has it when that is there.
        let waits = world.waits(ask(2, 300));
        let said = world.pool.lease_view(waits).unwrap().over_quota.unwrap();
        assert!(said.contains("GPUs at once"), "{said}");
        world.end(held);
        assert_eq!(world.stage(waits), Stage::Held, "{owner:?}");
        // What could never be is refused at once, also to those who would wait.
        let never = world.pool.ask(world.now_ms, world.ann, ask(2, 1000), true);
        let Err(Refusal::Quota(never)) = never else {
            panic!("{never:?}");
        };
        assert_eq!(
            *never,
            says(owner, "shares_permille_max", [1500, 0, 2000], &[])
        );
    }
}

#[test]
fn memory_at_once() {
    for owner in OWNERS {
        let quota = Quota {
            memory_bytes_max: Some(100 * GIB),
            ..Quota::default()
        };
        let mut world = World::new(owner, &quota);
        let held = world.hold(world.holder(owner), with_memory(2, 40 * GIB));
        let by = format!("L1: 2 x 0.1 of {} train.py", of(owner));
        let refused = world.refusal(with_memory(1, 21 * GIB));
        let numbers = [100 * GIB, 80 * GIB, 21 * GIB];
        assert_eq!(refused, says(owner, "memory_bytes_max", numbers, &[&by]));
        let text = refused.to_string();
        assert!(
            text.contains("100 GiB at most, 80 GiB used, 21 GiB more"),
            "{text}"
        );
        // Without -m it is the share's part of the GPU's: a quarter of 80 GiB, and no more than that.
        world.may_have(world.ann, ask(1, 250));
        let refused = world.refusal(ask(1, 300));
        assert_eq!((refused.used, refused.wanted), (80 * GIB, 24 * GIB));
        let waits = world.waits(ask(1, 300));
        world.end(held);
        assert_eq!(world.stage(waits), Stage::Held, "{owner:?}");
    }
}

/// Time of GPUs in a day counts over restarts, and is there again at midnight.
#[test]
fn gpu_time_in_one_day() {
    for owner in OWNERS {
        let quota = Quota {
            share_seconds_per_day_max: Some(3600),
            ..Quota::default()
        };
        let mut world = World::new(owner, &quota);
        let half = world.hold(world.holder(owner), ask(1, 500));
        world.pass(HOUR_MS);
        world.may_have(world.ann, ask(1, 1000));
        world.restart();
        world.pass(HOUR_MS);
        let by = format!("L1: 1 x 0.5 of {} train.py", of(owner));
        let refused = world.refusal(ask(1, 100));
        assert_eq!(
            refused,
            says(owner, "share_seconds_per_day_max", [3600, 3600, 1], &[&by])
        );
        assert!(
            refused
                .to_string()
                .contains("1 GPU-hours at most, 1 GPU-hours used")
        );
        // It ends nothing that runs, and what has ended still counts.
        assert_eq!(world.stage(half), Stage::Held);
        world.end(half);
        world.restart();
        assert_eq!(world.refusal(ask(1, 100)).by, Vec::<String>::new());
        let waits = world.waits(ask(1, 100));
        world.pass(11 * HOUR_MS);
        assert_eq!(world.stage(waits), Stage::Queued, "23 o'clock");
        world.restart();
        world.pass(HOUR_MS);
        assert_eq!(world.stage(waits), Stage::Held, "midnight, {owner:?}");
    }
}

#[test]
fn gpus_in_one_request_and_length_of_a_lease() {
    for owner in OWNERS {
        let quota = Quota {
            request_gpus_max: Some(2),
            hold_ms_max: Some(HOUR_MS),
            ..Quota::default()
        };
        let mut world = World::new(owner, &quota);
        let refused = world.refusal(ask(3, 100));
        assert_eq!(refused, says(owner, "request_gpus_max", [2, 0, 3], &[]));
        world.may_have(world.ann, ask(2, 100));
        let long = Ask {
            hold_ms: Some(HOUR_MS + 1),
            ..ask(1, 100)
        };
        let refused = world.refusal(long.clone());
        assert_eq!(
            refused,
            says(owner, "hold_ms_max", [HOUR_MS, 0, HOUR_MS + 1], &[])
        );
        if owner != Owner::Default {
            world.may_have(world.eve, long);
            world.may_have(world.eve, ask(3, 100));
        }
        // Who does not say how long has it so long.
        let unsaid = world.hold(world.ann, ask(1, 100));
        world.pass(HOUR_MS);
        assert_eq!(world.stage(unsaid), Stage::Ending, "{owner:?}");
    }
}

/// A step of priority is worth five minutes of waiting, the client's own before the pool's.
#[test]
fn priority() {
    for (owner, places) in [(Owner::Client, [1, 2]), (Owner::Default, [2, 1])] {
        let quota = Quota {
            priority: Some(1),
            ..Quota::default()
        };
        let mut world = World::new(owner, &quota);
        let (ann, eve) = (world.ann, world.eve);
        world.hold(eve, ask(8, 1000));
        let first = world
            .pool
            .ask(world.now_ms, eve, ask(1, 1000), true)
            .unwrap();
        world.pass(299_000);
        let second = world
            .pool
            .ask(world.now_ms, ann, ask(1, 1000), true)
            .unwrap();
        let place = |lease| world.pool.lease_view(lease).unwrap().place.unwrap();
        assert_eq!(
            [place(second.lease), place(first.lease)],
            places,
            "{owner:?}"
        );
    }
}

/// More is allowed, for the client, the group or the pool: who waits for that hears of it.
#[test]
fn a_quota_that_is_raised_lets_those_in_who_wait() {
    for owner in OWNERS {
        let quota = |max| Quota {
            shares_permille_max: Some(max),
            ..Quota::default()
        };
        let mut world = World::new(owner, &quota(1000));
        world.hold(world.holder(owner), ask(1, 1000));
        let waits = world.waits(ask(1, 500));
        let now_ms = world.now_ms;
        let raised = match owner {
            Owner::Client => {
                let change = TokenChange {
                    quota: Some(quota(1500)),
                    ..TokenChange::default()
                };
                world.pool.change_token(now_ms, "ann", change, "test")
            }
            Owner::Group => world
                .pool
                .set_group_quota(now_ms, "team", quota(1500), "test"),
            Owner::Default => {
                let settings = Settings {
                    default_quota: quota(1500),
                    ..world.pool.settings().clone()
                };
                world.pool.set_settings(now_ms, settings, "test")
            }
        };
        raised.unwrap();
        assert_eq!(world.stage(waits), Stage::Held, "{owner:?}");
    }
}
