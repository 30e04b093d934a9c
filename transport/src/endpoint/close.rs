//! The end of a session, whoever brings it about.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed, SeqCst};
use std::time::{Duration, Instant};

use super::send::CTL_CLOSE;
use super::stats::Flush;
use super::{Endpoint, Shared};
use crate::error::CloseReason;

/// How long to wait for the flusher thread to notice that it should end.
const FLUSHER_PATIENCE: Duration = Duration::from_millis(200);

impl Endpoint {
    /// Ends the session: sends what is pending, waits until the peer has it (at most
    /// [`crate::Tuning::close_timeout`]), says goodbye. Other threads' calls end with
    /// [`CloseReason::Local`]. Calling it again does nothing.
    ///
    /// Fit for `atexit` handlers: waits for no thread that may be gone. From inside a handler
    /// it does not wait for the peer.
    pub fn close(&self) {
        let shared = &*self.shared;
        if !shared.mark.is_set() {
            return;
        }
        if !shared.closing.swap(true, AcqRel) && self.check().is_ok() {
            let deadline = Instant::now() + shared.tuning.close_timeout;
            self.transmit(Flush::Forced);
            if !shared.rx.is_mine() {
                self.drain(deadline);
            }
            // Only over a connection can there be a goodbye.
            if shared.link.is_down() && !shared.rx.is_mine() {
                let _ = self.wait_core(&mut || !shared.link.is_down(), false, Some(deadline));
            }
            if self.check().is_ok() {
                shared.goodbye.store(true, SeqCst);
                self.send_control(CTL_CLOSE);
                self.await_handover(deadline);
                // A peer that takes nothing does not get the goodbye either.
                let mut left = || !shared.want_write.load(SeqCst);
                let _ = self.wait_core(&mut left, false, Some(deadline));
                shared.link.stream().shutdown();
                self.fail(CloseReason::Local);
            }
        }
        if !shared.rx.is_mine() {
            self.stop_flusher(FLUSHER_PATIENCE);
        }
    }

    /// Another thread may be the one that sends the goodbye: it holds the wire for one push, which does
    /// not block. Without this the connection could be shut down before the goodbye is on it, and the
    /// peer would take an orderly end for a loss.
    fn await_handover(&self, deadline: Instant) {
        let shared = &*self.shared;
        let is_pending = || shared.control.load(SeqCst) & CTL_CLOSE != 0 || shared.wire.is_locked();
        while is_pending() && Instant::now() < deadline && !shared.want_write.load(SeqCst) {
            self.transmit(Flush::Forced);
            std::thread::yield_now();
        }
    }

    /// Waits until the peer has everything.
    fn drain(&self, deadline: Instant) {
        let shared = &*self.shared;
        let mut drained = || shared.is_drained();
        let result = self.wait_core(&mut drained, false, Some(deadline));
        if result.is_err() && self.check().is_ok() {
            log::warn!(
                "session {}: closed with {} bytes that the peer did not acknowledge",
                shared.session,
                shared.unacked_bytes()
            );
        }
    }

    /// Why the session is over, if it is.
    #[must_use]
    pub fn closed(&self) -> Option<CloseReason> {
        self.check().err()
    }

    /// Ends the session at once, for the first reason given.
    pub(super) fn fail(&self, why: CloseReason) {
        let shared = &*self.shared;
        // Once goodbye was said, the peer's hanging up is the answer to it.
        let answered = shared.goodbye.load(SeqCst) && !matches!(why, CloseReason::Violation(_));
        let why = if answered { CloseReason::Local } else { why };
        let graceful = matches!(why, CloseReason::Local);
        if shared.reason.set(why.clone()).is_err() {
            return;
        }
        // Who sees that it is over may free what transfers were to fill: nothing is written there any more then.
        let dests = shared.bulk_in.lock().end(shared);
        if !graceful {
            shared.link.stream().shutdown();
        }
        shared.link.close_silent();
        shared.events.advance();
        for dest in dests {
            dest.closed(&why);
        }
        self.wake_leader();
        self.wake_helper();
        shared.handler.on_closed(self, &why);
    }
}

impl Shared {
    /// The reason, once `closed` is set.
    pub(super) fn reason(&self) -> CloseReason {
        self.reason.get().cloned().unwrap_or(CloseReason::Local)
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // SYNC: AcqRel as for any count of owners: the last one sees what the others did.
        if !self.counted || self.shared.handles.fetch_sub(1, AcqRel) != 1 {
            return;
        }
        if !self.shared.mark.is_set() {
            return;
        }
        // The flusher must not be the one to run this: it holds an uncounted handle only.
        debug_assert!(Arc::strong_count(&self.shared) > 0);
        self.shared.handles.store(1, Relaxed);
        self.close();
        self.shared.handles.store(0, SeqCst);
    }
}
