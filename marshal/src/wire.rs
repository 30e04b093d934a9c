//! One type per record, generated from the catalogue: its encoder, its total decoder, the dispatcher
//! that a receiver implements, and a printer.
#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::fmt::Write as _;

use zerocopy::little_endian::{F32, I32, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::record::{
    DecodeError, Fill, Head, Record, encoded, length, open_padded, padded, put, put_padded,
    take_padded, text,
};

include!(concat!(env!("OUT_DIR"), "/records.rs"));

/// Gathers the printed fields of one record.
#[derive(Default)]
struct Line(String);

impl Line {
    fn hex(&mut self, name: &str, value: u64) {
        let _ = if value < 4096 {
            write!(self.0, " {name}={value}")
        } else {
            write!(self.0, " {name}={value:#x}")
        };
    }

    fn plain(&mut self, name: &str, value: impl std::fmt::Debug) {
        let _ = write!(self.0, " {name}={value:?}");
    }

    fn bytes(&mut self, name: &str, value: &[u8]) {
        let _ = if value.len() <= 16 {
            write!(self.0, " {name}={value:02x?}")
        } else {
            write!(self.0, " {name}=<{} bytes>", value.len())
        };
    }

    fn finish(self) -> String {
        self.0.trim_start().to_owned()
    }
}
