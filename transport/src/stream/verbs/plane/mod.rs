//! One plane of a session over RDMA: a byte ring in the peer's registered memory.
//!
//! Every message is one RDMA write with an immediate value: it takes a posted receive of the
//! peer, and so can wake it. In *completions* mode the value says how long the message is, and
//! carries credits back. In *memory* mode the receiver does not poll completions on the data
//! path: it looks at the place where the next line is awaited ([`super::line`]), credits are a
//! checked word in memory, and completions are only collected in batches, to post receives anew.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::error::VerbsError;
use crate::stream::Stream;
use crate::stream::direct::Direct;
use crate::stream::tcp::TcpStream;
use crate::sys::poll::{IN, PollSet};
use crate::sys::verbs::{Cq, Device, Domain, Qp, Region, Verb, Work};

mod direct;
mod receive;
mod send;

pub(super) use direct::STAGING_BYTES;
use receive::Rx;
use send::Tx;

/// Every so many sends one completes visibly, so that the queue's room becomes known.
const SIGNAL_EVERY: u64 = 64;
/// Sends under way, by what is known of completions: looked after from here on,
const SENDS_SOFT: u64 = 2 * SIGNAL_EVERY + 64;
/// and no data beyond this, so that credits and the end find room in the queue.
const SENDS_MAX: u64 = 448;
/// Receives are posted anew in batches.
const REPOST: usize = 16;
/// Words in the status page: credits from the peer, the end from the peer; and where ours are sent from,
/// in the same order. `direct` has more of them.
const CREDIT_AT: u64 = 0;
const END_AT: u64 = 64;
const OWN_AT: u64 = 2048;
const WORD_BYTES: u32 = 16;
/// How long the last messages may take to be acknowledged by the peer's device.
const DRAIN_TIME: Duration = Duration::from_millis(600);

/// What both planes of a session share.
pub(super) struct Link {
    /// The bootstrap connection. None once it was taken back.
    pub(super) tcp: Mutex<Option<TcpStream>>,
    pub(super) device: Arc<Device>,
}

/// Where the peer is written to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) inbox: u64,
    pub(super) inbox_rkey: u32,
    pub(super) status: u64,
    pub(super) status_rkey: u32,
    pub(super) messages_max: usize,
}

/// What a plane is made of.
pub(super) struct Parts {
    /// Connected.
    pub(super) qp: Qp,
    pub(super) cq: Arc<Cq>,
    /// The peer writes here.
    pub(super) inbox: Region,
    /// And its words here.
    pub(super) status: Region,
    /// Staging, as large as the peer's inbox.
    pub(super) outbox: Region,
    pub(super) peer: Peer,
    pub(super) link: Arc<Link>,
    /// Memory is polled, not completions.
    pub(super) memory: bool,
    /// Receives that are posted for messages.
    pub(super) messages_max: usize,
    pub(super) domain: Arc<Domain>,
    /// Both sides read and write registered memory beside the ring.
    pub(super) direct: bool,
}

/// One plane. Fields are dropped in order: the connection before the memory it uses.
pub(super) struct Plane {
    qp: Qp,
    direct: direct::State,
    inbox: Region,
    outbox: Region,
    status: Region,
    cq: Arc<Cq>,
    link: Arc<Link>,
    peer: Peer,
    memory: bool,
    messages_max: usize,
    tx: Mutex<Tx>,
    rx: Mutex<Rx>,
    /// Messages that the peer has freed (completions mode); written under `rx`.
    freed: AtomicU64,
    /// Messages and bytes that were read here; written under `rx`.
    consumed: AtomicU64,
    consumed_bytes: AtomicU64,
    /// What of it the peer was told; written under `tx`.
    told: AtomicU64,
    told_bytes: AtomicU64,
    /// Sends that are known to be done; written under `rx`.
    sends_done: AtomicU64,
    sleepers: AtomicU32,
    /// Someone slept: the peer or the device may be gone.
    suspicious: AtomicBool,
    /// The bootstrap connection ended.
    dead: AtomicBool,
    failure: OnceLock<VerbsError>,
}

