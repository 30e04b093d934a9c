//! One server: what is sent to it, what comes back, and what is known to be finished there.
#![forbid(unsafe_code)]

mod inbox;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use farcall_marshal::record::{self, FLAG_TRACED, Fill, Head, Record};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuEventCreate, CuEventRecordWithFlags, CuStreamWaitEvent};
use farcall_transport::{Endpoint, SendError, WaitError};
use parking_lot::Mutex;

pub(crate) use self::inbox::Inbox;

use crate::coherent::Coherent;
use crate::crossing::{Ferry, Ways};
use crate::device_range::DeviceRange;
use crate::host_range::HostRange;
use crate::landing;
use crate::observe;
use crate::offers::Offer;
use crate::reserve::{Range, Reserved};
use crate::steps;
use crate::stream::{STREAM_NON_BLOCKING, Stream};
use crate::ticket::{Pending, Sink};
use crate::timings::Timings;
use crate::unseen::Unseen;

/// `CU_EVENT_DISABLE_TIMING`.
pub(crate) const EVENT_DISABLE_TIMING: u32 = 2;

/// What kind of device a server stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    Cuda,
    Soft,
    Null,
}

/// When a record with a ticket leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Urgency {
    /// At once: the reply is waited for next.
    Now,
    /// With what follows.
    Later,
}

/// What is written into a record has to be looked at first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused;

/// Why a record was not sent.
enum Unsent {
    Refused,
    Ended,
}

impl From<SendError> for Unsent {
    // What the session ended with is asked for then.
    #[cold]
    fn from(_: SendError) -> Self {
        Self::Ended
    }
}

/// One server and the session with it.
pub(crate) struct Session {
    pub(crate) endpoint: Endpoint,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) kind: DeviceKind,
    pub(crate) driver_version: u32,
    pub(crate) device_memory: Mutex<DeviceRange>,
    pub(crate) device_range: Range,
    pub(crate) host_range: Reserved,
    pub(crate) host_memory: Mutex<HostRange>,
    /// Held from the record of an upload to the end of its bytes.
    pub(crate) uploads: Mutex<()>,
    is_placing: bool,
    /// Modules that the server has.
    pub(crate) known_modules: Mutex<HashSet<[u8; 32]>>,
    /// Stamp of the last stream operation sent.
    issued: AtomicU64,
    /// Every operation up to this stamp has run.
    finished: AtomicU64,
    next_id: AtomicU64,
    /// Copies to host memory that nobody waits for yet.
    landing: Mutex<Vec<(u64, Arc<Pending>)>>,
    pub(crate) coherent: Coherent,
    /// Number of the last upload that was over for the program before the device had it.
    barrier: AtomicU64,
    barriers: Mutex<Barriers>,
    /// Whether there ever was a non-blocking stream.
    has_non_blocking: AtomicBool,
    /// Of all streams, for the legacy stream, which waits for the others.
    pub(crate) unseen: Unseen,
    pub(crate) timings: Timings,
    /// Brings bytes of other servers here.
    pub(crate) ferry: Ferry,
    /// How bytes get from here to other servers.
    pub(crate) ways: Ways,
}

/// What streams are made to wait for instead of the program.
#[derive(Default)]
struct Barriers {
    last: Option<Barrier>,
    /// An event of each context that had an upload.
    events: HashMap<u32, u64>,
}

/// Behind the last upload that was over for the program, and so behind those before.
#[derive(Clone, Copy)]
struct Barrier {
    context: u32,
    stream: u64,
    event: u64,
}

/// What a session needs to be told when it opens.
pub(crate) struct Opened {
    pub(crate) endpoint: Endpoint,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) kind: DeviceKind,
    pub(crate) driver_version: u32,
    pub(crate) device_range: Range,
    pub(crate) host_range: Reserved,
    pub(crate) known_modules: HashSet<[u8; 32]>,
}

impl Session {
    pub(crate) fn new(opened: Opened) -> Self {
        Self {
            endpoint: opened.endpoint,
            inbox: opened.inbox,
            kind: opened.kind,
            driver_version: opened.driver_version,
            is_placing: opened.device_range.bytes == 0,
            device_memory: Mutex::new(DeviceRange::new(opened.device_range)),
            device_range: opened.device_range,
            host_range: opened.host_range,
            host_memory: Mutex::default(),
            uploads: Mutex::default(),
            known_modules: Mutex::new(opened.known_modules),
            issued: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            next_id: AtomicU64::new(1),
            landing: Mutex::default(),
            coherent: Coherent::default(),
            barrier: AtomicU64::new(0),
            barriers: Mutex::default(),
            has_non_blocking: AtomicBool::new(false),
            unseen: Unseen::default(),
            timings: Timings::default(),
            ferry: Ferry::default(),
            ways: Ways::default(),
        }
    }

