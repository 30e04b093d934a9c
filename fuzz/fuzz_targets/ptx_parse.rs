//! PTX, parsed and compiled for the CPU.
#![no_main]

use farcall_ptx::Module;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Module::parse(text);
});
