//! Sessions that outlive their connection: nothing is lost, nothing comes twice, and the end comes when
//! it must.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "../../fixtures/src/proxy.rs"]
#[allow(dead_code, unreachable_pub, clippy::missing_panics_doc)]
mod proxy;
mod support;

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use farcall_transport::{
    AcceptError, CloseReason, ConnectOptions, Endpoint, Handler, IncomingKind, ListenOptions,
    Listener, TransportChoice, Tuning, WaitError, connect, sim::Rng,
};
use proxy::{Cut, Proxy};
use support::suite::fill;
use support::{PATIENCE, Tap, number, wait_for};

fn tuning(grace: Duration) -> Tuning {
    Tuning {
        grace,
        // The proxy closes connections as a killed peer's system does.
        grace_closed: grace,
        ..Tuning::default()
    }
}

/// A server of one session, with whatever connections the session takes.
struct Server {
    listener: Arc<Listener>,
    endpoint: Endpoint,
    running: thread::JoinHandle<CloseReason>,
    accepting: thread::JoinHandle<()>,
}

/// A client and its server, with a proxy between them.
fn session(
    cut: Cut,
    cuts_max: u64,
    tuning: Tuning,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> (Endpoint, Server, Proxy) {
    let listener = Arc::new(Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap());
    let proxy = Proxy::start(listener.local_addr(), cut, cuts_max);
    let address = proxy.addr();
    let (client, server) = open(
        listener,
        address,
        TransportChoice::Tcp,
        tuning,
        client,
        server,
    );
    (client, server, proxy)
}

fn open(
    listener: Arc<Listener>,
    address: SocketAddr,
    transport: TransportChoice,
    tuning: Tuning,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> (Endpoint, Server) {
    let (made, made_here) = std::sync::mpsc::channel();
    let door = Arc::clone(&listener);
    let accepting = thread::spawn(move || accept(&door, tuning, &server, &made));
    // The first connection of all is no business of these tests: it is tried until it is there.
    let client = loop {
        let options = ConnectOptions {
            tuning,
            transport,
            ..ConnectOptions::new(address.to_string())
        };
        if let Ok((client, _)) = connect(&options, Arc::clone(&client)) {
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
    fn finish(self) -> CloseReason {
        let why = self.running.join().unwrap();
        self.listener.close();
        self.accepting.join().unwrap();
        why
    }
}

/// Checks that records come in order, each once, with their bytes; answers each with its number.
fn counted(echo: bool) -> (Arc<Tap>, Arc<AtomicU64>) {
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
fn converse(client: &Endpoint, answers: &AtomicU64, records: u64, step: u64) {
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

#[test]
fn a_connection_cut_after_every_frame() {
    for frames in [1, 2, 3, 7] {
        let (tap, answers) = counted(false);
        let (echo, _) = counted(true);
        let grace = tuning(Duration::from_secs(60));
        let (client, server, proxy) = session(Cut::AfterFrames(frames), 60, grace, tap, echo);
        converse(&client, &answers, 200, 5);
        assert!(proxy.cuts() >= 10, "{} cuts", proxy.cuts());
        let resumes = client.stats().resumes;
        assert!(resumes >= 10, "{resumes} resumes");
        client.close();
        assert!(
            matches!(server.finish(), CloseReason::Peer),
            "after {frames}"
        );
    }
}

#[test]
fn a_connection_cut_at_any_byte() {
    for seed in 0..12 {
        let (tap, answers) = counted(false);
        let (echo, received) = counted(true);
        let grace = tuning(Duration::from_secs(60));
        let cut = Cut::AfterBytes { most: 1500, seed };
        let (client, server, proxy) = session(cut, 40, grace, tap, echo);
        converse(&client, &answers, 300, 1 + seed);
        assert_eq!(received.load(SeqCst), 300, "seed {seed}");
        assert!(proxy.cuts() > 5, "seed {seed}: {} cuts", proxy.cuts());
        client.close();
        assert!(matches!(server.finish(), CloseReason::Peer), "seed {seed}");
    }
}

/// A transfer's bytes.
fn content(id: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fill(&mut bytes, id);
    bytes
}

fn receive(endpoint: &Endpoint, id: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![MaybeUninit::<u8>::uninit(); len];
    let got = endpoint.bulk_recv(id, &mut buffer).unwrap();
    // SAFETY: the transport has initialised the first `got` bytes.
    buffer[..got]
        .iter()
        .map(|byte| unsafe { byte.assume_init() })
        .collect()
}

#[test]
fn bulk_transfers_survive_cuts_though_their_memory_is_reused() {
    for seed in 0..6u64 {
        let grace = tuning(Duration::from_secs(60));
        let cut = Cut::AfterBytes {
            most: 300 << 10,
            seed,
        };
        let (client, server, proxy) = session(cut, 40, grace, Tap::ignore(), Tap::ignore());
        let sizes = |seed| {
            let mut rng = Rng::new(seed);
            (0..12u64).map(move |id| (id, rng.below(1 << (10 + id)) as usize + 1))
        };
        let push = |from: &Endpoint, seed| {
            for (id, len) in sizes(seed) {
                let mut bytes = content(id, len);
                from.bulk_send(id, &[IoSlice::new(&bytes)]).unwrap();
                // The sender may do with its memory what it likes.
                bytes.fill(0xee);
            }
        };
        let pull = |to: &Endpoint, seed| {
            for (id, len) in sizes(seed) {
                assert!(
                    receive(to, id, len) == content(id, len),
                    "seed {seed}: {id}"
                );
            }
        };
        thread::scope(|scope| {
            scope.spawn(|| push(&client, seed));
            scope.spawn(|| pull(&server.endpoint, seed));
            scope.spawn(|| push(&server.endpoint, seed + 100));
            scope.spawn(|| pull(&client, seed + 100));
        });
        assert!(proxy.cuts() > 2, "seed {seed}: {} cuts", proxy.cuts());
        client.close();
        server.finish();
    }
}

/// The bytes lie in the client's system when their connection ends, and the server never had that connection: only the
/// client can notice.
#[test]
fn a_bulk_connection_that_ends_in_its_handshake_is_missed() {
    const BYTES: usize = 30_000;
    for seed in 0..12u64 {
        let cut = Cut::AfterBytes { most: 400, seed };
        let (answered, grace) = (Tap::ignore(), tuning(Duration::from_secs(60)));
        let (client, server, _proxy) = session(cut, 12, grace, answered.clone(), Tap::ignore());
        let endpoint = &server.endpoint;
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(receive(endpoint, 7, BYTES) == content(7, BYTES), "{seed}");
                endpoint.append_now(8, |out| out.fill(1)).unwrap();
            });
            let bytes = content(7, BYTES);
            client.bulk_send(7, &[IoSlice::new(&bytes)]).unwrap();
            let done = || answered.bytes() == 8;
            client
                .wait_until(&done, Some(PATIENCE))
                .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        });
        client.close();
        server.finish();
    }
}

/// The server sends before the client has opened the bulk connection.
#[test]
fn a_bulk_send_before_there_is_a_connection() {
    for _ in 0..20 {
        let (client, server, _proxy) = session(
            Cut::Never,
            0,
            tuning(Duration::ZERO),
            Tap::ignore(),
            Tap::ignore(),
        );
        let (waiting, endpoint) = (&AtomicBool::new(false), &server.endpoint);
        thread::scope(|scope| {
            scope.spawn(move || {
                let bytes = content(3, 100_000);
                waiting.store(true, SeqCst);
                endpoint.bulk_send(3, &[IoSlice::new(&bytes)]).unwrap();
            });
            wait_for(|| waiting.load(SeqCst));
            assert!(receive(&client, 3, 100_000) == content(3, 100_000));
        });
        client.close();
        server.finish();
    }
}

#[test]
fn the_session_ends_when_its_grace_is_over() {
    let grace = Duration::from_millis(300);
    let tap = Tap::ignore();
    let (client, server, proxy) = session(Cut::Never, 0, tuning(grace), tap.clone(), Tap::ignore());
    proxy.aim(None);
    let start = Instant::now();
    proxy.cut();
    let waited = client.wait_until(&|| false, Some(PATIENCE));
    assert!(
        matches!(waited, Err(WaitError::Closed(CloseReason::Lost(_)))),
        "{waited:?}"
    );
    assert!(start.elapsed() >= grace);
    assert!(client.append(8, |_| ()).is_err());
    assert!(matches!(server.finish(), CloseReason::Lost(_)));
    tap.wait_closed();
}

/// A killed program's system closes its connections; a network that fails does not.
#[test]
fn a_client_whose_connection_was_closed_is_not_kept_for_the_whole_grace() {
    let closed = Duration::from_millis(100);
    let tuning = Tuning {
        grace_closed: closed,
        ..tuning(Duration::from_secs(3600))
    };
    let (client, server, proxy) = session(Cut::Never, 0, tuning, Tap::ignore(), Tap::ignore());
    proxy.aim(None);
    let start = Instant::now();
    proxy.cut();
    let ended = server.running.join().unwrap();
    assert!(matches!(ended, CloseReason::Lost(_)), "{ended}");
    assert!(start.elapsed() >= closed);
    proxy.aim(Some(server.listener.local_addr()));
    let waited = client.wait_until(&|| false, Some(PATIENCE));
    assert!(
        matches!(waited, Err(WaitError::Closed(CloseReason::Expired(_)))),
        "{waited:?}"
    );
    server.listener.close();
    server.accepting.join().unwrap();
}

#[test]
fn a_server_that_gave_up_and_one_that_was_restarted_are_told_apart() {
    let (tap, _) = counted(false);
    let (client, server, proxy) = session(
        Cut::Never,
        0,
        tuning(Duration::from_secs(60)),
        tap,
        Tap::ignore(),
    );
    let other = Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap();
    proxy.aim(Some(other.local_addr()));
    proxy.cut();
    let door = thread::spawn(move || other.accept().is_err());
    let waited = client.wait_until(&|| false, Some(PATIENCE));
    assert!(
        matches!(waited, Err(WaitError::Closed(CloseReason::Restarted))),
        "{waited:?}"
    );
    server.endpoint.close();
    server.finish();
    drop(door);

    let (client, server, proxy) = session(
        Cut::Never,
        0,
        tuning(Duration::from_secs(60)),
        Tap::ignore(),
        Tap::ignore(),
    );
    proxy.aim(None);
    proxy.cut();
    server.endpoint.close();
    server.running.join().unwrap();
    proxy.aim(Some(server.listener.local_addr()));
    let waited = client.wait_until(&|| false, Some(PATIENCE));
    assert!(
        matches!(waited, Err(WaitError::Closed(CloseReason::Expired(_)))),
        "{waited:?}"
    );
    server.listener.close();
    server.accepting.join().unwrap();
}

/// Cuts while the program does nothing, again and again: the next call works.
#[test]
fn an_idle_session_comes_back_by_itself() {
    let (tap, answers) = counted(false);
    let (echo, _) = counted(true);
    let (client, server, proxy) =
        session(Cut::Never, 0, tuning(Duration::from_secs(60)), tap, echo);
    for n in 0..10 {
        proxy.cut();
        wait_for(|| client.stats().resumes > n && server.endpoint.stats().resumes > n);
    }
    converse(&client, &answers, 50, 5);
    assert_eq!(client.stats().losses, 10);
    client.close();
    assert!(matches!(server.finish(), CloseReason::Peer));
}

/// How long it takes until both sides take a silent peer for lost.
fn time_to_notice(client: &Endpoint, server: &Endpoint, proxy: &Proxy) -> Duration {
    let start = Instant::now();
    proxy.hold();
    wait_for(|| client.stats().losses > 0 && server.stats().losses > 0);
    start.elapsed()
}

#[test]
fn a_silent_network_is_noticed_within_three_seconds() {
    let (tap, answers) = counted(false);
    let (echo, _) = counted(true);
    let grace = tuning(Duration::from_secs(60));
    let (client, server, proxy) = session(Cut::Never, 0, grace, tap, echo);
    // An idle session, a little way into a keepalive.
    wait_for(|| client.stats().controls_out > 1);
    let idle = time_to_notice(&client, &server.endpoint, &proxy);
    assert!(idle < Duration::from_secs(3), "idle: {idle:?}");
    println!(
        "measured cuts-transport: silent network found after {:.2} s (idle)",
        idle.as_secs_f64()
    );
    proxy.release();
    converse(&client, &answers, 20, 5);
    client.close();
    server.finish();

    let (tap, answers) = counted(false);
    let (echo, _) = counted(true);
    let (client, server, proxy) = session(Cut::Never, 0, grace, tap, echo);
    thread::scope(|scope| {
        scope.spawn(|| converse(&client, &answers, 60_000, 50));
        wait_for(|| answers.load(SeqCst) > 1000);
        let busy = time_to_notice(&client, &server.endpoint, &proxy);
        assert!(busy < Duration::from_secs(3), "busy: {busy:?}");
        println!(
            "measured cuts-transport: {:.2} s (busy)",
            busy.as_secs_f64()
        );
        proxy.release();
    });
    client.close();
    server.finish();
}

#[test]
fn a_pause_of_two_seconds_alarms_nobody() {
    let (tap, answers) = counted(false);
    let (echo, _) = counted(true);
    let grace = tuning(Duration::from_secs(60));
    let (client, server, proxy) = session(Cut::Never, 0, grace, tap, echo);
    let pause = || {
        proxy.hold();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            thread::sleep(Duration::from_millis(20));
        }
        proxy.release();
    };
    wait_for(|| client.stats().controls_out > 1);
    pause();
    thread::scope(|scope| {
        scope.spawn(|| converse(&client, &answers, 20_000, 50));
        wait_for(|| answers.load(SeqCst) > 1000);
        pause();
    });
    assert_eq!(
        (client.stats().losses, server.endpoint.stats().losses),
        (0, 0)
    );
    client.close();
    server.finish();
}

/// Ends every connected Unix socket of this process: the only thing about shared memory that can be cut.
fn cut_unix_sockets() -> usize {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap();
    let fds = fds.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<i32>().ok());
    let option = |fd: i32, name: i32| {
        let mut value = 0i32;
        let mut size = 4u32;
        // SAFETY: `value` is 4 writable bytes.
        let result = unsafe {
            libc::getsockopt(
                fd,
                libc::SOL_SOCKET,
                name,
                (&raw mut value).cast(),
                &raw mut size,
            )
        };
        (result == 0).then_some(value)
    };
    let connected: Vec<i32> = fds
        .filter(|fd| option(*fd, libc::SO_DOMAIN) == Some(libc::AF_UNIX))
        .filter(|fd| option(*fd, libc::SO_TYPE) == Some(libc::SOCK_STREAM))
        .filter(|fd| option(*fd, libc::SO_ACCEPTCONN) == Some(0))
        .collect();
    for fd in &connected {
        // SAFETY: no pointers.
        unsafe { libc::shutdown(*fd, libc::SHUT_RDWR) };
    }
    connected.len()
}

