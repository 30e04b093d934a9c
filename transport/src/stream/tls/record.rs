//! The record layer of TLS 1.3 (RFC 8446, section 5), each direction for itself: two threads send and receive at once, and
//! the process that serves a session is another than the one that shook hands. rustls shakes hands and gives the keys away
//! (as it does for a kernel's record layer); from then on this seals and opens records.
#![forbid(unsafe_code)]

use ring::aead::{AES_128_GCM, AES_256_GCM, Aad, Algorithm, CHACHA20_POLY1305};
use ring::aead::{LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use rustls::ConnectionTrafficSecrets as Secrets;
use zerocopy::byteorder::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::TlsError;
use crate::error::HelloError;
use crate::num::to_u64;

/// Most plaintext of one record.
pub(crate) const PLAIN_BYTES_MAX: usize = 16 << 10;
/// Type, version and length before each record.
pub(crate) const HEADER_BYTES: usize = 5;
/// What a record may be longer than its plaintext, the header aside.
const EXPANSION_BYTES_MAX: usize = 256;
/// Longest record.
pub(crate) const RECORD_BYTES_MAX: usize = HEADER_BYTES + PLAIN_BYTES_MAX + EXPANSION_BYTES_MAX;
/// The content's type, inside, and the tag behind it.
const OVERHEAD_BYTES: usize = 1 + MAX_TAG_LEN;

/// What may be sealed under one key, in blocks of 16 bytes: AES-GCM is indistinguishable from noise with all the
/// certainty that RFC 8446 (section 5.5) asks for up to 2^24 full records. Afterwards the session goes on over another connection.
const BLOCKS_MAX: u64 = 1 << 34;
const BLOCK_BYTES: usize = 16;

const CHANGE_CIPHER_SPEC: u8 = 20;
const ALERT: u8 = 21;
pub(crate) const HANDSHAKE: u8 = 22;
const APPLICATION_DATA: u8 = 23;
/// Close, as an alert that says so.
const CLOSE_NOTIFY: [u8; 2] = [1, 0];

/// Which cipher, by its place in [`Keys`] on the way to another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Suite {
    Aes128,
    Aes256,
    ChaCha20,
}

impl Suite {
    fn algorithm(self) -> &'static Algorithm {
        match self {
            Self::Aes128 => &AES_128_GCM,
            Self::Aes256 => &AES_256_GCM,
            Self::ChaCha20 => &CHACHA20_POLY1305,
        }
    }
}

/// The key of one direction, and the number of its next record. Never shown.
#[derive(Clone)]
struct Direction {
    key: [u8; 32],
    iv: [u8; NONCE_LEN],
    next: u64,
}

/// What both directions of a connection go on with.
#[derive(Clone)]
pub(crate) struct Keys {
    suite: Suite,
    send: Direction,
    receive: Direction,
}

/// The same on its way to another process.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct WireKeys {
    /// 0: no TLS.
    suite: u8,
    keys: [[u8; 32]; 2],
    ivs: [[u8; NONCE_LEN]; 2],
    next: [U64; 2],
}

impl Keys {
    /// From the connection that shook hands, with nothing left to send.
    pub(super) fn extract(secrets: rustls::ExtractedSecrets) -> Result<Self, TlsError> {
        let rustls::ExtractedSecrets { tx, rx } = secrets;
        let (suite, send) = Direction::new(tx)?;
        let (same, receive) = Direction::new(rx)?;
        if suite != same {
            return Err(TlsError::Protocol("two ciphers"));
        }
        Ok(Self {
            suite,
            send,
            receive,
        })
    }

    pub(crate) fn to_wire(&self) -> WireKeys {
        WireKeys {
            suite: self.suite as u8 + 1,
            keys: [self.send.key, self.receive.key],
            ivs: [self.send.iv, self.receive.iv],
            next: [self.send.next, self.receive.next].map(U64::new),
        }
    }

    /// None: no TLS.
    pub(crate) fn of_wire(wire: &WireKeys) -> Result<Option<Self>, HelloError> {
        let suite = match wire.suite {
            0 => return Ok(None),
            1 => Suite::Aes128,
            2 => Suite::Aes256,
            3 => Suite::ChaCha20,
            _ => return Err(HelloError::Reserved),
        };
        let direction = |n: usize| Direction {
            key: wire.keys[n],
            iv: wire.ivs[n],
            next: wire.next[n].get(),
        };
        Ok(Some(Self {
            suite,
            send: direction(0),
            receive: direction(1),
        }))
    }

