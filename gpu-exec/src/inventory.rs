//! A server's devices and their use, as a client sees them.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::{DeviceKind, FetchError};

/// What a server has.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Inventory {
    /// The server's name for itself.
    pub server_name: String,
    /// CUDA driver version that it stands for, as `cuDriverGetVersion` gives it.
    pub driver_version: u32,
    /// Which device serves.
    pub kind: DeviceKind,
    /// The devices by their number on the server.
    pub devices: Vec<DeviceUsage>,
}

/// One device and how it is used now.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceUsage {
    /// Number on the server.
    pub ordinal: u32,
    /// Name, as programs see it.
    pub name: String,
    /// `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    pub uuid: String,
    /// Compute capability times ten.
    pub sm: u32,
    /// Memory in bytes.
    pub total_bytes: u64,
    /// Allocated by all sessions.
    pub used_bytes: u64,
    /// `total_bytes` less `used_bytes`.
    pub free_bytes: u64,
    /// Sessions that have this device.
    pub sessions: u32,
}

impl Inventory {
    /// Asks the server at `host:port`. Blocks at most for `timeout`.
    ///
    /// # Errors
    /// No connection, refused, or an answer that does not decode.
    pub fn fetch(_server: &str, _token: Option<&str>, _timeout: Duration) -> Result<Self, FetchError> {
        Err(FetchError::Answer("not in place yet".to_owned()))
    }
}
