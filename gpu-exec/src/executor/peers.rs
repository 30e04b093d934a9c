//! Copies between two servers that do not pass through the client: links between executors.
//!
//! The client, who has a session with both, draws the secrets. It tells the receiving session to take one link that shows one of them, and
//! the sending one to open it; then each copy has a ticket of its own: number, length and secret. To a device nothing of
//! this shows: it sends a transfer or posts memory for one, as for the client, and the outbox asks here whose it is.
//!
//! ```text
//! client ── peer_accept ──> B        client ── peer_expect, HtoD ──> B   (destination, length, secret)
//! client ── peer_connect ─> A        client ── peer_push, DtoH ───> A    (the same secret)
//!           A ══ link ════> B                  A ── peer_put, bytes ──> B
//! ```
//! The opener's end is [`outgoing`], the other [`incoming`].
#![forbid(unsafe_code)]

mod incoming;
mod outgoing;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Weak};
use std::time::Duration;
use std::{fmt, io};

use farcall_marshal::record::{Head, Record};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{PeerAccept, PeerCancel, PeerConnect, PeerExpect, PeerPush};
use farcall_transport::{Dialer, Endpoint, SessionId};
use parking_lot::Mutex;

use self::incoming::Incoming;
use self::outgoing::Outgoing;
use super::outbox::{Failure, Outbox, Post, Reply};
use crate::device::Violation;

/// Bytes of a secret.
const SECRET_BYTES: usize = 16;
/// Links of a session, in each direction.
const LINKS_MAX: usize = 16;
/// Copies of a session that are announced and not under way.
const TICKETS_MAX: usize = 256;
/// How long a secret may be shown after it was announced.
const LIFE: Duration = Duration::from_secs(60);
/// How long the supervisor may take to open a connection.
const DIAL: Duration = Duration::from_secs(10);

/// A secret of the client.
#[derive(Clone, Copy)]
struct Secret([u8; SECRET_BYTES]);

impl Secret {
    fn decode(bytes: &[u8]) -> Result<Self, Violation> {
        let bytes = bytes.try_into();
        bytes
            .map(Self)
            .map_err(|_| Violation::Rule("a secret has 16 bytes"))
    }

    fn is(&self, shown: &[u8]) -> bool {
        farcall_transport::constant_time_eq(&self.0, shown)
    }
}

/// A session's links to sessions of the same client with other servers.
pub(crate) struct Peers {
    incoming: Arc<Incoming>,
    outgoing: Arc<Outgoing>,
    /// Whether this server takes part.
    is_allowed: bool,
    /// Whether anything was ever announced: one load, else, for every transfer.
    is_used: AtomicBool,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peers").finish_non_exhaustive()
    }
}

impl Peers {
    /// No links. `dials` opens connections; `is_copying`: what is sent is copied first, for devices that must not wait.
    pub(crate) fn new(dials: Option<Arc<Dials>>, is_copying: bool) -> Self {
        Self {
            incoming: Arc::new(Incoming::default()),
            is_allowed: dials.is_some(),
            outgoing: Arc::new(Outgoing::new(dials, is_copying)),
            is_used: AtomicBool::new(false),
        }
    }

    /// Does what a record of the client says; `None` if it is none of these.
    ///
    /// # Errors
    /// What no correct client sends.
    pub(crate) fn take(
        &self,
        head: &Head,
        body: &[u8],
        outbox: &Arc<dyn Outbox>,
    ) -> Option<Result<(), Violation>> {
        match head.number {
            PeerAccept::NUMBER
            | PeerConnect::NUMBER
            | PeerExpect::NUMBER
            | PeerPush::NUMBER
            | PeerCancel::NUMBER => Some(self.decide(head, body, outbox)),
            _ => None,
        }
    }

