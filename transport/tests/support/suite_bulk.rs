//! What the suite asks of the bulk plane.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_docs,
    unreachable_pub
)]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;

use farcall_transport::{BulkError, CloseReason, Endpoint, Limits, Tuning};

use super::suite::{fill, send};
use super::{Backend, PATIENCE, Tap, serve, wait_for};

pub fn bulk_both_ways_at_once<B: Backend>() {
    const BYTES: usize = 3 << 20;
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        Tap::ignore(),
        Tap::ignore(),
    );
    let running = serve(server.clone());
    let payload = |n: u64| {
        let mut bytes = vec![0; BYTES];
        fill(&mut bytes, n);
        bytes
    };
    thread::scope(|scope| {
        for (from, to, base) in [(&client, &server, 100), (&server, &client, 200)] {
            scope.spawn(move || {
                for n in 0..4 {
                    let bytes = payload(base + n);
                    let (a, b) = bytes.split_at(12_345);
                    from.bulk_send(base + n, &[IoSlice::new(a), IoSlice::new(b)])
                        .unwrap();
                }
            });
            scope.spawn(move || {
                for n in 0..4 {
                    assert_eq!(bulk_recv(to, base + n, BYTES).unwrap(), payload(base + n));
                }
            });
        }
    });
    client.close();
    running.join().unwrap();
}

fn bulk_recv(endpoint: &Endpoint, id: u64, room: usize) -> Result<Vec<u8>, BulkError> {
    let mut bytes = vec![MaybeUninit::new(0u8); room];
    let got = endpoint.bulk_recv(id, &mut bytes)?;
    // SAFETY: initialised above with zeros already.
    Ok(bytes[..got]
        .iter()
        .map(|byte| unsafe { byte.assume_init() })
        .collect())
}

pub fn bulk_sizes_and_orders<B: Backend>() {
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        Tap::ignore(),
        Tap::ignore(),
    );
    let running = serve(server.clone());
    let transfers = [
        (0u64, 0usize),
        (1, 1),
        (2, 31),
        (3, 32),
        (4, 33),
        (5, 65_537),
        (6, 1_000_000),
    ];
    thread::scope(|scope| {
        // Posted in another order than they are sent in, from threads of their own.
        for (id, size) in transfers.into_iter().rev() {
            let server = &server;
            scope.spawn(move || {
                let mut expected = vec![0; size];
                fill(&mut expected, id);
                assert_eq!(bulk_recv(server, id, size + 10).unwrap(), expected);
            });
        }
        for (id, size) in transfers {
            let mut bytes = vec![0; size];
            fill(&mut bytes, id);
            client.bulk_send(id, &[IoSlice::new(&bytes)]).unwrap();
        }
    });
    assert_eq!(client.stats().bulk_bytes_out, server.stats().bulk_bytes_in);
    client.close();
    running.join().unwrap();
}

/// A server that sends before the client's bulk connection is there waits for it, and does not keep it away.
pub fn bulk_from_a_handler_that_is_early<B: Backend>() {
    let (sleeps, sent) = (
        Arc::new(AtomicU64::new(u64::MAX)),
        Arc::new(AtomicBool::new(false)),
    );
    let (asleep, done) = (Arc::clone(&sleeps), Arc::clone(&sent));
    let sender = Tap::new(move |endpoint, _| {
        asleep.store(endpoint.stats().sleeps, SeqCst);
        endpoint.bulk_send(7, &[IoSlice::new(&[5; 100])]).unwrap();
        done.store(true, SeqCst);
    });
    let (client, server) = B::pair(Limits::default(), Tuning::default(), Tap::ignore(), sender);
    let running = serve(server.clone());
    client.append_now(8, |out| out.fill(1)).unwrap();
    wait_for(|| sent.load(SeqCst) || server.stats().sleeps > sleeps.load(SeqCst));
    assert_eq!(bulk_recv(&client, 7, 100).unwrap(), [5; 100]);
    client.close();
    running.join().unwrap();
}

pub fn bulk_waits_end_with_the_session<B: Backend>() {
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        Tap::ignore(),
        Tap::ignore(),
    );
    let running = serve(server);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| bulk_recv(&client, 1, 100));
        wait_for(|| client.bulk_cancel(99) || client.stats().sleeps > 0);
        client.close();
        assert!(matches!(
            waiter.join().unwrap(),
            Err(BulkError::Closed(CloseReason::Local))
        ));
    });
    running.join().unwrap();
}

/// The receiving side takes its time with the bulk plane as well: calls go on meanwhile.
pub fn a_bulk_transfer_that_waits_holds_up_no_call<B: Backend>() {
    const BYTES: usize = 8 << 20;
    let near = Tap::ignore();
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        near.clone(),
        Tap::echo(),
    );
    let running = serve(server.clone());
    let bytes = vec![7; BYTES];
    thread::scope(|scope| {
        let sending = scope.spawn(|| client.bulk_send(1, &[IoSlice::new(&bytes)]));
        for n in 1..=100 {
            send(&client, 64, n);
            let echoed = || near.bytes() == n * 64;
            client.wait_until(&echoed, Some(PATIENCE)).unwrap();
        }
        assert!(!sending.is_finished(), "nobody has posted a destination");
        assert_eq!(bulk_recv(&server, 1, BYTES).unwrap(), bytes);
        sending.join().unwrap().unwrap();
    });
    client.close();
    running.join().unwrap();
}
