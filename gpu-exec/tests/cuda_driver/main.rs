//! The `cuda` device over a driver that is strict about what it is told (`fake_driver/libcuda.c`): memory at the
//! client's addresses, order, waits, errors.
#![allow(clippy::unwrap_used)]

mod devices;
mod lost;
mod measured;
mod memory;
mod peers;
mod start;
#[path = "../support/mod.rs"]
mod support;
mod wedged;

use std::io::{BufRead, BufReader, IoSlice};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use farcall_gpu_exec::Inventory;
use farcall_marshal::record::Record;
use farcall_marshal::wire::*;

use support::{CONTEXT, Client, PATIENCE, ServerProcess, eventually, launch};

const MIB: u64 = 1 << 20;
const STREAM: u64 = 11;
const OTHER: u64 = 12;
const MODULE: u64 = 20;
const SET: u64 = 21;
const HOLD: u64 = 22;
const RELEASE: u64 = 23;
const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const NOT_READY: u32 = 600;
const ILLEGAL_ADDRESS: u32 = 700;

/// The driver, built from C.
fn driver() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fake_driver/libcuda.c");
    let mut compiler = Command::new(std::env::var("CC").unwrap_or_else(|_| "cc".to_owned()));
    compiler.args(["-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o"]);
    compiler.arg(folder.path().join("libcuda.so.1")).arg(source);
    assert!(compiler.status().unwrap().success(), "{compiler:?}");
    folder
}

/// A GPU that fails its check is not served, and the reason is said.
#[test]
fn a_broken_gpu_is_not_served() {
    for (how, why) in [
        ("ecc", "its memory is broken"),
        ("crash", "the driver crashed"),
        ("kernels", "it gives other bytes back"),
    ] {
        let folder = driver();
        let mut command = Command::new(env!("CARGO_BIN_EXE_farcall-test-server"));
        command.arg("cuda").env("LD_LIBRARY_PATH", folder.path());
        let output = command.env("FAKE_BROKEN", how).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{said}");
        assert!(
            said.contains("GPU 0 is not served") && said.contains(why),
            "{said}"
        );
    }
}

/// More memory than a GPU has is refused, not cut.
#[test]
fn memory_that_a_gpu_does_not_have_is_refused() {
    let folder = driver();
    let mut command = Command::new(env!("CARGO_BIN_EXE_farcall-test-server"));
    command.args(["cuda", "1", &(65 * MIB).to_string()]);
    let output = command
        .env("LD_LIBRARY_PATH", folder.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("GPU 0 has 67108864"), "{said}");
}

/// A driver that cannot be used is said to be so, and what to do.
#[test]
fn a_driver_that_does_not_do_is_told_with_advice() {
    for (variable, value, why) in [
        (
            "FAKE_VERSION",
            "11080",
            "for CUDA 11.8: 12.0 or later is needed",
        ),
        ("FAKE_INIT", "304", "may this user open /dev/nvidia*"),
        ("FAKE_INIT", "100", "may this user open /dev/nvidia*"),
    ] {
        let folder = driver();
        let mut command = Command::new(env!("CARGO_BIN_EXE_farcall-test-server"));
        command.arg("cuda").env("LD_LIBRARY_PATH", folder.path());
        let output = command.env(variable, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{said}");
    }
}

/// A server on the driver.
fn server() -> (ServerProcess, tempfile::TempDir) {
    server_with(&[], |_| {})
}

/// The same with more arguments, and whatever `prepare` adds.
fn server_with(
    arguments: &[&str],
    prepare: impl FnOnce(&mut Command),
) -> (ServerProcess, tempfile::TempDir) {
    let folder = driver();
    let mut command = Command::new(env!("CARGO_BIN_EXE_farcall-test-server"));
    command.arg("cuda").args(arguments);
    command.env("LD_LIBRARY_PATH", folder.path());
    command.env("FAKE_HANG", folder.path().join("hang"));
    command.env("FAKE_LOST", folder.path().join("lost"));
    command.env("FAKE_GONE", folder.path().join("gone"));
    prepare(&mut command);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let stdout = child.stdout.take().unwrap();
    BufReader::new(stdout).read_line(&mut line).unwrap();
    let address = line
        .trim()
        .strip_prefix("listening on ")
        .unwrap()
        .to_owned();
    (ServerProcess { child, address }, folder)
}

/// A client with two streams that wait for nobody, and the fake's kernels.
fn client(server: &ServerProcess) -> Client {
    let client = Client::connect(&server.address);
    for stream in [STREAM, OTHER] {
        client.send(&CuStreamCreateWithPriority {
            stream,
            flags: 1,
            priority: 0,
        });
    }
    assert_eq!(client.load(MODULE, ".version 8.0 // set hold release").0, 0);
    for (function, name) in [(SET, "set"), (HOLD, "hold"), (RELEASE, "release")] {
        client.send(&CuModuleGetFunction {
            function,
            module: MODULE,
            name,
        });
    }
    assert!(
        client.welcome().range_bytes > 0,
        "the client chooses addresses"
    );
    client
}

fn set(addr: u64, value: u32, count: u32) -> Vec<u8> {
    [
        addr.to_le_bytes().to_vec(),
        value.to_le_bytes().to_vec(),
        count.to_le_bytes().to_vec(),
    ]
    .concat()
}

fn used(server: &ServerProcess) -> u64 {
    Inventory::fetch(&server.address, None, PATIENCE)
        .unwrap()
        .devices[0]
        .used_bytes
}

fn pattern(bytes: usize, seed: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| (i / 3 * 7 + seed).to_le_bytes()[0])
        .collect()
}

