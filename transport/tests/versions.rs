//! Versions n and n-1 of the protocol work with each other: this library speaks both, and what the older one said when it was
//! the newest is played from its golden file.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../../fixtures/src/proxy.rs"]
#[allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]
mod proxy;
mod support;

use std::collections::HashMap;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use farcall_transport::{
    AcceptError, ConnectError, ConnectOptions, Endpoint, IncomingKind, ListenOptions, Listener,
    PROTOCOL_VERSION, PROTOCOL_VERSION_OLDEST, RefuseCode, TransportChoice, Tuning, connect,
};
use proxy::{Cut, Proxy};
use support::{PATIENCE, Tap, wait_for};

const OLDER: u16 = PROTOCOL_VERSION - 1;
const HEAD_BYTES: usize = 96;
const FRAME_HEADER_BYTES: usize = 32;
/// Records of these tests, as the golden frame with records has them.
const RECORD_BYTES: usize = 64;

fn tuning() -> Tuning {
    Tuning {
        grace: Duration::from_secs(60),
        grace_closed: Duration::from_secs(60),
        ..Tuning::default()
    }
}

/// A listener that speaks no newer version than this, and echoes.
struct Server {
    listener: Arc<Listener>,
    sessions: Receiver<Endpoint>,
    accepting: thread::JoinHandle<()>,
}

impl Server {
    fn start(newest: u16) -> Self {
        let options = ListenOptions {
            protocol: newest,
            ..ListenOptions::default()
        };
        let listener = Arc::new(Listener::bind("127.0.0.1:0", options).unwrap());
        let (send, sessions) = channel();
        let door = Arc::clone(&listener);
        let accepting = thread::spawn(move || {
            let mut open: Vec<Endpoint> = Vec::new();
            loop {
                let incoming = match door.accept() {
                    Ok(incoming) => incoming,
                    Err(AcceptError::Closed) => return,
                    Err(error) => panic!("{error}"),
                };
                let (kind, session) = (incoming.kind(), incoming.session());
                let (fd, state) = incoming.into_parts();
                let known = open.iter().find(|known| known.session() == session);
                match (kind, known.cloned()) {
                    (IncomingKind::New, _) => {
                        let server =
                            Endpoint::adopt(fd, &state, b"hello", &tuning(), Tap::echo()).unwrap();
                        open.push(server.clone());
                        support::serve(server.clone());
                        let _ = send.send(server);
                    }
                    (IncomingKind::Resume { .. }, Some(known)) => drop(known.resume(fd, &state)),
                    (_, Some(known)) => {
                        thread::spawn(move || drop(known.attach_bulk(fd, &state)));
                    }
                    other => panic!("{other:?}"),
                }
            }
        });
        Self {
            listener,
            sessions,
            accepting,
        }
    }

    fn stop(self) {
        self.listener.close();
        self.accepting.join().unwrap();
    }
}

fn echoed(client: &Endpoint, tap: &Tap, records: u64) {
    let wanted = tap.bytes() + records * RECORD_BYTES as u64;
    for n in 0..records {
        client
            .append(RECORD_BYTES, |record| record.fill(n as u8))
            .unwrap();
    }
    let done = || tap.bytes() == wanted;
    client.wait_until(&done, Some(PATIENCE)).unwrap();
}

