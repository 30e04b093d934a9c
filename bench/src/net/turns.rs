//! Parties in turns, so that a disturbance of the machine meets them all.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{Load, Lost, Trip};
use crate::figure::{Beside, Figure};
use crate::latency::{Latency, Recorder, Round, SAMPLES_OF_P99_9};

/// Length of a turn.
const TURN: Duration = Duration::from_millis(40);
/// Trips of a turn of an open loop, at least, where the time that is left has so many.
const PACED_TRIPS: u32 = 100;
/// Trips at the start of a turn that are not timed: the far side wakes up, caches warm. Of an open loop at most one of ten.
const UNTIMED_TRIPS: u32 = 8;
/// The part of a rate that has to be reached, else it is said.
const ACHIEVED_MIN: f64 = 0.98;
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
///
/// # Errors
/// A party's session ended.
pub fn in_turns(
    load: &Load,
    parties: Vec<Party<'_>>,
    between: &mut dyn FnMut(),
) -> Result<Vec<(String, Recorder)>, Lost> {
    by_clock(&Instant::now, load, parties, between)
}

fn by_clock(
    now: &impl Fn() -> Instant,
    load: &Load,
    mut parties: Vec<Party<'_>>,
    between: &mut dyn FnMut(),
) -> Result<Vec<(String, Recorder)>, Lost> {
    let rounds = load.rounds.max(1);
    let mut warm_up = load.warm_up;
    for _ in 0..rounds {
        round(now, load, &mut parties, warm_up, load.duration / rounds)?;
        parties
            .iter_mut()
            .for_each(|party| party.recorder.end_round());
        between();
        // Others have had the processors meanwhile.
        warm_up = load.warm_up.min(TURN);
    }
    Ok(parties
        .into_iter()
        .map(|party| (party.name, party.recorder))
        .collect())
}

fn round(
    now: &impl Fn() -> Instant,
    load: &Load,
    parties: &mut [Party<'_>],
    mut warm_up: Duration,
    mut left: Duration,
) -> Result<(), Lost> {
    let interval = load.rate.map(|rate| Duration::from_secs_f64(1.0 / rate));
    let turn_max = interval.map_or(TURN, |interval| TURN.max(interval * PACED_TRIPS));
    let mut ignored = Recorder::new(u64::MAX, false);
    while !left.is_zero() {
        let is_warm = warm_up.is_zero();
        let turn = if is_warm { left } else { warm_up }.min(turn_max);
        for party in &mut *parties {
            party.trip.begin();
            let recorder = if is_warm {
                &mut party.recorder
            } else {
                &mut ignored
            };
            match interval {
                None => closed_loop(now, party.trip.as_mut(), recorder, turn)?,
                Some(interval) => open_loop(now, party.trip.as_mut(), recorder, turn, interval)?,
            }
            party.trip.end();
        }
        if is_warm {
            left -= turn;
        } else {
            warm_up -= turn;
        }
    }
    Ok(())
}

fn closed_loop(
    now: &impl Fn() -> Instant,
    trip: &mut dyn Trip,
    recorder: &mut Recorder,
    turn: Duration,
) -> Result<(), Lost> {
    // Transfers that take long need no warming, and would take the turn's time.
    let began = now();
    for _ in 0..UNTIMED_TRIPS {
        trip.trip()?;
        if now() - began > turn / 10 {
            break;
        }
    }
    let end = now() + turn;
    let mut at = now();
    while at < end {
        let began = now();
        trip.trip()?;
        at = now();
        let latency = nanos(at - began);
        recorder.record(latency, latency);
    }
    Ok(())
}

/// Each trip is due a fixed time after the one before, and its latency counts from then. The turn ends when the next would be
/// due: so the next turn keeps the rate, too.
fn open_loop(
    now: &impl Fn() -> Instant,
    trip: &mut dyn Trip,
    recorder: &mut Recorder,
    turn: Duration,
    interval: Duration,
) -> Result<(), Lost> {
    let trips = turn.as_nanos().div_ceil(interval.as_nanos().max(1));
    let trips = u32::try_from(trips).unwrap_or(u32::MAX).max(1);
    let untimed = UNTIMED_TRIPS.min(trips / 10);
    let began = now();
    let due = |number: u32| began + interval * number;
    let mut before = None;
    for number in 0..trips {
        wait_until(now, due(number));
        trip.trip()?;
        let at = now();
        if number >= untimed {
            let latency = nanos(at - due(number));
            match before {
                Some(before) => recorder.record(latency, nanos(at - before)),
                None => recorder.record_first(latency),
            }
        }
        before = Some(at);
    }
    wait_until(now, due(trips));
    recorder.paced(u64::from(trips), nanos(now() - began));
    Ok(())
}

/// Spins: a thread that slept would be late.
fn wait_until(now: &impl Fn() -> Instant, due: Instant) {
    while now() < due {
        std::hint::spin_loop();
    }
}

/// What parties recorded as figures of the first beside the others, in microseconds: `KIND/NAME`, the median with the
/// distribution; with a rate also `jitter/NAME` (p99.9 - p50), `gap_spread/NAME` (p99 - p1 of the time between answers) and
/// `achieved/NAME` (trips a second that there really were).
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
        figures.push(achieved(load.named(format!("achieved/{name}")), done));
    }
    if let (Some(rate), Some(first)) = (load.rate, figures.first_mut()) {
        let slow = done
            .iter()
            .filter_map(|party| too_slow(&first.name, rate, party));
        first.notes = slow.collect();
    }
    figures
}

