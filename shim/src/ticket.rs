//! Replies that somebody waits for, or that fill a destination later.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use farcall_marshal::record::Record;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::CuMemcpyDtoHAsyncV2Reply;
use parking_lot::Mutex;

use crate::ptr::HostPtr;

/// Where the body of a reply goes.
#[derive(Clone, Copy)]
pub(crate) enum Sink {
    /// Kept for the waiting thread.
    Keep,
    /// The copied bytes go straight into the program's memory; `bulk` is the transfer that brings them
    /// where the reply does not.
    Copy {
        /// Start of the destination.
        to: HostPtr,
        /// Its length.
        len: usize,
        /// Transfer number, 0 = in the reply.
        bulk: u64,
        /// Whether the program goes on before they are there.
        later: bool,
    },
}

/// One reply that has not come yet, or has just come.
pub(crate) struct Pending {
    sink: Sink,
    replied: AtomicBool,
    /// Whether the bulk transfer, if there is one, has ended.
    arrived: AtomicBool,
    status: AtomicU32,
    body: Mutex<Vec<u8>>,
}

impl Pending {
    /// Whether nothing is left to wait for.
    pub(crate) fn is_done(&self) -> bool {
        // Acquire pairs with the Release in `reply` and `transferred`: status and bytes are visible.
        self.replied.load(Ordering::Acquire) && self.arrived.load(Ordering::Acquire)
    }

    /// The status and, where it was kept, the body. Call when done.
    pub(crate) fn take(&self) -> (CuStatus, Vec<u8>) {
        (
            CuStatus(self.status.load(Ordering::Relaxed)),
            std::mem::take(&mut *self.body.lock()),
        )
    }

    /// Whether the destination overlaps these addresses.
    pub(crate) fn writes(&self, start: u64, len: u64) -> bool {
        match self.sink {
            Sink::Keep => false,
            Sink::Copy { to, len: own, .. } => {
                let own = own as u64;
                to.address() < start.saturating_add(len) && start < to.address().saturating_add(own)
            }
        }
    }

    /// The transfer that the reply says will not come.
    fn refused_transfer(&self, status: u32) -> Option<u64> {
        match self.sink {
            Sink::Copy { bulk, .. } if status != 0 && bulk != 0 => Some(bulk),
            _ => None,
        }
    }

    fn reply(&self, status: u32, body: &[u8]) {
        let status = match self.sink {
            Sink::Keep => {
                *self.body.lock() = body.to_vec();
                status
            }
            Sink::Copy { to, len, bulk, .. } if status == 0 && bulk == 0 => {
                match land(to, len, body) {
                    Ok(()) => 0,
                    Err(error) => error.0,
                }
            }
            Sink::Copy { .. } => status,
        };
        if status != 0 {
            self.status.store(status, Ordering::Relaxed);
            self.arrived.store(true, Ordering::Release);
        }
        self.replied.store(true, Ordering::Release);
    }

    /// The bulk transfer ended.
    pub(crate) fn transferred(&self, result: CuResult) {
        if let Err(error) = result {
            self.status.store(error.0, Ordering::Relaxed);
        }
        self.arrived.store(true, Ordering::Release);
    }

    fn fail(&self, status: CuStatus) {
        self.status.store(status.0, Ordering::Relaxed);
        self.arrived.store(true, Ordering::Release);
        self.replied.store(true, Ordering::Release);
    }
}

/// A server that answers with another length than was asked would write outside the program's buffer.
fn land(to: HostPtr, len: usize, body: &[u8]) -> CuResult {
    let reply = CuMemcpyDtoHAsyncV2Reply::decode_body(body).map_err(|_| CuStatus::UNKNOWN)?;
    if reply.data.len() != len {
        return Err(CuStatus::UNKNOWN);
    }
    to.write(reply.data)
}

/// Every reply that is still to come.
#[derive(Default)]
pub(crate) struct Tickets {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    last: u32,
    pending: HashMap<u32, Arc<Pending>>,
    /// Why no further reply comes.
    ended: Option<CuStatus>,
}

