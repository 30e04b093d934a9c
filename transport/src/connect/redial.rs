//! Further connections of a session that the client has: its bulk connection, and the next one after
//! a loss.
#![forbid(unsafe_code)]

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use rustls::pki_types::ServerName;

use super::upgrade::{self, Upgrade};
use super::{exchange, local, open_one};
use crate::endpoint::Agreed;
use crate::error::{RefuseCode, VerbsError};
use crate::handshake::{ClientHead, HelloKind, Positions, SERVER_HEAD_BYTES, ServerHead};
use crate::options::{RdmaOptions, SocketOptions};
use crate::stream::shm::Near;
use crate::stream::tcp::TcpStream;
use crate::stream::tls::{TlsClient, TlsStream};
use crate::stream::{Planes, Stream, verbs};
use crate::sys::socket;
use crate::{PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST};

/// Where the server was found.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Tcp(SocketAddr),
    Local(local::Door),
}

/// With what the connections to a server are protected.
#[derive(Clone, Debug)]
pub(crate) struct Tls {
    pub(crate) client: TlsClient,
    /// What the server is called.
    pub(crate) name: ServerName<'static>,
}

/// How a client opens further connections of its session.
#[derive(Clone, Debug)]
pub(crate) struct Redial {
    pub(crate) place: Place,
    pub(crate) agreed: Agreed,
    pub(crate) socket: SocketOptions,
    /// The session went over RDMA: its next connection does, too, where that is possible then.
    pub(crate) rdma: Option<RdmaOptions>,
    /// Connections over the network are made with TLS.
    pub(crate) tls: Option<Tls>,
}

/// A connection that is being opened, and the bytes that go first.
pub(crate) type Opening = (Arc<dyn Stream>, Vec<u8>);

/// Why a session was not resumed.
#[derive(Debug)]
pub(crate) enum DialError {
    /// It may work later.
    Again(io::Error),
    /// The server lives, and has given the session up.
    Expired,
    /// Another run of the server answers.
    Restarted,
    /// The server's process is gone.
    Dead,
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        Self::Again(error)
    }
}

impl Tls {
    /// A connection that shakes hands when it is first used.
    fn protect(&self, tcp: TcpStream) -> io::Result<Arc<dyn Stream>> {
        Ok(Arc::new(TlsStream::client(tcp, &self.client, &self.name)?))
    }
}

impl Redial {
    /// Opens the session's next connection: what it is made of, and what has arrived at the server.
    ///
    /// Blocks until `deadline` at most.
    ///
    /// # Errors
    /// [`DialError`].
    pub(crate) fn resume(
        &self,
        link: u32,
        positions: Positions,
        deadline: Instant,
    ) -> Result<(Planes, Positions), DialError> {
        let stream = match &self.place {
            Place::Tcp(address) => open_one(address, &self.socket, deadline)?,
            // Where nobody listens on this host, no server runs.
            Place::Local(door) => match door.open() {
                Err(error) if is_absent(&error) => return Err(DialError::Dead),
                socket => TcpStream::new(socket?, None)?,
            },
        };
        if let (Some(tls), Place::Tcp(_)) = (&self.tls, &self.place) {
            let stream = tls.protect(stream)?;
            let there = self.greet(&*stream, link, positions, deadline)?;
            return Ok(((stream, None), there));
        }
        let half = self.rdma_half(&stream);
        let head = self
            .head(HelloKind::Resume, link)
            .with_rdma(half.is_some())
            .with_positions(positions);
        exchange::send_all(&stream, &[&head.bytes()], Some(deadline))?;
        let answer = self.read_answer(&stream, deadline)?;
        let there = answer.positions();
        if let (Some(half), true) = (half, answer.offers_rdma()) {
            return Ok((self.upgrade(half, stream, deadline)?, there));
        }
        if matches!(self.place, Place::Tcp(_)) {
            return Ok(((Arc::new(stream), None), there));
        }
        let near = Near::new()?;
        let (offer, fds) = exchange::recv_offer(&stream, Some(deadline))?;
        near.send(stream.fd())?;
        let (call, bulk) = near.join(stream.into_fd(), &offer, fds)?;
        Ok(((call, Some(bulk)), there))
    }

    /// Says hello where nothing but the answer follows: what has arrived at the server.
    fn greet(
        &self,
        stream: &dyn Stream,
        link: u32,
        positions: Positions,
        deadline: Instant,
    ) -> Result<Positions, DialError> {
        let head = self.head(HelloKind::Resume, link).with_positions(positions);
        exchange::send_all(stream, &[&head.bytes()], Some(deadline))?;
        Ok(self.read_answer(stream, deadline)?.positions())
    }

    /// Our half of a connection over RDMA, where the session had one and this host can still do that.
    fn rdma_half(&self, stream: &TcpStream) -> Option<verbs::Near> {
        let rdma = self.rdma.as_ref()?;
        verbs::Near::new(&upgrade::side(stream, rdma), None)
            .inspect_err(|error| self.stays_on_tcp(error))
            .ok()
    }

    fn upgrade(
        &self,
        half: verbs::Near,
        stream: TcpStream,
        deadline: Instant,
    ) -> io::Result<Planes> {
        Ok(match upgrade::client(half, stream, deadline)? {
            Upgrade::Done(planes, _) => planes,
            Upgrade::Stays(stream, why) => {
                self.stays_on_tcp(&why);
                (Arc::new(stream), None)
            }
        })
    }

    fn stays_on_tcp(&self, why: &VerbsError) {
        let session = self.agreed.session;
        log::warn!("session {session} goes on over tcp, not over RDMA: {why}");
    }

    /// Starts opening the bulk connection. None where the bulk plane comes
    /// with the call plane. Does not block.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn open_bulk(&self, link: u32) -> io::Result<Option<Opening>> {
        let Place::Tcp(address) = &self.place else {
            return Ok(None);
        };
        let fd: OwnedFd = socket::connect_start(address, &self.socket)?;
        let stream = TcpStream::new(fd, Some(*address))?;
        let head = self.head(HelloKind::Bulk, link);
        let stream: Arc<dyn Stream> = match &self.tls {
            Some(tls) => tls.protect(stream)?,
            None => Arc::new(stream),
        };
        Ok(Some((stream, head.bytes().to_vec())))
    }

    fn head(&self, kind: HelloKind, link: u32) -> ClientHead {
        let Agreed {
            session,
            key,
            local,
            version,
            ..
        } = self.agreed;
        ClientHead::new(kind, version, &local, 0, 0)
            .with_session(session, key)
            .with_link(link)
    }

    fn read_answer(&self, stream: &dyn Stream, deadline: Instant) -> Result<ServerHead, DialError> {
        let mut bytes = [0; SERVER_HEAD_BYTES];
        exchange::recv_exact(stream, &mut bytes, Some(deadline))?;
        let malformed = |error| io::Error::new(io::ErrorKind::InvalidData, error);
        // A server that was started since may speak another version: then that is all it has to say.
        let versions = PROTOCOL_VERSION_OLDEST..=PROTOCOL_VERSION;
        let head = ServerHead::decode(&bytes, versions).map_err(malformed)?;
        match head.refused() {
            None if head.session() == self.agreed.session => Ok(head),
            None => Err(io::Error::from(io::ErrorKind::InvalidData).into()),
            Some(RefuseCode::SESSION) => Err(DialError::Expired),
            // One that speaks another version is another run.
            Some(RefuseCode::RESTARTED | RefuseCode::VERSION) => Err(DialError::Restarted),
            Some(code) => {
                let why = format!("the server refuses to resume the session ({})", code.0);
                Err(io::Error::other(why).into())
            }
        }
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}
