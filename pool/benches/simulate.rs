//! What the pool makes of its GPUs, in numbers. `cargo bench -p farcall-pool --bench simulate` prints
//! - use: 1000 servers of 8 GPUs, 20 000 clients, in virtual time, for several [`MIXES`] of requests: how much of the GPUs is in
//!   use while requests wait, against whole GPUs for the same arrivals, and the most that any allocator could reach;
//! - decisions: how fast the allocator decides meanwhile.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

mod setting;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::{Duration, Instant};

use farcall_pool::model::{Ask, ClientId, LeaseId, ServerId, Stage};
use farcall_pool::state::{Load, Pool, Topic};

use setting::{ask, setup};

const SERVERS: u32 = 1000;
const CLIENTS: u64 = 20_000;
/// Arrivals of a simulation: more than all GPUs can hold in the smallest parts.
const ARRIVALS: u64 = 100_000;

/// Virtual time does not begin with 0, which would be before everything.
const BEGIN_MS: u64 = 1_000_000;

/// Requests: how often, of 1000, for how many GPUs, and how much of each in thousandths.
///
/// How long they hold their GPUs has nothing to do with their size, so it does not move the ratio.
struct Mix {
    name: &'static str,
    jobs: &'static [(u64, u16, u16)],
}

const MIXES: [Mix; 3] = [
    // Coarse likenesses: the shares of the first were checked against excerpts of the public file only, those of the second
    // are a third party's reading of the trace, and how long a job runs has nothing to do with its size.
    //
    // What people asked for in a cluster where parts of GPUs could be asked for: tasks with GPUs of Alibaba's trace gpu-v2023
    // (Weng et al., Beware of Fragmentation, USENIX ATC 2023, table 1: 38 of 87 % ask for a part, 0.56 of a GPU on average); the parts are the
    // frequent ones of openb_pod_list_default.csv.
    Mix {
        name: "asked for (Alibaba 2023)",
        jobs: &[
            (60, 1, 230),
            (50, 1, 320),
            (110, 1, 470),
            (80, 1, 650),
            (136, 1, 810),
            (554, 1, 1000),
            (2, 2, 1000),
            (2, 4, 1000),
            (6, 8, 1000),
        ],
    },
    // What programs really used, each asked for with the next larger of some usual parts: instances of Alibaba's trace gpu-v2020
    // (Weng et al., MLaaS in the Wild, USENIX NSDI 2022): 3 of 4 use less than a tenth of a GPU, 1 of 20 half of one or more.
    Mix {
        name: "used (Alibaba 2020)",
        jobs: &[
            (400, 1, 50),
            (350, 1, 100),
            (120, 1, 250),
            (80, 1, 500),
            (50, 1, 1000),
        ],
    },
    // No trace: small jobs most of all, as notebooks, tests and inference are, beside training on one GPU and on two.
    Mix {
        name: "notebooks and training",
        jobs: &[
            (125, 1, 50),
            (125, 1, 100),
            (125, 1, 200),
            (250, 1, 250),
            (125, 1, 500),
            (125, 1, 1000),
            (125, 2, 1000),
        ],
    },
];

impl Mix {
    fn pick(&self, random: &mut Random) -> (u16, u16) {
        let mut at = random.next() % self.jobs.iter().map(|job| job.0).sum::<u64>();
        for (weight, gpus, share_permille) in self.jobs {
            if at < *weight {
                return (*gpus, *share_permille);
            }
            at -= weight;
        }
        unreachable!("below the sum of all weights")
    }

    /// How many times the work of whole GPUs the best of all allocators does.
    fn bound(&self) -> f64 {
        let sum = |of: fn(&(u64, u16, u16)) -> u64| self.jobs.iter().map(of).sum::<u64>() as f64;
        sum(|job| job.0 * u64::from(job.1) * 1000)
            / sum(|job| job.0 * u64::from(job.1) * u64::from(job.2))
    }
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11
    }
}

fn main() {
    // `cargo test` runs benches too, to see that they work.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let (servers, arrivals) = if quick {
        (10, 4_000)
    } else {
        (SERVERS, ARRIVALS)
    };
    println!(
        "requests                   in use    whole GPUs   ratio   at most   wait, mean    decisions/s   p99"
    );
    for mix in &MIXES {
        let shared = simulate(mix, servers, arrivals, false);
        let whole = simulate(mix, servers, arrivals, true);
        println!(
            "{:<25} {:>7.3} {:>13.3} {:>7.2} {:>9.2} {:>6.0} ({:.0}) s {:>10.0} {:>7.1} us",
            mix.name,
            shared.use_,
            whole.use_,
            shared.use_ / whole.use_,
            mix.bound(),
            shared.wait_s,
            whole.wait_s,
            shared.decisions_per_second,
            shared.decision_us_p99
        );
    }
}

struct Outcome {
    decisions_per_second: f64,
    decision_us_p99: f64,
    wait_s: f64,
    /// Compute that programs really use, of all that there is, while requests wait for more.
    use_: f64,
}

