//! The first bytes of a connection, in both directions.

use std::ops::RangeInclusive;

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{SessionId, SessionKey};
use crate::error::{HelloError, RefuseCode};
use crate::options::Limits;
use crate::{PAYLOAD_BYTES_MAX, PROTOCOL_VERSION_OLDEST};

/// First bytes of every connection.
const MAGIC: [u8; 8] = *b"FARCALL\0";
/// Longest token.
pub(crate) const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Bytes of [`ClientHead`] on the wire.
pub(crate) const HELLO_HEAD_BYTES: usize = 96;
/// Bytes of [`ServerHead`] on the wire.
pub(crate) const SERVER_HEAD_BYTES: usize = 96;

/// The first version whose clients say which older ones they speak, so that a server which is older than they are can
/// answer in its own. A hello of a later version must be readable as one of this.
const NEGOTIATED: u16 = 3;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HelloKind {
    New,
    Bulk,
    Resume,
}

/// The client's first bytes; token and payload follow. Magic, version and their places are
/// the same in every version of the protocol.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ClientHead {
    magic: [u8; 8],
    version: U16,
    kind: u8,
    /// Nonzero: would go on over RDMA.
    wants_rdma: u8,
    /// The oldest version that the client speaks; since version 3.
    oldest: U16,
    reserved: [u8; 2],
    session: [u8; 16],
    key: [u8; 16],
    limits: WireLimits,
    token_len: U32,
    payload_len: U32,
    /// `Resume`: what this side has received of the stream.
    position: U64,
    bulk_position: U64,
    /// Which of the session's connections: 0 is the first; every attempt to resume has a number of its
    /// own, and a bulk connection has that of the connection it goes with.
    link: U32,
    reserved2: [u8; 8],
}

/// Where a session goes on after a lost connection, as one side says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Positions {
    /// Everything before this has arrived on the call plane.
    pub(crate) call: u64,
    /// Bytes that have arrived on the bulk plane.
    pub(crate) bulk: u64,
}

/// The server's answer; the payload (welcome, or the message of a refusal) follows.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct ServerHead {
    magic: [u8; 8],
    version: U16,
    /// 0, or a [`RefuseCode`].
    refused: U16,
    /// Nonzero: an exchange of RDMA offers follows.
    offers_rdma: u8,
    reserved: [u8; 3],
    session: [u8; 16],
    key: [u8; 16],
    limits: WireLimits,
    payload_len: U32,
    reserved2: [u8; 4],
    position: U64,
    bulk_position: U64,
    reserved3: [u8; 12],
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct WireLimits {
    frame_bytes_max: U32,
    ring_bytes: U32,
    window_bytes: U32,
}

const _: () = assert!(size_of::<ClientHead>() == HELLO_HEAD_BYTES);
const _: () = assert!(size_of::<ServerHead>() == SERVER_HEAD_BYTES);

impl WireLimits {
    fn new(limits: &Limits) -> Self {
        Self {
            frame_bytes_max: U32::new(limits.frame_bytes_max),
            ring_bytes: U32::new(limits.ring_bytes),
            window_bytes: U32::new(limits.window_bytes),
        }
    }

    fn checked(&self) -> Result<Limits, HelloError> {
        let limits = Limits {
            frame_bytes_max: self.frame_bytes_max.get(),
            ring_bytes: self.ring_bytes.get(),
            window_bytes: self.window_bytes.get(),
        };
        if limits.is_valid() {
            Ok(limits)
        } else {
            Err(HelloError::Limits)
        }
    }
}

/// The version in what every version's first bytes begin with, of either side. `bytes` must hold at least magic and version.
pub(crate) fn preamble(bytes: &[u8]) -> Result<u16, HelloError> {
    let (magic, rest) = bytes.split_first_chunk().ok_or(HelloError::Length)?;
    let (version, _) = rest.split_first_chunk::<2>().ok_or(HelloError::Length)?;
    if *magic != MAGIC {
        return Err(HelloError::Magic);
    }
    Ok(u16::from_le_bytes(*version))
}

