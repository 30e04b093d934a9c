//! The exported functions of the built `libcuda.so.1`, called as a program calls them.
//!
//! Fenced `unsafe`: C functions looked up by name, with the signatures of cuda.h, and the environment that the
//! library reads.

use std::ffi::{CString, c_char, c_void};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::ptr::null_mut;

use farcall_fixtures::{gpu, paths};
use libloading::Library;

use crate::net::Transport;

/// `CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT`.
const MULTIPROCESSOR_COUNT: u32 = 16;
/// `CU_POINTER_ATTRIBUTE_MEMORY_TYPE`.
const MEMORY_TYPE: u32 = 2;
/// Elements of the vectors that the kernel is given.
const ELEMENTS: u32 = 256;

type LaunchKernel = unsafe extern "C" fn(
    u64,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    u32,
    u64,
    *mut *mut c_void,
    *mut *mut c_void,
) -> u32;

/// A process's device 0 with a kernel of four parameters (`vecadd`) ready to be launched.
///
/// Every call panics if the driver gives an error: a figure of failing calls is none.
#[derive(Debug)]
pub struct Driver {
    context_device: unsafe extern "C" fn(*mut i32) -> u32,
    device_attribute: unsafe extern "C" fn(*mut i32, u32, i32) -> u32,
    pointer_attribute: unsafe extern "C" fn(*mut c_void, u32, u64) -> u32,
    launch_kernel: LaunchKernel,
    synchronize: unsafe extern "C" fn() -> u32,
    copy_to_host: unsafe extern "C" fn(*mut c_void, u64, usize) -> u32,
    function: u64,
    memory: u64,
    /// Kept open: the functions live in it.
    _library: Library,
}

impl Driver {
    /// Loads the library, which connects to `server` over that transport. A process has one server: the first call
    /// decides.
    ///
    /// # Panics
    /// If the library has not been built, or the server cannot be used.
    #[must_use]
    pub fn open(server: SocketAddr, transport: Transport) -> Self {
        let vars = [
            ("FARCALL_SERVER", server.to_string()),
            ("FARCALL_TRANSPORT", transport.name().to_owned()),
        ];
        for (name, value) in vars {
            // SAFETY: the threads that this crate starts before it opens the driver (those that collect a child's
            // output) never look at the environment, and the standard library guards its own accesses.
            unsafe { std::env::set_var(name, value) };
        }
        let path = library_path();
        // SAFETY: the library of this project: its constructor reads the environment and nothing else.
        let library =
            unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (function, memory) = prepare(&library);
        Self {
            context_device: symbol(&library, "cuCtxGetDevice"),
            device_attribute: symbol(&library, "cuDeviceGetAttribute"),
            pointer_attribute: symbol(&library, "cuPointerGetAttribute"),
            launch_kernel: symbol(&library, "cuLaunchKernel"),
            synchronize: symbol(&library, "cuCtxSynchronize"),
            copy_to_host: symbol(&library, "cuMemcpyDtoH_v2"),
            function,
            memory,
            _library: library,
        }
    }

    /// `cuCtxGetDevice`.
    #[inline]
    pub fn context_device(&self) -> i32 {
        let mut device = -1;
        // SAFETY: the signature of cuda.h; `device` is a place for the result.
        check("cuCtxGetDevice", unsafe {
            (self.context_device)(&raw mut device)
        });
        device
    }

    /// `cuDeviceGetAttribute` of the number of multiprocessors.
    #[inline]
    pub fn device_attribute(&self) -> i32 {
        let mut value = -1;
        // SAFETY: the signature of cuda.h; `value` is a place for the result.
        let status = unsafe { (self.device_attribute)(&raw mut value, MULTIPROCESSOR_COUNT, 0) };
        check("cuDeviceGetAttribute", status);
        value
    }

    /// `cuPointerGetAttribute` of the kind of memory (2 = device).
    #[inline]
    pub fn pointer_attribute(&self) -> u32 {
        let mut kind = 0_u32;
        let place = (&raw mut kind).cast();
        // SAFETY: the signature of cuda.h; this attribute has four bytes, which `kind` is.
        let status = unsafe { (self.pointer_attribute)(place, MEMORY_TYPE, self.memory) };
        check("cuPointerGetAttribute", status);
        kind
    }

