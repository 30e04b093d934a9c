//! The C functions. Fenced `unsafe`.
//!
//! Pointers are wrapped by `ptr`, under the C contract of nvml.h. Handles are numbers (the device's index plus one), so a
//! wrong one is an error and never an address.

#![allow(non_snake_case, reason = "names of nvml.h")]

use std::ffi::{c_char, c_int, c_uint};
use std::time::Instant;

use crate::call::{Handle, answer, handle, index_of, known};
use crate::device::Memory;
use crate::layout::{FieldValue, MEMORY_V2, MemoryInfo, MemoryInfoV2, PciInfo, PciInfoV3, fixed};
use crate::library;
use crate::ptr::{Out, Text, get, text};
use crate::status::{NvmlResult, Status};
use crate::version;

include!(concat!(env!("OUT_DIR"), "/unsupported.rs"));

/// `NVML_P2P_STATUS_NOT_SUPPORTED`.
const P2P_NOT_SUPPORTED: c_uint = 5;

/// Initializes, or counts one more user.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlInit() -> c_uint {
    answer(library::init)
}

/// As [`nvmlInit`].
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlInit_v2() -> c_uint {
    answer(library::init)
}

/// As [`nvmlInit`]; the flags ask for less than it does.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> c_uint {
    answer(library::init)
}

/// Ends the last user's time.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlShutdown() -> c_uint {
    answer(library::shutdown)
}

/// Text of a result code; static.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlErrorString(result: c_uint) -> *const c_char {
    Status(result).text().as_ptr()
}

/// Driver version.
///
/// # Safety
/// `version` has room for `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlSystemGetDriverVersion(
    version: *mut c_char,
    length: c_uint,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Text::new(version, length) };
    answer(|| out.set(&version::driver(library::library()?.cuda_version())))
}

/// NVML version.
///
/// # Safety
/// `version` has room for `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlSystemGetNVMLVersion(
    version: *mut c_char,
    length: c_uint,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Text::new(version, length) };
    answer(|| out.set(&version::nvml(library::library()?.cuda_version())))
}

/// CUDA version, 12040 for 12.4.
///
/// # Safety
/// `version` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(version) };
    answer(|| {
        out.set(c_int::try_from(library::library()?.cuda_version()).map_err(|_| Status::UNKNOWN)?)
    })
}

/// As [`nvmlSystemGetCudaDriverVersion`].
///
/// # Safety
/// `version` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> c_uint {
    // SAFETY: the caller's promise is the one that function asks for.
    unsafe { nvmlSystemGetCudaDriverVersion(version) }
}

/// Number of devices.
///
/// # Safety
/// `count` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(count) };
    answer(|| out.set(library::library()?.device_count()))
}

/// As [`nvmlDeviceGetCount_v2`].
///
/// # Safety
/// `count` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetCount(count: *mut c_uint) -> c_uint {
    // SAFETY: the caller's promise is the one that function asks for.
    unsafe { nvmlDeviceGetCount_v2(count) }
}

/// Handle of a device by its number.
///
/// # Safety
/// `device` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetHandleByIndex_v2(
    index: c_uint,
    device: *mut Handle,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(device) };
    answer(|| {
        library::library()?.device(index)?;
        out.set(handle(index)?)
    })
}

/// As [`nvmlDeviceGetHandleByIndex_v2`].
///
/// # Safety
/// `device` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetHandleByIndex(
    index: c_uint,
    device: *mut Handle,
) -> c_uint {
    // SAFETY: the caller's promise is the one that function asks for.
    unsafe { nvmlDeviceGetHandleByIndex_v2(index, device) }
}

/// Handle of a device by its UUID.
///
/// # Safety
/// `uuid` is null or a text with its NUL; `device` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetHandleByUUID(
    uuid: *const c_char,
    device: *mut Handle,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let (uuid, out) = (unsafe { text(uuid) }, unsafe { Out::new(device) });
    answer(|| {
        let uuid = uuid?;
        out.set(handle(library::library()?.find(|device| {
            device.uuid_text().eq_ignore_ascii_case(&uuid)
        })?)?)
    })
}

/// Handle of a device by its place on the bus.
///
/// # Safety
/// `place` is null or a text with its NUL; `device` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(
    place: *const c_char,
    device: *mut Handle,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let (place, out) = (unsafe { text(place) }, unsafe { Out::new(device) });
    answer(|| {
        let place = place?;
        out.set(handle(
            library::library()?.find(|device| device.is_at(&place))?,
        )?)
    })
}

/// As [`nvmlDeviceGetHandleByPciBusId_v2`].
///
/// # Safety
/// `place` is null or a text with its NUL; `device` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetHandleByPciBusId(
    place: *const c_char,
    device: *mut Handle,
) -> c_uint {
    // SAFETY: the caller's promise is the one that function asks for.
    unsafe { nvmlDeviceGetHandleByPciBusId_v2(place, device) }
}

/// Name of a device.
///
/// # Safety
/// `name` has room for `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetName(
    device: Handle,
    name: *mut c_char,
    length: c_uint,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Text::new(name, length) };
    answer(|| out.set(&known(device)?.1.name))
}

