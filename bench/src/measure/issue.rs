//! What issuing a kernel launch costs the program.
#![forbid(unsafe_code)]

use crate::clock::{Elapsed, timed};
use crate::driver::Driver;
use crate::figure::{Figure, Target};
use crate::spread::Spread;

/// Launches of a burst, between two waits for the device.
pub const BURST: u32 = 200;
/// The promise: nanoseconds of the client's time per launch, on average in a run of a million.
const TARGET_NS: f64 = 150.0;

/// `launch/*`: one run of `launches` without a pause, then bursts of [`BURST`] with the device idle before each.
///
/// The run's processor time is the client's time of a launch: it holds every system call that sends, and the
/// polling while the server is behind. Its wall time also holds what other programs took of the core.
#[must_use]
pub fn issue(driver: &Driver, launches: u32) -> Vec<Figure> {
    burst(driver, BURST);
    let run = timed(|| {
        for _ in 0..launches {
            driver.launch();
        }
    });
    driver.synchronize();
    let each = |time: std::time::Duration| time.as_nanos() as f64 / f64::from(launches);
    let mut bursts: Vec<f64> = (0..2000)
        .map(|_| burst(driver, BURST).cpu.as_nanos() as f64 / f64::from(BURST))
        .collect();
    let bursts = Spread::of(&mut bursts);
    vec![
        Figure::new("launch/issue_run_cpu", "ns", each(run.cpu)).target(Target::Value(TARGET_NS)),
        Figure::new("launch/issue_run_wall", "ns", each(run.wall)),
        Figure::new("launch/issue_burst_cpu", "ns", bursts.p50),
    ]
}

/// Issues so many launches and then waits for the device; what the issuing took.
pub fn burst(driver: &Driver, launches: u32) -> Elapsed {
    let issued = timed(|| {
        for _ in 0..launches {
            driver.launch();
        }
    });
    driver.synchronize();
    issued
}
