//! Many sessions at once, many one after the other, and one that does not read. `FARCALL_LOAD_SESSIONS` and
//! `FARCALL_LOAD_CYCLES` ask for more than a test run does; `scripts/nightly` takes 1000 and 50 000.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

mod support;

use std::mem::MaybeUninit;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use farcall_gpu_exec::{DeviceChoice, EXECUTOR_COMMAND, Inventory, ServeOptions, Server, Stopper};
use farcall_marshal::wire::*;
use farcall_transport::TransportChoice::{self, Shm, Tcp};
use support::{Client, PATIENCE, eventually};

fn wanted(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// A server in this process, whose descriptors and memory can be counted so. Its executors are processes.
struct Load {
    address: String,
    stopper: Stopper,
    running: std::thread::JoinHandle<()>,
}

fn serve() -> Load {
    let options = ServeOptions {
        listen: "127.0.0.1:0".to_owned(),
        device: DeviceChoice::Null,
        memory_bytes: Some(4 << 30),
        sessions_max: 1024,
        warm_executors: 2,
        cache_bytes_max: 0,
        executor: Some(vec![
            env!("CARGO_BIN_EXE_farcall-test-server").into(),
            EXECUTOR_COMMAND.into(),
        ]),
        ..Default::default()
    };
    let server = Server::bind(&options).unwrap();
    let (address, stopper) = (server.local_addr().to_string(), server.stopper());
    let running = std::thread::spawn(move || server.run().unwrap());
    Load {
        address,
        stopper,
        running,
    }
}

impl Load {
    fn client(&self, transport: TransportChoice) -> Client {
        Client::connect_over(&self.address, 0, transport).unwrap()
    }

    /// Sessions and used bytes.
    fn used(&self) -> (u32, u64) {
        let inventory = Inventory::fetch(&self.address, None, PATIENCE).unwrap();
        let device = &inventory.devices[0];
        (device.sessions, device.used_bytes)
    }

    fn stop(self) {
        self.stopper.stop();
        self.running.join().unwrap();
    }
}

/// Prints a figure for `scripts/reliability-report`.
fn measured(promise: &str, figure: &str) {
    println!("measured {promise}: {figure}");
}

/// Bytes of memory that the executors have for themselves: the shared parts counted by their part.
fn executors_bytes() -> (usize, usize) {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let children = tasks.map(|task| std::fs::read_to_string(task.path().join("children")));
    let children: String = children.map(Result::unwrap_or_default).collect();
    let pss = |process: &str| {
        let path = format!("/proc/{process}/smaps_rollup");
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with("Pss:"));
        let word = line.and_then(|line| line.split_whitespace().nth(1));
        word.map_or(0, |kilobytes| kilobytes.parse::<usize>().unwrap() << 10)
    };
    let each: Vec<_> = children.split_whitespace().map(pss).collect();
    (each.len(), each.iter().sum())
}

/// Open descriptors and resident bytes of this process.
fn resources() -> (usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (fds, pages * 4096)
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}

fn round_trip(client: &Client) -> Duration {
    let start = Instant::now();
    assert_eq!(client.synchronize(), 0);
    start.elapsed()
}

#[test]
fn many_sessions_at_once() {
    let sessions = wanted("FARCALL_LOAD_SESSIONS", 100);
    let load = serve();
    drop(load.client(Tcp));
    eventually("the first session is gone", || load.used() == (0, 0));
    let before = resources();
    let (clients, mut opening) = open_side_by_side(&load, sessions);
    for client in &clients {
        assert_eq!(client.alloc(0, 1 << 20), 0);
    }
    let all = (u32::try_from(sessions).unwrap(), (sessions as u64) << 20);
    assert_eq!(load.used(), all);
    let mut times: Vec<_> = (0..10)
        .flat_map(|_| clients.iter().map(round_trip))
        .collect();
    let (processes, bytes) = executors_bytes();
    let figure = format!(
        "{sessions} sessions at once: open p50 {:?}, p99 {:?}; round trip p50 {:?}, p99 {:?}; {:.1} MB each in {processes} \
         processes; {} descriptors at both ends",
        percentile(&mut opening, 50),
        percentile(&mut opening, 99),
        percentile(&mut times, 50),
        percentile(&mut times, 99),
        bytes as f64 / 1e6 / processes.max(1) as f64,
        resources().0
    );
    drop(clients);
    eventually("all are gone", || load.used() == (0, 0));
    eventually("all descriptors are closed", || {
        resources().0 <= before.0 + 4
    });
    let left = resources().0;
    measured(
        "sessions",
        &format!("{figure}; {} and {left} before and after", before.0),
    );
    load.stop();
}