    /// `cuLaunchKernel` with four parameters. Returns before the kernel has run.
    #[inline]
    pub fn launch(&self) {
        let mut vector = self.memory;
        let mut count = ELEMENTS;
        let at: *mut c_void = (&raw mut vector).cast();
        let mut params = [at, at, at, (&raw mut count).cast()];
        // SAFETY: the signature of cuda.h; `params` points to three device pointers and an int, as the kernel
        // has it, which live until the call returns; vectors and grid have as many elements.
        let status = unsafe {
            (self.launch_kernel)(
                self.function,
                1,
                1,
                1,
                ELEMENTS,
                1,
                1,
                0,
                0,
                params.as_mut_ptr(),
                null_mut(),
            )
        };
        check("cuLaunchKernel", status);
    }

    /// `cuCtxSynchronize`. Waits.
    #[inline]
    pub fn synchronize(&self) {
        // SAFETY: the signature of cuda.h, which has no arguments.
        check("cuCtxSynchronize", unsafe { (self.synchronize)() });
    }

    /// `cuMemcpyDtoH` of eight bytes. Waits.
    #[inline]
    pub fn copy_to_host(&self) -> u64 {
        let mut value = 1_u64;
        let place = (&raw mut value).cast();
        // SAFETY: the signature of cuda.h; `value` has eight bytes, and so has the device memory.
        check("cuMemcpyDtoH_v2", unsafe {
            (self.copy_to_host)(place, self.memory, 8)
        });
        value
    }
}

/// The library that was built with this program; for benches, which lie elsewhere, that beside the command.
fn library_path() -> PathBuf {
    let own = std::env::current_exe().expect("the path of this program");
    let beside = own.with_file_name("libcuda.so");
    if beside.exists() {
        beside
    } else {
        paths::farcall().with_file_name("libcuda.so")
    }
}

/// Device 0, its primary context, the kernel, memory. Returns function and memory.
fn prepare(library: &Library) -> (u64, u64) {
    let init: unsafe extern "C" fn(u32) -> u32 = symbol(library, "cuInit");
    let retain: unsafe extern "C" fn(*mut u64, i32) -> u32 =
        symbol(library, "cuDevicePrimaryCtxRetain");
    let set_current: unsafe extern "C" fn(u64) -> u32 = symbol(library, "cuCtxSetCurrent");
    let load: unsafe extern "C" fn(*mut u64, *const c_void) -> u32 =
        symbol(library, "cuModuleLoadData");
    let get: unsafe extern "C" fn(*mut u64, u64, *const c_char) -> u32 =
        symbol(library, "cuModuleGetFunction");
    let alloc: unsafe extern "C" fn(*mut u64, usize) -> u32 = symbol(library, "cuMemAlloc_v2");
    let image = CString::new(gpu::PTX).expect("text without NUL");
    let (mut context, mut module, mut function, mut memory) = (0, 0, 0, 0);
    // SAFETY: the signature of cuda.h.
    check("cuInit", unsafe { init(0) });
    // SAFETY: the signature of cuda.h; `context` is a place for the result.
    check("cuDevicePrimaryCtxRetain", unsafe {
        retain(&raw mut context, 0)
    });
    // SAFETY: the signature of cuda.h; the context is the one just made.
    check("cuCtxSetCurrent", unsafe { set_current(context) });
    // SAFETY: the signature of cuda.h; PTX text that ends with NUL.
    check("cuModuleLoadData", unsafe {
        load(&raw mut module, image.as_ptr().cast())
    });
    // SAFETY: the signature of cuda.h; a name that ends with NUL.
    check("cuModuleGetFunction", unsafe {
        get(&raw mut function, module, c"vecadd".as_ptr())
    });
    // SAFETY: the signature of cuda.h; `memory` is a place for the result.
    check("cuMemAlloc_v2", unsafe {
        alloc(&raw mut memory, ELEMENTS as usize * size_of::<f32>())
    });
    (function, memory)
}

fn symbol<F: Copy>(library: &Library, name: &str) -> F {
    // SAFETY: every caller names a function of cuda.h and the type that cuda.h declares it with.
    let found = unsafe { library.get::<F>(name) };
    *found.unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[inline]
fn check(call: &str, status: u32) {
    assert!(status == 0, "{call} gives CUDA error {status}");
}
