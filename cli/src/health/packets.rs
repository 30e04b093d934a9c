//! How large packets may be on the way to another machine, and whether such ones arrive.
//!
//! A datagram of the largest size goes to a port where nobody listens: the other machine's answer that nobody does says that it
//! arrived. A router that cannot pass it on says so, and the system remembers the smaller size (RFC 1191).
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::time::Duration;

use farcall_pool::model::{Check, Outcome};
use nix::sys::socket::{getsockopt, sockopt::IpMtu};

use super::check;

const MTU_ADVISED: u32 = 9000;
/// Headers of IPv4 and UDP.
const HEADER_BYTES: u32 = 28;
/// Largest payload of UDP.
const PAYLOAD_BYTES_MAX: u32 = 65_507;
/// A round trip, with plenty to spare.
const PATIENCE: Duration = Duration::from_millis(500);
/// Each router on the way may have a smaller size than the one before.
const ATTEMPTS: u32 = 5;

/// Packets to one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Packets {
    /// The size that this machine's network card takes.
    pub(super) here_bytes: u32,
    /// The size that the way takes, as far as is known.
    pub(super) way_bytes: u32,
    /// Whether packets of that size arrive; `None`: the other machine answers no datagram.
    pub(super) arrive: Option<bool>,
}

/// Tries the way to `address` (IPv4). Blocks for some round trips, or a second where nothing answers.
pub(super) fn packets(address: &str) -> Option<Packets> {
    let address = address.to_socket_addrs().ok()?.find(SocketAddr::is_ipv4)?;
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect(address).ok()?;
    socket.set_read_timeout(Some(PATIENCE)).ok()?;
    let here_bytes = mtu(&socket)?;
    let mut way_bytes = here_bytes;
    let mut arrives = false;
    for _ in 0..ATTEMPTS {
        match answered(&socket, way_bytes) {
            Answer::Arrived => arrives = true,
            Answer::Silence => {}
            Answer::TooLarge => {
                let smaller = mtu(&socket)?;
                if smaller < way_bytes {
                    way_bytes = smaller;
                    continue;
                }
            }
        }
        break;
    }
    let arrive = if arrives {
        Some(true)
    } else {
        let small = answered(&socket, HEADER_BYTES + 1);
        (small == Answer::Arrived).then_some(false)
    };
    Some(Packets {
        here_bytes,
        way_bytes,
        arrive,
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Arrived,
    TooLarge,
    Silence,
}

fn answered(socket: &UdpSocket, packet_bytes: u32) -> Answer {
    let payload_bytes = packet_bytes
        .saturating_sub(HEADER_BYTES)
        .min(PAYLOAD_BYTES_MAX);
    let payload = vec![0; payload_bytes as usize];
    let said = socket
        .send(&payload)
        .and_then(|_| socket.recv(&mut [0; 16]));
    match said {
        Ok(_) => Answer::Arrived,
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Answer::Arrived,
        Err(error) if error.raw_os_error() == Some(nix::errno::Errno::EMSGSIZE as i32) => {
            Answer::TooLarge
        }
        Err(_) => Answer::Silence,
    }
}

fn mtu(socket: &UdpSocket) -> Option<u32> {
    let bytes = getsockopt(socket, IpMtu).ok()?;
    u32::try_from(bytes).ok()
}

/// The way to `name`; `wants_large`: copies go there, so large packets are worth having.
pub(super) fn way(name: &str, packets: Packets, wants_large: bool) -> Check {
    let Packets {
        here_bytes,
        way_bytes,
        arrive,
    } = packets;
    let meaning = "The largest packet that passes on the whole way, and whether it arrives. 9000 bytes carry more for the same work.";
    let name = format!("mtu {name}");
    let small_advice =
        "Set 9000 at both ends and on the switches between: `ip link set NAME mtu 9000`.";
    let (outcome, found, advice) = match arrive {
        Some(false) => (
            Outcome::Failed,
            format!("packets of {way_bytes} bytes do not arrive, small ones do"),
            "Some part of the way takes smaller packets and does not say so: give both ends and all switches the same MTU.",
        ),
        _ if way_bytes < here_bytes => (
            Outcome::Warning,
            format!("{way_bytes} bytes pass, {here_bytes} here"),
            "Give both ends and the switches between the same MTU.",
        ),
        _ => {
            let outcome = if wants_large && way_bytes < MTU_ADVISED {
                Outcome::Warning
            } else {
                Outcome::Ok
            };
            let found = match arrive {
                Some(_) => format!("{way_bytes} bytes"),
                None => format!("{way_bytes} bytes; whether they arrive is not known"),
            };
            (outcome, found, small_advice)
        }
    };
    check(&name, outcome, &found, meaning, advice)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use farcall_pool::model::Outcome;

    use super::{Packets, packets, way};

    #[test]
    fn large_packets_arrive_on_this_machine() {
        // Bound, so that nobody else is; closed before anything is sent.
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        drop(socket);
        let found = packets(&address.to_string()).unwrap();
        assert_eq!(found.arrive, Some(true), "{found:?}");
        assert_eq!(found.way_bytes, found.here_bytes);
        assert_eq!(packets("[::1]:7474"), None);
    }

    #[test]
    fn ways_take_large_packets_or_it_is_said() {
        let outcome = |here_bytes, way_bytes, arrive, wants_large| {
            let packets = Packets {
                here_bytes,
                way_bytes,
                arrive,
            };
            way("a", packets, wants_large).outcome
        };
        assert_eq!(outcome(9000, 9000, Some(true), true), Outcome::Ok);
        assert_eq!(outcome(1500, 1500, Some(true), true), Outcome::Warning);
        assert_eq!(outcome(1500, 1500, Some(true), false), Outcome::Ok);
        assert_eq!(outcome(9000, 1500, Some(true), false), Outcome::Warning);
        assert_eq!(outcome(9000, 9000, Some(false), false), Outcome::Failed);
        assert_eq!(outcome(9000, 9000, None, true), Outcome::Ok);
    }
}
