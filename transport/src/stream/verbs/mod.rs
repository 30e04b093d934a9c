//! RDMA: a reliable connection per plane. Each side has an inbox in registered memory that the
//! peer writes to; every message is one RDMA write with an immediate value, from a staging ring
//! of the same size and positions. See `plane` for the two ways in which arrivals are found.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::path::Path;

use self::error::VerbsError;
use crate::options::RdmaOptions;
use crate::sys::verbs::preload;

mod cache;
pub(crate) mod error;
#[cfg(test)]
mod failures;
mod flow;
mod line;
mod offer;
mod plane;
mod select;
mod setup;

pub(crate) use offer::{Answer, OFFER_BYTES, Offer};
pub(crate) use setup::{Joined, Near, Side};

/// An address of this machine that sessions over RDMA can go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RdmaPort {
    /// The device, as `ibv_devices` names it.
    pub device: String,
    /// Its port, which is active.
    pub port: u8,
    /// The address that the GID is.
    pub address: IpAddr,
}

/// The addresses that sessions over RDMA can go to, by what is wished of device and GID. Reads sysfs; loads libibverbs on first use.
///
/// # Errors
/// Why there can be none: no library, no device, not the one that was wished.
pub fn rdma_ports(wish: &RdmaOptions) -> Result<Vec<RdmaPort>, VerbsError> {
    let candidates = select::inventory(Path::new(select::SYSFS))?;
    preload()?;
    select::usable(&candidates, wish)
}
