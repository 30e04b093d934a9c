//! The figures of the main job, one function each.
//!
//! Times vary with whoever else uses the machine, so each is taken beside its limit in turns, and where the
//! program's own time is meant, as processor time of its thread.
#![forbid(unsafe_code)]

mod blocking;
mod issue;
mod local;
mod marshal;
mod memory;
mod replay;
mod startup;

pub use blocking::{blocking, round_trips_per_call};
pub use issue::{BURST, burst, issue};
pub use local::local;
pub use marshal::{RECORDS, RecordBench, marshal};
pub use memory::{IdleMemory, idle_memory};
pub use replay::{CALL_BY_CALL, CALL_BY_CALL_MEASURED, Counts, Replay, counts, play, replay};
pub use startup::startup;

use std::time::Instant;

use crate::spread::Spread;

/// Nanoseconds per call: the distribution over batches of so many calls, so that the clock is not what is measured.
fn per_call(batches: usize, calls: usize, mut call: impl FnMut()) -> Spread {
    let mut samples: Vec<f64> = (0..batches)
        .map(|_| {
            let began = Instant::now();
            for _ in 0..calls {
                call();
            }
            began.elapsed().as_nanos() as f64 / calls as f64
        })
        .collect();
    Spread::of(&mut samples)
}
