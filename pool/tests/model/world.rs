//! A pool, and what servers and clients saw of it.

use std::collections::{BTreeMap, BTreeSet};

use farcall_pool::model::{
    Ask, ClientId, GpuFacts, LeaseId, NetAddress, Purpose, Quota, ServerFacts, ServerId, Settings,
    Stage,
};
use farcall_pool::state::{GpuNow, LeaseUse, Load, NewToken, Pool, Refusal, Role, TokenChange};

pub(super) const GIB: u64 = 1 << 30;
pub(super) const SERVERS: u64 = 4;
pub(super) const CLIENTS: u64 = 5;

/// xorshift64*: small, and the same everywhere.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        let at = self.below(from.len().max(1) as u64) as usize;
        from.get(at).copied()
    }
}

/// What a server knows.
#[derive(Default)]
pub(super) struct FakeServer {
    pub(super) id: Option<ServerId>,
    pub(super) alive: bool,
    /// Sessions that run: leases with the parts of GPUs that their grants name.
    pub(super) runs: BTreeMap<LeaseId, Vec<(String, u16, u64)>>,
    pub(super) refuses: BTreeSet<LeaseId>,
    pub(super) drained: bool,
    /// UUIDs of GPUs that do not answer, until it is started anew; and those of which the pool was told.
    pub(super) lost: BTreeSet<String>,
    pub(super) told_lost: BTreeSet<String>,
}

/// A request, and what its client's memory quota let it have of one GPU.
pub(super) struct Asked {
    pub(super) client: ClientId,
    pub(super) wanted: Ask,
    pub(super) gpu_bytes_max: u64,
}

pub(super) struct World {
    pub(super) random: Random,
    pub(super) now_ms: u64,
    pub(super) pool: Pool,
    pub(super) servers: Vec<FakeServer>,
    pub(super) clients: Vec<ClientId>,
    pub(super) asked: BTreeMap<LeaseId, Asked>,
    /// What a store has, by the changes that it was told.
    pub(super) store: BTreeMap<String, Vec<u8>>,
    pub(super) operations: u64,
}

pub(super) fn facts(index: u64) -> ServerFacts {
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
        tls: String::new(),
        gpus: (0..2 + index % 2).map(gpu).collect(),
    }
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
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

    pub(super) fn step(&mut self) {
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
            97 => self.administer(),
            98 => self.disable(),
            99 if self.random.one_in(4) => self.lose_gpu(),
            _ => self.renew_server(),
        }
        self.operations += 1;
        self.check();
    }

    pub(super) fn ask(&mut self) {
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
        let (wanted, gpu_bytes_max) = (ask.clone(), self.gpu_bytes_max(client, ask.gpus));
        match self.pool.ask(self.now_ms, client, ask, wait) {
            Ok(outcome) => {
                assert!(wait || outcome.granted);
                let asked = Asked {
                    client,
                    wanted,
                    gpu_bytes_max,
                };
                self.asked.insert(outcome.lease, asked);
            }
            Err(Refusal::Field { field, .. }) => assert_eq!(field, "servers"),
            Err(Refusal::Busy(_)) => assert!(!wait),
            Err(Refusal::Quota(_) | Refusal::NeverFits(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn gpu_bytes_max(&self, client: ClientId, gpus: u16) -> u64 {
        let at = self.clients.iter().position(|it| *it == client).unwrap();
        let token = self.pool.token_views(self.now_ms);
        let own = token.iter().find(|it| it.name == format!("c{at}")).unwrap();
        let team = self.pool.group_views(self.now_ms);
        let group = team.iter().filter(|_| own.group.is_some());
        let limits = group.map(|it| &it.quota).chain([&own.quota]);
        let least = limits.filter_map(|it| it.memory_bytes_max).min();
        least.map_or(u64::MAX, |bytes| bytes / u64::from(gpus))
    }

    /// Whether the servers that are there could serve a request if nobody else had anything.
    pub(super) fn could_serve(&self, lease: LeaseId) -> bool {
        let Some(asked) = self.asked.get(&lease) else {
            return false;
        };
        let wanted = &asked.wanted;
        let fits = |total_bytes: u64| match wanted.memory_bytes {
            Some(bytes) => bytes <= total_bytes,
            None => total_bytes * u64::from(wanted.share_permille) / 1000 <= asked.gpu_bytes_max,
        };
        let counts = (0..SERVERS).filter(|index| self.servers[*index as usize].alive);
        let counts = counts.map(|index| {
            let facts = facts(index);
            let named = wanted.servers.is_empty() || wanted.servers.contains(&facts.name);
            let is_right = |gpu: &&GpuFacts| {
                let mut filters = wanted.filters.iter();
                fits(gpu.memory_bytes) && filters.all(|it| it.matches(&facts, gpu))
            };
            facts.gpus.iter().filter(is_right).count() * usize::from(named)
        });
        let counts: Vec<usize> = counts.collect();
        let together = match wanted.same_server {
            true => counts.iter().copied().max().unwrap_or(0),
            false => counts.iter().sum(),
        };
        together >= usize::from(wanted.gpus)
    }

    pub(super) fn release(&mut self) {
        let known: Vec<_> = self
            .asked
            .iter()
            .map(|(id, asked)| (*id, asked.client))
            .collect();
        if let Some((id, client)) = self.random.pick(&known) {
            let _ = self
                .pool
                .release(self.now_ms, Some(client), id, "test", "done");
            self.asked.remove(&id);
        }
    }

    pub(super) fn renew_clients(&mut self) {
        for (id, Asked { client, .. }) in &self.asked {
            let _ = self.pool.renew(self.now_ms, *client, *id);
            self.pool.acknowledge(*client, *id);
        }
    }

    pub(super) fn register(&mut self) {
        let index = self.random.below(SERVERS);
        self.register_server(index);
    }

    pub(super) fn register_server(&mut self, index: u64) {
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

    pub(super) fn renew_server(&mut self) {
        let index = self.random.below(SERVERS);
        self.renew_one(index, false);
    }

    /// One turn of a server: it reports, is told what to end, ends it, and confirms the next time.
    pub(super) fn renew_one(&mut self, index: u64, at_once: bool) {
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
    pub(super) fn open_session(&mut self) {
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

    pub(super) fn drain(&mut self) {
        let index = self.random.below(SERVERS);
        let server = &mut self.servers[index as usize];
        if server.id.is_some() {
            server.drained = !server.drained;
            self.pool
                .drain(self.now_ms, &format!("s{index}"), server.drained, "test")
                .unwrap();
        }
    }

    pub(super) fn crash_server(&mut self) {
        let index = self.random.below(SERVERS);
        let server = &mut self.servers[index as usize];
        server.alive = false;
        server.runs.clear();
    }

    /// A GPU fails; what runs on it goes on failing until it is ended.
    pub(super) fn lose_gpu(&mut self) {
        let index = self.random.below(SERVERS);
        let gpus = facts(index).gpus;
        let at = self.random.below(gpus.len() as u64) as usize;
        self.servers[index as usize]
            .lost
            .insert(gpus[at].uuid.clone());
    }

    /// Makes what has changed since the last time durable.
    fn commit(&mut self) {
        for (key, value) in self.pool.take_changes() {
            match value {
                Some(value) => self.store.insert(key, value),
                None => self.store.remove(&key),
            };
        }
    }

    /// All that is not in the store is lost: nothing that counts.
    pub(super) fn restart_pool(&mut self) {
        self.commit();
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

    pub(super) fn disable(&mut self) {
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

    pub(super) fn check(&self) {
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
}
