//! Sessions that outlive their connection: nothing is lost, nothing comes twice, and the end comes when
//! it must.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "support/cuts.rs"]
mod cuts;
mod support;

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use cuts::proxy::{Cut, Proxy};
use cuts::{content, converse, counted, open, receive, session, tuning};
use farcall_transport::{
    CloseReason, ConnectOptions, Endpoint, ListenOptions, Listener, TransportChoice, Tuning,
    WaitError,
};
use support::{PATIENCE, Tap, wait_for};

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

/// Only what the server says is lost, for longer than a closed connection is waited for: the client gives the connection
/// up first, and the server, who hears it hang up nothing, keeps the session for the whole grace.
#[test]
fn a_network_that_fails_one_way_ends_no_session() {
    let (tap, answers) = counted(false);
    let (echo, _) = counted(true);
    let one_way = Tuning {
        grace: Duration::from_secs(60),
        grace_closed: Duration::from_millis(50),
        keepalive: Duration::from_millis(20),
        ..Tuning::default()
    };
    let (client, server, proxy) = session(Cut::Never, 0, one_way, tap, echo);
    wait_for(|| client.stats().controls_out > 1);
    for n in 0..3 {
        proxy.aim(None);
        proxy.hold_answers();
        // The server hears nothing any more, and waits for longer than for a program that was killed.
        wait_for(|| client.stats().losses > n && server.endpoint.stats().losses > n);
        let noticed = Instant::now();
        wait_for(|| noticed.elapsed() > 4 * one_way.grace_closed);
        assert!(server.endpoint.closed().is_none());
        proxy.aim(Some(server.listener.local_addr()));
        proxy.release();
        wait_for(|| client.stats().resumes > n && server.endpoint.stats().resumes > n);
    }
    converse(&client, &answers, 20, 5);
    client.close();
    assert!(matches!(server.finish(), CloseReason::Peer));
}

/// A client that gives up an attempt of which the server thinks that it came about: the session is kept as it was before.
#[test]
fn an_attempt_that_brings_nothing_leaves_the_grace_as_it_was() {
    let (tap, answers) = counted(false);
    let (echo, _) = counted(true);
    let tuning = Tuning {
        grace: Duration::from_secs(60),
        grace_closed: Duration::from_millis(50),
        keepalive: Duration::from_millis(20),
        ..Tuning::default()
    };
    let (client, server, proxy) = session(Cut::Never, 0, tuning, tap, echo);
    wait_for(|| client.stats().controls_out > 1);
    // What the server says, to attempts as well, is held back until the client has given one up.
    proxy.hold_answers();
    wait_for(|| server.endpoint.stats().resumes > 0);
    proxy.aim(None);
    let resumes = server.endpoint.stats().resumes;
    wait_for(|| server.endpoint.stats().losses > resumes);
    let lost = Instant::now();
    wait_for(|| lost.elapsed() > 4 * tuning.grace_closed);
    assert!(server.endpoint.closed().is_none());
    proxy.aim(Some(server.listener.local_addr()));
    proxy.release();
    converse(&client, &answers, 20, 5);
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
    let options = ConnectOptions {
        tuning: grace,
        transport: TransportChoice::Shm,
        ..ConnectOptions::new(address.to_string())
    };
    let (client, server) = open(listener, &options, tap, echo);
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
