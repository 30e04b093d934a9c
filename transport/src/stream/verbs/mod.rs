//! RDMA: a reliable connection per plane. Each side has an inbox in registered memory that the
//! peer writes to; every message is one RDMA write with an immediate value, from a staging ring
//! of the same size and positions. See `plane` for the two ways in which arrivals are found.
#![forbid(unsafe_code)]

mod cache;
pub(crate) mod error;
mod flow;
mod line;
mod offer;
mod plane;
mod select;
mod setup;

pub(crate) use offer::{Answer, OFFER_BYTES, Offer};
pub(crate) use setup::{Joined, Near, Side};
