//! Asks the server what it has.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::Duration;

use farcall_config::{ClientConfig, SOCKET_PREFIX, pci_domain_offset};
use farcall_marshal::record::{Head, Record, split, to_vec};
use farcall_marshal::wire::{DeviceDescription, DeviceUsage, SessionOpen, SessionWelcome};
use farcall_transport::{Endpoint, Handler, TransportChoice, connect};

use crate::device::Device;

/// Programs ask at their start, with a person waiting.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// The number of devices that means "only tell me".
const ONLY_ASKING: u32 = u32::MAX;

/// What a server has.
#[derive(Clone, Debug)]
pub(crate) struct Inventory {
    /// CUDA version that the server stands for.
    pub(crate) cuda_version: u32,
    pub(crate) devices: Vec<Device>,
}

/// The devices that a program gets of these servers. Blocks for at most a few seconds for each. The error is for people.
pub(crate) fn of_all(servers: &[ClientConfig]) -> Result<Inventory, String> {
    let mut all = Inventory {
        cuda_version: u32::MAX,
        devices: Vec::new(),
    };
    for (number, config) in servers.iter().enumerate() {
        let inventory = ask(config)?;
        all.cuda_version = all.cuda_version.min(inventory.cuda_version);
        let wanted = config.devices.map_or(usize::MAX, |count| {
            usize::try_from(count).unwrap_or(usize::MAX)
        });
        let granted = inventory.devices.into_iter().take(wanted);
        all.devices.extend(granted.map(|device| Device {
            // As the driver numbers them.
            pci_domain: device.pci_domain.saturating_add(pci_domain_offset(number)),
            ..device
        }));
    }
    Ok(all)
}

/// Opens a connection, asks, closes it. Blocks for at most a few seconds. The error is for people.
fn ask(config: &ClientConfig) -> Result<Inventory, String> {
    let question = SessionOpen {
        range_base: 0,
        range_bytes: 0,
        memory_bytes: 0,
        pid: std::process::id(),
        device_count: ONLY_ASKING,
        share_permille: 0,
        host_name: "",
        program: "",
    };
    let mut options = config.connect_options();
    options.payload = to_vec(Head::request(SessionOpen::NUMBER, 0, 0), &question);
    options.connect_timeout = ASK_TIMEOUT;
    // One question and one answer: nothing to gain from another.
    if !config.server.starts_with(SOCKET_PREFIX) {
        options.transport = TransportChoice::Tcp;
    }
    let (endpoint, answer) =
        connect(&options, Arc::new(Deaf)).map_err(|error| error.to_string())?;
    endpoint.close();
    decode(&answer)
        .map_err(|error| format!("{}: the answer cannot be read: {error}", config.server))
}

/// The answer comes with the handshake; nothing follows.
struct Deaf;

impl Handler for Deaf {
    fn on_frame(&self, _: &Endpoint, _: &[u8]) {}
}

fn decode(answer: &[u8]) -> Result<Inventory, String> {
    let (welcome, mut rest) = take::<SessionWelcome<'_>>(answer)?;
    let mut devices = Vec::new();
    let mut descriptions = welcome.devices;
    while !descriptions.is_empty() {
        let (description, following) = take::<DeviceDescription<'_>>(descriptions)?;
        devices.push(device(&description)?);
        descriptions = following;
    }
    while !rest.is_empty() {
        let (usage, following) = take::<DeviceUsage>(rest)?;
        let described = devices
            .iter_mut()
            .find(|device| device.server_ordinal == usage.server_ordinal);
        described
            .ok_or("usage of a device that is not described")?
            .used_bytes = usage.used_bytes;
        rest = following;
    }
    Ok(Inventory {
        cuda_version: welcome.driver_version,
        devices,
    })
}

fn device(description: &DeviceDescription<'_>) -> Result<Device, String> {
    Ok(Device {
        server_ordinal: description.server_ordinal,
        name: description.name.to_owned(),
        uuid: description
            .uuid
            .try_into()
            .map_err(|_| "a UUID that has not 16 bytes".to_owned())?,
        sm: description.sm,
        pci_domain: description.pci_domain,
        pci_bus: description.pci_bus,
        pci_device: description.pci_device,
        total_bytes: description.total_bytes,
        used_bytes: description
            .total_bytes
            .saturating_sub(description.limit_bytes),
    })
}

/// The first record, and what follows it.
fn take<'a, T: Record<'a>>(bytes: &'a [u8]) -> Result<(T, &'a [u8]), String> {
    let (head, body, rest) = split(bytes).map_err(|error| error.to_string())?;
    if head.number != T::NUMBER {
        return Err(format!(
            "record {} where {} should stand",
            head.number,
            T::NAME
        ));
    }
    let record = T::decode_body(body).map_err(|error| error.to_string())?;
    Ok((record, rest))
}
