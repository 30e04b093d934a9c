//! Coming back after a lost connection: the client dials, the server lets it in.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::time::{Duration, Instant};

use super::Endpoint;
use super::bulk_link::NO_SUCH_SESSION;
use super::link::{LEADER, Next};
use crate::connect::redial::{DialError, Redial};
use crate::error::{AdoptError, CloseReason, RefuseCode};
use crate::handshake::{Handover, HandoverKind, Positions};
use crate::session::Backoff;
use crate::sys::random::random16;

/// Bound on one attempt to connect.
const ATTEMPT: Duration = Duration::from_secs(3);
/// The same over RDMA, where queue pairs are made, and 1.5 s are for a path that shows not to carry packets.
const RDMA_ATTEMPT: Duration = Duration::from_secs(10);

impl Endpoint {
    /// Server side: the session's client comes on another connection. `fd` and `state` come from
    /// [`crate::Incoming::into_parts`] of a connection of kind `Resume` for this session. Everything that
    /// the client has not received is sent again, and the other way round; nothing is delivered twice.
    ///
    /// Blocks until whoever receives has taken the connection: a handler's time, at most 5 s; and for the
    /// exchange of the handshake.
    ///
    /// # Errors
    /// [`AdoptError::WrongSession`] when the client cannot prove that it owns the session, or a later
    /// connection of it was here before.
    pub fn resume(&self, fd: OwnedFd, state: &[u8]) -> Result<(), AdoptError> {
        let shared = &*self.shared;
        let handover = Handover::decode(state)?;
        let mine = handover.kind == HandoverKind::Resume
            && handover.agreed.session == shared.session
            && handover.agreed.key.matches(&shared.key);
        // An old attempt that comes late must not take the place of a newer one.
        let fresh = handover.link > shared.link.number();
        if !mine || !fresh || !shared.can_resume() {
            handover.refuse(fd, RefuseCode::SESSION, NO_SUCH_SESSION);
            return Err(AdoptError::WrongSession);
        }
        if let Err(why) = self.check() {
            handover.refuse(fd, RefuseCode::SESSION, NO_SUCH_SESSION);
            return Err(why.into());
        }
        let deadline = Instant::now() + LEADER;
        if !self.let_go(deadline) {
            self.check()?;
            return Err(io::Error::from(io::ErrorKind::TimedOut).into());
        }
        let planes = handover.welcome(fd, &[], self.positions())?;
        let next = Next {
            planes,
            number: handover.link,
            there: handover.positions,
        };
        self.take_next(next, Instant::now() + LEADER);
        Ok(self.check()?)
    }

    /// What has arrived here; does not move while there is no connection.
    fn positions(&self) -> Positions {
        Positions {
            call: self.shared.rx_ack.load(Acquire),
            bulk: self.shared.bulk_received.load(Acquire),
        }
    }

    /// Client, on the flusher's thread: dials until the session is resumed (true) or over.
    pub(super) fn reconnect(&self, stop: &dyn Fn() -> bool, nap: &dyn Fn(Duration)) -> bool {
        let shared = &*self.shared;
        let (Some(redial), Some((why, since))) = (&shared.redial, shared.link.lost()) else {
            return false;
        };
        let deadline = since + shared.tuning.grace;
        let seed = random16().map_or(0, |bytes| {
            bytes
                .iter()
                .fold(0, |all, byte| all << 8 | u64::from(*byte))
        });
        let mut backoff = Backoff::new(seed);
        while shared.link.is_down() && !stop() && !shared.closed.load(SeqCst) {
            match self.dial(redial, deadline) {
                Ok(()) => return true,
                Err(DialError::Again(error)) => {
                    log::debug!("session {}: not resumed yet: {error}", shared.session);
                }
                Err(gone) => {
                    self.fail(ended(&gone, &why));
                    return false;
                }
            }
            if Instant::now() >= deadline {
                self.fail(why);
                return false;
            }
            let wait = backoff.wait();
            nap(wait.min(deadline.saturating_duration_since(Instant::now())));
        }
        false
    }

    /// One attempt.
    fn dial(&self, redial: &Redial, deadline: Instant) -> Result<(), DialError> {
        let shared = &*self.shared;
        let number = shared.attempts.fetch_add(1, SeqCst) + 1;
        let time = redial.rdma.map_or(ATTEMPT, |_| RDMA_ATTEMPT);
        let until = deadline.min(Instant::now() + time);
        let (planes, there) = redial.resume(number, self.positions(), until)?;
        let next = Next {
            planes,
            number,
            there,
        };
        if self.take_next(next, Instant::now() + LEADER) {
            Ok(())
        } else {
            Err(io::Error::from(io::ErrorKind::TimedOut).into())
        }
    }
}

/// Why the session is over when its server has told so.
fn ended(gone: &DialError, why: &CloseReason) -> CloseReason {
    match (gone, why) {
        (DialError::Restarted, _) => CloseReason::Restarted,
        (DialError::Expired, CloseReason::Lost(error)) => CloseReason::Expired(Arc::clone(error)),
        _ => why.clone(),
    }
}
