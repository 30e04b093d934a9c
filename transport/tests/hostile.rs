//! Peers that do not play by the rules: a typed error, no hang, and the server serves on.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use farcall_transport::{
    AdoptError, CloseReason, ConnectError, ConnectOptions, Endpoint, Incoming, IncomingKind,
    ListenOptions, Listener, PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST, RefuseCode, Tuning,
    Violation, connect, constant_time_eq, sim::Rng,
};
use support::{PATIENCE, Tap, wait_for};

/// The client's first 96 bytes, written out by hand.
fn hello(kind: u8, session: [u8; 16], key: [u8; 16], token_len: u32) -> Vec<u8> {
    let mut bytes = b"FARCALL\0".to_vec();
    bytes.extend(PROTOCOL_VERSION.to_le_bytes());
    bytes.extend([kind, 0]);
    bytes.extend(PROTOCOL_VERSION_OLDEST.to_le_bytes());
    bytes.extend([0; 2]);
    bytes.extend(session);
    bytes.extend(key);
    for limit in [256u32 << 10, 1 << 20, 1 << 20] {
        bytes.extend(limit.to_le_bytes());
    }
    bytes.extend(token_len.to_le_bytes());
    bytes.resize(96, 0);
    bytes
}

/// A frame header, written out by hand.
fn frame(kind: u8, len: u32, seq: u64, ack: u64) -> Vec<u8> {
    let mut bytes = vec![kind, 0, 0, 0];
    bytes.extend(len.to_le_bytes());
    bytes.extend(seq.to_le_bytes());
    bytes.extend(ack.to_le_bytes());
    bytes.extend(0u64.to_le_bytes());
    bytes
}

fn listener() -> Arc<Listener> {
    let timeout = Duration::from_millis(300);
    let options = ListenOptions {
        handshake_timeout: timeout,
        ..ListenOptions::default()
    };
    Arc::new(Listener::bind("127.0.0.1:0", options).unwrap())
}

/// Accepts on a thread.
fn accepting(listener: &Arc<Listener>) -> thread::JoinHandle<Incoming> {
    let listener = Arc::clone(listener);
    thread::spawn(move || listener.accept().unwrap())
}

fn raw(address: SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut socket = TcpStream::connect(address).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(bytes).unwrap();
    socket
}

/// Everything until the end; a reset counts as one.
fn read_out(socket: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match socket.read_to_end(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}"),
    }
    bytes
}

/// The listener still lets an honest client in.
fn serves_on(listener: &Arc<Listener>) {
    let accepted = accepting(listener);
    let _socket = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    assert_eq!(accepted.join().unwrap().kind(), IncomingKind::New);
}

/// A session whose client is ours to misuse, after its handshake.
fn session() -> (
    TcpStream,
    Endpoint,
    Arc<Tap>,
    thread::JoinHandle<CloseReason>,
) {
    let listener = listener();
    let accepted = accepting(&listener);
    let mut socket = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    let (fd, state) = accepted.join().unwrap().into_parts();
    let tap = Tap::ignore();
    let endpoint = Endpoint::adopt(fd, &state, b"", &Tuning::default(), tap.clone()).unwrap();
    socket.read_exact(&mut [0; 96]).unwrap();
    let running = support::serve(endpoint.clone());
    (socket, endpoint, tap, running)
}

/// What the server makes of these bytes from a client.
fn judged(bytes: &[u8]) -> CloseReason {
    let (mut socket, _endpoint, tap, running) = session();
    socket.write_all(bytes).unwrap();
    let why = running.join().unwrap();
    tap.wait_closed();
    read_out(&mut socket);
    why
}

