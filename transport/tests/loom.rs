//! Every order of events of the lock-free parts, tried by loom. The files of the crate itself are
//! compiled here with loom's atomics in place of the processor's.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, unused_imports)]

#[path = "../src/sys/eventcount.rs"]
mod eventcount;
#[path = "../src/stream/ring.rs"]
mod ring;

/// What the files name `super::sync`.
mod sync {
    /// So that one number more waits for being told of than fits otherwise.
    pub(crate) const TOLD_PARTS: u64 = 2;
    pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
}

/// What the files name `super::futex`: the kernel's promise, kept with a lock.
mod futex {
    use loom::sync::atomic::{AtomicU32, Ordering::SeqCst};
    use loom::sync::{Condvar, Mutex};
    use std::time::Duration;

    loom::lazy_static! {
        static ref QUEUE: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());
    }

    pub(crate) fn wait(word: &AtomicU32, seen: u32, _timeout: Option<Duration>) {
        let queue = QUEUE.0.lock().unwrap();
        if word.load(SeqCst) == seen {
            drop(QUEUE.1.wait(queue).unwrap());
        }
    }

    pub(crate) fn wake_all(_word: &AtomicU32) {
        let _queue = QUEUE.0.lock().unwrap();
        QUEUE.1.notify_all();
    }
}

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering::Relaxed};
use loom::sync::{Condvar, Mutex};
use loom::thread;

use eventcount::EventCount;
use ring::{Known, Sides, WAITS_READ, WAITS_WRITE, Words};

const RING: u64 = 4;
/// More than fit.
const NUMBERS: u64 = RING + 1;

/// Both sides' words, the writer's ring, and a bell for each side.
#[derive(Default)]
struct Shared {
    writer: Words,
    reader: Words,
    writer_knows: Known,
    reader_knows: Known,
    slots: [Slot; 4],
    reader_bell: Bell,
    writer_bell: Bell,
}

/// Loom tells when two threads touch it at once.
struct Slot(UnsafeCell<u64>);

impl Default for Slot {
    fn default() -> Self {
        Self(UnsafeCell::new(0))
    }
}

// SAFETY: that the ring keeps writer and reader apart is what loom checks.
unsafe impl Sync for Slot {}
// SAFETY: as above.
unsafe impl Send for Slot {}

/// An eventfd: a wake-up that comes before the sleep is not lost.
#[derive(Default)]
struct Bell(Mutex<bool>, Condvar);

impl Bell {
    fn set(&self) {
        *self.0.lock().unwrap() = true;
        self.1.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.0.lock().unwrap();
        while !*rung {
            rung = self.1.wait(rung).unwrap();
        }
        *rung = false;
    }
}

impl Shared {
    fn at_writer(&self) -> Sides<'_> {
        Sides {
            near: &self.writer,
            far: &self.reader,
            known: &self.writer_knows,
        }
    }

    fn at_reader(&self) -> Sides<'_> {
        Sides {
            near: &self.reader,
            far: &self.writer,
            known: &self.reader_knows,
        }
    }

    fn slot(&self, position: u64) -> &UnsafeCell<u64> {
        &self.slots[usize::try_from(position % RING).unwrap()].0
    }

    /// Writes one number if there is room.
    fn try_send(&self, number: u64) -> bool {
        let sides = self.at_writer();
        let (at, room) = sides.room(RING, 1).unwrap();
        if room == 0 {
            return false;
        }
        // SAFETY: what loom checks.
        self.slot(at).with_mut(|slot| unsafe { *slot = number });
        sides.produce(at + 1);
        if sides.peer_sleeps(WAITS_READ) {
            self.reader_bell.set();
        }
        true
    }

    fn try_recv(&self) -> Option<u64> {
        let sides = self.at_reader();
        let (at, there) = sides.available(RING).unwrap();
        if there == 0 {
            return None;
        }
        // SAFETY: what loom checks.
        let number = self.slot(at).with(|slot| unsafe { *slot });
        if sides.consume(at + 1, RING) && sides.peer_sleeps(WAITS_WRITE) {
            self.writer_bell.set();
        }
        Some(number)
    }

    fn send(&self, number: u64) {
        while !self.try_send(number) {
            self.at_writer().announce(WAITS_WRITE);
            if self.at_writer().room(RING, 1).unwrap().1 == 0 {
                self.writer_bell.wait();
            }
            self.at_writer().retract();
        }
    }

    /// The next number; `None` at the end.
    fn recv(&self) -> Option<u64> {
        loop {
            if let Some(number) = self.try_recv() {
                return Some(number);
            }
            let sides = self.at_reader();
            if sides.peer_ended() {
                return self.try_recv();
            }
            sides.announce(WAITS_READ);
            if sides.available(RING).unwrap().1 == 0 && !sides.peer_ended() {
                self.reader_bell.wait();
            }
            sides.retract();
        }
    }

    fn end(&self) {
        self.at_writer().end();
        self.reader_bell.set();
    }
}

/// More numbers than fit, so that both sides sleep: none is lost, doubled or torn, and nobody
/// sleeps for ever (loom calls that a deadlock).
#[test]
fn a_ring_delivers_in_order_and_loses_no_wake_up() {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(|| {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let writing = thread::spawn(move || {
            (1..=NUMBERS).for_each(|number| writer.send(number));
            writer.end();
        });
        for number in 1..=NUMBERS {
            assert_eq!(shared.recv(), Some(number));
        }
        assert_eq!(shared.recv(), None);
        writing.join().unwrap();
    });
}

/// The end is seen only with everything before it.
#[test]
fn nothing_is_behind_the_end() {
    loom::model(|| {
        let shared = Arc::new(Shared::default());
        let writer = Arc::clone(&shared);
        let writing = thread::spawn(move || {
            // SAFETY: what loom checks.
            writer.slot(0).with_mut(|slot| unsafe { *slot = 7 });
            // No look at whether the reader sleeps: its fence would order what follows.
            writer.at_writer().produce(1);
            writer.at_writer().end();
        });
        if shared.at_reader().peer_ended() {
            assert_eq!(shared.try_recv(), Some(7));
        }
        writing.join().unwrap();
    });
}

/// Whoever changes the condition and advances wakes whoever waits for it.
#[test]
fn an_event_count_loses_no_wake_up() {
    loom::model(|| {
        let shared = Arc::new((EventCount::default(), AtomicBool::new(false)));
        let other = Arc::clone(&shared);
        let waking = thread::spawn(move || {
            other.1.store(true, Relaxed);
            other.0.advance();
        });
        let (events, flag) = &*shared;
        events.enter();
        loop {
            let seen = events.epoch();
            if flag.load(Relaxed) {
                break;
            }
            events.sleep(seen, None);
        }
        events.leave();
        waking.join().unwrap();
    });
}