fn read(src: u64, count: u64, stream: u64) -> CuMemcpyDtoHAsyncV2 {
    CuMemcpyDtoHAsyncV2 {
        src,
        count,
        stream,
        bulk: 0,
    }
}

#[test]
fn the_device_is_described_as_its_driver_does() {
    let (server, _folder) = server();
    let inventory = Inventory::fetch(&server.address, None, PATIENCE).unwrap();
    let device = &inventory.devices[0];
    assert_eq!(
        (device.name.as_str(), device.sm, device.total_bytes),
        ("fake GPU", 86, 64 * MIB)
    );
    assert_eq!(inventory.driver_version, 12_020, "the driver's own");
    let client = Client::connect(&server.address);
    let (_, body, _) = farcall_marshal::record::split(client.welcome().devices).unwrap();
    let attributes = DeviceDescription::decode_body(body).unwrap().attributes;
    let value = |at: usize| i32::from_le_bytes(attributes[4 * at..4 * at + 4].try_into().unwrap());
    assert_eq!((value(16), value(75), value(150)), (16, 8, i32::MIN));
    assert_eq!(
        (value(102), value(103)),
        (102, 0),
        "virtual memory management is the client's, exporting is nobody's"
    );
}

/// A client is told for which CUDA the driver is, as far as the catalogue knows it: a program that needs a newer one says so.
#[test]
fn clients_are_told_the_version_of_the_driver() {
    for (driver, told) in [(12_040, 12_040), (13_000, 13_000), (14_020, 13_050)] {
        let (server, _folder) = server_with(&[], |command| {
            command.env("FAKE_VERSION", driver.to_string());
        });
        let inventory = Inventory::fetch(&server.address, None, PATIENCE).unwrap();
        assert_eq!(inventory.driver_version, told);
        assert_eq!(
            Client::connect(&server.address).welcome().driver_version,
            told
        );
    }
}

