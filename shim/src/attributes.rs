//! Device attributes by number, from what the server sent in the handshake.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};

use crate::process::Device;

/// `CUdevice_attribute` numbers that the client itself works with.
#[derive(Clone, Copy)]
#[repr(usize)]
pub(crate) enum Attribute {
    MaxThreadsPerBlock = 1,
    MaxBlockDimX = 2,
    MaxBlockDimY = 3,
    MaxBlockDimZ = 4,
    MaxGridDimX = 5,
    MaxGridDimY = 6,
    MaxGridDimZ = 7,
    MaxSharedMemoryPerBlock = 8,
    TotalConstantMemory = 9,
    WarpSize = 10,
    MaxPitch = 11,
    MaxRegistersPerBlock = 12,
    ClockRate = 13,
    TextureAlignment = 14,
    MultiprocessorCount = 16,
    MaxThreadsPerMultiprocessor = 39,
    MaxSharedMemoryPerMultiprocessor = 81,
    MaxRegistersPerMultiprocessor = 82,
    MaxSharedMemoryPerBlockOptin = 97,
    MaxBlocksPerMultiprocessor = 106,
    ReservedSharedMemoryPerBlock = 111,
}

/// No block is as long as this in any direction (1024 on every GPU so far).
const BLOCK_MAX: u32 = 1 << 16;

/// Largest grid and block, looked up once: every launch is checked against them.
pub(crate) struct LaunchLimits {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) threads: u32,
}

impl LaunchLimits {
    pub(crate) fn of(attributes: &[i32]) -> Self {
        use Attribute as A;
        let get = |attribute: A| {
            attributes
                .get(attribute as usize)
                .and_then(|value| u32::try_from(*value).ok())
                .unwrap_or(0)
        };
        Self {
            grid: [A::MaxGridDimX, A::MaxGridDimY, A::MaxGridDimZ].map(get),
            // Less than any overflow of the three together.
            block: [A::MaxBlockDimX, A::MaxBlockDimY, A::MaxBlockDimZ]
                .map(|attribute| get(attribute).min(BLOCK_MAX)),
            threads: get(A::MaxThreadsPerBlock),
        }
    }
}

/// `CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM`.
const HOST_POINTER_FOR_REGISTERED: usize = 91;

/// The attributes of a device at a distance: what memory the program registers has an address of its own there.
pub(crate) fn at_a_distance(attributes: &[i32]) -> Vec<i32> {
    let mut attributes = attributes.to_vec();
    if let Some(value) = attributes.get_mut(HOST_POINTER_FOR_REGISTERED) {
        *value = 0;
    }
    attributes
}

impl Device {
    /// An attribute by its number; `INVALID_VALUE` if the device does not know it.
    pub(crate) fn attribute_number(&self, number: usize) -> CuResult<i32> {
        match self.attributes.get(number) {
            Some(&value) if value != i32::MIN => Ok(value),
            _ => Err(CuStatus::INVALID_VALUE),
        }
    }

    /// An attribute that every device has; 0 if this one does not.
    pub(crate) fn attribute(&self, attribute: Attribute) -> i32 {
        self.attribute_number(attribute as usize).unwrap_or(0)
    }

    /// The same as a number of things.
    #[inline]
    pub(crate) fn count(&self, attribute: Attribute) -> u32 {
        u32::try_from(self.attribute(attribute)).unwrap_or(0)
    }
}
