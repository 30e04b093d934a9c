//! The suite that every backend runs.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    missing_docs,
    unreachable_pub
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use farcall_transport::{CloseReason, Endpoint, Limits, SendError, Tuning, WaitError};
use parking_lot::Mutex;

use super::{Backend, PATIENCE, Tap, number, serve, wait_for};

/// Small rings, so that every limit is met.
pub fn tight() -> Limits {
    Limits {
        frame_bytes_max: 1024,
        ring_bytes: 64 << 10,
        window_bytes: 2048,
    }
}

/// A record whose bytes follow from its number.
pub fn fill(record: &mut [u8], n: u64) {
    for (byte, value) in record.iter_mut().zip(pattern(n)) {
        *byte = value;
    }
    if let Some(head) = record.get_mut(..8) {
        head.copy_from_slice(&n.to_le_bytes());
    }
}

fn pattern(n: u64) -> impl Iterator<Item = u8> {
    (0u64..).map(move |at| {
        n.wrapping_mul(31)
            .wrapping_add(at.wrapping_mul(7))
            .to_le_bytes()[0]
    })
}

pub fn send(endpoint: &Endpoint, len: usize, n: u64) {
    endpoint.append(len, |record| fill(record, n)).unwrap();
}

/// A handler that checks records of a fixed length in order.
pub fn in_order(len: usize, next: Arc<AtomicU64>) -> Arc<Tap> {
    Tap::new(move |_, frame| {
        assert_eq!(frame.len() % len, 0);
        for record in frame.chunks(len) {
            let n = next.fetch_add(1, SeqCst);
            let mut expected = vec![0; len];
            fill(&mut expected, n);
            assert_eq!(record, expected, "record {n}");
        }
    })
}

pub fn order_and_exactly_once<B: Backend>() {
    const RECORDS: u64 = 20_000;
    for limits in [Limits::default(), tight()] {
        let next = Arc::new(AtomicU64::new(0));
        let tap = in_order(64, Arc::clone(&next));
        let (client, server) = B::pair(limits, Tuning::default(), Tap::ignore(), tap);
        let server = serve(server);
        for n in 0..RECORDS {
            send(&client, 64, n);
        }
        client.close();
        assert!(matches!(server.join().unwrap(), CloseReason::Peer));
        assert_eq!(next.load(SeqCst), RECORDS);
    }
}

pub fn threads_share_one_sequence<B: Backend>() {
    const EACH: u64 = 4_000;
    let seen = Arc::new(Mutex::new([0u64; 4]));
    let tap = {
        let seen = Arc::clone(&seen);
        Tap::new(move |_, frame| {
            for record in frame.chunks(16) {
                let thread = usize::try_from(number(record)).unwrap();
                let mut seen = seen.lock();
                assert_eq!(number(&record[8..]), seen[thread]);
                seen[thread] += 1;
            }
        })
    };
    let (client, server) = B::pair(tight(), Tuning::default(), Tap::ignore(), tap);
    let server = serve(server);
    thread::scope(|scope| {
        for thread in 0..4u64 {
            let client = &client;
            scope.spawn(move || {
                for n in 0..EACH {
                    let fill = |record: &mut [u8]| {
                        record[..8].copy_from_slice(&thread.to_le_bytes());
                        record[8..].copy_from_slice(&n.to_le_bytes());
                    };
                    client.append(16, fill).unwrap();
                }
            });
        }
    });
    client.close();
    server.join().unwrap();
    assert_eq!(*seen.lock(), [EACH; 4]);
}

pub fn every_size<B: Backend>() {
    let limits = Limits::default();
    let max = limits.frame_bytes_max as usize;
    let got = Arc::new(Mutex::new(Vec::new()));
    let tap = {
        let got = Arc::clone(&got);
        Tap::new(move |_, frame| *got.lock() = frame.to_vec())
    };
    let echo = Tap::echo();
    let (client, server) = B::pair(limits, Tuning::default(), tap.clone(), echo);
    let server = serve(server);
    let sizes = [
        0,
        1,
        7,
        8,
        9,
        63,
        64,
        65,
        4095,
        4096,
        4097,
        65_535,
        65_536,
        max - 1,
        max,
    ];
    for (n, size) in (0u64..).zip(sizes) {
        let before = tap.frames.load(SeqCst);
        send(&client, size, n);
        client
            .wait_until(&|| tap.frames.load(SeqCst) > before, Some(PATIENCE))
            .unwrap();
        let mut expected = vec![0; size];
        fill(&mut expected, n);
        expected.resize(size.next_multiple_of(8), 0);
        assert_eq!(*got.lock(), expected, "size {size}");
    }
    let too_long = client.append(max + 1, |_| ());
    assert!(
        matches!(too_long, Err(SendError::TooLong { .. })),
        "{too_long:?}"
    );
    client.close();
    server.join().unwrap();
}

