//! The limit of a large copy through shared memory: one `memcpy`.
#![forbid(unsafe_code)]

use std::hint::black_box;

use crate::net::{Lost, Trip};

/// Copies from one buffer to another, both of which have been touched before.
#[derive(Debug)]
pub struct MemCopy {
    source: Vec<u8>,
    dest: Vec<u8>,
}

impl MemCopy {
    /// Of `bytes` bytes.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        Self {
            source: vec![1; bytes],
            dest: vec![2; bytes],
        }
    }
}

impl Trip for MemCopy {
    fn trip(&mut self) -> Result<(), Lost> {
        self.dest.copy_from_slice(black_box(&self.source));
        black_box(&mut self.dest);
        Ok(())
    }
}