impl Tickets {
    /// A new ticket; fails at once if the session has ended.
    pub(crate) fn issue(&self, sink: Sink) -> CuResult<(u32, Arc<Pending>)> {
        let has_bulk = matches!(sink, Sink::Copy { bulk, .. } if bulk != 0);
        let pending = Arc::new(Pending {
            sink,
            replied: AtomicBool::new(false),
            arrived: AtomicBool::new(!has_bulk),
            status: AtomicU32::new(0),
            body: Mutex::default(),
        });
        let mut inner = self.inner.lock();
        if let Some(status) = inner.ended {
            return Err(status);
        }
        let number = loop {
            inner.last = inner.last.wrapping_add(1);
            if inner.last != 0 && !inner.pending.contains_key(&inner.last) {
                break inner.last;
            }
        };
        inner.pending.insert(number, Arc::clone(&pending));
        Ok((number, pending))
    }

    /// A reply came; false if nobody asked. `cancel` is called with the transfer that will not come, before anybody
    /// hears of it who may then free what it was to fill.
    pub(crate) fn reply(
        &self,
        ticket: u32,
        status: u32,
        body: &[u8],
        cancel: impl FnOnce(u64),
    ) -> bool {
        let pending = self.inner.lock().pending.remove(&ticket);
        pending.is_some_and(|pending| {
            pending.refused_transfer(status).map(cancel);
            pending.reply(status, body);
            true
        })
    }

    /// No reply will come any more.
    pub(crate) fn end(&self, status: CuStatus) {
        let mut inner = self.inner.lock();
        inner.ended = Some(status);
        for (_, pending) in inner.pending.drain() {
            pending.fail(status);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Sink, Tickets};
    use crate::ptr::HostPtr;
    use farcall_marshal::record::Record;
    use farcall_marshal::status::CuStatus;
    use farcall_marshal::wire::CuMemcpyDtoHAsyncV2Reply;

    fn encoded(data: &[u8]) -> Vec<u8> {
        let reply = CuMemcpyDtoHAsyncV2Reply { data };
        let mut out = vec![0; reply.body_bytes()];
        reply.encode_body(&mut out);
        out
    }

    #[test]
    fn a_copy_lands_in_the_buffer_it_was_asked_for() {
        let mut buffer = [0_u8; 4];
        let tickets = Tickets::default();
        let to = HostPtr::from_address(buffer.as_mut_ptr() as u64);
        let (ticket, pending) = tickets
            .issue(Sink::Copy {
                to,
                len: 4,
                bulk: 0,
                later: false,
            })
            .unwrap();
        assert!(!pending.is_done());
        assert!(tickets.reply(ticket, 0, &encoded(&[1, 2, 3, 4]), |_| {}));
        assert!(pending.is_done());
        assert_eq!(
            (pending.take().0, buffer),
            (CuStatus::SUCCESS, [1, 2, 3, 4])
        );
    }

    #[test]
    fn a_reply_of_another_length_writes_nothing() {
        let mut buffer = [0_u8; 8];
        let tickets = Tickets::default();
        let to = HostPtr::from_address(buffer.as_mut_ptr() as u64);
        let (ticket, pending) = tickets
            .issue(Sink::Copy {
                to,
                len: 4,
                bulk: 0,
                later: false,
            })
            .unwrap();
        assert!(tickets.reply(ticket, 0, &encoded(&[9; 8]), |_| {}));
        assert_eq!((pending.take().0, buffer), (CuStatus::UNKNOWN, [0; 8]));
    }

    #[test]
    fn the_end_of_the_session_answers_everybody() {
        let tickets = Tickets::default();
        let (_, pending) = tickets.issue(Sink::Keep).unwrap();
        tickets.end(CuStatus::DEVICE_UNAVAILABLE);
        assert!(pending.is_done());
        assert_eq!(pending.take().0, CuStatus::DEVICE_UNAVAILABLE);
        assert_eq!(
            tickets.issue(Sink::Keep).err(),
            Some(CuStatus::DEVICE_UNAVAILABLE)
        );
        assert!(!tickets.reply(1, 0, &[], |_| {}));
    }
}