    pub(crate) fn halves(&self) -> Result<(Sealer, Opener), TlsError> {
        Ok((
            Sealer {
                half: Half::new(self.suite, &self.send)?,
                blocks_left: BLOCKS_MAX,
            },
            Opener {
                half: Half::new(self.suite, &self.receive)?,
            },
        ))
    }

    /// Both ends' keys of a connection that nobody shook hands for.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn pair() -> (Self, Self) {
        let direction = |byte| Direction {
            key: [byte; 32],
            iv: [byte; NONCE_LEN],
            next: 0,
        };
        let (up, down) = (direction(1), direction(2));
        let keys = |send: &Direction, receive: &Direction| Self {
            suite: Suite::Aes128,
            send: send.clone(),
            receive: receive.clone(),
        };
        (keys(&up, &down), keys(&down, &up))
    }
}

impl WireKeys {
    /// No TLS.
    pub(crate) const NONE: Self = Self {
        suite: 0,
        keys: [[0; 32]; 2],
        ivs: [[0; NONCE_LEN]; 2],
        next: [U64::ZERO; 2],
    };
}

impl std::fmt::Debug for Keys {
    /// Without the keys.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({:?}, ..)", self.suite)
    }
}

impl Direction {
    fn new((next, secrets): (u64, Secrets)) -> Result<(Suite, Self), TlsError> {
        let (suite, key, iv) = match &secrets {
            Secrets::Aes128Gcm { key, iv } => (Suite::Aes128, key, iv),
            Secrets::Aes256Gcm { key, iv } => (Suite::Aes256, key, iv),
            Secrets::Chacha20Poly1305 { key, iv } => (Suite::ChaCha20, key, iv),
            _ => return Err(TlsError::Protocol("an unknown cipher")),
        };
        let mut whole = [0; 32];
        let bytes = suite.algorithm().key_len().min(key.as_ref().len());
        whole[..bytes].copy_from_slice(&key.as_ref()[..bytes]);
        let iv = iv.as_ref().try_into();
        let iv = iv.map_err(|_| TlsError::Protocol("a nonce of another length"))?;
        Ok((
            suite,
            Self {
                key: whole,
                iv,
                next,
            },
        ))
    }
}

/// One direction's cipher.
struct Half {
    key: LessSafeKey,
    iv: [u8; NONCE_LEN],
    next: u64,
}

impl Half {
    fn new(suite: Suite, direction: &Direction) -> Result<Self, TlsError> {
        let algorithm = suite.algorithm();
        let key = UnboundKey::new(algorithm, &direction.key[..algorithm.key_len()]);
        let key = key.map_err(|_| TlsError::Protocol("an impossible key"))?;
        Ok(Self {
            key: LessSafeKey::new(key),
            iv: direction.iv,
            next: direction.next,
        })
    }

    /// The nonce of the next record; each is used once.
    fn nonce(&mut self) -> Result<Nonce, TlsError> {
        let mut nonce = self.iv;
        for (byte, number) in nonce[NONCE_LEN - 8..]
            .iter_mut()
            .zip(self.next.to_be_bytes())
        {
            *byte ^= number;
        }
        self.next = self.next.checked_add(1).ok_or(TlsError::KeyUsedUp)?;
        Ok(Nonce::assume_unique_for_key(nonce))
    }
}

/// Seals what is sent.
pub(crate) struct Sealer {
    half: Half,
    blocks_left: u64,
}

impl Sealer {
    /// Lets the key be used up after so many blocks.
    pub(super) fn limit(&mut self, blocks: u64) {
        self.blocks_left = self.blocks_left.min(blocks);
    }

    /// Appends one record to `out`, whose content is what `fill` appends: at most [`PLAIN_BYTES_MAX`] bytes.
    pub(crate) fn seal(
        &mut self,
        out: &mut Vec<u8>,
        bytes: usize,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), TlsError> {
        self.seal_as(APPLICATION_DATA, out, bytes, fill)
    }

    /// Appends the record that says that nothing more comes.
    pub(super) fn seal_close(&mut self, out: &mut Vec<u8>) -> Result<(), TlsError> {
        self.seal_as(ALERT, out, CLOSE_NOTIFY.len(), |out| {
            out.extend(CLOSE_NOTIFY);
        })
    }

