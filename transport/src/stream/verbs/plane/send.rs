//! Sending: staging bytes or lines, posting them, and returning credits.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::sync::atomic::Ordering::{Acquire, Relaxed};

use super::{CREDIT_AT, END_AT, OWN_AT, Plane, SENDS_MAX, SENDS_SOFT, WORD_BYTES};
use crate::num::to_u64;
use crate::stream::verbs::error::VerbsError;
use crate::stream::verbs::flow::{
    self, MESSAGE_BYTES_MAX, Outgoing, advance, checked_word, credit_is_due, read_word,
};
use crate::stream::verbs::line::{self, LINE_BYTES, PAYLOAD_BYTES};
use crate::sys::socket;
use crate::sys::verbs::{Verb, Work};

/// Empty writes that find room in the queue beyond [`SENDS_MAX`].
const PRODS_MAX: u64 = 16;

/// The sending half.
pub(super) struct Tx {
    pub(super) flow: Outgoing,
    /// In the peer's inbox.
    pub(super) position: u64,
    /// Work requests posted.
    pub(super) posted: u64,
    pub(super) ended: bool,
}

impl Tx {
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            flow: Outgoing::new(messages_max, bytes_max),
            position: 0,
            posted: 0,
            ended: false,
        }
    }
}

impl Plane {
    pub(super) fn send_parts(&self, tx: &mut Tx, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut source = Source::new(parts);
        let mut sent = 0;
        loop {
            let room = self.room(tx).map_err(|error| self.fail(error))?;
            let bytes = room.min(source.left()).min(MESSAGE_BYTES_MAX);
            if bytes == 0 {
                break;
            }
            let taken = if self.memory {
                self.stage_lines(tx, &mut source, bytes)
            } else {
                self.stage_bytes(tx, &mut source, bytes)
            };
            sent += bytes;
            taken.map_err(|error| self.fail(error))?;
        }
        if sent == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(sent)
    }

    /// Bytes of the stream that the next message may carry.
    pub(super) fn room(&self, tx: &mut Tx) -> Result<usize, VerbsError> {
        self.take_credits(tx)?;
        if tx.posted - self.sends_done.load(Acquire) >= SENDS_SOFT || self.inbox_room(tx) == 0 {
            // Credits and completed sends show in the completion queue. Whoever has it looks.
            if let Some(mut rx) = self.rx.try_lock() {
                self.collect(&mut rx)?;
            }
            self.take_credits(tx)?;
        }
        if tx.posted - self.sends_done.load(Acquire) >= SENDS_MAX {
            return Ok(0);
        }
        Ok(self.inbox_room(tx))
    }

    fn inbox_room(&self, tx: &Tx) -> usize {
        if self.memory {
            tx.flow.room() / LINE_BYTES * PAYLOAD_BYTES
        } else {
            tx.flow.room()
        }
    }

    fn take_credits(&self, tx: &mut Tx) -> Result<(), VerbsError> {
        if !self.memory {
            // SYNC: Acquire pairs with the Release in `collect`.
            return tx.flow.on_freed(self.freed.load(Acquire));
        }
        let Some(total) = self.status_word(CREDIT_AT) else {
            return Ok(());
        };
        if total > tx.flow.freed() {
            tx.flow.on_freed(total)?;
            // Credits use up receives, too.
            if let Some(mut rx) = self.rx.try_lock() {
                self.collect(&mut rx)?;
            }
        }
        Ok(())
    }

    pub(super) fn status_word(&self, at: u64) -> Option<u64> {
        let mut word = [0; WORD_BYTES as usize];
        self.status.read(at, socket::as_uninit(&mut word));
        read_word(&word)
    }

    /// One message of plain bytes; the immediate value says how many, and returns credits.
    fn stage_bytes(
        &self,
        tx: &mut Tx,
        source: &mut Source<'_, '_>,
        bytes: usize,
    ) -> Result<(), VerbsError> {
        let start = tx.position;
        let mut left = bytes;
        while left > 0 {
            let piece = source.next(left);
            self.outbox.write(tx.position, piece);
            tx.position = advance(tx.position, piece.len());
            left -= piece.len();
        }
        let size = u32::try_from(bytes).unwrap_or(u32::MAX);
        tx.flow.on_sent(size);
        let immediate = self.credits_back(size);
        self.post_message(tx, start, size, immediate)
    }

    /// One message in lines.
    fn stage_lines(
        &self,
        tx: &mut Tx,
        source: &mut Source<'_, '_>,
        bytes: usize,
    ) -> Result<(), VerbsError> {
        let start = tx.position;
        let mut left = bytes;
        while left > 0 {
            let mut payload = [0; PAYLOAD_BYTES];
            let wanted = left.min(PAYLOAD_BYTES);
            let mut have = 0;
            while have < wanted {
                let piece = source.next(wanted - have);
                payload[have..have + piece.len()].copy_from_slice(piece);
                have += piece.len();
            }
            left -= wanted;
            let number = tx.position / to_u64(LINE_BYTES);
            let line = line::encode(number, &payload[..wanted], left == 0);
            self.outbox.write(tx.position, &line);
            tx.position = advance(tx.position, LINE_BYTES);
        }
        let size = u32::try_from(line::lines(bytes) * LINE_BYTES).unwrap_or(u32::MAX);
        tx.flow.on_sent(size);
        self.post_message(tx, start, size, 1)
    }

