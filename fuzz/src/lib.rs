//! What each fuzz target does with its bytes. Also part of `fixtures/tests/corpus.rs`, which plays the seeds to the same
//! functions in every test run.
#![allow(
    clippy::missing_panics_doc,
    clippy::must_use_candidate,
    missing_docs,
    unreachable_pub
)]

pub mod images;
pub mod pool;

/// A target: its name, and what takes the bytes.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("frames", farcall_transport::fuzzing::frames),
    ("handshake", farcall_transport::fuzzing::handshake),
    ("planes", farcall_transport::fuzzing::planes),
    ("tls", farcall_transport::fuzzing::tls),
    ("records", records),
    ("session", farcall_gpu_exec::fuzzing::session),
    ("image_extent", images::extents),
    ("image_open", images::open),
    ("image_inspect", images::inspected),
    ("image_ptx", images::ptx),
    ("image_wire", images::wire),
    ("ptx_parse", ptx_parse),
    ("grants", pool::grants),
    ("http", pool::http),
];

/// Frames of records, as an executor or a client receives them.
pub fn records(frame: &[u8]) {
    use farcall_marshal::record::{split, with_stream};
    use farcall_marshal::wire::describe;
    let mut rest = frame;
    while let Ok((head, body, next)) = split(rest) {
        let _ = describe(head.number, head.is_reply(), body);
        let _ = with_stream(rest, 7);
        assert!(next.len() < rest.len());
        rest = next;
    }
}

/// PTX, parsed and compiled for the CPU.
pub fn ptx_parse(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = farcall_ptx::Module::parse(text);
    }
}
