//! What a backend provides: a reliable, ordered stream of bytes in each direction, and a way
//! to sleep until it moves.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use self::direct::Direct;
use crate::sys::poll::PollSet;
use crate::sys::{socket, sync};

pub(crate) mod direct;
pub(crate) mod ring;
pub(crate) mod severed;
pub(crate) mod shm;
pub(crate) mod tcp;
pub(crate) mod tls;
pub(crate) mod verbs;

/// One connection. Sending and receiving may happen on two threads at once, but each of them
/// on one thread at a time. Nothing here blocks.
pub(crate) trait Stream: Send + Sync {
    /// `tcp`, `tls`, `shm`, ...
    fn name(&self) -> &'static str;

    /// The peer's address, if it has one.
    fn peer(&self) -> Option<SocketAddr>;

    /// What the system knows of the way to the peer.
    fn path(&self) -> Option<PathInfo> {
        None
    }

    /// Takes bytes in order, as many as fit now.
    ///
    /// # Errors
    /// `WouldBlock` when nothing fits; anything else means that the connection is gone.
    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize>;

    /// Delivers bytes in order, as many as are there and fit. `Ok(0)` is the end.
    ///
    /// # Errors
    /// `WouldBlock` when nothing is there; anything else means that the connection is gone.
    ///
    /// The buffer must not be empty; as many of its bytes as returned are initialised.
    fn recv(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize>;

    /// Whether `send` is a system call: some microseconds, be it for a few bytes.
    fn is_costly(&self) -> bool {
        false
    }

    /// Whether `recv` has something to deliver, where memory shows it. Says nothing of the peer's end.
    fn has_news(&self) -> Option<bool> {
        None
    }

    /// Ends our direction: the peer receives what was sent, then the end.
    fn shutdown(&self);

    /// Adds what becomes ready when `send` (`write`) or `recv` (`read`) can go on, and says
    /// whether the caller may sleep: false when it can go on already. Followed by `disarm`.
    fn arm(&self, set: &mut PollSet, read: bool, write: bool) -> bool;

    /// The sleep announced by `arm` is over.
    fn disarm(&self) {}

    /// After the connection is lost: the last `bytes` that were sent, if the stream itself still has them.
    /// A sender over a stream that has none keeps a copy of what the peer may not have.
    fn unread(&self, bytes: usize) -> Option<Vec<u8>> {
        let _ = bytes;
        None
    }

    /// Whether [`Stream::unread`] gives everything that the peer has not received.
    fn keeps_unread(&self) -> bool {
        false
    }

    /// Whether the peer's system has closed the connection, be it that bytes still lie unread.
    fn has_hung_up(&self) -> bool {
        false
    }

    /// Sees to it that what was sent leaves, where a device may have missed that there is something to send. Called now and then. Does not
    /// block.
    fn prod(&self) {}

    /// A descriptor that is readable once the process at the other end has ended, where that can be known.
    fn peer_process(&self) -> Option<&OwnedFd> {
        None
    }

    /// Bytes of memory that this session has registered with a device.
    fn registered_bytes(&self) -> usize {
        0
    }

    /// Transfers beside the bytes, where both ends can do that.
    fn direct(&self) -> Option<&dyn Direct> {
        None
    }

    /// In a forked child: lets go of the descriptors without a word to the peer.
    /// Async-signal-safe.
    fn abandon(&self) {}
}

/// What the system knows of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathInfo {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub peer: SocketAddr,
    /// Largest packet of the path, in bytes.
    pub mtu_bytes: u32,
    /// The system's own estimate of the round trip, without processes that wake up, in microseconds.
    pub kernel_rtt_us: u32,
    /// Segments that were sent again.
    pub retransmits: u32,
}

/// Call plane, and bulk plane where it is there from the start.
pub(crate) type Planes = (Arc<dyn Stream>, Option<Arc<dyn Stream>>);

/// Receives into an ordinary buffer, which must not be empty.
pub(crate) fn recv_into(stream: &dyn Stream, buffer: &mut [u8]) -> io::Result<usize> {
    stream.recv(socket::as_uninit(buffer))
}

#[cfg(test)]
mod tests;
