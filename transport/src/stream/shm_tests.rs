//! A ring as its two sides see it, honest and not.
#![allow(clippy::unwrap_used)]
use std::os::unix::net::UnixStream;

use proptest::prelude::*;

use super::super::ring::{Known, Words};
use super::*;
use crate::endpoint::{Agreed, Endpoint, Handler};
use crate::error::CloseReason;
use crate::handshake::{SessionId, SessionKey};
use crate::options::{Limits, Tuning};
use crate::session::{FrameHeader, FrameKind};
use crate::sim::Rng;
use crate::sys::sync::TOLD_PARTS;

pub(crate) type Planes = (Shm, Shm);

/// Two ends in one process.
pub(crate) fn pair() -> (Planes, Planes) {
    let (a, b) = UnixStream::pair().unwrap();
    let (a, b): (OwnedFd, OwnedFd) = (a.into(), b.into());
    let (near, far) = (Near::new().unwrap(), Near::new().unwrap());
    near.send(&a).unwrap();
    far.send(&b).unwrap();
    let (near_offer, near_fds) = receive(&b);
    let (far_offer, far_fds) = receive(&a);
    let near = near.join_planes(a, &far_offer, far_fds).unwrap();
    (near, far.join_planes(b, &near_offer, near_fds).unwrap())
}

fn receive(socket: &OwnedFd) -> ([u8; OFFER_BYTES], [OwnedFd; fdpass::FDS]) {
    let mut offer = [0; OFFER_BYTES];
    let (got, fds) = fdpass::recv(socket.as_raw_fd(), &mut offer).unwrap();
    assert_eq!(got, OFFER_BYTES);
    (offer, fds.unwrap())
}

fn recv(stream: &dyn Stream) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 100];
    let got = super::super::recv_into(stream, &mut buffer)?;
    Ok(buffer[..got].to_vec())
}

