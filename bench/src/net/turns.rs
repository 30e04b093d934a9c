//! Parties in turns, so that a disturbance of the machine meets them all.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{Load, Trip};
use crate::figure::{Beside, Figure};
use crate::latency::{Latency, Recorder, Round};

/// Length of a turn.
const TURN: Duration = Duration::from_millis(40);
/// Trips at the start of a turn that are not timed: the far side wakes up, caches warm.
const UNTIMED_TRIPS: u32 = 8;
/// Points of the course over time.
const WINDOWS: u32 = 60;

/// One of those that are compared.
#[allow(missing_debug_implementations)]
pub struct Party<'a> {
    name: String,
    trip: Box<dyn Trip + 'a>,
    recorder: Recorder,
}

impl<'a> Party<'a> {
    /// A party by its name in the table.
    pub fn new(name: impl Into<String>, trip: impl Trip + 'a, load: &Load) -> Self {
        let window = load.duration / WINDOWS;
        let window_ns = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self {
            name: name.into(),
            trip: Box::new(trip),
            recorder: Recorder::new(window_ns, load.rate.is_some()),
        }
    }
}

/// Plays turn by turn until each party has had its time; what each recorded, in their order. The time comes in as many
/// rounds as `load` says, and after each of them `between` may measure others.
///
/// A latency holds one reading of the clock (some 20 ns), for every party alike.
pub fn in_turns(
    load: &Load,
    mut parties: Vec<Party<'_>>,
    between: &mut dyn FnMut(),
) -> Vec<(String, Recorder)> {
    let rounds = load.rounds.max(1);
    let mut warm_up = load.warm_up;
    for _ in 0..rounds {
        round(load, &mut parties, warm_up, load.duration / rounds);
        parties
            .iter_mut()
            .for_each(|party| party.recorder.end_round());
        between();
        // Others have had the processors meanwhile.
        warm_up = load.warm_up.min(TURN);
    }
    parties
        .into_iter()
        .map(|party| (party.name, party.recorder))
        .collect()
}