    fn seal_as(
        &mut self,
        kind: u8,
        out: &mut Vec<u8>,
        bytes: usize,
        fill: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), TlsError> {
        let blocks = to_u64(bytes / BLOCK_BYTES) + 2;
        let left = self.blocks_left.checked_sub(blocks);
        self.blocks_left = left.ok_or(TlsError::KeyUsedUp)?;
        let len = u16::try_from(bytes + OVERHEAD_BYTES)
            .ok()
            .filter(|_| bytes <= PLAIN_BYTES_MAX)
            .ok_or(TlsError::Protocol("a record that is too long"))?;
        let [high, low] = len.to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, high, low];
        let nonce = self.half.nonce()?;
        out.extend(header);
        let start = out.len();
        fill(out);
        debug_assert_eq!(out.len() - start, bytes);
        out.push(kind);
        let key = &self.half.key;
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(header), &mut out[start..]);
        out.extend_from_slice(tag.map_err(|_| TlsError::Record)?.as_ref());
        Ok(())
    }
}

/// What a record held.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Content {
    /// So many bytes of the stream, behind the header.
    Data(usize),
    /// The peer sends nothing more.
    End,
}

/// Opens what is received.
pub(crate) struct Opener {
    half: Half,
}

impl Opener {
    /// Opens one whole record in place. Total.
    pub(crate) fn open(&mut self, record: &mut [u8]) -> Result<Content, TlsError> {
        let (header, sealed) = record
            .split_first_chunk_mut::<HEADER_BYTES>()
            .ok_or(TlsError::Record)?;
        match header[0] {
            APPLICATION_DATA => {}
            CHANGE_CIPHER_SPEC | ALERT | HANDSHAKE => {
                return Err(TlsError::Protocol("a record that is not sealed"));
            }
            _ => return Err(TlsError::Record),
        }
        let nonce = self.half.nonce()?;
        let opened = self
            .half
            .key
            .open_in_place(nonce, Aad::from(*header), sealed)
            .map_err(|_| TlsError::Record)?;
        // Zeros behind the type only hide how long the content is.
        let end = opened.iter().rposition(|byte| *byte != 0);
        let end = end.ok_or(TlsError::Protocol("a record without a type"))?;
        let (content, kind) = (&opened[..end], opened[end]);
        match kind {
            APPLICATION_DATA if content.is_empty() => {
                Err(TlsError::Protocol("a record without content"))
            }
            APPLICATION_DATA if content.len() <= PLAIN_BYTES_MAX => {
                Ok(Content::Data(content.len()))
            }
            ALERT if *content == CLOSE_NOTIFY => Ok(Content::End),
            ALERT => Err(TlsError::Protocol("it says that something is wrong")),
            // Tickets and new keys: neither side asks for them.
            _ => Err(TlsError::Protocol("a record of an unexpected type")),
        }
    }
}

/// Length of the record that begins with `bytes`, with its header; None while the header is not there.
///
/// # Errors
/// No record is so long.
pub(crate) fn record_bytes(bytes: &[u8]) -> Result<Option<usize>, TlsError> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let bytes = HEADER_BYTES + usize::from(u16::from_be_bytes([header[3], header[4]]));
    if header[1] != 3 || bytes > RECORD_BYTES_MAX {
        return Err(TlsError::Record);
    }
    Ok(Some(bytes))
}

