//! Reading cubins and PTX.
#![no_main]

use farcall_marshal::image::inspect;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(module) = inspect(bytes) else {
        return;
    };
    for kernel in &module.kernels {
        let mut end = 0;
        for param in &kernel.params {
            assert!(param.offset_bytes >= end);
            end = param.offset_bytes + param.size_bytes;
        }
        assert!(end <= kernel.param_bytes);
    }
});
