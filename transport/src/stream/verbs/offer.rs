//! What the two sides tell each other about their queue pairs, over the bootstrap connection.
#![forbid(unsafe_code)]

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::error::VerbsError;
use super::flow;

/// Planes of a session: calls, bulk.
pub(super) const PLANES: usize = 2;
/// Bytes of [`Offer`] on the wire.
pub(crate) const OFFER_BYTES: usize = 256;
const MAGIC: [u8; 8] = *b"FCRDMA2\0";
const REASON_BYTES: usize = 128;

/// One side's half of a session over RDMA, or why it has none.
#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Offer {
    magic: [u8; 8],
    /// 0: here it is. Else `reason` says why not.
    refused: u8,
    /// Nonzero: memory is polled.
    memory: u8,
    mtu: u8,
    /// RDMA reads under way that it serves.
    reads: u8,
    lid: U16,
    reserved2: U16,
    gid: [u8; 16],
    planes: [PlaneOffer; PLANES],
    reason: [u8; REASON_BYTES],
    reserved3: [u8; 16],
}

/// Where one plane is written to.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub(super) struct PlaneOffer {
    pub(super) qpn: U32,
    pub(super) psn: U32,
    pub(super) inbox: U64,
    pub(super) inbox_rkey: U32,
    pub(super) inbox_bytes: U32,
    pub(super) status: U64,
    pub(super) status_rkey: U32,
    /// Receives that are posted for messages.
    pub(super) messages_max: U32,
}

const _: () = assert!(size_of::<Offer>() == OFFER_BYTES);

/// What a side says about itself, decoded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Half {
    pub(super) memory: bool,
    /// RDMA reads under way that it serves; 0: it takes no part in transfers beside the ring.
    pub(super) reads: u8,
    /// As `enum ibv_mtu`.
    pub(super) mtu: u8,
    pub(super) lid: u16,
    pub(super) gid: [u8; 16],
    pub(super) planes: [PlaneOffer; PLANES],
}

/// A decoded offer.
#[derive(Debug)]
pub(crate) enum Answer {
    /// The peer's half.
    Half(Half),
    /// Why there is none, in the peer's words.
    Refused(String),
}

impl Offer {
    pub(super) fn new(half: &Half) -> Self {
        Self {
            magic: MAGIC,
            refused: 0,
            memory: half.memory.into(),
            mtu: half.mtu,
            reads: half.reads,
            lid: U16::new(half.lid),
            reserved2: U16::ZERO,
            gid: half.gid,
            planes: half.planes,
            reason: [0; REASON_BYTES],
            reserved3: [0; 16],
        }
    }

    /// Says no. The reason is for people; at most 128 bytes of it are sent.
    pub(crate) fn refusal(why: &str) -> Self {
        let mut offer = Self::new(&Half {
            memory: false,
            reads: 0,
            mtu: 0,
            lid: 0,
            gid: [0; 16],
            planes: [PlaneOffer::default(); PLANES],
        });
        offer.refused = 1;
        let cut = why.floor_char_boundary(REASON_BYTES);
        offer.reason[..cut].copy_from_slice(&why.as_bytes()[..cut]);
        offer
    }

    /// Checks what the peer sent. Total.
    pub(crate) fn decode(bytes: &[u8; OFFER_BYTES]) -> Result<Answer, VerbsError> {
        let offer: Self = zerocopy::transmute!(*bytes);
        let clean = offer.reserved2 == U16::ZERO && offer.reserved3 == [0; 16];
        if offer.magic != MAGIC || !clean || offer.refused > 1 || offer.memory > 1 {
            return Err(VerbsError::Protocol("malformed offer"));
        }
        if offer.refused == 1 {
            let text = String::from_utf8_lossy(&offer.reason);
            let text = text.chars().filter(|c| !c.is_control()).collect();
            return Ok(Answer::Refused(text));
        }
        let plane = |plane: &PlaneOffer| {
            flow::ring_bytes(plane.inbox_bytes.get()).is_some()
                && (4..=4096).contains(&plane.messages_max.get())
        };
        if !(1..=5).contains(&offer.mtu) || !offer.planes.iter().all(plane) {
            return Err(VerbsError::Protocol("impossible offer"));
        }
        Ok(Answer::Half(Half {
            memory: offer.memory == 1,
            reads: offer.reads,
            mtu: offer.mtu,
            lid: offer.lid.get(),
            gid: offer.gid,
            planes: offer.planes,
        }))
    }

    pub(crate) fn bytes(&self) -> [u8; OFFER_BYTES] {
        zerocopy::transmute!(*self)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn good() -> [u8; OFFER_BYTES] {
        let plane = PlaneOffer {
            inbox_bytes: U32::new(1 << 20),
            messages_max: U32::new(256),
            ..PlaneOffer::default()
        };
        let half = Half {
            memory: true,
            reads: 7,
            mtu: 5,
            lid: 0,
            gid: [7; 16],
            planes: [plane; PLANES],
        };
        Offer::new(&half).bytes()
    }

    #[test]
    fn offers_and_refusals_round_trip() {
        let Ok(Answer::Half(half)) = Offer::decode(&good()) else {
            panic!("no half");
        };
        assert_eq!(
            (half.memory, half.reads, half.mtu, half.gid),
            (true, 7, 5, [7; 16])
        );
        let long = "ä".repeat(200);
        let Ok(Answer::Refused(text)) = Offer::decode(&Offer::refusal(&long).bytes()) else {
            panic!("no refusal");
        };
        assert_eq!(text, "ä".repeat(64));
    }

    #[test]
    fn impossible_offers_are_refused() {
        // Magic, flags, mtu, reserved, ring of plane 0, receives of plane 0, reserved.
        for (at, value) in [
            (0, 0),
            (8, 2),
            (9, 2),
            (10, 6),
            (14, 1),
            (52, 1),
            (69, 0xff),
            (255, 1),
        ] {
            let mut bytes = good();
            bytes[at] = value;
            assert!(Offer::decode(&bytes).is_err(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn decoding_is_total(bytes in prop::collection::vec(any::<u8>(), OFFER_BYTES), keep in 0usize..OFFER_BYTES) {
            let mut mixed = good();
            mixed[keep..].copy_from_slice(&bytes[keep..]);
            let _ = Offer::decode(&mixed);
        }
    }
}
