//! A server's devices and their use, as a client sees them.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use farcall_marshal::record::{Head, Record, split, to_vec};
use farcall_marshal::wire::{self, DeviceDescription, SessionOpen, SessionWelcome};
use farcall_transport::{ConnectOptions, TransportChoice, connect};

use crate::supervisor::{Deaf, INVENTORY_ONLY};
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
    pub fn fetch(server: &str, token: Option<&str>, timeout: Duration) -> Result<Self, FetchError> {
        let mut options = ConnectOptions::new(server);
        options.token = token.map(str::to_owned);
        options.connect_timeout = timeout;
        Self::fetch_with(options)
    }

    /// As [`Inventory::fetch`], with everything that a connection can be told; the payload is ours.
    ///
    /// # Errors
    /// No connection, refused, or an answer that does not decode.
    pub fn fetch_with(mut options: ConnectOptions) -> Result<Self, FetchError> {
        let question = SessionOpen {
            range_base: 0,
            range_bytes: 0,
            memory_bytes: 0,
            pid: std::process::id(),
            device_count: INVENTORY_ONLY,
            share_permille: 0,
            host_name: "",
            program: "inventory",
        };
        // One question and one answer: not worth a queue pair.
        options.rdma = None;
        if options.transport == TransportChoice::Verbs {
            options.transport = TransportChoice::Tcp;
        }
        options.payload = to_vec(Head::request(SessionOpen::NUMBER, 0, 0), &question);
        let (endpoint, answer) = connect(&options, Arc::new(Deaf))?;
        drop(endpoint);
        Self::decode(&answer)
    }

    pub(crate) fn decode(answer: &[u8]) -> Result<Self, FetchError> {
        let (head, body, mut rest) = split(answer).map_err(malformed)?;
        if head.number != SessionWelcome::NUMBER {
            return Err(malformed("it does not begin with a welcome"));
        }
        let welcome = SessionWelcome::decode_body(body).map_err(malformed)?;
        let kind = DeviceKind::from_number(welcome.device_kind)
            .ok_or_else(|| malformed("unknown kind of device"))?;
        let (mut devices, mut descriptions) = (Vec::new(), welcome.devices);
        while !descriptions.is_empty() {
            let (_, description, others) = split(descriptions).map_err(malformed)?;
            let (_, usage, others_used) = split(rest).map_err(malformed)?;
            let description = DeviceDescription::decode_body(description).map_err(malformed)?;
            let usage = wire::DeviceUsage::decode_body(usage).map_err(malformed)?;
            devices.push(DeviceUsage::new(&description, &usage));
            (descriptions, rest) = (others, others_used);
        }
        let server_name = welcome.server_name.to_owned();
        Ok(Self {
            server_name,
            driver_version: welcome.driver_version,
            kind,
            devices,
        })
    }
}

impl DeviceUsage {
    fn new(description: &DeviceDescription<'_>, usage: &wire::DeviceUsage) -> Self {
        Self {
            ordinal: description.server_ordinal,
            name: description.name.to_owned(),
            uuid: uuid_text(description.uuid),
            sm: description.sm,
            total_bytes: usage.total_bytes,
            used_bytes: usage.used_bytes,
            free_bytes: usage.total_bytes.saturating_sub(usage.used_bytes),
            sessions: usage.sessions,
        }
    }
}

pub(crate) fn uuid_text(uuid: &[u8]) -> String {
    let mut text = "GPU".to_owned();
    for (i, byte) in uuid.iter().enumerate() {
        let dash = if matches!(i, 0 | 4 | 6 | 8 | 10) {
            "-"
        } else {
            ""
        };
        text.push_str(&format!("{dash}{byte:02x}"));
    }
    text
}

fn malformed(why: impl ToString) -> FetchError {
    FetchError::Answer(why.to_string())
}
