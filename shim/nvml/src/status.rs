//! NVML's result codes.
#![forbid(unsafe_code)]

use std::ffi::CStr;

/// `nvmlReturn_t`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Status(pub(crate) u32);

impl Status {
    pub(crate) const SUCCESS: Self = Self(0);
    pub(crate) const UNINITIALIZED: Self = Self(1);
    pub(crate) const INVALID_ARGUMENT: Self = Self(2);
    pub(crate) const NOT_SUPPORTED: Self = Self(3);
    pub(crate) const NOT_FOUND: Self = Self(6);
    pub(crate) const INSUFFICIENT_SIZE: Self = Self(7);
    pub(crate) const DRIVER_NOT_LOADED: Self = Self(9);
    pub(crate) const TIMEOUT: Self = Self(10);
    pub(crate) const GPU_IS_LOST: Self = Self(15);
    pub(crate) const ARGUMENT_VERSION_MISMATCH: Self = Self(25);
    pub(crate) const UNKNOWN: Self = Self(999);

    /// What `nvmlErrorString` says.
    pub(crate) fn text(self) -> &'static CStr {
        match self.0 {
            0 => c"Success",
            1 => c"Uninitialized",
            2 => c"Invalid Argument",
            3 => c"Not Supported",
            4 => c"Insufficient Permissions",
            5 => c"Already Initialized",
            6 => c"Not Found",
            7 => c"Insufficient Size",
            8 => c"Insufficient External Power",
            9 => c"Driver Not Loaded",
            10 => c"Timeout",
            11 => c"Interrupt Request Issue",
            12 => c"NVML Shared Library Not Found",
            13 => c"Function Not Found",
            14 => c"Corrupted infoROM",
            15 => c"GPU is lost",
            16 => c"GPU requires reset",
            17 => c"The operating system has blocked the request.",
            18 => c"RM has detected an NVML/RM version mismatch.",
            19 => c"GPU is currently in use",
            20 => c"Insufficient Memory",
            21 => c"No data",
            22 => c"vGPU ECC Not Supported",
            23 => c"Insufficient Resources",
            24 => c"Frequency Not Supported",
            25 => c"Argument version mismatch",
            26 => c"Deprecated",
            27 => c"Not Ready",
            28 => c"GPU not found",
            _ => c"Unknown Error",
        }
    }
}

/// What a question gives.
pub(crate) type NvmlResult<T = ()> = Result<T, Status>;
