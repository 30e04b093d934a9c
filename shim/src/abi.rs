//! Structures of cuda.h that programs pass by pointer, as they lie in memory.
//!
//! Layouts: cuda.h 13 (sizes asserted). A field that is an enumeration is `u32`, a pointer is `u64`.
#![forbid(unsafe_code)]
#![allow(non_camel_case_types, non_snake_case)]

use farcall_marshal::status::{CuResult, CuStatus};

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

impl CUgraphEdgeData {
    pub(crate) fn of(bytes: [u8; 8]) -> Self {
        let [from_port, to_port, type_, reserved @ ..] = bytes;
        Self {
            from_port,
            to_port,
            type_,
            reserved,
        }
    }

    /// As bytes; `INVALID_VALUE` if reserved ones are not zero or the type is unknown.
    pub(crate) fn checked(self) -> CuResult<[u8; 8]> {
        let is_known = self.type_ <= 1 && self.reserved == [0; 5];
        if !is_known {
            return Err(CuStatus::INVALID_VALUE);
        }
        Ok([self.from_port, self.to_port, self.type_, 0, 0, 0, 0, 0])
    }
}

/// `CUgraphExecUpdateResultInfo`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUgraphExecUpdateResultInfo {
    pub(crate) result: u32,
    pub(crate) errorNode: u64,
    pub(crate) errorFromNode: u64,
}

/// `CUDA_KERNEL_NODE_PARAMS` since CUDA 12.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_KERNEL_NODE_PARAMS {
    pub(crate) func: u64,
    pub(crate) gridDim: [u32; 3],
    pub(crate) blockDim: [u32; 3],
    pub(crate) sharedMemBytes: u32,
    pub(crate) kernelParams: u64,
    pub(crate) extra: u64,
    pub(crate) kern: u64,
    pub(crate) ctx: u64,
}

/// The same as programs for CUDA 11 have it.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_KERNEL_NODE_PARAMS_v1 {
    pub(crate) func: u64,
    pub(crate) gridDim: [u32; 3],
    pub(crate) blockDim: [u32; 3],
    pub(crate) sharedMemBytes: u32,
    pub(crate) kernelParams: u64,
    pub(crate) extra: u64,
}

impl CUDA_KERNEL_NODE_PARAMS_v1 {
    pub(crate) fn widened(&self) -> CUDA_KERNEL_NODE_PARAMS {
        CUDA_KERNEL_NODE_PARAMS {
            func: self.func,
            gridDim: self.gridDim,
            blockDim: self.blockDim,
            sharedMemBytes: self.sharedMemBytes,
            kernelParams: self.kernelParams,
            extra: self.extra,
            kern: 0,
            ctx: 0,
        }
    }
}

