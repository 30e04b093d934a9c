//! What the process that accepts a connection tells the process that serves it.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Positions, ServerHead, SessionId, SessionKey};
use crate::connect::exchange;
use crate::connect::upgrade::{self, Upgrade};
use crate::endpoint::Agreed;
use crate::error::{AdoptError, HelloError};
use crate::options::{DeviceName, Limits, RdmaMode, RdmaOptions};
use crate::stream::Planes;
use crate::stream::shm::Near;
use crate::stream::tcp::TcpStream;
use crate::sys::{socket, unix};

/// What the connection becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandoverKind {
    New,
    Bulk,
    Resume,
}

/// A connection whose hello was read, on its way to another process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handover {
    pub(crate) kind: HandoverKind,
    pub(crate) agreed: Agreed,
    /// The client would go on over RDMA, and may.
    pub(crate) rdma: Option<RdmaOptions>,
    /// Which of the session's connections.
    pub(crate) link: u32,
    /// `Resume`: what has arrived at the client.
    pub(crate) positions: Positions,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Wire {
    version: u8,
    kind: u8,
    session: [u8; 16],
    key: [u8; 16],
    limits: [U32; 6],
    /// 0: no RDMA; else the mode: 1 auto, 2 completions, 3 memory.
    rdma: u8,
    device_len: u8,
    /// 0: none; else the index and 1.
    gid_index: U16,
    device: [u8; DeviceName::BYTES_MAX],
    link: U32,
    positions: [U64; 2],
}

const VERSION: u8 = 2;

impl Handover {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Agreed {
            session,
            key,
            local,
            remote,
        } = &self.agreed;
        let name = self.rdma.as_ref().and_then(|rdma| rdma.device.as_ref());
        let name = name.map_or("", DeviceName::as_str).as_bytes();
        let mut device = [0; DeviceName::BYTES_MAX];
        device[..name.len()].copy_from_slice(name);
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
            rdma: self.rdma.map_or(0, |rdma| match rdma.mode {
                RdmaMode::Auto => 1,
                RdmaMode::Completions => 2,
                RdmaMode::Memory => 3,
            }),
            // At most `DeviceName::BYTES_MAX`.
            device_len: u8::try_from(name.len()).unwrap_or(0),
            gid_index: U16::new(
                self.rdma
                    .and_then(|rdma| rdma.gid_index)
                    .map_or(0, |index| u16::from(index) + 1),
            ),
            device,
            link: U32::new(self.link),
            positions: [self.positions.call, self.positions.bulk].map(U64::new),
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
            2 => HandoverKind::Resume,
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
            rdma: wire.rdma()?,
            kind,
            agreed: Agreed {
                session,
                key,
                local,
                remote,
            },
            link: wire.link.get(),
            positions: Positions {
                call: wire.positions[0].get(),
                bulk: wire.positions[1].get(),
            },
        })
    }

    /// Answers the client with what has arrived here, and makes streams of its connection: the call
    /// plane's, and the bulk plane's where that comes with it (shared memory).
    pub(crate) fn welcome(
        &self,
        fd: OwnedFd,
        payload: &[u8],
        positions: Positions,
    ) -> Result<Planes, AdoptError> {
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
        let offered = self.rdma.is_some();
        let head = ServerHead::welcome(*session, *key, local, len)
            .with_rdma(offered)
            .with_positions(positions);
        let peer = socket::peer_address(&fd);
        let unix = unix::is_unix(fd.as_raw_fd());
        let stream = TcpStream::new(fd, peer)?;
        exchange::send_all(&stream, &[&head.bytes(), payload], None)?;
        if let Some(rdma) = &self.rdma {
            return Ok(match upgrade::server(stream, rdma)? {
                Upgrade::Done(planes, how) => {
                    log::info!("session {session} over verbs: {how}");
                    planes
                }
                Upgrade::Stays(stream, why) => {
                    log::info!("session {session} over tcp, not over RDMA: {why}");
                    (Arc::new(stream), None)
                }
            });
        }
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

impl Wire {
    fn rdma(&self) -> Result<Option<RdmaOptions>, HelloError> {
        let mode = match self.rdma {
            0 => return Ok(None),
            1 => RdmaMode::Auto,
            2 => RdmaMode::Completions,
            3 => RdmaMode::Memory,
            _ => return Err(HelloError::Reserved),
        };
        let name = self.device.get(..usize::from(self.device_len));
        let name = name.and_then(|name| std::str::from_utf8(name).ok());
        Ok(Some(RdmaOptions {
            device: DeviceName::new(name.ok_or(HelloError::Length)?),
            gid_index: match self.gid_index.get() {
                0 => None,
                index => Some(u8::try_from(index - 1).map_err(|_| HelloError::Reserved)?),
            },
            mode,
        }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn wishes_for_rdma_survive_the_way_to_another_process() {
        let agreed = Agreed {
            session: SessionId([1; 16]),
            key: SessionKey([2; 16]),
            local: Limits::default(),
            remote: Limits::default(),
        };
        let named = RdmaOptions {
            device: DeviceName::new("rxe0"),
            gid_index: Some(255),
            mode: RdmaMode::Memory,
        };
        let positions = Positions { call: 3, bulk: 4 };
        for rdma in [None, Some(RdmaOptions::default()), Some(named)] {
            let handover = Handover {
                kind: HandoverKind::Resume,
                agreed,
                rdma,
                link: 7,
                positions,
            };
            let back = Handover::decode(&handover.encode()).unwrap();
            assert_eq!((back.rdma, back.kind), (rdma, HandoverKind::Resume));
            assert_eq!((back.link, back.positions), (7, positions));
        }
    }
}
