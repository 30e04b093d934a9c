//! What can go wrong, as types: a malformed peer, a lost connection and a misuse of the
//! API are told apart, so that the caller can act on each.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;

use crate::stream::tls::TlsError;
pub use crate::stream::verbs::error::VerbsError;

/// Why a session ended. Every call after that fails with it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CloseReason {
    /// This side called [`crate::Endpoint::close`] or dropped its last handle.
    #[error("closed by this side")]
    Local,
    /// The peer closed in good order: everything it sent has been delivered.
    #[error("closed by the peer")]
    Peer,
    /// The connection broke, or the peer died without closing.
    #[error("connection to the peer lost: {0}")]
    Lost(#[source] Arc<io::Error>),
    /// The connection was lost, and before it could be resumed the server gave the session up.
    #[error("connection to the peer lost ({0}), and the peer has given the session up")]
    Expired(#[source] Arc<io::Error>),
    /// The server was restarted: what the session had there is gone.
    #[error("the server was restarted; the session ended with it")]
    Restarted,
    /// The peer broke the protocol; nothing further of what it sent is used.
    #[error("the peer broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The process forked; a session belongs to the process that opened it.
    #[error("the session belongs to the parent process")]
    Forked,
}

impl CloseReason {
    pub(crate) fn lost(error: io::Error) -> Self {
        Self::Lost(Arc::new(error))
    }

    /// Whether the peer's system closed the connection; otherwise nothing is known of the peer.
    pub(crate) fn is_closed(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        let closed = [
            UnexpectedEof,
            ConnectionReset,
            ConnectionAborted,
            BrokenPipe,
        ];
        matches!(self, Self::Lost(error) if closed.contains(&error.kind()))
    }

    /// Why a stream fails: the connection is gone, or what the peer did to it broke a rule.
    pub(crate) fn of_stream(error: io::Error) -> Self {
        let violation = error.get_ref().and_then(|inner| inner.downcast_ref());
        violation
            .copied()
            .map_or_else(|| Self::lost(error), Self::Violation)
    }
}

/// A rule of the protocol that bytes from the peer broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Violation {
    /// The kind byte of a frame is none that this version knows.
    #[error("unknown frame kind {0}")]
    FrameKind(u8),
    /// A reserved field is not zero.
    #[error("reserved bytes are not zero")]
    Reserved,
    /// A frame is longer than was negotiated.
    #[error("frame of {bytes} bytes, at most {limit} were negotiated")]
    FrameTooLong {
        /// Payload bytes the header announces.
        bytes: u32,
        /// Payload bytes that were negotiated.
        limit: u32,
    },
    /// A payload length is not a multiple of 8.
    #[error("frame length {0} is not a multiple of 8")]
    FrameUnaligned(u32),
    /// A frame begins after the expected position: something is missing.
    #[error("frame at position {got}, expected {expected}")]
    Gap {
        /// Position that should have come.
        expected: u64,
        /// Position that came.
        got: u64,
    },
    /// A frame was sent twice, or overlaps what was received.
    #[error("frame at position {got} repeats bytes before {expected}")]
    Overlap {
        /// Position that should have come.
        expected: u64,
        /// Position that came.
        got: u64,
    },
    /// An acknowledgement of bytes that were never sent.
    #[error("acknowledged {got}, but only {sent} was sent")]
    AckAhead {
        /// What the peer acknowledged.
        got: u64,
        /// What this side has sent.
        sent: u64,
    },
    /// The peer sent more than its credits allow.
    #[error("position {got} is beyond the granted {granted}")]
    CreditExceeded {
        /// End of the frame that came.
        got: u64,
        /// Granted position.
        granted: u64,
    },
    /// A resume position that is no frame boundary, or lies outside what is retained.
    #[error("cannot resume at {0}")]
    ResumePosition(u64),
    /// A header of the bulk plane is malformed.
    #[error("malformed bulk header")]
    BulkHeader,
    /// A bulk transfer is longer than its destination.
    #[error("bulk transfer {id} has {bytes} bytes, its destination {room}")]
    BulkTooLong {
        /// The transfer.
        id: u64,
        /// Bytes the header announces.
        bytes: u64,
        /// Bytes the destination holds.
        room: u64,
    },
    /// Shared-memory positions that cannot be.
    #[error("impossible position in shared memory")]
    SharedPosition,
}

/// Why bytes were not accepted for sending.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The session is over.
    #[error(transparent)]
    Closed(#[from] CloseReason),
    /// The record is larger than one frame can carry.
    #[error("{bytes} bytes do not fit in a frame of {limit}")]
    TooLong {
        /// Bytes asked for.
        bytes: usize,
        /// Most bytes of one record.
        limit: usize,
    },
}

/// Why a wait ended without its condition.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WaitError {
    /// The session is over; the condition cannot come true any more.
    #[error(transparent)]
    Closed(#[from] CloseReason),
    /// The given time passed.
    #[error("timed out")]
    TimedOut,
    /// Called from [`crate::Handler::on_frame`]: the frame it waits for would have to be
    /// delivered to the handler that is waiting.
    #[error("cannot wait for a frame while handling one")]
    InHandler,
}

