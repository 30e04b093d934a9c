//! Streams: what was sent on them, what is known to have run, and whether they are being captured.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use farcall_marshal::record::{Head, Record, to_vec};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuStreamQuery, CuStreamSynchronize};
use parking_lot::Mutex;

use crate::capture::{self, Capture};
use crate::coherent::{self, Behind, Waited};
use crate::context::Context;
use crate::crossing::Crossed;
use crate::graph::Node;
use crate::passing::Passing;
use crate::session::{Session, Urgency};
use crate::unseen::Unseen;

/// `CU_STREAM_NON_BLOCKING`: does not wait for the legacy stream.
pub(crate) const STREAM_NON_BLOCKING: u32 = 1;

/// A stream.
pub(crate) struct Stream {
    pub(crate) context: &'static Context,
    /// Its number on the wire; 0 = the legacy stream.
    pub(crate) id: u64,
    pub(crate) flags: u32,
    pub(crate) priority: i32,
    /// Stamp of the last operation sent on it.
    last: AtomicU64,
    /// Its operations up to this stamp have run.
    done: AtomicU64,
    /// Not of the legacy stream: that has the session's.
    unseen: Unseen,
    /// Number of the last upload that was over for the program, which it waits for.
    barrier: AtomicU64,
    pub(crate) capture: Mutex<Option<Arc<Capture>>>,
    /// Made when a stream of another server waits for this one.
    pub(crate) crossed: Crossed,
    /// Attributes that were set, by their number.
    pub(crate) attributes: Mutex<HashMap<u32, [u8; 64]>>,
}

impl Stream {
    pub(crate) fn new(context: &'static Context, id: u64, flags: u32, priority: i32) -> Self {
        Self {
            context,
            id,
            flags,
            priority,
            last: AtomicU64::new(0),
            done: AtomicU64::new(0),
            unseen: Unseen::default(),
            barrier: AtomicU64::new(0),
            capture: Mutex::new(None),
            crossed: Crossed::default(),
            attributes: Mutex::default(),
        }
    }

