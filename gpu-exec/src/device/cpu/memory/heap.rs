//! Memory that kernels allocate themselves (`malloc` of device code). It is taken from the session in chunks, which stay: what a kernel has
//! released is only given to the next that asks.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use parking_lot::Mutex;

use super::{Block, BlockKind, Memory};

/// A session takes at least so much at a time.
const CHUNK_BYTES: u64 = 1 << 20;
/// Allocations are aligned for every type, as CUDA says.
const GRAIN: u64 = 16;

/// The heap of a session.
#[derive(Debug, Default)]
pub(super) struct Heap(Mutex<Pieces>);

/// Starts and sizes. Free pieces of a chunk that touch are one.
#[derive(Debug, Default)]
struct Pieces {
    free: BTreeMap<u64, u64>,
    used: BTreeMap<u64, u64>,
}

impl Pieces {
    /// The first free piece that is large enough, or its beginning.
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let found = self.free.iter().find(|(_, free)| **free >= bytes);
        let (&start, &free) = found?;
        self.free.remove(&start);
        if free > bytes {
            self.free.insert(start + bytes, free - bytes);
        }
        self.used.insert(start, bytes);
        Some(start)
    }

    fn give(&mut self, start: u64) -> bool {
        let Some(mut bytes) = self.used.remove(&start) else {
            return false;
        };
        let mut start = start;
        if let Some(behind) = self.free.remove(&(start + bytes)) {
            bytes += behind;
        }
        if let Some((&before, &free)) = self.free.range(..start).next_back()
            && before + free == start
        {
            self.free.remove(&before);
            (start, bytes) = (before, free + bytes);
        }
        self.free.insert(start, bytes);
        true
    }
}

impl Memory {
    /// Memory for a kernel; none where the session has no more.
    pub(super) fn allocate_on_heap(&self, bytes: u64) -> Option<u64> {
        let bytes = bytes.max(1).checked_next_multiple_of(GRAIN)?;
        let mut pieces = self.heap.0.lock();
        if let Some(start) = pieces.take(bytes) {
            return Some(start);
        }
        let chunk = Block {
            bytes: bytes.max(CHUNK_BYTES),
            kind: BlockKind::Global,
            // It outlives contexts, and all CPU devices are one memory.
            context: 0,
            device: 0,
            readable: true,
            writable: true,
        };
        let start = self.place(chunk, GRAIN).ok()?;
        pieces.free.insert(start, chunk.bytes);
        pieces.take(bytes)
    }

    /// Takes back what a kernel releases. False: nothing was allocated there.
    pub(super) fn release_on_heap(&self, addr: u64) -> bool {
        self.heap.0.lock().give(addr)
    }
}

#[cfg(test)]
mod tests {
    use super::Pieces;

    #[test]
    fn released_neighbours_are_one_again() {
        let mut pieces = Pieces::default();
        pieces.free.insert(0x1000, 96);
        let starts: Vec<u64> = (0..3).filter_map(|_| pieces.take(32)).collect();
        assert_eq!(starts, [0x1000, 0x1020, 0x1040]);
        assert_eq!(pieces.take(16), None);
        assert!(pieces.give(0x1000) && pieces.give(0x1040) && pieces.give(0x1020));
        assert!(!pieces.give(0x1020), "it is free already");
        assert_eq!(pieces.take(96), Some(0x1000));
    }
}
