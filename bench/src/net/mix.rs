//! Many clients at once, each at its own pace: what a server that is shared does to each.
#![forbid(unsafe_code)]

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;

use super::link::{Echo, Link};
use super::service::Mode;
use super::{Failure, Load, Lost, Transport, Trip};
use crate::figure::Figure;
use crate::latency::Recorder;

/// Sizes and how many of a hundred trips have them: mostly small records, sometimes large ones.
const SIZES: [(usize, u64); 3] = [(64, 90), (4 << 10, 9), (64 << 10, 1)];
/// Trips a second of all clients together, where nothing else is said.
pub const MIX_RATE: f64 = 5000.0;
/// A sleep ends so late at most, but for what the kernel takes.
const TIMER_SLACK_NS: u64 = 1;

/// `mix/*`: microseconds of a round trip with so many clients, each with a session per size, all together the load's rate of
/// trips a second, open loop. The latency counts from when the trip was due, or, where the client had to wait for that, from
/// when it woke up: how late that is is the machine's. The second figure is the p99 of the client that fared worst, beside that
/// of the one that fared best.
///
/// # Errors
/// The transport's.
///
/// # Panics
/// If a client's thread panics.
pub fn mix(
    server: &str,
    transport: Transport,
    clients: u32,
    load: &Load,
) -> Result<Vec<Figure>, Failure> {
    let clients = clients.max(1);
    let mut sessions = Vec::new();
    let mut name = transport.name();
    for _ in 0..clients {
        let mut trips = Vec::new();
        for (bytes, _) in SIZES {
            let link = Link::open(server, transport, Mode::Echo)?;
            name = link.transport_name();
            trips.push(Echo::new(link, bytes));
        }
        sessions.push(trips);
    }
    let rate = load.rate.unwrap_or(MIX_RATE);
    let interval = Duration::from_secs_f64(f64::from(clients) / rate);
    let begin = Barrier::new(sessions.len());
    let recorders: Result<Vec<Recorder>, Lost> = thread::scope(|scope| {
        let begin = &begin;
        let client = |(number, trips): (u32, Vec<Echo>)| {
            // The clients' trips are spread over the interval, too.
            let first = interval * number / clients;
            let client = Client {
                trips,
                turn: u64::from(number).wrapping_mul(37),
            };
            scope.spawn(move || client.play(begin, first, interval, load))
        };
        let running: Vec<_> = (0..).zip(sessions).map(client).collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended
            .map(|recorder| recorder.expect("a client's thread"))
            .collect()
    });
    let title = format!("mix/{name}/{clients}_clients@{rate}/s");
    Ok(figures(&title, &recorders?))
}

fn figures(title: &str, recorders: &[Recorder]) -> Vec<Figure> {
    let mut all = Recorder::new(u64::MAX, true);
    recorders.iter().for_each(|recorder| all.merge(recorder));
    let p99s = recorders.iter().map(|r| r.finish().measured.p99);
    let best = p99s.clone().fold(f64::INFINITY, f64::min);
    let worst = p99s.fold(0.0, f64::max);
    let latency = all.finish();
    vec![
        Figure::new(title, "us", latency.measured.p50).latency(latency),
        Figure::new(format!("{title}/worst_p99"), "us", worst).beside("best client's p99", best),
    ]
}

/// One of many.
struct Client {
    /// One for each size.
    trips: Vec<Echo>,
    /// Number of the trip: the clients' large trips do not fall together.
    turn: u64,
}

impl Client {
    fn play(
        mut self,
        begin: &Barrier,
        first: Duration,
        interval: Duration,
        load: &Load,
    ) -> Result<Recorder, Lost> {
        let _ = prctl::set_timerslack(TIMER_SLACK_NS);
        let warm = self.warm_up(load.warm_up);
        // All get here, whatever became of them: none may wait for ever.
        begin.wait();
        warm?;
        let began = Instant::now();
        let mut recorder = Recorder::new(u64::MAX, true);
        let (mut due, mut before) = (began + first, None);
        while due - began < load.duration {
            let from = sleep_until(due);
            self.next()?;
            let now = Instant::now();
            match before {
                Some(before) => recorder.record(nanos(now - from), nanos(now - before)),
                None => recorder.record_first(nanos(now - from)),
            }
            before = Some(now);
            due += interval;
        }
        Ok(recorder)
    }

    /// Every session is used before it counts.
    fn warm_up(&mut self, time: Duration) -> Result<(), Lost> {
        let began = Instant::now();
        loop {
            for trip in &mut self.trips {
                trip.trip()?;
            }
            if began.elapsed() >= time {
                return Ok(());
            }
        }
    }

    fn next(&mut self) -> Result<(), Lost> {
        let size = size_of_turn(self.turn);
        self.turn += 1;
        self.trips[size].trip()
    }
}

/// Sleeps, as a client that waits for its time takes no core from the others; since when its trip counts.
fn sleep_until(due: Instant) -> Instant {
    match due.checked_duration_since(Instant::now()) {
        Some(time) if !time.is_zero() => {
            thread::sleep(time);
            Instant::now()
        }
        // The trip before has taken its time.
        _ => due,
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// Which of [`SIZES`] is due.
fn size_of_turn(turn: u64) -> usize {
    // 37 and 100 have no common divisor, so every size has its share of a hundred turns.
    let at = turn.wrapping_mul(37) % 100;
    let mut end = 0;
    for (index, (_, share)) in SIZES.iter().enumerate() {
        end += share;
        if at < end {
            return index;
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{SIZES, size_of_turn, sleep_until};

    #[test]
    fn every_size_has_its_share() {
        for (size, (_, share)) in SIZES.iter().enumerate() {
            let turns = (0..100).filter(|turn| size_of_turn(*turn) == size);
            assert_eq!(turns.count() as u64, *share);
        }
    }

    #[test]
    fn a_late_wake_up_is_not_the_trips() {
        let overdue = Instant::now();
        assert_eq!(sleep_until(overdue), overdue);
        let due = Instant::now() + Duration::from_millis(2);
        let from = sleep_until(due);
        assert!(from > due && from <= Instant::now());
    }
}