#[test]
fn tensor_maps_are_the_driver_s() {
    let (server, _folder) = server();
    let client = client(&server);
    let words = |list: &[u32]| -> Vec<u8> { list.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let longs = |list: &[u64]| -> Vec<u8> { list.iter().flat_map(|w| w.to_le_bytes()).collect() };
    let ask = |kind: u32, params: &[u8]| {
        let (status, body) = client.call(&CuTensorMapEncodeTiled {
            address: 0x7000,
            kind,
            params,
        });
        let map = CuTensorMapEncodeTiledReply::decode_body(&body);
        (status, map.map_or(Vec::new(), |reply| reply.map.to_vec()))
    };
    // Data type 7, rank 2, ..., box, element strides, sizes, stride: the fake writes down what it was told.
    let head = words(&[7, 2, 0, 3, 2, 1]);
    let params = [&head[..], &words(&[16, 32, 1, 1]), &longs(&[64, 128, 256])].concat();
    let (status, map) = ask(1, &params);
    assert_eq!(status, 0);
    assert_eq!(map[..8], 0x7000_u64.to_le_bytes());
    assert_eq!(map[8..16], [7, 2, 0, 3, 2, 1, 0, 0]);
    assert_eq!(
        map[16..40],
        longs(&[128, 256, 32])[..],
        "last size, stride, box"
    );
    assert_eq!(
        ask(1, &params[..params.len() - 8]).0,
        INVALID_VALUE,
        "short"
    );
    let nine = [&words(&[7, 9, 0, 3, 2, 1])[..], &[0; 400]].concat();
    assert_eq!(ask(1, &nine).0, INVALID_VALUE, "rank");
    assert_eq!(ask(99, &params).0, 801);
}

#[test]
fn a_stream_that_stands_still_holds_up_nobody_else() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, 40 * MIB), 0);
    let event = 31;
    client.send(&CuEventCreate { event, flags: 2 });
    client.launch(HOLD, STREAM, 1, 1, &[]);
    // Small ones that share pinned memory with others, and a transfer that has to cross it in pieces.
    let small = pattern(600, 5);
    client.send(&CuMemcpyHtoDAsyncV2 {
        dst: base,
        count: 600,
        stream: STREAM,
        bulk: 0,
        data: &small,
    });
    let large = pattern(20 << 20, 6);
    client.send(&CuMemcpyHtoDAsyncV2 {
        dst: base + 4 * MIB,
        count: 20 * MIB,
        stream: STREAM,
        bulk: 900,
        data: &[],
    });
    client
        .endpoint
        .bulk_send(900, &[IoSlice::new(&large)])
        .unwrap();
    client.send(&CuEventRecordWithFlags {
        event,
        stream: STREAM,
        flags: 0,
    });
    let answer = client.begin(&read(base, 600, STREAM));
    assert_eq!(client.call(&CuEventQuery { event }).0, NOT_READY);
    assert_eq!(client.call(&CuStreamQuery { stream: STREAM }).0, NOT_READY);
    // Meanwhile another stream works through the same pinned memory.
    for seed in 0..100 {
        let data = pattern(60_000, seed);
        client.send(&CuMemcpyHtoDAsyncV2 {
            dst: base + 30 * MIB,
            count: 60_000,
            stream: OTHER,
            bulk: 0,
            data: &data,
        });
        let (status, body) = client.call(&read(base + 30 * MIB, 60_000, OTHER));
        assert_eq!(status, 0);
        assert!(
            CuMemcpyDtoHAsyncV2Reply::decode_body(&body).unwrap().data == data,
            "{seed}"
        );
    }
    assert_eq!(client.call(&CuStreamSynchronize { stream: OTHER }).0, 0);
    assert_eq!(client.call(&CuEventQuery { event }).0, NOT_READY);
    client.launch(RELEASE, OTHER, 1, 1, &[]);
    let (status, body) = client.wait(answer).unwrap();
    assert_eq!(
        (
            status,
            CuMemcpyDtoHAsyncV2Reply::decode_body(&body).unwrap().data
        ),
        (0, &*small)
    );
    assert_eq!(client.call(&CuEventSynchronize { event }).0, 0);
    assert_eq!(client.call(&CuStreamQuery { stream: STREAM }).0, 0);
    assert!(client.download(base + 4 * MIB, 20 << 20).unwrap() == large);
}

/// Uploads that wait for the client take all pinned memory that they may have; what the client waits for meanwhile comes all the same.
#[test]
fn uploads_that_stand_still_leave_room_for_what_comes_down() {
    const PIECE: usize = 8 << 20;
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, 48 * MIB), 0);
    client.send(&CuLaunchHostFunc {
        stream: STREAM,
        callback: 4,
    });
    let data = pattern(PIECE, 8);
    let places = [0, 8, 16, 24].map(|at| at * MIB);
    for dst in places {
        client.send(&CuMemcpyHtoDAsyncV2 {
            dst: base + dst,
            count: 8 * MIB,
            stream: STREAM,
            bulk: 900 + dst,
            data: &[],
        });
    }
    let send = |place: u64| {
        let bytes = [IoSlice::new(&data)];
        client.endpoint.bulk_send(900 + place, &bytes).unwrap();
    };
    places[..3].iter().copied().for_each(send);
    client.push(HostFuncDue::NUMBER);
    assert!(client.download(base + 40 * MIB, PIECE).unwrap() == vec![0; PIECE]);
    client.send(&HostFuncDone {
        callback: 4,
        stream: STREAM,
    });
    send(places[3]);
    assert_eq!(client.synchronize(), 0);
    assert!(client.download(base + 24 * MIB, PIECE).unwrap() == data);
}