#[test]
fn wrong_magic_gets_no_answer() {
    let listener = listener();
    let accepting = accepting(&listener);
    let mut socket = raw(listener.local_addr(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(read_out(&mut socket), b"");
    let _honest = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    accepting.join().unwrap();
}

#[test]
fn who_goes_on_sending_after_a_refusal_is_hung_up_on() {
    let listener = listener();
    let accepting = accepting(&listener);
    let mut socket = raw(listener.local_addr(), &[b'x'; 4096]);
    let flood = vec![b'x'; 1 << 20];
    let refused = (0..256).find_map(|_| socket.write_all(&flood).err());
    let kind = refused.map(|error| error.kind());
    assert!(
        matches!(
            kind,
            Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)
        ),
        "{kind:?}: the listener reads on and on"
    );
    let _honest = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    accepting.join().unwrap();
}

#[test]
fn wrong_version_is_told_ours() {
    let listener = listener();
    let accepting = accepting(&listener);
    let mut bytes = hello(1, [0; 16], [0; 16], 0);
    // It speaks no older one.
    (bytes[8], bytes[12]) = (77, 77);
    let mut socket = raw(listener.local_addr(), &bytes);
    let answer = read_out(&mut socket);
    assert_eq!(answer[..8], *b"FARCALL\0");
    assert_eq!(answer[8..10], PROTOCOL_VERSION.to_le_bytes());
    assert_eq!(answer[10..12], RefuseCode::VERSION.0.to_le_bytes());
    let _honest = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    accepting.join().unwrap();
}

/// A server that answers with these bytes and hangs up, or stays silent.
fn fake_server(answer: Option<Vec<u8>>) -> (SocketAddr, thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let thread = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.read_exact(&mut [0; 96]).unwrap();
        if let Some(answer) = answer {
            socket.write_all(&answer).unwrap();
        } else {
            // Holds the connection until the client gives up.
            read_out(&mut socket);
        }
    });
    (address, thread)
}

fn connect_to(address: SocketAddr) -> ConnectError {
    let options = ConnectOptions {
        connect_timeout: Duration::from_millis(200),
        ..ConnectOptions::new(address.to_string())
    };
    connect(&options, Tap::ignore()).unwrap_err()
}

#[test]
fn servers_that_are_none_are_told_apart() {
    let (address, server) = fake_server(Some(b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()));
    assert!(matches!(
        connect_to(address),
        ConnectError::NotFarcall { .. }
    ));
    server.join().unwrap();
    let (address, server) = fake_server(Some(Vec::new()));
    assert!(matches!(
        connect_to(address),
        ConnectError::NotFarcall { .. }
    ));
    server.join().unwrap();
    let start = Instant::now();
    let (address, server) = fake_server(None);
    assert!(matches!(connect_to(address), ConnectError::TimedOut { .. }));
    assert!(start.elapsed() < PATIENCE);
    server.join().unwrap();
    let free = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    assert!(matches!(connect_to(free), ConnectError::Connect { .. }));
}

#[test]
fn a_version_mismatch_names_both_versions() {
    let mut answer = b"FARCALL\0".to_vec();
    answer.extend(9u16.to_le_bytes());
    let (address, server) = fake_server(Some(answer));
    let error = connect_to(address);
    assert!(matches!(
        error,
        ConnectError::Version {
            server: 9,
            client: PROTOCOL_VERSION
        }
    ));
    let text = error.to_string();
    let expected = format!("server speaks protocol 9, this client {PROTOCOL_VERSION}");
    assert!(
        text.starts_with(&expected) && text.contains("update the client"),
        "{text}"
    );
    server.join().unwrap();
}

#[test]
fn a_wrong_token_is_refused_with_a_reason() {
    let listener = listener();
    let accepted = accepting(&listener);
    let address = listener.local_addr().to_string();
    let client = thread::spawn(move || {
        let token = Some("guessed".to_owned());
        connect(
            &ConnectOptions {
                token,
                ..ConnectOptions::new(address)
            },
            Tap::ignore(),
        )
    });
    let incoming = accepted.join().unwrap();
    assert!(!constant_time_eq(incoming.token().unwrap(), b"correct"));
    assert!(constant_time_eq(incoming.token().unwrap(), b"guessed"));
    incoming.refuse(RefuseCode::TOKEN, "the token is not known here");
    match client.join().unwrap() {
        Err(ConnectError::Refused { code, message }) => {
            assert_eq!(
                (code, &*message),
                (RefuseCode::TOKEN, "the token is not known here")
            );
        }
        other => panic!("{other:?}"),
    }
    serves_on(&listener);
}

