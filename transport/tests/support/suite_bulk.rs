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

/// Memory that one side lends to its session until it is dropped.
pub struct LentMemory<'a> {
    endpoint: &'a Endpoint,
    bytes: Vec<u8>,
}

impl<'a> LentMemory<'a> {
    pub fn new(endpoint: &'a Endpoint, bytes: Vec<u8>) -> Self {
        let mut lent = Self { endpoint, bytes };
        let (at, len) = (lent.bytes.as_mut_ptr(), lent.bytes.len());
        // SAFETY: it stays until `drop`, which takes it back, and is only looked at when no transfer is under
        // way; the peer is of this test.
        unsafe { endpoint.bulk_lend(at, len) };
        lent
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Sends the part from `from` to `to`.
    pub fn send(&self, id: u64, from: usize, to: usize) {
        let part = [IoSlice::new(&self.bytes[from..to])];
        self.endpoint.bulk_send(id, &part).unwrap();
    }

    /// Says that a transfer goes to the memory from `from` on.
    pub fn post(&mut self, id: u64, from: usize) -> Arc<AtomicU64> {
        let part = &mut self.bytes[from..];
        let got = Arc::new(AtomicU64::new(u64::MAX));
        let told = Arc::clone(&got);
        let done = Box::new(move |result: Result<usize, BulkError>| {
            told.store(result.unwrap() as u64, SeqCst);
        });
        // SAFETY: the memory stays, and nobody looks, until the transfer is over: `await_transfer`.
        unsafe {
            self.endpoint
                .bulk_post(id, part.as_mut_ptr(), part.len(), done)
        }
        .unwrap();
        got
    }

    /// Waits for a posted transfer. Returns its length.
    pub fn await_transfer(&self, got: &AtomicU64) -> usize {
        let came = || got.load(SeqCst) != u64::MAX;
        self.endpoint.wait_until(&came, Some(PATIENCE)).unwrap();
        usize::try_from(got.load(SeqCst)).unwrap()
    }

    /// Receives into the memory from `from` on. Returns how much.
    pub fn receive(&mut self, id: u64, from: usize) -> usize {
        let got = self.post(id, from);
        self.await_transfer(&got)
    }
}

impl LentMemory<'_> {
    /// Is lent no more.
    pub fn take_back(mut self) -> Vec<u8> {
        assert!(self.endpoint.bulk_reclaim(self.bytes.as_ptr()));
        std::mem::take(&mut self.bytes)
    }
}

impl Drop for LentMemory<'_> {
    fn drop(&mut self) {
        self.endpoint.bulk_reclaim(self.bytes.as_ptr());
    }
}

/// Sizes around chunks and pages, from and to places that no page begins at; between memory that both sides
/// lend, and that only the client lends. Transfers through the stream go between them.
pub fn bulk_from_and_to_lent_memory<B: Backend>() {
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        Tap::ignore(),
        Tap::ignore(),
    );
    let running = serve(server.clone());
    let mut direct = 0;
    for (round, server_lends) in [(0, false), (1, true)] {
        for (n, size) in [131_072usize, 200_001, 262_144, 1 << 20, (3 << 20) + 17]
            .into_iter()
            .enumerate()
        {
            let id = 100 * round + 10 * n as u64;
            let room = size + 5;
            let mut source = vec![0; room];
            fill(&mut source, id);
            let expected = source[5..].to_vec();
            let there = LentMemory::new(&client, source);
            let mut back = LentMemory::new(&client, vec![0; room]);
            thread::scope(|scope| {
                let (server, expected) = (&server, &expected);
                scope.spawn(move || {
                    let got = if server_lends {
                        let mut dest = LentMemory::new(server, vec![0; room]);
                        assert_eq!(dest.receive(id, 3), expected.len());
                        dest.bytes()[3..3 + size].to_vec()
                    } else {
                        bulk_recv(server, id, room).unwrap()
                    };
                    assert_eq!(got, *expected);
                    assert_eq!(bulk_recv(server, id + 1, 10).unwrap(), [7; 10]);
                    if server_lends {
                        LentMemory::new(server, got).send(id + 2, 0, size);
                    } else {
                        let (a, b) = got.split_at(size / 3);
                        let parts = [IoSlice::new(a), IoSlice::new(b)];
                        server.bulk_send(id + 2, &parts).unwrap();
                    }
                });
                there.send(id, 5, room);
                // The server sends it when it has the next, so it knows by then where to.
                let got = back.post(id + 2, 1);
                client.bulk_send(id + 1, &[IoSlice::new(&[7; 10])]).unwrap();
                assert_eq!(back.await_transfer(&got), size);
            });
            assert_eq!(back.bytes()[1..=size], expected[..]);
            assert_eq!(
                (back.bytes()[0], &back.bytes()[size + 1..]),
                (0, &[0; 4][..])
            );
            direct += 2 * size as u64;
        }
    }
    let expected = if B::DIRECT { direct } else { 0 };
    for side in [&client, &server] {
        assert_eq!(side.stats().bulk_bytes_direct, expected);
    }
    client.close();
    running.join().unwrap();
}

/// The same addresses with other memory behind them: what was registered before is not what is sent.
pub fn lent_memory_that_is_used_anew<B: Backend>() {
    const BYTES: usize = 1 << 20;
    let (client, server) = B::pair(
        Limits::default(),
        Tuning::default(),
        Tap::ignore(),
        Tap::ignore(),
    );
    let running = serve(server.clone());
    let mut bytes = vec![0; BYTES];
    for id in 0..4 {
        fill(&mut bytes, id);
        let expected = bytes.clone();
        let lent = LentMemory::new(&client, bytes);
        thread::scope(|scope| {
            let receiving = scope.spawn(|| bulk_recv(&server, id, BYTES).unwrap());
            lent.send(id, 0, BYTES);
            assert!(receiving.join().unwrap() == expected);
        });
        bytes = lent.take_back();
        let at = bytes.as_mut_ptr();
        let first = at.wrapping_add(at.align_offset(4096));
        // SAFETY: whole pages of a buffer of ours; they read as zeros afterwards.
        let result = unsafe { libc::madvise(first.cast(), BYTES - 4096, libc::MADV_DONTNEED) };
        assert_eq!((result, bytes[BYTES / 2]), (0, 0), "other pages are there");
    }
    client.close();
    running.join().unwrap();
}