#[test]
fn older_and_newer_versions_work_with_each_other() {
    for (of_client, of_server) in [
        (PROTOCOL_VERSION, PROTOCOL_VERSION),
        (PROTOCOL_VERSION, OLDER),
        (OLDER, PROTOCOL_VERSION),
        (OLDER, OLDER),
    ] {
        for transport in [TransportChoice::Tcp, TransportChoice::Shm] {
            let server = Server::start(of_server);
            let proxy = Proxy::start(server.listener.local_addr(), Cut::Never, 0);
            // Shared memory is found beside the server's own address.
            let address = match transport {
                TransportChoice::Shm => server.listener.local_addr(),
                _ => proxy.addr(),
            };
            let options = ConnectOptions {
                protocol: of_client,
                transport,
                tuning: tuning(),
                ..ConnectOptions::new(address.to_string())
            };
            let tap = Tap::ignore();
            let (client, welcome) = connect(&options, tap.clone()).unwrap();
            assert_eq!(welcome, b"hello");
            let far = server.sessions.recv().unwrap();
            let spoken = of_client.min(of_server);
            let both = (client.protocol_version(), far.protocol_version());
            assert_eq!(both, (spoken, spoken), "{transport:?}");
            echoed(&client, &tap, 100);
            // A bulk connection, and both again after a loss.
            for id in 0..2 {
                let bytes = vec![id as u8; 300_000];
                client.bulk_send(id, &[IoSlice::new(&bytes)]).unwrap();
                let mut room = vec![MaybeUninit::uninit(); bytes.len()];
                assert_eq!(far.bulk_recv(id, &mut room).unwrap(), bytes.len());
                if transport == TransportChoice::Tcp && id == 0 {
                    proxy.cut();
                    wait_for(|| client.stats().resumes == 1);
                    echoed(&client, &tap, 100);
                }
            }
            client.close();
            server.stop();
        }
    }
}

/// What was said in a version, by name.
fn golden(version: u16) -> HashMap<String, Vec<u8>> {
    let path = format!(
        "{}/../fixtures/golden/transport-{version}.tsv",
        env!("CARGO_MANIFEST_DIR")
    );
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let byte = |hex: &str| u8::from_str_radix(hex, 16).unwrap();
    let unhex = |hex: &str| {
        (0..hex.len())
            .step_by(2)
            .map(|at| byte(&hex[at..at + 2]))
            .collect()
    };
    text.lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(name, hex)| (name.to_owned(), unhex(hex)))
        .collect()
}

/// The bytes with others in a place.
fn with(mut bytes: Vec<u8>, at: usize, others: &[u8]) -> Vec<u8> {
    bytes[at..at + others.len()].copy_from_slice(others);
    bytes
}

/// Position, acknowledgement and credit of a frame, which depend on the session.
fn placed(frame: Vec<u8>, seq: u64, ack: u64, credit: u64) -> Vec<u8> {
    let words = [seq, ack, credit].map(u64::to_le_bytes).concat();
    with(frame, 8, &words)
}

/// The next frame with records, and what it carries.
fn next_data(socket: &mut TcpStream) -> (Vec<u8>, Vec<u8>) {
    loop {
        let mut header = vec![0; FRAME_HEADER_BYTES];
        socket.read_exact(&mut header).unwrap();
        let len = u32::from_le_bytes(header[4..8].try_into().unwrap());
        let mut payload = vec![0; len as usize];
        socket.read_exact(&mut payload).unwrap();
        if header[0] == 1 {
            return (header, payload);
        }
    }
}

fn same_kind(frame: &[u8], golden: &[u8]) {
    assert_eq!(frame[..8], golden[..8], "kind, flags, length");
    assert_eq!(frame.len(), golden.len());
}

