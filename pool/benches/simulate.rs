//! What the pool can do, in numbers. `cargo bench -p farcall-pool` prints
//! - decisions: 1000 servers of 8 GPUs, 20 000 clients, in virtual time: how fast the allocator decides, and how much
//!   of the GPUs is in use against whole GPUs for the same arrivals;
//! - grants: the thread with the embedded store, 64 clients: grants per second and how long one takes.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use farcall_pool::core::Core;
use farcall_pool::model::{
    Ask, ClientId, GpuFacts, LeaseId, NetAddress, Purpose, Quota, ServerFacts, ServerId, Settings,
    Stage,
};
use farcall_pool::state::{Load, NewToken, Pool, Role};
use farcall_pool::store::EmbeddedStore;

const SERVERS: u32 = 1000;
const CLIENTS: u64 = 20_000;
/// Arrivals of the simulation.
const ARRIVALS: u64 = 60_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.next()).unwrap() % from.len()]
    }
}

fn main() {
    // `cargo test` runs benches too, to see that they work.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let arrivals = if quick { 2_000 } else { ARRIVALS };
    let shared = simulate(arrivals, false);
    let whole = simulate(arrivals, true);
    println!(
        "decisions per second   {:>10.0}",
        shared.decisions_per_second
    );
    println!("decision p99           {:>10.1} us", shared.decision_us_p99);
    println!(
        "wait for GPUs, mean    {:>10.1} s   (whole GPUs: {:.1} s)",
        shared.wait_s, whole.wait_s
    );
    println!(
        "work done per GPU time {:>10.3}     (whole GPUs: {:.3})",
        shared.use_, whole.use_
    );
    println!("ratio                  {:>10.2}", shared.use_ / whole.use_);
    grants(if quick { 200 } else { 20_000 });
}

struct Outcome {
    decisions_per_second: f64,
    decision_us_p99: f64,
    wait_s: f64,
    /// Compute that programs really use, of all that there is while there is work.
    use_: f64,
}

/// Jobs use a part of a GPU: small ones most of all, as notebooks, tests and inference do.
const JOBS: [(u16, u16); 8] = [
    (1, 50),
    (1, 100),
    (1, 200),
    (1, 250),
    (1, 250),
    (1, 500),
    (1, 1000),
    (2, 1000),
];

fn simulate(arrivals: u64, whole: bool) -> Outcome {
    let mut random = Random(42);
    let mut pool = Pool::new();
    setup(&mut pool, SERVERS, CLIENTS);
    let mut ends: BinaryHeap<Reverse<(u64, LeaseId)>> = BinaryHeap::new();
    let mut durations: Vec<(LeaseId, u64, u64, u64)> = Vec::new();
    let (mut now_ms, mut spent, mut decisions) = (1_000_000_u64, Duration::ZERO, Vec::new());
    let (mut used, mut waited_ms, mut granted) = (0.0_f64, 0_u64, 0_u64);
    let mut arrived = 0;
    let mut timed = |pool: &mut Pool, operation: &mut dyn FnMut(&mut Pool)| {
        let began = Instant::now();
        operation(pool);
        pool.take_changes();
        let took = began.elapsed();
        spent += took;
        decisions.push(took);
    };
    let start_ms = now_ms;
    while arrived < arrivals || !ends.is_empty() {
        let next_end = ends.peek().map(|Reverse((at, _))| *at);
        let next_arrival = (arrived < arrivals).then(|| now_ms + random.next() % 20);
        if next_arrival.is_some_and(|at| next_end.is_none_or(|end| at <= end)) {
            now_ms = next_arrival.unwrap();
            arrived += 1;
            let (gpus, share) = random.pick(&JOBS);
            let length_ms = 60_000 + random.next() % 600_000;
            let client = ClientId(u32::try_from(random.next() % CLIENTS).unwrap());
            let ask = ask(gpus, if whole { 1000 } else { share });
            let mut lease = None;
            timed(&mut pool, &mut |pool| {
                lease = Some(pool.ask(now_ms, client, ask.clone(), true).unwrap().lease);
            });
            let work = u64::from(gpus) * u64::from(share);
            durations.push((lease.unwrap(), length_ms, work, now_ms));
        } else if let Some(Reverse((at, lease))) = ends.pop() {
            now_ms = at;
            timed(&mut pool, &mut |pool| {
                pool.release(now_ms, None, lease, "sim", "done").unwrap();
            });
        }
        for topic in pool.take_woken() {
            match topic {
                farcall_pool::state::Topic::Lease(lease) => {
                    let index = usize::try_from(lease.0 - 1).unwrap();
                    let (_, length_ms, work, asked_ms) = durations[index];
                    if length_ms > 0 && pool.stage(lease) == Some(Stage::Held) {
                        ends.push(Reverse((now_ms + length_ms, lease)));
                        durations[index].1 = 0;
                        used += (work * length_ms) as f64 / 1000.0;
                        waited_ms += now_ms - asked_ms;
                        granted += 1;
                    }
                }
                farcall_pool::state::Topic::Server(server) => {
                    let over: Vec<LeaseId> =
                        pool.orders(server).into_iter().map(|it| it.lease).collect();
                    timed(&mut pool, &mut |pool| {
                        pool.renew_server(now_ms, server, Load::default(), &over)
                            .unwrap();
                    });
                }
            }
        }
        // What confirmed ends made possible is told with the next round.
        if ends.is_empty() && arrived >= arrivals {
            pool.tick(now_ms);
            for topic in pool.take_woken() {
                if let farcall_pool::state::Topic::Lease(lease) = topic
                    && pool.stage(lease) == Some(Stage::Held)
                {
                    let index = usize::try_from(lease.0 - 1).unwrap();
                    let (_, length_ms, work, _) = durations[index];
                    if length_ms > 0 {
                        durations[index].1 = 0;
                        used += (work * length_ms) as f64 / 1000.0;
                        ends.push(Reverse((now_ms + length_ms, lease)));
                    }
                }
            }
        }
    }
    decisions.sort_unstable();
    let there = f64::from(SERVERS * 8) * (now_ms - start_ms) as f64;
    Outcome {
        decisions_per_second: decisions.len() as f64 / spent.as_secs_f64(),
        decision_us_p99: decisions[decisions.len() * 99 / 100].as_secs_f64() * 1e6,
        wait_s: waited_ms as f64 / 1000.0 / granted.max(1) as f64,
        use_: used / there,
    }
}

