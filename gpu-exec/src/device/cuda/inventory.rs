//! What the driver says about its devices, as clients are told. Makes no context.
#![forbid(unsafe_code)]

use farcall_marshal::record::{Head, Record, to_vec};
use farcall_marshal::status::CuResult;
use farcall_marshal::wire::DeviceDescription;

use super::driver::{Driver, LoadError};
use crate::device::attributes::UNKNOWN;
use crate::device::describe::{DeviceSpec, WHOLE_PERMILLE};

/// One past the last attribute of cuda.h 13.
const ATTRIBUTES: i32 = 162;
/// `CUdevice_attribute` numbers that a description has fields for.
const PCI_BUS: i32 = 33;
const PCI_DEVICE: i32 = 34;
const PCI_DOMAIN: i32 = 50;
const MAJOR: i32 = 75;
const MINOR: i32 = 76;
/// Attributes that promise what does not go over the wire: they read 0. Concurrent managed access, pageable memory access,
/// its coherence with the host's page tables, registered host pointers, direct managed access, memory operations of streams
/// (both numbers), IPC events.
const REFUSED: [i32; 12] = [88, 89, 91, 92, 93, 94, 99, 100, 101, 122, 123, 125];
/// Exportable handles, GPUDirect and multicast: the client's calls for them are not implemented.
const REFUSED_MEMORY: [i32; 10] = [103, 104, 105, 107, 110, 116, 119, 124, 128, 132];

/// All devices of this host; each session may have all of its memory.
///
/// # Errors
/// No driver, or none that works.
pub(crate) fn devices() -> Result<Vec<DeviceSpec>, LoadError> {
    let driver = Driver::get()?;
    let count = driver.device_count().map_err(LoadError::Init)?;
    let spec = |ordinal| {
        driver
            .device_total_bytes(ordinal)
            .map(|total_bytes| DeviceSpec {
                ordinal,
                total_bytes,
                limit_bytes: total_bytes,
                share_permille: WHOLE_PERMILLE,
            })
    };
    (0..count)
        .map(spec)
        .collect::<CuResult<Vec<_>>>()
        .map_err(LoadError::Init)
}

/// CUDA version that clients are told; 0 without a driver.
pub(crate) fn driver_version() -> u32 {
    Driver::get().map_or(0, Driver::version_for_clients)
}

/// UUID of a device.
pub(crate) fn uuid(ordinal: u32) -> Option<[u8; 16]> {
    Driver::get().ok()?.device_uuid(ordinal).ok()
}

/// The devices as records, one after the other; one that the driver does not describe is left out, which the log says.
pub(crate) fn descriptions(devices: &[DeviceSpec]) -> Vec<u8> {
    let describe = |device| {
        let driver = Driver::get().map_err(|error| error.to_string())?;
        description(driver, device).map_err(|status| status.to_string())
    };
    let known = devices.iter().filter_map(|device| {
        let record =
            describe(device).inspect_err(|why| log::error!("GPU {}: {why}", device.ordinal));
        record.ok()
    });
    known.flatten().collect()
}

fn description(driver: &Driver, device: &DeviceSpec) -> CuResult<Vec<u8>> {
    let known = |attribute| {
        driver
            .device_attribute(device.ordinal, attribute)
            .unwrap_or(UNKNOWN)
    };
    let shown = |attribute| match known(attribute) {
        UNKNOWN => UNKNOWN,
        _ if REFUSED.contains(&attribute) || REFUSED_MEMORY.contains(&attribute) => 0,
        value => value,
    };
    let number = |attribute| u32::try_from(known(attribute)).unwrap_or(0);
    let attributes: Vec<u8> = (0..ATTRIBUTES)
        .map(shown)
        .flat_map(i32::to_le_bytes)
        .collect();
    let record = DeviceDescription {
        total_bytes: device.total_bytes,
        limit_bytes: device.limit_bytes,
        server_ordinal: device.ordinal,
        sm: number(MAJOR) * 10 + number(MINOR),
        pci_domain: number(PCI_DOMAIN),
        pci_bus: number(PCI_BUS),
        pci_device: number(PCI_DEVICE),
        uuid: &driver.device_uuid(device.ordinal)?,
        attributes: &attributes,
        name: &driver.device_name(device.ordinal)?,
    };
    Ok(to_vec(
        Head::request(DeviceDescription::NUMBER, 0, 0),
        &record,
    ))
}
