//! CUDA result codes. Unknown numbers survive unchanged: a newer driver's code reaches the program.
//!
//! Names and numbers: cuda.h 13.4 (`CUresult`); texts as a driver's `cuGetErrorString` gives them.
#![forbid(unsafe_code)]

mod rows;

use rows::ROWS;

/// A `CUresult`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CuStatus(pub u32);

impl CuStatus {
    /// No error.
    pub const SUCCESS: Self = Self(0);
    /// Invalid argument.
    pub const INVALID_VALUE: Self = Self(1);
    /// Out of memory.
    pub const OUT_OF_MEMORY: Self = Self(2);
    /// Initialization error.
    pub const NOT_INITIALIZED: Self = Self(3);
    /// Driver shutting down.
    pub const DEINITIALIZED: Self = Self(4);
    /// Profiler disabled while using external profiling tool.
    pub const PROFILER_DISABLED: Self = Self(5);
    /// Profiler not initialized: call cudaProfilerInitialize().
    pub const PROFILER_NOT_INITIALIZED: Self = Self(6);
    /// Profiler already started.
    pub const PROFILER_ALREADY_STARTED: Self = Self(7);
    /// Profiler already stopped.
    pub const PROFILER_ALREADY_STOPPED: Self = Self(8);
    /// CUDA driver is a stub library.
    pub const STUB_LIBRARY: Self = Self(34);
    /// API call is not supported in the installed CUDA driver.
    pub const CALL_REQUIRES_NEWER_DRIVER: Self = Self(36);
    /// CUDA-capable device(s) is/are busy or unavailable.
    pub const DEVICE_UNAVAILABLE: Self = Self(46);
    /// Multicast resource full.
    pub const MULTICAST_RESOURCE_FULL: Self = Self(47);
    /// No CUDA-capable device is detected.
    pub const NO_DEVICE: Self = Self(100);
    /// Invalid device ordinal.
    pub const INVALID_DEVICE: Self = Self(101);
    /// Device is not licensed.
    pub const DEVICE_NOT_LICENSED: Self = Self(102);
    /// Device kernel image is invalid.
    pub const INVALID_IMAGE: Self = Self(200);
    /// Invalid device context.
    pub const INVALID_CONTEXT: Self = Self(201);
    /// Context already current.
    pub const CONTEXT_ALREADY_CURRENT: Self = Self(202);
    /// Mapping of buffer object failed.
    pub const MAP_FAILED: Self = Self(205);
    /// Unmapping of buffer object failed.
    pub const UNMAP_FAILED: Self = Self(206);
    /// Array is mapped.
    pub const ARRAY_IS_MAPPED: Self = Self(207);
    /// Resource already mapped.
    pub const ALREADY_MAPPED: Self = Self(208);
    /// No kernel image is available for execution on the device.
    pub const NO_BINARY_FOR_GPU: Self = Self(209);
    /// Resource already acquired.
    pub const ALREADY_ACQUIRED: Self = Self(210);
    /// Resource not mapped.
    pub const NOT_MAPPED: Self = Self(211);
    /// Resource not mapped as array.
    pub const NOT_MAPPED_AS_ARRAY: Self = Self(212);
    /// Resource not mapped as pointer.
    pub const NOT_MAPPED_AS_POINTER: Self = Self(213);
    /// Uncorrectable ECC error encountered.
    pub const ECC_UNCORRECTABLE: Self = Self(214);
    /// Limit is not supported on this architecture.
    pub const UNSUPPORTED_LIMIT: Self = Self(215);
    /// Exclusive-thread device already in use by a different thread.
    pub const CONTEXT_ALREADY_IN_USE: Self = Self(216);
    /// Peer access is not supported between these two devices.
    pub const PEER_ACCESS_UNSUPPORTED: Self = Self(217);
    /// A PTX JIT compilation failed.
    pub const INVALID_PTX: Self = Self(218);
    /// Invalid OpenGL or DirectX context.
    pub const INVALID_GRAPHICS_CONTEXT: Self = Self(219);
    /// Uncorrectable NVLink error detected during the execution.
    pub const NVLINK_UNCORRECTABLE: Self = Self(220);
    /// PTX JIT compiler library not found.
    pub const JIT_COMPILER_NOT_FOUND: Self = Self(221);
    /// The provided PTX was compiled with an unsupported toolchain.
    pub const UNSUPPORTED_PTX_VERSION: Self = Self(222);
    /// PTX JIT compilation was disabled.
    pub const JIT_COMPILATION_DISABLED: Self = Self(223);
    /// The provided execution affinity is not supported on this device.
    pub const UNSUPPORTED_EXEC_AFFINITY: Self = Self(224);
    /// Unsupported devside sync.
    pub const UNSUPPORTED_DEVSIDE_SYNC: Self = Self(225);
    /// Device side exception raised to contain a failure.
    pub const CONTAINED: Self = Self(226);
    /// Insufficient loader version.
    pub const INSUFFICIENT_LOADER_VERSION: Self = Self(227);
    /// Device kernel image is invalid.
    pub const INVALID_SOURCE: Self = Self(300);
    /// File not found.
    pub const FILE_NOT_FOUND: Self = Self(301);
    /// Shared object symbol not found.
    pub const SHARED_OBJECT_SYMBOL_NOT_FOUND: Self = Self(302);
    /// Shared object initialization failed.
    pub const SHARED_OBJECT_INIT_FAILED: Self = Self(303);
    /// OS call failed or operation not supported on this OS.
    pub const OPERATING_SYSTEM: Self = Self(304);
    /// Invalid resource handle.
    pub const INVALID_HANDLE: Self = Self(400);
    /// The operation cannot be performed in the present state.
    pub const ILLEGAL_STATE: Self = Self(401);
    /// Lossy query.
    pub const LOSSY_QUERY: Self = Self(402);
    /// Named symbol not found.
    pub const NOT_FOUND: Self = Self(500);
    /// Device not ready.
    pub const NOT_READY: Self = Self(600);
    /// An illegal memory access was encountered.
    pub const ILLEGAL_ADDRESS: Self = Self(700);
    /// Too many resources requested for launch.
    pub const LAUNCH_OUT_OF_RESOURCES: Self = Self(701);
    /// The launch timed out and was terminated.
    pub const LAUNCH_TIMEOUT: Self = Self(702);
    /// Launch uses incompatible texturing mode.
    pub const LAUNCH_INCOMPATIBLE_TEXTURING: Self = Self(703);
    /// Peer access is already enabled.
    pub const PEER_ACCESS_ALREADY_ENABLED: Self = Self(704);
    /// Peer access has not been enabled.
    pub const PEER_ACCESS_NOT_ENABLED: Self = Self(705);
    /// Cannot set while device is active in this process.
    pub const PRIMARY_CONTEXT_ACTIVE: Self = Self(708);
    /// Context is destroyed.
    pub const CONTEXT_IS_DESTROYED: Self = Self(709);
    /// Device-side assert triggered.
    pub const ASSERT: Self = Self(710);
    /// Peer mapping resources exhausted.
    pub const TOO_MANY_PEERS: Self = Self(711);
    /// Part or all of the requested memory range is already mapped.
    pub const HOST_MEMORY_ALREADY_REGISTERED: Self = Self(712);
    /// Pointer does not correspond to a registered memory region.
    pub const HOST_MEMORY_NOT_REGISTERED: Self = Self(713);
    /// Hardware stack error.
    pub const HARDWARE_STACK_ERROR: Self = Self(714);
    /// An illegal instruction was encountered.
    pub const ILLEGAL_INSTRUCTION: Self = Self(715);
    /// Misaligned address.
    pub const MISALIGNED_ADDRESS: Self = Self(716);
    /// Operation not supported on global/shared address space.
    pub const INVALID_ADDRESS_SPACE: Self = Self(717);
    /// Invalid program counter.
    pub const INVALID_PC: Self = Self(718);
    /// Unspecified launch failure.
    pub const LAUNCH_FAILED: Self = Self(719);
    /// Too many blocks in cooperative launch.
    pub const COOPERATIVE_LAUNCH_TOO_LARGE: Self = Self(720);
    /// Tensor memory leak.
    pub const TENSOR_MEMORY_LEAK: Self = Self(721);
    /// Operation not permitted.
    pub const NOT_PERMITTED: Self = Self(800);
    /// Operation not supported.
    pub const NOT_SUPPORTED: Self = Self(801);
    /// System not yet initialized.
    pub const SYSTEM_NOT_READY: Self = Self(802);
    /// System has unsupported display driver / cuda driver combination.
    pub const SYSTEM_DRIVER_MISMATCH: Self = Self(803);
    /// Forward compatibility was attempted on non supported HW.
    pub const COMPAT_NOT_SUPPORTED_ON_DEVICE: Self = Self(804);
    /// MPS client failed to connect to the MPS control daemon or the MPS server.
    pub const MPS_CONNECTION_FAILED: Self = Self(805);
    /// The remote procedural call between the MPS server and the MPS client failed.
    pub const MPS_RPC_FAILURE: Self = Self(806);
    /// MPS server is not ready to accept new MPS client requests.
    pub const MPS_SERVER_NOT_READY: Self = Self(807);
    /// The hardware resources required to create MPS client have been exhausted.
    pub const MPS_MAX_CLIENTS_REACHED: Self = Self(808);
    /// The hardware resources required to support device connections have been exhausted.
    pub const MPS_MAX_CONNECTIONS_REACHED: Self = Self(809);
    /// Mps client terminated.
    pub const MPS_CLIENT_TERMINATED: Self = Self(810);
    /// Cdp not supported.
    pub const CDP_NOT_SUPPORTED: Self = Self(811);
    /// Cdp version mismatch.
    pub const CDP_VERSION_MISMATCH: Self = Self(812);
    /// Operation not permitted when stream is capturing.
    pub const STREAM_CAPTURE_UNSUPPORTED: Self = Self(900);
    /// Operation failed due to a previous error during capture.
    pub const STREAM_CAPTURE_INVALIDATED: Self = Self(901);
    /// Operation would result in a merge of separate capture sequences.
    pub const STREAM_CAPTURE_MERGE: Self = Self(902);
    /// A capture was not ended in the same stream as it began.
    pub const STREAM_CAPTURE_UNMATCHED: Self = Self(903);
    /// Capturing stream has unjoined work.
    pub const STREAM_CAPTURE_UNJOINED: Self = Self(904);
    /// Dependency created on uncaptured work in another stream.
    pub const STREAM_CAPTURE_ISOLATION: Self = Self(905);
    /// Operation would make the legacy stream depend on a capturing blocking stream.
    pub const STREAM_CAPTURE_IMPLICIT: Self = Self(906);
    /// Operation not permitted on an event last recorded in a capturing stream.
    pub const CAPTURED_EVENT: Self = Self(907);
    /// Attempt to terminate a thread-local capture sequence from another thread.
    pub const STREAM_CAPTURE_WRONG_THREAD: Self = Self(908);
    /// Wait operation timed out.
    pub const TIMEOUT: Self = Self(909);
    /// The graph update was not performed because it included changes which violated constraints specific to instantiated graph update.
    pub const GRAPH_EXEC_UPDATE_FAILURE: Self = Self(910);
    /// An async error has occured in external entity outside of CUDA.
    pub const EXTERNAL_DEVICE: Self = Self(911);
    /// Invalid cluster size.
    pub const INVALID_CLUSTER_SIZE: Self = Self(912);
    /// Function not loaded.
    pub const FUNCTION_NOT_LOADED: Self = Self(913);
    /// Invalid resource type.
    pub const INVALID_RESOURCE_TYPE: Self = Self(914);
    /// Invalid resource configuration.
    pub const INVALID_RESOURCE_CONFIGURATION: Self = Self(915);
    /// Key rotation.
    pub const KEY_ROTATION: Self = Self(916);
    /// Stream detached.
    pub const STREAM_DETACHED: Self = Self(917);
    /// Graph recapture failure.
    pub const GRAPH_RECAPTURE_FAILURE: Self = Self(918);
    /// Fabric not ready.
    pub const FABRIC_NOT_READY: Self = Self(919);
    /// Unknown error.
    pub const UNKNOWN: Self = Self(999);
}

