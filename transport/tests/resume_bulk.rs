//! Bulk transfers, with TLS and without, outlive their connections.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

#[path = "support/cuts.rs"]
mod cuts;
mod support;

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use cuts::proxy::Cut;
use cuts::{content, long_grace, receive, session, session_over, tuning};
use farcall_transport::{Endpoint, TlsClient, sim::Rng};
use support::{PATIENCE, Tap, wait_for};

/// Every other one.
fn tls(number: u64) -> Option<TlsClient> {
    (number % 2 == 1).then(support::tls::client)
}

#[test]
fn bulk_transfers_survive_cuts_though_their_memory_is_reused() {
    for seed in 0..12u64 {
        let cut = Cut::AfterBytes {
            most: 300 << 10,
            seed,
        };
        let (client, server, proxy) = session_over(
            tls(seed),
            cut,
            40,
            long_grace(),
            Tap::ignore(),
            Tap::ignore(),
        );
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
    for seed in 0..24u64 {
        let tls = tls(seed);
        // TLS says more before the hello.
        let most = if tls.is_some() { 2_400 } else { 400 };
        let cut = Cut::AfterBytes { most, seed };
        let answered = Tap::ignore();
        let (client, server, _proxy) =
            session_over(tls, cut, 12, long_grace(), answered.clone(), Tap::ignore());
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
