//! Sessions with a proxy between client and server, which cuts their connections.
#![allow(
    clippy::cast_possible_truncation,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    dead_code,
    missing_docs,
    unreachable_pub
)]

#[path = "../../../fixtures/src/proxy.rs"]
#[allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]
pub mod proxy;

use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use farcall_transport::{
    AcceptError, CloseReason, ConnectOptions, Endpoint, Handler, IncomingKind, ListenOptions,
    Listener, TlsClient, TransportChoice, Tuning, connect,
};

use crate::support::suite::fill;
use crate::support::{self, PATIENCE, Tap, number};
use proxy::{Cut, Proxy};

pub fn tuning(grace: Duration) -> Tuning {
    Tuning {
        grace,
        // The proxy closes connections as a killed peer's system does.
        grace_closed: grace,
        ..Tuning::default()
    }
}

/// As long as no test takes.
pub fn long_grace() -> Tuning {
    tuning(Duration::from_secs(60))
}

/// A server of one session, with whatever connections the session takes.
pub struct Server {
    pub listener: Arc<Listener>,
    pub endpoint: Endpoint,
    pub running: thread::JoinHandle<CloseReason>,
    pub accepting: thread::JoinHandle<()>,
}

/// A client and its server, with a proxy between them.
pub fn session(
    cut: Cut,
    cuts_max: u64,
    tuning: Tuning,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> (Endpoint, Server, Proxy) {
    session_over(None, cut, cuts_max, tuning, client, server)
}

/// The same, over TLS where the client's side of it is given.
pub fn session_over(
    tls: Option<TlsClient>,
    cut: Cut,
    cuts_max: u64,
    tuning: Tuning,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> (Endpoint, Server, Proxy) {
    let options = ListenOptions {
        tls: tls.as_ref().map(|_| support::tls::server()),
        ..ListenOptions::default()
    };
    let listener = Arc::new(Listener::bind("127.0.0.1:0", options).unwrap());
    let proxy = Proxy::start(listener.local_addr(), cut, cuts_max);
    let options = ConnectOptions {
        tuning,
        transport: TransportChoice::Tcp,
        tls,
        ..ConnectOptions::new(proxy.addr().to_string())
    };
    let (client, server) = open(listener, &options, client, server);
    (client, server, proxy)
}

pub fn open(
    listener: Arc<Listener>,
    options: &ConnectOptions,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> (Endpoint, Server) {
    let tuning = options.tuning;
    let (made, made_here) = std::sync::mpsc::channel();
    let door = Arc::clone(&listener);
    let accepting = thread::spawn(move || accept(&door, tuning, &server, &made));
    // The first connection of all is no business of these tests: it is tried until it is there.
    let client = loop {
        if let Ok((client, _)) = connect(options, Arc::clone(&client)) {
            break client;
        }
    };
    let endpoint = loop {
        let endpoint: Endpoint = made_here.recv().unwrap();
        if endpoint.session() == client.session() {
            break endpoint;
        }
    };
    let looped = endpoint.clone();
    let running = thread::spawn(move || looped.run());
    let server = Server {
        listener,
        endpoint,
        running,
        accepting,
    };
    (client, server)
}

fn accept(
    listener: &Listener,
    tuning: Tuning,
    handler: &Arc<dyn Handler>,
    made: &std::sync::mpsc::Sender<Endpoint>,
) {
    let mut sessions: Vec<Endpoint> = Vec::new();
    loop {
        let incoming = match listener.accept() {
            Ok(incoming) => incoming,
            Err(AcceptError::Closed) => return,
            Err(error) => panic!("{error}"),
        };
        let (kind, session) = (incoming.kind(), incoming.session());
        let (fd, state) = incoming.into_parts();
        let known = sessions.iter().find(|known| known.session() == session);
        match (kind, known) {
            (IncomingKind::New, _) => {
                if let Ok(new) = Endpoint::adopt(fd, &state, b"", &tuning, Arc::clone(handler)) {
                    sessions.push(new.clone());
                    let _ = made.send(new);
                }
            }
            // Each on a thread of its own, as a lost connection may hold one up.
            (IncomingKind::Bulk { .. }, Some(known)) => {
                let known = known.clone();
                thread::spawn(move || drop(known.attach_bulk(fd, &state)));
            }
            (IncomingKind::Resume { .. }, Some(known)) => drop(known.resume(fd, &state)),
            other => panic!("{other:?}"),
        }
    }
}

impl Server {
    pub fn finish(self) -> CloseReason {
        let why = self.running.join().unwrap();
        self.listener.close();
        self.accepting.join().unwrap();
        why
    }
}

/// Checks that records come in order, each once, with their bytes; answers each with its number.
pub fn counted(echo: bool) -> (Arc<Tap>, Arc<AtomicU64>) {
    let next = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&next);
    let tap = Tap::new(move |endpoint, frame| {
        for record in frame.chunks_exact(64) {
            let n = seen.fetch_add(1, SeqCst);
            assert_eq!(number(record), n, "out of order");
            let mut expected = [0; 64];
            fill(&mut expected, n);
            assert_eq!(record, expected);
            if echo {
                let _ = endpoint.append(64, |out| out.copy_from_slice(record));
            }
        }
    });
    (tap, next)
}

/// Sends numbered records, waiting for the echo of every `step`-th.
pub fn converse(client: &Endpoint, answers: &AtomicU64, records: u64, step: u64) {
    for n in 0..records {
        client.append(64, |record| fill(record, n)).unwrap();
        if n % step == step - 1 {
            client
                .wait_until(&|| answers.load(SeqCst) > n, Some(PATIENCE))
                .unwrap_or_else(|error| panic!("record {n}: {error}"));
        }
    }
    client
        .wait_until(&|| answers.load(SeqCst) == records, Some(PATIENCE))
        .unwrap();
}

/// A transfer's bytes.
pub fn content(id: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, id);
    bytes
}

pub fn receive(endpoint: &Endpoint, id: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); len];
    let got = endpoint.bulk_recv(id, &mut buffer).unwrap();
    // SAFETY: the transport has initialised the first `got` bytes.
    buffer[..got]
        .iter()
        .map(|byte| unsafe { byte.assume_init() })
        .collect()
}