pub fn shorter_than_claimed<B: Backend>() {
    let got = Arc::new(Mutex::new(Vec::new()));
    let tap = {
        let got = Arc::clone(&got);
        Tap::new(move |_, frame| got.lock().extend_from_slice(frame))
    };
    let (client, server) = B::pair(tight(), Tuning::default(), Tap::ignore(), tap);
    let server = serve(server);
    let fill = |record: &mut [u8]| {
        record.fill(0xaa);
        3
    };
    client.append_with(100, fill).unwrap();
    client.close();
    server.join().unwrap();
    assert_eq!(*got.lock(), [0xaa, 0xaa, 0xaa, 0, 0, 0, 0, 0]);
}

pub fn refused_while_it_is_written<B: Backend>() {
    #[derive(Debug)]
    enum Why {
        Refused(u32),
        Send(SendError),
    }
    impl From<SendError> for Why {
        fn from(error: SendError) -> Self {
            Self::Send(error)
        }
    }
    let got = Arc::new(Mutex::new(Vec::new()));
    let tap = {
        let got = Arc::clone(&got);
        Tap::new(move |_, frame| got.lock().extend_from_slice(frame))
    };
    let (client, server) = B::pair(tight(), Tuning::default(), Tap::ignore(), tap);
    let server = serve(server);
    let mut expected = Vec::new();
    // First in a frame, inside one, and where the open one has no room for it.
    for n in 0..100_u32 {
        let len = 8 * (1 + n as usize % 40);
        let refused = client.append_unless(len, |record| {
            record.fill(0xff);
            Err(Why::Refused(n))
        });
        assert!(
            matches!(refused, Err(Why::Refused(of)) if of == n),
            "{refused:?}"
        );
        let sent = client.append_unless(8, |record| {
            record.copy_from_slice(&u64::from(n).to_le_bytes());
            Ok::<_, Why>(())
        });
        assert!(sent.is_ok(), "{sent:?}");
        expected.extend(u64::from(n).to_le_bytes());
    }
    client.close();
    server.join().unwrap();
    assert_eq!(*got.lock(), expected);
    let closed = client.append_unless(8, |_| Ok::<_, Why>(()));
    assert!(
        matches!(closed, Err(Why::Send(SendError::Closed(_)))),
        "{closed:?}"
    );
}

/// The server's handler stops: the client is stopped by credits, then goes on.
pub fn credits_exhausted<B: Backend>() {
    let gate = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicU64::new(0));
    let order = in_order(512, Arc::clone(&next));
    let tap = {
        let gate = Arc::clone(&gate);
        Tap::new(move |endpoint, frame| {
            wait_for(|| gate.load(SeqCst));
            farcall_transport::Handler::on_frame(&*order, endpoint, frame);
        })
    };
    let (client, server) = B::pair(tight(), Tuning::default(), Tap::ignore(), tap);
    let server = serve(server);
    thread::scope(|scope| {
        scope.spawn(|| (0..200).for_each(|n| send(&client, 512, n)));
        wait_for(|| client.stats().blocked > 0);
        // A window of 2048 holds at most 4 records of 512.
        assert!(client.stats().frames_out <= 4);
        gate.store(true, SeqCst);
    });
    client.close();
    server.join().unwrap();
    assert_eq!(next.load(SeqCst), 200);
}

/// Both handlers answer into full rings while both programs flood.
pub fn both_sides_flood<B: Backend>() {
    const RECORDS: u64 = 5_000;
    let (at_client, at_server) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let near = in_order(256, Arc::clone(&at_client));
    let far = in_order(256, Arc::clone(&at_server));
    let (client, server) = B::pair(tight(), Tuning::default(), near, far);
    let running = serve(server.clone());
    thread::scope(|scope| {
        scope.spawn(|| (0..RECORDS).for_each(|n| send(&client, 256, n)));
        scope.spawn(|| (0..RECORDS).for_each(|n| send(&server, 256, n)));
    });
    server.flush().unwrap();
    let all = || at_client.load(SeqCst) == RECORDS && at_server.load(SeqCst) == RECORDS;
    client.flush().unwrap();
    // Not `wait_until`: half of it is the other side's count, of which no frame tells.
    wait_for(all);
    client.close();
    running.join().unwrap();
}

