//! Whole messages over a stream, with a deadline: only for handshakes.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::stream::shm::OFFER_BYTES;
use crate::stream::tcp::TcpStream;
use crate::stream::{Stream, recv_into};
use crate::sys::fdpass;
use crate::sys::poll::PollSet;

/// Bound where the caller gives none: a peer that takes nothing must not hold us.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(5);

/// Sends all parts.
///
/// # Errors
/// `TimedOut`, or the stream's error.
pub(crate) fn send_all(
    stream: &dyn Stream,
    parts: &[&[u8]],
    deadline: Option<Instant>,
) -> io::Result<()> {
    let deadline = deadline.unwrap_or_else(|| Instant::now() + DEADLINE_DEFAULT);
    let bytes = parts.concat();
    let mut at = 0;
    while at < bytes.len() {
        match stream.send(&[IoSlice::new(&bytes[at..])]) {
            Ok(sent) => at += sent,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                sleep(stream, false, deadline)?;
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Fills the buffer.
///
/// # Errors
/// `TimedOut`, `UnexpectedEof`, or the stream's error.
pub(crate) fn recv_exact(
    stream: &dyn Stream,
    buffer: &mut [u8],
    deadline: Option<Instant>,
) -> io::Result<()> {
    let deadline = deadline.unwrap_or_else(|| Instant::now() + DEADLINE_DEFAULT);
    let mut at = 0;
    while at < buffer.len() {
        let rest = &mut buffer[at..];
        match recv_into(stream, rest) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(got) => at += got,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(stream, true, deadline)?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Receives the peer's half of a shared memory session.
///
/// # Errors
/// `TimedOut`, `UnexpectedEof`, `InvalidData`, or the socket's error.
pub(crate) fn recv_offer(
    stream: &TcpStream,
    deadline: Option<Instant>,
) -> io::Result<([u8; OFFER_BYTES], [OwnedFd; fdpass::FDS])> {
    let deadline = deadline.unwrap_or_else(|| Instant::now() + DEADLINE_DEFAULT);
    let mut offer = [0; OFFER_BYTES];
    loop {
        match fdpass::recv(stream.fd().as_raw_fd(), &mut offer) {
            // A message with descriptors comes in one piece.
            Ok((OFFER_BYTES, Some(fds))) => return Ok((offer, fds)),
            Ok((0, _)) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => sleep(stream, true, deadline)?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

fn sleep(stream: &dyn Stream, read: bool, deadline: Instant) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let mut set = PollSet::new();
    if stream.arm(&mut set, read, !read) {
        set.wait(Some(left))?;
    }
    stream.disarm();
    Ok(())
}
