//! Receiving: what the leading thread does with the bytes that arrive.

#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::{Duration, Instant};

use super::send::{CTL_ACK, CTL_PONG};
use super::stats::Flush;
use super::{Endpoint, Shared};
use crate::error::{CloseReason, Violation};
use crate::num::{to_u64, to_usize};
use crate::session::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Receiver, credit_is_due};
use crate::stream::Stream;
use crate::sys::lead::Lead;

const HEADER: u64 = FRAME_HEADER_BYTES as u64;

/// The receiving half of the connection; belongs to the leading thread. Positions are local
/// to the ring: `consumed <= parsed <= filled < consumed + ring`.
pub(super) struct Rx {
    pub(super) stream: Arc<dyn Stream>,
    pub(super) receiver: Receiver,
    /// Received from the stream.
    pub(super) filled: u64,
    /// Complete frames that were checked and acknowledged.
    pub(super) parsed: u64,
    /// Frames that the handler is done with.
    pub(super) consumed: u64,
    /// The stream ended, with what the system said.
    ended: Option<CloseReason>,
    /// The peer said that it closes.
    peer_closed: bool,
    /// With an added delay: what was received when.
    delayed: VecDeque<(u64, Instant)>,
}

impl Rx {
    pub(super) fn new(stream: Arc<dyn Stream>, receiver: Receiver) -> Self {
        Self {
            stream,
            receiver,
            filled: 0,
            parsed: 0,
            consumed: 0,
            ended: None,
            peer_closed: false,
            delayed: VecDeque::new(),
        }
    }

    /// Lets go of the connection, and of what has not come whole: it will be sent again.
    pub(super) fn sever(&mut self, severed: Arc<dyn Stream>) {
        self.stream = severed;
        self.filled = self.parsed;
        self.ended = None;
        self.delayed.clear();
    }

    /// Up to where received bytes count as here.
    fn visible(&mut self, added: Duration) -> u64 {
        if added.is_zero() {
            return self.filled;
        }
        while let Some(&(_, since)) = self.delayed.front()
            && since.elapsed() >= added
        {
            self.delayed.pop_front();
        }
        // What is still delayed begins where the released part ends.
        self.delayed
            .front()
            .map_or(self.filled, |&(start, _)| start)
    }

    /// How long until delayed bytes count as here.
    pub(super) fn delay_left(&self, added: Duration) -> Option<Duration> {
        self.delayed
            .front()
            .map(|&(_, since)| added.saturating_sub(since.elapsed()))
    }

    /// Room for `recv`.
    pub(super) fn room(&self, ring_bytes: usize) -> usize {
        ring_bytes - to_usize(self.filled - self.consumed)
    }

    /// The next frame to deliver: where, and how long.
    fn next(&mut self, shared: &Shared) -> Option<(u64, u32)> {
        while self.consumed < self.parsed {
            let at = self.consumed;
            // Checked when it was parsed, and nobody else writes this memory.
            let header = FrameHeader::decode(&shared.received_header(self, at), u32::MAX).ok()?;
            if header.kind() == FrameKind::Data {
                return Some((at, header.len()));
            }
            self.consumed += HEADER;
        }
        if self.consumed == self.filled && self.delayed.is_empty() {
            // Empty: begin at the start again, where the cache is warm.
            (self.filled, self.parsed, self.consumed) = (0, 0, 0);
        }
        None
    }
}

/// What a look at the stream found.
#[derive(Default)]
struct Parsed {
    ack: u64,
    credit: u64,
    /// Bulk bytes that have arrived at the peer, if it said so.
    bulk: u64,
    frames: u64,
    any: bool,
}

impl Endpoint {
    /// Receives what is there and delivers it. Returns whether anything was.
    ///
    /// # Errors
    /// The reason for which the session ended, now or before.
    pub fn poll(&self) -> Result<bool, CloseReason> {
        self.check()?;
        let Some(lead) = self.shared.rx.try_lead() else {
            return Ok(false);
        };
        let moved = self.pump(&lead);
        drop(lead);
        self.release_lead();
        self.check()?;
        Ok(moved)
    }

    /// One round of the leader: receive, check, deliver. Inside a handler (`nested`) frames
    /// are received and acknowledged but not delivered. Where it returns true, the caller advances the event count, at
    /// the latest with [`Endpoint::release_lead`].
    pub(super) fn pump(&self, lead: &Lead<'_, Rx>) -> bool {
        let moved = self.pump_acks(lead);
        let delivered = !lead.is_nested() && self.deliver(lead);
        let bulk = self.pump_bulk();
        self.finish(lead, moved || delivered);
        moved || delivered || bulk
    }

    /// Receives and checks frames, and takes over their acknowledgements.
    pub(super) fn pump_acks(&self, lead: &Lead<'_, Rx>) -> bool {
        let shared = &*self.shared;
        let result = lead.with(|rx| {
            let got = shared.receive(rx);
            if got == 0 && shared.tuning.added_rtt.is_zero() {
                return Ok(None);
            }
            let parsed = shared.parse(rx)?;
            shared.rx_ack.store(rx.receiver.ack(), Release);
            Ok::<_, Violation>((parsed.any || got > 0).then_some(parsed))
        });
        match result {
            Ok(None) => false,
            Ok(Some(parsed)) => {
                self.on_parsed(&parsed);
                true
            }
            Err(violation) => {
                self.fail(violation.into());
                true
            }
        }
    }

