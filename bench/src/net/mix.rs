//! Many clients at once, each at its own pace: what a server that is shared does to each.
#![forbid(unsafe_code)]

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use farcall_transport::ConnectError;

use super::link::{Echo, Link};
use super::service::Mode;
use super::{Transport, Trip};
use crate::figure::Figure;
use crate::latency::Recorder;

/// Sizes and how many of a hundred trips have them: mostly small records, sometimes large ones.
const SIZES: [(usize, u64); 3] = [(64, 90), (4 << 10, 9), (64 << 10, 1)];

/// `mix/*`: microseconds of a round trip with so many clients, each with a session per size, all together `rate`
/// trips a second, open loop. The latency counts from when the trip was due. The second figure is the p99 of the
/// client that fared worst, beside that of the one that fared best.
///
/// # Errors
/// The transport's.
///
/// # Panics
/// If a client's thread panics.
pub fn mix(
    server: &str,
    transport: Transport,
    clients: usize,
    rate: f64,
    duration: Duration,
) -> Result<Vec<Figure>, ConnectError> {
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
    let interval = Duration::from_secs_f64(clients as f64 / rate);
    let begin = Barrier::new(clients);
    let recorders: Vec<Recorder> = thread::scope(|scope| {
        let begin = &begin;
        let client = |(number, trips): (usize, Vec<Echo>)| {
            scope.spawn(move || {
                begin.wait();
                one_client(trips, number as u64, interval, duration)
            })
        };
        let running: Vec<_> = sessions.into_iter().enumerate().map(client).collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended
            .map(|recorder| recorder.expect("a client's thread"))
            .collect()
    });
    let mut all = Recorder::new(u64::MAX, true);
    recorders.iter().for_each(|recorder| all.merge(recorder));
    let mut p99s: Vec<f64> = recorders.iter().map(|r| r.finish().measured.p99).collect();
    p99s.sort_by(f64::total_cmp);
    let (best, worst) = (p99s[0], p99s[clients - 1]);
    let latency = all.finish();
    Ok(vec![
        Figure::new(
            format!("mix/{name}/{clients}_clients"),
            "us",
            latency.measured.p50,
        )
        .latency(latency),
        Figure::new(
            format!("mix/{name}/{clients}_clients/worst_p99"),
            "us",
            worst,
        )
        .beside("best client's p99", best),
    ])
}

fn one_client(
    mut trips: Vec<Echo>,
    number: u64,
    interval: Duration,
    duration: Duration,
) -> Recorder {
    let mut recorder = Recorder::new(u64::MAX, true);
    let began = Instant::now();
    let (mut due, mut before) = (began, began);
    // The clients' large trips do not fall together.
    let mut turn = number.wrapping_mul(37);
    while due - began < duration {
        // Sleeps: a client that waits for its time takes no core from the others.
        thread::sleep(due.saturating_duration_since(Instant::now()));
        trips[size_of_turn(turn)].trip();
        let now = Instant::now();
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        recorder.record(nanos(now - due), nanos(now - before));
        before = now;
        turn += 1;
        due += interval;
    }
    recorder
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