/// The server answers every record from its handler with more than came, while the client
/// sends without waiting: the handler runs out of room and must still receive.
pub fn handler_out_of_room<B: Backend>() {
    const RECORDS: u64 = 3_000;
    let far = Tap::new(|endpoint, frame| {
        for record in frame.chunks(64) {
            let n = number(record);
            for _ in 0..2 {
                endpoint.append(512, |out| fill(out, n)).unwrap();
            }
        }
    });
    let near = Tap::ignore();
    let (client, server) = B::pair(tight(), Tuning::default(), near.clone(), far);
    let running = serve(server);
    (0..RECORDS).for_each(|n| send(&client, 64, n));
    let all = || near.bytes() == RECORDS * 1024;
    client.wait_until(&all, Some(PATIENCE)).unwrap();
    client.close();
    running.join().unwrap();
}

pub fn slow_reader<B: Backend>() {
    let next = Arc::new(AtomicU64::new(0));
    let order = in_order(64, Arc::clone(&next));
    let tap = Tap::new(move |endpoint, frame| {
        for _ in 0..50 {
            thread::yield_now();
        }
        farcall_transport::Handler::on_frame(&*order, endpoint, frame);
    });
    let (client, server) = B::pair(tight(), Tuning::default(), Tap::ignore(), tap);
    let server = serve(server);
    (0..3_000).for_each(|n| send(&client, 64, n));
    client.close();
    server.join().unwrap();
    assert_eq!(next.load(SeqCst), 3_000);
}

/// Records that gather while something is in flight leave without any further call.
pub fn trailing_edge<B: Backend>() {
    let tap = Tap::ignore();
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        Tap::ignore(),
        tap.clone(),
    );
    let server = serve(server);
    for round in 1..200u64 {
        (0..5).for_each(|n| send(&client, 8, n));
        wait_for(|| tap.bytes() == round * 40);
    }
    client.close();
    server.join().unwrap();
}

/// Frames that the server pushes arrive although no client thread waits.
pub fn pushed_frames<B: Backend>() {
    let tap = Tap::ignore();
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        tap.clone(),
        Tap::ignore(),
    );
    let running = serve(server.clone());
    for round in 1..20u64 {
        send(&server, 8, round);
        server.flush().unwrap();
        wait_for(|| tap.bytes() == round * 8);
    }
    client.close();
    running.join().unwrap();
}

/// Many threads wait for replies of their own; one receives for all.
pub fn many_waiters<B: Backend>() {
    let done: Arc<Vec<AtomicU64>> = Arc::new((0..8).map(|_| AtomicU64::new(0)).collect());
    let tap = {
        let done = Arc::clone(&done);
        Tap::new(move |_, frame| {
            for record in frame.chunks(16) {
                let thread = usize::try_from(number(record)).unwrap();
                done[thread].store(number(&record[8..]), SeqCst);
            }
        })
    };
    let (client, server) = B::pair(Limits::default(), Tuning::default(), tap, Tap::echo());
    let server = serve(server);
    thread::scope(|scope| {
        for thread in 0..8u64 {
            let (client, done) = (&client, &done[usize::try_from(thread).unwrap()]);
            scope.spawn(move || {
                for n in 1..=300u64 {
                    let fill = |record: &mut [u8]| {
                        record[..8].copy_from_slice(&thread.to_le_bytes());
                        record[8..].copy_from_slice(&n.to_le_bytes());
                    };
                    client.append(16, fill).unwrap();
                    let mine = || done.load(SeqCst) == n;
                    client.wait_until(&mine, Some(PATIENCE)).unwrap();
                }
            });
        }
    });
    client.close();
    server.join().unwrap();
}

pub fn waits_end<B: Backend>() {
    let tap = Tap::ignore();
    let (client, server) = B::pair(Limits::default(), Tuning::default(), tap, Tap::ignore());
    let server_handle = server.clone();
    let running = serve(server);
    let short = Some(Duration::from_millis(2));
    assert!(matches!(
        client.wait_until(&|| false, short),
        Err(WaitError::TimedOut)
    ));
    let flag = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiter = scope.spawn(|| client.wait_until(&|| flag.load(SeqCst), Some(PATIENCE)));
        flag.store(true, SeqCst);
        client.notify();
        waiter.join().unwrap().unwrap();
        let waiter = scope.spawn(|| client.wait_until(&|| false, Some(PATIENCE)));
        server_handle.close();
        let ended = waiter.join().unwrap();
        assert!(
            matches!(ended, Err(WaitError::Closed(CloseReason::Peer))),
            "{ended:?}"
        );
    });
    assert!(matches!(running.join().unwrap(), CloseReason::Local));
    assert!(matches!(
        client.append(8, |_| ()),
        Err(SendError::Closed(CloseReason::Peer))
    ));
}

