//! One session between two processes, from either side.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::connect::redial::Redial;
use crate::error::{AdoptError, CloseReason};
use crate::handshake::{Handover, HandoverKind, Positions, SessionId, SessionKey};
use crate::num::{to_u64, to_usize};
use crate::options::{Limits, Tuning};
use crate::session::{Receiver, Sender};
use crate::stream::{PathInfo, Stream};
use crate::sys::event::EventFd;
use crate::sys::eventcount::EventCount;
use crate::sys::fork::ForkMark;
use crate::sys::lead::LeadCell;
use crate::sys::mirror::Mirror;
use crate::sys::processors::Processors;

mod ahead;
mod bulk_beside;
mod bulk_in;
mod bulk_link;
mod bulk_out;
pub(crate) mod bulk_wire;
mod close;
mod flusher;
mod heard;
mod lent;
mod link;
mod memory;
mod pulse;
mod receive;
mod resume;
mod rtt;
mod send;
mod spin;
mod stats;
mod wait;
mod wire;

pub use bulk_in::BulkDone;
pub use stats::Stats;

use ahead::Ahead;
use bulk_in::BulkIn;
use bulk_out::BulkOut;
use heard::Heard;
use lent::Lent;
use link::Link;
use receive::Rx;
use send::Tx;
use stats::Counters;
use wire::Wire;

/// Receives what the peer sends. Called by whichever thread receives, one call at a time per
/// endpoint.
pub trait Handler: Send + Sync {
    /// One frame: 8-byte aligned, length a multiple of 8, borrowed until return. It holds the
    /// records that the peer gathered, one after the other. May append, flush and `bulk_send`
    /// on `endpoint`, also when that has to wait for room, but not wait for further frames.
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]);

    /// The session is over. Called once, perhaps from inside a call that noticed it.
    fn on_closed(&self, endpoint: &Endpoint, why: &CloseReason) {
        let _ = (endpoint, why);
    }
}

/// Position in the stream just after a record; compare it with [`Endpoint::acked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

/// A session. Clones share it; it closes when the last clone goes, or at
/// [`Endpoint::close`].
///
/// # Thread safety
/// Every method may be called from every thread at once. There is no receive thread on the
/// path of a call: one of the threads that wait receives for all.
///
/// # Fork
/// In a forked child every call fails with [`CloseReason::Forked`] and touches nothing that
/// the parent uses.
pub struct Endpoint {
    shared: Arc<Shared>,
    /// Whether this handle keeps the session open (the flusher's does not).
    counted: bool,
}

pub(crate) struct Shared {
    mark: ForkMark,
    tuning: Tuning,
    processors: Processors,
    /// Acknowledge as soon as nothing more is there, not only before sleeping.
    prompt_ack: bool,
    session: SessionId,
    key: SessionKey,
    /// Of the protocol.
    version: u16,
    frame_bytes_max: u32,
    window_bytes: u64,
    handler: Arc<dyn Handler>,
    link: Link,
    /// Client: how to open further connections.
    redial: Option<Redial>,
    /// Client: connections tried so far.
    attempts: AtomicU32,

    /// Set with `reason`; read by every call.
    closed: AtomicBool,
    closing: AtomicBool,
    /// The last frame is on its way: the session ends as closed by this side.
    goodbye: AtomicBool,
    reason: OnceLock<CloseReason>,
    handles: AtomicUsize,

    // Sending: `tx` is held for the length of a memory copy, `wire` during system calls.
    tx_ring: Mirror,
    tx: Mutex<Tx>,
    heard: Heard,
    wire: Mutex<Wire>,
    /// Sent up to here: the kernel is done with the ring's bytes before.
    sent: AtomicU64,
    ahead: Ahead,
    /// Whether the connection takes a system call for each frame.
    costly: AtomicBool,
    /// Records are gathered that nobody has sent.
    gathered: AtomicBool,
    /// Appenders that wait for room.
    starved: AtomicU32,
    /// Someone wanted to transmit while another did.
    again: AtomicBool,
    /// The stream took less than there is.
    want_write: AtomicBool,
    /// Control frames to send: `send::CTL_*`.
    control: AtomicU32,
    pong: AtomicU64,

    // Receiving.
    rx_ring: Mirror,
    rx: LeadCell<Rx>,
    /// What the next header tells the peer; written by the leader.
    rx_ack: AtomicU64,
    rx_credit: AtomicU64,
    /// What the peer was last told; written under `tx`.
    told_ack: AtomicU64,
    told_credit: AtomicU64,

