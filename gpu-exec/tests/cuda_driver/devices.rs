//! Sessions with several contexts, and with several GPUs.

use super::*;

/// The second context of a client: another one of its first GPU, or the primary one of its second.
const SECOND: u32 = 2;
const ELSEWHERE: u64 = 13;

/// A server with two GPUs, and a client with a context and streams on both.
fn two_gpus() -> (ServerProcess, tempfile::TempDir, Client) {
    let (server, folder) = server_with(&["2"], |command| {
        command.env("FAKE_DEVICES", "2");
    });
    let client = client(&server);
    client.enter(SECOND);
    client.send(&CuDevicePrimaryCtxRetain {
        device: 1,
        flags: 0,
    });
    client.send(&CuStreamCreateWithPriority {
        stream: ELSEWHERE,
        flags: 1,
        priority: 0,
    });
    client.enter(CONTEXT);
    (server, folder, client)
}

fn used_of(server: &ServerProcess) -> Vec<u64> {
    let inventory = Inventory::fetch(&server.address, None, PATIENCE).unwrap();
    inventory.devices.iter().map(|it| it.used_bytes).collect()
}

/// Fresh memory of one context is cleared before a stream of another one writes to it.
#[test]
fn fresh_memory_is_cleared_before_another_context_uses_it() {
    let (server, _folder) = server();
    let client = client(&server);
    client.enter(SECOND);
    client.send(&CuCtxCreateV4 {
        device: 0,
        flags: 0,
    });
    for offset in [0, 8 * MIB] {
        assert_eq!(client.alloc(offset, MIB), 0);
        let (at, data) = (client.base() + offset, pattern(600, 4));
        client.enter(CONTEXT);
        let written = client.call(&CuMemcpyHtoDAsyncV2 {
            dst: at,
            count: 600,
            stream: STREAM,
            bulk: 0,
            data: &data,
        });
        assert_eq!(written.0, 0);
        assert!(client.download(at, 600).unwrap() == data, "at {offset}");
        client.enter(SECOND);
    }
}

/// Each GPU's memory is its own: small blocks of both, freed and made again.
#[test]
fn memory_of_two_gpus_is_apart() {
    let (server, _folder, client) = two_gpus();
    for _ in 0..3 {
        for (context, offset, used) in [(CONTEXT, 512, [512, 0]), (SECOND, 2 * MIB, [512, 512])] {
            client.enter(context);
            assert_eq!(client.alloc(offset, 512), 0);
            assert_eq!(used_of(&server), used);
            assert_eq!(
                client.download(client.base() + offset, 512),
                Ok(vec![0; 512])
            );
            let data = pattern(512, 9);
            assert_eq!(client.upload(client.base() + offset, &data), 0);
            assert_eq!(client.download(client.base() + offset, 512), Ok(data));
        }
        assert_eq!(
            client.alloc(1024, 512),
            INVALID_VALUE,
            "a granule of the other GPU"
        );
        for (context, offset) in [(CONTEXT, 512), (SECOND, 2 * MIB)] {
            client.enter(context);
            client.send(&CuMemFreeV2 {
                addr: client.base() + offset,
            });
            assert_eq!(client.synchronize(), 0);
        }
        assert_eq!(used_of(&server), [0, 0]);
    }
}

/// The GPU that works is served, under a number of its own.
#[test]
fn one_of_two_gpus_is_broken() {
    let (server, _folder) = server_with(&[], |command| {
        command.envs([
            ("FAKE_DEVICES", "2"),
            ("FAKE_BROKEN", "ecc"),
            ("FAKE_BROKEN_DEVICE", "0"),
        ]);
    });
    let inventory = Inventory::fetch(&server.address, None, PATIENCE).unwrap();
    assert_eq!(inventory.devices.len(), 1);
    let client = client(&server);
    assert_eq!(client.alloc(0, MIB), 0);
    assert_eq!(client.download(client.base(), 4), Ok(vec![0; 4]));
}

/// A stream of one GPU works with the memory of the other: the fake driver lets no GPU touch what is not mapped for it.
#[test]
fn streams_work_with_the_memory_of_another_gpu() {
    let (_server, _folder, client) = two_gpus();
    let (here, there) = (client.base(), client.base() + 32 * MIB);
    assert_eq!(client.alloc(0, 16 * MIB), 0);
    client.enter(SECOND);
    assert_eq!(client.alloc(32 * MIB, 16 * MIB), 0);
    client.enter(CONTEXT);
    // Up and down, in a record, in one piece and in several.
    for bytes in [600, 100_000, 12 << 20] {
        let data = pattern(bytes, 3);
        assert_eq!(client.upload(there, &data), 0);
        assert!(client.download(there, bytes).unwrap() == data, "{bytes}");
    }
    // From one to the other, and between two places of the other.
    let data = pattern(12 << 20, 5);
    assert_eq!(client.upload(here, &data), 0);
    for (dst, src) in [
        (there, here),
        (there + 8 * MIB, there),
        (here + 8 * MIB, there),
    ] {
        let copy = CuMemcpyDtoDAsyncV2 {
            dst,
            src,
            count: 4096,
            stream: 0,
        };
        assert_eq!(client.call(&copy).0, 0);
        assert!(client.download(dst, 4096).unwrap() == data[..4096]);
    }
    for (dst, src) in [
        (there + 64, here),
        (there + 1024, there + 64),
        (here + 1024, there + 64),
    ] {
        let copy = CuMemcpy3DAsyncV2 {
            dst,
            dst_pitch: 8,
            dst_slice: 32,
            src,
            src_pitch: 8,
            src_slice: 32,
            width: 8,
            height: 4,
            depth: 2,
            stream: 0,
        };
        assert_eq!(client.call(&copy).0, 0);
        assert!(client.download(dst, 64).unwrap() == data[..64], "{dst:#x}");
    }
    // In the order of the stream that it was issued to.
    client.launch(HOLD, STREAM, 1, 1, &[]);
    client.send(&CuMemsetD8Async {
        dst: there,
        count: 64,
        stream: STREAM,
        value: 7,
        width: 1,
    });
    client.send(&CuMemcpyDtoDAsyncV2 {
        dst: here,
        src: there,
        count: 64,
        stream: STREAM,
    });
    let done = client.begin(&CuStreamSynchronize { stream: STREAM });
    assert!(client.download(there, 64).unwrap() == data[..64], "not yet");
    client.launch(RELEASE, OTHER, 1, 1, &[]);
    assert_eq!(client.wait(done).unwrap().0, 0);
    assert_eq!(client.download(here, 64), Ok(vec![7; 64]));
}