fn round(load: &Load, parties: &mut [Party<'_>], mut warm_up: Duration, mut left: Duration) {
    while !left.is_zero() {
        let is_warm = warm_up.is_zero();
        let turn = if is_warm { left } else { warm_up }.min(TURN);
        for party in &mut *parties {
            party.trip.begin();
            let mut ignored = Recorder::new(u64::MAX, false);
            let recorder = if is_warm {
                &mut party.recorder
            } else {
                &mut ignored
            };
            play(party.trip.as_mut(), recorder, turn, load.rate);
            party.trip.end();
        }
        if is_warm {
            left -= turn;
        } else {
            warm_up -= turn;
        }
    }
}

fn play(trip: &mut dyn Trip, recorder: &mut Recorder, turn: Duration, rate: Option<f64>) {
    // Transfers that take long need no warming, and would take the turn's time.
    let began = Instant::now();
    for _ in 0..UNTIMED_TRIPS {
        trip.trip();
        if began.elapsed() > turn / 10 {
            break;
        }
    }
    match rate {
        None => closed_loop(trip, recorder, turn),
        Some(rate) => open_loop(trip, recorder, turn, Duration::from_secs_f64(1.0 / rate)),
    }
}

fn closed_loop(trip: &mut dyn Trip, recorder: &mut Recorder, turn: Duration) {
    let end = Instant::now() + turn;
    let mut now = Instant::now();
    while now < end {
        let began = Instant::now();
        trip.trip();
        now = Instant::now();
        let latency = nanos(now - began);
        recorder.record(latency, latency);
    }
}

/// Each trip is due a fixed time after the one before, and its latency counts from then.
fn open_loop(trip: &mut dyn Trip, recorder: &mut Recorder, turn: Duration, interval: Duration) {
    let began = Instant::now();
    let (mut due, mut before) = (began, began);
    while due - began < turn {
        while Instant::now() < due {
            std::hint::spin_loop();
        }
        trip.trip();
        let now = Instant::now();
        recorder.record(nanos(now - due), nanos(now - before));
        before = now;
        due += interval;
    }
}

/// What parties recorded as figures of the first beside the others, in microseconds: `KIND/NAME`, the median with the
/// distribution; with a rate also `jitter/NAME` (p99.9 - p50) and `gap_spread/NAME` (p99 - p1 of the time between answers).
pub fn latencies(kind: &str, name: &str, load: &Load, done: &[(String, Recorder)]) -> Vec<Figure> {
    let of = |kind: &str, value: fn(&Latency) -> f64, round: fn(&Round) -> f64| {
        let mut figure = Figure::new(load.named(format!("{kind}/{name}")), "us", 0.0);
        for (at, (party, recorder)) in done.iter().enumerate() {
            let latency = recorder.finish();
            let value = value(&latency);
            let rounds = recorder.rounds().iter().map(round).collect();
            figure = if at == 0 {
                figure.value = value;
                figure.rounds(rounds).latency(latency)
            } else {
                let beside = Beside::new(party, value);
                figure.with(beside.rounds(rounds).latency(latency))
            };
        }
        figure
    };
    let mut figures = vec![of(kind, |l| l.measured.p50, |r| r.p50)];
    if load.rate.is_some() {
        let jitter = of("jitter", |l| l.jitter_us, |r| r.jitter);
        let spread = of("gap_spread", |l| l.gap_spread_us, |r| r.gap_spread);
        // The distribution stands with the first.
        figures.extend([jitter, spread].map(Figure::without_latency));
    }
    figures
}

/// What parties recorded as a figure of the first beside the others: `amount` per microsecond of a trip, of the median.
pub(super) fn throughput(
    name: String,
    unit: &str,
    amount: f64,
    done: &[(String, Recorder)],
) -> Figure {
    let rate = |us: f64| amount / us;
    let rounds = |recorder: &Recorder| {
        let rounds = recorder.rounds().iter();
        rounds.map(|round| rate(round.p50)).collect()
    };
    let mut figure = Figure::new(name, unit, 0.0);
    for (at, (party, recorder)) in done.iter().enumerate() {
        let (latency, rounds) = (recorder.finish(), rounds(recorder));
        let value = rate(latency.measured.p50);
        figure = if at == 0 {
            figure.value = value;
            figure.latency(latency).rounds(rounds)
        } else {
            figure.with(Beside::new(party, value).latency(latency).rounds(rounds))
        };
    }
    figure
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{Load, Party, Trip, in_turns};

    struct Busy(Duration);

    impl Trip for Busy {
        fn trip(&mut self) {
            let began = Instant::now();
            while began.elapsed() < self.0 {
                std::hint::spin_loop();
            }
        }
    }

    fn load(rate: Option<f64>) -> Load {
        Load {
            duration: Duration::from_millis(100),
            warm_up: Duration::from_millis(10),
            rate,
            rounds: 1,
        }
    }

    #[test]
    fn every_party_has_its_turns() {
        let load = load(None);
        let busy = |us| Party::new(format!("{us}"), Busy(Duration::from_micros(us)), &load);
        let done = in_turns(&load, vec![busy(20), busy(200)], &mut || ());
        let p50 = |at: usize| done[at].1.finish().measured.p50;
        assert!(p50(0) >= 20.0 && p50(1) >= 200.0, "{} {}", p50(0), p50(1));
        assert!(done.iter().all(|(_, recorder)| recorder.count() > 0));
    }

    #[test]
    fn others_are_measured_after_each_round() {
        let load = Load {
            rounds: 3,
            ..load(None)
        };
        let party = Party::new("busy", Busy(Duration::from_micros(20)), &load);
        let mut times = 0;
        let done = in_turns(&load, vec![party], &mut || times += 1);
        assert_eq!((times, done[0].1.rounds().len()), (3, 3));
        assert!(done[0].1.rounds().iter().all(|round| round.p50 >= 20.0));
    }

    #[test]
    fn a_rate_that_cannot_be_kept_shows_as_latency() {
        let load = load(Some(10_000.0));
        // 200 us of work every 100 us: the queue grows to half of the turn.
        let party = Party::new("late", Busy(Duration::from_micros(200)), &load);
        let latency = in_turns(&load, vec![party], &mut || ())[0].1.finish();
        assert!(latency.measured.max > 5_000.0, "{:?}", latency.measured);
    }
}
