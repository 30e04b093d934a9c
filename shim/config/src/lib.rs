//! What the shim libraries and the `farcall` command are told: which server, which token, how many
//! devices, how much memory.
//!
//! Environment variables ([`vars`]) come first, then one file ([`ClientConfig::load`] says which),
//! then defaults. Reading it opens files and allocates; it is done once per process.
//!
//! Sizes ([`parse_size`]) and server addresses ([`parse_server`]) have one syntax everywhere.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod address;
mod error;
mod file;
mod load;
mod network;
mod servers;
mod size;
mod values;
pub mod vars;

pub use address::{
    DEFAULT_PORT, DEFAULT_SERVER, SERVERS_MAX, SOCKET_PREFIX, parse_server, parse_servers,
    pci_domain_offset,
};
pub use error::ConfigError;
pub use load::{ClientConfig, Origin};
pub use network::{
    parse_added_rtt, parse_busy_poll, parse_dscp, parse_gid_index, parse_local_end,
    parse_rdma_device, parse_rdma_mode, parse_tls,
};
pub use size::{SizeError, format_size, parse_size};
pub use values::{
    LogLevel, Secret, TraceTarget, Transport, parse_devices, parse_share, read_token_file,
};