/// The version of a session between a client that says `version` and `oldest`, and a server that speaks no newer one than
/// `newest`.
fn agree(version: u16, oldest: u16, newest: u16) -> Result<u16, HelloError> {
    let negotiates = newest >= NEGOTIATED && version > newest;
    if (PROTOCOL_VERSION_OLDEST..=newest).contains(&version) {
        Ok(version)
    } else if negotiates && (1..=newest).contains(&oldest) {
        Ok(newest)
    } else {
        Err(HelloError::Version(version))
    }
}

/// Whether a server that speaks no newer version than `newest` reads on behind a version.
pub(crate) fn reads_on(version: u16, newest: u16) -> bool {
    (PROTOCOL_VERSION_OLDEST..=newest).contains(&version)
        || newest >= NEGOTIATED && version > newest
}

impl ClientHead {
    /// In this version; a new session's client speaks older ones, too.
    pub(crate) fn new(
        kind: HelloKind,
        version: u16,
        limits: &Limits,
        token_len: u32,
        payload_len: u32,
    ) -> Self {
        let oldest = match kind {
            _ if version < NEGOTIATED => 0,
            HelloKind::New => PROTOCOL_VERSION_OLDEST,
            HelloKind::Bulk | HelloKind::Resume => version,
        };
        let kind = match kind {
            HelloKind::New => 1,
            HelloKind::Bulk => 2,
            HelloKind::Resume => 3,
        };
        Self {
            magic: MAGIC,
            version: U16::new(version),
            kind,
            wants_rdma: 0,
            oldest: U16::new(oldest),
            reserved: [0; 2],
            session: [0; 16],
            key: [0; 16],
            limits: WireLimits::new(limits),
            token_len: U32::new(token_len),
            payload_len: U32::new(payload_len),
            position: U64::ZERO,
            bulk_position: U64::ZERO,
            link: U32::ZERO,
            reserved2: [0; 8],
        }
    }

    /// Names the session that a bulk or resume connection belongs to.
    pub(crate) fn with_session(mut self, session: SessionId, key: SessionKey) -> Self {
        self.session = session.0;
        self.key = key.0;
        self
    }

    /// Says whether this client would go on over RDMA.
    pub(crate) fn with_rdma(mut self, wanted: bool) -> Self {
        self.wants_rdma = wanted.into();
        self
    }

    pub(crate) fn wants_rdma(&self) -> bool {
        self.wants_rdma == 1
    }

    /// Says which of the session's connections it is.
    pub(crate) fn with_link(mut self, link: u32) -> Self {
        self.link = U32::new(link);
        self
    }

    /// Says what has arrived.
    pub(crate) fn with_positions(mut self, positions: Positions) -> Self {
        self.position = U64::new(positions.call);
        self.bulk_position = U64::new(positions.bulk);
        self
    }

    /// Checks the first bytes of a client, as a server that speaks no newer version than `newest`. Total.
    pub(crate) fn decode(bytes: &[u8; HELLO_HEAD_BYTES], newest: u16) -> Result<Self, HelloError> {
        let head: Self = zerocopy::transmute!(*bytes);
        let version = preamble(bytes)?;
        let oldest = head.oldest.get();
        agree(version, oldest, newest)?;
        let kind = head.kind()?;
        let versions = match version {
            ..NEGOTIATED => oldest == 0,
            NEGOTIATED.. => (1..=version).contains(&oldest),
        };
        let reserved =
            !versions || head.wants_rdma > 1 || head.reserved != [0; 2] || head.reserved2 != [0; 8];
        let named = head.session != [0; 16] || head.key != [0; 16] || head.link() != 0;
        let unused = kind == HelloKind::New && named
            || kind != HelloKind::Resume
                && (head.position != U64::ZERO || head.bulk_position != U64::ZERO);
        if reserved || unused {
            return Err(HelloError::Reserved);
        }
        head.limits.checked()?;
        if head.token_len() > TOKEN_BYTES_MAX || head.payload_len() > PAYLOAD_BYTES_MAX {
            let sum = u64::from(head.token_len.get()) + u64::from(head.payload_len.get());
            return Err(HelloError::TooLong(sum));
        }
        Ok(head)
    }

    /// The session's version, for a server that speaks no newer one than `newest`, as [`ClientHead::decode`] found it.
    pub(crate) fn version(&self, newest: u16) -> u16 {
        self.version.get().min(newest)
    }

