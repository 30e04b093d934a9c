//! The suite over tcp.
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::atomic::Ordering::SeqCst;
use std::time::Instant;

use farcall_transport::{Limits, Tuning};
use support::{Backend, PATIENCE, serve};

suite!(support::Tcp);

/// Records of a program that waits for none of them gather though nothing is in flight, and all the same arrive
/// without a further call; the next record after a wait leaves at once.
#[test]
fn a_program_that_runs_ahead_does_not_send_each_record() {
    let tap = support::Tap::ignore();
    let (client, server) = support::Tcp::pair(
        Limits::default(),
        Tuning::default(),
        support::Tap::ignore(),
        tap.clone(),
    );
    let running = serve(server);
    let deadline = Instant::now() + PATIENCE;
    let mut records = 0;
    // A busy machine may take longer between two records than a program that runs ahead does.
    while client.stats().flush_timer == 0 {
        assert!(Instant::now() < deadline, "{:?}", client.stats());
        let end = client.append(64, |_| ()).unwrap();
        records += 1;
        while client.acked() < end {
            client.poll().unwrap();
        }
    }
    let before = client.stats();
    client.flush().unwrap();
    client.append(64, |_| ()).unwrap();
    assert_eq!(client.stats().flush_idle, before.flush_idle + 1);
    client.close();
    running.join().unwrap();
    assert_eq!(tap.bytes.load(SeqCst), (records + 1) * 64);
}
