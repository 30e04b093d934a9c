//! Calls that have to wait for the server, beside a raw spinning ping-pong.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use crate::driver::Driver;
use crate::figure::{Figure, Target};
use crate::pin::{self, Side};
use crate::raw::tcp::PingPong;
use crate::spread::Spread;

/// Bytes of the copy, and of the raw ping-pong's messages.
const BYTES: usize = 8;
/// Calls of one kind in a row, before the turn of the next kind.
const TURN: usize = 100;
/// Turns that are played even on a machine so busy that they take longer than [`TIME_MAX`].
const TURNS_MIN: usize = 10;
/// When no further turn begins.
const TIME_MAX: Duration = Duration::from_secs(20);
/// The promise: a blocking call as a multiple of the raw round trip.
const TARGET_RATIO: f64 = 1.5;

/// `blocking/*`: microseconds of a blocking call, the median, and the 10th percentile as `..._p10`: what it costs
/// when nobody else takes the core. The kinds take turns, so that a disturbance meets them all.
///
/// A launch leaves at once when nothing is in flight, so launch and wait are two messages and one answer: that is what
/// is played beside it.
#[must_use]
pub fn blocking(driver: &Driver, turns: usize) -> Vec<Figure> {
    pin::on(Side::Client, || turn_by_turn(driver, turns))
}

fn turn_by_turn(driver: &Driver, turns: usize) -> Vec<Figure> {
    let mut raw = PingPong::new(BYTES);
    let mut raw_pair = PingPong::with_parts(BYTES, 2);
    let mut samples: [Vec<f64>; 4] = std::array::from_fn(|_| Vec::with_capacity(turns * TURN));
    let [round_trips, copies, pairs, launches] = &mut samples;
    let began = Instant::now();
    for turn in 0..turns {
        if turn >= TURNS_MIN && began.elapsed() > TIME_MAX {
            break;
        }
        raw.play(TURN, |ns| round_trips.push(ns / 1000.0));
        raw_pair.play(TURN, |ns| pairs.push(ns / 1000.0));
        driver.synchronize();
        times(copies, || {
            driver.copy_to_host();
        });
        times(launches, || {
            driver.launch();
            driver.synchronize();
        });
    }
    let [raw, copy, pair, launch] = samples.map(|mut samples| Spread::of(&mut samples));
    let figure = |name: &str, ours: f64, raw: f64| {
        let raw_name = "raw TCP ping-pong of as many messages";
        Figure::new(format!("blocking/{name}"), "us", ours).beside(raw_name, raw)
    };
    let promised = |figure: Figure| figure.target(Target::Ratio(TARGET_RATIO));
    vec![
        promised(figure("copy_to_host_8B", copy.p50, raw.p50)),
        figure("copy_to_host_8B_p10", copy.p10, raw.p10),
        promised(figure("launch_and_synchronize", launch.p50, pair.p50)),
        figure("launch_and_synchronize_p10", launch.p10, pair.p10),
    ]
}

fn times(samples: &mut Vec<f64>, mut call: impl FnMut()) {
    // The first of a turn finds the server asleep.
    call();
    for _ in 0..TURN {
        let began = Instant::now();
        call();
        samples.push(began.elapsed().as_nanos() as f64 / 1000.0);
    }
}

/// `trips/*`: how often one waiting call waits, from the statistics of two runs of `farcall-bench calls`.
#[must_use]
pub fn round_trips_per_call(
    trips_few: u64,
    calls_few: u64,
    trips_many: u64,
    calls_many: u64,
) -> f64 {
    (trips_many - trips_few) as f64 / (calls_many - calls_few) as f64
}
