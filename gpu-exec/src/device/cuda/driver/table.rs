//! The driver library and its entry points.
//!
//! Everything is resolved once, when the library is loaded, so no call can panic or fail for a missing symbol
//! later: what old drivers lack is an `Option`, what every driver since CUDA 12.0 has is required.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;
use farcall_marshal::status::{CuResult, CuStatus};
use libloading::Library;

use super::watch::{self, Entry};

/// Where the driver is looked for, in order.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcuda.so"];
/// Oldest driver that works.
const VERSION_MIN: c_int = 12_000;
/// Newest version that the catalogue knows; a client is told no newer one.
const VERSION_KNOWN: u32 = 13_050;

/// Why there is no driver.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// No library.
    #[error("the CUDA driver cannot be loaded: {0}")]
    Library(String),
    /// A library that is no driver, or too old a one.
    #[error("the CUDA driver has no `{0}`: version 12.0 or later is needed")]
    Symbol(&'static str),
    /// Too old.
    #[error("the CUDA driver is for CUDA {}.{}: 12.0 or later is needed", .0 / 1000, .0 % 1000 / 10)]
    Version(c_int),
    /// The driver refuses to work.
    #[error("the CUDA driver does not start: {0}{advice}", advice = advice(*.0))]
    Init(CuStatus),
}

/// What to look at.
fn advice(status: CuStatus) -> &'static str {
    match status {
        CuStatus::NO_DEVICE => {
            "; does nvidia-smi list a GPU, and may this user open /dev/nvidia* (ls -l /dev/nvidia*)?"
        }
        CuStatus::OPERATING_SYSTEM | CuStatus::UNKNOWN => {
            "; may this user open /dev/nvidia* (ls -l /dev/nvidia*), and is the kernel module loaded (lsmod | grep nvidia)?"
        }
        _ => "; the kernel's log may say more (dmesg | grep NVRM)",
    }
}

macro_rules! entry_points {
    (
        required { $($name:ident: fn($($arg:ty),*);)* }
        optional { $($opt_name:ident: fn($($opt_arg:ty),*);)* }
    ) => {
        /// Entry points; each answers with a `CUresult`. They are called through [`Entry::call`], which notes it.
        #[allow(non_snake_case, reason = "the names are the driver's")]
        pub(super) struct Table {
            $(pub(super) $name: Entry<unsafe extern "C" fn($($arg),*) -> u32>,)*
            $(pub(super) $opt_name: Option<Entry<unsafe extern "C" fn($($opt_arg),*) -> u32>>,)*
        }

        impl Table {
            fn resolve(library: &Library) -> Result<Self, LoadError> {
                Ok(Self {
                    $($name: {
                        type Signature = unsafe extern "C" fn($($arg),*) -> u32;
                        // SAFETY: the name is cuda.h's for a function of this type.
                        let entry = unsafe { library.get::<Signature>(concat!(stringify!($name), "\0").as_bytes()) };
                        Entry::new(*entry.map_err(|_| LoadError::Symbol(stringify!($name)))?, stringify!($name))
                    },)*
                    $($opt_name: {
                        type Signature = unsafe extern "C" fn($($opt_arg),*) -> u32;
                        // SAFETY: the name is cuda.h's for a function of this type.
                        let entry = unsafe { library.get::<Signature>(concat!(stringify!($opt_name), "\0").as_bytes()) };
                        entry.ok().map(|entry| Entry::new(*entry, stringify!($opt_name)))
                    },)*
                })
            }
        }
    };
}

/// A handle of the driver; as wide as the pointer that it is.
pub(super) type Raw = usize;

