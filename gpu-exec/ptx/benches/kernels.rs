//! Interpreter speed on three kernels, in thread-instructions per second.
//! `cargo bench -p farcall-ptx`
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    missing_docs
)]

#[path = "../tests/common/mod.rs"]
mod common;

use common::{Args, Device};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use farcall_ptx::Engine;

const TEXT: &str = include_str!("../../../fixtures/ptx/nvcc135_c75.ptx");

fn kernels(criterion: &mut Criterion) {
    let mut device = Device::new();
    device.engine = Engine::new(1);
    let module = device.load(TEXT);
    let n = 1 << 20;
    let (x, y) = (device.upload(&vec![1f32; n]), device.upload(&vec![2f32; n]));
    let saxpy = Args::new().arg(2f32).arg(x).arg(y).arg(n as u32);
    let side = 256usize;
    let (a, b) = (
        device.upload(&vec![1f32; side * side]),
        device.upload(&vec![2f32; side * side]),
    );
    let c = device.upload(&vec![0f32; side * side]);
    let matmul = Args::new().arg(a).arg(b).arg(c).arg(side as u32);
    let out = device.upload(&vec![0i32; 512 * 512]);
    let mandel = Args::new().arg(out).arg(512u32).arg(512u32).arg(100u32);
    let cases = [
        ("saxpy 1M", "saxpy", [1024, 1, 1], [256, 1, 1], saxpy),
        (
            "matmul_tiled 256",
            "matmul_tiled",
            [16, 16, 1],
            [16, 16, 1],
            matmul,
        ),
        ("mandel 512", "mandel", [32, 32, 1], [16, 16, 1], mandel),
    ];
    let mut group = criterion.benchmark_group("one core");
    group.sample_size(10);
    for (label, name, grid, block, args) in cases {
        let kernel = module.kernel(name).unwrap();
        let report = device.launch(&kernel, grid, block, &args).unwrap();
        group.throughput(Throughput::Elements(report.thread_instructions));
        group.bench_function(label, |bench| {
            bench.iter(|| device.launch(&kernel, grid, block, &args).unwrap());
        });
    }
    group.finish();
}

criterion_group!(benches, kernels);
criterion_main!(benches);
