//! The suite over TLS, and who trusts whom.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use farcall_transport::{
    AcceptError, ConnectError, ConnectOptions, Endpoint, ListenOptions, Listener, RefuseCode,
    TlsClient, TlsError, TlsServer, TransportChoice, Tuning, connect,
};
use support::tls::{Authority, self_signed};
use support::{PATIENCE, Tap};

suite!(support::Tls);

/// A listener, and a thread that lets in whom it hands on.
struct Door {
    listener: Arc<Listener>,
    thread: thread::JoinHandle<()>,
}

impl Door {
    fn open(tls: Option<TlsServer>) -> Self {
        let options = ListenOptions {
            handshake_timeout: Duration::from_millis(500),
            tls,
            ..ListenOptions::default()
        };
        let listener = Arc::new(Listener::bind("127.0.0.1:0", options).unwrap());
        let accepting = Arc::clone(&listener);
        let thread = thread::spawn(move || {
            loop {
                match accepting.accept() {
                    Ok(incoming) if incoming.token() == Some(b"wrong") => {
                        incoming.refuse(RefuseCode::TOKEN, "the token is wrong");
                    }
                    Ok(incoming) => {
                        let (fd, state) = incoming.into_parts();
                        let tuning = Tuning::default();
                        let server = Endpoint::adopt(fd, &state, b"", &tuning, Tap::echo());
                        if let Ok(server) = server {
                            thread::spawn(move || server.run());
                        }
                    }
                    Err(AcceptError::Closed) => return,
                    Err(error) => panic!("{error}"),
                }
            }
        });
        Self { listener, thread }
    }

    fn address(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    fn connect(&self, tls: Option<TlsClient>) -> Result<&'static str, ConnectError> {
        self.connect_as(TransportChoice::Tcp, tls, None)
    }

    /// The transport of a session in which a record came back.
    fn connect_as(
        &self,
        transport: TransportChoice,
        tls: Option<TlsClient>,
        token: Option<&str>,
    ) -> Result<&'static str, ConnectError> {
        let options = ConnectOptions {
            transport,
            tls,
            token: token.map(str::to_owned),
            ..ConnectOptions::new(self.address().to_string())
        };
        let tap = Tap::ignore();
        let (client, _) = connect(&options, tap.clone())?;
        client.append(64, |record| record.fill(1)).unwrap();
        let done = || tap.bytes() == 64;
        client.wait_until(&done, Some(PATIENCE)).unwrap();
        let name = client.transport_name();
        client.close();
        Ok(name)
    }

    fn close(self) {
        self.listener.close();
        self.thread.join().unwrap();
    }
}

fn why(result: Result<&'static str, ConnectError>) -> TlsError {
    match result.unwrap_err() {
        ConnectError::Tls { source, .. } => source,
        other => panic!("{other}"),
    }
}

#[test]
fn authorities_and_fingerprints_are_trusted_and_nobody_else() {
    let (ours, other) = (Authority::new(), Authority::new());
    let server = ours.server(&["127.0.0.1", "gpu1"]);
    let by_fingerprint = TlsClient::trust_fingerprints(server.fingerprint()).unwrap();
    let fingerprint = server.fingerprint()["sha256:".len()..].to_owned();
    let door = Door::open(Some(server));
    assert_eq!(door.connect(Some(ours.client())).unwrap(), "tls");
    assert_eq!(door.connect(Some(by_fingerprint)).unwrap(), "tls");
    let unknown = why(door.connect(Some(other.client())));
    assert_eq!(
        unknown,
        TlsError::Authority {
            fingerprint: fingerprint.clone()
        }
    );
    assert!(
        unknown
            .to_string()
            .contains(&format!("--tls sha256:{fingerprint}"))
    );
    let stranger = TlsClient::trust_fingerprints(self_signed(&["x"]).fingerprint()).unwrap();
    let wrong = why(door.connect(Some(stranger)));
    assert_eq!(wrong, TlsError::Fingerprint { fingerprint });
    door.close();
    let door = Door::open(Some(ours.server(&["gpu1"])));
    let named = why(door.connect(Some(ours.client())));
    assert!(matches!(named, TlsError::Name { .. }), "{named}");
    door.close();
    // One that signed itself is no authority's, whatever authority is trusted.
    let door = Door::open(Some(self_signed(&["127.0.0.1"])));
    let itself = why(door.connect(Some(ours.client())));
    assert!(matches!(itself, TlsError::Authority { .. }), "{itself}");
    door.close();
}

