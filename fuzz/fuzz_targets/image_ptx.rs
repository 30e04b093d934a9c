//! Reading PTX whose header is valid, which a fuzzer would take long to find.
#![no_main]

use farcall_marshal::image::inspect;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &[u8]| {
    let _any = inspect(&[b".version 8.0\n.target sm_80\n", text].concat());
});