    pub(crate) fn kind(&self) -> Result<HelloKind, HelloError> {
        match self.kind {
            1 => Ok(HelloKind::New),
            2 => Ok(HelloKind::Bulk),
            3 => Ok(HelloKind::Resume),
            other => Err(HelloError::Kind(other)),
        }
    }

    pub(crate) fn session(&self) -> SessionId {
        SessionId(self.session)
    }

    pub(crate) fn key(&self) -> SessionKey {
        SessionKey(self.key)
    }

    pub(crate) fn link(&self) -> u32 {
        self.link.get()
    }

    pub(crate) fn positions(&self) -> Positions {
        Positions {
            call: self.position.get(),
            bulk: self.bulk_position.get(),
        }
    }

    pub(crate) fn limits(&self) -> Result<Limits, HelloError> {
        self.limits.checked()
    }

    pub(crate) fn token_len(&self) -> usize {
        self.token_len.get() as usize
    }

    pub(crate) fn payload_len(&self) -> usize {
        self.payload_len.get() as usize
    }

    pub(crate) fn bytes(&self) -> [u8; HELLO_HEAD_BYTES] {
        zerocopy::transmute!(*self)
    }
}

impl std::fmt::Debug for ClientHead {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientHead")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

impl ServerHead {
    /// Lets a client in.
    pub(crate) fn welcome(
        version: u16,
        session: SessionId,
        key: SessionKey,
        limits: &Limits,
        payload_len: u32,
    ) -> Self {
        Self {
            magic: MAGIC,
            version: U16::new(version),
            refused: U16::ZERO,
            offers_rdma: 0,
            reserved: [0; 3],
            session: session.0,
            key: key.0,
            limits: WireLimits::new(limits),
            payload_len: U32::new(payload_len),
            reserved2: [0; 4],
            position: U64::ZERO,
            bulk_position: U64::ZERO,
            reserved3: [0; 12],
        }
    }

    /// Says whether an exchange of RDMA offers follows.
    pub(crate) fn with_rdma(mut self, offered: bool) -> Self {
        self.offers_rdma = offered.into();
        self
    }

    pub(crate) fn offers_rdma(&self) -> bool {
        self.offers_rdma == 1
    }

    /// Says what has arrived.
    pub(crate) fn with_positions(mut self, positions: Positions) -> Self {
        self.position = U64::new(positions.call);
        self.bulk_position = U64::new(positions.bulk);
        self
    }

    pub(crate) fn positions(&self) -> Positions {
        Positions {
            call: self.position.get(),
            bulk: self.bulk_position.get(),
        }
    }

    /// Sends a client away.
    pub(crate) fn refusal(version: u16, code: RefuseCode, message_len: u32) -> Self {
        let nobody = (SessionId([0; 16]), SessionKey([0; 16]));
        let mut head = Self::welcome(version, nobody.0, nobody.1, &Limits::default(), message_len);
        head.refused = U16::new(code.0);
        head
    }

    /// Checks the first bytes of a server, which answers in one of these versions. Total.
    pub(crate) fn decode(
        bytes: &[u8; SERVER_HEAD_BYTES],
        versions: RangeInclusive<u16>,
    ) -> Result<Self, HelloError> {
        let head: Self = zerocopy::transmute!(*bytes);
        Self::check_preamble(bytes, versions)?;
        let rdma = head.offers_rdma > 1;
        if rdma || head.reserved != [0; 3] || head.reserved2 != [0; 4] || head.reserved3 != [0; 12]
        {
            return Err(HelloError::Reserved);
        }
        head.limits.checked()?;
        if head.payload_len() > PAYLOAD_BYTES_MAX {
            return Err(HelloError::TooLong(u64::from(head.payload_len.get())));
        }
        Ok(head)
    }

    /// Checks what every version's first bytes begin with. `bytes` must hold at least magic and version.
    pub(crate) fn check_preamble(
        bytes: &[u8],
        versions: RangeInclusive<u16>,
    ) -> Result<(), HelloError> {
        let version = preamble(bytes)?;
        match versions.contains(&version) {
            true => Ok(()),
            false => Err(HelloError::Version(version)),
        }
    }

    /// The version of the session.
    pub(crate) fn version(&self) -> u16 {
        self.version.get()
    }

    pub(crate) fn refused(&self) -> Option<RefuseCode> {
        (self.refused != U16::ZERO).then(|| RefuseCode(self.refused.get()))
    }

