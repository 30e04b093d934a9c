//! What a way to a server is worth: round trips by size, bandwidth in both directions, and what
//! the system knows of the path.
//!
//! A probe is a session of its own, named by its payload, so it goes over every backend as any
//! session does. [`Prober`] serves it on the server, [`probe`] measures on the client.
#![forbid(unsafe_code)]

mod measure;
mod serve;
mod wire;

pub use measure::{PathReport, ProbePlan, RoundTrips, probe};
pub use serve::Prober;

/// How many bytes of a frame are whole records.
#[cfg(feature = "fuzzing")]
pub(crate) fn split_records(frame: &[u8]) -> usize {
    let mut rest = frame;
    while let Some((_, _, after)) = wire::Head::split(rest) {
        rest = after;
    }
    frame.len() - rest.len()
}