    // Waiting.
    events: EventCount,
    wake: EventFd,
    leader_sleeps: AtomicBool,
    spin: spin::Spin,
    trailing: Option<flusher::Trailing>,
    /// Server: wakes the thread that keeps time.
    pulse: Option<EventFd>,

    bulk_out: Mutex<BulkOut>,
    bulk_in: Mutex<BulkIn>,
    /// Destinations that wait for data.
    bulk_posted: AtomicUsize,
    bulk_stalled: AtomicBool,
    /// A new bulk connection has not taken what must go first on it; written under `bulk_in`.
    bulk_fresh: AtomicBool,
    /// Client: the server has not answered a new bulk connection; written under `bulk_in`.
    bulk_unanswered: AtomicBool,
    /// Changes of the bulk connection so far; written under `bulk_in`.
    bulk_version: AtomicU64,
    /// What has arrived on the bulk plane, what the peer was told of it, and what it said.
    bulk_received: AtomicU64,
    told_bulk: AtomicU64,
    bulk_acked: AtomicU64,

    /// Memory for transfers without a copy.
    lent: Mutex<Lent>,

    counters: Counters,
    transport_reason: OnceLock<String>,
}

/// What both sides agreed on, from one side's view.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Agreed {
    pub(crate) session: SessionId,
    pub(crate) key: SessionKey,
    pub(crate) local: Limits,
    pub(crate) remote: Limits,
    /// Of the protocol.
    pub(crate) version: u16,
}

/// Room in the receive ring beyond the window, for control frames between data frames.
const CONTROL_RESERVE_BYTES: usize = 64 << 10;

impl Endpoint {
    /// Makes a session on a connection whose handshake is done.
    pub(crate) fn start(
        stream: Arc<dyn Stream>,
        agreed: &Agreed,
        tuning: &Tuning,
        handler: Arc<dyn Handler>,
        redial: Option<Redial>,
        client: bool,
    ) -> io::Result<Self> {
        let frame_bytes_max = agreed
            .local
            .frame_bytes_max
            .min(agreed.remote.frame_bytes_max);
        let window_bytes = u64::from(agreed.local.window_bytes);
        let ring_bytes = agreed.local.ring_bytes as usize;
        let rx_bytes = (to_usize(window_bytes) + CONTROL_RESERVE_BYTES).next_power_of_two();
        let credit = u64::from(agreed.remote.window_bytes);
        let is_costly = stream.is_costly();
        let shared = Arc::new(Shared {
            mark: ForkMark::current(),
            tuning: *tuning,
            processors: Processors::of_this_thread(),
            prompt_ack: !client,
            session: agreed.session,
            key: agreed.key,
            version: agreed.version,
            frame_bytes_max,
            window_bytes,
            handler,
            link: Link::new(Arc::clone(&stream)),
            redial,
            attempts: AtomicU32::new(0),
            closed: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            goodbye: AtomicBool::new(false),
            reason: OnceLock::new(),
            handles: AtomicUsize::new(1),
            tx_ring: Mirror::new(ring_bytes)?,
            tx: Mutex::new(Tx::new(Sender::new(
                to_u64(ring_bytes),
                credit,
                frame_bytes_max,
            ))),
            heard: Heard::new(credit),
            wire: Mutex::new(Wire::new(Arc::clone(&stream))),
            sent: AtomicU64::new(0),
            ahead: Ahead::default(),
            costly: AtomicBool::new(is_costly),
            gathered: AtomicBool::new(false),
            starved: AtomicU32::new(0),
            again: AtomicBool::new(false),
            want_write: AtomicBool::new(false),
            control: AtomicU32::new(0),
            pong: AtomicU64::new(0),
            rx_ring: Mirror::new(rx_bytes)?,
            rx: LeadCell::new(Rx::new(stream, Receiver::new(window_bytes))),
            rx_ack: AtomicU64::new(0),
            rx_credit: AtomicU64::new(window_bytes),
            told_ack: AtomicU64::new(0),
            told_credit: AtomicU64::new(window_bytes),
            events: EventCount::default(),
            wake: EventFd::new()?,
            leader_sleeps: AtomicBool::new(false),
            spin: spin::Spin::new(tuning.spin),
            trailing: if client {
                Some(flusher::Trailing::new()?)
            } else {
                None
            },
            pulse: if client || !keeps_time(tuning) {
                None
            } else {
                Some(EventFd::new()?)
            },
            bulk_out: Mutex::new(BulkOut::default()),
            bulk_in: Mutex::new(BulkIn::default()),
            bulk_posted: AtomicUsize::new(0),
            bulk_stalled: AtomicBool::new(false),
            bulk_fresh: AtomicBool::new(false),
            bulk_unanswered: AtomicBool::new(false),
            bulk_version: AtomicU64::new(0),
            bulk_received: AtomicU64::new(0),
            told_bulk: AtomicU64::new(0),
            bulk_acked: AtomicU64::new(0),
            lent: Mutex::new(Lent::default()),
            counters: Counters::default(),
            transport_reason: OnceLock::new(),
        });
        let endpoint = Self {
            shared,
            counted: true,
        };
        if client {
            endpoint.start_flusher()?;
        } else if keeps_time(tuning) {
            endpoint.start_pulse()?;
        }
        Ok(endpoint)
    }