/// Sessions, and how long each took to open, eight at a time.
fn open_side_by_side(load: &Load, sessions: usize) -> (Vec<Client>, Vec<Duration>) {
    let open = |n: usize| {
        let timed = |_| {
            let start = Instant::now();
            (load.client(Tcp), start.elapsed())
        };
        (n..sessions).step_by(8).map(timed).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || open(n))).collect();
        let opened = threads.into_iter().map(|thread| thread.join().unwrap());
        opened.flatten().unzip()
    })
}

#[test]
fn sessions_come_and_go_and_leave_nothing() {
    let cycles = wanted("FARCALL_LOAD_CYCLES", 60);
    for transport in [Tcp, Shm] {
        let load = serve();
        let cycle = || {
            let client = load.client(transport);
            assert_eq!(client.alloc(0, 1 << 20), 0);
            drop(client);
        };
        (0..10).for_each(|_| cycle());
        eventually("they are gone", || load.used() == (0, 0));
        let before = resources();
        (0..cycles).for_each(|_| cycle());
        eventually("they are gone", || load.used() == (0, 0));
        eventually("all descriptors are closed", || {
            resources().0 <= before.0 + 4
        });
        let after = resources();
        let figure = format!(
            "{cycles} opened and closed over {transport:?}: {} -> {} descriptors, {:.1} -> {:.1} MB resident",
            before.0,
            after.0,
            before.1 as f64 / 1e6,
            after.1 as f64 / 1e6
        );
        measured("cycles", &figure);
        assert!(after.1 < before.1 + (8 << 20), "{before:?} -> {after:?}");
        load.stop();
    }
}

/// One client asks for more than it reads, until nothing more goes in; a second one reads a little now and then.
/// Others do not notice. The same is measured with and without them in turns, and the best of each counts: what else
/// this machine does comes and goes, what they did would stay.
#[test]
fn slow_and_stalled_clients_delay_nobody() {
    let load = serve();
    let other = load.client(Tcp);
    let tails = |client: &Client| {
        let mut times: Vec<_> = (0..500).map(|_| round_trip(client)).collect();
        [50, 99].map(|percent| percentile(&mut times, percent))
    };
    let best = |one: [Duration; 2], two: [Duration; 2]| [one[0].min(two[0]), one[1].min(two[1])];
    tails(&other);
    let (mut calm, mut beside) = ([Duration::MAX; 2], [Duration::MAX; 2]);
    for _ in 0..6 {
        calm = best(calm, tails(&other));
        let stalled = flooded(&load, 1 << 20);
        let slow = flooded(&load, SLOW_BYTES);
        std::thread::scope(|scope| {
            let (over, at_end) = mpsc::channel::<()>();
            let slow = &slow;
            scope.spawn(move || read_slowly(slow, &at_end));
            beside = best(beside, tails(&other));
            drop(over);
        });
        assert!(stalled.endpoint.closed().is_none(), "it only stalls");
        drop(stalled);
    }
    let figure = format!(
        "round trip of another p50 {:?}, p99 {:?}; beside a slow and a stalled client {:?}, {:?}",
        calm[0], calm[1], beside[0], beside[1]
    );
    measured("neighbour", &figure);
    for (calm, beside) in calm.iter().zip(&beside) {
        assert!(*beside < *calm + Duration::from_millis(1), "{figure}");
    }
    assert_eq!(other.synchronize(), 0);
    drop(other);
    load.stop();
}

/// Transfers that a client asks for without reading them.
const UNREAD: u64 = 64;
/// What a slow client reads at once.
const SLOW_BYTES: u64 = 128 << 10;

/// Reads one transfer every few milliseconds until told otherwise.
fn read_slowly(slow: &Client, at_end: &mpsc::Receiver<()>) {
    let pause = Duration::from_millis(5);
    for bulk in 1..=UNREAD {
        if at_end.recv_timeout(pause) != Err(mpsc::RecvTimeoutError::Timeout) {
            return;
        }
        let mut piece = vec![MaybeUninit::uninit(); SLOW_BYTES as usize];
        assert_eq!(
            slow.endpoint.bulk_recv(bulk, &mut piece).unwrap(),
            piece.len()
        );
    }
}

/// A client that has asked for transfers, of which nobody has read anything.
fn flooded(load: &Load, bytes: u64) -> Client {
    let client = load.client(Tcp);
    assert_eq!(client.alloc(0, bytes), 0);
    for bulk in 1..=UNREAD {
        let copy = CuMemcpyDtoHAsyncV2 {
            src: client.base(),
            count: bytes,
            stream: 0,
            bulk,
        };
        let _unread = client.begin(&copy);
    }
    client.endpoint.flush().unwrap();
    client
}
