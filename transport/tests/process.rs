//! A client inside a program: threads, fork, exit.
#![allow(clippy::unwrap_used)]

mod support;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use farcall_transport::{
    CloseReason, ConnectOptions, Endpoint, Limits, ListenOptions, Listener, SendError,
    TransportChoice, Tuning, WaitError, connect,
};
use support::{Backend, PATIENCE, Tap, Tcp, serve};

#[test]
fn a_forked_child_is_inert_and_the_parent_goes_on() {
    let tap = Tap::ignore();
    let (client, server) = Tcp::pair(
        Limits::default(),
        Tuning::default(),
        tap.clone(),
        Tap::echo(),
    );
    let running = serve(server);
    let ping = |total: u64| {
        client.append(64, |record| record.fill(1)).unwrap();
        client
            .wait_until(&|| tap.bytes() == total, Some(PATIENCE))
            .unwrap();
    };
    ping(64);
    // SAFETY: the child only uses the endpoint, which must be inert, and ends with _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let append = client.append(8, |_| ());
        let wait = client.wait_until(&|| false, Some(Duration::from_millis(1)));
        let inert = matches!(append, Err(SendError::Closed(CloseReason::Forked)))
            && matches!(wait, Err(WaitError::Closed(CloseReason::Forked)))
            && client.flush().is_err()
            && client.poll().is_err();
        client.close();
        client.after_fork_child();
        drop(client);
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(!inert)) };
    }
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child's endpoint was not inert");
    ping(128);
    client.close();
    assert!(matches!(running.join().unwrap(), CloseReason::Peer));
}

#[test]
fn a_forked_child_can_open_a_session_of_its_own() {
    let listener = Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap();
    let options = ConnectOptions::new(listener.local_addr().to_string());
    let accept = || {
        let (fd, state) = listener.accept().unwrap().into_parts();
        Endpoint::adopt(fd, &state, b"", &Tuning::default(), Tap::echo()).unwrap()
    };
    let (first, running) = std::thread::scope(|scope| {
        let client = scope.spawn(|| connect(&options, Tap::ignore()).unwrap().0);
        let running = serve(accept());
        (client.join().unwrap(), running)
    });
    // SAFETY: the child opens its own session and ends with _exit.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let tap = Tap::ignore();
        let (own, _) = connect(&options, tap.clone()).unwrap();
        own.append(8, |_| ()).unwrap();
        let result = own.wait_until(&|| tap.bytes() == 8, Some(PATIENCE));
        own.close();
        let both = result.is_ok() && first.flush().is_err();
        // SAFETY: ends the child without running the parent's exit handlers.
        unsafe { libc::_exit(i32::from(!both)) };
    }
    let second = serve(accept());
    let mut status = 0;
    // SAFETY: waits for our own child.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0);
    assert!(matches!(second.join().unwrap(), CloseReason::Peer));
    first.close();
    assert!(matches!(running.join().unwrap(), CloseReason::Peer));
}

/// The transports that a program is tested with: its name for the environment.
const TRANSPORTS: [&str; 2] = ["tcp", "shm"];

fn program_options(server: String) -> ConnectOptions {
    let transport = match std::env::var("FARCALL_TEST_TRANSPORT").as_deref() {
        Ok("shm") => TransportChoice::Shm,
        _ => TransportChoice::Tcp,
    };
    ConnectOptions {
        transport,
        ..ConnectOptions::new(server)
    }
}

static AT_EXIT: OnceLock<Endpoint> = OnceLock::new();

extern "C" fn close_at_exit() {
    if let Some(endpoint) = AT_EXIT.get() {
        endpoint.close();
    }
}

/// The program of the next test; does nothing when it runs by itself.
#[test]
fn program_that_exits() {
    let Ok(server) = std::env::var("FARCALL_TEST_SERVER") else {
        return;
    };
    let (endpoint, _) = connect(&program_options(server), Tap::ignore()).unwrap();
    let endpoint = AT_EXIT.get_or_init(|| endpoint);
    // SAFETY: the handler uses statics only.
    assert_eq!(unsafe { libc::atexit(close_at_exit) }, 0);
    // Other threads are in the middle of a wait when the process ends.
    for _ in 0..2 {
        std::thread::spawn(|| endpoint.wait_until(&|| false, None));
    }
    for n in 0..1000u64 {
        endpoint
            .append(64, |record| record[..8].copy_from_slice(&n.to_le_bytes()))
            .unwrap();
    }
    std::process::exit(0);
}

#[test]
fn exit_sends_what_is_pending_and_does_not_hang() {
    let listener = Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap();
    for transport in TRANSPORTS.repeat(3) {
        let start = Instant::now();
        let mut program = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "program_that_exits", "--nocapture"])
            .env("FARCALL_TEST_SERVER", listener.local_addr().to_string())
            .env("FARCALL_TEST_TRANSPORT", transport)
            .spawn()
            .unwrap();
        let (fd, state) = listener.accept().unwrap().into_parts();
        let tap = Tap::ignore();
        let server = Endpoint::adopt(fd, &state, b"", &Tuning::default(), tap.clone()).unwrap();
        assert_eq!(server.transport_name(), transport);
        let why = server.run();
        assert!(matches!(why, CloseReason::Peer), "{why}");
        assert_eq!(tap.bytes(), 64_000);
        assert!(program.wait().unwrap().success());
        assert!(start.elapsed() < PATIENCE);
    }
}

