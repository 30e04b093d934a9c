//! Sessions over TLS that outlive their connections, and their keys.
#![allow(clippy::unwrap_used)]

#[path = "support/cuts.rs"]
mod cuts;
mod support;

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use cuts::proxy::{Cut, Proxy};
use cuts::{Server, converse, counted, long_grace, session_over};
use farcall_transport::{CloseReason, Endpoint, Handler};

/// A client and its server, with a proxy between them.
fn tls_session(
    cut: Cut,
    cuts_max: u64,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> (Endpoint, Server, Proxy) {
    let tls = Some(support::tls::client());
    session_over(tls, cut, cuts_max, long_grace(), client, server)
}

#[test]
fn a_tls_connection_cut_after_every_record() {
    let mut resumes = 0;
    for records in 1..=20 {
        let (tap, answers) = counted(false);
        let (echo, received) = counted(true);
        let (client, server, proxy) = tls_session(Cut::AfterRecords(records), 8, tap, echo);
        converse(&client, &answers, 200, 5);
        assert_eq!(received.load(SeqCst), 200);
        assert_eq!(client.transport_name(), "tls");
        assert_eq!(proxy.cuts(), 8, "after {records}");
        resumes += client.stats().resumes;
        client.close();
        assert!(
            matches!(server.finish(), CloseReason::Peer),
            "after {records}"
        );
    }
    println!(
        "measured cuts-transport: 160 TLS connections cut at records, {resumes} times resumed"
    );
}

#[test]
fn a_tls_connection_cut_at_any_byte() {
    for seed in 0..12 {
        let (tap, answers) = counted(false);
        let (echo, received) = counted(true);
        let cut = Cut::AfterBytes { most: 6000, seed };
        let (client, server, proxy) = tls_session(cut, 12, tap, echo);
        converse(&client, &answers, 300, 1 + seed);
        assert_eq!(received.load(SeqCst), 300, "seed {seed}");
        // None is left for the goodbye: who does not hear that keeps the session for a while.
        assert_eq!(proxy.cuts(), 12, "seed {seed}");
        client.close();
        assert!(matches!(server.finish(), CloseReason::Peer), "seed {seed}");
    }
}

/// As much as is safe under one key is a matter of days; here it is one of some records.
#[test]
fn a_session_goes_on_when_its_key_is_used_up() {
    let (tap, answers) = counted(false);
    let (echo, received) = counted(true);
    let tls = support::tls::client().with_key_bytes_max(64 << 10);
    let (client, server, _proxy) = session_over(Some(tls), Cut::Never, 0, long_grace(), tap, echo);
    converse(&client, &answers, 4_000, 4);
    assert_eq!(received.load(SeqCst), 4_000);
    let resumes = client.stats().resumes;
    assert!((4..100).contains(&resumes), "{resumes} resumes");
    client.close();
    assert!(matches!(server.finish(), CloseReason::Peer));
}
