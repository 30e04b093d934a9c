//! The sending half of the connection, and what left in part.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::sync::Arc;

use crate::session::FRAME_HEADER_BYTES;
use crate::stream::Stream;

/// The sending half of the connection.
pub(super) struct Wire {
    pub(super) stream: Arc<dyn Stream>,
    /// Sending failed, or there is no connection: nothing is sent until there is another.
    pub(super) broken: bool,
    /// Which connection this is, for reports of its loss.
    pub(super) epoch: u64,
    /// Bytes of the stream that were sent.
    pub(super) sent: u64,
    /// A control frame that left in part: its bytes from `rest_at` on.
    pub(super) rest: [u8; FRAME_HEADER_BYTES],
    pub(super) rest_at: usize,
}

impl Wire {
    pub(super) fn new(stream: Arc<dyn Stream>) -> Self {
        Self {
            stream,
            broken: false,
            epoch: 0,
            sent: 0,
            rest: [0; FRAME_HEADER_BYTES],
            rest_at: FRAME_HEADER_BYTES,
        }
    }

    /// Lets go of the connection.
    pub(super) fn sever(&mut self, severed: Arc<dyn Stream>) {
        self.stream = severed;
        self.broken = true;
        self.rest_at = FRAME_HEADER_BYTES;
    }

    /// Goes on at `sent` over another connection.
    pub(super) fn connect(&mut self, stream: Arc<dyn Stream>, sent: u64, epoch: u64) {
        self.stream = stream;
        self.broken = false;
        self.epoch = epoch;
        self.sent = sent;
    }

    /// Whether a control frame has left in part, or not at all.
    #[inline]
    pub(super) fn has_control(&self) -> bool {
        self.rest_at < FRAME_HEADER_BYTES
    }

    /// Sends what is left of a control frame; true when nothing is.
    pub(super) fn finish_control(&mut self) -> io::Result<bool> {
        if self.has_control() {
            let sent = would_block(
                self.stream
                    .send(&[IoSlice::new(&self.rest[self.rest_at..])]),
            )?;
            self.rest_at += sent;
        }
        Ok(self.rest_at == FRAME_HEADER_BYTES)
    }
}

/// "Nothing now" as a count.
pub(super) fn would_block(result: io::Result<usize>) -> io::Result<usize> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(0),
        other => other,
    }
}