#[test]
fn slow_clients_delay_nobody_and_time_out() {
    let listener = listener();
    let mut slow: Vec<_> = (0..20)
        .map(|n| {
            raw(
                listener.local_addr(),
                &hello(1, [0; 16], [0; 16], 0)[..n * 4],
            )
        })
        .collect();
    let start = Instant::now();
    serves_on(&listener);
    assert!(
        start.elapsed() < Duration::from_millis(200),
        "held up by slow clients"
    );
    let accepting = accepting(&listener);
    for socket in &mut slow {
        assert_eq!(read_out(socket), b"");
    }
    let _honest = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    accepting.join().unwrap();
}

#[test]
fn a_crowd_in_its_handshake_is_bounded() {
    let options = ListenOptions {
        pending_max: 8,
        ..ListenOptions::default()
    };
    let listener = Arc::new(Listener::bind("127.0.0.1:0", options).unwrap());
    let accepting = accepting(&listener);
    let before = support::resources().0;
    let mut crowd: Vec<_> = (0..40).map(|_| raw(listener.local_addr(), b"F")).collect();
    // The first 32 are dropped for the last 8.
    for socket in &mut crowd[..32] {
        read_out(socket);
    }
    assert!(support::resources().0 <= before + 40 + 8 + 2);
    let _honest = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    accepting.join().unwrap();
}

#[test]
fn broken_frames_end_the_session_with_the_rule_they_break() {
    let violation = |bytes: &[u8]| match judged(bytes) {
        CloseReason::Violation(violation) => violation,
        other => panic!("{other:?}"),
    };
    assert_eq!(violation(&frame(9, 0, 0, 0)), Violation::FrameKind(9));
    let limit = 256 << 10;
    assert_eq!(
        violation(&frame(1, limit + 8, 0, 0)),
        Violation::FrameTooLong {
            bytes: limit + 8,
            limit
        }
    );
    assert_eq!(
        violation(&frame(1, 12, 0, 0)),
        Violation::FrameUnaligned(12)
    );
    assert_eq!(
        violation(&frame(1, 0, 64, 0)),
        Violation::Gap {
            expected: 0,
            got: 64
        }
    );
    assert_eq!(
        violation(&frame(2, 0, 0, 32)),
        Violation::AckAhead { got: 32, sent: 0 }
    );
    assert_eq!(
        violation(&frame(5, 0, 32, 0)),
        Violation::Gap {
            expected: 0,
            got: 32
        }
    );
    let twice = [frame(1, 0, 0, 0), frame(1, 0, 0, 0)].concat();
    assert_eq!(
        violation(&twice),
        Violation::Overlap {
            expected: 32,
            got: 0
        }
    );
}

#[test]
fn a_peer_that_dies_in_a_frame_or_hangs_up_is_lost() {
    for cut in [1, 31, 32, 50] {
        let (mut socket, _endpoint, tap, running) = session();
        let mut bytes = frame(1, 64, 0, 0);
        bytes.resize(96, 7);
        socket.write_all(&bytes[..cut]).unwrap();
        drop(socket);
        assert!(matches!(running.join().unwrap(), CloseReason::Lost(_)));
        assert_eq!(tap.bytes(), 0, "half a frame was delivered");
    }
    let (mut socket, endpoint, tap, running) = session();
    let mut bytes = frame(1, 64, 0, 0);
    bytes.resize(96, 7);
    socket.write_all(&bytes).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();
    assert!(matches!(running.join().unwrap(), CloseReason::Lost(_)));
    assert_eq!(tap.bytes(), 64, "what came whole before is delivered");
    assert!(endpoint.append(8, |_| ()).is_err());
}

#[test]
fn pings_are_answered() {
    let (mut socket, endpoint, _tap, running) = session();
    socket.write_all(&frame(3, 0, 4711, 0)).unwrap();
    let mut answer = [0; 32];
    socket.read_exact(&mut answer).unwrap();
    assert_eq!((answer[0], &answer[8..10]), (4, &4711u16.to_le_bytes()[..]));
    drop(socket);
    running.join().unwrap();
    assert!(endpoint.closed().is_some());
}

