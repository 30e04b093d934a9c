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