entry_points! {
    required {
        cuInit: fn(c_uint);
        cuDriverGetVersion: fn(*mut c_int);
        cuDeviceGetCount: fn(*mut c_int);
        cuDeviceGet: fn(*mut c_int, c_int);
        cuDeviceGetName: fn(*mut c_char, c_int, c_int);
        cuDeviceGetUuid_v2: fn(*mut [u8; 16], c_int);
        cuDeviceTotalMem_v2: fn(*mut usize, c_int);
        cuDeviceGetAttribute: fn(*mut c_int, c_int, c_int);
        cuDevicePrimaryCtxRetain: fn(*mut Raw, c_int);
        cuDevicePrimaryCtxRelease_v2: fn(c_int);
        cuDevicePrimaryCtxSetFlags_v2: fn(c_int, c_uint);
        cuCtxCreate_v2: fn(*mut Raw, c_uint, c_int);
        cuCtxDestroy_v2: fn(Raw);
        cuCtxSetCurrent: fn(Raw);
        cuCtxSetLimit: fn(c_uint, usize);
        cuCtxSynchronize: fn();
        cuStreamCreateWithPriority: fn(*mut Raw, c_uint, c_int);
        cuStreamDestroy_v2: fn(Raw);
        cuStreamQuery: fn(Raw);
        cuStreamWaitEvent: fn(Raw, Raw, c_uint);
        cuEventCreate: fn(*mut Raw, c_uint);
        cuEventDestroy_v2: fn(Raw);
        cuEventQuery: fn(Raw);
        cuEventRecord: fn(Raw, Raw);
        cuEventElapsedTime: fn(*mut f32, Raw, Raw);
        cuMemAlloc_v2: fn(*mut u64, usize);
        cuMemFree_v2: fn(u64);
        cuMemHostAlloc: fn(*mut *mut c_void, usize, c_uint);
        cuMemFreeHost: fn(*mut c_void);
        cuMemHostRegister_v2: fn(*mut c_void, usize, c_uint);
        cuMemHostUnregister: fn(*mut c_void);
        cuMemHostGetDevicePointer_v2: fn(*mut u64, *mut c_void, c_uint);
        cuMemcpyHtoDAsync_v2: fn(u64, *const c_void, usize, Raw);
        cuMemcpyDtoHAsync_v2: fn(*mut c_void, u64, usize, Raw);
        cuMemcpyDtoDAsync_v2: fn(u64, u64, usize, Raw);
        cuMemcpyAsync: fn(u64, u64, usize, Raw);
        cuMemcpy3DAsync_v2: fn(*const sys::CUDA_MEMCPY3D, Raw);
        cuMemcpyPeerAsync: fn(u64, Raw, u64, Raw, usize, Raw);
        cuMemcpy3DPeerAsync: fn(*const sys::CUDA_MEMCPY3D_PEER, Raw);
        cuMemsetD8Async: fn(u64, u8, usize, Raw);
        cuMemsetD16Async: fn(u64, u16, usize, Raw);
        cuMemsetD32Async: fn(u64, c_uint, usize, Raw);
        cuMemsetD2D8Async: fn(u64, usize, u8, usize, usize, Raw);
        cuMemsetD2D16Async: fn(u64, usize, u16, usize, usize, Raw);
        cuMemsetD2D32Async: fn(u64, usize, c_uint, usize, usize, Raw);
        cuModuleLoadDataEx: fn(*mut Raw, *const c_void, c_uint, *const c_uint, *const *mut c_void);
        cuModuleUnload: fn(Raw);
        cuModuleGetFunction: fn(*mut Raw, Raw, *const c_char);
        cuModuleGetGlobal_v2: fn(*mut u64, *mut usize, Raw, *const c_char);
        cuFuncSetAttribute: fn(Raw, c_int, c_int);
        cuFuncSetCacheConfig: fn(Raw, c_uint);
        cuLaunchKernel: fn(
            Raw, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Raw, *mut *mut c_void, *mut *mut c_void
        );
        cuTexObjectCreate: fn(*mut u64, *const c_void, *const c_void, *const c_void);
        cuTexObjectDestroy: fn(u64);
        cuLaunchKernelEx: fn(*const sys::CUlaunchConfig, Raw, *mut *mut c_void, *mut *mut c_void);
    }
    optional {
        cuMemAddressReserve: fn(*mut u64, usize, usize, u64, u64);
        cuMemAddressFree: fn(u64, usize);
        cuMemCreate: fn(*mut u64, usize, *const sys::CUmemAllocationProp, u64);
        cuMemRelease: fn(u64);
        cuMemMap: fn(u64, usize, usize, u64, u64);
        cuMemUnmap: fn(u64, usize);
        cuMemSetAccess: fn(u64, usize, *const sys::CUmemAccessDesc, usize);
        cuGraphCreate: fn(*mut Raw, c_uint);
        cuGraphDestroy: fn(Raw);
        cuGraphAddKernelNode_v2: fn(*mut Raw, Raw, *const Raw, usize, *const sys::CUDA_KERNEL_NODE_PARAMS_v2_st);
        cuGraphAddMemcpyNode: fn(*mut Raw, Raw, *const Raw, usize, *const sys::CUDA_MEMCPY3D, Raw);
        cuGraphAddMemsetNode: fn(*mut Raw, Raw, *const Raw, usize, *const sys::CUDA_MEMSET_NODE_PARAMS_st, Raw);
        cuGraphKernelNodeSetAttribute: fn(Raw, c_uint, *const [u8; 64]);
        cuGraphInstantiateWithFlags: fn(*mut Raw, Raw, u64);
        cuGraphExecDestroy: fn(Raw);
        cuGraphLaunch: fn(Raw, Raw);
        cuTensorMapEncodeTiled: fn(
            *mut c_void, c_uint, c_uint, *mut c_void, *const u64, *const u64, *const u32, *const u32, c_uint, c_uint, c_uint, c_uint
        );
        cuTensorMapEncodeIm2col: fn(
            *mut c_void, c_uint, c_uint, *mut c_void, *const u64, *const u64, *const i32, *const i32, c_uint, c_uint, *const u32,
            c_uint, c_uint, c_uint, c_uint
        );
        cuTensorMapReplaceAddress: fn(*mut c_void, *mut c_void);
    }
}

