//! Processes that use a device: none that could be named here. Those of other machines have numbers of other machines, so a
//! list of them is empty, as NVML's is for a process in a container. Fenced `unsafe`.

#![allow(non_snake_case, reason = "names of nvml.h")]

use std::ffi::c_uint;

use crate::call::{Handle, answer, known};
use crate::ptr::Out;

/// Every version of a list: the element's size does not matter where there is none.
macro_rules! empty_lists {
    ($($name:ident)*) => {$(
        /// Writes that there are no processes.
        ///
        /// # Safety
        /// `count` is null or valid for writes.
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(device: Handle, count: *mut c_uint, _list: usize) -> c_uint {
            // SAFETY: the caller's promise is the one this function asks for.
            let out = unsafe { Out::new(count) };
            answer(|| {
                known(device)?;
                out.set(0)
            })
        }
    )*};
}

// A name a line: the build script looks for them.
empty_lists! {
    nvmlDeviceGetComputeRunningProcesses
    nvmlDeviceGetComputeRunningProcesses_v2
    nvmlDeviceGetComputeRunningProcesses_v3
    nvmlDeviceGetGraphicsRunningProcesses
    nvmlDeviceGetGraphicsRunningProcesses_v2
    nvmlDeviceGetGraphicsRunningProcesses_v3
    nvmlDeviceGetMPSComputeRunningProcesses
    nvmlDeviceGetMPSComputeRunningProcesses_v2
    nvmlDeviceGetMPSComputeRunningProcesses_v3
}
