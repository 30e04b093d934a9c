//! Asking for an image's length makes progress, ends, and does not change its mind.
#![no_main]

use farcall_marshal::image::{Extent, IMAGE_BYTES_MAX, extent};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|memory: &[u8]| {
    let mut wanted = 4.min(memory.len());
    loop {
        match extent(&memory[..wanted]) {
            Ok(Extent::NeedMore(more)) => {
                assert!(more > wanted && more <= IMAGE_BYTES_MAX);
                if more > memory.len() {
                    return;
                }
                wanted = more;
            }
            known => {
                assert_eq!(extent(memory).is_ok(), known.is_ok());
                if let (Ok(Extent::Total(total)), Ok(Extent::Total(again))) =
                    (known, extent(memory))
                {
                    assert_eq!(total, again);
                }
                return;
            }
        }
    }
});