/// A driver that has been started.
pub(crate) struct Driver {
    pub(super) table: Table,
    version: u32,
    // The entry points live as long as the library.
    _library: Library,
}

impl std::fmt::Debug for Driver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver")
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

impl Driver {
    /// The driver of this process; loaded and started by the first call. Makes no context.
    ///
    /// # Errors
    /// No driver, too old a driver, or one that does not start (no GPU, no permission). Later calls try again.
    pub(crate) fn get() -> Result<&'static Self, LoadError> {
        static DRIVER: OnceLock<&'static Driver> = OnceLock::new();
        if let Some(driver) = DRIVER.get() {
            return Ok(*driver);
        }
        // Never unloaded: a driver has threads of its own.
        let driver: &'static Self = Box::leak(Box::new(Self::load(&NAMES)?));
        Ok(DRIVER.get_or_init(|| driver))
    }

    /// The first library of these names that is there, started.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub(crate) fn load(names: &[&str]) -> Result<Self, LoadError> {
        let mut failures = Vec::new();
        for name in names {
            // SAFETY: the driver's initializers are what every CUDA program runs.
            match unsafe { Library::new(*name) } {
                Ok(library) => return Self::start(library),
                Err(error) => failures.push(said(name, &error)),
            }
        }
        Err(LoadError::Library(failures.join("; ")))
    }

    /// CUDA version that clients are told: the driver's, at most what the catalogue knows. Never a newer one: a runtime that needs it would
    /// not say so, and its images would fail one by one.
    pub(crate) fn version_for_clients(&self) -> u32 {
        self.version.min(VERSION_KNOWN)
    }

    /// Devices that the driver shows.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn device_count(&self) -> CuResult<u32> {
        let mut count = 0;
        // SAFETY: a place for one int.
        check(unsafe { (self.table.cuDeviceGetCount.call())(&raw mut count) })?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    /// The driver's number for a device.
    ///
    /// # Errors
    /// `INVALID_DEVICE`.
    pub(super) fn device(&self, ordinal: u32) -> CuResult<c_int> {
        let (mut device, ordinal) = (
            0,
            c_int::try_from(ordinal).map_err(|_| CuStatus::INVALID_DEVICE)?,
        );
        // SAFETY: a place for one int.
        check(unsafe { (self.table.cuDeviceGet.call())(&raw mut device, ordinal) })?;
        Ok(device)
    }

    /// A device's name.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn device_name(&self, ordinal: u32) -> CuResult<String> {
        let device = self.device(ordinal)?;
        let mut text = [0_u8; 256];
        let room = c_int::try_from(text.len() - 1).unwrap_or(0);
        // SAFETY: the text has room for that many bytes.
        check(unsafe {
            (self.table.cuDeviceGetName.call())(text.as_mut_ptr().cast(), room, device)
        })?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(0);
        Ok(String::from_utf8_lossy(text.get(..end).unwrap_or_default()).into_owned())
    }

    /// A device's UUID.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn device_uuid(&self, ordinal: u32) -> CuResult<[u8; 16]> {
        let (device, mut uuid) = (self.device(ordinal)?, [0; 16]);
        // SAFETY: `CUuuid` is 16 bytes.
        check(unsafe { (self.table.cuDeviceGetUuid_v2.call())(&raw mut uuid, device) })?;
        Ok(uuid)
    }

    /// A device's memory in bytes.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn device_total_bytes(&self, ordinal: u32) -> CuResult<u64> {
        let (device, mut bytes) = (self.device(ordinal)?, 0);
        // SAFETY: a place for one size.
        check(unsafe { (self.table.cuDeviceTotalMem_v2.call())(&raw mut bytes, device) })?;
        Ok(bytes as u64)
    }

    /// The value of a `CUdevice_attribute`.
    ///
    /// # Errors
    /// The driver does not know it.
    pub(crate) fn device_attribute(&self, ordinal: u32, attribute: i32) -> CuResult<i32> {
        let (device, mut value) = (self.device(ordinal)?, 0);
        // SAFETY: a place for one int; the driver checks the number of the attribute.
        check(unsafe {
            (self.table.cuDeviceGetAttribute.call())(&raw mut value, attribute, device)
        })?;
        Ok(value)
    }

    fn start(library: Library) -> Result<Self, LoadError> {
        let table = Table::resolve(&library)?;
        let mut version = 0;
        // SAFETY: the one parameter must be 0.
        check(unsafe { (table.cuInit.call())(0) }).map_err(LoadError::Init)?;
        // SAFETY: a place for one int.
        check(unsafe { (table.cuDriverGetVersion.call())(&raw mut version) })
            .map_err(LoadError::Init)?;
        if version < VERSION_MIN {
            return Err(LoadError::Version(version));
        }
        Ok(Self {
            table,
            version: version.unsigned_abs(),
            _library: library,
        })
    }
}

/// What is wrong with a library: the loader's own words are the source of its error.
fn said(name: &str, error: &libloading::Error) -> String {
    let source = std::error::Error::source(error).map(ToString::to_string);
    source.unwrap_or_else(|| format!("{name}: {error}"))
}

/// A `CUresult` as a result. What may mean that a GPU is lost is noted for the watchdog.
pub(super) fn check(status: u32) -> CuResult {
    if status == 0 {
        return Ok(());
    }
    watch::note(CuStatus(status));
    Err(CuStatus(status))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Driver, LoadError};

    #[test]
    fn a_missing_or_foreign_library_is_an_error_and_no_panic() {
        let missing = Driver::load(&["libfarcall-is-not-there.so"]).unwrap_err();
        assert!(
            matches!(&missing, LoadError::Library(why) if why.contains("libfarcall-is-not-there")),
            "{missing}"
        );
        let foreign = Driver::load(&["libc.so.6"]).unwrap_err();
        assert!(matches!(foreign, LoadError::Symbol("cuInit")), "{foreign}");
    }
}