#[test]
fn shared_memory_comes_back_too() {
    let listener = Arc::new(Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap());
    let address = listener.local_addr();
    let (tap, answers) = counted(false);
    let (echo, received) = counted(true);
    let grace = tuning(Duration::from_secs(60));
    let (client, server) = open(listener, address, TransportChoice::Shm, grace, tap, echo);
    assert_eq!(client.transport_name(), "shm");
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(SeqCst) {
                let before = client.stats().resumes;
                cut_unix_sockets();
                wait_for(|| client.stats().resumes > before || over.load(SeqCst));
            }
        });
        scope.spawn(|| {
            for id in 0..40 {
                let len = 700_000 + 11 * id as usize;
                assert!(
                    receive(&server.endpoint, id, len) == content(id, len),
                    "{id}"
                );
            }
        });
        for id in 0..40 {
            let mut bytes = content(id, 700_000 + 11 * id as usize);
            client.bulk_send(id, &[IoSlice::new(&bytes)]).unwrap();
            bytes.fill(0xee);
        }
        converse(&client, &answers, 2_000, 3);
        over.store(true, SeqCst);
    });
    assert_eq!(received.load(SeqCst), 2_000);
    assert!(client.stats().resumes > 3, "{:?}", client.stats());
    client.close();
    server.finish();
}
