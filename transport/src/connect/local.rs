//! Shared memory with a server on this host.
#![forbid(unsafe_code)]

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::OwnedFd;
use std::time::Instant;

use super::redial::Place;
use super::{Link, exchange, greet, resolve, unavailable};
use crate::error::ConnectError;
use crate::options::ConnectOptions;
use crate::stream::shm::Near;
use crate::stream::tcp::TcpStream;
use crate::sys::unix;

/// What a server that is given by the path of a socket begins with.
const PATH_PREFIX: &str = "unix:";

/// Whether the server is given by a path.
pub(super) fn is_path(options: &ConnectOptions) -> bool {
    options.server.starts_with(PATH_PREFIX)
}

/// Opens a session over shared memory.
///
/// # Errors
/// [`ConnectError::Transport`] when another transport may work; anything else is the server's
/// own word.
pub(super) fn over_shm(options: &ConnectOptions, deadline: Instant) -> Result<Link, ConnectError> {
    let failed = |error: io::Error| unavailable("shm", error.to_string());
    let (socket, door) = open(options)?;
    let stream = TcpStream::new(socket, None).map_err(failed)?;
    let greeted = match greet(options, &stream, deadline, false) {
        Err(ConnectError::Connect { source, .. }) => return Err(failed(source)),
        other => other?,
    };
    let near = Near::new().map_err(failed)?;
    let (offer, fds) = exchange::recv_offer(&stream, Some(deadline)).map_err(failed)?;
    near.send(stream.fd()).map_err(failed)?;
    let (call, bulk) = near.join(stream.into_fd(), &offer, fds).map_err(failed)?;
    Ok(Link {
        call,
        bulk: Some(bulk),
        agreed: greeted.agreed,
        place: Place::Local(door),
        payload: greeted.payload,
        not_rdma: None,
    })
}

/// A Unix socket that a server listens on.
#[derive(Clone, Debug)]
pub(crate) enum Door {
    /// The path's permissions say who may listen there.
    Path(String),
    /// An abstract name, which anybody may take.
    Name(String),
}

impl Door {
    /// A connection. Does not block.
    ///
    /// # Errors
    /// The system's; `PermissionDenied` where somebody else listens.
    pub(crate) fn open(&self) -> io::Result<OwnedFd> {
        let name = match self {
            Self::Path(path) => return unix::connect_path(path),
            Self::Name(name) => name,
        };
        let socket = unix::connect(name)?;
        if unix::peer_is_trusted(&socket) {
            return Ok(socket);
        }
        let why = format!("@{name} belongs to another user");
        Err(io::Error::new(io::ErrorKind::PermissionDenied, why))
    }
}

/// A Unix socket to the server, and where it was found.
fn open(options: &ConnectOptions) -> Result<(OwnedFd, Door), ConnectError> {
    if let Some(path) = options.server.strip_prefix(PATH_PREFIX) {
        let door = Door::Path(path.to_owned());
        return match door.open() {
            Ok(socket) => Ok((socket, door)),
            Err(error) => Err(unavailable("shm", error.to_string())),
        };
    }
    let mut reason = "the server is not on this host".to_owned();
    for address in resolve(options)? {
        if !is_own(address.ip()) {
            continue;
        }
        for name in names(address) {
            let door = Door::Name(name.clone());
            match door.open() {
                Ok(socket) => return Ok((socket, door)),
                Err(error) => reason = format!("@{name}: {error}"),
            }
        }
    }
    Err(unavailable("shm", reason))
}

/// What a server may be called that answers at this address: by it, or by a wildcard.
fn names(address: SocketAddr) -> [String; 3] {
    let port = address.port();
    let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
    let v6 = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
    [address, v4, v6].map(unix::name_of)
}

/// Whether an address is one of this host's: then the way to it begins at itself.
fn is_own(ip: IpAddr) -> bool {
    if ip.is_loopback() {
        return true;
    }
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a UDP socket sends nothing.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}
