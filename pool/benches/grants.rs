//! How many grants a pool makes, and how long one takes. `cargo bench -p farcall-pool --bench grants` prints
//! - durable: the thread with the embedded store, 64 clients: each grant is on the disk before it is answered;
//! - through the interface: the same with all that a client meets: TLS, HTTP, JSON, its token, a signature. The pool has one processor to
//!   itself where there are several, and the clients the others.
//!
//! Each once as fast as the clients can, which says how many there are, and once at a rate below that, which says how long one takes: from the
//! moment when it is due.
//!
//! Grants for 250 of 1000 parts of a GPU, of 200 servers with 8, given back at once: as many releases, and confirmations of servers that
//! a lease has ended, come besides.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

mod setting;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use farcall_pool::api::{App, ListenOptions, Serving};
use farcall_pool::client::{DELETE, PoolClient};
use farcall_pool::core::Core;
use farcall_pool::grant::Signer;
use farcall_pool::history::History;
use farcall_pool::init::Layout;
use farcall_pool::model::{ClientId, LeaseId, Quota, ServerId, Stage};
use farcall_pool::secrets::{SecretKind, generate, hash};
use farcall_pool::state::{Load, NewToken, Pool, Role};
use farcall_pool::store::EmbeddedStore;
use farcall_pool::tls::server_config;
use farcall_pool::wire::LeaseAnswer;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use setting::{ask, setup};

const CLIENTS: u32 = 64;
const SERVERS: u32 = 200;
/// How often servers say which leases have ended.
const CONFIRM: Duration = Duration::from_millis(5);
/// Grants a second of all clients together, where their latency is measured.
const DURABLE_RATE: u32 = 2000;
const INTERFACE_RATE: u32 = 500;

fn main() {
    // `cargo test` runs benches too, to see that they work.
    let quick = !std::env::args().any(|argument| argument == "--bench");
    let each = if quick { 5 } else { 300 };
    println!("                                grants/s        p50        p99");
    durable(each);
    through_the_interface(each);
}

/// When a client asks.
#[derive(Clone, Copy)]
struct Pace {
    /// Between two of its requests; nothing: as fast as it can.
    interval: Duration,
    next: Instant,
}

impl Pace {
    /// Of all clients together so many a second, evenly.
    fn of(client: u32, rate: Option<u32>) -> Self {
        let interval = rate.map_or(Duration::ZERO, |rate| {
            Duration::from_secs(1) * CLIENTS / rate
        });
        Self {
            interval,
            next: Instant::now() + interval * client / CLIENTS,
        }
    }

    /// Waits until the next request is due; when that was.
    fn wait(&mut self) -> Instant {
        let now = Instant::now();
        if self.interval.is_zero() {
            return now;
        }
        let due = self.next;
        self.next += self.interval;
        std::thread::sleep(due.saturating_duration_since(now));
        due
    }
}

/// Clients that ask and give back, on all processors.
fn durable(each: u32) {
    let directory = tempfile::tempdir().unwrap();
    let core = start(directory.path());
    let ask_one = |client: u32, mut pace: Pace| {
        let core = core.clone();
        move || {
            let mut took = Vec::new();
            for _ in 0..each {
                let began = pace.wait();
                let asked = core.call_blocking(move |pool, now_ms| {
                    pool.ask(now_ms, ClientId(client), ask(1, 250), true)
                        .unwrap()
                });
                took.push(began.elapsed());
                let lease = asked.unwrap().lease;
                core.call_blocking(move |pool, now_ms| {
                    assert_eq!(
                        pool.stage(lease),
                        Some(Stage::Held),
                        "there is room for all"
                    );
                    pool.release(now_ms, None, lease, "bench", "done").unwrap();
                })
                .unwrap();
            }
            took
        }
    };
    measure("durable", &core, None, ask_one);
    measure("durable", &core, Some(DURABLE_RATE), ask_one);
}

/// The same over the network.
fn through_the_interface(each: u32) {
    let directory = tempfile::tempdir().unwrap();
    let layout = Layout::new(&directory.path().join("pool"));
    layout.create(&["127.0.0.1".to_owned()]).unwrap();
    let (pool_set, clients_set) = processors();
    let (core, url) = on(&pool_set, || serve(&layout, directory.path()));
    let clients: Vec<PoolClient> = (0..CLIENTS)
        .map(|client| {
            let token = generate(SecretKind::Token).unwrap();
            let (name, hashed) = (format!("over-the-network-{client}"), hash(&token));
            let made =
                core.call_blocking(move |pool, now_ms| new_client(pool, now_ms, name, &hashed));
            made.unwrap();
            PoolClient::new(&url, Some(&layout.authority()), Some(&token)).unwrap()
        })
        .collect();
    let ask_one = |client: u32, mut pace: Pace| {
        let pool = &clients[client as usize];
        move || {
            let mut took = Vec::new();
            for _ in 0..each {
                let began = pace.wait();
                let path = "/v1/leases?wait=true&holder=bench";
                let answer: LeaseAnswer = pool.post(path, &ask(1, 250), Duration::ZERO).unwrap();
                took.push(began.elapsed());
                assert!(!answer.grants.is_empty(), "there is room for all");
                let path = format!("/v1/leases/{}", answer.lease.lease);
                pool.order::<()>(DELETE, &path, None).unwrap();
            }
            took
        }
    };
    on(&clients_set, || {
        measure("through the interface", &core, None, ask_one);
        measure(
            "through the interface",
            &core,
            Some(INTERFACE_RATE),
            ask_one,
        );
    });
}

