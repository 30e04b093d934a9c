//! The connection of the bulk plane: opened by the client when first needed, lost with the call plane's.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use super::bulk_in::BulkIn;
use super::link::{LEADER, Link};
use super::wait::BulkWait;
use super::{Endpoint, Shared};
use crate::error::{AdoptError, CloseReason, RefuseCode, WaitError};
use crate::handshake::{Handover, HandoverKind, SERVER_HEAD_BYTES, ServerHead};
use crate::stream::Stream;
use crate::stream::tcp::TcpStream;
use crate::sys::poll::PollSet;

/// What a connection is told that names a session without the right to it.
pub(super) const NO_SUCH_SESSION: &str = "no such session";

impl Endpoint {
    /// Server side: gives the session its bulk connection. `fd` and `state` come from
    /// [`crate::Incoming::into_parts`] of a connection of kind `Bulk` for this session.
    ///
    /// After a lost connection whoever receives sends what the client lacks of earlier transfers. Does not
    /// block, but that the bulk connection may be here before the connection that it belongs to was taken:
    /// that is waited for, at most 5 s.
    ///
    /// # Errors
    /// [`AdoptError::WrongSession`] when the client cannot prove that it owns the session, or
    /// the session has a bulk connection already.
    pub fn attach_bulk(&self, fd: OwnedFd, state: &[u8]) -> Result<(), AdoptError> {
        self.check()?;
        let shared = &*self.shared;
        let handover = Handover::decode(state)?;
        let mine = handover.kind == HandoverKind::Bulk
            && handover.agreed.session == shared.session
            && handover.agreed.key.matches(&shared.key);
        if !mine || !self.await_link(handover.link, Instant::now() + LEADER) {
            handover.refuse(fd, RefuseCode::SESSION, NO_SUCH_SESSION);
            return Err(AdoptError::WrongSession);
        }
        let stream = handover.protect(TcpStream::new(fd, self.peer())?)?;
        let head = ServerHead::welcome(
            shared.version,
            shared.session,
            shared.key,
            &handover.agreed.local,
            0,
        );
        {
            let mut bulk = shared.bulk_in.lock();
            // What belongs to one connection must not be read as the next one's.
            if !bulk.may_open(&shared.link) || shared.link.number() != handover.link {
                return Err(AdoptError::WrongSession);
            }
            bulk.open(shared, stream, head.bytes().to_vec(), 0);
        }
        self.notify();
        Ok(())
    }

    /// Gives the session a bulk connection that needs no handshake.
    pub(crate) fn attach_bulk_stream(&self, stream: Arc<dyn Stream>) {
        let shared = &*self.shared;
        shared.bulk_in.lock().open(shared, stream, Vec::new(), 0);
    }

    /// Client: opens the bulk connection, without waiting for it, if there is none. Does nothing while
    /// there is no connection at all.
    pub(super) fn open_bulk(&self) -> Result<(), CloseReason> {
        let shared = &*self.shared;
        let Some(redial) = &shared.redial else {
            return Ok(());
        };
        let mut bulk = shared.bulk_in.lock();
        if !bulk.may_open(&shared.link) {
            return Ok(());
        }
        match redial.open_bulk(shared.link.number()) {
            Ok(None) => {}
            Ok(Some((stream, hello))) => {
                bulk.open(shared, stream, hello, SERVER_HEAD_BYTES);
                drop(bulk);
                // Whoever receives sends what goes first.
                self.notify();
            }
            Err(error) => {
                drop(bulk);
                let why = CloseReason::lost(error);
                self.report_loss(shared.link.epoch(), why.clone(), Duration::ZERO);
                return Err(why);
            }
        }
        Ok(())
    }

    /// Client: after the session was resumed, opens the bulk connection if the session had one, and sends
    /// what goes first on it. False: there is more to do, after `time`.
    pub(super) fn reopen_bulk(&self, time: Duration) -> bool {
        let was_open = self.shared.bulk_in.lock().was_open();
        if !was_open || self.open_bulk().is_err() {
            return true;
        }
        // Otherwise it ends early only with the session, or with a further loss.
        !matches!(
            self.flush_bulk(Some(Instant::now() + time)),
            Err(WaitError::TimedOut)
        )
    }

