//! A connection in its handshake.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::PROTOCOL_VERSION_OLDEST;
use crate::error::{HelloError, RefuseCode};
use crate::handshake::{ClientHead, HELLO_HEAD_BYTES, ServerHead, preamble, reads_on};
use crate::options::ListenOptions;
use crate::stream::tls::{HANDSHAKE, Keys, ServerHandshake};
use crate::sys::socket;

/// How long a client that was sent away may take to read why.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes of a client that was sent away are thrown away, so that it gets to read why: closing a connection
/// with unread bytes resets it. More than any hello has.
const THROWN_AWAY: usize = 256 << 10;
/// Magic and version: what every version of the protocol begins with.
const PREAMBLE_BYTES: usize = 10;

/// Reads one hello, byte by byte as it comes, and not a byte more; over TLS, not a record more.
pub(super) struct Pending {
    fd: OwnedFd,
    peer: Option<SocketAddr>,
    deadline: Instant,
    buffer: Vec<u8>,
    /// Bytes wanted before the next decision.
    wanted: usize,
    head: Option<ClientHead>,
    tls: Option<Box<ServerHandshake>>,
    /// Sent away: only waits until the client has read why, and throws so many more bytes away.
    refused: Option<usize>,
}

/// A complete hello.
pub(super) struct Hello {
    pub(super) fd: OwnedFd,
    pub(super) peer: Option<SocketAddr>,
    pub(super) head: ClientHead,
    /// The bytes of token and payload.
    pub(super) body: Vec<u8>,
    /// The connection's keys, and what came behind the hello already.
    pub(super) tls: Option<(Keys, Vec<u8>)>,
}

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
            tls: None,
            refused: None,
        })
    }

    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Reads what is there.
    pub(super) fn advance(&mut self, now: Instant, options: &ListenOptions) -> Progress {
        loop {
            match self.read() {
                Ok(0) => return Progress::Gone,
                Ok(got) => {
                    if let Some(left) = &mut self.refused {
                        self.buffer.clear();
                        // A sender that is never done would keep the listener's thread from everybody else.
                        match left.checked_sub(got) {
                            Some(rest) => *left = rest,
                            None => return Progress::Gone,
                        }
                    }
                }
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
            if self.refused.is_some() || self.buffer.len() < self.wanted {
                continue;
            }
            match self.decide(options) {
                Ok(true) => return Progress::Ready,
                Ok(false) => {}
                Err(error) => {
                    log::info!("{:?}: refused: {error}", self.peer);
                    self.refuse(&error, options.protocol, now);
                }
            }
        }
    }

    fn read(&mut self) -> io::Result<usize> {
        if let Some(tls) = self.tls.as_mut().filter(|_| self.refused.is_none()) {
            return tls.read(self.fd.as_raw_fd(), &mut self.buffer);
        }
        let mut chunk = [0; 4096];
        let want = if self.refused.is_some() {
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
    fn decide(&mut self, options: &ListenOptions) -> Result<bool, HelloError> {
        if self.head.is_some() {
            return Ok(true);
        }
        // What does not leave this host needs none.
        let tls = options.tls.as_ref().filter(|_| self.peer.is_some());
        if let Some(server) = tls.filter(|_| self.tls.is_none()) {
            if self.buffer.first() == Some(&HANDSHAKE) {
                let first = std::mem::take(&mut self.buffer);
                let begun = ServerHandshake::new(server, first);
                self.tls = Some(Box::new(begun.map_err(|_| HelloError::Magic)?));
                return Ok(false);
            }
            if !server.takes_plain() {
                preamble(&self.buffer)?;
                return Err(HelloError::NeedsTls);
            }
        }
        if self.buffer.len() < HELLO_HEAD_BYTES {
            let version = preamble(&self.buffer)?;
            if !reads_on(version, options.protocol) {
                return Err(HelloError::Version(version));
            }
            self.wanted = HELLO_HEAD_BYTES;
            return Ok(false);
        }
        let mut bytes = [0; HELLO_HEAD_BYTES];
        bytes.copy_from_slice(&self.buffer[..HELLO_HEAD_BYTES]);
        let head = ClientHead::decode(&bytes, options.protocol)?;
        self.wanted = HELLO_HEAD_BYTES + head.token_len() + head.payload_len();
        self.head = Some(head);
        Ok(self.buffer.len() >= self.wanted)
    }

    /// Tells the client why, unless it speaks no farcall at all.
    fn refuse(&mut self, error: &HelloError, newest: u16, now: Instant) {
        let code = match error {
            HelloError::Version(_) => RefuseCode::VERSION,
            HelloError::NeedsTls => RefuseCode::TLS,
            _ => RefuseCode::MALFORMED,
        };
        if *error != HelloError::Magic {
            let message = error.to_string();
            // In the client's version, if it is one that is spoken here.
            let spoken = PROTOCOL_VERSION_OLDEST..=newest;
            let version = preamble(&self.buffer).ok();
            let version = version.filter(|version| spoken.contains(version));
            let version = version.unwrap_or(newest);
            let len = u32::try_from(message.len()).unwrap_or(0);
            let head = ServerHead::refusal(version, code, len);
            let parts = [&head.bytes(), message.as_bytes()].concat();
            // It fits the buffer of a connection on which nothing was sent before; a client that is gone needs none.
            let _ = match &mut self.tls {
                Some(tls) => tls.say(self.fd.as_raw_fd(), &parts),
                None => socket::send(self.fd.as_raw_fd(), &[IoSlice::new(&parts)]).map(drop),
            };
        }
        socket::shutdown_write(self.fd.as_raw_fd());
        self.refused = Some(THROWN_AWAY);
        self.deadline = self.deadline.min(now + LINGER);
        self.buffer = Vec::new();
    }

    /// A complete hello.
    pub(super) fn into_hello(self) -> Option<Hello> {
        let mut bytes = self.buffer;
        let early = bytes.split_off(self.wanted.min(bytes.len()));
        let body = bytes.split_off(HELLO_HEAD_BYTES.min(bytes.len()));
        let keys = self.tls.map(|tls| tls.finish()).transpose();
        let keys = keys
            .inspect_err(|error| log::warn!("{:?}: {error}", self.peer))
            .ok()?;
        Some(Hello {
            fd: self.fd,
            peer: self.peer,
            head: self.head?,
            body,
            tls: keys.map(|keys| (keys, early)),
        })
    }
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pending")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}
