//! Memory that the client maps itself.

use farcall_marshal::wire::{CuMemCreate, CuMemMap, CuMemRelease, CuMemSetAccess, CuMemUnmap};

use super::*;

const PIECE: u64 = 2 * MIB;
const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const READ: u32 = 1;
const READ_WRITE: u32 = 3;

fn create(handle: u64, bytes: u64) -> CuMemCreate {
    CuMemCreate {
        handle,
        bytes,
        device: 0,
    }
}

fn map(addr: u64, bytes: u64, handle: u64) -> CuMemMap {
    CuMemMap {
        addr,
        bytes,
        offset: 0,
        handle,
        access: READ_WRITE,
    }
}

fn unmap(addr: u64, bytes: u64) -> CuMemUnmap {
    CuMemUnmap { addr, bytes }
}

#[test]
fn neighbours_are_one_range_and_aliases_the_same_bytes() {
    let mut rig = Rig::new(false);
    let base = rig.base;
    assert_eq!(rig.call(&create(1, PIECE)), 0);
    assert_eq!(rig.call(&create(2, PIECE)), 0);
    for (at, handle) in [(base, 1), (base + PIECE, 2), (base + 4 * PIECE, 1)] {
        assert_eq!(rig.call(&map(at, PIECE, handle)), 0);
    }
    assert_eq!(
        rig.call(&fill(base + PIECE - 32, 9, 0)),
        0,
        "across the edge"
    );
    assert_eq!(rig.read(base + PIECE - 32, 64, 0), [9; 64]);
    assert_eq!(
        rig.read(base + 5 * PIECE - 32, 32, 0),
        [9; 32],
        "the first piece is there too"
    );
    assert_eq!(
        rig.call(&fill(base + 5 * PIECE - 32, 9, 0)),
        INVALID_VALUE,
        "nothing behind the alias"
    );
    assert_eq!(rig.call(&map(base, PIECE, 2)), INVALID_VALUE, "taken");
}

#[test]
fn access_is_what_was_set() {
    let mut rig = Rig::new(false);
    let base = rig.base;
    rig.call(&create(1, PIECE));
    rig.call(&map(base, PIECE, 1));
    let mut set = |access| {
        rig.call(&CuMemSetAccess {
            addr: base,
            bytes: PIECE,
            device: 0,
            access,
        })
    };
    assert_eq!(set(READ), 0);
    assert_eq!(
        rig.call(&fill(base, 1, 0)),
        INVALID_VALUE,
        "only to be read"
    );
    assert_eq!(rig.read(base, 4, 0), [0; 4]);
    let mut set = |access| {
        rig.call(&CuMemSetAccess {
            addr: base,
            bytes: PIECE,
            device: 0,
            access,
        })
    };
    assert_eq!(set(0), 0);
    let read = rig.begin(&CuMemcpyDtoHAsyncV2 {
        src: base,
        count: 4,
        stream: 0,
        bulk: 0,
    });
    assert_eq!(rig.heard.reply(read).0, INVALID_VALUE, "nobody's");
}

#[test]
fn released_memory_lives_until_it_is_unmapped_and_can_be_had_again() {
    let mut rig = Rig::new(false);
    let base = rig.base;
    rig.streams(1, &[10]);
    assert_eq!(rig.call(&create(1, 40 * MIB)), 0);
    assert_eq!(rig.call(&map(base, 40 * MIB, 1)), 0);
    assert_eq!(rig.call(&CuMemRelease { handle: 1 }), 0);
    assert_eq!(rig.call(&fill(base, 5, 0)), 0, "released, but mapped");
    // Unmapped behind work that is not done: what comes after waits for it.
    rig.hold(10, 1);
    let gone = rig.begin(&unmap(base, 40 * MIB));
    assert_eq!(rig.call(&create(2, 40 * MIB)), 0);
    let again = rig.begin(&map(base, 40 * MIB, 2));
    assert!(!rig.heard.has_reply(gone) && !rig.heard.has_reply(again));
    rig.release(10, 1);
    assert_eq!((rig.heard.reply(gone).0, rig.heard.reply(again).0), (0, 0));
    assert_eq!(rig.read(base, 4, 0), [0; 4], "fresh memory");
    assert_eq!(rig.call(&create(3, 40 * MIB)), 0, "made when it is mapped");
    let third = rig.call(&map(base + 64 * MIB, 40 * MIB, 3));
    assert_eq!(third, OUT_OF_MEMORY);
    assert_eq!(rig.call(&unmap(base, 20 * MIB)), INVALID_VALUE, "not whole");
}