#[test]
fn what_waits_for_the_context_waits_for_every_stream() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    // A stream that is destroyed goes on with its work all the same.
    for (stream, is_destroyed) in [(40, false), (41, true)] {
        client.send(&CuStreamCreateWithPriority {
            stream,
            flags: 1,
            priority: 0,
        });
        assert_eq!(client.alloc(0, MIB), 0);
        client.launch(HOLD, stream, 1, 1, &[]);
        client.launch(SET, stream, 1, 1, &set(base, 1, 1));
        if is_destroyed {
            client.send(&CuStreamDestroyV2 { stream });
        }
        client.send(&CuMemFreeV2 { addr: base });
        let all = client.begin(&CuCtxSynchronize {});
        assert_eq!(client.call(&CuStreamSynchronize { stream: OTHER }).0, 0);
        assert_eq!(used(&server), MIB, "the device may still use it");
        client.launch(RELEASE, OTHER, 1, 1, &[]);
        assert_eq!(client.wait(all).unwrap().0, 0);
        assert_eq!(used(&server), 0);
    }
}

#[test]
fn a_host_function_stops_its_stream_alone() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, MIB), 0);
    client.launch(SET, STREAM, 1, 1, &set(base, 1, 4));
    client.send(&CuLaunchHostFunc {
        stream: STREAM,
        callback: 77,
    });
    client.launch(SET, STREAM, 1, 1, &set(base, 2, 4));
    let behind = client.begin(&CuStreamSynchronize { stream: STREAM });
    let due = client.push(HostFuncDue::NUMBER);
    let due = HostFuncDue::decode_body(&due).unwrap();
    assert_eq!((due.callback, due.stream), (77, STREAM));
    let (status, body) = client.call(&read(base, 4, OTHER));
    assert_eq!(
        (
            status,
            CuMemcpyDtoHAsyncV2Reply::decode_body(&body).unwrap().data
        ),
        (0, &[1, 0, 0, 0][..])
    );
    assert_eq!(client.call(&CuStreamQuery { stream: STREAM }).0, NOT_READY);
    client.send(&HostFuncDone {
        callback: 77,
        stream: STREAM,
    });
    assert_eq!(client.wait(behind).unwrap().0, 0);
    assert_eq!(client.download(base, 4).unwrap(), [2, 0, 0, 0]);
    client.send(&HostFuncDone {
        callback: 77,
        stream: STREAM,
    });
    // What is not due ends the session.
    client.closed();
}

#[test]
fn a_fault_is_told_once_and_every_ticket_gets_it() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, MIB), 0);
    client.launch(SET, STREAM, 1, 1, &set(base + 100 * MIB, 1, 1));
    assert_eq!(client.synchronize(), ILLEGAL_ADDRESS);
    let notice = client.push(ErrorNotice::NUMBER);
    let notice = ErrorNotice::decode_body(&notice).unwrap();
    assert_eq!((notice.status, notice.sticky), (ILLEGAL_ADDRESS, 1));
    assert_eq!(
        client.call(&CuStreamQuery { stream: STREAM }).0,
        ILLEGAL_ADDRESS
    );
    assert_eq!(client.alloc(MIB, MIB), ILLEGAL_ADDRESS);
    assert_eq!(client.download(base, 4), Err(ILLEGAL_ADDRESS));
    assert_eq!(client.upload(base, &pattern(100_000, 1)), ILLEGAL_ADDRESS);
    // Another session is not concerned.
    let second = Client::connect(&server.address);
    assert_eq!(second.alloc(0, MIB), 0);
    assert_eq!(second.download(second.base(), 4).unwrap(), [0; 4]);
    drop(client);
    eventually("memory of the lost session is free", || {
        used(&server) == MIB
    });
}

