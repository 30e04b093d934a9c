//! Blocks, pages and limits.
#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use farcall_marshal::status::CuStatus;
use farcall_ptx::MemoryMap;

use super::{Block, BlockKind, Memory, Turn};
use crate::ledger::{Ledger, tests::account};

pub(crate) const MIB: u64 = 1 << 20;

pub(crate) fn memory(limit_bytes: u64) -> (Arc<Memory>, Turn) {
    let ledger = Arc::new(Ledger::create().unwrap());
    Memory::open(
        0,
        0,
        256 * MIB,
        account(&ledger, 0, limit_bytes, limit_bytes),
    )
    .unwrap()
}

fn block(bytes: u64) -> Block {
    Block {
        bytes,
        kind: BlockKind::Device,
        context: 1,
        device: 0,
        readable: true,
        writable: true,
    }
}

#[test]
fn neighbours_share_pages_and_stale_bytes_never_show() {
    let (memory, mut turn) = memory(64 * MIB);
    let base = memory.device_area().base;
    for i in 0..4 {
        memory.insert(base + i * 512, block(512)).unwrap();
        memory
            .fill(&mut turn, base + i * 512, 512, 0xff, 1)
            .unwrap();
    }
    memory.remove(&mut turn, base + 512, |_| true).unwrap();
    memory.insert(base + 512, block(512)).unwrap();
    memory
        .with_bytes(&mut turn, base + 512, 512, |bytes| {
            assert!(bytes.iter().all(|b| *b == 0))
        })
        .unwrap();
    memory
        .with_bytes(&mut turn, base, 512, |bytes| {
            assert!(bytes.iter().all(|b| *b == 0xff))
        })
        .unwrap();
    memory
        .with_bytes(&mut turn, base + 1024, 512, |bytes| {
            assert!(bytes.iter().all(|b| *b == 0xff))
        })
        .unwrap();
}

#[test]
fn large_blocks_read_as_zeros_at_both_edges() {
    let (memory, mut turn) = memory(64 * MIB);
    let base = memory.device_area().base;
    memory.insert(base, block(512)).unwrap();
    memory.insert(base + 512, block(4 * MIB)).unwrap();
    memory.insert(base + 512 + 4 * MIB, block(512)).unwrap();
    memory
        .fill(&mut turn, base + 512, MIB, 0x1234_5678, 4)
        .unwrap();
    memory.remove(&mut turn, base + 512, |_| true).unwrap();
    memory.insert(base + 512, block(4 * MIB)).unwrap();
    memory
        .with_bytes(&mut turn, base + 512, 4 * MIB, |bytes| {
            assert!(bytes.iter().all(|b| *b == 0))
        })
        .unwrap();
}

#[test]
fn overlaps_and_strays_are_refused() {
    let (memory, mut turn) = memory(64 * MIB);
    let area = memory.device_area();
    memory.insert(area.base + 1024, block(1024)).unwrap();
    for (addr, bytes) in [
        (512, 1024),
        (1024, 512),
        (1536, 1024),
        (0, 8192),
        (0, 0),
        (100, 512),
        (4096, 100),
    ] {
        assert_eq!(
            memory.insert(area.base + addr, block(bytes)),
            Err(CuStatus::INVALID_VALUE),
            "{addr} {bytes}"
        );
    }
    assert_eq!(
        memory.insert(area.base - 512, block(512)),
        Err(CuStatus::INVALID_VALUE)
    );
    assert_eq!(
        memory.insert(area.base + area.bytes, block(512)),
        Err(CuStatus::INVALID_VALUE)
    );
    assert_eq!(
        memory.insert(u64::MAX - 511, block(512)),
        Err(CuStatus::INVALID_VALUE)
    );
    assert_eq!(
        memory.remove(&mut turn, area.base + 1536, |_| true),
        Err(CuStatus::INVALID_VALUE)
    );
    assert_eq!(
        memory.write(&mut turn, area.base + 2040, &[0; 16]),
        Err(CuStatus::INVALID_VALUE)
    );
    assert_eq!(
        memory.write(&mut turn, area.base, &[0; 16]),
        Err(CuStatus::INVALID_VALUE)
    );
}

#[test]
fn the_limit_holds_and_everything_comes_back() {
    let (memory, mut turn) = memory(MIB);
    let base = memory.device_area().base;
    memory.insert(base, block(MIB)).unwrap();
    assert_eq!(
        memory.insert(base + MIB, block(512)),
        Err(CuStatus::OUT_OF_MEMORY)
    );
    memory.remove_all(&mut turn, |block| block.context == 1);
    assert_eq!(memory.account().used(0), 0);
    assert!(memory.find(base).is_none());
    memory.insert(base + MIB, block(MIB)).unwrap();
}

#[test]
fn pinned_memory_has_a_limit_of_its_own() {
    let (memory, _) = memory(MIB);
    let base = memory.host_area().base;
    let host = |bytes| Block {
        kind: BlockKind::Host,
        ..block(bytes)
    };
    memory.insert(base, host(MIB)).unwrap();
    assert_eq!(
        memory.insert(base + MIB, host(512)),
        Err(CuStatus::OUT_OF_MEMORY)
    );
    assert_eq!(memory.account().used(0), 0);
    assert_eq!(
        memory.insert(memory.device_area().base, host(512)),
        Err(CuStatus::INVALID_VALUE)
    );
}

#[test]
fn globals_find_gaps() {
    let (memory, mut turn) = memory(MIB);
    let global = |bytes| Block {
        kind: BlockKind::Global,
        ..block(bytes)
    };
    let first = memory.place(global(100), 4).unwrap();
    let second = memory.place(global(5000), 4096).unwrap();
    assert!(second.is_multiple_of(4096) && second >= first + 512);
    memory.remove(&mut turn, first, |_| true).unwrap();
    assert_eq!(memory.place(global(200), 4).unwrap(), first);
    assert_eq!(
        memory.place(global(2 * MIB), 4),
        Err(CuStatus::OUT_OF_MEMORY)
    );
}

#[test]
fn a_proposal_is_taken_if_it_is_free() {
    let ledger = Arc::new(Ledger::create().unwrap());
    let (first, _) = memory(MIB);
    let base = first.device_area().base;
    let other = Memory::open(base, 256 * MIB, 0, account(&ledger, 0, MIB, MIB))
        .unwrap()
        .0;
    assert_ne!(other.device_area().base, base, "taken");
    let free = crate::sys::reserve::Reservation::anywhere(256 * MIB).unwrap();
    let base = free.base().next_multiple_of(64 << 10) + 4096;
    drop(free);
    let third = Memory::open(base, 128 * MIB, 0, account(&ledger, 1, MIB, MIB))
        .unwrap()
        .0;
    let (device, host) = (third.device_area(), third.host_area());
    assert_eq!(device.base, base + (60 << 10), "its whole grains");
    assert!(host.base + host.bytes <= base + 128 * MIB && host.bytes > 30 * MIB);
}