/// Why no promise of jitter is judged.
pub const TOO_FEW_FOR_JITTER: &str =
    "jitter is judged from 10000 trips a round on: a higher --rate or a longer --duration";

/// Whether each round of each party has trips enough to tell its p99.9.
#[must_use]
pub fn knows_jitter(done: &[(String, Recorder)]) -> bool {
    let mut rounds = done.iter().flat_map(|(_, recorder)| recorder.rounds());
    rounds.all(|round| round.count >= SAMPLES_OF_P99_9)
}

/// `tail/NAME`: p99.9 as a multiple of p50 in a closed loop, corrected, of the first beside the others. None where a round has
/// too few trips to tell its p99.9.
pub(super) fn tail(name: &str, done: &[(String, Recorder)]) -> Option<Figure> {
    if !knows_jitter(done) {
        return None;
    }
    let of = |recorder: &Recorder| {
        let latency = recorder.finish().corrected;
        let rounds: Vec<f64> = recorder.rounds().iter().map(|round| round.tail).collect();
        (latency.p99_9 / latency.p50, rounds)
    };
    let [(_, own), others @ ..] = done else {
        return None;
    };
    let (value, rounds) = of(own);
    let figure = Figure::new(format!("tail/{name}"), "x", value).rounds(rounds);
    let beside = others.iter().map(|(party, recorder)| {
        let (value, rounds) = of(recorder);
        Beside::new(party, value).rounds(rounds)
    });
    Some(beside.fold(figure, Figure::with))
}

fn achieved(name: String, done: &[(String, Recorder)]) -> Figure {
    let of = |recorder: &Recorder| recorder.finish().achieved_per_s.unwrap_or_default();
    let mut parties = done.iter();
    let own = parties.next().map_or(0.0, |(_, recorder)| of(recorder));
    // What others achieve is no limit: all are told the same rate.
    let others = parties.map(|(party, recorder)| Beside::new(party, of(recorder)).peer());
    others.fold(Figure::new(name, "/s", own), Figure::with)
}

/// What there is to say about a party that did not keep the rate.
fn too_slow(figure: &str, rate: f64, (party, recorder): &(String, Recorder)) -> Option<String> {
    let achieved = recorder.finish().achieved_per_s?;
    (achieved < rate * ACHIEVED_MIN).then(|| {
        format!(
            "{figure}: {party} did {achieved:.1} a second: latencies are those of a queue that is emptied each turn"
        )
    })
}

