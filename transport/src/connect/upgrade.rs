//! From TCP to RDMA, behind the handshake: both sides exchange offers, the client proves that
//! the path works, and says whether the session goes over RDMA or stays on the connection.
//! Either side can say no at every step, with its reason.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::exchange::{recv_exact, send_all};
use crate::error::VerbsError;
use crate::options::RdmaOptions;
use crate::stream::tcp::TcpStream;
use crate::stream::verbs::{Answer, Joined, Near, OFFER_BYTES, Offer, Side};
use crate::stream::{Planes, Stream};
use crate::sys::socket;

/// How long a server waits for each answer of a client, which may have a library to load. It holds
/// up nobody else: the process serves this client alone.
const CLIENT_TIME: Duration = Duration::from_secs(20);

/// What became of the connection.
pub(crate) enum Upgrade {
    /// The session goes over RDMA; the text says how, for the log.
    Done(Planes, String),
    /// It stays on TCP, and why.
    Stays(TcpStream, VerbsError),
}

/// What this side goes by.
pub(crate) fn side(stream: &TcpStream, options: &RdmaOptions) -> Side {
    Side {
        options: *options,
        local: socket::local_address(stream.fd().as_fd())
            .map(|address| address.ip().to_canonical()),
        peer: stream
            .peer()
            .map(|address: SocketAddr| address.ip().to_canonical()),
    }
}

/// The client's part, with its half made before it said hello.
///
/// Blocks for a round trip and some hundred microseconds of the driver; up to 1.5 s where
/// packets do not get through.
///
/// # Errors
/// The TCP connection's.
pub(crate) fn client(mut near: Near, tcp: TcpStream, deadline: Instant) -> io::Result<Upgrade> {
    let offer = near.offer()?;
    let how = near.describe();
    send_all(&tcp, &[&offer.bytes()], Some(deadline))?;
    let half = match receive(&tcp, Some(deadline))? {
        Answer::Half(half) => half,
        Answer::Refused(text) => return Ok(Upgrade::Stays(tcp, VerbsError::Refused(text))),
    };
    near.agree(&half);
    let how = format!("{how}, {}", near.mode());
    let (tcp, error) = match near.join(tcp, &half) {
        Ok(joined) => match joined.probe() {
            Ok(()) => {
                joined.tell(&offer.bytes(), Some(deadline))?;
                return Ok(done(joined, &how));
            }
            Err(error) => (joined.into_tcp()?, error),
        },
        Err(failed) => failed,
    };
    send_all(
        &tcp,
        &[&Offer::refusal(&error.to_string()).bytes()],
        Some(deadline),
    )?;
    Ok(Upgrade::Stays(tcp, error))
}

/// The server's part, after its welcome. Blocks as the client's does; at most 20 seconds for
/// each answer of the client.
///
/// # Errors
/// The TCP connection's.
pub(crate) fn server(tcp: TcpStream, options: &RdmaOptions) -> io::Result<Upgrade> {
    let half = match receive(&tcp, client_time())? {
        Answer::Half(half) => half,
        Answer::Refused(text) => return Ok(Upgrade::Stays(tcp, VerbsError::Refused(text))),
    };
    let made = Near::new(&side(&tcp, options), Some(&half)).and_then(|mut near| {
        near.agree(&half);
        let offer = near.offer()?;
        let how = format!("{}, {}", near.describe(), near.mode());
        Ok((near, offer, how))
    });
    let joined = match made {
        Ok((near, offer, how)) => near.join(tcp, &half).map(|joined| (joined, offer, how)),
        Err(error) => Err((tcp, error)),
    };
    let (joined, offer, how) = match joined {
        Ok(joined) => joined,
        Err((tcp, error)) => {
            send_all(&tcp, &[&Offer::refusal(&error.to_string()).bytes()], None)?;
            return Ok(Upgrade::Stays(tcp, error));
        }
    };
    joined.tell(&offer.bytes(), None)?;
    let verdict = joined.with_tcp(|tcp| receive(tcp, client_time()))?;
    Ok(match verdict {
        Answer::Half(_) => done(joined, &how),
        Answer::Refused(text) => Upgrade::Stays(joined.into_tcp()?, VerbsError::Refused(text)),
    })
}

fn client_time() -> Option<Instant> {
    Some(Instant::now() + CLIENT_TIME)
}

fn done(joined: Joined, how: &str) -> Upgrade {
    let how = format!("{how}, path MTU {}", joined.mtu_bytes());
    let (call, bulk) = joined.into_planes();
    Upgrade::Done((call, Some(bulk)), how)
}

fn receive(tcp: &TcpStream, deadline: Option<Instant>) -> io::Result<Answer> {
    let mut bytes = [0; OFFER_BYTES];
    recv_exact(tcp, &mut bytes, deadline)?;
    Ok(Offer::decode(&bytes)?)
}