impl CUDA_KERNEL_NODE_PARAMS {
    pub(crate) fn narrowed(&self) -> CUDA_KERNEL_NODE_PARAMS_v1 {
        CUDA_KERNEL_NODE_PARAMS_v1 {
            func: self.func,
            gridDim: self.gridDim,
            blockDim: self.blockDim,
            sharedMemBytes: self.sharedMemBytes,
            kernelParams: self.kernelParams,
            extra: self.extra,
        }
    }
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_MEMSET_NODE_PARAMS {
    pub(crate) dst: u64,
    pub(crate) pitch: usize,
    pub(crate) value: u32,
    pub(crate) elementSize: u32,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_HOST_NODE_PARAMS {
    pub(crate) function: u64,
    pub(crate) userData: u64,
}

/// `CUDA_MEM_ALLOC_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_MEM_ALLOC_NODE_PARAMS {
    pub(crate) poolProps: CUmemPoolProps,
    pub(crate) accessDescs: u64,
    pub(crate) accessDescCount: usize,
    pub(crate) bytesize: usize,
    pub(crate) dptr: u64,
}

impl CUDA_MEM_ALLOC_NODE_PARAMS {
    /// Pinned memory of a device.
    pub(crate) fn on_device(ordinal: u32, bytesize: usize, dptr: u64) -> Self {
        Self {
            poolProps: CUmemPoolProps {
                allocType: 1,
                handleTypes: 0,
                location: CUmemLocation {
                    type_: 1,
                    id: ordinal.cast_signed(),
                },
                win32SecurityAttributes: 0,
                maxSize: 0,
                usage: 0,
                reserved: [0; 54],
            },
            accessDescs: 0,
            accessDescCount: 0,
            bytesize,
            dptr,
        }
    }
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_MEMCPY2D {
    pub(crate) srcXInBytes: usize,
    pub(crate) srcY: usize,
    pub(crate) srcMemoryType: u32,
    pub(crate) srcHost: u64,
    pub(crate) srcDevice: u64,
    pub(crate) srcArray: u64,
    pub(crate) srcPitch: usize,
    pub(crate) dstXInBytes: usize,
    pub(crate) dstY: usize,
    pub(crate) dstMemoryType: u32,
    pub(crate) dstHost: u64,
    pub(crate) dstDevice: u64,
    pub(crate) dstArray: u64,
    pub(crate) dstPitch: usize,
    pub(crate) WidthInBytes: usize,
    pub(crate) Height: usize,
}

impl CUDA_MEMCPY2D {
    /// The same as a box of one slice.
    pub(crate) fn as_box(&self) -> CUDA_MEMCPY3D {
        CUDA_MEMCPY3D {
            srcXInBytes: self.srcXInBytes,
            srcY: self.srcY,
            srcMemoryType: self.srcMemoryType,
            srcHost: self.srcHost,
            srcDevice: self.srcDevice,
            srcArray: self.srcArray,
            srcPitch: self.srcPitch,
            dstXInBytes: self.dstXInBytes,
            dstY: self.dstY,
            dstMemoryType: self.dstMemoryType,
            dstHost: self.dstHost,
            dstDevice: self.dstDevice,
            dstArray: self.dstArray,
            dstPitch: self.dstPitch,
            WidthInBytes: self.WidthInBytes,
            Height: self.Height,
            Depth: 1,
            ..CUDA_MEMCPY3D::default()
        }
    }
}

/// `CUDA_MEMCPY3D`, and `CUDA_MEMCPY3D_PEER`, which has contexts in the place of what is reserved.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct CUDA_MEMCPY3D {
    pub(crate) srcXInBytes: usize,
    pub(crate) srcY: usize,
    pub(crate) srcZ: usize,
    pub(crate) srcLOD: usize,
    pub(crate) srcMemoryType: u32,
    pub(crate) srcHost: u64,
    pub(crate) srcDevice: u64,
    pub(crate) srcArray: u64,
    pub(crate) reserved0: u64,
    pub(crate) srcPitch: usize,
    pub(crate) srcHeight: usize,
    pub(crate) dstXInBytes: usize,
    pub(crate) dstY: usize,
    pub(crate) dstZ: usize,
    pub(crate) dstLOD: usize,
    pub(crate) dstMemoryType: u32,
    pub(crate) dstHost: u64,
    pub(crate) dstDevice: u64,
    pub(crate) dstArray: u64,
    pub(crate) reserved1: u64,
    pub(crate) dstPitch: usize,
    pub(crate) dstHeight: usize,
    pub(crate) WidthInBytes: usize,
    pub(crate) Height: usize,
    pub(crate) Depth: usize,
}

/// `CUmemcpyAttributes`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemcpyAttributes {
    pub(crate) srcAccessOrder: u32,
    pub(crate) srcLocHint: CUmemLocation,
    pub(crate) dstLocHint: CUmemLocation,
    pub(crate) flags: u32,
}

/// `CUmemcpy3DOperand`: a pointer (address, row length, layer height, location) or an array (handle, offset).
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUmemcpy3DOperand {
    pub(crate) type_: u32,
    pub(crate) words: [u64; 4],
}

impl CUmemcpy3DOperand {
    pub(crate) const POINTER: u32 = 1;
    pub(crate) const ARRAY: u32 = 2;
}