    /// Whether an address can mean memory of both.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        let ranges = |session: &Self| [session.device_range, session.host_range.range()];
        ranges(self)
            .iter()
            .any(|own| ranges(other).iter().any(|range| own.overlaps(range)))
    }

    /// Whether the server chooses the addresses of device memory: its driver cannot map memory where
    /// it is told to.
    #[inline]
    pub(crate) fn places_memory(&self) -> bool {
        self.is_placing
    }

    /// A number for a new object on the server.
    pub(crate) fn new_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// A number for a new context, which no other of the process has, on whichever server: what is kept by context is
    /// kept by this.
    pub(crate) fn new_context_id() -> u32 {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        NEXT.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a record that nobody waits for.
    #[inline]
    pub(crate) fn send<'a, R: Record<'a>>(&self, context: u32, body: &R) -> CuResult {
        self.post(Head::request(R::NUMBER, context, 0), body)
    }

    /// Sends a record of which `fill` writes the variable part of `len` bytes where it is sent from, unless it
    /// refuses; whether it was sent. Not for a program that is observed. `fill` runs under a lock: it must not send.
    // Into the one call that every launch makes.
    #[allow(clippy::inline_always)]
    #[inline(always)]
    pub(crate) fn send_filled<'a, R: Fill<'a>>(
        &self,
        context: u32,
        body: &R,
        len: usize,
        fill: impl FnOnce(&mut [u8]) -> Result<(), Refused>,
    ) -> CuResult<bool> {
        let head = Head::request(R::NUMBER, context, 0);
        let bytes = record::filled_record_bytes::<R>(len);
        let sent = self.endpoint.append_unless(bytes, |out| {
            record::encode_filled(head, body, len, out, fill).map_err(|Refused| Unsent::Refused)
        });
        match sent {
            Ok(_) => Ok(true),
            Err(Unsent::Refused) => Ok(false),
            Err(Unsent::Ended) => Err(self.ended()),
        }
    }

    /// Sends a record and waits for the body of its reply. `NOT_READY` and other statuses come as errors.
    pub(crate) fn ask<'a, R: Record<'a>>(&self, context: u32, body: &R) -> CuResult<Vec<u8>> {
        match self.ask_status(context, body)? {
            (CuStatus::SUCCESS, reply) => Ok(reply),
            (status, _) => Err(status),
        }
    }

    /// Asks for a status without telling the steps of it, and without counting it: the trace asks, not the program.
    pub(crate) fn ask_untold<'a, R: Record<'a>>(&self, context: u32, body: &R) -> CuResult {
        let (ticket, pending) = self.inbox.tickets.issue(Sink::Keep)?;
        self.send_encoded(&record::to_vec(
            Head::request(R::NUMBER, context, ticket),
            body,
        ))?;
        self.endpoint.flush().map_err(|_| self.ended())?;
        self.endpoint
            .wait_until(&|| pending.is_done(), None)
            .map_err(|_| self.ended())?;
        match pending.take().0 {
            CuStatus::SUCCESS => Ok(()),
            status => Err(status),
        }
    }

    /// Like [`Self::ask`], but a body comes with a failing status too.
    pub(crate) fn ask_status<'a, R: Record<'a>>(
        &self,
        context: u32,
        body: &R,
    ) -> CuResult<(CuStatus, Vec<u8>)> {
        let pending = self.request(context, body, Sink::Keep)?;
        self.wait(&pending)?;
        Ok(pending.take())
    }

    /// Sends a record with a ticket.
    pub(crate) fn request<'a, R: Record<'a>>(
        &self,
        context: u32,
        body: &R,
        sink: Sink,
    ) -> CuResult<Arc<Pending>> {
        let urgency = match sink {
            // Bytes that land later may leave with what follows.
            Sink::Copy { later: true, .. } => Urgency::Later,
            _ => Urgency::Now,
        };
        self.request_when(context, body, sink, urgency)
    }

    /// The same, at once or with what follows.
    pub(crate) fn request_when<'a, R: Record<'a>>(
        &self,
        context: u32,
        body: &R,
        sink: Sink,
        urgency: Urgency,
    ) -> CuResult<Arc<Pending>> {
        let (ticket, pending) = self.inbox.tickets.issue(sink)?;
        // The destination is known before the server can send to it.
        if let Sink::Copy { to, len, bulk, .. } = sink
            && bulk != 0
        {
            landing::expect(&self.endpoint, bulk, to, len, Arc::clone(&pending))?;
        }
        let head = Head::request(R::NUMBER, context, ticket);
        match urgency {
            Urgency::Later => self.post(head, body)?,
            Urgency::Now => self.post_now(head, body)?,
        }
        Ok(pending)
    }

    /// Sends a record about a module whose reply is taken when it comes. Does not wait.
    pub(crate) fn offer<'a, R: Record<'a>>(&self, body: &R, offer: Offer) -> CuResult {
        let (ticket, _) = self.inbox.tickets.issue(Sink::Keep)?;
        let head = Head::request(R::NUMBER, offer.context.id, ticket);
        self.inbox.offers.add(ticket, offer);
        self.post(head, body)
    }

    /// Sends a record that was encoded before.
    pub(crate) fn send_encoded(&self, record: &[u8]) -> CuResult {
        let sent = self
            .endpoint
            .append(record.len(), |out| out.copy_from_slice(record));
        sent.map(|_| ()).map_err(|_| self.ended())
    }

    /// Waits until a reply, with all that it brings, is there.
    pub(crate) fn wait(&self, pending: &Pending) -> CuResult {
        self.wait_all(&[pending])
    }

    /// Waits until all of these are there, which is one round trip: they were asked for together. Counted as one even
    /// if they have come by now, so that the count does not depend on the time. This is the only place where a program
    /// waits for a server.
    pub(crate) fn wait_all(&self, pending: &[&Pending]) -> CuResult {
        observe::round_trip();
        let is_done = || pending.iter().all(|pending| pending.is_done());
        if is_done() {
            return Ok(());
        }
        self.endpoint.flush().map_err(|_| self.ended())?;
        self.endpoint
            .wait_until(&is_done, None)
            .map_err(|_| self.ended())
    }

    /// Whether a reply is there, after taking in what has arrived. Does not wait.
    pub(crate) fn poll(&self, pending: &Pending) -> CuResult<bool> {
        match self
            .endpoint
            .wait_until(&|| pending.is_done(), Some(Duration::ZERO))
        {
            Ok(()) => Ok(true),
            Err(WaitError::TimedOut) => Ok(false),
            Err(_) => Err(self.ended()),
        }
    }

    #[inline]
    fn post<'a, R: Record<'a>>(&self, head: Head, body: &R) -> CuResult {
        if observe::is_on() {
            return self.post_observed(head, body);
        }
        let len = record::record_bytes(body);
        let sent = self
            .endpoint
            .append(len, |out| record::encode(head, body, out));
        sent.map(|_| ()).map_err(|_| self.ended())
    }

    /// The same for a record whose reply is waited for next: it leaves now.
    fn post_now<'a, R: Record<'a>>(&self, head: Head, body: &R) -> CuResult {
        if observe::is_on() {
            return self.post_observed(head, body);
        }
        let len = record::record_bytes(body);
        let sent = self
            .endpoint
            .append_now(len, |out| record::encode(head, body, out));
        sent.map(|_| ()).map_err(|_| self.ended())
    }

    /// The same, with what `farcall trace --steps` shows of it.
    #[cold]
    fn post_observed<'a, R: Record<'a>>(&self, mut head: Head, body: &R) -> CuResult {
        if observe::wants_steps() {
            head.flags |= FLAG_TRACED;
        }
        let bytes = record::to_vec(head, body);
        steps::marshalled(head, &bytes);
        let sent = self.send_encoded(&bytes);
        steps::sent(head, &self.endpoint);
        sent
    }

    /// Why nothing can be sent any more.
    fn ended(&self) -> CuStatus {
        // The thread that waits may know before the one that closes has told.
        if let Some(why) = self.endpoint.closed() {
            self.inbox.tell_end(&why);
        }
        self.inbox.ended().unwrap_or(CuStatus::DEVICE_UNAVAILABLE)
    }

    /// Error of an earlier one-way call that is due now, given once.
    #[inline]
    pub(crate) fn take_deferred(&self) -> CuResult {
        self.inbox.take_deferred()
    }

    /// The session's own end, if it has ended.
    #[inline]
    pub(crate) fn check(&self) -> CuResult {
        self.inbox.check()
    }

    /// From now on streams exist that do not wait for the legacy stream.
    pub(crate) fn allow_non_blocking(&self) {
        self.has_non_blocking.store(true, Ordering::Relaxed);
    }

    /// An upload was sent on `stream` which to the program is over, so work that it sends to any stream later comes
    /// after it. No reply is needed for that: streams that would not wait by themselves are made to wait for an event
    /// behind the upload.
    pub(crate) fn uploaded(&self, stream: &Stream) -> CuResult {
        let all_wait = stream.id == 0
            && !self.has_non_blocking.load(Ordering::Relaxed)
            && self.inbox.has_one_context();
        if all_wait {
            return Ok(());
        }
        let context = stream.context.id;
        let mut barriers = self.barriers.lock();
        let event = match barriers.events.get(&context) {
            Some(event) => *event,
            None => {
                let event = self.new_id();
                let flags = EVENT_DISABLE_TIMING;
                self.send(context, &CuEventCreate { event, flags })?;
                barriers.events.insert(context, event);
                event
            }
        };
        let record = CuEventRecordWithFlags {
            event,
            stream: stream.id,
            flags: 0,
        };
        self.send(context, &record)?;
        barriers.last = Some(Barrier {
            context,
            stream: stream.id,
            event,
        });
        self.barrier.fetch_add(1, Ordering::Release);
        Ok(())
    }

    /// Number of the last upload that streams have to wait for.
    #[inline]
    pub(crate) fn barrier(&self) -> u64 {
        self.barrier.load(Ordering::Acquire)
    }

    /// Makes a stream wait for the last upload that was over for the program, unless it does by itself.
    #[cold]
    pub(crate) fn hold_back(&self, stream: &Stream) -> CuResult {
        let Some(barrier) = self.barriers.lock().last else {
            return Ok(());
        };
        let is_blocking = stream.flags & STREAM_NON_BLOCKING == 0;
        let waits_anyway = barrier.context == stream.context.id
            && (barrier.stream == stream.id || (barrier.stream == 0 && is_blocking));
        if waits_anyway || !self.inbox.has_context(barrier.context) {
            return Ok(());
        }
        self.send(
            stream.context.id,
            &CuStreamWaitEvent {
                stream: stream.id,
                event: barrier.event,
                flags: 0,
            },
        )
    }

    /// Stamp for an operation that is about to be sent.
    #[inline]
    pub(crate) fn stamp(&self) -> u64 {
        self.issued.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Stamp of the last operation.
    #[inline]
    pub(crate) fn last_stamp(&self) -> u64 {
        self.issued.load(Ordering::Relaxed)
    }

    /// Whether everything up to this stamp is known to have run.
    #[inline]
    pub(crate) fn has_finished(&self, stamp: u64) -> bool {
        self.finished.load(Ordering::Relaxed) >= stamp
    }

    /// Everything up to this stamp has run.
    pub(crate) fn set_finished(&self, stamp: u64) {
        self.finished.fetch_max(stamp, Ordering::Relaxed);
    }

    /// Remembers a copy to host memory that the program will wait for later.
    pub(crate) fn lands(&self, stamp: u64, pending: Arc<Pending>) {
        let mut landing = self.landing.lock();
        landing.retain(|(_, pending)| !pending.is_done());
        landing.push((stamp, pending));
    }

    /// Waits until every copy up to `stamp` is in host memory. The server sends bytes before it answers a
    /// later synchronization, but the two may travel on different connections.
    pub(crate) fn await_landings(&self, stamp: u64) -> CuResult {
        self.await_matching(|at, _| at <= stamp)
    }

    /// Waits for copies that write to these addresses: a program may read there next.
    pub(crate) fn await_writers(&self, start: u64, len: u64) -> CuResult {
        if self.landing.lock().is_empty() {
            return Ok(());
        }
        self.await_matching(|_, pending| pending.writes(start, len))
    }

    fn await_matching(&self, wanted: impl Fn(u64, &Pending) -> bool) -> CuResult {
        let due: Vec<Arc<Pending>> = {
            let mut landing = self.landing.lock();
            landing.retain(|(_, pending)| !pending.is_done());
            landing
                .iter()
                .filter(|(stamp, pending)| wanted(*stamp, pending))
                .map(|(_, p)| Arc::clone(p))
                .collect()
        };
        let late: Vec<&Pending> = due.iter().map(|pending| &**pending).collect();
        // Nearly always they came with the answer that was waited for before.
        if late.iter().all(|pending| pending.is_done()) {
            return Ok(());
        }
        self.wait_all(&late)
    }
}

/// Tells sessions of a process apart, for what servers number by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SessionKey(usize);

impl SessionKey {
    pub(crate) fn of(session: &'static Session) -> Self {
        Self(std::ptr::from_ref(session).addr())
    }
}

impl Drop for Session {
    /// A session that the program does not get, at its start; the others stay as long as the process.
    fn drop(&mut self) {
        self.inbox.lose(CuStatus::DEVICE_UNAVAILABLE);
        self.endpoint.close();
    }
}
