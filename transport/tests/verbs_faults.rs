//! Networks and devices that go away under a session over RDMA. Each test leaves its machine without a device, so each is run in a
//! VM of its own, which has two (`scripts/rdma-test`).
#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/verbs_session.rs"]
mod verbs_session;

use std::io::IoSlice;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use farcall_transport::{
    CloseReason, RdmaMode, RdmaOptions, TransportChoice, VerbsError, rdma_ports,
};
use support::{PATIENCE, wait_for};
use verbs_session::{Session, content, receive, session, session_over};

/// Starts a command of the system.
fn start(line: &str) -> Child {
    let mut words = line.split(' ');
    let mut command = Command::new(words.next().unwrap());
    command.args(words).spawn().unwrap()
}

fn run(line: &str) {
    assert!(start(line).wait().unwrap().success(), "{line}");
}

/// Transfers both ways, until `enough`; what arrives is right, whatever happens on the way.
fn keep_busy(session: &Session, enough: &(dyn Fn() -> bool + Sync)) {
    static IDS: AtomicU64 = AtomicU64::new(0);
    const BYTES: usize = 300_000;
    let (client, server) = (&session.client, &session.server);
    loop {
        let id = IDS.fetch_add(2, SeqCst);
        thread::scope(|scope| {
            for (from, to, id) in [(client, server, id), (server, client, id + 1)] {
                scope.spawn(move || from.bulk_send(id, &[IoSlice::new(&content(id, BYTES))]));
                scope.spawn(move || assert!(receive(to, id, BYTES) == content(id, BYTES), "{id}"));
            }
        });
        if enough() {
            return;
        }
    }
}

/// The wire takes packets, and nothing arrives.
#[test]
fn a_network_that_swallows_everything_is_named_and_sessions_go_on_over_tcp() {
    let mortal = session_over(TransportChoice::Verbs, RdmaMode::Auto, Duration::ZERO);
    let lasting = session(RdmaMode::Auto);
    keep_busy(&lasting, &|| lasting.client.stats().bulk_in >= 2);
    assert_eq!(lasting.client.transport_name(), "verbs");
    for interface in ["rdma0", "rdma1"] {
        run(&format!(
            "tc qdisc add dev {interface} root netem loss 100%"
        ));
    }
    keep_busy(&lasting, &|| lasting.client.stats().resumes >= 1);
    assert_eq!(lasting.client.transport_name(), "tcp");
    // The one that notices closes the bootstrap connection, by which the other may notice first.
    let is_named = |why: &CloseReason| match why {
        CloseReason::Lost(error) => VerbsError::of(error) == Some(&VerbsError::RetryExceeded),
        _ => false,
    };
    let ended = mortal.await_end();
    assert!(ended.iter().any(is_named), "{ended:?}");
    lasting.end();
}

/// The network interface below the device is deleted.
#[test]
fn a_session_whose_interface_is_deleted_goes_on_over_tcp() {
    let session = session(RdmaMode::Auto);
    let deleting = thread::spawn({
        let client = session.client.clone();
        move || {
            wait_for(|| client.stats().bulk_in >= 2);
            // The device's own end waits until nobody has it open.
            start("ip link delete rdma0")
        }
    });
    keep_busy(&session, &|| session.client.stats().resumes >= 1);
    assert_eq!(session.client.transport_name(), "tcp");
    keep_busy(&session, &|| true);
    session.end();
    let mut deleting = deleting.join().unwrap();
    assert!(deleting.wait().unwrap().success());
    wait_for(|| rdma_ports(&RdmaOptions::default()) == Err(VerbsError::NoDevice));
}

/// The kernel keeps a device that is deleted until its last user has gone; its sessions go on as long.
#[test]
fn a_device_that_is_deleted_waits_for_its_sessions_and_the_next_goes_over_tcp() {
    let session = session(RdmaMode::Auto);
    keep_busy(&session, &|| session.client.stats().bulk_in >= 2);
    let mut deleting = ["rxe0", "rxe1"].map(|device| start(&format!("rdma link delete {device}")));
    let before = session.client.stats().bulk_in;
    keep_busy(&session, &|| session.client.stats().bulk_in >= before + 4);
    assert_eq!(
        (
            session.client.transport_name(),
            session.client.stats().losses
        ),
        ("verbs", 0)
    );
    for delete in &mut deleting {
        assert!(delete.try_wait().unwrap().is_none(), "it is in use");
    }
    session.end();
    for delete in &mut deleting {
        assert!(delete.wait().unwrap().success());
    }
    let next = session_over(TransportChoice::Network, RdmaMode::Auto, PATIENCE);
    keep_busy(&next, &|| next.client.stats().bulk_in >= 2);
    assert_eq!(next.client.transport_name(), "tcp");
    next.end();
}