/// What parties recorded as a figure of the first beside the others: `amount` per microsecond of a trip, of the median.
pub(super) fn throughput(
    name: String,
    unit: &str,
    amount: f64,
    load: &Load,
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
    if let Some(rate) = load.rate {
        let slow = done
            .iter()
            .filter_map(|party| too_slow(&figure.name, rate, party));
        figure.notes = slow.collect();
    }
    figure
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;
    use std::time::{Duration, Instant};

    use super::{Load, Lost, Party, Trip, by_clock, in_turns, latencies, tail};
    use crate::latency::Recorder;

    /// Time that passes when somebody looks at it, and while a trip takes.
    struct Time(Cell<Instant>);

    /// What a look takes.
    const LOOK: Duration = Duration::from_micros(1);

    impl Time {
        fn new() -> Self {
            Self(Cell::new(Instant::now()))
        }

        fn now(&self) -> Instant {
            self.pass(LOOK);
            self.0.get()
        }

        fn pass(&self, time: Duration) {
            self.0.set(self.0.get() + time);
        }
    }

    /// A trip that takes so long.
    struct Takes<'a>(&'a Time, Duration);

    impl Trip for Takes<'_> {
        fn trip(&mut self) -> Result<(), Lost> {
            self.0.pass(self.1);
            Ok(())
        }
    }

    fn load(rate: Option<f64>) -> Load {
        Load {
            duration: Duration::from_secs(2),
            warm_up: Duration::from_millis(10),
            rate,
            rounds: 2,
        }
    }

    /// What trips recorded that take so many microseconds each, and how long it took.
    fn played(load: &Load, trips_us: &[u64]) -> (Vec<(String, Recorder)>, Duration) {
        let time = Time::new();
        let began = time.0.get();
        let party = |us: &u64| {
            let trip = Takes(&time, Duration::from_micros(*us));
            Party::new(format!("{us}"), trip, load)
        };
        let parties = trips_us.iter().map(party).collect();
        let done = by_clock(&|| time.now(), load, parties, &mut || ()).unwrap();
        (done, time.0.get() - began)
    }

    #[test]
    fn every_party_has_its_turns() {
        let (done, _) = played(&load(None), &[20, 200]);
        let p50 = |at: usize| done[at].1.finish().measured.p50;
        assert!((20.0..22.0).contains(&p50(0)) && (200.0..203.0).contains(&p50(1)));
        assert!(done.iter().all(|(_, recorder)| recorder.count() > 0));
        assert!(done[0].1.finish().achieved_per_s.is_none());
    }

    #[test]
    fn others_are_measured_after_each_round() {
        let load = Load {
            rounds: 3,
            duration: Duration::from_millis(100),
            ..load(None)
        };
        let time = Time::new();
        let trip = Takes(&time, Duration::from_micros(20));
        let mut times = 0;
        let parties = vec![Party::new("busy", trip, &load)];
        let done = by_clock(&|| time.now(), &load, parties, &mut || times += 1).unwrap();
        assert_eq!((times, done[0].1.rounds().len()), (3, 3));
        assert!(done[0].1.rounds().iter().all(|round| round.p50 >= 20.0));
    }

    #[test]
    fn an_open_loop_is_as_steady_as_its_clock_at_every_rate() {
        for rate in [20.0, 100.0, 1000.0, 50_000.0] {
            let load = load(Some(rate));
            let (done, _) = played(&load, &[5]);
            let figures = latencies("rtt", "a", &load, &done);
            let value = |at: usize| figures[at].value;
            assert!((5.0..8.0).contains(&value(0)), "{rate}/s: p50 {}", value(0));
            // Looks at the time are all that varies.
            let most = 3.0 + 2000.0 / rate;
            assert!(value(2) < most, "{rate}/s: gap_spread {}", value(2));
            assert!(
                (value(3) / rate - 1.0).abs() < 0.02,
                "{rate}/s: {}",
                value(3)
            );
            assert!(figures[0].notes.is_empty(), "{:?}", figures[0].notes);
            let want = rate * load.duration.as_secs_f64();
            let count = figures[0]
                .latency
                .as_ref()
                .map_or(0, |latency| latency.count);
            assert!(
                (0.85..1.01).contains(&(count as f64 / want)),
                "{rate}/s: {count}"
            );
        }
    }

    #[test]
    fn low_rates_are_kept_between_turns() {
        let (done, took) = played(&load(Some(20.0)), &[5]);
        let count = done[0].1.count();
        assert!(
            took.as_secs_f64() >= count as f64 / 20.0,
            "{count} in {took:?}"
        );
        // A transfer every half second, in rounds that are shorter than that.
        let slow = Load {
            rounds: 5,
            ..load(Some(2.0))
        };
        let (done, took) = played(&slow, &[30_000]);
        let count = done[0].1.count();
        assert!(
            count == 5 && took.as_secs_f64() >= 2.5,
            "{count} in {took:?}"
        );
    }

    #[test]
    fn a_rate_that_cannot_be_kept_is_said_and_shows_as_latency() {
        let load = load(Some(10_000.0));
        // 200 us of work every 100 us: the queue grows to half of the turn.
        let (done, _) = played(&load, &[200, 20]);
        let figures = latencies("rtt", "a", &load, &done);
        assert!(figures[0].value > 5_000.0, "{figures:?}");
        assert!(
            (figures[3].value / 5000.0 - 1.0).abs() < 0.02,
            "{figures:?}"
        );
        let notes = &figures[0].notes;
        assert!(
            matches!(&notes[..], [one] if one.contains("200 did 49")),
            "{notes:?}"
        );
    }

    #[test]
    fn tails_are_told_of_enough_trips_only() {
        let (done, _) = played(&load(None), &[20, 50]);
        let figure = tail("a", &done).unwrap();
        assert!((0.9..1.1).contains(&figure.value), "{figure:?}");
        assert!(figure.ratio().is_some() && figure.rounds.len() == 2);
        let (done, _) = played(&load(None), &[20, 500]);
        assert!(tail("a", &done).is_none(), "2000 of a round");
    }

    #[test]
    fn a_session_that_ends_is_an_error() {
        struct Ends(u32);
        impl Trip for Ends {
            fn trip(&mut self) -> Result<(), Lost> {
                self.0 = self.0.checked_sub(1).ok_or_else(|| Lost::new("gone"))?;
                Ok(())
            }
        }
        let load = load(None);
        let parties = vec![Party::new("ends", Ends(10), &load)];
        let lost = in_turns(&load, parties, &mut || ()).unwrap_err();
        assert!(lost.to_string().contains("gone"), "{lost}");
    }
}