    pub(crate) fn session(&self) -> SessionId {
        SessionId(self.session)
    }

    pub(crate) fn key(&self) -> SessionKey {
        SessionKey(self.key)
    }

    pub(crate) fn limits(&self) -> Result<Limits, HelloError> {
        self.limits.checked()
    }

    pub(crate) fn payload_len(&self) -> usize {
        self.payload_len.get() as usize
    }

    pub(crate) fn bytes(&self) -> [u8; SERVER_HEAD_BYTES] {
        zerocopy::transmute!(*self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::PROTOCOL_VERSION;
    use proptest::prelude::*;

    fn hello() -> [u8; HELLO_HEAD_BYTES] {
        hello_of(PROTOCOL_VERSION)
    }

    fn hello_of(version: u16) -> [u8; HELLO_HEAD_BYTES] {
        ClientHead::new(HelloKind::New, version, &Limits::default(), 3, 5).bytes()
    }

    fn changed(at: usize, value: u8) -> Option<HelloError> {
        let mut bytes = hello();
        bytes[at] = value;
        ClientHead::decode(&bytes, PROTOCOL_VERSION).err()
    }

    #[test]
    fn bad_hellos_are_named() {
        assert!(ClientHead::decode(&hello(), PROTOCOL_VERSION).is_ok());
        assert_eq!(changed(0, b'f'), Some(HelloError::Magic));
        assert_eq!(changed(8, 1), Some(HelloError::Version(1)));
        assert_eq!(changed(10, 7), Some(HelloError::Kind(7)));
        assert_eq!(changed(11, 1), None, "wants RDMA");
        assert_eq!(changed(11, 2), Some(HelloError::Reserved));
        assert_eq!(
            changed(12, 0),
            Some(HelloError::Reserved),
            "no oldest version"
        );
        assert_eq!(
            changed(12, 9),
            Some(HelloError::Reserved),
            "older than itself"
        );
        assert_eq!(changed(14, 1), Some(HelloError::Reserved));
        assert_eq!(
            changed(16, 1),
            Some(HelloError::Reserved),
            "a new client names no session"
        );
        assert_eq!(
            changed(84, 1),
            Some(HelloError::Reserved),
            "a new client has no earlier connection"
        );
        assert_eq!(changed(48, 1), Some(HelloError::Limits));
        assert_eq!(changed(63, 1), Some(HelloError::TooLong((1 << 24) + 3 + 5)));
        assert_eq!(changed(95, 1), Some(HelloError::Reserved));
    }

    /// Versions: what the client says, the oldest that it speaks, the newest of the server; the session's.
    #[test]
    fn both_speak_the_newest_version_that_both_know() {
        for (version, oldest, newest, expected) in [
            (2, 0, 2, Some(2)),
            (2, 0, 3, Some(2)),
            (3, 2, 2, None),
            (3, 2, 3, Some(3)),
            (4, 2, 3, Some(3)),
            (4, 3, 3, Some(3)),
            (4, 4, 3, None),
            (9, 0, 3, None),
            (1, 0, 3, None),
        ] {
            let mut bytes = hello_of(3);
            bytes[8] = version;
            bytes[12] = oldest;
            let spoken = ClientHead::decode(&bytes, newest).map(|head| head.version(newest));
            let expected = expected.ok_or(HelloError::Version(version.into()));
            assert_eq!(spoken, expected, "{version} {oldest} {newest}");
        }
    }

    proptest! {
        #[test]
        fn decoding_is_total(bytes in prop::collection::vec(any::<u8>(), 96), keep in 0usize..96) {
            let mut mixed = hello();
            mixed[keep..].copy_from_slice(&bytes[keep..]);
            if let Ok(head) = ClientHead::decode(&mixed, PROTOCOL_VERSION) {
                prop_assert_eq!(head.bytes(), mixed);
            }
            let mut mixed = ServerHead::refusal(PROTOCOL_VERSION, RefuseCode::TOKEN, 4).bytes();
            mixed[keep..].copy_from_slice(&bytes[keep..]);
            if let Ok(head) = ServerHead::decode(&mixed, PROTOCOL_VERSION_OLDEST..=PROTOCOL_VERSION) {
                prop_assert_eq!(head.bytes(), mixed);
            }
        }
    }
}
