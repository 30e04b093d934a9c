//! Structures of cuda.h that programs pass by pointer, as they lie in memory.
//!
//! Layouts: cuda.h 13 (sizes asserted). A field that is an enumeration is `u32`, a pointer is `u64`.
#![forbid(unsafe_code)]
#![allow(non_camel_case_types, non_snake_case)]

/// `CUuuid`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUuuid {
    pub(crate) bytes: [u8; 16],
}

/// `CUdevprop`, of the deprecated `cuDeviceGetProperties`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUdevprop {
    pub(crate) maxThreadsPerBlock: i32,
    pub(crate) maxThreadsDim: [i32; 3],
    pub(crate) maxGridSize: [i32; 3],
    pub(crate) sharedMemPerBlock: i32,
    pub(crate) totalConstantMemory: i32,
    pub(crate) SIMDWidth: i32,
    pub(crate) memPitch: i32,
    pub(crate) regsPerBlock: i32,
    pub(crate) clockRate: i32,
    pub(crate) textureAlign: i32,
}

/// One entry of a launch configuration's attributes (`CUlaunchAttribute`).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUlaunchAttribute {
    pub(crate) id: u32,
    pub(crate) pad: u32,
    pub(crate) value: [u8; 64],
}

/// `CUlaunchConfig`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUlaunchConfig {
    pub(crate) gridDim: [u32; 3],
    pub(crate) blockDim: [u32; 3],
    pub(crate) sharedMemBytes: u32,
    pub(crate) hStream: u64,
    pub(crate) attrs: u64,
    pub(crate) numAttrs: u32,
}

/// `CUexecAffinityParam`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUexecAffinityParam {
    pub(crate) type_: u32,
    pub(crate) value: u32,
}

/// `CUctxCreateParams`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUctxCreateParams {
    pub(crate) execAffinityParams: u64,
    pub(crate) numExecAffinityParams: i32,
    pub(crate) cigParams: u64,
}

/// `CUgraphEdgeData`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUgraphEdgeData {
    pub(crate) from_port: u8,
    pub(crate) to_port: u8,
    pub(crate) type_: u8,
    pub(crate) reserved: [u8; 5],
}

/// `CUDA_GRAPH_INSTANTIATE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_GRAPH_INSTANTIATE_PARAMS {
    pub(crate) flags: u64,
    pub(crate) hUploadStream: u64,
    pub(crate) hErrNode_out: u64,
    pub(crate) result_out: u32,
}

/// `CUmemLocation`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemLocation {
    pub(crate) type_: u32,
    pub(crate) id: i32,
}

/// `CUmemAccessDesc`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemAccessDesc {
    pub(crate) location: CUmemLocation,
    pub(crate) flags: u32,
}

/// `CUmemAllocationProp`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemAllocationProp {
    pub(crate) type_: u32,
    pub(crate) requestedHandleTypes: u32,
    pub(crate) location: CUmemLocation,
    pub(crate) win32HandleMetaData: u64,
    pub(crate) allocFlags: [u8; 8],
}

/// `CUmemPoolProps`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemPoolProps {
    pub(crate) allocType: u32,
    pub(crate) handleTypes: u32,
    pub(crate) location: CUmemLocation,
    pub(crate) win32SecurityAttributes: u64,
    pub(crate) maxSize: usize,
    pub(crate) usage: u16,
    pub(crate) reserved: [u8; 54],
}

const _: () = assert!(size_of::<CUlaunchAttribute>() == 72);
const _: () = assert!(size_of::<CUlaunchConfig>() == 56);
const _: () = assert!(size_of::<CUDA_GRAPH_INSTANTIATE_PARAMS>() == 32);
const _: () = assert!(size_of::<CUmemPoolProps>() == 88);
const _: () = assert!(size_of::<CUmemAllocationProp>() == 32);
const _: () = assert!(size_of::<CUdevprop>() == 56);
