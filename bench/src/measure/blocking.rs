//! Calls that have to wait for the server, beside a raw spinning ping-pong.
#![forbid(unsafe_code)]

use crate::driver::Driver;
use crate::figure::{Figure, Target};
use crate::net::{
    Load, Lost, Party, TOO_FEW_FOR_JITTER, Transport, Trip, in_turns, knows_jitter, latencies,
};
use crate::pin::{self, Side};
use crate::raw::{shm, tcp};

/// Bytes of the copy, and of the raw ping-pong's messages.
const BYTES: usize = 8;
/// The promise: a blocking call over TCP as a multiple of the raw round trip.
const TARGET_RATIO: f64 = 1.5;
/// The promise: its jitter over shared memory as a multiple of that of the raw ping-pong.
const JITTER_RATIO: f64 = 3.0;

/// `blocking/*`: microseconds of a blocking call, the median, and the 10th percentile as `..._p10`: what it costs
/// when nobody else takes the core. With a rate instead of that `jitter/*` and `gap_spread/*`. The kinds take turns, so that
/// a disturbance meets them all. Names end with `suffix`.
///
/// A launch leaves at once when nothing is in flight, so launch and wait are two messages and one answer: that is what
/// is played beside it over TCP.
///
/// # Errors
/// None: a call that fails panics, and so does a limit.
pub fn blocking(
    driver: &Driver,
    transport: Transport,
    suffix: &str,
    load: &Load,
) -> Result<Vec<Figure>, Lost> {
    pin::on(Side::Client, || {
        turn_by_turn(driver, transport, suffix, load)
    })
}

fn turn_by_turn(
    driver: &Driver,
    transport: Transport,
    suffix: &str,
    load: &Load,
) -> Result<Vec<Figure>, Lost> {
    let copy = Calls::new(driver, || {
        driver.copy_to_host();
    });
    let launch = Calls::new(driver, || {
        driver.launch();
        driver.synchronize();
    });
    let is_shm = transport == Transport::SHM;
    let (limit, limit_of_pair) = if is_shm {
        let name = "raw shared memory, spinning";
        let raw = || Party::new(name, shm::PingPong::new(BYTES), load);
        (raw(), raw())
    } else {
        let name = "raw TCP ping-pong of as many messages";
        let raw = |parts| Party::new(name, tcp::PingPong::with_parts(BYTES, parts), load);
        (raw(1), raw(2))
    };
    let parties = vec![
        Party::new("copy_to_host_8B", copy, load),
        limit,
        Party::new("launch_and_synchronize", launch, load),
        limit_of_pair,
    ];
    let done = in_turns(load, parties, &mut || ())?;
    let mut figures = Vec::new();
    for beside_limit in done.chunks(2) {
        let name = format!("{}{suffix}", beside_limit[0].0);
        let mut of_call = latencies("blocking", &name, load, beside_limit);
        if load.rate.is_none() {
            let at_best = at_best(&of_call[0]);
            of_call.push(at_best);
        }
        let promise = match load.rate {
            None if !is_shm => Some((0, TARGET_RATIO)),
            Some(_) if is_shm => Some((1, JITTER_RATIO)),
            _ => None,
        };
        let is_jitter = load.rate.is_some();
        match promise {
            Some(_) if is_jitter && !knows_jitter(beside_limit) => {
                let note = format!("{name}: {TOO_FEW_FOR_JITTER}");
                of_call[0].notes.push(note);
            }
            Some((of, most)) => of_call[of].target = Some(Target::Ratio(most)),
            None => {}
        }
        figures.extend(of_call);
    }
    Ok(figures)
}

/// The figure's 10th percentile beside its limit's.
fn at_best(figure: &Figure) -> Figure {
    let p10 = |latency: &Option<crate::latency::Latency>| {
        latency.as_ref().map_or(0.0, |latency| latency.measured.p10)
    };
    let beside = figure.beside.iter();
    let own = Figure::new(format!("{}_p10", figure.name), "us", p10(&figure.latency));
    beside.fold(own, |own, limit| {
        own.beside(&limit.name, p10(&limit.latency))
    })
}

/// Calls of one kind.
struct Calls<'a, F> {
    driver: &'a Driver,
    call: F,
}

impl<'a, F: Fn()> Calls<'a, F> {
    fn new(driver: &'a Driver, call: F) -> Self {
        Self { driver, call }
    }
}

impl<F: Fn()> Trip for Calls<'_, F> {
    fn begin(&mut self) {
        self.driver.synchronize();
    }

    fn trip(&mut self) -> Result<(), Lost> {
        (self.call)();
        Ok(())
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
