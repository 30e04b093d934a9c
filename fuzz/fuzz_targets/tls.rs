//! See `fuzz/src/lib.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| farcall_transport::fuzzing::tls(bytes));
