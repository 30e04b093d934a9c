//! Events: where in a stream they were recorded, and whether that point is known to be behind.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::record::Record;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuEventElapsedTime, CuEventElapsedTimeReply, CuEventQuery, CuEventRecordWithFlags,
    CuEventSynchronize, CuStreamWaitEvent,
};
use parking_lot::Mutex;

use crate::capture::{Capture, CaptureMark};
use crate::coherent::{self, Behind};
use crate::context::Context;
use crate::crossing;
use crate::graph::Node;
use crate::passing::{Asked, Passing};
use crate::session::{Session, Urgency};
use crate::stream::Stream;
use crate::ticket::{Pending, Sink};
use crate::timings::Point;

/// `CU_EVENT_DISABLE_TIMING`.
const EVENT_DISABLE_TIMING: u32 = 2;
/// `CU_EVENT_RECORD_EXTERNAL` / `CU_EVENT_WAIT_EXTERNAL`: a graph node instead of a dependency.
const EXTERNAL: u32 = 1;

/// An event.
pub(crate) struct Event {
    pub(crate) context: &'static Context,
    pub(crate) id: u64,
    pub(crate) flags: u32,
    recorded: Mutex<Recorded>,
    asked: Asked,
}

#[derive(Clone, Default)]
enum Recorded {
    #[default]
    Never,
    /// Behind the operation with this stamp.
    At(Arc<Stream>, u64),
    /// At a point of a capture.
    InCapture(Arc<Capture>, CaptureMark),
}

impl Event {
    pub(crate) fn new(context: &'static Context, id: u64, flags: u32) -> Self {
        Self {
            context,
            id,
            flags,
            recorded: Mutex::default(),
            asked: Asked::default(),
        }
    }

    pub(crate) fn record(self: &Arc<Self>, stream: &Arc<Stream>, flags: u32) -> CuResult {
        if let Some(capture) = stream.capturing()? {
            if flags & EXTERNAL != 0 {
                return capture.add(stream.id, Node::EventRecord(Arc::clone(self)));
            }
            let mark = capture.mark(stream.id);
            *self.recorded.lock() = Recorded::InCapture(capture, mark);
            return Ok(());
        }
        let record = CuEventRecordWithFlags {
            event: self.id,
            stream: stream.id,
            flags,
        };
        let has_time = self.flags & EVENT_DISABLE_TIMING == 0;
        if has_time {
            stream.issue(&record)?;
        } else {
            stream.issue_unseen(&record)?;
        }
        let stamp = stream.last();
        *self.recorded.lock() = Recorded::At(Arc::clone(stream), stamp);
        if has_time && let Some(point) = self.point() {
            stream.session().timings.recorded(point);
        }
        self.asked
            .recorded(|| self.ask(stream, stamp, Urgency::Later))
    }

    /// Makes later work of `stream` wait for this event.
    pub(crate) fn make_wait(self: &Arc<Self>, stream: &Arc<Stream>, flags: u32) -> CuResult {
        if flags & EXTERNAL != 0
            && let Some(capture) = stream.capturing()?
        {
            return capture.add(stream.id, Node::EventWait(Arc::clone(self)));
        }
        let recorded = self.recorded.lock().clone();
        match recorded {
            Recorded::Never => Ok(()),
            Recorded::InCapture(capture, mark) => capture.join(stream, &mark),
            Recorded::At(on, stamp) => {
                if stream.capturing()?.is_some() {
                    return Err(CuStatus::STREAM_CAPTURE_ISOLATION);
                }
                // What has run need not be waited for, and what the same stream did comes before anyway.
                if on.has_done(stamp) || Arc::ptr_eq(&on, stream) {
                    return Ok(());
                }
                if !std::ptr::eq(on.session(), stream.session()) {
                    return crossing::wait_event(stream, &on, self.id);
                }
                stream.issue(&CuStreamWaitEvent {
                    stream: stream.id,
                    event: self.id,
                    flags,
                })
            }
        }
    }

    /// Whether the recorded point is behind: `NOT_READY` if not. Waits for the server the first time only.
    pub(crate) fn query(&self) -> CuResult {
        self.unless_done(|_, stamp| match self.asked.look(stamp)? {
            Some(true) => Ok(()),
            Some(false) => {
                // The question may still gather with what else the program issues.
                let _ = self.context.session().endpoint.flush();
                Err(CuStatus::NOT_READY)
            }
            None => {
                self.asked.poll();
                let session = self.context.session();
                session
                    .ask(self.context.id, &CuEventQuery { event: self.id })
                    .map(|_| ())
            }
        })
    }