/// A server in a process of its own; does nothing when it runs by itself.
#[test]
fn program_that_serves() {
    if std::env::var("FARCALL_TEST_SERVE").is_err() {
        return;
    }
    let listener = Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap();
    println!("\nPORT {}", listener.local_addr().port());
    let (fd, state) = listener.accept().unwrap().into_parts();
    Endpoint::adopt(fd, &state, b"", &Tuning::default(), Tap::ignore())
        .unwrap()
        .run();
}

#[test]
fn a_killed_server_ends_waits() {
    for transport in [TransportChoice::Tcp, TransportChoice::Shm] {
        killed_server(transport);
    }
}

fn killed_server(transport: TransportChoice) {
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program_that_serves", "--nocapture"])
        .env("FARCALL_TEST_SERVE", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(program.stdout.take().unwrap()).lines();
    let port = lines
        .map(Result::unwrap)
        .find_map(|l| l.strip_prefix("PORT ").map(String::from));
    let server = format!("127.0.0.1:{}", port.unwrap());
    let options = ConnectOptions {
        transport,
        ..ConnectOptions::new(server)
    };
    let (client, _) = connect(&options, Tap::ignore()).unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| client.wait_until(&|| false, Some(PATIENCE)));
        support::wait_for(|| client.stats().sleeps > 0);
        program.kill().unwrap();
        let ended = waiter.join().unwrap();
        assert!(
            matches!(ended, Err(WaitError::Closed(CloseReason::Lost(_)))),
            "{ended:?}"
        );
    });
    program.wait().unwrap();
    assert!(client.append(8, |_| ()).is_err());
}

#[test]
fn a_killed_client_is_noticed() {
    TRANSPORTS.into_iter().for_each(killed_client);
}

fn killed_client(transport: &str) {
    let listener = Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap();
    let mut program = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "program_that_waits", "--nocapture"])
        .env("FARCALL_TEST_SERVER", listener.local_addr().to_string())
        .env("FARCALL_TEST_TRANSPORT", transport)
        .spawn()
        .unwrap();
    let (fd, state) = listener.accept().unwrap().into_parts();
    let tap = Tap::ignore();
    let server = Endpoint::adopt(fd, &state, b"", &Tuning::default(), tap.clone()).unwrap();
    let running = serve(server);
    support::wait_for(|| tap.bytes() == 64);
    program.kill().unwrap();
    program.wait().unwrap();
    assert!(matches!(running.join().unwrap(), CloseReason::Lost(_)));
}

/// The program of the test above; does nothing when it runs by itself.
#[test]
fn program_that_waits() {
    let Ok(server) = std::env::var("FARCALL_TEST_SERVER") else {
        return;
    };
    let (endpoint, _) = connect(&program_options(server), Tap::ignore()).unwrap();
    endpoint.append(64, |_| ()).unwrap();
    let _ = endpoint.wait_until(&|| false, None);
}

#[test]
fn added_delay_shows_in_every_round_trip() {
    let added_rtt = Duration::from_millis(3);
    let tuning = Tuning {
        added_rtt,
        ..Tuning::default()
    };
    let tap = Tap::ignore();
    let near = delayed_client(tuning, &tap);
    let start = Instant::now();
    for round in 1..=10u64 {
        near.append(64, |record| record.fill(1)).unwrap();
        near.wait_until(&|| tap.bytes() == 64 * round, Some(PATIENCE))
            .unwrap();
    }
    let each = start.elapsed() / 10;
    assert!(each >= added_rtt, "{each:?}");
    near.close();
}

/// A client with this tuning, and a server with the default one.
fn delayed_client(tuning: Tuning, tap: &std::sync::Arc<Tap>) -> Endpoint {
    let listener = Listener::bind("[::1]:0", ListenOptions::default()).unwrap();
    let options = ConnectOptions {
        tuning,
        ..ConnectOptions::new(listener.local_addr().to_string())
    };
    let tap = std::sync::Arc::clone(tap);
    std::thread::scope(|scope| {
        let client = scope.spawn(move || connect(&options, tap).unwrap().0);
        let (fd, state) = listener.accept().unwrap().into_parts();
        let server = Endpoint::adopt(fd, &state, b"", &Tuning::default(), Tap::echo()).unwrap();
        serve(server);
        client.join().unwrap()
    })
}

#[test]
fn an_idle_session_uses_no_cpu() {
    let (client, server) = Tcp::pair(
        Limits::default(),
        Tuning::default(),
        Tap::ignore(),
        Tap::echo(),
    );
    let running = serve(server.clone());
    (0..100).for_each(|_| assert!(client.append(64, |_| ()).is_ok()));
    support::wait_for(|| {
        client.acked() == client.append(0, |_| ()).unwrap() || client.stats().frames_in > 0
    });
    // Let both sides go to sleep: they are asleep when their sleeps stop counting.
    let cpu = |limit: Duration| {
        let before = (cpu_time(), Instant::now());
        std::thread::park_timeout(limit);
        (cpu_time() - before.0).as_secs_f64() / before.1.elapsed().as_secs_f64()
    };
    cpu(Duration::from_millis(200));
    let share = cpu(Duration::from_millis(500));
    // The test's own watcher thread ticks every millisecond.
    assert!(share < 0.06, "{share}");
    client.close();
    running.join().unwrap();
}

fn cpu_time() -> Duration {
    // SAFETY: an all-zero timespec is valid, and the call fills it.
    let mut time: libc::timespec = unsafe { std::mem::zeroed() };
    // SAFETY: a valid clock and a valid pointer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap(),
    )
}
