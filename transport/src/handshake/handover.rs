//! What the process that accepts a connection tells the process that serves it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use zerocopy::byteorder::little_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ServerHead, SessionId, SessionKey};
use crate::connect::exchange;
use crate::endpoint::Agreed;
use crate::error::{AdoptError, HelloError};
use crate::options::Limits;
use crate::stream::Planes;
use crate::stream::shm::Near;
use crate::stream::tcp::TcpStream;
use crate::sys::{socket, unix};

/// What the connection becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandoverKind {
    New,
    Bulk,
}

/// A connection whose hello was read, on its way to another process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handover {
    pub(crate) kind: HandoverKind,
    pub(crate) agreed: Agreed,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Wire {
    version: u8,
    kind: u8,
    session: [u8; 16],
    key: [u8; 16],
    limits: [U32; 6],
}

const VERSION: u8 = 1;

impl Handover {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Agreed {
            session,
            key,
            local,
            remote,
        } = &self.agreed;
        let wire = Wire {
            version: VERSION,
            kind: self.kind as u8,
            session: session.0,
            key: key.0,
            limits: [
                local.frame_bytes_max,
                local.ring_bytes,
                local.window_bytes,
                remote.frame_bytes_max,
                remote.ring_bytes,
                remote.window_bytes,
            ]
            .map(U32::new),
        };
        wire.as_bytes().to_vec()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let wire = Wire::read_from_bytes(bytes).map_err(|_| HelloError::Length)?;
        if wire.version != VERSION {
            return Err(HelloError::Version(u16::from(wire.version)));
        }
        let kind = match wire.kind {
            0 => HandoverKind::New,
            1 => HandoverKind::Bulk,
            other => return Err(HelloError::Kind(other)),
        };
        let limits = |at: usize| Limits {
            frame_bytes_max: wire.limits[at].get(),
            ring_bytes: wire.limits[at + 1].get(),
            window_bytes: wire.limits[at + 2].get(),
        };
        let (local, remote) = (limits(0), limits(3));
        if !local.is_valid() || !remote.is_valid() {
            return Err(HelloError::Limits);
        }
        let (session, key) = (SessionId(wire.session), SessionKey(wire.key));
        Ok(Self {
            kind,
            agreed: Agreed {
                session,
                key,
                local,
                remote,
            },
        })
    }

    /// Answers the client, and makes streams of its connection: the call plane's, and the bulk
    /// plane's where that comes with it (shared memory).
    pub(crate) fn welcome(&self, fd: OwnedFd, payload: &[u8]) -> Result<Planes, AdoptError> {
        let len = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= crate::PAYLOAD_BYTES_MAX)
            .ok_or(HelloError::TooLong(crate::num::to_u64(payload.len())))?;
        let Agreed {
            session,
            key,
            local,
            ..
        } = &self.agreed;
        let head = ServerHead::welcome(*session, *key, local, len);
        let peer = socket::peer_address(&fd);
        let unix = unix::is_unix(fd.as_raw_fd());
        let stream = TcpStream::new(fd, peer)?;
        exchange::send_all(&stream, &[&head.bytes(), payload], None)?;
        if !unix {
            return Ok((Arc::new(stream), None));
        }
        let near = Near::new()?;
        near.send(stream.fd())?;
        let (offer, fds) = exchange::recv_offer(&stream, None)?;
        let (call, bulk) = near.join(stream.into_fd(), &offer, fds)?;
        Ok((call, Some(bulk)))
    }
}