fn simulate(mix: &Mix, servers: u32, arrivals: u64, whole: bool) -> Outcome {
    let mut random = Random(42);
    let mut pool = Pool::new();
    setup(&mut pool, BEGIN_MS, servers, CLIENTS);
    let mut simulation = Simulation {
        pool,
        servers,
        now_ms: BEGIN_MS,
        ends: BinaryHeap::new(),
        jobs: Vec::new(),
        decisions: Vec::new(),
        waiting: 0,
        in_use: 0,
        use_ms: 0,
        short_ms: 0,
        waited_ms: 0,
    };
    let mut arrived = 0;
    while arrived < arrivals || !simulation.ends.is_empty() || simulation.waiting > 0 {
        let next_end = simulation.ends.peek().map(|Reverse((at, _))| *at);
        let next_arrival = (arrived < arrivals).then(|| simulation.now_ms + random.next() % 8);
        if let Some(at) = next_arrival.filter(|at| next_end.is_none_or(|end| *at <= end)) {
            simulation.pass(at);
            arrived += 1;
            let (gpus, share) = mix.pick(&mut random);
            let length_ms = 60_000 + random.next() % 600_000;
            let client = ClientId(u32::try_from(random.next() % CLIENTS).unwrap());
            let work = u64::from(gpus) * u64::from(share);
            let ask = ask(gpus, if whole { 1000 } else { share });
            simulation.arrive(client, &ask, length_ms, work);
        } else if let Some(Reverse((at, lease))) = simulation.ends.pop() {
            simulation.pass(at);
            simulation.end(lease);
        } else {
            // What confirmed ends made possible is told with the next round.
            let now_ms = simulation.now_ms + 200;
            simulation.pass(now_ms);
            simulation.timed(|pool| pool.tick(now_ms));
        }
        simulation.hear();
    }
    simulation.outcome()
}

/// A pool in virtual time.
struct Simulation {
    pool: Pool,
    servers: u32,
    now_ms: u64,
    ends: BinaryHeap<Reverse<(u64, LeaseId)>>,
    jobs: Vec<Job>,
    decisions: Vec<Duration>,
    /// Requests that have no GPUs yet.
    waiting: u64,
    /// Thousandths of GPUs that programs use now.
    in_use: u64,
    /// The same, added up over the time in which requests waited, and that time.
    use_ms: u64,
    short_ms: u64,
    waited_ms: u64,
}

struct Job {
    length_ms: u64,
    /// Thousandths of a GPU that it uses, whatever it was given.
    work: u64,
    asked_ms: u64,
    has_begun: bool,
}

impl Simulation {
    fn pass(&mut self, until_ms: u64) {
        let passed = until_ms - self.now_ms;
        if self.waiting > 0 {
            self.use_ms += self.in_use * passed;
            self.short_ms += passed;
        }
        self.now_ms = until_ms;
    }

    fn timed<T>(&mut self, operation: impl FnOnce(&mut Pool) -> T) -> T {
        let began = Instant::now();
        let result = operation(&mut self.pool);
        self.pool.take_changes();
        self.decisions.push(began.elapsed());
        result
    }

    fn arrive(&mut self, client: ClientId, ask: &Ask, length_ms: u64, work: u64) {
        let now_ms = self.now_ms;
        self.timed(|pool| pool.ask(now_ms, client, ask.clone(), true).unwrap());
        self.waiting += 1;
        self.jobs.push(Job {
            length_ms,
            work,
            asked_ms: now_ms,
            has_begun: false,
        });
    }

    fn end(&mut self, lease: LeaseId) {
        let now_ms = self.now_ms;
        self.in_use -= self.jobs[index(lease)].work;
        self.timed(|pool| pool.release(now_ms, None, lease, "sim", "done").unwrap());
    }

    /// Clients hear that they have GPUs, servers that leases have ended, until there is no more news.
    fn hear(&mut self) {
        loop {
            let woken = self.pool.take_woken();
            if woken.is_empty() {
                return;
            }
            for topic in woken {
                match topic {
                    Topic::Lease(lease) => self.begin(lease),
                    Topic::Server(server) => self.confirm(server),
                }
            }
        }
    }

    fn begin(&mut self, lease: LeaseId) {
        let job = &mut self.jobs[index(lease)];
        if job.has_begun || self.pool.stage(lease) != Some(Stage::Held) {
            return;
        }
        job.has_begun = true;
        self.waiting -= 1;
        self.in_use += job.work;
        self.waited_ms += self.now_ms - job.asked_ms;
        self.ends
            .push(Reverse((self.now_ms + job.length_ms, lease)));
    }

    fn confirm(&mut self, server: ServerId) {
        let over: Vec<LeaseId> = self
            .pool
            .orders(server)
            .into_iter()
            .map(|it| it.lease)
            .collect();
        let now_ms = self.now_ms;
        self.timed(|pool| {
            pool.renew_server(now_ms, server, Load::default(), &over)
                .unwrap();
        });
    }

    fn outcome(mut self) -> Outcome {
        let spent: Duration = self.decisions.iter().sum();
        self.decisions.sort_unstable();
        let there = u64::from(self.servers) * 8 * 1000 * self.short_ms;
        Outcome {
            decisions_per_second: self.decisions.len() as f64 / spent.as_secs_f64(),
            decision_us_p99: self.decisions[self.decisions.len() * 99 / 100].as_secs_f64() * 1e6,
            wait_s: self.waited_ms as f64 / 1000.0 / self.jobs.len().max(1) as f64,
            use_: self.use_ms as f64 / there.max(1) as f64,
        }
    }
}

/// Leases are counted from 1, as they are asked for.
fn index(lease: LeaseId) -> usize {
    usize::try_from(lease.0 - 1).unwrap()
}
