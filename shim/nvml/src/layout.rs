//! Structures of nvml.h.
#![forbid(unsafe_code)]

use std::ffi::c_uint;

use crate::device::Device;

/// `nvmlMemory_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MemoryInfo {
    pub(crate) total: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

/// `nvmlMemory_v2_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct MemoryInfoV2 {
    pub(crate) version: c_uint,
    pub(crate) total: u64,
    pub(crate) reserved: u64,
    pub(crate) free: u64,
    pub(crate) used: u64,
}

/// `NVML_STRUCT_VERSION(Memory, 2)`.
pub(crate) const MEMORY_V2: c_uint = 40 | 2 << 24;
const _: () = assert!(size_of::<MemoryInfoV2>() == 40);

/// What all versions of `nvmlPciInfo_t` before the third begin with.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PciInfo {
    pub(crate) bus_id_legacy: [u8; 16],
    pub(crate) domain: c_uint,
    pub(crate) bus: c_uint,
    pub(crate) device: c_uint,
    /// Device and vendor; 0, the server does not tell.
    pub(crate) pci_device_id: c_uint,
}

/// `nvmlPciInfo_t` of the third version.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct PciInfoV3 {
    pub(crate) common: PciInfo,
    pub(crate) pci_subsystem_id: c_uint,
    pub(crate) bus_id: [u8; 32],
}

/// `nvmlFieldValue_t`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FieldValue {
    pub(crate) field_id: c_uint,
    pub(crate) scope_id: c_uint,
    pub(crate) timestamp: i64,
    pub(crate) latency_us: i64,
    pub(crate) value_type: c_uint,
    pub(crate) status: c_uint,
    pub(crate) value: u64,
}

impl PciInfo {
    /// Of this device.
    pub(crate) fn new(device: &Device) -> Self {
        Self {
            bus_id_legacy: fixed(&device.bus_id_legacy()),
            domain: device.pci_domain,
            bus: device.pci_bus,
            device: device.pci_device,
            pci_device_id: 0,
        }
    }
}

/// Text in an array, cut to leave a NUL.
pub(crate) fn fixed<const N: usize>(text: &str) -> [u8; N] {
    let mut out = [0; N];
    let room = out.iter_mut().take(N.saturating_sub(1));
    room.zip(text.bytes()).for_each(|(to, byte)| *to = byte);
    out
}