#[test]
fn bytes_pass_wrap_and_end() {
    let (near, far) = pair();
    for n in 0..CALL_BYTES / 50 {
        let record = [n.to_le_bytes()[0]; 100];
        assert_eq!(near.0.send(&[IoSlice::new(&record)]).unwrap(), 100);
        assert_eq!(recv(&far.0).unwrap(), record);
    }
    assert_eq!(recv(&far.0).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    near.0.send(&[IoSlice::new(b"last")]).unwrap();
    near.0.shutdown();
    assert_eq!(recv(&far.0).unwrap(), b"last");
    assert_eq!(recv(&far.0).unwrap(), b"");
}

#[test]
fn a_full_ring_takes_no_more() {
    let (near, far) = pair();
    let bytes = vec![7; CALL_BYTES + 1];
    assert_eq!(near.0.send(&[IoSlice::new(&bytes)]).unwrap(), CALL_BYTES);
    let full = near.0.send(&[IoSlice::new(&bytes)]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    // Room is told of in parts.
    assert_eq!(recv(&far.0).unwrap().len(), 100);
    let full = near.0.send(&[IoSlice::new(&bytes)]).unwrap_err();
    assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    let part = CALL_BYTES / to_usize(TOLD_PARTS);
    let mut taken = 100;
    while taken < part {
        taken += recv(&far.0).unwrap().len();
    }
    assert_eq!(near.0.send(&[IoSlice::new(&bytes)]).unwrap(), taken);
}

#[test]
fn the_death_of_the_peer_shows_after_a_sleep() {
    let (near, far) = pair();
    near.0.send(&[IoSlice::new(b"last words")]).unwrap();
    drop(near);
    let mut set = PollSet::new();
    assert!(
        !far.0.arm(&mut set, true, false),
        "there is something to read"
    );
    far.0.disarm();
    assert_eq!(recv(&far.0).unwrap(), b"last words");
    let mut set = PollSet::new();
    assert!(far.0.arm(&mut set, true, false));
    assert!(set.wait(None).unwrap(), "the socket tells");
    far.0.disarm();
    assert_eq!(recv(&far.0).unwrap(), b"");
}

#[test]
fn the_peer_can_only_read_our_memory() {
    let (a, _b) = UnixStream::pair().unwrap();
    let near = Near::new().unwrap();
    near.send(&a.into()).unwrap();
    assert!(SharedRing::map(&near.memory, 0, CALL_BYTES, true).is_err());
}

#[test]
fn memory_that_could_shrink_is_not_taken() {
    let unsealed = sharedring::create(&[CALL_BYTES, BULK_BYTES]).unwrap();
    assert!(sharedring::check(unsealed.as_fd(), 4096).is_err());
    sharedring::seal(&unsealed).unwrap();
    assert!(sharedring::check(unsealed.as_fd(), 4096).is_ok());
    assert!(sharedring::check(unsealed.as_fd(), 64 << 20).is_err());
}

#[test]
fn impossible_positions_are_errors() {
    let (ours, theirs) = (Words::default(), Words::default());
    let (known, known_there) = (Known::default(), Known::default());
    let near = Sides {
        near: &ours,
        far: &theirs,
        known: &known,
    };
    let far = Sides {
        near: &theirs,
        far: &ours,
        known: &known_there,
    };
    far.produce(8);
    assert_eq!(near.available(8), Ok((0, 8)));
    near.consume(8, 8);
    for lie in [7, 17, u64::MAX, u64::MAX / 2] {
        far.produce(lie);
        assert_eq!(near.available(8), Err(Impossible), "{lie}");
    }
    for lie in [1, 9, u64::MAX] {
        far.consume(lie, 0);
        assert_eq!(near.room(8, 9), Err(Impossible), "{lie} of nothing");
    }
}

#[test]
fn impossible_offers_are_refused() {
    let (a, b) = UnixStream::pair().unwrap();
    let near = Near::new().unwrap();
    near.send(&a.into()).unwrap();
    let b: OwnedFd = b.into();
    let (good, fds) = receive(&b);
    for (at, value) in [(0, 0), (8, 1), (11, 0x7f), (12, 1), (15, 4)] {
        let mut offer = good;
        offer[at] = value;
        let fds = [&fds[0], &fds[1], &fds[2]].map(|fd| fd.try_clone().unwrap());
        let joined = Near::new()
            .unwrap()
            .join(b.try_clone().unwrap(), &offer, fds);
        assert!(joined.is_err(), "byte {at}");
    }
}

/// What a test does to a ring.
#[derive(Clone, Debug)]
enum Action {
    Send(usize),
    Recv(usize),
    Sleep,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let len = || {
        prop_oneof![
            1usize..200,
            1usize..70_000,
            Just(CALL_BYTES),
            Just(CALL_BYTES + 1)
        ]
    };
    let action = prop_oneof![
        5 => len().prop_map(Action::Send),
        5 => len().prop_map(Action::Recv),
        1 => Just(Action::Sleep),
    ];
    prop::collection::vec(action, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// The ring is a queue of bytes of a fixed size, whatever is done to it. The model needs only to
    /// know how many bytes went in and came out: the stream's n-th byte follows from n.
    #[test]
    fn a_ring_is_a_queue(actions in actions()) {
        const PERIOD: usize = 251;
        let pattern: Vec<u8> = (0..=250u8).cycle().take(CALL_BYTES + PERIOD + 1).collect();
        let stream_at = |position: usize, len: usize| &pattern[position % PERIOD..][..len];
        let (near, far) = pair();
        let (near, far) = (near.0, far.0);
        let (mut sent, mut received) = (0, 0);
        for action in actions {
            match action {
                Action::Send(len) => {
                    let (first, second) = stream_at(sent, len).split_at(len / 3);
                    let got = near.send(&[IoSlice::new(first), IoSlice::new(second)]).unwrap_or(0);
                    let free = CALL_BYTES - (sent - received);
                    // The writer learns of room in parts; but never that there is none, where all was consumed.
                    let told = free.saturating_sub(CALL_BYTES / to_usize(TOLD_PARTS));
                    prop_assert!((len.min(told)..=len.min(free)).contains(&got), "{got} of {len}, {free} free");
                    prop_assert!(got > 0 || sent != received);
                    sent += got;
                }
                Action::Recv(len) => {
                    let mut buffer = vec![0; len];
                    let got = super::super::recv_into(&far, &mut buffer).unwrap_or(0);
                    prop_assert_eq!(got, len.min(sent - received).min(2 * CHUNK_BYTES));
                    prop_assert!(&buffer[..got] == stream_at(received, got));
                    received += got;
                }
                Action::Sleep => {
                    let mut set = PollSet::new();
                    let may_sleep = far.arm(&mut set, true, false);
                    far.disarm();
                    prop_assert_eq!(may_sleep, sent == received);
                }
            }
        }
    }
}

/// How the server's session ended, when its peer did this to the call plane.
fn judged(hostile: impl FnOnce(&Shm, &Endpoint)) -> CloseReason {
    let ((near, _near_bulk), (far, _far_bulk)) = pair();
    let limits = Limits::default();
    let agreed = Agreed {
        session: SessionId([7; 16]),
        key: SessionKey([7; 16]),
        local: limits,
        remote: limits,
        version: crate::PROTOCOL_VERSION,
    };
    let tuning = Tuning::default();
    let handler = Arc::new(Deaf);
    let endpoint = Endpoint::start(Arc::new(near), &agreed, &tuning, handler, None, false).unwrap();
    let serving = endpoint.clone();
    let running = std::thread::spawn(move || serving.run());
    hostile(&far, &endpoint);
    drop((far, _far_bulk));
    let why = running.join().unwrap();
    assert!(endpoint.append(8, |_| ()).is_err(), "the session is over");
    why
}

struct Deaf;

impl Handler for Deaf {
    fn on_frame(&self, _: &Endpoint, _: &[u8]) {}
}

#[test]
fn a_lie_about_what_was_produced_ends_the_session() {
    let why = judged(|far, _| {
        far.sides().produce(to_u64(CALL_BYTES) + 1);
        far.ring_bell(WAITS_READ);
    });
    let expected = matches!(why, CloseReason::Violation(Violation::SharedPosition));
    assert!(expected, "{why:?}");
}

#[test]
fn a_lie_about_what_was_consumed_ends_the_session() {
    let why = judged(|far, server| {
        // It is looked at where the ring seems full.
        far.sides().consume(u64::MAX, 0);
        while server.append(server.record_bytes_max(), |_| ()).is_ok() {}
        // The server tells on itself: nothing else wakes its loop.
        while server.closed().is_none() {
            server.notify();
            std::thread::yield_now();
        }
    });
    let expected = matches!(why, CloseReason::Violation(Violation::SharedPosition));
    assert!(expected, "{why:?}");
}

/// The peer rewrites its words and its ring at random while they are read: whatever is read was
/// copied before it is judged, so the session ends, and nothing else does.
#[test]
fn memory_that_changes_while_it_is_read_ends_the_session_at_worst() {
    for seed in 0..100 {
        let mut rng = Rng::new(seed);
        let why = judged(|far, _| {
            let sides = far.sides();
            let mut at = 0;
            for _ in 0..rng.below(200) {
                let header = FrameHeader::new(FrameKind::Data, 64, at, 0, 0).bytes();
                let mut frame = [0; 96];
                frame[..32].copy_from_slice(&header);
                let (damage, value) = (rng.below(32), rng.next_u64().to_le_bytes()[0]);
                match rng.below(40) {
                    0 => frame[to_usize(damage)] = value,
                    1 => sides.produce(rng.next_u64()),
                    2 => {
                        sides.consume(rng.next_u64(), 0);
                    }
                    3 => sides.announce(u32::from(value)),
                    _ => {}
                }
                far.near.write(at, &frame);
                at += 96;
                sides.produce(at);
                far.ring_bell(WAITS_READ);
                // Behind the reader's back.
                far.near.write(rng.next_u64(), &[value; 8]);
            }
        });
        assert!(!matches!(why, CloseReason::Local), "seed {seed}: {why}");
    }
}