/// `CUDA_MEMCPY3D_BATCH_OP`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_MEMCPY3D_BATCH_OP {
    pub(crate) src: CUmemcpy3DOperand,
    pub(crate) dst: CUmemcpy3DOperand,
    pub(crate) extent: [usize; 3],
    pub(crate) srcAccessOrder: u32,
    pub(crate) flags: u32,
}

/// `CUDA_ARRAY_DESCRIPTOR`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_ARRAY_DESCRIPTOR {
    pub(crate) Width: usize,
    pub(crate) Height: usize,
    pub(crate) Format: u32,
    pub(crate) NumChannels: u32,
}

/// `CUDA_ARRAY3D_DESCRIPTOR`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_ARRAY3D_DESCRIPTOR {
    pub(crate) Width: usize,
    pub(crate) Height: usize,
    pub(crate) Depth: usize,
    pub(crate) Format: u32,
    pub(crate) NumChannels: u32,
    pub(crate) Flags: u32,
}

/// `CUDA_RESOURCE_DESC`. What `res` holds follows from the type: an array's handle; or address, format and channels in a
/// word, and size in bytes (linear) or width, height and pitch.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_RESOURCE_DESC {
    pub(crate) resType: u32,
    pub(crate) res: [u64; 16],
    pub(crate) flags: u32,
}

/// `CUDA_TEXTURE_DESC`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_TEXTURE_DESC {
    pub(crate) addressMode: [u32; 3],
    pub(crate) filterMode: u32,
    pub(crate) flags: u32,
    pub(crate) maxAnisotropy: u32,
    pub(crate) mipmapFilterMode: u32,
    pub(crate) mipmapLevelBias: f32,
    pub(crate) minMipmapLevelClamp: f32,
    pub(crate) maxMipmapLevelClamp: f32,
    pub(crate) borderColor: [f32; 4],
    pub(crate) reserved: [i32; 12],
}

/// `CUDA_RESOURCE_VIEW_DESC`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_RESOURCE_VIEW_DESC {
    pub(crate) format: u32,
    pub(crate) width: usize,
    pub(crate) height: usize,
    pub(crate) depth: usize,
    pub(crate) firstMipmapLevel: u32,
    pub(crate) lastMipmapLevel: u32,
    pub(crate) firstLayer: u32,
    pub(crate) lastLayer: u32,
    pub(crate) reserved: [u32; 16],
}

/// `CUDA_ARRAY_MEMORY_REQUIREMENTS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CUDA_ARRAY_MEMORY_REQUIREMENTS {
    pub(crate) size: usize,
    pub(crate) alignment: usize,
    pub(crate) reserved: [u32; 4],
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
const _: () = assert!(size_of::<CUDA_KERNEL_NODE_PARAMS>() == 72);
const _: () = assert!(size_of::<CUDA_KERNEL_NODE_PARAMS_v1>() == 56);
const _: () = assert!(size_of::<CUDA_MEMSET_NODE_PARAMS>() == 40);
const _: () = assert!(size_of::<CUDA_MEM_ALLOC_NODE_PARAMS>() == 120);
const _: () = assert!(size_of::<CUDA_MEMCPY2D>() == 128);
const _: () = assert!(size_of::<CUDA_MEMCPY3D>() == 200);
const _: () = assert!(size_of::<CUmemcpyAttributes>() == 24);
const _: () = assert!(size_of::<CUDA_MEMCPY3D_BATCH_OP>() == 112);
const _: () = assert!(size_of::<CUDA_ARRAY3D_DESCRIPTOR>() == 40);
const _: () = assert!(size_of::<CUgraphExecUpdateResultInfo>() == 24);
const _: () = assert!(size_of::<CUDA_RESOURCE_DESC>() == 144);
const _: () = assert!(size_of::<CUDA_TEXTURE_DESC>() == 104);
const _: () = assert!(size_of::<CUDA_RESOURCE_VIEW_DESC>() == 112);
const _: () = assert!(size_of::<CUdevprop>() == 56);
