//! What every stream does alike.
#![allow(clippy::unwrap_used)]

use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream as StdStream};

use super::tcp::TcpStream;
use super::{Stream, recv_into};
use crate::sim::{Faults, pipe};
use crate::sys::poll::PollSet;

type Pair = (Box<dyn Stream>, Box<dyn Stream>);

/// A pair of each backend; shared memory's is in its own tests.
fn pairs() -> [Pair; 3] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let near = StdStream::connect(listener.local_addr().unwrap()).unwrap();
    let far = listener.accept().unwrap().0;
    let tcp = |stream: StdStream| Box::new(TcpStream::new(stream.into(), None).unwrap());
    let (near_pipe, far_pipe) = pipe::pair(1, Faults::default()).unwrap();
    let ((near_shm, _), (far_shm, _)) = super::shm::tests::pair();
    [
        (tcp(near), tcp(far)),
        (Box::new(near_pipe), Box::new(far_pipe)),
        (Box::new(near_shm), Box::new(far_shm)),
    ]
}

/// What comes next, however long it takes; empty at the end.
fn next(stream: &dyn Stream) -> Vec<u8> {
    let mut buffer = [0; 100];
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