    /// Waits until the recorded point is behind.
    pub(crate) fn synchronize(&self) -> CuResult {
        self.unless_done(|on, stamp| self.ask(on, stamp, Urgency::Now)?.wait())
    }

    /// Has the server say when the recorded point is behind, which is on `on`.
    fn ask(&self, on: &Stream, stamp: u64, urgency: Urgency) -> CuResult<Passing> {
        let record = CuEventSynchronize { event: self.id };
        let behind = Behind::Event(on, self.id);
        Passing::ask(self.context, stamp, behind, &record, urgency)
    }

    fn unless_done(&self, ask: impl FnOnce(&Stream, u64) -> CuResult) -> CuResult {
        let recorded = self.recorded.lock().clone();
        match recorded {
            Recorded::Never => Ok(()),
            Recorded::InCapture(capture, _) => {
                capture.invalidate();
                Err(CuStatus::CAPTURED_EVENT)
            }
            Recorded::At(stream, stamp) => {
                self.context.check()?;
                if !stream.is_behind(stamp)? {
                    ask(&stream, stamp)?;
                }
                self.context.session().await_landings(stamp)?;
                stream.set_done(stamp);
                coherent::after_wait(stream.session(), stream.waited(), stamp)?;
                self.context.check()
            }
        }
    }

    /// Milliseconds from `self` to `end`.
    pub(crate) fn elapsed_ms(&self, end: &Self) -> CuResult<f32> {
        for event in [self, end] {
            if event.flags & EVENT_DISABLE_TIMING != 0
                || matches!(*event.recorded.lock(), Recorded::Never)
            {
                return Err(CuStatus::INVALID_HANDLE);
            }
        }
        self.context.check()?;
        if !std::ptr::eq(self.context.device, end.context.device) {
            return Err(CuStatus::INVALID_HANDLE);
        }
        let (Some(from), Some(to)) = (self.point(), end.point()) else {
            return self.ask_elapsed(self.id, end.id, Urgency::Now)?.wait();
        };
        let timings = &self.context.session().timings;
        if let Some(ms) = timings.known_ms(from, to) {
            return Ok(ms);
        }
        self.elapsed_with_next(from, to)
    }

    /// Asks for the time between two recordings, and along with it for what may be asked next.
    fn elapsed_with_next(&self, from: Point, to: Point) -> CuResult<f32> {
        let session = self.context.session();
        let next: Vec<(Point, Elapsed)> = session
            .timings
            .next(from, to)
            .into_iter()
            .map(|(from, to)| {
                let asked = self.ask_elapsed(from.event, to.event, Urgency::Later)?;
                Ok((to, asked))
            })
            .collect::<CuResult<_>>()?;
        let wanted = self.ask_elapsed(from.event, to.event, Urgency::Now)?;
        let all = next.iter().map(|(_, asked)| asked).chain([&wanted]);
        let all: Vec<&Pending> = all.map(|asked| &*asked.pending).collect();
        session.wait_all(&all)?;
        for (to, asked) in next {
            // What has not run yet is asked again when it is wanted.
            if let Ok(ms) = asked.take() {
                session.timings.answered(to, ms);
            }
        }
        wanted.take()
    }

    fn ask_elapsed(&self, start: u64, end: u64, urgency: Urgency) -> CuResult<Elapsed> {
        let record = CuEventElapsedTime { start, end };
        let session = self.context.session();
        let pending = session.request_when(self.context.id, &record, Sink::Keep, urgency)?;
        Ok(Elapsed { session, pending })
    }

    /// The last recording, if it is one of this moment.
    fn point(&self) -> Option<Point> {
        match *self.recorded.lock() {
            Recorded::At(_, stamp) => Some(Point {
                context: self.context.id,
                event: self.id,
                stamp,
            }),
            _ => None,
        }
    }
}

/// A time that the server was asked for.
struct Elapsed {
    session: &'static Session,
    pending: Arc<Pending>,
}

impl Elapsed {
    fn wait(self) -> CuResult<f32> {
        self.session.wait(&self.pending)?;
        self.take()
    }

    /// Milliseconds. Call when it is there.
    fn take(self) -> CuResult<f32> {
        match self.pending.take() {
            (CuStatus::SUCCESS, body) => CuEventElapsedTimeReply::decode_body(&body)
                .map(|reply| reply.ms)
                .map_err(|_| CuStatus::UNKNOWN),
            (status, _) => Err(status),
        }
    }
}
