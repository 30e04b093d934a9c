//! `cargo bench -p farcall-bench --bench calls`: driver calls through the built `libcuda.so.1`, against a server
//! with the `null` device in processes of its own; blocking calls beside a raw spinning ping-pong.
#![allow(missing_docs)]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use farcall_bench::driver::Driver;
use farcall_bench::measure::{BURST, burst};
use farcall_bench::net::Transport;
use farcall_bench::pin::{self, Side};
use farcall_bench::raw::tcp::PingPong;
use farcall_fixtures::Server;

/// Launches of the run that the promise speaks of.
const RUN: u32 = 1_000_000;

fn local(c: &mut Criterion, driver: &Driver) {
    let mut group = c.benchmark_group("local");
    group.bench_function("cuCtxGetDevice", |b| {
        b.iter(|| black_box(driver.context_device()))
    });
    group.bench_function("cuDeviceGetAttribute", |b| {
        b.iter(|| black_box(driver.device_attribute()))
    });
    group.bench_function("cuPointerGetAttribute", |b| {
        b.iter(|| black_box(driver.pointer_attribute()))
    });
    group.finish();
}

fn launch(c: &mut Criterion, driver: &Driver) {
    let mut group = c.benchmark_group("launch");
    // Processor time of the thread, in bursts: what one launch costs the program.
    group.bench_function("issue_burst_cpu", |b| {
        b.iter_custom(|launches| {
            let mut left = u32::try_from(launches).unwrap_or(u32::MAX);
            let mut cpu = Duration::ZERO;
            while left > 0 {
                let now = left.min(BURST);
                cpu += burst(driver, now).cpu;
                left -= now;
            }
            cpu
        });
    });
    // The promised figure: a launch of a run of a million without a pause.
    group.sample_size(10);
    group.bench_function("issue_run_cpu", |b| {
        b.iter_custom(|runs| {
            let run = |_| burst(driver, RUN).cpu / RUN;
            (0..runs).map(run).sum()
        });
    });
    group.sample_size(100);
    // Without a pause: the slower of client and server decides.
    group.bench_function("issue_run_wall", |b| b.iter(|| driver.launch()));
    driver.synchronize();
    group.finish();
}

fn blocking(c: &mut Criterion, driver: &Driver) {
    let mut group = c.benchmark_group("blocking");
    let mut raw = PingPong::new(8);
    group.bench_function("raw_tcp_8B", |b| {
        b.iter_custom(|messages| {
            let mut time = 0.0;
            raw.play(usize::try_from(messages).unwrap_or(usize::MAX - 1), |ns| {
                time += ns
            });
            Duration::from_secs_f64(time / 1e9)
        });
    });
    group.bench_function("copy_to_host_8B", |b| {
        b.iter(|| black_box(driver.copy_to_host()))
    });
    group.bench_function("launch_and_synchronize", |b| {
        b.iter(|| {
            driver.launch();
            driver.synchronize();
        });
    });
    group.finish();
}

fn calls(c: &mut Criterion) {
    let server = pin::on(Side::Server, || Server::start("null", &[]));
    let driver = Driver::open(server.addr(), Transport::TCP);
    local(c, &driver);
    launch(c, &driver);
    pin::on(Side::Client, || blocking(c, &driver));
}

criterion_group!(benches, calls);
criterion_main!(benches);
