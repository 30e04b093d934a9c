//! Opening an image, selecting from it and expanding what was selected.
#![no_main]

use farcall_marshal::image::{Accepts, Image, Target, inspect, select};
use libfuzzer_sys::fuzz_target;

/// What entries may claim here, so that the fuzzer's time goes into parsing.
const EXPANDED_BYTES_MAX: usize = 4 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(image) = Image::open(bytes) else {
        return;
    };
    for entry in image.entries() {
        assert!(entry.stored_bytes() <= bytes.len());
        if entry.expanded_bytes > EXPANDED_BYTES_MAX {
            return;
        }
    }
    for accepts in [Accepts::PtxOnly, Accepts::Native, Accepts::Any] {
        for sm in [75, 90, 120] {
            if let Ok(selected) = select(&image, &Target { sm, accepts }) {
                assert!(selected.index < image.entries().len());
                let _any = inspect(&selected.bytes);
            }
        }
    }
});
