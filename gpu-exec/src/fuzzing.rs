//! A session's records, handed to a `null` device without a connection: for fuzz targets and the replay of their
//! corpus. Only with the feature `fuzzing`; no part of the interface.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::record::{Head, Record, to_vec};
use farcall_marshal::wire::CuDevicePrimaryCtxRetain;

use crate::cache::Cache;
use crate::device::Device as _;
use crate::device::cpu::memory::Memory;
use crate::device::cpu::{CpuDevice, CpuParts};
use crate::executor::outbox::{Discard, Outbox};
use crate::executor::peers::Peers;
use crate::executor::session::take;
use crate::ledger::{Account, Allowance, Ledger, Slot};
use crate::share::board::{Board, Member};
use crate::share::gate::Gate;

/// What the session may allocate.
const LIMIT_BYTES: u64 = 16 << 20;
const RANGE_BYTES: u64 = 256 << 20;

/// Plays frames to a device: any bytes are taken, refused or end the session.
///
/// # Panics
/// If the system has no memory for a session.
pub fn session(frames: &[u8]) {
    let (ledger, board) = (
        Ledger::create().expect("memory"),
        Board::create().expect("memory"),
    );
    let ledger = Arc::new(ledger);
    let allowance = Allowance {
        device: 0,
        total_bytes: LIMIT_BYTES,
        limit_bytes: LIMIT_BYTES,
    };
    let host = Allowance::host(LIMIT_BYTES, LIMIT_BYTES);
    let account = Account::new(ledger.clone(), Slot(0), vec![allowance], host);
    let (memory, turn) = Memory::open(0, 0, RANGE_BYTES, account).expect("memory");
    let mut device = CpuDevice::new(CpuParts {
        memory,
        turn,
        outbox: Arc::new(Discard),
        cache: Cache::new(None),
        runs_kernels: false,
        workers: 1,
        device_count: 1,
        gate: Gate::new(Member::new(Arc::new(board), Slot(0)), vec![0]),
    });
    let retain = CuDevicePrimaryCtxRetain {
        device: 0,
        flags: 0,
    };
    let first = to_vec(
        Head::request(CuDevicePrimaryCtxRetain::NUMBER, 1, 0),
        &retain,
    );
    let mut taken = 0;
    let (peers, outbox): (Peers, Arc<dyn Outbox>) = (Peers::new(None, true), Arc::new(Discard));
    let mut aside = |head: &Head, body: &[u8]| peers.take(head, body, &outbox);
    let _ = take(&mut device, &mut aside, &first, &mut taken);
    // Refused bytes end a real session; here the device must bear what comes after them, too.
    let _ = take(&mut device, &mut aside, frames, &mut taken);
    assert!(ledger.used(0) <= LIMIT_BYTES, "allocated more than it may");
    device.close();
}