#[test]
fn a_client_from_the_golden_file_of_the_older_version() {
    let said = golden(OLDER);
    let server = Server::start(PROTOCOL_VERSION);
    let mut socket = TcpStream::connect(server.listener.local_addr()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Its token has 3 bytes, its payload 5.
    let hello = [&said["client-new"][..], b"abc", b"12345"].concat();
    socket.write_all(&hello).unwrap();
    let mut welcome = vec![0; HEAD_BYTES];
    socket.read_exact(&mut welcome).unwrap();
    // But for session and key, and the payload's length.
    let expected = &said["server-welcome"];
    assert_eq!(welcome[..16], expected[..16]);
    assert_eq!(welcome[48..60], expected[48..60]);
    assert_eq!(welcome[60..64], 5u32.to_le_bytes());
    assert_eq!(welcome[64..], expected[64..]);
    let mut payload = [0; 5];
    socket.read_exact(&mut payload).unwrap();
    assert_eq!(&payload, b"hello");
    let record = [7; RECORD_BYTES];
    let frame = placed(said["frame-data"].clone(), 0, 0, 1 << 20);
    socket.write_all(&[&frame[..], &record].concat()).unwrap();
    let (header, payload) = next_data(&mut socket);
    same_kind(&header, &said["frame-data"]);
    assert_eq!(payload, record);
    let sent = (FRAME_HEADER_BYTES + RECORD_BYTES) as u64;
    assert_eq!(header[16..24], sent.to_le_bytes(), "acknowledged");
    let close = placed(said["frame-close"].clone(), sent, sent, 1 << 20);
    socket.write_all(&close).unwrap();
    let far = server.sessions.recv().unwrap();
    wait_for(|| far.closed().is_some());
    server.stop();
}

/// One that knows nothing of newer versions: says so, and is spoken to in its own.
#[test]
fn a_server_from_the_golden_file_of_the_older_version() {
    let said = golden(OLDER);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let serving = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let mut hello = vec![0; HEAD_BYTES];
        socket.read_exact(&mut hello).unwrap();
        assert_eq!(hello[8..10], PROTOCOL_VERSION.to_le_bytes());
        let refusal = with(
            said["server-refusal"].clone(),
            10,
            &RefuseCode::VERSION.0.to_le_bytes(),
        );
        socket
            .write_all(&[&refusal[..], b"too new!!"].concat())
            .unwrap();
        drop(socket);
        let (mut socket, _) = listener.accept().unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.read_exact(&mut hello).unwrap();
        let lengths = [3u32, 0].map(u32::to_le_bytes).concat();
        assert_eq!(hello, with(said["client-new"].clone(), 60, &lengths));
        socket.read_exact(&mut [0; 3]).unwrap();
        let welcome = with(said["server-welcome"].clone(), 60, &0u32.to_le_bytes());
        socket.write_all(&welcome).unwrap();
        let (header, payload) = next_data(&mut socket);
        same_kind(&header, &said["frame-data"]);
        let sent = (FRAME_HEADER_BYTES + RECORD_BYTES) as u64;
        let answer = placed(said["frame-data"].clone(), 0, sent, 1 << 20);
        socket.write_all(&[&answer[..], &payload].concat()).unwrap();
        let mut rest = Vec::new();
        let _ = socket.read_to_end(&mut rest);
    });
    let options = ConnectOptions {
        token: Some("abc".to_owned()),
        transport: TransportChoice::Tcp,
        tuning: Tuning {
            close_timeout: Duration::from_millis(50),
            ..Tuning::default()
        },
        ..ConnectOptions::new(address.to_string())
    };
    let tap = Tap::ignore();
    let (client, _) = connect(&options, tap.clone()).unwrap();
    assert_eq!(client.protocol_version(), OLDER);
    echoed(&client, &tap, 1);
    client.close();
    drop(client);
    serving.join().unwrap();
}

#[test]
fn a_version_that_is_too_old_is_told_both() {
    let server = Server::start(PROTOCOL_VERSION);
    let ancient = with(
        golden(OLDER)["client-new"].clone(),
        8,
        &(PROTOCOL_VERSION_OLDEST - 1).to_le_bytes(),
    );
    let mut socket = TcpStream::connect(server.listener.local_addr()).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.write_all(&ancient).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    assert_eq!(answer[8..10], PROTOCOL_VERSION.to_le_bytes());
    assert_eq!(answer[10..12], RefuseCode::VERSION.0.to_le_bytes());
    let said = String::from_utf8_lossy(&answer[HEAD_BYTES..]);
    assert!(
        said.contains(&format!("protocol {}", PROTOCOL_VERSION_OLDEST - 1)),
        "{said}"
    );
    assert!(
        said.contains(&format!("this side {PROTOCOL_VERSION}")),
        "{said}"
    );
    server.stop();
    let options = ConnectOptions {
        protocol: PROTOCOL_VERSION + 1,
        ..ConnectOptions::new("127.0.0.1:1")
    };
    let error = connect(&options, Tap::ignore()).unwrap_err();
    assert!(matches!(error, ConnectError::Option(_)), "{error}");
}
