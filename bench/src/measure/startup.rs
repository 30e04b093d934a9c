//! How often programs wait for the server before they do any work of their own, and how often per waiting call.
#![forbid(unsafe_code)]

use std::path::Path;

use farcall_fixtures::{Server, Stats, paths};

use super::round_trips_per_call;
use crate::figure::{Figure, Target};

/// The promise.
const TARGET_TRIPS: f64 = 12.0;

/// Waiting calls of the shorter and the longer of two runs.
const CALLS: [u64; 2] = [10, 1010];

/// cuda-python up to the first launch: PTX that `sys.argv[1]` names, memory, the kernel.
const CUDA_PYTHON: &str = r"
import sys
from cuda.bindings import driver as d
def ck(result):
    assert int(result[0]) == 0, result
    return result[1] if len(result) == 2 else None
ck(d.cuInit(0))
ck(d.cuCtxSetCurrent(ck(d.cuDevicePrimaryCtxRetain(ck(d.cuDeviceGet(0))))))
module = ck(d.cuModuleLoadData(open(sys.argv[1], 'rb').read()))
kernel = ck(d.cuModuleGetFunction(module, b'vecadd'))
ck(d.cuMemAlloc(1024))
ck(d.cuStreamCreate(0))
";

/// CuPy up to the first kernel, which it compiles.
const CUPY: &str = r"
import os, tempfile
os.environ['CUPY_COMPILE_WITH_PTX'] = '1'
os.environ['CUPY_ACCELERATORS'] = ''
os.environ['CUPY_CACHE_DIR'] = tempfile.mkdtemp()
import cupy
cupy.arange(8, dtype=cupy.float32)
";

/// `trips/*`: blocking round trips of start-up on a fresh server, for each stack, and per waiting call.
///
/// The cudart program is `fixtures/programs/vecadd.cu` to its end: the waits of calls for whose results or effects it
/// must wait are not counted.
///
/// # Panics
/// If a program has not been built (`scripts/test` builds them all) or fails.
#[must_use]
pub fn startup(farcall_bench: &Path) -> Vec<Figure> {
    let ptx = paths::source("demo_kernels.ptx");
    let ptx = ptx.to_str().expect("a path in UTF-8");
    let python = paths::python();
    let cudart = stats(&paths::program("vecadd-13-static"), &[]);
    let own = [
        ("cudart_vecadd", waits_of_startup(&cudart)),
        (
            "cuda_python",
            stats(&python, &["-c", CUDA_PYTHON, ptx]).blocking_round_trips,
        ),
        ("cupy", stats(&python, &["-c", CUPY]).blocking_round_trips),
    ];
    let mut figures: Vec<Figure> = own
        .into_iter()
        .map(|(name, trips)| {
            Figure::new(format!("trips/startup_{name}"), "trips", trips as f64)
                .target(Target::Value(TARGET_TRIPS))
        })
        .collect();
    for call in ["copy", "synchronize"] {
        let [few, many] = CALLS.map(|calls| {
            stats(farcall_bench, &["calls", call, &calls.to_string()]).blocking_round_trips
        });
        let each = round_trips_per_call(few, CALLS[0], many, CALLS[1]);
        figures.push(
            Figure::new(format!("trips/per_{call}"), "trips", each).target(Target::Value(1.0)),
        );
    }
    figures
}

/// Runs a program on a server of its own, so that nothing is cached there. The `soft` device, because programs
/// check their results.
fn stats(program: &Path, args: &[&str]) -> Stats {
    let server = Server::start("soft", &[]);
    server
        .client()
        .run(program, args)
        .expect_success()
        .stats()
        .clone()
}

/// Round trips of all calls but those whose results or effects a program must wait for.
fn waits_of_startup(stats: &Stats) -> u64 {
    // Copies to pageable memory return when they are done, the asynchronous ones too.
    const WAITING: [&str; 8] = [
        "cuMemcpyDtoH",
        "cuMemcpyDtoHAsync",
        "cuMemcpy",
        "cuMemcpyAsync",
        "cuCtxSynchronize",
        "cuStreamSynchronize",
        "cuEventSynchronize",
        "cuEventElapsedTime",
    ];
    let waiting: u64 = WAITING.iter().map(|call| stats.waits_of(call)).sum();
    stats.blocking_round_trips - waiting
}
