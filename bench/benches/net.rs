//! `cargo bench -p farcall-bench --bench net`: round trips per backend and size, a flood, the ring's positions.
#![allow(missing_docs)]

use std::time::Instant;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use farcall_bench::gate::work;
use farcall_bench::net::link::{Echo, Link, Run};
use farcall_bench::net::service::{Mode, Service};
use farcall_bench::net::{Transport, Trip, size_name};
use farcall_bench::pin::{self, Side};
use farcall_bench::raw::{shm, tcp};

const SIZES: [usize; 4] = [8, 64, 1 << 10, 64 << 10];
/// Records of a batch that is flushed and answered.
const BATCH: u64 = 64;

fn trips(c: &mut Criterion, group: &str, size: usize, mut trip: impl Trip) {
    let mut group = c.benchmark_group(group);
    group.bench_function(BenchmarkId::from_parameter(size_name(size)), |b| {
        b.iter_custom(|times| {
            trip.begin();
            trip.trip().expect("a session");
            let began = Instant::now();
            (0..times).for_each(|_| trip.trip().expect("a session"));
            let elapsed = began.elapsed();
            trip.end();
            elapsed
        });
    });
    group.finish();
}

fn net(c: &mut Criterion) {
    let service = Service::start("127.0.0.1:0").expect("a port");
    let server = service.addr().to_string();
    let link = |transport, mode| Link::open(&server, transport, mode).expect("a session");
    pin::on(Side::Client, || {
        for size in SIZES {
            trips(c, "rtt/raw_tcp", size, tcp::PingPong::new(size));
            trips(c, "rtt/raw_shm", size, shm::PingPong::new(size));
            for transport in [Transport::TCP, Transport::SHM] {
                let echo = Echo::new(link(transport, Mode::Echo), size);
                trips(c, &format!("rtt/{transport}"), size, echo);
            }
        }
        for transport in [Transport::TCP, Transport::SHM] {
            let run = Run::new(link(transport, Mode::Sink { bytes: BATCH * 64 }), BATCH, 64);
            trips(c, &format!("batch_flush_of_{BATCH}/{transport}"), 64, run);
        }
    });
}

/// The paths of `farcall-bench gate` in time: each with what it needs before, so compare them with themselves.
fn paths(c: &mut Criterion) {
    let mut group = c.benchmark_group("path");
    group.throughput(Throughput::Elements(1000));
    for name in work::names().into_iter().filter(|name| name != "nothing") {
        group.bench_function(BenchmarkId::from_parameter(&name), |b| {
            b.iter(|| work::run(&name, 1000));
        });
    }
    group.finish();
}

criterion_group!(benches, paths, net);
criterion_main!(benches);
