//! libibverbs, loaded at run time: a program on a machine without RDMA needs no library.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use super::abi;
use crate::stream::verbs::error::VerbsError;

macro_rules! library {
    ($($name:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions of libibverbs that are no inline functions of its header.
        pub(crate) struct Library {
            $(pub(crate) $name: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Library {
            fn resolve(handle: *mut c_void) -> Result<Self, VerbsError> {
                Ok(Self {
                    $($name: {
                        const NAME: &CStr = match CStr::from_bytes_with_nul(
                            concat!(stringify!($name), "\0").as_bytes(),
                        ) {
                            Ok(name) => name,
                            Err(_) => panic!("a name without NUL"),
                        };
                        let symbol = symbol(handle, NAME).ok_or(VerbsError::Symbol(stringify!($name)))?;
                        // SAFETY: the versioned symbol has this C signature: it is the
                        // library's ABI, which a version name never changes.
                        unsafe {
                            std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?>(symbol)
                        }
                    },)*
                })
            }
        }
    };
}

library! {
    ibv_fork_init: fn() -> c_int;
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut abi::DeviceEntry;
    ibv_free_device_list: fn(*mut *mut abi::DeviceEntry);
    ibv_get_device_name: fn(*mut abi::DeviceEntry) -> *const c_char;
    ibv_open_device: fn(*mut abi::DeviceEntry) -> *mut abi::Context;
    ibv_close_device: fn(*mut abi::Context) -> c_int;
    ibv_query_device: fn(*mut abi::Context, *mut abi::DeviceAttributes) -> c_int;
    ibv_query_port: fn(*mut abi::Context, u8, *mut abi::PortAttributes) -> c_int;
    ibv_get_async_event: fn(*mut abi::Context, *mut abi::AsyncEvent) -> c_int;
    ibv_ack_async_event: fn(*mut abi::AsyncEvent);
    ibv_alloc_pd: fn(*mut abi::Context) -> *mut abi::ProtectionDomain;
    ibv_dealloc_pd: fn(*mut abi::ProtectionDomain) -> c_int;
    ibv_reg_mr: fn(*mut abi::ProtectionDomain, *mut c_void, usize, c_int) -> *mut abi::MemoryRegion;
    ibv_dereg_mr: fn(*mut abi::MemoryRegion) -> c_int;
    ibv_create_comp_channel: fn(*mut abi::Context) -> *mut abi::CompletionChannel;
    ibv_destroy_comp_channel: fn(*mut abi::CompletionChannel) -> c_int;
    ibv_create_cq: fn(*mut abi::Context, c_int, *mut c_void, *mut abi::CompletionChannel, c_int) -> *mut abi::CompletionQueue;
    ibv_destroy_cq: fn(*mut abi::CompletionQueue) -> c_int;
    ibv_get_cq_event: fn(*mut abi::CompletionChannel, *mut *mut abi::CompletionQueue, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut abi::CompletionQueue, c_uint);
    ibv_create_qp: fn(*mut abi::ProtectionDomain, *mut abi::QueueInit) -> *mut abi::QueuePair;
    ibv_modify_qp: fn(*mut abi::QueuePair, *mut abi::QueueAttributes, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut abi::QueuePair) -> c_int;
}

impl Library {
    /// The library of this process, loaded on first use and never unloaded.
    ///
    /// Blocks on the file system the first time.
    ///
    /// # Errors
    /// [`VerbsError::Library`] or [`VerbsError::Symbol`], the same on every call.
    pub(crate) fn get() -> Result<&'static Self, VerbsError> {
        static LIBRARY: OnceLock<Result<Library, VerbsError>> = OnceLock::new();
        LIBRARY
            .get_or_init(|| load(c"libibverbs.so.1"))
            .as_ref()
            .map_err(Clone::clone)
    }
}

fn load(name: &CStr) -> Result<Library, VerbsError> {
    // SAFETY: a C string; loading runs the library's own initialisers only.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        return Err(VerbsError::Library(dl_error()));
    }
    let library = Library::resolve(handle)?;
    // On kernels before 5.12 a fork would take pinned pages away from the parent. Newer ones need
    // nothing and say so with an error.
    // SAFETY: no arguments; nothing was registered before, as this is the first use.
    unsafe { (library.ibv_fork_init)() };
    Ok(library)
}

fn symbol(handle: *mut c_void, name: &CStr) -> Option<*mut c_void> {
    // IBVERBS_1.1 holds everything but the completion channel, whose ABI is as old as the library.
    [c"IBVERBS_1.1", c"IBVERBS_1.0"]
        .into_iter()
        .find_map(|version| {
            // SAFETY: a handle from dlopen that is never closed, and C strings.
            let symbol = unsafe { libc::dlvsym(handle, name.as_ptr(), version.as_ptr()) };
            (!symbol.is_null()).then_some(symbol)
        })
}

fn dl_error() -> String {
    // SAFETY: no arguments; the text is the calling thread's.
    let text = unsafe { libc::dlerror() };
    if text.is_null() {
        return "unknown error".to_owned();
    }
    // SAFETY: a C string that lives until this thread's next dl* call.
    unsafe { CStr::from_ptr(text) }
        .to_string_lossy()
        .into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_the_library_is_told_what_is_missing() {
        let error = load(c"libfarcall-absent.so.1").err();
        let Some(VerbsError::Library(text)) = &error else {
            panic!("{error:?}");
        };
        assert!(text.contains("libfarcall-absent.so.1"), "{text}");
        let shown = error.map(|error| error.to_string()).unwrap_or_default();
        assert!(shown.contains("apt-get install libibverbs1"), "{shown}");
    }

    #[test]
    fn a_library_without_the_functions_is_no_verbs_library() {
        let error = load(c"libc.so.6").err();
        assert_eq!(error, Some(VerbsError::Symbol("ibv_fork_init")));
    }
}
