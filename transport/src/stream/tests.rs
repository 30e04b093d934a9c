//! What every stream does alike.
#![allow(clippy::unwrap_used)]

use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream as StdStream};

use super::tcp::TcpStream;
use super::tls::{Keys, TlsStream};
use super::{Stream, recv_into};
use crate::sim::{Faults, pipe};
use crate::sys::poll::PollSet;

type Pair = (Box<dyn Stream>, Box<dyn Stream>);

/// A pair of each backend; shared memory's is in its own tests.
fn pairs() -> [Pair; 4] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let connected = || {
        let near = StdStream::connect(listener.local_addr().unwrap()).unwrap();
        (near, listener.accept().unwrap().0)
    };
    let tcp = |stream: StdStream| Box::new(TcpStream::new(stream.into(), None).unwrap());
    let tls = |stream, keys| Box::new(TlsStream::server(*tcp(stream), &keys, &[]).unwrap());
    let ((near, far), (near_tls, far_tls)) = (connected(), connected());
    let (near_keys, far_keys) = Keys::pair();
    let (near_pipe, far_pipe) = pipe::pair(1, Faults::default()).unwrap();
    let ((near_shm, _), (far_shm, _)) = super::shm::tests::pair();
    [
        (tcp(near), tcp(far)),
        (tls(near_tls, near_keys), tls(far_tls, far_keys)),
        (Box::new(near_pipe), Box::new(far_pipe)),
        (Box::new(near_shm), Box::new(far_shm)),
    ]
}

/// What comes next, however long it takes; empty at the end.
fn next(stream: &dyn Stream) -> Vec<u8> {
    let mut buffer = [0; 10_000];
    loop {
        match recv_into(stream, &mut buffer) {
            Ok(got) => return buffer[..got].to_vec(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut set = PollSet::new();
                if stream.arm(&mut set, true, false) {
                    set.wait(None).unwrap();
                }
                stream.disarm();
            }
            Err(error) => panic!("{}: {error}", stream.name()),
        }
    }
}

#[test]
fn one_direction_ends_and_the_other_goes_on() {
    for (near, far) in pairs() {
        near.send(&[IoSlice::new(b"last "), IoSlice::new(b"words")])
            .unwrap();
        near.shutdown();
        assert_eq!(next(&*far), b"last words", "{}", near.name());
        assert_eq!(next(&*far), b"", "{}", near.name());
        assert_eq!(next(&*far), b"", "the end stays: {}", near.name());
        for n in 0..1000u32 {
            far.send(&[IoSlice::new(&n.to_le_bytes())]).unwrap();
            assert_eq!(next(&*near), n.to_le_bytes(), "{}", near.name());
        }
        far.shutdown();
        assert_eq!(next(&*near), b"", "{}", near.name());
    }
}

#[test]
fn a_peer_that_is_gone_shows_after_what_it_sent() {
    for (near, far) in pairs() {
        near.send(&[IoSlice::new(b"last words")]).unwrap();
        drop(near);
        assert_eq!(next(&*far), b"last words");
        assert_eq!(next(&*far), b"");
    }
}

/// A connection that takes little at a time, and one that is full: nothing is lost or doubled, and whoever sends is told that
/// there is more to do as long as anything is.
#[test]
fn what_a_full_connection_does_not_take_comes_later() {
    for (near, far) in pairs() {
        let bytes: Vec<u8> = (0..20_000_000u32)
            .map(|n| u8::try_from(n % 251).unwrap())
            .collect();
        let reader = std::thread::spawn(move || {
            let mut got = Vec::new();
            loop {
                match &next(&*far)[..] {
                    [] => return got,
                    more => got.extend_from_slice(more),
                }
            }
        });
        let mut sent = 0;
        let mut step = 1;
        while sent < bytes.len() {
            let end = bytes.len().min(sent + step % 300_000 + 1);
            let middle = sent + (end - sent) / 3;
            let parts = [&bytes[sent..middle], &bytes[middle..end]].map(IoSlice::new);
            step = step * 7 % 300_007 + 1;
            match near.send(&parts) {
                Ok(taken) => sent += taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut set = PollSet::new();
                    if near.arm(&mut set, false, true) {
                        set.wait(None).unwrap();
                    }
                    near.disarm();
                }
                Err(error) => panic!("{}: {error}", near.name()),
            }
        }
        near.shutdown();
        assert!(reader.join().unwrap() == bytes, "{}", near.name());
    }
}

/// What was opened of a record, and records that came with it, are in no socket any more that could wake anybody.
#[test]
fn what_a_stream_holds_lets_nobody_sleep() {
    let [_, (near, far), ..] = pairs();
    assert_eq!(near.name(), "tls");
    near.send(&[IoSlice::new(b"one")]).unwrap();
    near.send(&[IoSlice::new(b"two")]).unwrap();
    let mut set = PollSet::new();
    assert!(far.arm(&mut set, true, false), "nothing was read");
    set.wait(None).unwrap();
    assert_eq!(recv_into(&*far, &mut [0; 1]).unwrap(), 1);
    assert!(!far.arm(&mut PollSet::new(), true, false));
    assert!(
        far.arm(&mut PollSet::new(), false, true),
        "room is another matter"
    );
    let mut rest = Vec::new();
    while rest.len() < 5 {
        rest.extend(next(&*far));
    }
    assert_eq!(rest, b"netwo");
    assert!(far.arm(&mut PollSet::new(), true, false));
}
