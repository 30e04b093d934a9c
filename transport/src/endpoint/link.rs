//! The connection under a session: how its loss is noticed, and how another one takes its place.
//!
//! Only the leading thread changes connections, as it alone may touch the receive side. Other threads
//! report what they found, or leave a new connection, and wake it.
#![forbid(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::receive::Rx;
use super::send::CTL_ACK;
use super::stats::Flush;
use super::{Endpoint, Shared};
use crate::error::CloseReason;
use crate::handshake::Positions;
use crate::stream::severed::Severed;
use crate::stream::{Planes, Stream};
use crate::sys::lead::Lead;

/// Someone found the connection broken.
pub(super) const TROUBLE: u32 = 1;
/// A new connection waits to be taken.
pub(super) const NEXT: u32 = 2;
/// There is no connection.
pub(super) const DOWN: u32 = 4;

/// How long a busy leader may take to let go of a connection, or to take one.
pub(super) const LEADER: Duration = Duration::from_secs(5);
/// Where more keeps coming, so many times as long is waited.
const MOVING: u32 = 4;
/// How often a thread that waits for the leader looks itself.
const LOOK: Duration = Duration::from_millis(5);

/// The connection, seen from threads that do not send or receive.
pub(super) struct Link {
    /// What the leader has to see to: `TROUBLE`, `NEXT`, `DOWN`.
    attention: AtomicU32,
    state: Mutex<State>,
    /// Which of the session's connections this is, as both sides know it.
    number: AtomicU32,
}

struct State {
    stream: Arc<dyn Stream>,
    /// Losses so far.
    epoch: u64,
    trouble: Option<Trouble>,
    lost: Option<(CloseReason, Instant)>,
    next: Option<Next>,
    /// Connections that fell silent, of a client: open until another one is in use or the session is over. Closing them
    /// would tell the server that the program has ended (see [`crate::Tuning::grace_closed`]).
    silent: Vec<Arc<dyn Stream>>,
    /// Why the connection before this one was lost.
    before: Option<CloseReason>,
    /// What had been heard of the peer when this connection began.
    heard: u64,
}

/// A reported loss.
struct Trouble {
    why: CloseReason,
    since: Instant,
    /// How long the receive side may take to show more.
    patience: Duration,
}

impl Trouble {
    /// Whether it is time to act. What still comes may explain more; but it may also come without end, when
    /// it is the bulk connection that is broken.
    fn is_due(&self, moved: bool) -> bool {
        let patience = self.patience * if moved { MOVING } else { 1 };
        self.since.elapsed() >= patience
    }
}

impl State {
    /// Why the connection was lost, where its end says `why`. One that brought nothing was given up by a client in the
    /// middle of its attempt: that it was closed says nothing about the program, only the loss before does.
    fn explained(&mut self, why: CloseReason, heard: u64) -> CloseReason {
        match self.before.take() {
            Some(before) if why.is_closed() && heard == self.heard => before,
            _ => why,
        }
    }
}

/// A connection that is to take the lost one's place.
pub(super) struct Next {
    pub(super) planes: Planes,
    pub(super) number: u32,
    /// What has arrived at the peer.
    pub(super) there: Positions,
}

impl Link {
    pub(super) fn new(stream: Arc<dyn Stream>) -> Self {
        Self {
            attention: AtomicU32::new(0),
            state: Mutex::new(State {
                stream,
                epoch: 0,
                trouble: None,
                lost: None,
                next: None,
                silent: Vec::new(),
                before: None,
                heard: 0,
            }),
            number: AtomicU32::new(0),
        }
    }

    /// The call plane's stream.
    pub(super) fn stream(&self) -> Arc<dyn Stream> {
        Arc::clone(&self.state.lock().stream)
    }

    /// The same where waiting for a lock could be for ever.
    pub(super) fn try_stream(&self) -> Option<Arc<dyn Stream>> {
        Some(Arc::clone(&self.state.try_lock()?.stream))
    }

    /// Whether there is no connection.
    pub(super) fn is_down(&self) -> bool {
        self.attention.load(SeqCst) & DOWN != 0
    }

    /// Whether the leader should not sleep.
    pub(super) fn is_pressing(&self) -> bool {
        let bits = self.attention.load(SeqCst);
        bits & NEXT != 0
            || (bits & TROUBLE != 0 && self.trouble_left().is_some_and(|d| d.is_zero()))
    }

    /// For how long a report still waits.
    pub(super) fn trouble_left(&self) -> Option<Duration> {
        if self.attention.load(SeqCst) & TROUBLE == 0 {
            return None;
        }
        let state = self.state.lock();
        let trouble = state.trouble.as_ref()?;
        Some(trouble.patience.saturating_sub(trouble.since.elapsed()))
    }

    /// Losses so far: tells one connection's errors from the next one's.
    pub(super) fn epoch(&self) -> u64 {
        self.state.lock().epoch
    }