impl CuStatus {
    /// Whether it is `CUDA_SUCCESS`.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 == 0
    }

    /// `CUDA_ERROR_...`, if the number is known.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        self.row().map(|row| row.1)
    }

    /// The driver's text for it, if the number is known.
    #[must_use]
    pub fn text(self) -> Option<&'static str> {
        self.row().map(|row| row.2)
    }

    /// Whether the error leaves the context unusable, so that every later call returns it too.
    #[must_use]
    pub const fn is_sticky(self) -> bool {
        matches!(self.0, 46 | 214 | 220 | 226 | 700 | 702 | 710 | 714..=719)
    }

    fn row(self) -> Option<&'static (u32, &'static str, &'static str)> {
        ROWS.binary_search_by_key(&self.0, |row| row.0)
            .ok()
            .and_then(|at| ROWS.get(at))
    }
}

impl std::fmt::Display for CuStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.row() {
            Some((number, name, text)) => write!(f, "{name} ({number}): {text}"),
            None => write!(f, "CUresult {}", self.0),
        }
    }
}

impl std::fmt::Debug for CuStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for CuStatus {}

/// What a driver call gives.
pub type CuResult<T = ()> = Result<T, CuStatus>;

#[cfg(test)]
mod tests {
    use super::{CuStatus, ROWS};

    #[test]
    fn rows_are_sorted_and_found() {
        assert!(ROWS.is_sorted_by_key(|row| row.0));
        assert_eq!(
            CuStatus::ILLEGAL_ADDRESS.name(),
            Some("CUDA_ERROR_ILLEGAL_ADDRESS")
        );
        assert_eq!(CuStatus(77_777).name(), None);
        assert_eq!(CuStatus(77_777).to_string(), "CUresult 77777");
    }
}
