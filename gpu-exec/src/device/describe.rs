//! What clients are told about a device.
#![forbid(unsafe_code)]

use farcall_marshal::record::{Head, Record, to_vec};
use farcall_marshal::wire::DeviceDescription;

use super::attributes::{SM, null_table, table};
use super::cuda::inventory;
use crate::DeviceKind;

/// CUDA version that the CPU devices stand for, as `cuDriverGetVersion` gives it.
pub(crate) const DRIVER_VERSION: u32 = 13_000;
/// PCI bus of the first CPU device; the others follow.
const PCI_BUS_FIRST: u32 = 0x20;

/// What to do about a GPU that is lost.
pub(crate) const LOST_ADVICE: &str = "on its server look at nvidia-smi and dmesg | grep Xid, and restart farcall serve when it works";

/// All of a device.
pub(crate) const WHOLE_PERMILLE: u16 = 1000;

/// One device of a server.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct DeviceSpec {
    /// Number on the server.
    pub(crate) ordinal: u32,
    /// Memory in bytes.
    pub(crate) total_bytes: u64,
    /// What the session may allocate.
    pub(crate) limit_bytes: u64,
    /// Share of its compute that the session may use, in thousandths.
    pub(crate) share_permille: u16,
}

/// CUDA version that the devices of a kind stand for.
pub(crate) fn driver_version(kind: DeviceKind) -> u32 {
    match kind {
        DeviceKind::Cuda => inventory::driver_version(),
        DeviceKind::Soft | DeviceKind::Null => DRIVER_VERSION,
    }
}

/// The devices of a kind as records, one after the other.
pub(crate) fn descriptions(kind: DeviceKind, devices: &[DeviceSpec]) -> Vec<u8> {
    if kind == DeviceKind::Cuda {
        return inventory::descriptions(devices);
    }
    devices
        .iter()
        .flat_map(|device| description(kind, device))
        .collect()
}

/// The name that programs see; says what the device is.
pub(crate) fn name(kind: DeviceKind) -> &'static str {
    match kind {
        DeviceKind::Cuda => "farcall cuda",
        DeviceKind::Soft => "farcall soft (CPU, runs PTX)",
        DeviceKind::Null => "farcall null (runs no kernels)",
    }
}

/// Threads of the CPU that kernels may use.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// As a description has it; `None` where the driver does not say.
pub(crate) fn device_uuid(kind: DeviceKind, ordinal: u32) -> Option<[u8; 16]> {
    match kind {
        DeviceKind::Cuda => inventory::uuid(ordinal),
        DeviceKind::Soft | DeviceKind::Null => Some(uuid(kind, ordinal)),
    }
}

/// Stays the same for a host and a number.
pub(crate) fn uuid(kind: DeviceKind, ordinal: u32) -> [u8; 16] {
    let host = ["/etc/machine-id", "/proc/sys/kernel/hostname"]
        .into_iter()
        .find_map(|path| {
            let text = std::fs::read_to_string(path).ok()?;
            (!text.trim().is_empty()).then(|| text.trim().to_owned())
        });
    let mut hash = blake3::Hasher::new();
    hash.update(b"farcall device");
    hash.update(host.unwrap_or_default().as_bytes());
    hash.update(&(kind as u32).to_le_bytes());
    hash.update(&ordinal.to_le_bytes());
    let mut uuid = [0; 16];
    hash.finalize_xof().fill(&mut uuid);
    uuid
}

fn description(kind: DeviceKind, device: &DeviceSpec) -> Vec<u8> {
    let pci_bus = PCI_BUS_FIRST + device.ordinal;
    let attributes = match kind {
        DeviceKind::Null => null_table(pci_bus),
        _ => table(u32::try_from(cores()).unwrap_or(u32::MAX), pci_bus),
    };
    let attributes: Vec<u8> = attributes.into_iter().flat_map(i32::to_le_bytes).collect();
    let record = DeviceDescription {
        total_bytes: device.total_bytes,
        limit_bytes: device.limit_bytes,
        server_ordinal: device.ordinal,
        sm: SM,
        pci_domain: 0,
        pci_bus,
        pci_device: 0,
        uuid: &uuid(kind, device.ordinal),
        attributes: &attributes,
        name: name(kind),
    };
    to_vec(Head::request(DeviceDescription::NUMBER, 0, 0), &record)
}

#[cfg(test)]
mod tests {
    use super::uuid;
    use crate::DeviceKind;

    #[test]
    fn uuids_are_stable_and_differ() {
        assert_eq!(uuid(DeviceKind::Soft, 0), uuid(DeviceKind::Soft, 0));
        assert_ne!(uuid(DeviceKind::Soft, 0), uuid(DeviceKind::Soft, 1));
        assert_ne!(uuid(DeviceKind::Soft, 0), uuid(DeviceKind::Null, 0));
    }
}
