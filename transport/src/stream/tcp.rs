//! TCP: a non-blocking socket without Nagle's delay.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use super::{PathInfo, Stream};
use crate::sys::poll::{IN, OUT, PollSet, is_hung_up};
use crate::sys::{netopt, socket};

/// A connected socket (TCP, or a Unix stream where tests pass one).
#[derive(Debug)]
pub(crate) struct TcpStream {
    fd: OwnedFd,
    peer: Option<SocketAddr>,
}

impl TcpStream {
    /// The socket again.
    pub(crate) fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// The socket, still in use.
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Takes over a socket that is connected or connecting.
    pub(crate) fn new(fd: OwnedFd, peer: Option<SocketAddr>) -> io::Result<Self> {
        socket::set_nonblocking(fd.as_fd())?;
        // Fails on sockets that are not TCP, which have no Nagle delay either.
        let _ = socket::set_option(fd.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_NODELAY, 1);
        keep_alive(fd.as_raw_fd());
        Ok(Self { fd, peer })
    }
}

/// Finds dead peers and keeps NAT entries alive; best effort, as not every socket is TCP.
fn keep_alive(fd: RawFd) {
    let _ = socket::set_option(fd, libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
    let _ = socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, 10);
    let _ = socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, 5);
    let _ = socket::set_option(fd, libc::IPPROTO_TCP, libc::TCP_KEEPCNT, 4);
}

impl Stream for TcpStream {
    fn name(&self) -> &'static str {
        "tcp"
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn path(&self) -> Option<PathInfo> {
        netopt::path_info(&self.fd)
    }

    fn is_costly(&self) -> bool {
        true
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        loop {
            match socket::send(self.fd.as_raw_fd(), parts) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // Connecting still: as good as full.
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {
                    socket::take_error(self.fd.as_raw_fd())?;
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                other => return other,
            }
        }
    }

    fn recv(&self, buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        loop {
            match socket::recv(self.fd.as_raw_fd(), buffer) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::NotConnected => {
                    socket::take_error(self.fd.as_raw_fd())?;
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                other => return other,
            }
        }
    }

    fn shutdown(&self) {
        socket::shutdown_write(self.fd.as_raw_fd());
    }

    fn arm(&self, set: &mut PollSet, read: bool, write: bool) -> bool {
        let events = if read { IN } else { 0 } | if write { OUT } else { 0 };
        set.add(self.fd.as_raw_fd(), events);
        true
    }

    fn has_hung_up(&self) -> bool {
        is_hung_up(self.fd.as_raw_fd())
    }

    fn abandon(&self) {
        socket::abandon(self.fd.as_raw_fd());
    }
}
