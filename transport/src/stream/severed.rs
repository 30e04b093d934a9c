//! No connection: what stands in for one between its loss and the next.
#![forbid(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::SocketAddr;

use super::Stream;
use crate::sys::poll::PollSet;

/// Takes nothing, has nothing, wakes nobody.
#[derive(Debug)]
pub(crate) struct Severed {
    name: &'static str,
    peer: Option<SocketAddr>,
}

impl Severed {
    /// In the place of `stream`, under its name.
    pub(crate) fn of(stream: &dyn Stream) -> Self {
        Self {
            name: stream.name(),
            peer: stream.peer(),
        }
    }
}

impl Stream for Severed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn peer(&self) -> Option<SocketAddr> {
        self.peer
    }

    fn send(&self, _parts: &[IoSlice<'_>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn recv(&self, _buffer: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn shutdown(&self) {}

    fn arm(&self, _set: &mut PollSet, _read: bool, _write: bool) -> bool {
        true
    }
}
