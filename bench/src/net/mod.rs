//! What the transport does, each figure in turns with its limit in the same run: round trips, floods, bulk transfers
//! and many clients at once.
//!
//! Without a server to go to, the far side is a [`service::Service`] of this process, on a core of its own.

mod bulk;
mod flood;
mod idle;
pub mod link;
mod mix;
mod options;
mod rtt;
pub mod service;
pub mod tls;
mod turns;

pub use bulk::{Direction, Memory, bulk};
pub use flood::flood;
pub use idle::idle;
pub use mix::{MIX_RATE, mix};
pub use options::{Against, Failure, Load, Lost, Transport};
pub use rtt::rtt;
pub use turns::{Party, TOO_FEW_FOR_JITTER, in_turns, knows_jitter, latencies};

/// Something that is done over and over and timed: a round trip, a transfer.
pub trait Trip {
    /// A turn begins.
    fn begin(&mut self) {}
    /// Once.
    ///
    /// # Errors
    /// The session ended.
    fn trip(&mut self) -> Result<(), Lost>;
    /// The turn is over: other parties are measured now.
    fn end(&mut self) {}
}

/// `64B`, `4KiB`, `64MiB`.
#[must_use]
pub fn size_name(bytes: usize) -> String {
    match bytes {
        0..1024 => format!("{bytes}B"),
        1024..0x10_0000 if bytes.is_multiple_of(1024) => format!("{}KiB", bytes >> 10),
        _ if bytes.is_multiple_of(0x10_0000) => format!("{}MiB", bytes >> 20),
        _ => format!("{bytes}B"),
    }
}
