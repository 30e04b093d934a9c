//! Round trips over TCP and shared memory, each in turns with its limit (a raw spinning
//! ping-pong of the same size) in the same run. Medians and tails, not averages, so that
//! a busy machine shows in the tail and not in the ratio.
//!
//! `cargo bench -p farcall-transport --bench latency`
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::thread;
use std::time::Instant;

use farcall_transport::{Endpoint, Handler, Limits, Tuning};
use support::{Backend, PATIENCE, Shm, Tap, Tcp, serve};

const ROUNDS: usize = 12;
const TRIPS: usize = 1_500;
const SIZES: [usize; 4] = [8, 64, 1024, 65_536];

/// Makes one round trip.
type Trip = Box<dyn FnMut()>;

fn raw_tcp(size: usize) -> Trip {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let mut far = listener.accept().unwrap().0;
    for socket in [&near, &far] {
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
    }
    thread::spawn(move || {
        let mut buffer = vec![0; size];
        while read_spinning(&mut far, &mut buffer) {
            write_spinning(&mut far, &buffer);
        }
    });
    let mut buffer = vec![1; size];
    Box::new(move || {
        write_spinning(&mut near, &buffer);
        assert!(read_spinning(&mut near, &mut buffer));
    })
}

fn read_spinning(socket: &mut TcpStream, buffer: &mut [u8]) -> bool {
    let (mut at, mut idle) = (0, 0);
    while at < buffer.len() {
        match socket.read(&mut buffer[at..]) {
            Ok(0) => return false,
            Ok(got) => at += got,
            // Between its turns the echo must leave the processor to the others.
            Err(error) if error.kind() == ErrorKind::WouldBlock => pause(&mut idle),
            Err(_) => return false,
        }
    }
    true
}

fn write_spinning(socket: &mut TcpStream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(sent) => bytes = &bytes[sent..],
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Spins; sleeps in between when nothing has come for long.
fn pause(idle: &mut u32) {
    *idle += 1;
    if *idle > 100_000 {
        thread::sleep(std::time::Duration::from_millis(1));
    } else {
        std::hint::spin_loop();
    }
}

/// One direction of the raw shared memory ping-pong: a sequence number and bytes.
struct Slot {
    turn: AtomicU64,
    bytes: parking_lot::Mutex<Vec<u8>>,
}

fn raw_shm(size: usize) -> Trip {
    let slot = || {
        Arc::new(Slot {
            turn: AtomicU64::new(0),
            bytes: vec![0; size].into(),
        })
    };
    let (to, from) = (slot(), slot());
    let (far_to, far_from) = (Arc::clone(&to), Arc::clone(&from));
    thread::spawn(move || {
        let mut buffer = vec![0; size];
        for turn in 1.. {
            let mut idle = 0;
            while far_to.turn.load(Acquire) != turn {
                if Arc::strong_count(&far_to) == 1 {
                    return;
                }
                pause(&mut idle);
            }
            buffer.copy_from_slice(&far_to.bytes.lock());
            far_from.bytes.lock().copy_from_slice(&buffer);
            far_from.turn.store(turn, Release);
        }
    });
    let mut buffer = vec![1; size];
    let mut turn = 0;
    Box::new(move || {
        turn += 1;
        to.bytes.lock().copy_from_slice(&buffer);
        to.turn.store(turn, Release);
        while from.turn.load(Acquire) != turn {
            std::hint::spin_loop();
        }
        buffer.copy_from_slice(&from.bytes.lock());
    })
}

/// Counts what arrives.
struct Count(AtomicU64);

impl Handler for Count {
    fn on_frame(&self, _: &Endpoint, frame: &[u8]) {
        self.0
            .store(self.0.load(Relaxed) + frame.len() as u64, Release);
    }
}

fn ours<B: Backend>(size: usize) -> Trip {
    let count = Arc::new(Count(AtomicU64::new(0)));
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        count.clone(),
        Tap::echo(),
    );
    serve(server);
    let buffer = vec![1; size];
    let mut total = 0;
    Box::new(move || {
        total += size as u64;
        client
            .append(size, |record| record.copy_from_slice(&buffer))
            .unwrap();
        client
            .wait_until(&|| count.0.load(Acquire) == total, Some(PATIENCE))
            .unwrap();
    })
}

fn measure(trip: &mut Trip, into: &mut Vec<u64>) {
    for n in 0..TRIPS {
        let start = Instant::now();
        trip();
        // The first ones wake the other side and warm the caches.
        if n >= TRIPS / 10 {
            into.push(u64::try_from(start.elapsed().as_nanos()).unwrap());
        }
    }
}

fn percentile(sorted: &[u64], permille: usize) -> f64 {
    let at = (sorted.len() - 1) * permille / 1000;
    f64::from(u32::try_from(sorted[at]).unwrap_or(u32::MAX)) / 1000.0
}

fn compare(name: &str, size: usize, mut raw: Trip, mut ours: Trip) {
    let (mut raws, mut ourss) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        measure(&mut raw, &mut raws);
        measure(&mut ours, &mut ourss);
    }
    raws.sort_unstable();
    ourss.sort_unstable();
    let at = |permille| (percentile(&raws, permille), percentile(&ourss, permille));
    let (p10, p50, p999) = (at(100), at(500), at(999));
    println!(
        "{name} {size:>6} B  p50 raw {:>8.2} us  ours {:>8.2} us  ratio {:.2}   p10 {:.2}/{:.2} ratio {:.2}   p99.9 {:.0}/{:.0} us",
        p50.0,
        p50.1,
        p50.1 / p50.0,
        p10.0,
        p10.1,
        p10.1 / p10.0,
        p999.0,
        p999.1
    );
}

fn main() {
    for size in SIZES {
        compare("tcp", size, raw_tcp(size), ours::<Tcp>(size));
    }
    for size in SIZES {
        compare("shm", size, raw_shm(size), ours::<Shm>(size));
    }
}
