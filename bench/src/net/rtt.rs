//! Round trips of small records.
#![forbid(unsafe_code)]

use super::link::{Echo, Link};
use super::service::Mode;
use super::{Against, Failure, Load, Party, Transport, in_turns, latencies, size_name};
use crate::figure::{Figure, Target};
use crate::latency::Recorder;
use crate::peers::{Tools, What};
use crate::pin::{self, Side};
use crate::raw::{shm, tcp};

/// The promise: the jitter over shared memory as a multiple of that of the raw ping-pong.
const JITTER_RATIO: f64 = 3.0;

/// `rtt/*`: microseconds there and back, the median, with the distribution; beside it the raw spinning ping-pong of
/// the same size, or beside TLS the same without it; then peers. With a rate the name ends with it, and two more
/// figures say how steady that is: `jitter/*` (p99.9 - p50) and `gap_spread/*` (p99 - p1 of the time between answers).
/// Returns the recorder, too, for its export.
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
        let link = Link::open(against.server, transport, Mode::Echo)?;
        let name = link.transport_name();
        let mut tools = Tools::beside(against, name, What::Rtt, bytes)?;
        let load = load.in_rounds(tools.rounds());
        let mut parties = vec![Party::new(name, Echo::new(link, bytes), &load)];
        parties.extend(limit(against, transport, name, bytes, &load)?);
        let done = in_turns(&load, parties, &mut || tools.round());
        let mut figures = latencies("rtt", &format!("{name}/{}", size_name(bytes)), &load, &done);
        let trip = figures.remove(0);
        figures.insert(0, tools.stand_beside(trip));
        let promise = match (load.rate, name) {
            (Some(_), "shm") => Some((1, JITTER_RATIO)),
            (Some(_), _) => None,
            (None, "shm") => Some((0, 2.0)),
            (None, "verbs") => Some((0, 1.25)),
            (None, _) => Some((0, 1.15)),
        };
        let is_promised = bytes == 64 && against.is_local && !transport.tls;
        if let Some((of, most)) = promise.filter(|_| is_promised) {
            figures[of].target = Some(Target::Ratio(most));
        }
        let ours = done.into_iter().next();
        let ours = ours.map_or_else(|| Recorder::new(1, false), |(_, ours)| ours);
        Ok((figures, ours))
    })
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

    use super::{Against, Load, Transport, rtt};
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
                let names: Vec<_> = figures.iter().map(|figure| figure.name.clone()).collect();
                let size = format!("{transport}/64B");
                assert_eq!(
                    names,
                    match rate {
                        None => vec![format!("rtt/{size}")],
                        Some(_) => ["rtt", "jitter", "gap_spread"]
                            .map(|kind| format!("{kind}/{size}@1000/s"))
                            .to_vec(),
                    }
                );
                assert!(
                    figures
                        .iter()
                        .all(|figure| figure.beside.len() == 1 && figure.rounds.len() == 2),
                    "{figures:?}"
                );
                assert!(figures[0].ratio().is_some_and(|ratio| ratio > 0.0));
                assert!(recorder.count() > 0);
                let promises = figures
                    .iter()
                    .filter(|figure| figure.target.is_some())
                    .count();
                let is_promised = match rate {
                    None => !transport.tls,
                    Some(_) => transport == Transport::SHM,
                };
                assert_eq!(promises, usize::from(is_promised), "{figures:?}");
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
            let figures =
                mix(&server, transport, 3, 600.0, Duration::from_millis(100)).expect("sessions");
            assert!(
                figures.iter().all(|figure| figure.value > 0.0),
                "{figures:?}"
            );
        }
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
