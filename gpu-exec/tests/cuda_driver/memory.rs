//! Memory at the client's addresses: blocks, copies, mappings, pinned memory.

use super::*;

#[test]
fn memory_that_the_client_maps() {
    const PIECE: u64 = 2 * MIB;
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    let map = |addr, bytes, handle| CuMemMap {
        addr,
        bytes,
        offset: 0,
        handle,
        access: 3,
    };
    for handle in [1, 2] {
        let (bytes, device) = (PIECE, 0);
        let made = client.call(&CuMemCreate {
            handle,
            bytes,
            device,
        });
        assert_eq!(made.0, 0);
        let at = base + (handle - 1) * PIECE;
        assert_eq!(client.call(&map(at, PIECE, handle)).0, 0);
    }
    assert_eq!(used(&server), 2 * PIECE);
    let data = pattern(64 << 10, 3);
    assert_eq!(
        client.upload(base + PIECE - 1000, &data),
        0,
        "across the edge"
    );
    assert_eq!(
        client.download(base + PIECE - 1000, 64 << 10).unwrap(),
        data
    );
    assert_eq!(client.call(&map(base, PIECE, 2)).0, INVALID_VALUE, "taken");
    client.send(&CuMemRelease { handle: 1 });
    assert_eq!(client.upload(base, &data), 0, "released, but mapped");
    // Unmapped behind work that is not done: a mapping at the same addresses waits for it.
    client.launch(HOLD, STREAM, 1, 1, &[]);
    client.send(&CuMemUnmap {
        addr: base,
        bytes: PIECE,
    });
    assert_eq!(
        client.upload(base, &data),
        INVALID_VALUE,
        "nothing new uses it"
    );
    client.send(&CuMemCreate {
        handle: 3,
        bytes: 62 * MIB,
        device: 0,
    });
    client.launch(RELEASE, OTHER, 1, 1, &[]);
    let again = client.call(&map(base + 16 * MIB, 62 * MIB, 3));
    assert_eq!(again.0, 0);
    assert_eq!(client.download(base, 4), Err(INVALID_VALUE));
    assert_eq!(
        client.download(base + PIECE, 4).unwrap(),
        data[1000..1004],
        "the other piece"
    );
    for (addr, bytes) in [(base + PIECE, PIECE), (base + 16 * MIB, 62 * MIB)] {
        assert_eq!(client.call(&CuMemUnmap { addr, bytes }).0, 0);
    }
    client.send(&CuMemRelease { handle: 2 });
    client.send(&CuMemRelease { handle: 3 });
    assert_eq!(client.synchronize(), 0);
    assert_eq!(used(&server), 0);
}

#[test]
fn boxes_are_copied_row_by_row() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, MIB), 0);
    let data = pattern(4096, 9);
    assert_eq!(client.upload(base, &data), 0);
    let copy = CuMemcpy3DAsyncV2 {
        dst: base + 8192,
        dst_pitch: 10,
        dst_slice: 40,
        src: base + 100,
        src_pitch: 64,
        src_slice: 640,
        width: 10,
        height: 4,
        depth: 3,
        stream: STREAM,
    };
    assert_eq!(client.call(&copy).0, 0);
    let got = client.download(base + 8192, 120).unwrap();
    for (row, bytes) in got.chunks(10).enumerate() {
        let from = 100 + row / 4 * 640 + row % 4 * 64;
        assert_eq!(bytes, &data[from..from + 10], "row {row}");
    }
    let beyond = CuMemcpy3DAsyncV2 {
        dst: base + MIB - 16,
        ..copy
    };
    assert_eq!(client.call(&beyond).0, INVALID_VALUE);
    let overlapping = CuMemcpy3DAsyncV2 {
        dst_pitch: 9,
        ..copy
    };
    assert_eq!(client.call(&overlapping).0, INVALID_VALUE);
}

