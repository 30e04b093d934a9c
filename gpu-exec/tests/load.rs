//! Many sessions at once, many one after the other, and one that does not read. `FARCALL_LOAD_SESSIONS` and
//! `FARCALL_LOAD_CYCLES` ask for more than a test run does; `scripts/nightly` takes 1000 and 50 000.
#![allow(clippy::unwrap_used)]

mod support;

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
    let clients: Vec<Client> = std::thread::scope(|scope| {
        let open = |n: usize| {
            let load = &load;
            scope.spawn(move || {
                (0..sessions)
                    .skip(n)
                    .step_by(8)
                    .map(|_| load.client(Tcp))
                    .collect()
            })
        };
        let opening: Vec<_> = (0..8).map(open).collect();
        let opened = opening.into_iter().map(|thread| thread.join().unwrap());
        opened.flat_map(|clients: Vec<Client>| clients).collect()
    });
    for client in &clients {
        assert_eq!(client.alloc(0, 1 << 20), 0);
    }
    let all = (u32::try_from(sessions).unwrap(), (sessions as u64) << 20);
    assert_eq!(load.used(), all);
    let mut times: Vec<_> = (0..10)
        .flat_map(|_| clients.iter().map(round_trip))
        .collect();
    println!(
        "{sessions} sessions: round trip p50 {:?}, p99 {:?}; {} descriptors",
        percentile(&mut times, 50),
        percentile(&mut times, 99),
        resources().0
    );
    drop(clients);
    eventually("all are gone", || load.used() == (0, 0));
    eventually("all descriptors are closed", || {
        resources().0 <= before.0 + 4
    });
    load.stop();
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
        println!("{cycles} cycles over {transport:?}: {before:?} -> {after:?}");
        assert!(after.1 < before.1 + (8 << 20), "{before:?} -> {after:?}");
        load.stop();
    }
}

/// A client asks for more than it reads, until nothing more goes in. Others do not notice.
#[test]
fn a_client_that_does_not_read_delays_nobody() {
    let load = serve();
    let other = load.client(Tcp);
    let median = |client: &Client| {
        let mut times: Vec<_> = (0..400).map(|_| round_trip(client)).collect();
        percentile(&mut times, 50)
    };
    median(&other);
    let calm = median(&other);
    let stalled = load.client(Tcp);
    let bytes = 1 << 20;
    assert_eq!(stalled.alloc(0, bytes), 0);
    for bulk in 1..=64 {
        // Nobody receives these.
        stalled.send(&CuMemcpyDtoHAsyncV2 {
            src: stalled.base(),
            count: bytes,
            stream: 0,
            bulk,
        });
    }
    stalled.endpoint.flush().unwrap();
    let beside = median(&other);
    println!("median round trip {calm:?}, beside a stalled client {beside:?}");
    assert!(
        beside < calm + Duration::from_millis(1),
        "{calm:?} -> {beside:?}"
    );
    drop(stalled);
    assert_eq!(other.synchronize(), 0);
    drop(other);
    load.stop();
}
