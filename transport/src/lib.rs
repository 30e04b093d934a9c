//! Moves opaque frames between two processes: TCP, shared memory, verbs, simulation.
mod error;
mod options;
mod skeleton;

pub use error::*;
pub use options::*;
pub use skeleton::*;

/// Version of the handshake and of the frames.
pub const PROTOCOL_VERSION: u16 = 1;
/// Longest opaque payload of a hello or welcome.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
