//! Asking the server to say when a point in a stream is behind: waited for, or looked at without waiting.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farcall_marshal::record::Record;
use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use crate::coherent::{self, Behind, Fetch};
use crate::context::Context;
use crate::session::Urgency;
use crate::ticket::{Pending, Sink};

/// A question that the server answers when the point is behind, and the bytes that come back with the answer.
pub(crate) struct Passing {
    context: &'static Context,
    stamp: u64,
    pending: Arc<Pending>,
    fetch: Option<Arc<Fetch>>,
}

impl Passing {
    /// Sends the question; `record` is one that is answered when the point is behind. Does not wait; unless somebody
    /// will, the question may leave with what follows.
    pub(crate) fn ask<'a, R: Record<'a>>(
        context: &'static Context,
        stamp: u64,
        behind: Behind<'_>,
        record: &R,
        urgency: Urgency,
    ) -> CuResult<Self> {
        let fetch = coherent::fetch_behind(context, stamp, behind)?;
        let session = context.session();
        let pending = session.request_when(context.id, record, Sink::Keep, urgency)?;
        Ok(Self {
            context,
            stamp,
            pending,
            fetch,
        })
    }

    /// Whether the answer is there, after looking for it without waiting.
    fn has_come(&self) -> CuResult<bool> {
        let session = self.context.session();
        Ok(session.poll(&self.pending)? && self.fetch.as_ref().is_none_or(|fetch| fetch.is_done()))
    }

    /// Waits for the answer: one round trip.
    pub(crate) fn wait(self) -> CuResult {
        let mut all = vec![&*self.pending];
        all.extend(self.fetch.iter().flat_map(|fetch| fetch.pending()));
        self.context.session().wait_all(&all)?;
        self.finish()
    }

    fn finish(self) -> CuResult {
        match self.pending.take().0 {
            CuStatus::SUCCESS => self
                .fetch
                .iter()
                .try_for_each(|fetch| coherent::take_over(self.context.session(), fetch)),
            status => Err(status),
        }
    }
}

/// What the server was asked to say about an event: when the point is behind that the event was recorded at last.
#[derive(Default)]
pub(crate) struct Asked {
    /// Whether the program looks at this event without waiting. From then on the server is asked whenever the event is
    /// recorded, so that what the program can know to be behind is known here as well: the server says it before it
    /// answers anything that comes after.
    is_polled: AtomicBool,
    last: Mutex<Option<Passing>>,
}

impl Asked {
    /// The program looks at the event.
    pub(crate) fn poll(&self) {
        self.is_polled.store(true, Ordering::Relaxed);
    }

    /// The event was recorded: asks, if the program ever looks.
    #[inline]
    pub(crate) fn recorded(&self, ask: impl FnOnce() -> CuResult<Passing>) -> CuResult {
        if self.is_polled.load(Ordering::Relaxed) {
            *self.last.lock() = Some(ask()?);
        }
        Ok(())
    }

    /// Whether the point with this stamp is behind; `None` if the server was not asked. Does not wait.
    pub(crate) fn look(&self, stamp: u64) -> CuResult<Option<bool>> {
        let mut last = self.last.lock();
        let Some(passing) = last.take_if(|passing| passing.stamp == stamp) else {
            return Ok(None);
        };
        if passing.has_come()? {
            passing.finish()?;
            return Ok(Some(true));
        }
        *last = Some(passing);
        Ok(Some(false))
    }
}
