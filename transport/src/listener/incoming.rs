//! A client that said hello and waits for an answer.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use super::pending::{Hello, Pending};
use crate::endpoint::Agreed;
use crate::error::RefuseCode;
use crate::handshake::{
    ClientHead, Handover, HandoverKind, HelloKind, Instance, SessionId, SessionKey,
};
use crate::options::ListenOptions;
use crate::sys::random::random16;

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
    /// The next connection of a session that lost its last one: hand it to [`crate::Endpoint::resume`]
    /// of the process that serves it. Its right to the session is checked there.
    Resume {
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
    /// None when it cannot be served; it is told so.
    pub(super) fn new(
        pending: Pending,
        options: &ListenOptions,
        instance: Instance,
    ) -> io::Result<Option<Self>> {
        let Some(Hello {
            fd,
            peer,
            head,
            body,
            tls,
        }) = pending.into_hello()
        else {
            return Ok(None);
        };
        let (kind, handover_kind, session, key) = Self::admit(&head, instance)?;
        let Ok(remote) = head.limits() else {
            return Ok(None);
        };
        let agreed = Agreed {
            session,
            key,
            local: options.limits,
            remote,
            version: head.version(options.protocol),
        };
        let handover = Handover {
            kind: handover_kind,
            agreed,
            rdma: options
                .rdma
                .filter(|_| head.wants_rdma() && peer.is_some() && tls.is_none()),
            link: head.link(),
            positions: head.positions(),
            tls,
        };
        if !instance.made(session) {
            let message = "the server was restarted; the session ended with it";
            handover.refuse(fd, RefuseCode::RESTARTED, message);
            return Ok(None);
        }
        Ok(Some(Self {
            fd,
            peer,
            kind,
            body,
            token_len: head.token_len(),
            handover,
        }))
    }

    fn admit(
        head: &ClientHead,
        instance: Instance,
    ) -> io::Result<(IncomingKind, HandoverKind, SessionId, SessionKey)> {
        let (session, key) = (head.session(), head.key());
        Ok(match head.kind() {
            Ok(HelloKind::Bulk) => {
                let kind = IncomingKind::Bulk { session };
                (kind, HandoverKind::Bulk, session, key)
            }
            Ok(HelloKind::Resume) => {
                let kind = IncomingKind::Resume { session };
                (kind, HandoverKind::Resume, session, key)
            }
            // A hello of another kind does not decode.
            Ok(HelloKind::New) | Err(_) => {
                let (session, key) = (instance.name()?, SessionKey(random16()?));
                (IncomingKind::New, HandoverKind::New, session, key)
            }
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
        self.handover.refuse(self.fd, code, message);
    }

    /// The connection and what [`crate::Endpoint::adopt`], [`crate::Endpoint::attach_bulk`] or
    /// [`crate::Endpoint::resume`] needs to know about it, here or in another process.
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
