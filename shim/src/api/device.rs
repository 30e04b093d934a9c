//! Questions about devices: answered from the handshake.
#![forbid(unsafe_code)]

use std::ffi::c_char;

use farcall_marshal::status::{CuResult, CuStatus};

use crate::abi::{CUdevprop, CUuuid};
use crate::attributes::Attribute;
use crate::context;
use crate::process::{Device, process};
use crate::ptr::{HostPtr, Out, Text};

fn device(ordinal: i32) -> CuResult<&'static Device> {
    process()?.device(ordinal)
}

pub(crate) fn cuDeviceGet(place: Out<i32>, ordinal: i32) -> CuResult {
    device(ordinal)?;
    place.set(ordinal)
}

pub(crate) fn cuDeviceGetCount(count: Out<i32>) -> CuResult {
    count.set(i32::try_from(process()?.devices.len()).unwrap_or(i32::MAX))
}

pub(crate) fn cuDeviceGetName(name: Out<c_char>, capacity: i32, ordinal: i32) -> CuResult {
    name.set_text(&device(ordinal)?.name, capacity)
}

pub(crate) fn cuDeviceGetUuid(uuid: Out<CUuuid>, ordinal: i32) -> CuResult {
    uuid.set(CUuuid {
        bytes: device(ordinal)?.uuid,
    })
}

pub(crate) fn cuDeviceGetUuid_v2(uuid: Out<CUuuid>, ordinal: i32) -> CuResult {
    cuDeviceGetUuid(uuid, ordinal)
}

/// LUIDs exist on Windows only (cuda.h).
pub(crate) fn cuDeviceGetLuid(_luid: Out<c_char>, _mask: Out<u32>, ordinal: i32) -> CuResult {
    device(ordinal)?;
    Err(CuStatus::NOT_SUPPORTED)
}

/// What this session may use is all that the program sees.
pub(crate) fn cuDeviceTotalMem_v2(bytes: Out<usize>, ordinal: i32) -> CuResult {
    bytes.set(usize::try_from(device(ordinal)?.limit_bytes).unwrap_or(usize::MAX))
}

pub(crate) fn cuDeviceGetAttribute(value: Out<i32>, attribute: u32, ordinal: i32) -> CuResult {
    value.set(device(ordinal)?.attribute_number(attribute as usize)?)
}

pub(crate) fn cuDeviceGetPCIBusId(text: Out<c_char>, capacity: i32, ordinal: i32) -> CuResult {
    let (domain, bus, slot) = device(ordinal)?.pci;
    text.set_text(&format!("{domain:04x}:{bus:02x}:{slot:02x}.0"), capacity)
}

pub(crate) fn cuDeviceGetByPCIBusId(place: Out<i32>, text: Text) -> CuResult {
    let wanted = parse_bus_id(&text.get()?).ok_or(CuStatus::INVALID_VALUE)?;
    let found = process()?
        .devices
        .iter()
        .find(|device| device.pci == wanted);
    let ordinal = found.ok_or(CuStatus::INVALID_DEVICE)?.ordinal;
    place.set(i32::try_from(ordinal).unwrap_or(0))
}

/// `[domain:]bus:device[.function]`, hexadecimal.
fn parse_bus_id(text: &str) -> Option<(u32, u32, u32)> {
    let number = |part: &str| u32::from_str_radix(part, 16).ok();
    let text = text.split('.').next()?;
    match text.split(':').collect::<Vec<_>>()[..] {
        [domain, bus, device] => Some((number(domain)?, number(bus)?, number(device)?)),
        [bus, device] => Some((0, number(bus)?, number(device)?)),
        _ => None,
    }
}

pub(crate) fn cuDeviceComputeCapability(
    major: Out<i32>,
    minor: Out<i32>,
    ordinal: i32,
) -> CuResult {
    let sm = i32::try_from(device(ordinal)?.sm).unwrap_or(0);
    major.set(sm / 10)?;
    minor.set(sm % 10)
}

pub(crate) fn cuDeviceGetProperties(place: Out<CUdevprop>, ordinal: i32) -> CuResult {
    use Attribute as A;
    let device = device(ordinal)?;
    let get = |attribute| device.attribute(attribute);
    place.set(CUdevprop {
        maxThreadsPerBlock: get(A::MaxThreadsPerBlock),
        maxThreadsDim: [A::MaxBlockDimX, A::MaxBlockDimY, A::MaxBlockDimZ].map(get),
        maxGridSize: [A::MaxGridDimX, A::MaxGridDimY, A::MaxGridDimZ].map(get),
        sharedMemPerBlock: get(A::MaxSharedMemoryPerBlock),
        totalConstantMemory: get(A::TotalConstantMemory),
        SIMDWidth: get(A::WarpSize),
        memPitch: get(A::MaxPitch),
        regsPerBlock: get(A::MaxRegistersPerBlock),
        clockRate: get(A::ClockRate),
        textureAlign: get(A::TextureAlignment),
    })
}

