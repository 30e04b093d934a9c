//! The bytes of every version of the protocol that is spoken, held against a file for each: a change of any cannot go unnoticed.
//! After a wanted change raise `PROTOCOL_VERSION`, run with `FARCALL_ACCEPT_GOLDEN=1`, and keep the older files. What peers say
//! of whom the older files are is tested for as long as they lie there (`transport/tests/versions.rs` plays them to the end).
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::PathBuf;

use crate::endpoint::bulk_wire::BulkHeader;
use crate::error::HelloError;
use crate::handshake::{ClientHead, HelloKind, ServerHead, SessionId, SessionKey};
use crate::options::Limits;
use crate::session::{FrameHeader, FrameKind};
use crate::{PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST, error::RefuseCode, handshake::Positions};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures/golden")
}

fn file(version: u16) -> PathBuf {
    golden().join(format!("transport-{version}.tsv"))
}

/// Every kind of what is sent, with values that tell its fields apart.
fn samples(version: u16) -> Vec<(&'static str, Vec<u8>)> {
    let limits = Limits::default();
    let (session, key) = (SessionId([0x11; 16]), SessionKey([0x22; 16]));
    let positions = Positions {
        call: 0x0102_0304_0506_0708,
        bulk: 0x1112_1314_1516_1718,
    };
    let frame = |kind, len| {
        FrameHeader::new(kind, len, 0x31, 0x41, 0x51)
            .bytes()
            .to_vec()
    };
    let client = |kind| ClientHead::new(kind, version, &limits, 3, 5);
    vec![
        ("client-new", client(HelloKind::New).bytes().to_vec()),
        (
            "server-welcome",
            ServerHead::welcome(version, session, key, &limits, 7)
                .bytes()
                .to_vec(),
        ),
        (
            "server-welcome-rdma",
            ServerHead::welcome(version, session, key, &limits, 7)
                .with_rdma(true)
                .bytes()
                .to_vec(),
        ),
        (
            "server-resumed",
            ServerHead::welcome(version, session, key, &limits, 0)
                .with_positions(positions)
                .bytes()
                .to_vec(),
        ),
        (
            "server-refusal",
            ServerHead::refusal(version, RefuseCode::TOKEN, 9)
                .bytes()
                .to_vec(),
        ),
        ("frame-data", frame(FrameKind::Data, 64)),
        ("frame-ack", frame(FrameKind::Ack, 0)),
        ("frame-ping", frame(FrameKind::Ping, 0)),
        ("frame-pong", frame(FrameKind::Pong, 0)),
        ("frame-close", frame(FrameKind::Close, 0)),
        ("bulk", BulkHeader::new(0x61, 0x71).bytes().to_vec()),
        (
            "bulk-placed",
            BulkHeader::placed(0x61, 0x71).bytes().to_vec(),
        ),
    ]
}

fn unhex(text: &str) -> Vec<u8> {
    let digits = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
    (0..text.len()).step_by(2).map(digits).collect()
}

#[test]
fn frozen_bytes_are_sent_as_ever() {
    for version in PROTOCOL_VERSION_OLDEST..=PROTOCOL_VERSION {
        let mut now = String::new();
        for (name, bytes) in samples(version) {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(now, "{name}\t{hex}").unwrap();
        }
        if version == PROTOCOL_VERSION && std::env::var_os("FARCALL_ACCEPT_GOLDEN").is_some() {
            std::fs::write(file(version), &now).unwrap();
        }
        let kept = std::fs::read_to_string(file(version)).unwrap();
        assert_eq!(kept, now, "version {version}");
    }
}

/// What a peer of every version that there was says is understood, or refused with its number.
#[test]
fn frozen_hellos_of_every_version_are_understood_or_named() {
    let spoken = PROTOCOL_VERSION_OLDEST..=PROTOCOL_VERSION;
    let mut versions = 0;
    for version in 1..=PROTOCOL_VERSION {
        let Ok(kept) = std::fs::read_to_string(file(version)) else {
            assert!(!spoken.contains(&version), "no file of version {version}");
            continue;
        };
        versions += 1;
        for line in kept.lines() {
            let (name, hex) = line.split_once('\t').unwrap();
            let bytes = unhex(hex);
            let refused = match name.split_once('-') {
                Some(("client", _)) => {
                    let head = bytes[..].try_into().unwrap();
                    ClientHead::decode(head, PROTOCOL_VERSION).err()
                }
                Some(("server", _)) => {
                    let head = bytes[..].try_into().unwrap();
                    ServerHead::decode(head, spoken.clone()).err()
                }
                Some(("frame", _)) => {
                    FrameHeader::decode(bytes[..].try_into().unwrap(), 64).unwrap();
                    continue;
                }
                _ => {
                    BulkHeader::decode(bytes[..].try_into().unwrap()).unwrap();
                    continue;
                }
            };
            let expected = (!spoken.contains(&version)).then_some(HelloError::Version(version));
            assert_eq!(refused, expected, "{name} of version {version}");
        }
    }
    assert!(versions > 1);
}