pub fn close_delivers_what_is_pending<B: Backend>() {
    for _ in 0..20 {
        let tap = Tap::ignore();
        let near = Tap::ignore();
        let (client, server) = B::pair(
            Limits::default(),
            Tuning::default(),
            near.clone(),
            tap.clone(),
        );
        let server = serve(server);
        (0..100).for_each(|n| send(&client, 64, n));
        drop(client);
        assert!(matches!(server.join().unwrap(), CloseReason::Peer));
        assert_eq!(tap.bytes(), 6400);
        assert!(matches!(tap.wait_closed(), CloseReason::Peer));
        assert!(matches!(near.wait_closed(), CloseReason::Local));
    }
}

/// Opens and closes sessions; the process holds as many descriptors and about as much memory
/// afterwards.
pub fn sessions_leak_nothing<B: Backend>() {
    let cycle = || {
        let tap = Tap::ignore();
        let (client, server) = B::pair(
            Limits::default(),
            Tuning::default(),
            tap.clone(),
            Tap::echo(),
        );
        let running = serve(server);
        send(&client, 64, 1);
        client
            .wait_until(&|| tap.bytes() == 64, Some(PATIENCE))
            .unwrap();
        drop(client);
        running.join().unwrap();
    };
    (0..(B::SESSIONS / 10).min(200)).for_each(|_| cycle());
    let settled = || {
        let now = super::resources();
        move || super::resources().0 <= now.0
    };
    wait_for(settled());
    let before = super::resources();
    (0..B::SESSIONS).for_each(|_| cycle());
    wait_for(|| super::resources().0 <= before.0);
    let after = super::resources();
    // 400 bytes a session would show.
    assert!(
        after.1 < before.1 + (4 << 20),
        "memory {before:?} -> {after:?}"
    );
    assert!(after.2 <= before.2 + 8, "maps {before:?} -> {after:?}");
}

/// Both sides say goodbye at the same time: neither hangs, and neither takes it for a loss.
pub fn both_sides_close_at_once<B: Backend>() {
    for _ in 0..(B::SESSIONS / 4).min(50) {
        let (near, far) = (Tap::ignore(), Tap::ignore());
        let (client, server) = B::pair(tight(), Tuning::default(), near.clone(), far.clone());
        let running = serve(server.clone());
        (0..20).for_each(|n| send(&client, 64, n));
        (0..20).for_each(|n| send(&server, 64, n));
        thread::scope(|scope| {
            scope.spawn(|| client.close());
            scope.spawn(|| server.close());
        });
        running.join().unwrap();
        for tap in [near, far] {
            let why = tap.wait_closed();
            assert!(
                matches!(why, CloseReason::Local | CloseReason::Peer),
                "{why:?}"
            );
        }
    }
}

/// One side is closing while the other still sends into full rings: what the first had sent
/// arrives, the second's call ends with the reason.
pub fn closing_under_a_flood<B: Backend>() {
    let far = Tap::ignore();
    let (client, server) = B::pair(tight(), Tuning::default(), Tap::ignore(), far.clone());
    let running = serve(server.clone());
    thread::scope(|scope| {
        let flood = scope.spawn(|| {
            loop {
                if let Err(error) = server.append(256, |_| ()) {
                    return error;
                }
            }
        });
        (0..500).for_each(|n| send(&client, 64, n));
        client.close();
        let error = flood.join().unwrap();
        assert!(
            matches!(error, SendError::Closed(CloseReason::Peer)),
            "{error:?}"
        );
    });
    assert!(matches!(running.join().unwrap(), CloseReason::Peer));
    assert_eq!(far.bytes(), 500 * 64);
}

/// Instantiates the suite for a backend.
#[macro_export]
macro_rules! suite {
    ($backend:ty) => {
        $crate::suite!(@ suite $backend: order_and_exactly_once, threads_share_one_sequence,
            every_size, shorter_than_claimed, refused_while_it_is_written, credits_exhausted,
            both_sides_flood, handler_out_of_room, slow_reader, trailing_edge, pushed_frames, many_waiters,
            waits_end, close_delivers_what_is_pending, sessions_leak_nothing,
            both_sides_close_at_once, closing_under_a_flood);
        $crate::suite!(@ suite_bulk $backend: bulk_both_ways_at_once, bulk_sizes_and_orders,
            bulk_from_a_handler_that_is_early, bulk_waits_end_with_the_session,
            a_bulk_transfer_that_waits_holds_up_no_call,
            bulk_from_and_to_lent_memory, lent_memory_that_is_used_anew);
    };
    (@ $module:ident $backend:ty: $($test:ident),*) => {
        $(#[test]
        fn $test() {
            support::$module::$test::<$backend>();
        })*
    };
}