    /// Which of the session's connections this is.
    pub(super) fn number(&self) -> u32 {
        self.number.load(Acquire)
    }

    /// Closes what was kept open.
    pub(super) fn close_silent(&self) {
        let silent = std::mem::take(&mut self.state.lock().silent);
        silent.iter().for_each(|stream| stream.shutdown());
    }

    /// Why and since when there is no connection.
    pub(super) fn lost(&self) -> Option<(CloseReason, Instant)> {
        self.state.lock().lost.clone()
    }
}

impl Endpoint {
    /// Says that the connection of `epoch` is broken. From any thread; the leader acts on it, after
    /// `patience` in which it may receive what explains more.
    pub(super) fn report_loss(&self, epoch: u64, why: CloseReason, patience: Duration) {
        if self.shared.note_loss(epoch, why, patience) {
            self.wake_receiver();
        }
    }

    /// Sees to what other threads found or brought. Called by the leader.
    pub(super) fn attend(&self, lead: &Lead<'_, Rx>, moved: bool) {
        let link = &self.shared.link;
        let bits = link.attention.load(SeqCst);
        if bits & NEXT != 0 {
            return self.take(lead);
        }
        if bits & (TROUBLE | DOWN) == TROUBLE {
            let state = link.state.lock();
            let due = state.trouble.as_ref().filter(|t| t.is_due(moved));
            let why = due.map(|trouble| trouble.why.clone());
            drop(state);
            if let Some(why) = why {
                self.on_loss(lead, why);
            }
        }
    }

    /// The connection is lost: the session waits for another one, or ends. Called by the leader.
    pub(super) fn on_loss(&self, lead: &Lead<'_, Rx>, why: CloseReason) {
        let shared = &*self.shared;
        if shared.closed.load(Acquire) {
            return;
        }
        let can_wait = matches!(why, CloseReason::Lost(_))
            && shared.can_resume()
            && !shared.goodbye.load(SeqCst);
        // A server that is told to end does; a client would like to deliver what is pending.
        if can_wait && (shared.redial.is_some() || !shared.closing.load(SeqCst)) {
            self.suspend(lead, why);
        } else {
            self.fail(why);
        }
    }

    /// Lets go of the connection and keeps the session.
    fn suspend(&self, lead: &Lead<'_, Rx>, why: CloseReason) {
        let shared = &*self.shared;
        log::warn!("session {}: {why}; waiting to resume", shared.session);
        let old = shared.link.stream();
        let severed: Arc<dyn Stream> = Arc::new(Severed::of(&*old));
        lead.with(|rx| rx.sever(Arc::clone(&severed)));
        let old_bulk = shared.bulk_in.lock().detach(shared);
        let mut wire = shared.wire.lock();
        wire.sever(Arc::clone(&severed));
        let mut state = shared.link.state.lock();
        state.stream = severed;
        state.epoch += 1;
        state.trouble = None;
        let keeps_open = shared.redial.is_some() && !why.is_closed();
        let why = state.explained(why, shared.counters.heard());
        state.lost = Some((why, Instant::now()));
        if keeps_open {
            state.silent.push(Arc::clone(&old));
            state.silent.extend(old_bulk.clone());
        }
        // SYNC: the last step: who sees DOWN sees positions that no longer move.
        let attention = &shared.link.attention;
        attention.store(attention.load(SeqCst) & NEXT | DOWN, SeqCst);
        drop(state);
        shared.want_write.store(false, SeqCst);
        drop(wire);
        if !keeps_open {
            old.shutdown();
            if let Some(bulk) = old_bulk {
                bulk.shutdown();
            }
        }
        shared.counters.add(&shared.counters.losses, 1);
        shared.events.advance();
        self.wake_helper();
    }

    /// Takes the connection that waits. Called by the leader.
    fn take(&self, lead: &Lead<'_, Rx>) {
        let link = &self.shared.link;
        let next = link.state.lock().next.take();
        if let Some(next) = next {
            self.install(lead, next);
        }
        // Only now: who brought it takes the bit's going for its being in use.
        let state = link.state.lock();
        if state.next.is_none() {
            link.attention.fetch_and(!NEXT, SeqCst);
        }
        drop(state);
        self.shared.events.advance();
    }