    /// Server side, in the executor: makes the session of a new client. `fd` and `state` come
    /// from [`crate::Incoming::into_parts`]; `welcome` is the application's answer to the
    /// client's payload.
    ///
    /// Blocks for as long as the answer takes to leave (a full socket buffer at worst).
    ///
    /// # Errors
    /// [`AdoptError`].
    pub fn adopt(
        fd: OwnedFd,
        state: &[u8],
        welcome: &[u8],
        tuning: &Tuning,
        handler: Arc<dyn Handler>,
    ) -> Result<Self, AdoptError> {
        let handover = Handover::decode(state)?;
        if handover.kind != HandoverKind::New {
            return Err(AdoptError::WrongSession);
        }
        let (stream, bulk) = handover.welcome(fd, welcome, Positions::default())?;
        let endpoint = Self::start(stream, &handover.agreed, tuning, handler, None, false)?;
        if let Some(bulk) = bulk {
            endpoint.attach_bulk_stream(bulk);
        }
        Ok(endpoint)
    }

    /// Everything before this position has arrived at the peer.
    #[must_use]
    pub fn acked(&self) -> Seq {
        if !self.shared.mark.is_set() {
            return Seq(0);
        }
        Seq(self.shared.heard.acked())
    }

    /// Which backend carries the session: `tcp`, `shm`, ...
    #[must_use]
    pub fn transport_name(&self) -> &'static str {
        self.shared.link.stream().name()
    }

    /// Why that backend was taken, for people; empty on a server.
    #[must_use]
    pub fn transport_reason(&self) -> &str {
        self.shared
            .transport_reason
            .get()
            .map_or("", |reason| reason)
    }

    /// Says why this backend was taken; the first word stands.
    pub(crate) fn explain_transport(&self, reason: String) {
        let _ = self.shared.transport_reason.set(reason);
    }

    /// What the system knows of the way to the peer, where there is a connection that it keeps.
    #[must_use]
    pub fn path(&self) -> Option<PathInfo> {
        self.shared.link.stream().path()
    }

    /// Whether there is no peer any more, as far as this system knows: for who cannot wait until [`Endpoint::run`] has
    /// received what still lies unread. False where the network fails silently.
    #[must_use]
    pub fn has_hung_up(&self) -> bool {
        self.closed().is_some()
            || self.shared.link.is_down()
            || self.shared.link.stream().has_hung_up()
    }

    /// The peer's address, if it has one.
    #[must_use]
    pub fn peer(&self) -> Option<std::net::SocketAddr> {
        self.shared.link.stream().peer()
    }

    /// The session's name, the same on both sides.
    #[must_use]
    pub fn session(&self) -> SessionId {
        self.shared.session
    }

    /// The version of the protocol that both sides speak: the newest that both know.
    #[must_use]
    pub fn protocol_version(&self) -> u16 {
        self.shared.version
    }

    /// Largest record, in bytes.
    #[must_use]
    pub fn record_bytes_max(&self) -> usize {
        self.shared.frame_bytes_max as usize
    }

    /// For a `pthread_atfork` child handler. Not needed for safety, as endpoints notice a fork
    /// themselves; but a child that lives on without exec keeps the connection's descriptors
    /// open, and the server would not notice the parent's death. This lets go of them.
    /// Async-signal-safe.
    pub fn after_fork_child(&self) {
        let shared = &self.shared;
        shared.mark.clear();
        if let Some(stream) = shared.link.try_stream() {
            stream.abandon();
        }
    }
}

/// Whether a server needs a thread that keeps time.
fn keeps_time(tuning: &Tuning) -> bool {
    !(tuning.keepalive.is_zero() && tuning.grace.is_zero())
}

impl Clone for Endpoint {
    fn clone(&self) -> Self {
        self.shared.handles.fetch_add(1, Ordering::Relaxed);
        Self {
            shared: Arc::clone(&self.shared),
            counted: true,
        }
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("session", &self.shared.session)
            .field("transport", &self.shared.link.stream().name())
            .finish_non_exhaustive()
    }
}
