//! Floods and bulk transfers over TCP and shared memory; bulk beside the raw socket and memcpy
//! in the same run.
//!
//! `cargo bench -p farcall-transport --bench throughput`
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../tests/support/mod.rs"]
mod support;

use std::io::{ErrorKind, IoSlice, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Instant;

use criterion::measurement::WallTime;
use criterion::{
    BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
};
use farcall_transport::{Limits, Tuning};
use support::{Backend, Shm, Tap, Tcp, serve};

/// Two connected raw sockets, non-blocking, without Nagle's delay.
fn raw_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    for socket in [&near, &far] {
        socket.set_nodelay(true).unwrap();
        socket.set_nonblocking(true).unwrap();
    }
    (near, far)
}

/// Spins until the whole buffer has come; false at the end of the stream.
fn read_spinning(socket: &mut TcpStream, buffer: &mut [u8]) -> bool {
    let mut at = 0;
    while at < buffer.len() {
        match socket.read(&mut buffer[at..]) {
            Ok(0) => return false,
            Ok(got) => at += got,
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::hint::spin_loop(),
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

fn flood<B: Backend>(c: &mut Criterion, name: &str) {
    let mut group = c.benchmark_group(format!("flood_{name}"));
    group.throughput(Throughput::Elements(1));
    for size in [64usize, 96] {
        let tap = Tap::ignore();
        let (client, server) = B::pair(
            Limits::default(),
            Tuning::default(),
            Tap::ignore(),
            tap.clone(),
        );
        let running = serve(server);
        let mut total = 0;
        group.bench_function(BenchmarkId::new("delivered", size), |b| {
            b.iter_custom(|records| {
                let start = Instant::now();
                for n in 0..records {
                    client
                        .append(size, |record| record[..8].copy_from_slice(&n.to_le_bytes()))
                        .unwrap();
                }
                total += records * size as u64;
                client.flush().unwrap();
                // The server's count: no frame tells this side of it, so it cannot sleep for it.
                while tap.bytes() != total {
                    thread::yield_now();
                }
                start.elapsed()
            });
        });
        let mut total = tap.bytes();
        // Bursts that the peer drains in between: what the program's thread pays.
        group.bench_function(BenchmarkId::new("append_burst_of_200", size), |b| {
            b.iter_custom(|records| {
                let mut time = std::time::Duration::ZERO;
                let mut left = records;
                while left > 0 {
                    let burst = left.min(200);
                    let start = Instant::now();
                    for n in 0..burst {
                        client
                            .append(size, |record| record[..8].copy_from_slice(&n.to_le_bytes()))
                            .unwrap();
                    }
                    time += start.elapsed();
                    total += burst * size as u64;
                    while tap.bytes() != total {
                        client.flush().unwrap();
                        thread::yield_now();
                    }
                    left -= burst;
                }
                time
            });
        });
        client.close();
        running.join().unwrap();
    }
    group.finish();
}

fn bulk(c: &mut Criterion) {
    const BYTES: usize = 64 << 20;
    let mut group = c.benchmark_group("bulk");
    group
        .throughput(Throughput::Bytes(BYTES as u64))
        .sample_size(20);
    let source = vec![1u8; BYTES];

    let (mut near, mut far) = raw_pair();
    let received = Arc::new(AtomicU64::new(0));
    let reader = {
        let received = Arc::clone(&received);
        thread::spawn(move || {
            let mut dest = vec![0u8; BYTES];
            while read_spinning(&mut far, &mut dest) {
                received.fetch_add(1, SeqCst);
            }
        })
    };
    let mut sent = 0;
    group.bench_function("raw_tcp", |b| {
        b.iter(|| {
            write_spinning(&mut near, &source);
            sent += 1;
            while received.load(SeqCst) < sent {
                std::hint::spin_loop();
            }
        });
    });
    drop(near);
    reader.join().unwrap();

    let mut dest = vec![0u8; BYTES];
    group.bench_function("memcpy", |b| b.iter(|| dest.copy_from_slice(&source)));
    ours::<Tcp>(&mut group, "tcp", &source);
    ours::<Shm>(&mut group, "shm", &source);
    group.finish();
}

fn ours<B: Backend>(group: &mut BenchmarkGroup<'_, WallTime>, name: &str, source: &[u8]) {
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        Tap::ignore(),
        Tap::ignore(),
    );
    let running = serve(server.clone());
    let mut dest = vec![0u8; source.len()];
    let mut id = 0;
    group.bench_function(name, |b| {
        b.iter(|| {
            id += 1;
            let done = Arc::new(AtomicBool::new(false));
            let flag = Arc::clone(&done);
            let complete = Box::new(move |result: Result<usize, _>| {
                assert!(result.is_ok());
                flag.store(true, SeqCst);
            });
            // SAFETY: `dest` outlives the transfer, which this iteration waits for.
            unsafe { server.bulk_post(id, dest.as_mut_ptr(), dest.len(), complete) }.unwrap();
            client.bulk_send(id, &[IoSlice::new(source)]).unwrap();
            while !done.load(SeqCst) {
                std::hint::spin_loop();
            }
        });
    });
    client.close();
    running.join().unwrap();
}

fn floods(c: &mut Criterion) {
    flood::<Tcp>(c, "tcp");
    flood::<Shm>(c, "shm");
}

criterion_group!(benches, floods, bulk);
criterion_main!(benches);
