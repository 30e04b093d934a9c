//! A connection in its handshake.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::error::{HelloError, RefuseCode};
use crate::handshake::{ClientHead, HELLO_HEAD_BYTES, ServerHead};
use crate::sys::socket;

/// How long a client that was sent away may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// Magic and version: what every version of the protocol begins with.
const PREAMBLE_BYTES: usize = 10;

/// Reads one hello, byte by byte as it comes, and not a byte more.
#[derive(Debug)]
pub(super) struct Pending {
    fd: OwnedFd,
    peer: Option<SocketAddr>,
    deadline: Instant,
    buffer: Vec<u8>,
    /// Bytes wanted before the next decision.
    wanted: usize,
    head: Option<ClientHead>,
    /// Sent away: only waits until the client has read why.
    refused: bool,
}

/// Connection, peer, head, and the bytes of token and payload.
pub(super) type Hello = (OwnedFd, Option<SocketAddr>, ClientHead, Vec<u8>);

/// How far a handshake is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    Waiting,
    Ready,
    Gone,
}

impl Pending {
    pub(super) fn new(
        fd: OwnedFd,
        peer: Option<SocketAddr>,
        deadline: Instant,
    ) -> io::Result<Self> {
        socket::set_nonblocking(std::os::fd::AsFd::as_fd(&fd))?;
        Ok(Self {
            fd,
            peer,
            deadline,
            buffer: Vec::new(),
            wanted: PREAMBLE_BYTES,
            head: None,
            refused: false,
        })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Reads what is there.
    pub(super) fn advance(&mut self, now: Instant) -> Progress {
        loop {
            match self.read() {
                Ok(0) => return Progress::Gone,
                Ok(_) if self.refused => self.buffer.clear(),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return if now >= self.deadline {
                        Progress::Gone
                    } else {
                        Progress::Waiting
                    };
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return Progress::Gone,
            }
            if self.refused || self.buffer.len() < self.wanted {
                continue;
            }
            match self.decide() {
                Ok(true) => return Progress::Ready,
                Ok(false) => {}
                Err(error) => {
                    log::info!("{:?}: refused: {error}", self.peer);
                    self.refuse(&error, now);
                }
            }
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        let mut chunk = [0; 4096];
        let want = if self.refused {
            chunk.len()
        } else {
            self.wanted - self.buffer.len()
        };
        let want = want.min(chunk.len());
        let got = socket::recv_into(self.fd.as_raw_fd(), &mut chunk[..want])?;
        self.buffer.extend_from_slice(&chunk[..got]);
        Ok(got)
    }

    /// Looks at what has come; true when the hello is complete.
    fn decide(&mut self) -> Result<bool, HelloError> {
        if self.head.is_some() {
            return Ok(true);
        }
        if self.buffer.len() < HELLO_HEAD_BYTES {
            ServerHead::check_preamble(&self.buffer)?;
            self.wanted = HELLO_HEAD_BYTES;
            return Ok(false);
        }
        let mut bytes = [0; HELLO_HEAD_BYTES];
        bytes.copy_from_slice(&self.buffer[..HELLO_HEAD_BYTES]);
        let head = ClientHead::decode(&bytes)?;
        self.wanted += head.token_len() + head.payload_len();
        self.head = Some(head);
        Ok(self.buffer.len() == self.wanted)
    }

    /// Tells the client why, unless it speaks no farcall at all.
    fn refuse(&mut self, error: &HelloError, now: Instant) {
        let code = match error {
            HelloError::Version(_) => RefuseCode::VERSION,
            _ => RefuseCode::MALFORMED,
        };
        if *error != HelloError::Magic {
            send_refusal(self.fd.as_raw_fd(), code, &error.to_string());
        }
        socket::shutdown_write(self.fd.as_raw_fd());
        self.refused = true;
        self.deadline = self.deadline.min(now + LINGER);
        self.buffer = Vec::new();
    }

    /// A complete hello.
    pub(super) fn into_hello(self) -> Option<Hello> {
        let mut bytes = self.buffer;
        let body = bytes.split_off(HELLO_HEAD_BYTES.min(bytes.len()));
        Some((self.fd, self.peer, self.head?, body))
    }
}

/// Sends a refusal. It fits the buffer of a connection on which nothing was sent before; a
/// client that is gone needs none.
pub(super) fn send_refusal(fd: RawFd, code: RefuseCode, message: &str) {
    let message = &message.as_bytes()[..message.len().min(4096)];
    let head = ServerHead::refusal(code, u32::try_from(message.len()).unwrap_or(0));
    let _ = socket::send(fd, &[IoSlice::new(&head.bytes()), IoSlice::new(message)]);
}
