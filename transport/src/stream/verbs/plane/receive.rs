//! Receiving: completions or lines, and what else may have happened.
#![forbid(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Instant;

use super::{END_AT, Plane, REPOST};
use crate::num::{to_u64, to_usize};
use crate::stream::recv_into;
use crate::stream::verbs::error::VerbsError;
use crate::stream::verbs::flow::{self, Incoming, advance};
use crate::stream::verbs::line::{self, LINE_BYTES, Line};
use crate::sys::poll::{IN, PollSet};
use crate::sys::socket;
use crate::sys::verbs::{AsyncCause, CompletionKind};

/// The receiving half, and the completion queue.
pub(super) struct Rx {
    pub(super) flow: Incoming,
    /// In our inbox.
    position: u64,
    /// Receives that were used and not posted anew.
    used: usize,
    /// Memory mode: messages read since completions were collected.
    uncollected: usize,
    /// Memory mode: a line that was read in part.
    line: Option<(Line, usize)>,
    ended: bool,
}

impl Rx {
    pub(super) fn new(messages_max: usize, bytes_max: usize) -> Self {
        Self {
            flow: Incoming::new(messages_max, bytes_max),
            position: 0,
            used: 0,
            uncollected: 0,
            line: None,
            ended: false,
        }
    }
}

impl Plane {
    /// Takes every completion. Under `rx`.
    pub(super) fn collect(&self, rx: &mut Rx) -> Result<(), VerbsError> {
        rx.uncollected = 0;
        let mut outcome = Ok(());
        self.cq.poll(|completion| {
            if let Some(number) = completion.number {
                self.direct.sends_over.fetch_max(number, Release);
            }
            let result = completion
                .outcome
                .and_then(|kind| self.on_completion(rx, kind));
            // The first failure is the cause; what is flushed behind it is not.
            if outcome.is_ok() {
                outcome = result;
            }
        })?;
        if rx.used >= REPOST && outcome.is_ok() {
            self.qp.post_receives(std::mem::take(&mut rx.used))?;
        }
        outcome
    }

    fn on_completion(&self, rx: &mut Rx, kind: CompletionKind) -> Result<(), VerbsError> {
        match kind {
            CompletionKind::Sent(number) => self.sends_done.store(number, Release),
            CompletionKind::Received(immediate) => {
                rx.used += 1;
                if self.memory {
                    return Ok(());
                }
                let (credits, bytes) = flow::unpack(immediate);
                if bytes == flow::WORDS_CHANGED {
                    // Whoever is interested looks at the words.
                    return Ok(());
                }
                if credits > 0 {
                    // SYNC: Release pairs with the Acquire in `take_credits`.
                    self.freed.fetch_add(credits, Release);
                }
                if bytes > 0 {
                    rx.flow.on_message(bytes)?;
                } else if credits == 0 {
                    rx.ended = true;
                }
            }
        }
        Ok(())
    }

    /// Reads what has arrived, as much as fits. 0: nothing has.
    pub(super) fn read(
        &self,
        rx: &mut Rx,
        buffer: &mut [MaybeUninit<u8>],
    ) -> Result<usize, VerbsError> {
        if self.memory {
            return self.read_lines(rx, buffer);
        }
        if rx.flow.available() == 0 {
            self.collect(rx)?;
        }
        let got = rx.flow.available().min(buffer.len());
        if got > 0 {
            self.inbox.read(rx.position, &mut buffer[..got]);
            rx.position = advance(rx.position, got);
            let messages = rx.flow.on_read(got);
            self.on_read(messages, got);
        }
        Ok(got)
    }