    fn post_message(
        &self,
        tx: &mut Tx,
        start: u64,
        bytes: u32,
        immediate: u32,
    ) -> Result<(), VerbsError> {
        let offset = start & (to_u64(self.outbox.bytes()) - 1);
        let work = Work {
            verb: Verb::WriteWithImmediate(immediate),
            local: self.outbox.address(start),
            lkey: self.outbox.lkey(),
            bytes,
            // The peer chose it: whatever it is, its device checks it.
            remote: self.peer.inbox.wrapping_add(offset),
            rkey: self.peer.inbox_rkey,
            signal: None,
            inline: !self.memory && bytes <= self.qp.inline_bytes(),
        };
        self.post(tx, work, false).map(drop)
    }

    /// The immediate value of a message, with all credits that are owed. Under `tx`.
    fn credits_back(&self, bytes: u32) -> u32 {
        let told = self.told.load(Relaxed);
        let read_bytes = self.consumed_bytes.load(Acquire);
        let (immediate, credits) = flow::pack(self.consumed.load(Acquire) - told, bytes);
        self.told.store(told + credits, Relaxed);
        self.told_bytes.store(read_bytes, Relaxed);
        immediate
    }

    /// Returns credits that no data carried back.
    #[cold]
    pub(super) fn send_credits(&self) -> Result<(), VerbsError> {
        let mut tx = self.tx.lock();
        if tx.ended || !self.owes_credit() {
            return Ok(());
        }
        if !self.memory {
            let immediate = self.credits_back(0);
            return self.post_word(&mut tx, None, immediate, false).map(drop);
        }
        let total = self.consumed.load(Acquire);
        self.told.store(total, Relaxed);
        self.told_bytes
            .store(self.consumed_bytes.load(Acquire), Relaxed);
        self.status.write(OWN_AT + CREDIT_AT, &checked_word(total));
        self.post_word(&mut tx, Some((CREDIT_AT, WORD_BYTES)), 1, false)
            .map(drop)
    }

    /// A write to place and length `at` of the peer's status page, from the place of ours that is for it; or of
    /// nothing but the immediate value.
    pub(super) fn post_word(
        &self,
        tx: &mut Tx,
        at: Option<(u64, u32)>,
        immediate: u32,
        signal: bool,
    ) -> Result<u64, VerbsError> {
        let (place, bytes) = at.unwrap_or((CREDIT_AT, 0));
        let work = Work {
            verb: Verb::WriteWithImmediate(immediate),
            local: self.status.address(OWN_AT + place),
            lkey: self.status.lkey(),
            bytes,
            remote: self.peer.status.wrapping_add(place),
            rkey: self.peer.status_rkey,
            signal: None,
            inline: false,
        };
        self.post(tx, work, signal)
    }

    /// Posts an empty write whose completion says that all before it is done, unless that is known. Linux' software device can
    /// forget a send queue that it has left because too much was under way: it looks at it again when something is posted.
    #[cold]
    pub(super) fn ask_whether_sent(&self) -> Result<(), VerbsError> {
        if let Some(mut rx) = self.rx.try_lock() {
            self.collect(&mut rx)?;
        }
        let Some(mut tx) = self.tx.try_lock() else {
            return Ok(());
        };
        let under_way = tx.posted - self.sends_done.load(Acquire);
        let is_known = under_way == 0 || under_way >= SENDS_MAX + PRODS_MAX;
        if is_known || tx.ended || self.failure.get().is_some() {
            return Ok(());
        }
        let work = Work {
            verb: Verb::Write,
            local: self.status.address(OWN_AT),
            lkey: self.status.lkey(),
            remote: self.peer.status,
            rkey: self.peer.status_rkey,
            ..Work::default()
        };
        self.post(&mut tx, work, true).map(drop)
    }

    /// Work requests posted, and how many of them are known to be done.
    #[cfg(test)]
    pub(in crate::stream::verbs) fn sends(&self) -> (u64, u64) {
        self.collect(&mut self.rx.lock()).unwrap_or_default();
        (self.tx.lock().posted, self.sends_done.load(Acquire))
    }

    pub(super) fn owes_credit(&self) -> bool {
        let messages = self.consumed.load(Acquire) - self.told.load(Relaxed);
        let bytes = self.consumed_bytes.load(Acquire) - self.told_bytes.load(Relaxed);
        credit_is_due(messages, bytes, self.messages_max, self.inbox.bytes())
    }

    /// Says that nothing more comes. Returns the number of the send.
    pub(super) fn end(&self) -> Result<u64, VerbsError> {
        let mut tx = self.tx.lock();
        let first = !std::mem::replace(&mut tx.ended, true);
        match (first, self.memory) {
            (true, true) => {
                self.status
                    .write(OWN_AT + END_AT, &checked_word(tx.flow.sent() + 1));
                self.post_word(&mut tx, Some((END_AT, WORD_BYTES)), 1, true)
            }
            (true, false) => self.post_word(&mut tx, None, 0, true),
            (false, _) => Ok(tx.posted),
        }
    }
}

/// The bytes that are to be sent, piece by piece.
struct Source<'a, 'b> {
    parts: &'a [IoSlice<'b>],
    offset: usize,
    left: usize,
}

impl<'a, 'b> Source<'a, 'b> {
    fn new(parts: &'a [IoSlice<'b>]) -> Self {
        Self {
            parts,
            offset: 0,
            left: parts.iter().map(|part| part.len()).sum(),
        }
    }

    fn left(&self) -> usize {
        self.left
    }

    /// Up to `most` bytes, not empty unless nothing is left.
    fn next(&mut self, most: usize) -> &'a [u8] {
        while let Some((part, rest)) = self.parts.split_first() {
            let piece = &part[self.offset..];
            if piece.is_empty() {
                self.parts = rest;
                self.offset = 0;
                continue;
            }
            let take = piece.len().min(most);
            self.offset += take;
            self.left -= take;
            return &piece[..take];
        }
        &[]
    }
}
