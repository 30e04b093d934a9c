//! A client that said hello and waits for an answer.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};

use super::pending::{Pending, send_refusal};
use crate::endpoint::Agreed;
use crate::error::RefuseCode;
use crate::handshake::{ClientHead, Handover, HandoverKind, HelloKind, SessionId, SessionKey};
use crate::options::ListenOptions;
use crate::sys::random::random16;
use crate::sys::socket;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum IncomingKind {
    /// A new session.
    New,
    /// The bulk connection of a session: hand it to [`crate::Endpoint::attach_bulk`] of the
    /// process that serves it. Its right to the session is checked there.
    Bulk {
        /// Which session.
        session: SessionId,
    },
}

/// A connection whose hello is complete. Dropping it closes it without an answer.
pub struct Incoming {
    fd: OwnedFd,
    peer: Option<SocketAddr>,
    kind: IncomingKind,
    body: Vec<u8>,
    token_len: usize,
    handover: Handover,
}

impl Incoming {
    /// None when this version cannot serve it; it is told so.
    pub(super) fn new(pending: Pending, options: &ListenOptions) -> io::Result<Option<Self>> {
        let Some((fd, peer, head, body)) = pending.into_hello() else {
            return Ok(None);
        };
        let Some((kind, session, key)) = Self::admit(&head)? else {
            send_refusal(
                fd.as_raw_fd(),
                RefuseCode::SESSION,
                "this server cannot resume sessions",
            );
            socket::shutdown_write(fd.as_raw_fd());
            return Ok(None);
        };
        let Ok(remote) = head.limits() else {
            return Ok(None);
        };
        let handover_kind = match kind {
            IncomingKind::New => HandoverKind::New,
            IncomingKind::Bulk { .. } => HandoverKind::Bulk,
        };
        let agreed = Agreed {
            session,
            key,
            local: options.limits,
            remote,
        };
        let handover = Handover {
            kind: handover_kind,
            agreed,
            rdma: options.rdma.filter(|_| head.wants_rdma() && peer.is_some()),
        };
        Ok(Some(Self {
            fd,
            peer,
            kind,
            body,
            token_len: head.token_len(),
            handover,
        }))
    }

    fn admit(head: &ClientHead) -> io::Result<Option<(IncomingKind, SessionId, SessionKey)>> {
        Ok(match head.kind() {
            Ok(HelloKind::New) => {
                let (session, key) = (SessionId(random16()?), SessionKey(random16()?));
                Some((IncomingKind::New, session, key))
            }
            Ok(HelloKind::Bulk) => {
                let session = head.session();
                Some((IncomingKind::Bulk { session }, session, head.key()))
            }
            Ok(HelloKind::Resume) | Err(_) => None,
        })
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> IncomingKind {
        self.kind
    }

    /// The session: the one that a new client will have, or the one that it names.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.handover.agreed.session
    }

    /// The secret that a new client brought. Compare it with [`crate::constant_time_eq`].
    #[must_use]
    pub fn token(&self) -> Option<&[u8]> {
        (self.token_len > 0).then(|| &self.body[..self.token_len])
    }

    /// The application's hello.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        &self.body[self.token_len..]
    }

    /// Where it comes from; None for a client on this host that came over a Unix socket.
    #[must_use]
    pub fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    /// Sends the client away, telling it why. `message` is for people; at most 4 KiB are sent.
    /// Does not block.
    pub fn refuse(self, code: RefuseCode, message: &str) {
        send_refusal(self.fd.as_raw_fd(), code, message);
        socket::shutdown_write(self.fd.as_raw_fd());
    }

    /// The connection and what [`crate::Endpoint::adopt`] or
    /// [`crate::Endpoint::attach_bulk`] needs to know about it, here or in another process.
    /// The bytes hold the session's key: pass them on privately.
    #[must_use]
    pub fn into_parts(self) -> (OwnedFd, Vec<u8>) {
        (self.fd, self.handover.encode())
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming")
            .field("peer", &self.peer)
            .field("kind", &self.kind)
            .field("session", &self.session())
            .finish_non_exhaustive()
    }
}