    fn read_lines(&self, rx: &mut Rx, buffer: &mut [MaybeUninit<u8>]) -> Result<usize, VerbsError> {
        let mut got = 0;
        let (mut messages, mut lines) = (0, 0);
        while got < buffer.len() {
            let Some((line, from)) = rx.line.take().or_else(|| Some((self.next_line(rx)?, 0)))
            else {
                break;
            };
            let take = (line.len - from).min(buffer.len() - got);
            buffer[got..got + take].write_copy_of_slice(&line.payload[from..from + take]);
            got += take;
            if from + take < line.len {
                rx.line = Some((line, from + take));
                break;
            }
            rx.position = advance(rx.position, LINE_BYTES);
            lines += 1;
            messages += u64::from(line.last);
        }
        if lines > 0 {
            self.on_read(messages, lines * LINE_BYTES);
        }
        rx.uncollected += to_usize(messages);
        if rx.uncollected >= REPOST {
            self.collect(rx)?;
        }
        Ok(got)
    }

    /// The line that is awaited, if it is there. The copy is looked at, not the memory.
    fn next_line(&self, rx: &Rx) -> Option<Line> {
        let mut copy = [0; LINE_BYTES];
        self.inbox.read(rx.position, socket::as_uninit(&mut copy));
        line::decode(rx.position / to_u64(LINE_BYTES), &copy)
    }

    fn on_read(&self, messages: u64, bytes: usize) {
        // SYNC: Release pairs with the Acquire of whoever returns the credits: the bytes were
        // copied out before the peer may write there again.
        self.consumed.fetch_add(messages, Release);
        self.consumed_bytes.fetch_add(to_u64(bytes), Release);
    }

    /// Whether `recv` would return bytes or the end.
    pub(super) fn is_readable(&self, rx: &Rx) -> bool {
        if self.memory {
            rx.line.is_some() || self.next_line(rx).is_some() || self.has_ended(rx)
        } else {
            rx.flow.available() > 0 || rx.ended
        }
    }

    pub(super) fn has_ended(&self, rx: &Rx) -> bool {
        let all = self.consumed.load(Relaxed) + 1;
        rx.ended || self.memory && self.status_word(END_AT) == Some(all)
    }

    /// Nothing is there: is anything to come?
    #[cold]
    pub(super) fn nothing(&self, rx: &mut Rx, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        if self.has_ended(rx) {
            return Ok(0);
        }
        if self.suspicious.swap(false, Relaxed) {
            self.look_around();
            // What arrived before the connection ended counts.
            let got = self.read(rx, buffer).map_err(|error| self.fail(error))?;
            if got > 0 {
                return Ok(got);
            }
        }
        if self.has_ended(rx) || self.dead.load(Acquire) {
            return Ok(0);
        }
        match self.failure.get() {
            Some(_) => Err(self.error()),
            None => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Looks at the bootstrap connection and at what the device reports.
    fn look_around(&self) {
        if self.is_deserted() {
            self.dead.store(true, Release);
        }
        let name = || self.link.device.name().to_owned();
        if let Some(cause) = self.link.device.next_event() {
            self.fail(match cause {
                AsyncCause::Queue => VerbsError::QueueFatal,
                AsyncCause::Port => VerbsError::PortDown(name()),
                AsyncCause::Device => VerbsError::DeviceRemoved(name()),
            });
        }
    }

    /// Whether the bootstrap connection has ended.
    fn is_deserted(&self) -> bool {
        let tcp = self.link.tcp.lock();
        let Some(tcp) = &*tcp else {
            return true;
        };
        !matches!(recv_into(tcp, &mut [0; 8]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Waits until a send is done. With `deserted`, the end of the bootstrap connection ends it.
    pub(super) fn await_sent(
        &self,
        number: u64,
        deadline: Instant,
        deserted: bool,
    ) -> Result<(), VerbsError> {
        loop {
            self.cq.request_event()?;
            self.collect(&mut self.rx.lock())?;
            if self.sends_done.load(Acquire) >= number || deserted && self.is_deserted() {
                return Ok(());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(VerbsError::RetryExceeded);
            }
            let mut set = PollSet::new();
            set.add(self.cq.raw_fd(), IN);
            if let (true, Some(tcp)) = (deserted, &*self.link.tcp.lock()) {
                set.add(tcp.fd().as_raw_fd(), IN);
            }
            set.wait(Some(left))
                .map_err(|error| VerbsError::System(error.to_string()))?;
            self.cq.clear_events();
        }
    }
}