#[test]
fn random_bytes_never_hang_or_crash_a_session() {
    for seed in 0..150 {
        let mut rng = Rng::new(seed);
        let mut bytes = Vec::new();
        let mut seq = 0;
        // Some honest frames, then a damaged one, then noise.
        for _ in 0..rng.below(4) {
            bytes.extend(frame(1, 8, seq, 0));
            bytes.extend([0; 8]);
            seq += 40;
        }
        let mut damaged = frame(1, 8, seq, 0);
        let at = usize::try_from(rng.below(32)).unwrap();
        damaged[at] ^= u8::try_from(1 + rng.below(255)).unwrap();
        bytes.extend(damaged);
        bytes.extend((0..rng.below(500)).map(|_| rng.next_u64().to_le_bytes()[0]));
        let (mut socket, endpoint, tap, running) = session();
        // The server may hang up before it has everything.
        let _ = socket.write_all(&bytes);
        drop(socket);
        let why = running.join().unwrap();
        assert!(!matches!(why, CloseReason::Local), "seed {seed}: {why}");
        tap.wait_closed();
        drop(endpoint);
    }
}

#[test]
fn a_bulk_connection_needs_the_session_key() {
    let listener = listener();
    let accepted = accepting(&listener);
    let _first = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    let (fd, state) = accepted.join().unwrap().into_parts();
    let endpoint = Endpoint::adopt(fd, &state, b"", &Tuning::default(), Tap::ignore()).unwrap();
    let accepted = accepting(&listener);
    let thief = hello(2, endpoint.session().0, [7; 16], 0);
    let mut socket = raw(listener.local_addr(), &thief);
    let incoming = accepted.join().unwrap();
    assert_eq!(
        incoming.kind(),
        IncomingKind::Bulk {
            session: endpoint.session()
        }
    );
    let (fd, state) = incoming.into_parts();
    let result = endpoint.attach_bulk(fd, &state);
    assert!(
        matches!(result, Err(AdoptError::WrongSession)),
        "{result:?}"
    );
    let answer = read_out(&mut socket);
    assert_eq!(answer[10..12], RefuseCode::SESSION.0.to_le_bytes());
    assert!(endpoint.closed().is_none(), "the session itself goes on");
    assert!(
        Endpoint::adopt(
            TcpStream::connect(listener.local_addr()).unwrap().into(),
            &state[..20],
            b"",
            &Tuning::default(),
            Tap::ignore()
        )
        .is_err()
    );
}

#[test]
fn a_bulk_transfer_longer_than_its_destination_is_a_violation() {
    let listener = listener();
    let accepted = accepting(&listener);
    let mut first = raw(listener.local_addr(), &hello(1, [0; 16], [0; 16], 0));
    let (fd, state) = accepted.join().unwrap().into_parts();
    let endpoint = Endpoint::adopt(fd, &state, b"", &Tuning::default(), Tap::ignore()).unwrap();
    let mut head = [0; 96];
    first.read_exact(&mut head).unwrap();
    let (session, key) = (
        head[16..32].try_into().unwrap(),
        head[32..48].try_into().unwrap(),
    );
    let accepted = accepting(&listener);
    let mut bulk = raw(listener.local_addr(), &hello(2, session, key, 0));
    let (fd, state) = accepted.join().unwrap().into_parts();
    endpoint.attach_bulk(fd, &state).unwrap();
    let mut header = 0x6b6c_7562u32.to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(5u64.to_le_bytes());
    header.extend(u64::MAX.to_le_bytes());
    header.extend([0; 8]);
    bulk.write_all(&header).unwrap();
    let mut room = [std::mem::MaybeUninit::uninit(); 16];
    let result = endpoint.bulk_recv(5, &mut room);
    assert!(result.is_err());
    let expected = Violation::BulkTooLong {
        id: 5,
        bytes: u64::MAX,
        room: 16,
    };
    assert!(matches!(endpoint.closed(), Some(CloseReason::Violation(v)) if v == expected));
    wait_for(|| endpoint.closed().is_some());
}
