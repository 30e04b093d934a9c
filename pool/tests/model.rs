//! Random operations against a model that knows only what servers and clients saw: no GPU is ever
//! over-committed, nothing that fits waits for ever. A failure names its seed.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::{BTreeMap, BTreeSet};

use farcall_pool::model::{
    Ask, ClientId, GpuFacts, LeaseId, NetAddress, Purpose, Quota, ServerFacts, ServerId, Settings,
    Stage,
};
use farcall_pool::state::{GpuNow, LeaseUse, Load, NewToken, Pool, Refusal, Role, TokenChange};

const GIB: u64 = 1 << 30;
const SERVERS: u64 = 4;
const CLIENTS: u64 = 5;

/// xorshift64*: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = self.below(from.len().max(1) as u64) as usize;
        from.get(at).copied()
    }
}

/// What a server knows.
#[derive(Default)]
struct FakeServer {
    id: Option<ServerId>,
    alive: bool,
    /// Sessions that run: leases with the parts of GPUs that their grants name.
    runs: BTreeMap<LeaseId, Vec<(String, u16, u64)>>,
    refuses: BTreeSet<LeaseId>,
    drained: bool,
    /// UUIDs of GPUs that do not answer, until it is started anew; and those of which the pool was told.
    lost: BTreeSet<String>,
    told_lost: BTreeSet<String>,
}

struct World {
    random: Random,
    now_ms: u64,
    pool: Pool,
    servers: Vec<FakeServer>,
    clients: Vec<ClientId>,
    asked: BTreeMap<LeaseId, ClientId>,
    /// What a store has, by the changes that it was told.
    store: BTreeMap<String, Vec<u8>>,
    operations: u64,
}

