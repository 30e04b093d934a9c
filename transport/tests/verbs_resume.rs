//! Sessions over RDMA that outlive their connection: over RDMA again, or over TCP where that is gone. Needs an
//! RDMA device: run it in a VM that has one (`scripts/rdma-test`).
#![allow(clippy::unwrap_used)]

mod support;
#[path = "support/verbs_session.rs"]
mod verbs_session;

use std::process::Command;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;

use farcall_transport::RdmaMode;
use support::suite_bulk::LentMemory;
use support::wait_for;
use verbs_session::{content, receive, session};

/// Sizes below and above what goes beside the stream.
fn sizes() -> impl Iterator<Item = (u64, usize)> {
    let sizes = [3_000, 700_000, 150_000, 2_500_000];
    (0..24).zip(sizes.into_iter().cycle())
}

/// Lent memory up and down, and memory that is not, all at once, while connections are cut.
#[test]
fn transfers_survive_cuts_and_go_over_rdma_again() {
    for mode in [RdmaMode::Completions, RdmaMode::Memory] {
        let session = session(mode);
        let (client, server) = (&session.client, &session.server);
        thread::scope(|scope| {
            let up = scope.spawn(move || {
                for (id, len) in sizes() {
                    LentMemory::new(client, content(id, len)).send(id, 0, len);
                }
            });
            scope.spawn(move || {
                for (id, len) in sizes() {
                    assert!(receive(server, id, len) == content(id, len), "{id}");
                }
            });
            scope.spawn(move || {
                for (id, len) in sizes() {
                    let bytes = content(id + 100, len);
                    server
                        .bulk_send(id + 100, &[std::io::IoSlice::new(&bytes)])
                        .unwrap();
                }
            });
            let down = scope.spawn(move || {
                for (id, len) in sizes() {
                    let mut dest = LentMemory::new(client, vec![0; len]);
                    assert_eq!(dest.receive(id + 100, 0), len);
                    assert!(dest.bytes() == content(id + 100, len), "{id}");
                }
            });
            let mut cuts = 0;
            let moved = || client.stats().bulk_bytes_in + server.stats().bulk_bytes_in;
            while !(up.is_finished() && down.is_finished()) && cuts < 8 {
                let before = moved();
                wait_for(|| moved() > before + 1_000_000 || up.is_finished() && down.is_finished());
                session.proxy.cut();
                cuts += 1;
                session.await_resume(cuts);
                assert_eq!(client.transport_name(), "verbs");
            }
            assert!(cuts > 2, "{cuts} cuts");
        });
        assert!(client.stats().bulk_bytes_direct > 0);
        session.end();
    }
}

/// A destination that the server may be writing to is taken back: nobody writes there from then on, and the
/// session goes on over another connection.
#[test]
fn a_granted_destination_can_be_taken_back() {
    const BYTES: usize = 4 << 20;
    let session = session(RdmaMode::Auto);
    let mut dest = LentMemory::new(&session.client, vec![0; BYTES]);
    let never = dest.post(5, 0);
    assert!(session.client.bulk_cancel(5));
    let dest = dest.take_back();
    session.await_resume(1);
    thread::scope(|scope| {
        scope.spawn(|| LentMemory::new(&session.server, content(6, BYTES)).send(6, 0, BYTES));
        assert!(receive(&session.client, 6, BYTES) == content(6, BYTES));
    });
    assert!(dest.iter().all(|byte| *byte == 0));
    assert_eq!(never.load(SeqCst), u64::MAX, "not told of");
    session.end();
}

#[test]
fn a_session_whose_port_goes_down_goes_on_over_tcp() {
    struct Up;
    impl Drop for Up {
        fn drop(&mut self) {
            link("up");
        }
    }
    fn link(state: &str) {
        let ip = Command::new("ip")
            .args(["link", "set", "rdma0", state])
            .status();
        assert!(ip.unwrap().success());
    }
    const BYTES: usize = 1 << 20;
    let session = session(RdmaMode::Auto);
    let source = LentMemory::new(&session.client, content(1, BYTES));
    thread::scope(|scope| {
        scope.spawn(|| source.send(1, 0, BYTES));
        assert!(receive(&session.server, 1, BYTES) == content(1, BYTES));
    });
    let direct = session.client.stats().bulk_bytes_direct;
    assert_eq!(direct, BYTES as u64);
    let up = Up;
    link("down");
    thread::scope(|scope| {
        scope.spawn(|| source.send(2, 0, BYTES));
        assert!(receive(&session.server, 2, BYTES) == content(1, BYTES));
    });
    session.await_resume(1);
    assert_eq!(session.client.transport_name(), "tcp");
    assert_eq!(session.client.stats().bulk_bytes_direct, direct);
    drop(up);
    drop(source);
    session.end();
}