/// Records as they come, and the content of one that is sealed with the peer's key, behind its type.
///
/// # Panics
/// If something is accepted that must not be.
#[cfg(feature = "fuzzing")]
pub(crate) fn play(bytes: &[u8]) {
    let (near, far) = Keys::pair();
    let (Ok((mut sealer, _)), Ok((_, mut opener))) = (near.halves(), far.halves()) else {
        return;
    };
    let mut stream = bytes.to_vec();
    let mut rest = &mut stream[..];
    while let Ok(Some(whole)) = record_bytes(rest) {
        let Some((record, next)) = rest.split_at_mut_checked(whole) else {
            break;
        };
        assert!(opener.open(record).is_err(), "a forged record");
        rest = next;
    }
    let Some((kind, content)) = bytes.split_first() else {
        return;
    };
    let content = &content[..content.len().min(PLAIN_BYTES_MAX)];
    let mut record = Vec::new();
    let fill = |out: &mut Vec<u8>| out.extend_from_slice(content);
    if sealer
        .seal_as(*kind, &mut record, content.len(), fill)
        .is_err()
    {
        return;
    }
    let Ok((_, mut opener)) = far.halves() else {
        return;
    };
    match opener.open(&mut record) {
        Ok(Content::Data(bytes)) => assert_eq!(
            record[HEADER_BYTES..HEADER_BYTES + bytes],
            content[..bytes],
            "other content"
        ),
        Ok(Content::End) => assert!(content.starts_with(&CLOSE_NOTIFY), "no end"),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn ends() -> (Sealer, Opener) {
        let (near, far) = Keys::pair();
        (near.halves().unwrap().0, far.halves().unwrap().1)
    }

    fn sealed(sealer: &mut Sealer, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut record = Vec::new();
        let fill = |out: &mut Vec<u8>| out.extend_from_slice(content);
        let made = sealer.seal_as(kind, &mut record, content.len(), fill);
        made.unwrap();
        record
    }

    #[test]
    fn what_is_sealed_opens_in_its_order_alone() {
        let (mut sealer, mut opener) = ends();
        let mut first = sealed(&mut sealer, APPLICATION_DATA, b"first");
        let mut second = sealed(&mut sealer, APPLICATION_DATA, b"second");
        let mut early = second.clone();
        assert_eq!(record_bytes(&first), Ok(Some(first.len())));
        assert!(!first.windows(5).any(|at| at == b"first"), "in the clear");
        assert_eq!(opener.open(&mut first), Ok(Content::Data(5)));
        assert_eq!(&first[HEADER_BYTES..][..5], b"first");
        assert_eq!(opener.open(&mut second), Ok(Content::Data(6)));
        assert_eq!(opener.open(&mut early), Err(TlsError::Record), "again");
        let (mut sealer, mut opener) = ends();
        drop(sealed(&mut sealer, APPLICATION_DATA, b"lost"));
        let mut second = sealed(&mut sealer, APPLICATION_DATA, b"second");
        assert_eq!(opener.open(&mut second), Err(TlsError::Record), "a gap");
    }

    #[test]
    fn any_changed_bit_is_noticed() {
        let (mut sealer, _) = ends();
        let good = sealed(&mut sealer, APPLICATION_DATA, b"content");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let (_, mut opener) = ends();
            assert!(opener.open(&mut bad).is_err(), "bit {bit}");
        }
        let (_, mut opener) = ends();
        assert!(opener.open(&mut good.clone()).is_ok());
    }

    #[test]
    fn what_a_record_may_hold() {
        let judged = |kind, content: &[u8]| {
            let (mut sealer, mut opener) = ends();
            opener.open(&mut sealed(&mut sealer, kind, content))
        };
        let full = vec![7; PLAIN_BYTES_MAX];
        assert_eq!(judged(23, &full), Ok(Content::Data(PLAIN_BYTES_MAX)));
        assert_eq!(judged(21, &CLOSE_NOTIFY), Ok(Content::End));
        assert_eq!(judged(23, &[5, 0, 0]), Ok(Content::Data(3)));
        assert_eq!(judged(0, &[9, 9, 23, 0]), Ok(Content::Data(2)), "padded");
        for (kind, content) in [
            (23, &[][..]),
            (0, &[0, 0]),
            (21, &[2, 40]),
            (22, &[24, 0, 0, 1, 0]),
            (20, &[1]),
        ] {
            let judged = judged(kind, content);
            assert!(matches!(judged, Err(TlsError::Protocol(_))), "{judged:?}");
        }
        for kind in [20, 21, 22] {
            let (_, mut opener) = ends();
            let opened = opener.open(&mut [kind, 3, 3, 0, 2, 2, 40]);
            assert!(matches!(opened, Err(TlsError::Protocol(_))), "not sealed");
        }
    }

    #[test]
    fn a_key_is_used_up() {
        let (mut sealer, _) = ends();
        sealer.limit(5);
        let mut out = Vec::new();
        let mut seal = |bytes| sealer.seal(&mut out, bytes, |out| out.extend(vec![0; bytes]));
        assert_eq!(seal(16), Ok(()));
        assert_eq!(seal(15), Ok(()));
        assert_eq!(seal(1), Err(TlsError::KeyUsedUp));
    }

    #[test]
    fn keys_survive_the_way_to_another_process() {
        let (near, far) = Keys::pair();
        let near = Keys::of_wire(&near.to_wire()).unwrap().unwrap();
        let (mut sealer, mut opener) = (near.halves().unwrap().0, far.halves().unwrap().1);
        let mut record = sealed(&mut sealer, APPLICATION_DATA, b"x");
        assert_eq!(opener.open(&mut record), Ok(Content::Data(1)));
        assert!(Keys::of_wire(&WireKeys::NONE).unwrap().is_none());
        assert_eq!(format!("{near:?}"), "Keys(Aes128, ..)", "no key is shown");
    }

    proptest! {
        #[test]
        fn any_bytes_are_refused_or_opened(mut record in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_, mut opener) = ends();
            prop_assert!(opener.open(&mut record).is_err());
            let _ = record_bytes(&record);
        }
    }
}