fn facts(index: u64) -> ServerFacts {
    let gpu = |gpu: u64| GpuFacts {
        uuid: format!("GPU-{index}-{gpu}"),
        name: if index == 0 { "A100" } else { "H100" }.to_owned(),
        memory_bytes: (16 + 8 * index) * GIB,
        sm: 90,
        healthy: true,
    };
    let address = NetAddress {
        network: "gpu".to_owned(),
        address: format!("s{index}:7474"),
    };
    ServerFacts {
        name: format!("s{index}"),
        addresses: vec![address],
        kind: "null".to_owned(),
        rdma: index.is_multiple_of(2),
        driver_version: "580.1".to_owned(),
        cuda_version: "13.0".to_owned(),
        switch: format!("hall/{}", index / 2),
        version: "0".to_owned(),
        gpus: (0..2 + index % 2).map(gpu).collect(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut pool = Pool::new();
        let settings = Settings {
            idle_ms: Some(200_000),
            ..Settings::default()
        };
        pool.set_settings(0, settings, "test").unwrap();
        let group = Quota {
            shares_permille_max: Some(4500),
            ..Quota::default()
        };
        pool.set_group_quota(0, "team", group, "test").unwrap();
        let client = |index: u64| {
            let new = NewToken {
                name: format!("c{index}"),
                role: Role::Client,
                group: (index < 2).then(|| "team".to_owned()),
                quota: Quota {
                    shares_permille_max: (index == 2).then_some(2500),
                    memory_bytes_max: (index == 3).then_some(60 * GIB),
                    priority: (index == 4).then_some(2),
                    ..Quota::default()
                },
                valid_ms: None,
            };
            pool.create_token(0, new, &format!("hash{index}"), "test")
                .unwrap()
        };
        let clients = (0..CLIENTS).map(client).collect();
        Self {
            random: Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            now_ms: 1_000_000,
            pool,
            servers: (0..SERVERS).map(|_| FakeServer::default()).collect(),
            clients,
            asked: BTreeMap::new(),
            store: BTreeMap::new(),
            operations: 0,
        }
    }

    fn step(&mut self) {
        self.now_ms += self.random.below(400);
        match self.random.below(100) {
            0..30 => self.ask(),
            30..50 => self.release(),
            50..70 => self.renew_server(),
            70..80 => self.open_session(),
            80..88 => self.pool.tick(self.now_ms),
            88..93 => self.renew_clients(),
            93 => self.register(),
            94 => self.drain(),
            95 => self.crash_server(),
            96 if self.random.one_in(8) => self.restart_pool(),
            97 if self.random.one_in(4) => self.now_ms += self.random.below(60_000),
            98 => self.disable(),
            99 if self.random.one_in(4) => self.lose_gpu(),
            _ => self.renew_server(),
        }
        self.operations += 1;
        self.commit();
        self.check();
    }

    fn ask(&mut self) {
        let random = &mut self.random;
        let filters: &[&[&str]] = &[
            &[],
            &[],
            &[],
            &["gpu.name=H100"],
            &["server.rdma=true"],
            &["gpu.memory>=32GiB"],
        ];
        let filters = random.pick(filters).unwrap();
        let ask = Ask {
            gpus: random.pick(&[1, 1, 1, 1, 2, 3, 4]).unwrap(),
            share_permille: random.pick(&[1000, 500, 250, 50, 333, 1]).unwrap(),
            memory_bytes: random
                .pick(&[None, None, Some(GIB), Some(20 * GIB)])
                .unwrap(),
            filters: filters.iter().map(|text| text.parse().unwrap()).collect(),
            servers: if random.one_in(10) {
                vec!["s1".to_owned()]
            } else {
                Vec::new()
            },
            same_server: random.one_in(3),
            near: random.pick(&["", "hall/1/x"]).unwrap().to_owned(),
            purpose: random.pick(&[Purpose::Run, Purpose::Reservation]).unwrap(),
            hold_ms: random.one_in(4).then_some(5_000),
            idle_ms: random.one_in(6).then_some(3_000),
            label: String::new(),
            key: String::new(),
        };
        let client = self.random.pick(&self.clients).unwrap();
        let wait = !self.random.one_in(3);
        match self.pool.ask(self.now_ms, client, ask, wait) {
            Ok(outcome) => {
                assert!(wait || outcome.granted);
                self.asked.insert(outcome.lease, client);
            }
            Err(Refusal::Field { field, .. }) => assert_eq!(field, "servers"),
            Err(Refusal::Busy(_)) => assert!(!wait),
            Err(Refusal::Quota(_) | Refusal::NeverFits(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn release(&mut self) {
        let known: Vec<_> = self
            .asked
            .iter()
            .map(|(id, client)| (*id, *client))
            .collect();
        if let Some((id, client)) = self.random.pick(&known) {
            let _ = self
                .pool
                .release(self.now_ms, Some(client), id, "test", "done");
            self.asked.remove(&id);
        }
    }

    fn renew_clients(&mut self) {
        for (id, client) in &self.asked {
            let _ = self.pool.renew(self.now_ms, *client, *id);
            self.pool.acknowledge(*client, *id);
        }
    }

    fn register(&mut self) {
        let index = self.random.below(SERVERS);
        self.register_server(index);
    }

    fn register_server(&mut self, index: u64) {
        let server = &mut self.servers[index as usize];
        let registered = self
            .pool
            .register(self.now_ms, server.id, "credential", facts(index));
        let Ok(registered) = registered else {
            return;
        };
        // A fresh process: nothing runs, and it is told what it must refuse.
        server.runs.clear();
        server.lost.clear();
        server.told_lost.clear();
        server.alive = true;
        server.id = Some(registered.server);
        let ended = self.pool.recently_ended(registered.server);
        server.refuses = ended.into_iter().map(|order| order.lease).collect();
    }

    fn renew_server(&mut self) {
        let index = self.random.below(SERVERS);
        self.renew_one(index, false);
    }

    /// One turn of a server: it reports, is told what to end, ends it, and confirms the next time.
    fn renew_one(&mut self, index: u64, at_once: bool) {
        let server = &mut self.servers[index as usize];
        let Some(id) = server.id.filter(|_| server.alive) else {
            return;
        };
        let used = |lease: &LeaseId| LeaseUse {
            lease: *lease,
            sessions: 1,
            idle_ms: 0,
            used_bytes: 0,
            work: None,
        };
        let gpu_now = |gpu: GpuFacts| GpuNow {
            is_lost: server.lost.contains(&gpu.uuid),
            uuid: gpu.uuid,
            ..GpuNow::default()
        };
        let gpus = facts(index).gpus.into_iter().map(gpu_now).collect();
        let load = |server: &FakeServer| Load {
            leases: server.runs.keys().map(used).collect(),
            gpus,
            ..Load::default()
        };
        let over: Vec<LeaseId> = server.refuses.iter().copied().collect();
        let over: Vec<LeaseId> = over
            .into_iter()
            .filter(|it| !server.runs.contains_key(it))
            .collect();
        self.pool
            .renew_server(self.now_ms, id, load(server), &over)
            .unwrap();
        server.told_lost.clone_from(&server.lost);
        for order in self.pool.orders(id) {
            server.refuses.insert(order.lease);
            if at_once || !self.random.one_in(3) {
                server.runs.remove(&order.lease);
            }
        }
    }

    /// A client uses the grant that it has: on a server that was not told otherwise, that works.
    fn open_session(&mut self) {
        let known: Vec<LeaseId> = self.asked.keys().copied().collect();
        let Some(view) = self
            .random
            .pick(&known)
            .and_then(|id| self.pool.lease_view(id))
        else {
            return;
        };
        for (index, server) in self.servers.iter_mut().enumerate() {
            let name = format!("s{index}");
            let parts: Vec<_> = view
                .pieces
                .iter()
                .filter(|piece| piece.server == name)
                .map(|piece| (piece.uuid.clone(), piece.share_permille, piece.memory_bytes))
                .collect();
            let granted = view.stage == Stage::Held && !parts.is_empty();
            if server.alive && granted && !server.refuses.contains(&view.lease) {
                server.runs.insert(view.lease, parts);
            }
        }
    }

    fn drain(&mut self) {
        let index = self.random.below(SERVERS);
        let server = &mut self.servers[index as usize];
        if server.id.is_some() {
            server.drained = !server.drained;
            self.pool
                .drain(self.now_ms, &format!("s{index}"), server.drained, "test")
                .unwrap();
        }
    }

    fn crash_server(&mut self) {
        let index = self.random.below(SERVERS);
        let server = &mut self.servers[index as usize];
        server.alive = false;
        server.runs.clear();
    }

    /// A GPU fails; what runs on it goes on failing until it is ended.
    fn lose_gpu(&mut self) {
        let index = self.random.below(SERVERS);
        let gpus = facts(index).gpus;
        let at = self.random.below(gpus.len() as u64) as usize;
        self.servers[index as usize]
            .lost
            .insert(gpus[at].uuid.clone());
    }

    /// Makes what has changed durable.
    fn commit(&mut self) {
        for (key, value) in self.pool.take_changes() {
            match value {
                Some(value) => self.store.insert(key, value),
                None => self.store.remove(&key),
            };
        }
    }

    /// All that is not in the store is lost: nothing that counts.
    fn restart_pool(&mut self) {
        let all: BTreeMap<String, Vec<u8>> = self.pool.all_records().into_iter().collect();
        for key in all.keys().chain(self.store.keys()) {
            let text = |records: &BTreeMap<String, Vec<u8>>| {
                let value = records.get(key).cloned();
                value.map(|value| String::from_utf8(value).unwrap())
            };
            assert_eq!(text(&self.store), text(&all), "{key} in the store");
        }
        self.pool = Pool::load(self.store.clone(), self.now_ms).unwrap();
    }

    fn disable(&mut self) {
        let index = self.random.below(CLIENTS);
        let disabled = self.random.one_in(2);
        let change = TokenChange {
            disabled: Some(disabled),
            ..TokenChange::default()
        };
        self.pool
            .change_token(self.now_ms, &format!("c{index}"), change, "test")
            .unwrap();
    }

    fn check(&self) {
        let faults = self.pool.faults();
        assert!(faults.is_empty(), "{faults:#?}");
        // Nobody holds a GPU of which the pool was told that it is lost.
        let lost = |uuid: &str| self.servers.iter().any(|it| it.told_lost.contains(uuid));
        if self.servers.iter().any(|it| !it.told_lost.is_empty()) {
            for view in self.pool.lease_views(None, false) {
                let has_lost = view.pieces.iter().any(|piece| lost(&piece.uuid));
                assert!(!has_lost, "{view:?}");
            }
        }
        // What runs on a server never exceeds its GPUs, whatever the pool believes.
        for (index, server) in self.servers.iter().enumerate() {
            let mut sums: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
            for (uuid, share, memory) in server.runs.values().flatten() {
                let sum = sums.entry(uuid).or_default();
                sum.0 += u64::from(*share);
                sum.1 += memory;
            }
            for gpu in facts(index as u64).gpus {
                let (share, memory) = sums.get(gpu.uuid.as_str()).copied().unwrap_or_default();
                assert!(share <= 1000, "{} runs {share} of 1000", gpu.uuid);
                assert!(memory <= gpu.memory_bytes, "{} memory {memory}", gpu.uuid);
            }
        }
    }

    /// From here on everyone behaves: whoever waits gets what it wants, one after the other.
    fn everyone_is_served(&mut self) {
        for index in 0..SERVERS {
            self.servers[index as usize].drained = false;
            let server = &self.servers[index as usize];
            if !server.alive || !server.lost.is_empty() {
                self.register_server(index);
            }
            self.pool
                .drain(self.now_ms, &format!("s{index}"), false, "test")
                .unwrap();
        }
        let mut rounds = 0;
        loop {
            let views = self.pool.lease_views(None, false);
            let waiting = views.iter().filter(|it| it.stage == Stage::Queued).count();
            if waiting == 0 {
                return;
            }
            rounds += 1;
            assert!(rounds < 2000, "{waiting} wait for ever: {views:#?}");
            self.now_ms += 1000;
            for view in &views {
                let client = self.asked.get(&view.lease).copied();
                match (view.stage, client) {
                    (Stage::Queued, Some(client)) => {
                        self.pool.renew(self.now_ms, client, view.lease).unwrap();
                    }
                    _ => {
                        let _ = self
                            .pool
                            .release(self.now_ms, None, view.lease, "test", "done");
                    }
                }
            }
            for index in 0..SERVERS {
                self.renew_one(index, true);
                self.renew_one(index, true);
            }
            self.pool.tick(self.now_ms);
            self.check();
        }
    }
}

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

/// A million operations, on two threads' worth of seeds.
#[test]
fn never_over_committed_and_nobody_waits_for_ever() {
    let halves = std::thread::scope(|scope| {
        let halves = [0..500, 500..1000].map(|seeds| scope.spawn(|| run(seeds, 1000)));
        halves.map(|half| half.join().unwrap())
    });
    assert_eq!(halves.iter().sum::<u64>(), 1_000_000);
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
