//! Frames of records, as an executor or a client receives them.
#![no_main]

use farcall_marshal::record::{split, with_stream};
use farcall_marshal::wire::describe;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    let mut rest = frame;
    while let Ok((head, body, next)) = split(rest) {
        let _ = describe(head.number, head.is_reply(), body);
        let _ = with_stream(rest, 7);
        assert!(next.len() < rest.len());
        rest = next;
    }
});