/// Why a bulk transfer did not complete.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// The session is over.
    #[error(transparent)]
    Closed(#[from] CloseReason),
    /// A destination with this id is posted already.
    #[error("bulk transfer {0} is posted already")]
    Posted(u64),
    /// Taken back with [`crate::Endpoint::bulk_cancel`].
    #[error("cancelled")]
    Cancelled,
    /// Called from a handler, where it could never complete.
    #[error("cannot wait for a bulk transfer while handling a frame")]
    InHandler,
}

/// Why no session came about.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The address cannot be resolved.
    #[error("cannot resolve {server}: {source}")]
    Resolve {
        /// As given.
        server: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No address of the server answers.
    #[error("cannot connect to {server}: {source}")]
    Connect {
        /// As given.
        server: String,
        /// The last address's error.
        source: io::Error,
    },
    /// The server did not answer in time.
    #[error("{server} did not answer the handshake within {timeout_ms} ms")]
    TimedOut {
        /// As given.
        server: String,
        /// The configured time.
        timeout_ms: u128,
    },
    /// Something answers there, but it is no farcall server.
    #[error("{server} is not a farcall server")]
    NotFarcall {
        /// As given.
        server: String,
    },
    /// Protocol versions differ.
    #[error(
        "server speaks protocol {server}, this client {client}: update the {}",
        older(*server, *client)
    )]
    Version {
        /// The server's version.
        server: u16,
        /// Our version.
        client: u16,
    },
    /// The server said no.
    #[error("refused by the server: {message} ({code:?})")]
    Refused {
        /// Reason for programs.
        code: RefuseCode,
        /// Reason for people.
        message: String,
    },
    /// The server's answer breaks the protocol.
    #[error("malformed answer to the handshake: {0}")]
    Handshake(#[from] HelloError),
    /// No connection over TLS came about.
    #[error("{server}: {source}")]
    Tls {
        /// As given.
        server: String,
        /// Why.
        source: TlsError,
    },
    /// The wished transport does not work here.
    #[error("transport {transport} is not available: {reason}")]
    Transport {
        /// Its name.
        transport: &'static str,
        /// What was tried.
        reason: String,
    },
    /// The option cannot be used.
    #[error("bad option: {0}")]
    Option(String),
    /// The system refused memory, threads or descriptors.
    #[error("cannot set up the session: {0}")]
    System(#[source] io::Error),
}

fn older(server: u16, client: u16) -> &'static str {
    if server < client { "server" } else { "client" }
}

/// Bytes of a handshake that do not decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The first bytes are not farcall's.
    #[error("wrong magic")]
    Magic,
    /// The peer's version is another; the number is the peer's.
    #[error("peer speaks protocol {0}, this side {v}", v = crate::PROTOCOL_VERSION)]
    Version(u16),
    /// A kind that this version does not know.
    #[error("unknown handshake kind {0}")]
    Kind(u8),
    /// A reserved field is not zero.
    #[error("reserved bytes are not zero")]
    Reserved,
    /// Token or payload is longer than this side takes.
    #[error("handshake of {0} bytes is too long")]
    TooLong(u64),
    /// Limits that cannot work.
    #[error("impossible limits")]
    Limits,
    /// The bytes end early, or go on after the end.
    #[error("wrong length")]
    Length,
    /// The client came without TLS.
    #[error(
        "this server is reached over TLS alone: its administrator knows what to give with --tls or FARCALL_TLS (farcall 0.2 or newer)"
    )]
    NeedsTls,
}

/// Reason of a refusal; unknown numbers survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RefuseCode(pub u16);

impl RefuseCode {
    /// Protocol versions differ.
    pub const VERSION: Self = Self(1);
    /// The token is missing, wrong, expired or revoked.
    pub const TOKEN: Self = Self(2);
    /// The server has no room (sessions, memory, devices).
    pub const BUSY: Self = Self(3);
    /// A bulk connection or a resume names a session that does not exist.
    pub const SESSION: Self = Self(4);
    /// The hello does not decode.
    pub const MALFORMED: Self = Self(5);
    /// The server is going away.
    pub const DRAINING: Self = Self(6);
    /// What the application's payload asks for cannot be given.
    pub const APPLICATION: Self = Self(7);
    /// An error of the server itself.
    pub const INTERNAL: Self = Self(8);
    /// A bulk connection or a resume names a session of an earlier run of the server.
    pub const RESTARTED: Self = Self(9);
    /// The server wants TLS.
    pub const TLS: Self = Self(10);
}

/// Why [`crate::Listener::accept`] returned nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcceptError {
    /// [`crate::Listener::close`] was called.
    #[error("the listener is closed")]
    Closed,
    /// The system's error; trying again makes sense for EMFILE and the like.
    #[error("accept: {0}")]
    System(#[from] io::Error),
}

/// Why a handed-over connection could not become a session.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdoptError {
    /// The handover bytes are not what [`crate::Incoming::into_parts`] made.
    #[error("malformed handover: {0}")]
    Handover(#[from] HelloError),
    /// The connection proves no right to this session.
    #[error("wrong session or session key")]
    WrongSession,
    /// The session is over.
    #[error(transparent)]
    Closed(#[from] CloseReason),
    /// The system's error.
    #[error("adopt: {0}")]
    System(#[from] io::Error),
}
