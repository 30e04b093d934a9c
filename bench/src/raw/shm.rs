//! The limit of a round trip through shared memory: two threads that spin on a sequence number each, and copy the
//! bytes.
//!
//! Fenced `unsafe`: bytes that belong to one thread at a time.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::Far;
use crate::net::{Lost, Trip};

/// One direction.
#[repr(align(128))]
struct Slot {
    /// How many messages have been written here.
    turn: AtomicU64,
    bytes: Bytes,
}

/// A message on cache lines of its own.
#[repr(align(128))]
struct Bytes(UnsafeCell<Box<[u8]>>);

// SAFETY: the bytes are used by one thread at a time: the writer until it raises `turn`, the reader after it has
// seen that, until it answers by raising the other slot's `turn`, which the writer waits for. `Slot` and its two
// methods are private to this module, and `PingPong` alone calls them in that order.
unsafe impl Sync for Bytes {}

impl Slot {
    fn new(bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            turn: AtomicU64::new(0),
            bytes: Bytes(UnsafeCell::new(vec![0; bytes].into())),
        })
    }

    /// Writes message number `turn`.
    fn write(&self, turn: u64, from: &[u8]) {
        // SAFETY: the reader of the message before has answered it (see `Bytes`), so this thread has the bytes.
        let bytes = unsafe { &mut *self.bytes.0.get() };
        bytes.copy_from_slice(from);
        // SYNC: Release pairs with the Acquire in `read`.
        self.turn.store(turn, Ordering::Release);
    }

    /// Waits for message number `turn` and copies it out; false if `plays` became false instead.
    fn read(&self, turn: u64, to: &mut [u8], plays: Option<&AtomicBool>) -> bool {
        // SYNC: Acquire pairs with the Release in `write`.
        while self.turn.load(Ordering::Acquire) != turn {
            if plays.is_some_and(|plays| !plays.load(Ordering::Relaxed)) {
                return false;
            }
            std::hint::spin_loop();
        }
        // SAFETY: the writer has raised `turn` and waits for the answer (see `Bytes`).
        let bytes = unsafe { &*self.bytes.0.get() };
        to.copy_from_slice(bytes);
        true
    }
}

/// Messages to and fro through memory.
#[allow(missing_debug_implementations)]
pub struct PingPong {
    to: Arc<Slot>,
    from: Arc<Slot>,
    far: Far,
    turn: u64,
    buffer: Vec<u8>,
}

impl PingPong {
    /// Messages have `bytes` bytes in both directions.
    #[must_use]
    pub fn new(bytes: usize) -> Self {
        let (to, from) = (Slot::new(bytes), Slot::new(bytes));
        let (far_to, far_from) = (Arc::clone(&to), Arc::clone(&from));
        let (mut buffer, mut turn) = (vec![0; bytes], 1);
        let far = Far::start(move |plays| {
            while far_to.read(turn, &mut buffer, Some(plays)) {
                far_from.write(turn, &buffer);
                turn += 1;
            }
        });
        Self {
            to,
            from,
            far,
            turn: 0,
            buffer: vec![1; bytes],
        }
    }
}

impl Trip for PingPong {
    fn begin(&mut self) {
        self.far.begin();
    }

    fn trip(&mut self) -> Result<(), Lost> {
        self.turn += 1;
        self.to.write(self.turn, &self.buffer);
        self.from.read(self.turn, &mut self.buffer, None);
        Ok(())
    }

    fn end(&mut self) {
        self.far.end();
    }
}

#[cfg(test)]
mod tests {
    use super::PingPong;
    use crate::net::Trip;

    #[test]
    fn messages_come_back_as_they_went() {
        let mut raw = PingPong::new(100);
        for _ in 0..3 {
            raw.begin();
            for n in 0..50 {
                raw.buffer.fill(n);
                assert_eq!(raw.trip(), Ok(()));
                assert!(raw.buffer.iter().all(|byte| *byte == n));
            }
            raw.end();
        }
    }
}