    fn on_parsed(&self, parsed: &Parsed) {
        let shared = &*self.shared;
        if !parsed.any {
            return;
        }
        shared
            .counters
            .bump(&shared.counters.frames_in, parsed.frames);
        match shared.on_ack(parsed.ack, parsed.credit) {
            Err(violation) => return self.fail(violation.into()),
            Ok(false) => {}
            Ok(true) => {
                // Everyone else is told once all that came is delivered.
                if shared.starved.load(Relaxed) != 0 {
                    shared.events.advance();
                }
                if shared.gathered.load(Acquire) && !shared.heard.in_flight() {
                    self.transmit(Flush::Ack);
                }
            }
        }
        if parsed.bulk > 0 {
            shared.bulk_acked.fetch_max(parsed.bulk, Release);
            shared.events.advance();
        }
        if shared.control.load(Relaxed) & CTL_PONG != 0 {
            self.transmit(Flush::Forced);
        }
    }

    /// Hands complete frames to the handler.
    fn deliver(&self, lead: &Lead<'_, Rx>) -> bool {
        let shared = &*self.shared;
        let mut any = false;
        while let Some((at, len)) = lead.with(|rx| rx.next(shared)) {
            any = true;
            self.hand_over(at, len);
            let credit = lead.with(|rx| {
                rx.consumed += HEADER + u64::from(len);
                rx.receiver.on_consumed(len);
                rx.receiver.credit()
            });
            shared.rx_credit.store(credit, Release);
            let told = shared.told_credit.load(Relaxed);
            if credit_is_due(credit, told.min(credit), shared.window_bytes) {
                self.send_control(CTL_ACK);
            }
            if shared.closed.load(Acquire) {
                break;
            }
        }
        any
    }

    /// Sees to the end of the stream, once everything is delivered, and to what other threads report. A
    /// handler that waits for room (`nested`) sees to it when nothing more comes that could make room.
    fn finish(&self, lead: &Lead<'_, Rx>, moved: bool) {
        if lead.is_nested() && moved {
            return;
        }
        let why = lead.with(|rx| {
            if rx.peer_closed {
                return Some(CloseReason::Peer);
            }
            rx.ended.clone().filter(|_| rx.delayed.is_empty())
        });
        match why {
            Some(why @ CloseReason::Lost(_)) => self.on_loss(lead, why),
            Some(why) => self.fail(why),
            None if self.shared.needs_attention() => self.attend(lead, moved),
            None => {}
        }
    }

    /// Tells the peer what arrived, if it does not know.
    pub(super) fn acknowledge(&self) {
        let shared = &*self.shared;
        if shared.rx_ack.load(Acquire) != shared.told_ack.load(Relaxed) {
            self.send_control(CTL_ACK);
        }
    }
}

impl Shared {
    /// Takes what the stream has. Returns how many bytes.
    fn receive(&self, rx: &mut Rx) -> usize {
        let room = rx.room(self.rx_ring.bytes());
        if room == 0 || rx.ended.is_some() {
            return 0;
        }
        match self.fill_ring(rx, room) {
            Ok(0) => {
                let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the peer is gone");
                rx.ended = Some(CloseReason::lost(error));
                0
            }
            Ok(got) => {
                if !self.tuning.added_rtt.is_zero() {
                    rx.delayed.push_back((rx.filled, Instant::now()));
                }
                rx.filled += to_u64(got);
                self.counters.bump(&self.counters.bytes_in, to_u64(got));
                got
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                rx.ended = Some(CloseReason::of_stream(error));
                0
            }
        }
    }

    /// Checks every complete frame that has arrived.
    fn parse(&self, rx: &mut Rx) -> Result<Parsed, Violation> {
        let mut parsed = Parsed::default();
        let visible = rx.visible(self.tuning.added_rtt);
        while !rx.peer_closed && visible - rx.parsed >= HEADER {
            let bytes = self.received_header(rx, rx.parsed);
            let header = FrameHeader::decode(&bytes, self.frame_bytes_max)?;
            let total = HEADER + u64::from(header.len());
            if visible - rx.parsed < total {
                break;
            }
            match header.kind() {
                FrameKind::Data => {
                    rx.receiver.on_ordered_data(&header)?;
                    parsed.frames += 1;
                }
                FrameKind::Close => {
                    rx.receiver.on_close(header.seq())?;
                    rx.peer_closed = true;
                }
                FrameKind::Ping => {
                    self.pong.store(header.seq(), Release);
                    self.control.fetch_or(CTL_PONG, Release);
                }
                FrameKind::Ack => parsed.bulk = parsed.bulk.max(header.seq()),
                FrameKind::Pong => self.on_pong(),
            }
            parsed.any = true;
            parsed.ack = parsed.ack.max(header.ack());
            parsed.credit = parsed.credit.max(header.credit());
            rx.parsed += total;
        }
        Ok(parsed)
    }
}
