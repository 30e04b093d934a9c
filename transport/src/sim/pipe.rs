//! A stream in memory that delivers in odd pieces.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Faults, Rng};
use crate::stream::Stream;
use crate::sys::event::EventFd;
use crate::sys::poll::{IN, PollSet};

/// What one direction holds at most.
const CAPACITY_BYTES: usize = 96 << 10;

/// One direction.
struct Half {
    state: Mutex<State>,
    /// Readable while there is something to receive, or the end.
    readable: EventFd,
    /// Readable while there is room, or the end.
    writable: EventFd,
}

struct State {
    bytes: VecDeque<u8>,
    passed: u64,
    /// The writer is done.
    ended: bool,
    /// The connection broke.
    cut: bool,
    faults: Faults,
    rng: Rng,
}

/// One end of a simulated connection.
pub(crate) struct Pipe {
    out: Arc<Half>,
    into: Arc<Half>,
}

/// Two ends.
pub(crate) fn pair(seed: u64, faults: Faults) -> io::Result<(Pipe, Pipe)> {
    let a = Arc::new(Half::new(seed, faults)?);
    let b = Arc::new(Half::new(!seed, faults)?);
    Ok((
        Pipe {
            out: Arc::clone(&a),
            into: Arc::clone(&b),
        },
        Pipe { out: b, into: a },
    ))
}

impl Half {
    fn new(seed: u64, faults: Faults) -> io::Result<Self> {
        let half = Self {
            state: Mutex::new(State {
                bytes: VecDeque::new(),
                passed: 0,
                ended: false,
                cut: false,
                faults,
                rng: Rng::new(seed),
            }),
            readable: EventFd::new()?,
            writable: EventFd::new()?,
        };
        half.writable.set();
        Ok(half)
    }

    /// Makes the descriptors say what is true now.
    fn signal(&self, state: &State) {
        let over = state.ended || state.cut;
        level(&self.readable, over || !state.bytes.is_empty());
        level(&self.writable, over || state.bytes.len() < CAPACITY_BYTES);
    }
}

fn level(event: &EventFd, on: bool) {
    if on { event.set() } else { event.clear() }
}

impl State {
    /// How many of `len` bytes an operation moves.
    fn share(&mut self, len: usize) -> usize {
        if self.rng.chance(self.faults.stall) {
            0
        } else if self.rng.chance(self.faults.short) {
            let few = usize::try_from(1 + self.rng.below(40)).unwrap_or(1);
            len.min(few)
        } else {
            len
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        for half in [&self.out, &self.into] {
            let mut state = half.state.lock();
            state.ended = true;
            half.signal(&state);
        }
    }
}

impl Stream for Pipe {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn peer(&self) -> Option<SocketAddr> {
        None
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut state = self.out.state.lock();
        if state.cut || state.ended {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        let total = parts.iter().map(|part| part.len()).sum::<usize>();
        let room = CAPACITY_BYTES - state.bytes.len();
        let mut left = state.share(total.min(room));
        if let Some(cut) = state.faults.cut_after_bytes {
            let until = cut.saturating_sub(state.passed);
            left = left.min(usize::try_from(until).unwrap_or(usize::MAX));
            state.cut = until == 0;
        }
        let sent = left;
        for part in parts {
            let take = left.min(part.len());
            state.bytes.extend(&part[..take]);
            left -= take;
        }
        state.passed += crate::num::to_u64(sent);
        self.out.signal(&state);
        if state.cut {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if sent == 0 {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(sent)
        }
    }

    fn recv(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let mut state = self.into.state.lock();
        let available = state.bytes.len().min(buffer.len());
        if available == 0 {
            return match (state.cut, state.ended) {
                (true, _) => Err(io::ErrorKind::ConnectionReset.into()),
                (false, true) => Ok(0),
                (false, false) => Err(io::ErrorKind::WouldBlock.into()),
            };
        }
        let got = state.share(available);
        for (slot, byte) in buffer.iter_mut().zip(state.bytes.drain(..got)) {
            slot.write(byte);
        }
        self.into.signal(&state);
        if got == 0 {
            Err(io::ErrorKind::WouldBlock.into())
        } else {
            Ok(got)
        }
    }

    fn shutdown(&self) {
        let mut state = self.out.state.lock();
        state.ended = true;
        self.out.signal(&state);
    }

    fn arm(&self, set: &mut PollSet, read: bool, write: bool) -> bool {
        if read {
            set.add(self.into.readable.raw(), IN);
        }
        if write {
            set.add(self.out.writable.raw(), IN);
        }
        true
    }
}