/// A core whose store is in `directory`, with servers and clients.
fn start(directory: &std::path::Path) -> Core {
    let store = EmbeddedStore::open(&directory.join("bench.redb")).unwrap();
    let core = Core::start(Box::new(store), |_| {}).unwrap();
    core.call_blocking(|pool, now_ms| setup(pool, now_ms, SERVERS, CLIENTS.into()))
        .unwrap();
    core
}

/// A pool as `farcall pool serve` has it, and its URL. Its threads stay on the processors of the calling one, and stay when it ends.
fn serve(layout: &Layout, directory: &std::path::Path) -> (Core, String) {
    let core = start(directory);
    let app = App::new(
        core.clone(),
        Signer::generate().unwrap(),
        History::in_memory().unwrap(),
    );
    let options = ListenOptions {
        address: "127.0.0.1:0".to_owned(),
        tls: Some(server_config(&layout.certificate(), &layout.key()).unwrap()),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let serving = runtime.block_on(Serving::bind(&options, app)).unwrap();
    let url = format!("https://{}", serving.local_addr().unwrap());
    runtime.spawn(serving.run());
    std::mem::forget(runtime);
    (core, url)
}

fn new_client(pool: &mut Pool, now_ms: u64, name: String, hashed: &str) {
    let new = NewToken {
        name,
        role: Role::Client,
        group: None,
        quota: Quota::default(),
        valid_ms: None,
    };
    pool.create_token(now_ms, new, hashed, "bench").unwrap();
}

/// One processor for the pool, and the others, or the same one if there is no other.
fn processors() -> (CpuSet, CpuSet) {
    let all = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let mut ours = (0..CpuSet::count()).filter(|at| all.is_set(*at).unwrap());
    let (mut first, mut others) = (CpuSet::new(), CpuSet::new());
    first.set(ours.next().unwrap()).unwrap();
    let mut is_alone = true;
    for at in ours {
        others.set(at).unwrap();
        is_alone = false;
    }
    (first, if is_alone { first } else { others })
}

/// Runs `work` in a thread that, with all that it starts, may use these processors alone.
fn on<T: Send>(processors: &CpuSet, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            sched_setaffinity(Pid::from_raw(0), processors).unwrap();
            work()
        });
        thread.join().unwrap()
    })
}

/// Runs all clients at once, and prints what they saw.
fn measure<F>(what: &str, core: &Core, rate: Option<u32>, client: impl Fn(u32, Pace) -> F)
where
    F: FnOnce() -> Vec<Duration> + Send,
{
    let is_over = AtomicBool::new(false);
    let began = Instant::now();
    let mut took: Vec<Duration> = std::thread::scope(|scope| {
        scope.spawn(|| confirm(core, &is_over));
        let threads: Vec<_> = (0..CLIENTS)
            .map(|index| scope.spawn(client(index, Pace::of(index, rate))))
            .collect();
        let each = threads.into_iter().map(|thread| thread.join().unwrap());
        let took = each.flatten().collect();
        is_over.store(true, Ordering::Relaxed);
        took
    });
    let per_second = took.len() as f64 / began.elapsed().as_secs_f64();
    took.sort_unstable();
    let at = |permille: usize| took[took.len() * permille / 1000].as_secs_f64() * 1e3;
    let what = rate.map_or(what.to_owned(), |rate| format!("{what}, {rate}/s"));
    println!(
        "{what:<30} {per_second:>9.0} {:>7.2} ms {:>7.2} ms",
        at(500),
        at(990)
    );
}

/// What servers tell: which leases have ended.
fn confirm(core: &Core, is_over: &AtomicBool) {
    while !is_over.load(Ordering::Relaxed) {
        core.call_blocking(|pool, now_ms| {
            for server in (0..SERVERS).map(ServerId) {
                let orders = pool.orders(server).into_iter();
                let over: Vec<LeaseId> = orders.map(|order| order.lease).collect();
                if !over.is_empty() {
                    pool.renew_server(now_ms, server, Load::default(), &over)
                        .unwrap();
                }
            }
        })
        .unwrap();
        std::thread::sleep(CONFIRM);
    }
}