impl Plane {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            tx: Mutex::new(Tx::new(parts.peer.messages_max, parts.outbox.bytes())),
            rx: Mutex::new(Rx::new(parts.messages_max, parts.inbox.bytes())),
            qp: parts.qp,
            direct: direct::State::new(parts.domain, parts.direct),
            inbox: parts.inbox,
            outbox: parts.outbox,
            status: parts.status,
            cq: parts.cq,
            link: parts.link,
            peer: parts.peer,
            memory: parts.memory,
            messages_max: parts.messages_max,
            freed: AtomicU64::new(0),
            consumed: AtomicU64::new(0),
            consumed_bytes: AtomicU64::new(0),
            told: AtomicU64::new(0),
            told_bytes: AtomicU64::new(0),
            sends_done: AtomicU64::new(0),
            sleepers: AtomicU32::new(0),
            suspicious: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            failure: OnceLock::new(),
        }
    }

    /// Writes `bytes` zeros to the start of the peer's fresh inbox and waits for the peer's
    /// device to acknowledge them.
    pub(super) fn probe(&self, bytes: u32, deadline: Instant) -> Result<(), VerbsError> {
        let mut tx = self.tx.lock();
        let work = Work {
            verb: Verb::Write,
            local: self.outbox.address(0),
            lkey: self.outbox.lkey(),
            bytes: bytes.min(u32::try_from(self.outbox.bytes()).unwrap_or(bytes)),
            remote: self.peer.inbox,
            rkey: self.peer.inbox_rkey,
            signal: None,
            inline: false,
        };
        let number = self.post(&mut tx, work, true)?;
        drop(tx);
        self.await_sent(number, deadline, false)
    }

    /// Posts one piece of work. `signal`: its completion is to be seen. Returns its number.
    fn post(&self, tx: &mut Tx, work: Work, signal: bool) -> Result<u64, VerbsError> {
        tx.posted += 1;
        let due = signal || tx.posted.is_multiple_of(SIGNAL_EVERY);
        let work = Work {
            signal: due.then_some(tx.posted),
            ..work
        };
        self.qp.post(&[work])?;
        Ok(tx.posted)
    }

    /// Remembers the first thing that went wrong.
    #[cold]
    fn fail(&self, error: VerbsError) -> io::Error {
        // What was flushed went down with something else, which may come behind it.
        let _ = self.failure.set(error);
        self.error()
    }

    #[cold]
    fn error(&self) -> io::Error {
        let error = self.failure.get().cloned().unwrap_or(VerbsError::Flushed);
        error.into()
    }
}

impl Stream for Plane {
    fn name(&self) -> &'static str {
        "verbs"
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.link.tcp.lock().as_ref().and_then(Stream::peer)
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        if self.failure.get().is_some() {
            return Err(self.error());
        }
        if self.dead.load(Relaxed) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let mut tx = self.tx.lock();
        if tx.ended {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        self.send_parts(&mut tx, parts)
    }

    fn recv(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        let mut rx = self.rx.lock();
        let got = self.read(&mut rx, buffer);
        match got {
            Ok(0) => self.nothing(&mut rx, buffer),
            Ok(got) => {
                if self.owes_credit()
                    && let Err(error) = self.send_credits()
                {
                    self.fail(error);
                }
                Ok(got)
            }
            Err(error) => {
                self.fail(error);
                // The bytes before the failure, and the end if it came, are still good.
                self.suspicious.store(true, Relaxed);
                let got = rx.flow.available().min(buffer.len());
                if got > 0 && !self.memory {
                    return self.read(&mut rx, buffer).map_err(|_| self.error());
                }
                if self.has_ended(&rx) {
                    Ok(0)
                } else {
                    Err(self.error())
                }
            }
        }
    }

    fn shutdown(&self) {
        if let Err(error) = self.end() {
            self.fail(error);
        }
    }

    fn arm(&self, set: &mut PollSet, read: bool, write: bool) -> bool {
        self.sleepers.fetch_add(1, SeqCst);
        self.suspicious.store(true, Relaxed);
        set.add(self.cq.raw_fd(), IN);
        set.add(self.link.device.async_fd(), IN);
        if let Some(tcp) = &*self.link.tcp.lock() {
            set.add(tcp.fd().as_raw_fd(), IN);
        }
        // First ask for an event, then look once more: what comes in between is seen.
        if self.cq.request_event().is_err() || self.failure.get().is_some() {
            return false;
        }
        let mut rx = self.rx.lock();
        if let Err(error) = self.collect(&mut rx) {
            self.fail(error);
            return false;
        }
        let readable =
            read && (self.is_readable(&rx) || self.dead.load(Acquire) || self.has_direct_news());
        drop(rx);
        !(readable || write && self.is_writable())
    }

    fn disarm(&self) {
        if self.sleepers.fetch_sub(1, SeqCst) == 1 {
            self.cq.clear_events();
        }
    }

    fn has_hung_up(&self) -> bool {
        let tcp = self.link.tcp.lock();
        tcp.as_ref().is_some_and(|tcp| tcp.has_hung_up())
    }

    fn prod(&self) {
        if let Err(error) = self.ask_whether_sent() {
            self.fail(error);
        }
    }

    fn registered_bytes(&self) -> usize {
        // Both planes are of one domain.
        self.direct.registered_bytes()
    }

    fn direct(&self) -> Option<&dyn Direct> {
        self.direct.on.then_some(self)
    }

    fn abandon(&self) {
        if let Some(tcp) = self.link.tcp.try_lock().as_deref().and_then(Option::as_ref) {
            tcp.abandon();
        }
        self.link.device.abandon();
        self.cq.abandon();
    }
}

impl Plane {
    /// Whether `send` would take something, or fail.
    fn is_writable(&self) -> bool {
        let Some(mut tx) = self.tx.try_lock() else {
            return true;
        };
        match self.room(&mut tx) {
            Ok(room) => room > 0,
            Err(error) => {
                self.fail(error);
                true
            }
        }
    }
}

impl Drop for Plane {
    /// Lets what was sent arrive: destroying a queue pair throws away what is under way.
    fn drop(&mut self) {
        if !self.link.device.is_ours()
            || self.failure.get().is_some()
            || self.link.tcp.lock().is_none()
        {
            return;
        }
        if let Ok(number) = self.end() {
            // Whatever the outcome, there is nothing more to do about it.
            let _ = self.await_sent(number, Instant::now() + DRAIN_TIME, true);
        }
    }
}
