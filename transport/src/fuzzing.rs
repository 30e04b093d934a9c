//! Every decoder of bytes from a peer, for fuzz targets and the replay of their corpus. Only with the feature
//! `fuzzing`; no part of the interface.
#![forbid(unsafe_code)]

use crate::endpoint::bulk_wire::{BULK_HEADER_BYTES, BulkHeader};
use crate::handshake::{ClientHead, HELLO_HEAD_BYTES, Handover, SERVER_HEAD_BYTES, ServerHead};
use crate::probe::split_records;
use crate::session::{FRAME_HEADER_BYTES, FrameHeader, FrameKind, Receiver, Sender};
use crate::stream::verbs::{OFFER_BYTES, Offer};
use crate::{PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST};

/// Longest frame, and window, of the session that [`frames`] plays.
const FRAME_BYTES_MAX: u32 = 4096;
const WINDOW_BYTES: u64 = 16384;

/// A stream of frames, as a session receives it: order, credits and acknowledgements are judged.
///
/// # Panics
/// If something is accepted that must not be.
pub fn frames(mut bytes: &[u8]) {
    let mut receiver = Receiver::new(WINDOW_BYTES);
    let mut sender = Sender::new(1 << 16, WINDOW_BYTES, FRAME_BYTES_MAX);
    while let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_BYTES>() {
        let Ok(header) = FrameHeader::decode(header, FRAME_BYTES_MAX) else {
            return;
        };
        let Some((payload, rest)) = rest.split_at_checked(header.len() as usize) else {
            return;
        };
        let judged = match header.kind() {
            FrameKind::Data => receiver.on_ordered_data(&header),
            FrameKind::Close => {
                let _ = receiver.on_close(header.seq());
                return;
            }
            FrameKind::Ack | FrameKind::Ping | FrameKind::Pong => Ok(()),
        };
        if judged.is_err() || sender.on_ack(header.ack(), header.credit()).is_err() {
            return;
        }
        assert_eq!(header.ack(), 0, "nothing was ever sent");
        assert!(
            receiver.ack() <= receiver.credit(),
            "received ahead of the credit"
        );
        if header.kind() == FrameKind::Data {
            assert!(
                payload.len() <= FRAME_BYTES_MAX as usize,
                "longer than agreed"
            );
            receiver.on_consumed(header.len());
        }
        bytes = rest;
    }
}

/// The heads of hellos, of either side, and what the supervisor tells an executor of one.
///
/// # Panics
/// If what was accepted does not encode to itself.
pub fn handshake(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk::<HELLO_HEAD_BYTES>()
        && let Ok(decoded) = ClientHead::decode(head, PROTOCOL_VERSION)
    {
        assert_eq!(&decoded.bytes(), head, "a client's hello");
        assert!(
            decoded.limits().is_ok_and(|limits| limits.is_valid()),
            "impossible limits"
        );
        assert!(
            decoded.payload_len() <= crate::PAYLOAD_BYTES_MAX,
            "a long payload"
        );
    }
    if let Some(head) = bytes.first_chunk::<SERVER_HEAD_BYTES>()
        && let Ok(decoded) = ServerHead::decode(head, PROTOCOL_VERSION_OLDEST..=PROTOCOL_VERSION)
    {
        assert_eq!(&decoded.bytes(), head, "a server's hello");
        assert!(
            decoded.payload_len() <= crate::PAYLOAD_BYTES_MAX,
            "a long payload"
        );
    }
    if let Ok(handover) = Handover::decode(bytes) {
        let again = Handover::decode(&handover.encode());
        assert_eq!(
            again.map(|handover| handover.link),
            Ok(handover.link),
            "a handover"
        );
    }
}

/// The headers of bulk transfers, offers of RDMA, records of probes.
///
/// # Panics
/// If what was accepted does not encode to itself.
pub fn planes(bytes: &[u8]) {
    if let Some(head) = bytes.first_chunk::<BULK_HEADER_BYTES>()
        && let Ok(decoded) = BulkHeader::decode(head)
    {
        assert_eq!(&decoded.bytes(), head, "a bulk header");
    }
    if let Some(offer) = bytes.first_chunk::<OFFER_BYTES>() {
        let _ = Offer::decode(offer);
    }
    assert!(split_records(bytes) <= bytes.len(), "a probe");
}

/// TLS records, forged ones and a peer's.
///
/// # Panics
/// If something is accepted that must not be.
pub fn tls(bytes: &[u8]) {
    crate::stream::tls::play(bytes);
}