    /// Adds what the leader waits for on the bulk plane, and says whether it may sleep.
    pub(super) fn arm_bulk(&self, set: &mut PollSet, wait: BulkWait) -> (bool, Armed) {
        let shared = &*self.shared;
        let read = shared.expects_bulk();
        let write = wait == BulkWait::Room || shared.bulk_fresh.load(SeqCst);
        if !(read || write || wait == BulkWait::Beside) {
            return (true, Armed(None));
        }
        Armed::new(shared.bulk_in.lock().stream.clone(), set, read, write)
    }

    /// Adds what a thread waits for that does not lead.
    pub(super) fn arm_bulk_follower(&self, set: &mut PollSet, wait: BulkWait) -> (bool, Armed) {
        let stream = self.shared.bulk_in.lock().stream.clone();
        Armed::new(stream, set, false, wait == BulkWait::Room)
    }
}

/// What the receiving half knows of the connection. Every change is counted in `bulk_version`, under the
/// lock of `BulkIn`.
#[derive(Default)]
pub(super) struct BulkLink {
    /// Handshake bytes that the sending half has not taken over.
    prelude: Vec<u8>,
    /// What the peer has received: where sending goes on.
    there: u64,
    /// There was a connection before.
    used: bool,
    /// Let go of, and not attached again: the session is about to lose its connection, or has lost it.
    severed: bool,
}

impl BulkIn {
    /// A connection is there. `answer` bytes come before the transfers.
    fn open(&mut self, shared: &Shared, stream: Arc<dyn Stream>, prelude: Vec<u8>, answer: usize) {
        self.stream = Some(stream);
        self.expect_welcome(answer);
        self.link.prelude = prelude;
        self.link.used = true;
        shared.bulk_fresh.store(true, SeqCst);
        shared.bulk_unanswered.store(answer > 0, SeqCst);
        shared.bulk_stalled.store(false, SeqCst);
        shared.bulk_version.fetch_add(1, SeqCst);
    }

    /// The connection is lost; what was received of a transfer stays.
    pub(super) fn detach(&mut self, shared: &Shared) -> Option<Arc<dyn Stream>> {
        self.halt();
        let old = self.stream.take();
        self.expect_welcome(0);
        self.link.prelude = Vec::new();
        self.link.severed = true;
        shared.bulk_fresh.store(false, SeqCst);
        shared.bulk_unanswered.store(false, SeqCst);
        shared.bulk_version.fetch_add(1, SeqCst);
        old
    }

    /// The session goes on: with a bulk connection, or until one is opened. The peer has `there`.
    pub(super) fn attach(&mut self, shared: &Shared, stream: Option<Arc<dyn Stream>>, there: u64) {
        self.link.there = there;
        self.link.severed = false;
        shared.bulk_stalled.store(false, SeqCst);
        match stream {
            Some(stream) => self.open(shared, stream, Vec::new(), 0),
            None => {
                shared.bulk_version.fetch_add(1, SeqCst);
            }
        }
    }

    /// Whether a connection that belongs to the present `link` may be opened. What it says holds for as long
    /// as the lock on this is held: a lost connection is let go of here before `link` shows it, and the next
    /// one is attached here before `link` shows that.
    fn may_open(&self, link: &Link) -> bool {
        self.stream.is_none() && !self.link.severed && !link.is_down()
    }

    /// For the sending half: the connection, what goes first, and where to go on.
    pub(super) fn take_out(&mut self) -> Option<(Arc<dyn Stream>, Vec<u8>, u64)> {
        let stream = self.stream.clone()?;
        Some((
            stream,
            std::mem::take(&mut self.link.prelude),
            self.link.there,
        ))
    }

    fn was_open(&self) -> bool {
        self.link.used
    }
}

/// A stream that someone sleeps for; dropping it ends that.
pub(super) struct Armed(Option<Arc<dyn Stream>>);

impl Armed {
    fn new(
        stream: Option<Arc<dyn Stream>>,
        set: &mut PollSet,
        read: bool,
        write: bool,
    ) -> (bool, Self) {
        let idle = stream
            .as_ref()
            .is_none_or(|stream| stream.arm(set, read, write));
        (idle, Self(stream))
    }
}

impl Drop for Armed {
    fn drop(&mut self) {
        if let Some(stream) = &self.0 {
            stream.disarm();
        }
    }
}

/// Errors of a connection that was refused, as the session's loss.
pub(super) fn refused() -> CloseReason {
    CloseReason::lost(io::Error::new(
        io::ErrorKind::ConnectionRefused,
        "the server refused the bulk connection",
    ))
}
