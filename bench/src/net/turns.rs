//! Parties in turns, so that a disturbance of the machine meets them all.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{Load, Trip};
use crate::latency::Recorder;

/// Length of a turn.
const TURN: Duration = Duration::from_millis(40);
/// Trips at the start of a turn that are not timed: the far side wakes up, caches warm.
const UNTIMED_TRIPS: u32 = 8;
/// Points of the course over time.
const WINDOWS: u32 = 60;

/// One of those that are compared.
#[allow(missing_debug_implementations)]
pub struct Party {
    name: String,
    trip: Box<dyn Trip>,
    recorder: Recorder,
}

impl Party {
    /// A party by its name in the table.
    pub fn new(name: impl Into<String>, trip: impl Trip + 'static, load: &Load) -> Self {
        let window = load.duration / WINDOWS;
        let window_ns = u64::try_from(window.as_nanos()).unwrap_or(u64::MAX);
        Self {
            name: name.into(),
            trip: Box::new(trip),
            recorder: Recorder::new(window_ns, load.rate.is_some()),
        }
    }
}

/// Plays turn by turn until each party has had its time; what each recorded, in their order.
///
/// A latency holds one reading of the clock (some 20 ns), for every party alike.
pub fn in_turns(load: &Load, mut parties: Vec<Party>) -> Vec<(String, Recorder)> {
    let mut warm_up = load.warm_up;
    let mut left = load.duration;
    while !left.is_zero() {
        let is_warm = warm_up.is_zero();
        let turn = if is_warm { left } else { warm_up }.min(TURN);
        for party in &mut parties {
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
    parties
        .into_iter()
        .map(|party| (party.name, party.recorder))
        .collect()
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
        }
    }

    #[test]
    fn every_party_has_its_turns() {
        let load = load(None);
        let busy = |us| Party::new(format!("{us}"), Busy(Duration::from_micros(us)), &load);
        let done = in_turns(&load, vec![busy(20), busy(200)]);
        let p50 = |at: usize| done[at].1.finish().measured.p50;
        assert!(p50(0) >= 20.0 && p50(1) >= 200.0, "{} {}", p50(0), p50(1));
        assert!(done.iter().all(|(_, recorder)| recorder.count() > 50));
    }

    #[test]
    fn a_rate_that_cannot_be_kept_shows_as_latency() {
        let load = load(Some(10_000.0));
        // 200 us of work every 100 us: the queue grows to half of the turn.
        let party = Party::new("late", Busy(Duration::from_micros(200)), &load);
        let latency = in_turns(&load, vec![party])[0].1.finish();
        assert!(latency.measured.max > 5_000.0, "{:?}", latency.measured);
    }
}
