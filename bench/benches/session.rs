//! `cargo bench -p farcall-bench --bench session`: opening a session, the blocking round trips of start-up and of
//! calls that must wait, and the memory of an idle session. Fails if a promise of the latter is not kept.
#![allow(missing_docs)]

mod count;

use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use farcall_bench::figure::{Figure, table};
use farcall_bench::measure;
use farcall_fixtures::Server;

use count::Count;

const FARCALL_BENCH: &str = env!("CARGO_BIN_EXE_farcall-bench");

fn session(c: &mut Criterion) {
    let server = Server::start("null", &[]);
    let mut group = c.benchmark_group("session");
    group.sample_size(10);
    // Process start, session, module, one kernel, end.
    group.bench_function("open_and_close", |b| {
        b.iter(|| {
            server
                .client()
                .run(Path::new(FARCALL_BENCH), &["calls", "launch", "1"])
                .expect_success()
        });
    });
    group.finish();
}

fn trips(c: &mut Criterion<Count>) {
    each(c, measure::startup);
}

fn memory(c: &mut Criterion<Count>) {
    each(c, measure::idle_memory);
}

/// A bench per figure; an iteration makes them all anew, on a server of its own.
fn each(c: &mut Criterion<Count>, figures: fn(&Path) -> Vec<Figure>) {
    let measured = figures(Path::new(FARCALL_BENCH));
    print!("{}", table(&measured));
    assert!(
        measured
            .iter()
            .all(|figure| figure.is_kept() != Some(false)),
        "a promise is not kept"
    );
    for (at, figure) in measured.iter().enumerate() {
        c.bench_function(&figure.name, |b| {
            b.iter_custom(|iterations| {
                (0..iterations)
                    .map(|_| figures(Path::new(FARCALL_BENCH))[at].value)
                    .sum()
            });
        });
    }
}

/// Few samples, because each takes programs and a server; no plots, because a count that does not vary has none.
fn counts(unit: &'static str) -> Criterion<Count> {
    Criterion::default()
        .with_measurement(Count::new(unit))
        .without_plots()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(1))
        .measurement_time(Duration::from_millis(1))
        .configure_from_args()
}

criterion_group!(times, session);
criterion_group!(name = round_trips; config = counts("trips"); targets = trips);
criterion_group!(name = megabytes; config = counts("MB"); targets = memory);
criterion_main!(times, round_trips, megabytes);
