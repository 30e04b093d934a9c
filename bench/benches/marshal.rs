//! `cargo bench -p farcall-bench --bench marshal`: records into bytes and back, in place.
#![allow(missing_docs)]

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use farcall_bench::measure::{RECORDS, RecordBench};

fn marshal(c: &mut Criterion) {
    let mut group = c.benchmark_group("marshal");
    for record in RECORDS {
        let mut buffer = RecordBench::buffer();
        group.bench_function(BenchmarkId::new("encode", record.name), |b| {
            b.iter(|| black_box(record.encode(black_box(&mut buffer))));
        });
        let len = record.encode(&mut buffer);
        let frame = &buffer[..len];
        group.bench_function(BenchmarkId::new("decode", record.name), |b| {
            b.iter(|| record.decode(black_box(frame)));
        });
    }
    group.finish();
}

criterion_group!(benches, marshal);
criterion_main!(benches);