/// No device of a server reaches another's memory yet.
pub(crate) fn cuDeviceCanAccessPeer(can: Out<i32>, from: i32, to: i32) -> CuResult {
    device(from)?;
    device(to)?;
    can.set(0)
}

pub(crate) fn cuDeviceGetP2PAttribute(
    value: Out<i32>,
    attribute: u32,
    from: i32,
    to: i32,
) -> CuResult {
    if from == to || !(1..=4).contains(&attribute) {
        return Err(CuStatus::INVALID_VALUE);
    }
    device(from)?;
    device(to)?;
    value.set(0)
}

pub(crate) fn cuDeviceGetExecAffinitySupport(
    supported: Out<i32>,
    _kind: u32,
    ordinal: i32,
) -> CuResult {
    device(ordinal)?;
    supported.set(0)
}

pub(crate) fn cuDeviceGetTexture1DLinearMaxWidth(
    width: Out<usize>,
    _format: u32,
    channels: u32,
    ordinal: i32,
) -> CuResult {
    /// `CU_DEVICE_ATTRIBUTE_MAXIMUM_TEXTURE1D_LINEAR_WIDTH`.
    const LINEAR_WIDTH: usize = 69;
    if !matches!(channels, 1 | 2 | 4) {
        return Err(CuStatus::INVALID_VALUE);
    }
    let texels = device(ordinal)?.attribute_number(LINEAR_WIDTH)?;
    width.set(usize::try_from(texels).unwrap_or(0))
}

pub(crate) fn cuDevicePrimaryCtxRetain(place: Out<u64>, ordinal: i32) -> CuResult {
    place.set(context::retain_primary(ordinal)?.handle)
}

pub(crate) fn cuDevicePrimaryCtxRelease_v2(ordinal: i32) -> CuResult {
    context::release_primary(ordinal)
}

pub(crate) fn cuDevicePrimaryCtxRelease(ordinal: i32) -> CuResult {
    context::release_primary(ordinal)
}

pub(crate) fn cuDevicePrimaryCtxReset_v2(ordinal: i32) -> CuResult {
    context::reset_primary(ordinal)
}

pub(crate) fn cuDevicePrimaryCtxReset(ordinal: i32) -> CuResult {
    context::reset_primary(ordinal)
}

pub(crate) fn cuDevicePrimaryCtxSetFlags_v2(ordinal: i32, flags: u32) -> CuResult {
    let mut primary = device(ordinal)?.primary.lock();
    primary.flags = flags;
    if let Some(context) = primary.context {
        context
            .flags
            .store(flags, std::sync::atomic::Ordering::Relaxed);
    }
    Ok(())
}

pub(crate) fn cuDevicePrimaryCtxSetFlags(ordinal: i32, flags: u32) -> CuResult {
    cuDevicePrimaryCtxSetFlags_v2(ordinal, flags)
}

pub(crate) fn cuDevicePrimaryCtxGetState(
    ordinal: i32,
    flags: Out<u32>,
    active: Out<i32>,
) -> CuResult {
    let primary = device(ordinal)?.primary.lock();
    flags.set(primary.flags)?;
    active.set(i32::from(primary.context.is_some()))
}

pub(crate) fn cuDeviceGetGraphMemAttribute(
    ordinal: i32,
    attribute: u32,
    value: HostPtr,
) -> CuResult {
    device(ordinal)?;
    if attribute > 3 {
        return Err(CuStatus::INVALID_VALUE);
    }
    // Graphs allocate nothing of their own here.
    value.out::<u64>().set(0)
}

pub(crate) fn cuDeviceSetGraphMemAttribute(
    ordinal: i32,
    attribute: u32,
    value: HostPtr,
) -> CuResult {
    device(ordinal)?;
    // Only the high-water marks can be set, and only to 0 (cuda.h).
    if !matches!(attribute, 1 | 3) || value.input::<u64>().get()? != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    Ok(())
}

pub(crate) fn cuDeviceGraphMemTrim(ordinal: i32) -> CuResult {
    device(ordinal).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::parse_bus_id;

    #[test]
    fn bus_ids_with_and_without_domain() {
        assert_eq!(parse_bus_id("0000:0a:00.0"), Some((0, 10, 0)));
        assert_eq!(parse_bus_id("0a:1f"), Some((0, 10, 31)));
        assert_eq!(parse_bus_id("hello"), None);
    }
}
