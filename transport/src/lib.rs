//! Moves opaque frames between two processes: TCP, shared memory, verbs, simulation.
//!
//! A client calls [`connect`]; a server takes connections from a [`Listener`] and makes
//! sessions of them with [`Endpoint::adopt`], perhaps in another process. Both sides then hold
//! an [`Endpoint`]: records appended on one side arrive at the other side's [`Handler`] in
//! order, exactly once, in whole frames. Large buffers go beside them, on the bulk plane.

mod connect;
mod endpoint;
mod error;
#[cfg(test)]
mod frozen;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handshake;
mod listener;
mod num;
mod options;
mod probe;
pub mod session;
pub mod sim;
mod stream;
mod sys;

pub use connect::connect;
pub use endpoint::{BulkDone, Endpoint, Handler, Seq, Stats};
pub use error::{
    AcceptError, AdoptError, BulkError, CloseReason, ConnectError, HelloError, RefuseCode,
    SendError, VerbsError, Violation, WaitError,
};
pub use handshake::{SessionId, constant_time_eq};
pub use listener::{Incoming, IncomingKind, Listener};
pub use options::{
    ConnectOptions, DeviceName, Dialer, Limits, ListenOptions, LocalEnd, RdmaMode, RdmaOptions,
    SILENCE_KEEPALIVES, SocketOptions, TransportChoice, Tuning,
};

pub use probe::{PathReport, ProbePlan, Prober, RoundTrips, probe};
pub use stream::PathInfo;
pub use stream::tls::{TlsClient, TlsError, TlsServer};
pub use stream::verbs::{RdmaPort, rdma_ports};
pub use sys::random::random16;

/// Version of the handshake, of the frames and of what the frames carry.
pub const PROTOCOL_VERSION: u16 = 3;
/// The oldest version that is spoken with peers which know no newer one.
pub const PROTOCOL_VERSION_OLDEST: u16 = 2;
/// Longest opaque payload of a hello or welcome.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
