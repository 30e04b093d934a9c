//! `cargo bench -p farcall-bench --bench session`: opening a session and making it idle. Beside it, the figures of
//! sessions that are no times: round trips of start-up and memory of an idle session, which are printed.
#![allow(missing_docs)]

use std::path::Path;

use criterion::{Criterion, criterion_group, criterion_main};
use farcall_bench::figure::table;
use farcall_bench::measure;
use farcall_fixtures::Server;

const FARCALL_BENCH: &str = env!("CARGO_BIN_EXE_farcall-bench");

fn session(c: &mut Criterion) {
    let own = Path::new(FARCALL_BENCH);
    let mut figures = measure::startup(own);
    figures.extend(measure::idle_memory(own));
    print!("{}", table(&figures));

    let server = Server::start("null", &[]);
    let mut group = c.benchmark_group("session");
    group.sample_size(10);
    // Process start, session, module, one kernel, end.
    group.bench_function("open_and_close", |b| {
        b.iter(|| {
            server
                .client()
                .run(own, &["calls", "launch", "1"])
                .expect_success()
        });
    });
    group.finish();
    assert!(
        figures.iter().all(|figure| figure.is_kept() != Some(false)),
        "a promise is not kept"
    );
}

criterion_group!(benches, session);
criterion_main!(benches);