    pub(crate) fn session(&self) -> &'static Session {
        self.context.session()
    }

    /// What is waited for when this stream is.
    pub(crate) fn waited(&self) -> Waited {
        Waited::Stream(self.context.id, self.id)
    }

    /// Sends an operation on this stream, or adds it to the graph that the stream captures.
    #[inline]
    pub(crate) fn issue<'a, R: Record<'a>>(&self, record: &R) -> CuResult {
        if let Some(capture) = self.capturing()? {
            let bytes = to_vec(Head::request(R::NUMBER, self.context.id, 0), record);
            return capture.add(self.id, Node::Record(bytes));
        }
        self.context.check()?;
        self.mark()?;
        self.session().send(self.context.id, record)
    }

    /// As [`Self::issue`], an operation of which only the device sees the effect, such as an upload to device memory.
    pub(crate) fn issue_unseen<'a, R: Record<'a>>(&self, record: &R) -> CuResult {
        if self.capturing()?.is_some() {
            return self.issue(record);
        }
        self.context.check()?;
        let session = self.session();
        let behind_all = || {
            self.wait_for_uploads(session)?;
            let stamp = session.stamp();
            Ok::<_, CuStatus>((stamp - 1, stamp))
        };
        if self.id == 0 {
            session.unseen.add(behind_all)?;
        } else {
            self.unseen.add(|| {
                let stamp = session.unseen.add(behind_all)?;
                Ok::<_, CuStatus>((self.last.swap(stamp, Ordering::Relaxed), stamp))
            })?;
        }
        session.send(self.context.id, record)
    }

    /// As [`Self::issue_unseen`] if that is so, else as [`Self::issue`].
    pub(crate) fn issue_for<'a, R: Record<'a>>(&self, only_devices: bool, record: &R) -> CuResult {
        if only_devices {
            self.issue_unseen(record)
        } else {
            self.issue(record)
        }
    }

    /// Sends a stream operation that was encoded before.
    pub(crate) fn issue_encoded(&self, record: &[u8]) -> CuResult {
        self.context.check()?;
        self.mark()?;
        self.session().send_encoded(record)
    }

    /// The capture that this stream takes part in; an invalidated one is an error.
    #[inline]
    pub(crate) fn capturing(&self) -> CuResult<Option<Arc<Capture>>> {
        if !capture::any() {
            return Ok(None);
        }
        match &*self.capture.lock() {
            Some(capture) => capture.check().map(|()| Some(Arc::clone(capture))),
            None if self.id == 0 => capture::forbid_legacy(self.context).map(|()| None),
            None => Ok(None),
        }
    }

    /// Notes that an operation is about to be sent; its stamp.
    // Into the one call that every launch makes.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(crate) fn mark(&self) -> CuResult<u64> {
        let session = self.session();
        self.wait_for_uploads(session)?;
        let stamp = session.stamp();
        self.last.store(stamp, Ordering::Relaxed);
        Ok(stamp)
    }

    /// Makes the stream wait for uploads that were over for the program before, unless it has been told.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(crate) fn wait_for_uploads(&self, session: &Session) -> CuResult {
        let barrier = session.barrier();
        if self.barrier.load(Ordering::Relaxed) != barrier {
            self.barrier.store(barrier, Ordering::Relaxed);
            session.hold_back(self)?;
        }
        Ok(())
    }

    /// Stamp up to which this stream has to be waited for. The legacy stream waits for the others too.
    pub(crate) fn last(&self) -> u64 {
        if self.id == 0 {
            self.session().last_stamp()
        } else {
            self.last.load(Ordering::Relaxed)
        }
    }

    /// Whether everything up to `stamp` on this stream is known to have run.
    pub(crate) fn has_done(&self, stamp: u64) -> bool {
        self.done.load(Ordering::Relaxed) >= stamp || self.session().has_finished(stamp)
    }

    /// The same, or that the program cannot tell the difference: operations at the end of which only the device sees the
    /// effect count as run, and whatever the program sends later to any stream is made to wait for them.
    pub(crate) fn is_behind(&self, stamp: u64) -> CuResult<bool> {
        if self.has_done(stamp) {
            return Ok(true);
        }
        let unseen = match self.id {
            0 => &self.session().unseen,
            _ => &self.unseen,
        };
        let before = unseen.wait_for(stamp);
        if before == stamp || !self.has_done(before) {
            return Ok(false);
        }
        self.session().uploaded(self)?;
        self.set_done(stamp);
        Ok(true)
    }

    /// Everything up to `stamp` on this stream has run.
    pub(crate) fn set_done(&self, stamp: u64) {
        self.done.fetch_max(stamp, Ordering::Relaxed);
    }

    /// Waits until everything sent so far has run. Answered here if that is already known.
    pub(crate) fn synchronize(&self) -> CuResult {
        self.forbid_capture()?;
        self.context.check()?;
        let stamp = self.last();
        if !self.is_behind(stamp)? {
            self.ask(stamp)?.wait()?;
        }
        self.settle(stamp)?;
        self.session().take_deferred()
    }

    /// Everything up to `stamp` has run: what it brought to host memory is there when this returns.
    fn settle(&self, stamp: u64) -> CuResult {
        self.session().await_landings(stamp)?;
        self.set_done(stamp);
        coherent::after_wait(self.session(), self.waited(), stamp)?;
        self.context.check()
    }

    /// Has the server say when everything sent so far has run.
    fn ask(&self, stamp: u64) -> CuResult<Passing> {
        let record = CuStreamSynchronize { stream: self.id };
        Passing::ask(
            self.context,
            stamp,
            Behind::Stream(self),
            &record,
            Urgency::Now,
        )
    }

    /// Whether everything sent so far has run: `NOT_READY` if not.
    pub(crate) fn query(&self) -> CuResult {
        self.forbid_capture()?;
        self.context.check()?;
        let stamp = self.last();
        if !self.is_behind(stamp)? {
            self.session()
                .ask(self.context.id, &CuStreamQuery { stream: self.id })?;
        }
        self.settle(stamp)
    }

    /// A call that a capturing stream may not make; it spoils the capture.
    pub(crate) fn forbid_capture(&self) -> CuResult {
        match self.capturing()? {
            None => Ok(()),
            Some(capture) => {
                capture.invalidate();
                Err(CuStatus::STREAM_CAPTURE_UNSUPPORTED)
            }
        }
    }
}