#[test]
fn blocks_share_granules_and_fresh_memory_is_zero() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    for (offset, bytes) in [
        (512, 512),
        (1024, 512),
        (2 * MIB - 512, 4 * MIB + 1024),
        (6 * MIB + 512, 512),
    ] {
        assert_eq!(client.alloc(offset, bytes), 0, "{offset}");
        let got = client
            .download(base + offset, usize::try_from(bytes).unwrap())
            .unwrap();
        assert!(got.iter().all(|byte| *byte == 0), "{offset}");
    }
    assert_eq!(used(&server), 4 * MIB + 1024 + 3 * 512);
    assert_eq!(client.alloc(1024, 1024), INVALID_VALUE, "overlapping");
    assert_eq!(client.alloc(513, 512), INVALID_VALUE, "not aligned");
    let data = pattern(512, 1);
    assert_eq!(client.upload(base + 512, &data), 0);
    assert_eq!(client.upload(base + 6 * MIB + 512, &data), 0);
    client.send(&CuMemFreeV2 { addr: base + 1024 });
    client.send(&CuMemFreeV2 {
        addr: base + 2 * MIB - 512,
    });
    assert_eq!(client.synchronize(), 0);
    // Their neighbours on the same granules live on.
    assert_eq!(client.download(base + 512, 512).unwrap(), data);
    assert_eq!(client.download(base + 6 * MIB + 512, 512).unwrap(), data);
    assert_eq!(client.download(base + 1024, 4), Err(INVALID_VALUE));
    assert_eq!(client.alloc(1024, 512), 0);
    assert!(
        client
            .download(base + 1024, 512)
            .unwrap()
            .iter()
            .all(|byte| *byte == 0)
    );
    for offset in [512, 1024, 6 * MIB + 512] {
        client.send(&CuMemFreeV2 {
            addr: base + offset,
        });
    }
    assert_eq!(client.synchronize(), 0);
    assert_eq!(used(&server), 0);
    assert_eq!(client.alloc(0, 64 * MIB), 0, "all of it");
    assert_eq!(client.alloc(80 * MIB, 512), OUT_OF_MEMORY);
}

#[test]
fn copies_of_all_sizes_come_back_as_they_went() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, 48 * MIB), 0);
    for (seed, bytes) in [1, 4096, 65_537, 5 << 20, (8 << 20) + 1, 45 << 20]
        .into_iter()
        .enumerate()
    {
        let data = pattern(bytes, seed);
        assert_eq!(client.upload(base + 512, &data), 0, "{bytes}");
        assert!(
            client.download(base + 512, bytes).unwrap() == data,
            "{bytes}"
        );
    }
    client.send(&CuMemsetD2D8Async {
        dst: base,
        pitch: 1024,
        row_count: 3,
        row_elements: 4,
        stream: STREAM,
        value: 0x0201,
        width: 2,
    });
    client.send(&CuMemcpyDtoDAsyncV2 {
        dst: base + 16 * MIB,
        src: base,
        count: 4096,
        stream: STREAM,
    });
    assert_eq!(client.call(&CuStreamSynchronize { stream: STREAM }).0, 0);
    assert_eq!(
        client.download(base + 16 * MIB + 2048, 8).unwrap(),
        [1, 2, 1, 2, 1, 2, 1, 2]
    );
}

#[test]
fn freed_memory_goes_when_the_device_has_got_there() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, 40 * MIB), 0);
    client.send(&CuLaunchHostFunc {
        stream: STREAM,
        callback: 3,
    });
    client.launch(SET, STREAM, 1, 1, &set(base, 7, 1024));
    client.send(&CuMemFreeV2 { addr: base });
    // Does not fit beside the memory that is being freed, so it comes after that; so does what uses it.
    let fresh = base + 48 * MIB;
    let allocated = client.begin(&CuMemAllocV2 {
        addr: fresh,
        bytes: 40 * MIB,
    });
    client.send(&CuMemsetD8Async {
        dst: fresh,
        count: 64,
        stream: OTHER,
        value: 9,
        width: 1,
    });
    client.push(HostFuncDue::NUMBER);
    assert_eq!(used(&server), 40 * MIB);
    client.send(&HostFuncDone {
        callback: 3,
        stream: STREAM,
    });
    assert_eq!(client.wait(allocated).unwrap().0, 0);
    assert_eq!(client.call(&CuStreamSynchronize { stream: OTHER }).0, 0);
    assert_eq!(client.download(fresh, 4).unwrap(), [9; 4]);
    // In the order of a stream too.
    client.launch(HOLD, STREAM, 1, 1, &[]);
    client.send(&CuMemFreeAsync {
        addr: fresh,
        stream: STREAM,
    });
    let (status, _) = client.call(&CuMemAllocAsync {
        addr: base,
        bytes: 512,
        stream: OTHER,
    });
    assert_eq!(status, 0, "fits beside it");
    assert_eq!(used(&server), 40 * MIB + 512);
    client.launch(RELEASE, OTHER, 1, 1, &[]);
    assert_eq!(client.call(&CuStreamSynchronize { stream: STREAM }).0, 0);
    assert_eq!(used(&server), 512);
}