#[test]
fn what_the_compiler_says_comes_back_and_launches_wait_for_their_module() {
    let (server, _folder) = server();
    let client = client(&server);
    let (status, message) = client.load(50, ".version 8.0 .broken");
    assert_eq!((status, message.as_str()), (218, "line 3: it is broken"));
    let base = client.base();
    assert_eq!(client.alloc(0, MIB), 0);
    // One way, and used before it can be there.
    let image = ".version 8.0 // set, again";
    let packed = farcall_marshal::image::compress_for_wire(image.as_bytes());
    let hash = farcall_marshal::image::content_hash(image.as_bytes());
    let total_bytes = packed.len() as u64;
    client.send(&CuModuleLoadData {
        module: 51,
        kind: 1,
        total_bytes,
        bulk: 0,
        hash: &hash,
        image: &packed,
    });
    client.send(&CuModuleGetFunction {
        function: 52,
        module: 51,
        name: "set",
    });
    client.send(&CuFuncSetAttribute {
        function: 52,
        attribute: 8,
        value: 1000,
    });
    client.launch(52, STREAM, 1, 1, &set(base, 5, 1));
    client.send(&CuModuleUnload { module: 51 });
    assert_eq!(client.synchronize(), 0);
    assert_eq!(client.download(base, 4).unwrap(), [5, 0, 0, 0]);
    assert_eq!(client.call(&launch(52, STREAM, 1, 1, &[])).0, 400);
}

#[test]
fn a_graph_is_cut_at_its_host_function() {
    let (server, _folder) = server();
    let client = client(&server);
    let base = client.base();
    assert_eq!(client.alloc(0, MIB), 0);
    let (first, second) = (set(base, 3, 2), set(base, 4, 1));
    let head = |number| farcall_marshal::record::Head::request(number, CONTEXT, 0);
    let nodes = [
        farcall_marshal::record::to_vec(
            head(CuLaunchKernel::NUMBER),
            &launch(SET, 0, 1, 1, &first),
        ),
        farcall_marshal::record::to_vec(
            head(CuLaunchHostFunc::NUMBER),
            &CuLaunchHostFunc {
                stream: 0,
                callback: 5,
            },
        ),
        farcall_marshal::record::to_vec(
            head(CuLaunchKernel::NUMBER),
            &launch(SET, 0, 1, 1, &second),
        ),
    ]
    .concat();
    let data = [
        nodes.clone(),
        [0_u32, 1, 1, 2]
            .into_iter()
            .flat_map(u32::to_le_bytes)
            .collect(),
    ]
    .concat();
    let node_bytes = nodes.len() as u64;
    let record = CuGraphInstantiateWithFlags {
        exec: 60,
        flags: 0,
        node_count: 3,
        node_bytes,
        edge_count: 2,
        bulk: 0,
        data: &data,
    };
    assert_eq!(client.call(&record).0, 0);
    for _ in 0..2 {
        let done = client.begin(&CuGraphLaunch {
            exec: 60,
            stream: STREAM,
        });
        client.push(HostFuncDue::NUMBER);
        let (_, body) = client.call(&read(base, 8, OTHER));
        assert_eq!(
            CuMemcpyDtoHAsyncV2Reply::decode_body(&body).unwrap().data,
            [3, 0, 0, 0, 3, 0, 0, 0]
        );
        client.send(&HostFuncDone {
            callback: 5,
            stream: STREAM,
        });
        assert_eq!(client.wait(done).unwrap().0, 0);
        assert_eq!(client.download(base, 8).unwrap(), [4, 0, 0, 0, 3, 0, 0, 0]);
    }
    assert_eq!(client.call(&CuGraphExecDestroy { exec: 60 }).0, 0);
}

#[test]
fn a_client_that_vanishes_leaves_nothing() {
    let (server, _folder) = server();
    let client = client(&server);
    assert_eq!(client.alloc(0, 8 * MIB), 0);
    client.launch(HOLD, STREAM, 1, 1, &[]);
    client.send(&CuMemFreeV2 {
        addr: client.base(),
    });
    let _ = client.begin(&CuCtxSynchronize {});
    drop(client);
    eventually("memory is free", || used(&server) == 0);
}