    fn decide(&self, head: &Head, body: &[u8], outbox: &Arc<dyn Outbox>) -> Result<(), Violation> {
        let reply = Reply::to(head);
        if !self.is_allowed {
            let why = "this server copies nothing to or from other servers";
            let refusal = Failure::new(CuStatus::NOT_SUPPORTED, why);
            outbox.finish(reply, Err(refusal));
            return Ok(());
        }
        self.is_used.store(true, Ordering::Relaxed);
        match head.number {
            PeerAccept::NUMBER => {
                let record = PeerAccept::decode_body(body)?;
                self.incoming
                    .accept(record.link, Secret::decode(record.secret)?)?;
                outbox.finish(reply, Ok(()));
                Ok(())
            }
            PeerConnect::NUMBER => {
                let record = PeerConnect::decode_body(body)?;
                self.outgoing.connect(&record, reply, outbox)
            }
            PeerExpect::NUMBER => {
                let record = PeerExpect::decode_body(body)?;
                self.incoming.expect(&record)
            }
            PeerPush::NUMBER => {
                let record = PeerPush::decode_body(body)?;
                self.outgoing.announce(&record)
            }
            _ => {
                self.incoming.cancel(PeerCancel::decode_body(body)?.bulk);
                Ok(())
            }
        }
    }

    /// Another server opens a link.
    pub(crate) fn open(&self, fd: OwnedFd, state: Vec<u8>, hello: &[u8]) {
        self.incoming.open(fd, state, hello);
    }

    /// The link that this server knows by that name.
    pub(crate) fn link(&self, session: SessionId) -> Option<Endpoint> {
        self.incoming.link(session)
    }

    /// Sends a transfer that was announced as another server's: whether that went well. `None`: it is the client's.
    pub(super) fn send(&self, id: u64, data: &[u8]) -> Option<bool> {
        if !self.is_used.load(Ordering::Relaxed) {
            return None;
        }
        self.outgoing.send(id, data)
    }

    /// Offers memory for a transfer; given back if it is the client's.
    pub(super) fn offer(&self, id: u64, post: Post) -> Option<Post> {
        if !self.is_used.load(Ordering::Relaxed) {
            return Some(post);
        }
        self.incoming.offer(id, post)
    }
}

/// Connections that the supervisor opens, as this process may not.
pub(crate) struct Dials {
    ask: Box<dyn Fn(u64, SocketAddr) -> io::Result<()> + Send + Sync>,
    waiting: Mutex<Waiting>,
}

#[derive(Default)]
struct Waiting {
    last: u64,
    answers: HashMap<u64, Sender<io::Result<OwnedFd>>>,
}

impl Dials {
    /// `ask` tells the supervisor to open a connection; [`Self::dialed`] is to be called with what became of it.
    pub(crate) fn new(
        ask: impl Fn(u64, SocketAddr) -> io::Result<()> + Send + Sync + 'static,
    ) -> Arc<Self> {
        Arc::new(Self {
            ask: Box::new(ask),
            waiting: Mutex::default(),
        })
    }

    /// The supervisor has answered.
    pub(crate) fn dialed(&self, number: u64, outcome: io::Result<OwnedFd>) {
        if let Some(answer) = self.waiting.lock().answers.remove(&number) {
            // Who asked may have given up.
            let _ = answer.send(outcome);
        }
    }

    fn dial(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        let (answer, answered) = channel();
        let mut waiting = self.waiting.lock();
        waiting.last += 1;
        let number = waiting.last;
        waiting.answers.insert(number, answer);
        drop(waiting);
        let outcome = (self.ask)(number, address).and_then(|()| {
            let answer = answered.recv_timeout(DIAL);
            answer.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        });
        self.waiting.lock().answers.remove(&number);
        outcome
    }
}

/// For the transport.
fn dialer(dials: &Arc<Dials>) -> Dialer {
    let dials: Weak<Dials> = Arc::downgrade(dials);
    Dialer::new(move |address| match dials.upgrade() {
        Some(dials) => dials.dial(address),
        None => Err(io::ErrorKind::NotConnected.into()),
    })
}
