//! What the process that accepts a connection tells the process that serves it.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Positions, ServerHead, SessionId, SessionKey};
use crate::connect::exchange;
use crate::connect::upgrade::{self, Upgrade};
use crate::endpoint::Agreed;
use crate::error::{AdoptError, HelloError, RefuseCode};
use crate::options::{DeviceName, Limits, RdmaMode, RdmaOptions};
use crate::stream::shm::Near;
use crate::stream::tcp::TcpStream;
use crate::stream::tls::{Keys, TlsStream, WireKeys};
use crate::stream::{Planes, Stream};
use crate::sys::{socket, unix};

/// Longest reason for people.
const REFUSAL_BYTES_MAX: usize = 4096;

/// What the connection becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HandoverKind {
    New,
    Bulk,
    Resume,
}

/// A connection whose hello was read, on its way to another process.
#[derive(Clone, Debug)]
pub(crate) struct Handover {
    pub(crate) kind: HandoverKind,
    pub(crate) agreed: Agreed,
    /// The client would go on over RDMA, and may.
    pub(crate) rdma: Option<RdmaOptions>,
    /// Which of the session's connections.
    pub(crate) link: u32,
    /// `Resume`: what has arrived at the client.
    pub(crate) positions: Positions,
    /// The keys that both sides go on with, and what came behind the hello already.
    pub(crate) tls: Option<(Keys, Vec<u8>)>,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Wire {
    version: u8,
    kind: u8,
    /// Of the protocol.
    protocol: U16,
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
    /// With TLS, what came early follows.
    tls: WireKeys,
}

const VERSION: u8 = 3;

impl Handover {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let Agreed {
            session,
            key,
            local,
            remote,
            version,
        } = &self.agreed;
        let name = self.rdma.as_ref().and_then(|rdma| rdma.device.as_ref());
        let name = name.map_or("", DeviceName::as_str).as_bytes();
        let mut device = [0; DeviceName::BYTES_MAX];
        device[..name.len()].copy_from_slice(name);
        let wire = Wire {
            version: VERSION,
            kind: self.kind as u8,
            protocol: U16::new(*version),
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
            tls: self
                .tls
                .as_ref()
                .map_or(WireKeys::NONE, |(keys, _)| keys.to_wire()),
        };
        let mut bytes = wire.as_bytes().to_vec();
        if let Some((_, early)) = &self.tls {
            bytes.extend_from_slice(early);
        }
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HelloError> {
        let (wire, early) = Wire::read_from_prefix(bytes).map_err(|_| HelloError::Length)?;
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
        let tls = Keys::of_wire(&wire.tls)?;
        if tls.is_none() && !early.is_empty() {
            return Err(HelloError::Length);
        }
        Ok(Self {
            tls: tls.map(|keys| (keys, early.to_vec())),
            rdma: wire.rdma()?,
            kind,
            agreed: Agreed {
                session,
                key,
                local,
                remote,
                version: wire.protocol.get(),
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
            version,
            ..
        } = &self.agreed;
        let offered = self.rdma.is_some();
        let head = ServerHead::welcome(*version, *session, *key, local, len)
            .with_rdma(offered)
            .with_positions(positions);
        let peer = socket::peer_address(&fd);
        let unix = unix::is_unix(fd.as_raw_fd());
        let stream = TcpStream::new(fd, peer)?;
        if self.tls.is_some() {
            let stream = self.protect(stream)?;
            exchange::send_all(&*stream, &[&head.bytes(), payload], None)?;
            return Ok((stream, None));
        }
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

    /// The connection's stream, with TLS where the client came with it.
    pub(crate) fn protect(&self, tcp: TcpStream) -> io::Result<Arc<dyn Stream>> {
        Ok(match &self.tls {
            Some((keys, early)) => Arc::new(TlsStream::server(tcp, keys, early)?),
            None => Arc::new(tcp),
        })
    }

    /// Sends the client away. `message` is for people; at most 4 KiB are sent. Does not block.
    pub(crate) fn refuse(&self, fd: OwnedFd, code: RefuseCode, message: &str) {
        let message = &message.as_bytes()[..message.len().min(REFUSAL_BYTES_MAX)];
        let len = u32::try_from(message.len()).unwrap_or(0);
        let head = ServerHead::refusal(self.agreed.version, code, len);
        let stream = TcpStream::new(fd, None).and_then(|tcp| self.protect(tcp));
        if let Ok(stream) = stream {
            // Fits any fresh socket's buffer; a peer that is gone needs no answer.
            let _ = stream.send(&[IoSlice::new(&head.bytes()), IoSlice::new(message)]);
            stream.shutdown();
        }
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
            version: 2,
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
                tls: None,
            };
            let back = Handover::decode(&handover.encode()).unwrap();
            assert_eq!((back.rdma, back.kind), (rdma, HandoverKind::Resume));
            assert_eq!((back.link, back.positions), (7, positions));
            let tls = Some((Keys::pair().0, b"early".to_vec()));
            let bytes = Handover { tls, ..handover }.encode();
            let (_, early) = Handover::decode(&bytes).unwrap().tls.unwrap();
            assert_eq!(early, b"early");
        }
    }
}