/// UUID of a device.
///
/// # Safety
/// `uuid` has room for `length` bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetUUID(
    device: Handle,
    uuid: *mut c_char,
    length: c_uint,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Text::new(uuid, length) };
    answer(|| out.set(&known(device)?.1.uuid_text()))
}

/// Number of a device.
///
/// # Safety
/// `index` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetIndex(device: Handle, index: *mut c_uint) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(index) };
    answer(|| {
        known(device)?;
        out.set(index_of(device)?)
    })
}

/// Minor number of a device's file, which is its number on the server.
///
/// # Safety
/// `minor` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMinorNumber(
    device: Handle,
    minor: *mut c_uint,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(minor) };
    answer(|| out.set(known(device)?.1.server_ordinal))
}

/// Place of a device on the bus, first version of the structure.
///
/// # Safety
/// `pci` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetPciInfo(device: Handle, pci: *mut PciInfo) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(pci) };
    answer(|| out.set(PciInfo::new(&known(device)?.1)))
}

/// As [`nvmlDeviceGetPciInfo`]: the second version only appends what we do not know.
///
/// # Safety
/// `pci` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetPciInfo_v2(
    device: Handle,
    pci: *mut PciInfo,
) -> c_uint {
    // SAFETY: the caller's promise is the one that function asks for.
    unsafe { nvmlDeviceGetPciInfo(device, pci) }
}

/// Place of a device on the bus, third version of the structure.
///
/// # Safety
/// `pci` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetPciInfo_v3(
    device: Handle,
    pci: *mut PciInfoV3,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(pci) };
    answer(|| {
        let (_, device) = known(device)?;
        out.set(PciInfoV3 {
            common: PciInfo::new(&device),
            pci_subsystem_id: 0,
            bus_id: fixed(&device.bus_id()),
        })
    })
}

/// Memory of a device. Asks the server if the figures are older than a second.
///
/// # Safety
/// `memory` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMemoryInfo(
    device: Handle,
    memory: *mut MemoryInfo,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(memory) };
    answer(|| {
        let memory = memory_now(device)?;
        out.set(MemoryInfo {
            total: memory.total,
            free: memory.free,
            used: memory.used,
        })
    })
}

/// Memory of a device, second version of the structure.
///
/// # Safety
/// `memory` is null or valid for reads and writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetMemoryInfo_v2(
    device: Handle,
    memory: *mut MemoryInfoV2,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let (version, out) = (unsafe { get(memory.cast::<c_uint>()) }, unsafe {
        Out::new(memory)
    });
    answer(|| {
        if version? != MEMORY_V2 {
            return Err(Status::ARGUMENT_VERSION_MISMATCH);
        }
        let memory = memory_now(device)?;
        out.set(MemoryInfoV2 {
            version: MEMORY_V2,
            total: memory.total,
            reserved: 0,
            free: memory.free,
            used: memory.used,
        })
    })
}

/// Compute capability of a device.
///
/// # Safety
/// `major` and `minor` are null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: Handle,
    major: *mut c_int,
    minor: *mut c_int,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let (major, minor) = (unsafe { Out::new(major) }, unsafe { Out::new(minor) });
    answer(|| {
        let sm = c_int::try_from(known(device)?.1.sm).map_err(|_| Status::UNKNOWN)?;
        major.set(sm / 10)?;
        minor.set(sm % 10)
    })
}

/// Whether two devices reach each other's memory: not as far as this machine can tell.
///
/// # Safety
/// `status` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetP2PStatus(
    one: Handle,
    other: Handle,
    _kind: c_uint,
    status: *mut c_uint,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(status) };
    answer(|| {
        known(one)?;
        known(other)?;
        out.set(P2P_NOT_SUPPORTED)
    })
}

/// Many values at once, each with a status of its own: not supported.
///
/// # Safety
/// `values` is null or an array of `count` elements.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetFieldValues(
    device: Handle,
    count: c_int,
    values: *mut FieldValue,
) -> c_uint {
    let checked = answer(|| known(device).map(|_| ()));
    let Ok(count) = usize::try_from(count) else {
        return Status::INVALID_ARGUMENT.0;
    };
    if checked != Status::SUCCESS.0 {
        return checked;
    }
    if values.is_null() || count == 0 {
        return Status::INVALID_ARGUMENT.0;
    }
    for index in 0..count {
        // SAFETY: `index` is within the array that the caller promised.
        let element = unsafe { values.add(index) };
        // SAFETY: an element of that array; nothing is read through the pointer.
        let status = unsafe { &raw mut (*element).status };
        // SAFETY: a field of that element, valid for writes.
        unsafe { status.write_unaligned(Status::NOT_SUPPORTED.0) };
    }
    Status::SUCCESS.0
}

fn memory_now(handle: Handle) -> NvmlResult<Memory> {
    let library = library::library()?;
    let device = library.device_now(index_of(handle)?, Instant::now())?;
    Ok(device.memory(library.memory_limit_bytes(device.total_bytes)))
}