fn setup(pool: &mut Pool, servers: u32, clients: u64) {
    let settings = Settings {
        client_ttl_ms: 24 * 3_600_000,
        server_ttl_ms: 24 * 3_600_000,
        idle_ms: None,
        ..Settings::default()
    };
    pool.set_settings(0, settings, "sim").unwrap();
    for index in 0..servers {
        pool.register(1_000_000, None, &index.to_string(), facts(index))
            .unwrap();
    }
    for index in 0..clients {
        let new = NewToken {
            name: format!("c{index}"),
            role: Role::Client,
            group: None,
            quota: Quota::default(),
            valid_ms: None,
        };
        pool.create_token(0, new, &index.to_string(), "sim")
            .unwrap();
    }
    pool.take_changes();
    pool.take_woken();
}

/// Clients that ask and give back as fast as they can; each grant is on the disk before it is answered.
fn grants(count: usize) {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&directory.path().join("pool.redb")).unwrap();
    let core = Core::start(Box::new(store), |_| {}).unwrap();
    core.call_blocking(|pool, _| setup(pool, 200, 64)).unwrap();
    let began = Instant::now();
    let ask_one = |client: u32| {
        let core = core.clone();
        move || {
            let mut took = Vec::new();
            for _ in 0..count / 64 {
                let began = Instant::now();
                let asked = core.call_blocking(move |pool, now_ms| {
                    pool.ask(now_ms, ClientId(client), ask(1, 250), true)
                        .unwrap()
                });
                let lease = asked.unwrap().lease;
                took.push(began.elapsed());
                core.call_blocking(move |pool, now_ms| {
                    pool.release(now_ms, None, lease, "bench", "done").unwrap();
                    for server in 0..200 {
                        let server = ServerId(server);
                        let over: Vec<LeaseId> =
                            pool.orders(server).into_iter().map(|it| it.lease).collect();
                        if !over.is_empty() {
                            pool.renew_server(now_ms, server, Load::default(), &over)
                                .unwrap();
                        }
                    }
                })
                .unwrap();
            }
            took
        }
    };
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..64).map(|client| scope.spawn(ask_one(client))).collect();
        let each = threads.into_iter().map(|thread| thread.join().unwrap());
        each.flatten().collect()
    });
    took.sort_unstable();
    let per_second = took.len() as f64 / began.elapsed().as_secs_f64();
    let p99 = took[took.len() * 99 / 100].as_secs_f64() * 1e3;
    println!("durable grants/s       {per_second:>10.0}     (as many releases besides)");
    println!("durable grant p99      {p99:>10.2} ms");
}

fn facts(index: u32) -> ServerFacts {
    let gpu = |gpu: u32| GpuFacts {
        uuid: format!("GPU-{index}-{gpu}"),
        name: if index.is_multiple_of(4) {
            "A100"
        } else {
            "H100"
        }
        .to_owned(),
        memory_bytes: 80 << 30,
        sm: 90,
        healthy: true,
    };
    ServerFacts {
        name: format!("s{index}"),
        addresses: vec![NetAddress {
            network: "gpu".to_owned(),
            address: format!("s{index}:7474"),
        }],
        kind: "null".to_owned(),
        rdma: true,
        driver_version: String::new(),
        cuda_version: "13.0".to_owned(),
        switch: format!("hall{}/rack{}", index / 200, index / 20),
        version: "0".to_owned(),
        gpus: (0..8).map(gpu).collect(),
    }
}

fn ask(gpus: u16, share_permille: u16) -> Ask {
    Ask {
        gpus,
        share_permille,
        memory_bytes: None,
        filters: Vec::new(),
        servers: Vec::new(),
        same_server: false,
        near: String::new(),
        purpose: Purpose::Reservation,
        hold_ms: None,
        idle_ms: None,
        label: String::new(),
    }
}
