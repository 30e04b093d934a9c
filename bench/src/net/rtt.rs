//! Round trips of small records.
#![forbid(unsafe_code)]

use super::link::{Echo, Link};
use super::service::Mode;
use super::turns::tail;
use super::{
    Against, Failure, Load, Party, TOO_FEW_FOR_JITTER, Transport, in_turns, knows_jitter,
    latencies, size_name,
};
use crate::figure::{Beside, Figure, Target};
use crate::latency::Recorder;
use crate::peers::{Tools, What};
use crate::pin::{self, Side};
use crate::raw::{shm, tcp};

/// The promise: the jitter over shared memory as a multiple of that of the raw ping-pong.
const JITTER_RATIO: f64 = 3.0;
/// The promise: p99.9 / p50 over TCP as a multiple of that of the raw ping-pong.
const TAIL_RATIO: f64 = 1.0;
/// The promise: ahead of the best of these peers, over these backends, at these sizes.
const AHEAD_OF: [&str; 2] = ["UCX", "libfabric"];
const AHEAD_OVER: [&str; 2] = ["tcp", "shm"];
const AHEAD_AT: [usize; 4] = [8, 64, 1 << 10, 64 << 10];

/// `rtt/*`: microseconds there and back, the median, with the distribution; beside it the raw spinning ping-pong of
/// the same size, or beside TLS the same without it; then peers. `tail/*` is p99.9 / p50 of the same, where there are trips
/// enough to tell. With a rate the name ends with it, and instead of the tail three figures say how steady that is: `jitter/*`
/// (p99.9 - p50), `gap_spread/*` (p99 - p1 of the time between answers) and `achieved/*` (trips a second).
/// With peers `ahead/*` is the same beside the fastest of those that it is to be ahead of. Returns the recorder, too, for its
/// export.
///
/// # Errors
/// The transport's; perftest, the limit of RDMA, is missing.
pub fn rtt(
    against: &Against<'_>,
    transport: Transport,
    bytes: usize,
    load: &Load,
) -> Result<(Vec<Figure>, Recorder), Failure> {
    pin::on(Side::Client, || {
        // Records are as long; the limit and the peers carry no less.
        let bytes = bytes.max(8).next_multiple_of(8);
        let link = Link::open(against.server, transport, Mode::Echo)?;
        let name = link.transport_name();
        let mut tools = Tools::beside(against, name, What::Rtt, bytes)?;
        let load = load.in_rounds(tools.rounds());
        let mut parties = vec![Party::new(name, Echo::new(link, bytes), &load)];
        parties.extend(limit(against, transport, name, bytes, &load)?);
        let done = in_turns(&load, parties, &mut || tools.round())?;
        let title = format!("{name}/{}", size_name(bytes));
        let mut figures = latencies("rtt", &title, &load, &done);
        let trip = figures.remove(0);
        figures.insert(0, tools.stand_beside(trip)?);
        let promise = match (load.rate, name) {
            (Some(_), "shm") => Some((1, JITTER_RATIO)),
            (Some(_), _) => None,
            (None, "shm") => Some((0, 2.0)),
            (None, "verbs") => Some((0, 1.25)),
            (None, _) => Some((0, 1.15)),
        };
        let is_promised = bytes == 64 && against.is_local && !transport.tls;
        match promise.filter(|_| is_promised) {
            Some(_) if load.rate.is_some() && !knows_jitter(&done) => {
                let note = format!("{title}: {TOO_FEW_FOR_JITTER}");
                figures[0].notes.push(note);
            }
            Some((of, most)) => figures[of].target = Some(Target::Ratio(most)),
            None => {}
        }
        let is_to_be_ahead = AHEAD_OVER.contains(&name) && AHEAD_AT.contains(&bytes);
        if against.with_peers && is_to_be_ahead && load.rate.is_none() && !transport.tls {
            figures.push(ahead(&title, &figures[0]));
        }
        if load.rate.is_none() {
            let tail = tail(&title, &done).map(|tail| match name {
                "tcp" if is_promised => tail.target(Target::Ratio(TAIL_RATIO)),
                _ => tail,
            });
            figures.extend(tail);
        }
        let ours = done.into_iter().next();
        let ours = ours.map_or_else(|| Recorder::new(1, false), |(_, ours)| ours);
        Ok((figures, ours))
    })
}

/// A round trip beside the fastest of [`AHEAD_OF`]. Where none is installed it is not ahead of anybody.
fn ahead(title: &str, trip: &Figure) -> Figure {
    let is_meant = |beside: &&Beside| AHEAD_OF.iter().any(|name| beside.name.starts_with(name));
    let meant = trip.beside.iter().filter(|beside| beside.is_peer);
    let fastest = meant
        .filter(is_meant)
        .max_by(|a, b| trip.ratio_to(a).total_cmp(&trip.ratio_to(b)));
    let figure = Figure::new(format!("ahead/{title}"), &trip.unit, trip.value)
        .rounds(trip.rounds.clone())
        .target(Target::Ratio(1.0));
    match fastest {
        Some(fastest) => figure.with(Beside {
            is_peer: false,
            ..fastest.clone()
        }),
        None => figure.note(format!(
            "ahead/{title}: neither UCX nor libfabric is there to be compared with (scripts/peers)"
        )),
    }
}