#[test]
fn nobody_falls_back_to_plain() {
    let plain = Door::open(None);
    let told = why(plain.connect(Some(support::tls::client())));
    assert_eq!(told, TlsError::NotTls);
    assert!(told.to_string().contains("farcall serve --tls"), "{told}");
    assert_eq!(plain.connect(None).unwrap(), "tcp");
    plain.close();
    let strict = Door::open(Some(support::tls::server()));
    match strict.connect(None).unwrap_err() {
        ConnectError::Refused { code, message } => {
            assert_eq!(code, RefuseCode::TLS);
            assert!(message.contains("--tls"), "{message}");
        }
        other => panic!("{other}"),
    }
    strict.close();
    let both = Door::open(Some(support::tls::server().taking_plain(true)));
    assert_eq!(both.connect(None).unwrap(), "tcp");
    assert_eq!(both.connect(Some(support::tls::client())).unwrap(), "tls");
    both.close();
}

#[test]
fn what_is_not_the_network_needs_no_tls_and_rdma_is_not_taken() {
    let door = Door::open(Some(support::tls::server()));
    let tls = || Some(support::tls::client());
    let auto = door.connect_as(TransportChoice::Auto, tls(), None);
    assert_eq!(auto.unwrap(), "shm");
    let network = door.connect_as(TransportChoice::Network, tls(), None);
    assert_eq!(network.unwrap(), "tls");
    match door.connect_as(TransportChoice::Verbs, tls(), None) {
        Err(ConnectError::Transport { transport, reason }) => {
            assert_eq!(transport, "verbs");
            assert!(reason.contains("not encrypted"), "{reason}");
        }
        other => panic!("{other:?}"),
    }
    door.close();
}

#[test]
fn a_refusal_goes_through_it() {
    let door = Door::open(Some(support::tls::server()));
    let tls = Some(support::tls::client());
    match door.connect_as(TransportChoice::Tcp, tls, Some("wrong")) {
        Err(ConnectError::Refused { code, message }) => {
            assert_eq!((code, &*message), (RefuseCode::TOKEN, "the token is wrong"));
        }
        other => panic!("{other:?}"),
    }
    door.close();
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

/// What a client of ours says first, up to the answer of a server that says nothing.
fn client_hello() -> Vec<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let options = ConnectOptions {
        transport: TransportChoice::Tcp,
        tls: Some(support::tls::client()),
        connect_timeout: Duration::from_millis(200),
        ..ConnectOptions::new(listener.local_addr().unwrap().to_string())
    };
    let reading = thread::spawn(move || read_out(&mut listener.accept().unwrap().0));
    assert!(connect(&options, Tap::ignore()).is_err());
    reading.join().unwrap()
}

#[test]
fn garbage_ends_its_own_connection_only() {
    let door = Door::open(Some(support::tls::server()));
    let hello = client_hello();
    assert_eq!(hello[..3], [22, 3, 1], "a TLS record");
    assert!(!hello.windows(7).any(|at| at == b"FARCALL"), "in the clear");
    let mut inputs: Vec<Vec<u8>> = vec![
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![22; 4096],
        vec![22, 3, 1, 0xff, 0xff, 1],
        [&hello[..5], &vec![0xaa; hello.len() - 5][..]].concat(),
        [&hello[..], &[23, 3, 3, 0, 30], &[7; 30]].concat(),
    ];
    inputs.extend(
        (0..hello.len())
            .step_by(17)
            .map(|cut| hello[..cut].to_vec()),
    );
    for input in inputs {
        let mut socket = TcpStream::connect(door.address()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        // The server may have hung up by then.
        let _ = socket.write_all(&input);
        let _ = socket.shutdown(std::net::Shutdown::Write);
        read_out(&mut socket);
    }
    // One that says no more is dropped in its time, and holds nobody up.
    let mut silent = TcpStream::connect(door.address()).unwrap();
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    silent.write_all(&hello[..hello.len() / 2]).unwrap();
    assert_eq!(door.connect(Some(support::tls::client())).unwrap(), "tls");
    read_out(&mut silent);
    door.close();
}

#[test]
fn servers_that_are_none_are_told_apart() {
    for (answer, expected) in [
        (&b""[..], TlsError::NotTls),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", TlsError::NotTls),
        (b"FARCALL\0\x02\0", TlsError::NotTls),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let serving = thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            socket.read_exact(&mut [0; 10]).unwrap();
            socket.write_all(answer).unwrap();
        });
        let options = ConnectOptions {
            transport: TransportChoice::Tcp,
            tls: Some(support::tls::client()),
            ..ConnectOptions::new(address.to_string())
        };
        let error = connect(&options, Tap::ignore()).unwrap_err();
        serving.join().unwrap();
        match error {
            ConnectError::Tls { source, .. } => assert_eq!(source, expected),
            other => panic!("{other}"),
        }
    }
}
