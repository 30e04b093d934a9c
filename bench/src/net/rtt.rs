//! Round trips of small records.
#![forbid(unsafe_code)]

use farcall_transport::ConnectError;

use super::link::{Echo, Link};
use super::service::Mode;
use super::{Load, Party, Transport, in_turns, size_name};
use crate::figure::{Figure, Target};
use crate::latency::Recorder;
use crate::pin::{self, Side};
use crate::raw::{shm, tcp};

/// `rtt/*`: microseconds there and back, the median, with the distribution; beside it the raw spinning ping-pong of
/// the same size, or beside TLS the same without it. Returns the recorder, too, for its export.
///
/// # Errors
/// The transport's.
pub fn rtt(
    server: &str,
    transport: Transport,
    bytes: usize,
    load: &Load,
    is_local: bool,
) -> Result<(Figure, Recorder), ConnectError> {
    pin::on(Side::Client, || {
        let link = Link::open(server, transport, Mode::Echo)?;
        let name = link.transport_name();
        let mut parties = vec![Party::new(name, Echo::new(link, bytes), load)];
        if transport.tls {
            let plain = Link::open(server, Transport::TCP, Mode::Echo)?;
            parties.push(Party::new("plain tcp", Echo::new(plain, bytes), load));
        } else if is_local && name == "shm" {
            parties.push(Party::new(
                "raw shared memory, spinning",
                shm::PingPong::new(bytes),
                load,
            ));
        } else if is_local && name != "verbs" {
            // What RDMA can do, perftest measures (`crate::peers`).
            parties.push(Party::new(
                "raw TCP, spinning",
                tcp::PingPong::new(bytes),
                load,
            ));
        }
        let mut done = in_turns(load, parties).into_iter();
        let (_, ours) = done
            .next()
            .unwrap_or_else(|| (String::new(), Recorder::new(1, false)));
        let latency = ours.finish();
        let p50 = latency.measured.p50;
        let mut figure =
            Figure::new(format!("rtt/{name}/{}", size_name(bytes)), "us", p50).latency(latency);
        for (party, recorder) in done {
            let latency = recorder.finish();
            figure = figure.beside_latency(&party, latency.measured.p50, Some(latency));
        }
        if bytes == 64 && is_local && !transport.tls {
            figure = figure.target(Target::Ratio(match name {
                "shm" => 2.0,
                "verbs" => 1.25,
                _ => 1.15,
            }));
        }
        Ok((figure, ours))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Load, Transport, rtt};
    use crate::net::service::Service;
    use crate::net::{Direction, Memory, bulk, flood, idle, mix};

    fn load(rate: Option<f64>) -> Load {
        Load {
            duration: Duration::from_millis(80),
            warm_up: Duration::from_millis(20),
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
                let (figure, recorder) =
                    rtt(&server, transport, 64, &load(rate), true).expect("a session");
                assert!(
                    figure.name.starts_with(&format!("rtt/{transport}/")),
                    "{figure:?}"
                );
                assert!(
                    figure.ratio().is_some_and(|ratio| ratio > 0.0),
                    "{figure:?}"
                );
                assert!(recorder.count() > 10);
                assert_eq!(figure.is_kept().is_some(), !transport.tls);
            }
            for direction in [Direction::Up, Direction::Down] {
                for memory in [Memory::Pageable, Memory::Pinned] {
                    let load = load(None);
                    let figure = bulk(&server, transport, 1 << 20, direction, memory, &load, true)
                        .expect("a session");
                    assert!(figure.value > 0.0 && figure.ratio().is_some(), "{figure:?}");
                }
            }
            let figure = flood(&server, transport, 64, 1000, &load(None), true).expect("a session");
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
        if let Err(error) = rtt(&server, verbs, 64, &load(None), true) {
            assert!(error.to_string().contains("verbs"), "{error}");
        }
    }
}