/// What this machine does without a transport of this project, or TLS without TLS.
fn limit(
    against: &Against<'_>,
    transport: Transport,
    name: &str,
    bytes: usize,
    load: &Load,
) -> Result<Option<Party<'static>>, Failure> {
    Ok(if transport.tls {
        let plain = Link::open(against.server, Transport::TCP, Mode::Echo)?;
        Some(Party::new("plain tcp", Echo::new(plain, bytes), load))
    } else if against.is_local && name == "shm" {
        let raw = shm::PingPong::new(bytes);
        Some(Party::new("raw shared memory, spinning", raw, load))
    } else if against.is_local && name != "verbs" {
        let raw = tcp::PingPong::new(bytes);
        Some(Party::new("raw TCP, spinning", raw, load))
    } else {
        // What RDMA can do, perftest measures (`crate::peers`).
        None
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Against, Beside, Figure, Load, TOO_FEW_FOR_JITTER, Transport, ahead, rtt};
    use crate::net::service::Service;
    use crate::net::{Direction, Memory, bulk, flood, idle, mix};

    fn here(server: &str) -> Against<'_> {
        Against {
            server,
            is_local: true,
            with_peers: false,
        }
    }

    fn load(rate: Option<f64>) -> Load {
        Load {
            duration: Duration::from_millis(80),
            warm_up: Duration::from_millis(20),
            rounds: 2,
            rate,
        }
    }

    /// Every measurement gives a figure with its limit beside it, over both backends.
    #[test]
    fn figures_of_every_kind() {
        let service = Service::start("127.0.0.1:0").expect("a port");
        let server = service.addr().to_string();
        for transport in [Transport::TCP, Transport::TLS, Transport::SHM] {
            for rate in [None, Some(1000.0)] {
                let (figures, recorder) =
                    rtt(&here(&server), transport, 64, &load(rate)).expect("a session");
                // A fast machine has trips enough for this one.
                let is_tail = |figure: &Figure| figure.name.starts_with("tail/");
                let figures: Vec<Figure> = figures.into_iter().filter(|f| !is_tail(f)).collect();
                let names: Vec<_> = figures.iter().map(|figure| figure.name.clone()).collect();
                let size = format!("{transport}/64B");
                assert_eq!(
                    names,
                    match rate {
                        None => vec![format!("rtt/{size}")],
                        Some(_) => ["rtt", "jitter", "gap_spread", "achieved"]
                            .map(|kind| format!("{kind}/{size}@1000/s"))
                            .to_vec(),
                    }
                );
                let is_whole =
                    |figure: &Figure| figure.beside.len() == 1 && figure.rounds.len() == 2;
                let mut judged = figures.iter().filter(|figure| figure.unit == "us");
                assert!(judged.all(is_whole), "{figures:?}");
                assert!(figures[0].ratio().is_some_and(|ratio| ratio > 0.0));
                assert!(recorder.count() > 0);
                let promises = figures
                    .iter()
                    .filter(|figure| figure.target.is_some())
                    .count();
                // The jitter of so few trips is not judged, and that is said.
                let is_promised = rate.is_none() && !transport.tls;
                assert_eq!(promises, usize::from(is_promised), "{figures:?}");
                let of_jitter = |note: &String| note.contains(TOO_FEW_FOR_JITTER);
                let is_said = figures[0].notes.iter().any(of_jitter);
                assert_eq!(is_said, rate.is_some() && transport == Transport::SHM);
            }
            for direction in [Direction::Up, Direction::Down] {
                for memory in [Memory::Pageable, Memory::Pinned] {
                    let load = load(None);
                    let figure = bulk(&here(&server), transport, 1 << 20, direction, memory, &load)
                        .expect("a session");
                    assert!(figure.value > 0.0 && figure.ratio().is_some(), "{figure:?}");
                }
            }
            let figure =
                flood(&here(&server), transport, 64, 1000, &load(None)).expect("a session");
            assert!(figure.value > 0.0 && figure.ratio().is_some(), "{figure:?}");
            let figures = idle(&server, transport, Duration::from_millis(100)).expect("a session");
            assert_eq!(figures.len(), 1, "{figures:?}");
            let figures = mix(&server, transport, 3, &load(Some(600.0))).expect("sessions");
            let title = format!("mix/{transport}/3_clients@600/s");
            let named = |figure: &Figure| figure.name.starts_with(&title) && figure.value > 0.0;
            assert!(figures.iter().all(named), "{figures:?}");
        }
    }

    #[test]
    fn the_fastest_of_the_peers_is_the_one_to_be_ahead_of() {
        let peer = |name: &str, value| Beside::new(name, value).peer();
        let trip = Figure::new("rtt/tcp/64B", "us", 8.0)
            .beside("raw TCP, spinning", 7.0)
            .with(peer("tonic, unary call", 4.0));
        let alone = ahead("tcp/64B", &trip);
        assert_eq!((alone.is_kept(), alone.notes.len()), (Some(false), 1));
        let slower = trip.with(peer("libfabric fi_pingpong, average", 12.0));
        assert_eq!(ahead("tcp/64B", &slower).is_kept(), Some(true));
        let faster = slower.with(peer("UCX active messages", 6.0));
        let behind = ahead("tcp/64B", &faster);
        assert_eq!(behind.is_kept(), Some(false));
        assert_eq!(behind.name, "ahead/tcp/64B");
        let of = behind.limit().map(|limit| limit.name.as_str());
        assert_eq!(of, Some("UCX active messages"));
    }

    #[test]
    fn a_backend_that_is_not_there_is_an_error() {
        let service = Service::start("127.0.0.1:0").expect("a port");
        let verbs: Transport = "verbs".parse().expect("a name");
        let server = format!("127.0.0.1:{}", service.addr().port());
        // A machine with an RDMA device may have it.
        if let Err(error) = rtt(&here(&server), verbs, 64, &load(None)) {
            assert!(error.to_string().contains("verbs"), "{error}");
        }
    }
}