#[test]
fn kernels_use_pinned_memory_at_the_programs_address() {
    let (server, _folder) = server();
    let client = client(&server);
    let host = client.welcome().host_range_base;
    assert!(client.welcome().host_range_bytes > MIB);
    assert_eq!(
        client
            .call(&CuMemHostAlloc {
                addr: host + 4096,
                bytes: 8192,
                flags: 0
            })
            .0,
        0
    );
    assert_eq!(
        client
            .call(&CuMemAllocManaged {
                addr: host + 32_768,
                bytes: 5000,
                flags: 1
            })
            .0,
        0
    );
    assert_eq!(
        client
            .call(&CuMemHostAlloc {
                addr: host + 4096,
                bytes: 4096,
                flags: 0
            })
            .0,
        INVALID_VALUE
    );
    for addr in [host + 4096, host + 32_768] {
        assert_eq!(client.download(addr, 16).unwrap(), [0; 16]);
        client.launch(SET, 0, 1, 1, &set(addr + 8, 0x0403_0201, 1));
        assert_eq!(client.download(addr + 8, 4).unwrap(), [1, 2, 3, 4]);
        assert_eq!(client.call(&CuMemFreeHost { addr }).0, 0);
        assert_eq!(client.download(addr, 4), Err(INVALID_VALUE));
    }
}

/// The driver gives memory with whatever was in it. Nothing of that is seen: not in memory that the client maps, in whole or in
/// parts, and not by a kernel that reads beyond its block.
#[test]
fn what_others_left_is_nowhere_to_be_seen() {
    const PEEK: u64 = 90;
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    let is_zero = |addr: u64, bytes: u64| {
        let got = client.download(addr, usize::try_from(bytes).unwrap());
        got.unwrap().iter().all(|byte| *byte == 0)
    };
    assert_eq!(client.load(91, ".version 8.0 // peek").0, 0);
    client.send(&CuModuleGetFunction {
        function: PEEK,
        module: 91,
        name: "peek",
    });
    // A small block: the rest of its granule is mapped with it.
    assert_eq!(client.alloc(4096, 512), 0);
    let beyond = base + 4096 + 512;
    for from in [base, beyond, base + 2 * MIB - 512] {
        let params = [
            (base + 4096).to_le_bytes().to_vec(),
            from.to_le_bytes().to_vec(),
            128_u32.to_le_bytes().to_vec(),
        ];
        client.launch(PEEK, STREAM, 1, 1, &params.concat());
        assert_eq!(client.synchronize(), 0);
        assert!(is_zero(base + 4096, 512), "{from:#x}");
    }
    // Physical memory, mapped in two parts, the second without access at first.
    let (handle, bytes, device) = (5, 6 * MIB, 0);
    let create = CuMemCreate {
        handle,
        bytes,
        device,
    };
    assert_eq!(client.call(&create).0, 0);
    let map = |addr, bytes, offset, access| CuMemMap {
        addr,
        bytes,
        offset,
        handle,
        access,
    };
    let (first, second) = (base + 8 * MIB, base + 16 * MIB);
    assert_eq!(client.call(&map(first, 2 * MIB, 0, 3)).0, 0);
    assert!(is_zero(first, 2 * MIB));
    assert_eq!(client.call(&map(second, 4 * MIB, 2 * MIB, 0)).0, 0);
    let access = CuMemSetAccess {
        addr: second,
        bytes: 4 * MIB,
        device,
        access: 3,
    };
    assert_eq!(client.call(&access).0, 0);
    assert!(is_zero(second, 4 * MIB));
    // Read-only from the start.
    let create = CuMemCreate {
        handle: 6,
        bytes: 2 * MIB,
        device,
    };
    assert_eq!(client.call(&create).0, 0);
    let third = CuMemMap {
        handle: 6,
        ..map(base + 32 * MIB, 2 * MIB, 0, 1)
    };
    assert_eq!(client.call(&third).0, 0);
    assert!(is_zero(base + 32 * MIB, 2 * MIB));
}