    fn install(&self, lead: &Lead<'_, Rx>, next: Next) {
        let shared = &*self.shared;
        let Next {
            planes: (call, bulk),
            number,
            there,
        } = next;
        // An attempt that comes late, behind a newer one, names positions that are long past.
        let is_late = number <= shared.link.number();
        if is_late || !shared.link.is_down() || shared.closed.load(SeqCst) {
            return;
        }
        let mut wire = shared.wire.lock();
        {
            let mut tx = shared.tx();
            if let Err(violation) = shared.rewind(&mut tx, there.call) {
                drop((tx, wire));
                return self.fail(violation.into());
            }
            // SYNC: under `tx`, so that no appender sees the old one beside the new acknowledgement.
            shared.sent.store(there.call, Release);
        }
        lead.with(|rx| rx.stream = Arc::clone(&call));
        shared.costly.store(call.is_costly(), Relaxed);
        shared.bulk_in.lock().attach(shared, bulk, there.bulk);
        // The peer knows nothing of the credits since; the next header tells it.
        shared.told_ack.store(0, Relaxed);
        shared.told_credit.store(0, Relaxed);
        shared.bulk_acked.fetch_max(there.bulk, Release);
        let mut state = shared.link.state.lock();
        state.stream = Arc::clone(&call);
        let lost = state.lost.take();
        let paused = lost.as_ref().map(|(_, since)| since.elapsed());
        state.before = lost.map(|(why, _)| why);
        state.heard = shared.counters.heard();
        wire.connect(call, there.call, state.epoch);
        shared.link.number.store(number, Release);
        // Under the lock: what is reported from now on is about the new connection.
        shared.link.attention.fetch_and(!(DOWN | TROUBLE), SeqCst);
        drop(state);
        drop(wire);
        shared.link.close_silent();
        shared.counters.add(&shared.counters.resumes, 1);
        log::info!(
            "session {}: resumed after {:.3} s",
            shared.session,
            paused.unwrap_or_default().as_secs_f64()
        );
        shared.events.advance();
        self.send_control(CTL_ACK);
        self.transmit(Flush::Forced);
        self.wake_helper();
    }

    /// Leaves a connection for the leader and waits until it is taken. False: the session is over.
    pub(super) fn take_next(&self, next: Next, deadline: Instant) -> bool {
        let link = &self.shared.link;
        {
            let mut state = link.state.lock();
            state.next = Some(next);
            link.attention.fetch_or(NEXT, SeqCst);
        }
        self.wake_leader();
        self.settle(|| link.attention.load(SeqCst) & NEXT == 0, deadline)
    }

    /// Makes the session let go of its connection, if it has not yet.
    pub(super) fn let_go(&self, deadline: Instant) -> bool {
        let link = &self.shared.link;
        let why = io::Error::other("the client comes on another connection");
        self.report_loss(link.epoch(), CloseReason::lost(why), Duration::ZERO);
        self.settle(|| link.is_down(), deadline)
    }

    /// Waits until connection `number` was taken; false when it was not, or another one was since.
    pub(super) fn await_link(&self, number: u32, deadline: Instant) -> bool {
        let link = &self.shared.link;
        let taken = || {
            // Under the lock: between a number and its connection's being in use nobody may look.
            let _state = link.state.lock();
            link.number()
        };
        if taken() < number {
            self.settle(|| taken() >= number, deadline);
        }
        taken() == number
    }

    /// Waits until the leader has brought something about, leading itself if nobody does.
    fn settle(&self, done: impl Fn() -> bool, deadline: Instant) -> bool {
        let shared = &*self.shared;
        loop {
            let seen = shared.events.epoch();
            if done() {
                return true;
            }
            if shared.closed.load(Acquire) || Instant::now() >= deadline {
                return false;
            }
            if let Some(lead) = shared.rx.try_lead() {
                self.pump(&lead);
                drop(lead);
                self.release_lead();
                continue;
            }
            self.wake_leader();
            shared.events.enter();
            if !done() {
                shared.events.sleep(seen, Some(LOOK));
            }
            shared.events.leave();
        }
    }

    /// Ends a session whose time to resume is over.
    pub(super) fn expire(&self) -> Option<Duration> {
        let (why, since) = self.shared.link.lost()?;
        let left = self
            .shared
            .tuning
            .grace_after(&why)
            .saturating_sub(since.elapsed());
        if left.is_zero() {
            self.fail(why);
        }
        Some(left)
    }
}

impl Shared {
    /// Whether this session can outlive its connection.
    pub(super) fn can_resume(&self) -> bool {
        !self.tuning.grace.is_zero() && (self.redial.is_some() || self.prompt_ack)
    }

    /// Remembers a report; false if it is about a connection that is gone, or not the first.
    pub(super) fn note_loss(&self, epoch: u64, why: CloseReason, patience: Duration) -> bool {
        let mut state = self.link.state.lock();
        let known = state
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.patience <= patience);
        if state.epoch != epoch || state.lost.is_some() || known {
            return false;
        }
        state.trouble = Some(Trouble {
            why,
            since: Instant::now(),
            patience,
        });
        self.link.attention.fetch_or(TROUBLE, SeqCst);
        true
    }

    /// Whether the leader has something to see to beside receiving.
    #[inline]
    pub(super) fn needs_attention(&self) -> bool {
        self.link.attention.load(Relaxed) != 0
    }
}
