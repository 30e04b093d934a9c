//! Images as they are sent: from anyone, and from ourselves.
#![no_main]

use farcall_marshal::image::{compress_for_wire, expand_from_wire};
use libfuzzer_sys::fuzz_target;

const BYTES_MAX: usize = 4 << 20;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(expanded) = expand_from_wire(bytes, BYTES_MAX) {
        assert!(expanded.len() <= BYTES_MAX);
    }
    let wire = compress_for_wire(bytes);
    assert_eq!(expand_from_wire(&wire, bytes.len()).as_deref(), Ok(bytes));
});
