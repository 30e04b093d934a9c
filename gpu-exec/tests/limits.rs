//! What one client cannot take from a server: handles, modules, memory by counts, by images that expand, by answers
//! that it does not read, by sessions. Each is refused with the driver's code, or ends that session alone.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;

use farcall_gpu_exec::{
    Admission, Admitted, AdmittedDevice, DeviceChoice, EXECUTOR_COMMAND, Inventory, ServeOptions,
    Server,
};
use farcall_marshal::image::{compress_for_wire, content_hash};
use farcall_marshal::record::{Head, Record, to_vec};
use farcall_marshal::wire::*;
use farcall_transport::{ConnectError, RefuseCode};
use support::{Client, ServerProcess, eventually};

const MIB: u64 = 1 << 20;
const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;

/// What an executor may have in memory after any of this, beside what it may allocate.
const RESIDENT_BYTES_MAX: u64 = 400 << 20;

fn server() -> ServerProcess {
    ServerProcess::start(&["null", "1", "67108864"])
}

/// The most that any executor has had in memory so far.
fn resident_bytes(server: &ServerProcess) -> u64 {
    let peak = |process: u32| {
        let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmHWM:"));
        let word = line.and_then(|line| line.split_whitespace().nth(1));
        word.map_or(0, |kilobytes| kilobytes.parse::<u64>().unwrap() << 10)
    };
    server.executors().into_iter().map(peak).max().unwrap()
}

/// Makes handles one way until an answer says that there is no room; how many there were.
fn fill(client: &Client, most: u64, make: impl Fn(u64), make_and_ask: impl Fn(u64) -> u32) -> u64 {
    for handle in 1..most {
        make(handle);
    }
    assert_eq!(make_and_ask(most), 0, "the last one");
    assert_eq!(client.synchronize(), 0);
    let refused = make_and_ask(most + 1);
    assert_eq!(refused, OUT_OF_MEMORY);
    most
}

#[test]
fn handles_are_bounded() {
    let server = server();
    let client = Client::connect(&server.address);
    let stream = |stream| CuStreamCreateWithPriority {
        stream,
        flags: 0,
        priority: 0,
    };
    fill(
        &client,
        4096,
        |n| client.send(&stream(n)),
        |n| client.call(&stream(n)).0,
    );
    let event = |event| CuEventCreate { event, flags: 0 };
    fill(
        &client,
        1 << 20,
        |n| client.send(&event(n)),
        |n| client.call(&event(n)).0,
    );
    let graph = |exec| CuGraphInstantiateWithFlags {
        exec,
        flags: 0,
        node_count: 0,
        node_bytes: 0,
        edge_count: 0,
        bulk: 0,
        data: &[],
    };
    fill(
        &client,
        1 << 14,
        |n| client.send(&graph(n)),
        |n| client.call(&graph(n)).0,
    );
    let ptx = b".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry k() { ret; }\n";
    let (hash, image) = (content_hash(ptx), compress_for_wire(ptx));
    let load = |module| CuModuleLoadData {
        module,
        kind: 1,
        total_bytes: image.len() as u64,
        bulk: 0,
        hash: &hash,
        image: &image,
    };
    fill(
        &client,
        1 << 16,
        // The loader's queue has a bound of its own, of 1024.
        |n| match n % 512 {
            0 => assert_eq!(client.call(&load(n)).0, 0),
            _ => client.send(&load(n)),
        },
        |n| client.call(&load(n)).0,
    );
    // It goes on, and others do not notice.
    assert_eq!(client.alloc(0, MIB), 0);
    assert_eq!(Client::connect(&server.address).synchronize(), 0);
    assert!(resident_bytes(&server) < RESIDENT_BYTES_MAX);
}

#[test]
fn allocations_are_bounded() {
    let server = server();
    let client = Client::connect(&server.address);
    let base = client.base();
    let block = |n: u64| CuMemAllocV2 {
        addr: base + (n - 1) * 512,
        bytes: 512,
    };
    // 64 MiB in pieces of the least size.
    fill(
        &client,
        64 * MIB / 512,
        |n| client.send(&block(n)),
        |n| client.call(&block(n)).0,
    );
    assert!(resident_bytes(&server) < RESIDENT_BYTES_MAX);
}

#[test]
fn huge_counts_are_refused() {
    let server = server();
    let client = Client::connect(&server.address);
    assert_eq!(client.alloc(0, MIB), 0);
    let base = client.base();
    for bytes in [u64::MAX, u64::MAX - 511, 1 << 63, 1 << 40] {
        let refused = client.alloc(MIB, bytes);
        assert!(
            [INVALID_VALUE, OUT_OF_MEMORY].contains(&refused),
            "{bytes}: {refused}"
        );
        let copy = CuMemcpyDtoHAsyncV2 {
            src: base,
            count: bytes,
            stream: 0,
            bulk: 1,
        };
        assert_eq!(client.call(&copy).0, INVALID_VALUE, "{bytes}");
        for width in [1, 2, 4] {
            let set = CuMemsetD8Async {
                dst: base,
                value: 0,
                width,
                count: bytes,
                stream: 0,
            };
            assert_eq!(client.call(&set).0, INVALID_VALUE, "{bytes} of {width}");
        }
    }
    let graph = |node_count, node_bytes, edge_count| CuGraphInstantiateWithFlags {
        exec: node_count ^ node_bytes ^ edge_count,
        flags: 0,
        node_count,
        node_bytes,
        edge_count,
        bulk: 0,
        data: &[0; 16],
    };
    for (nodes, bytes, edges) in [
        (u64::MAX, 16, 0),
        (1, u64::MAX, 0),
        (1, 16, u64::MAX),
        (1, 1 << 62, 1 << 62),
    ] {
        let (status, _) = client.call(&graph(nodes, bytes, edges));
        assert_ne!(status, 0, "{nodes} nodes, {bytes} bytes, {edges} edges");
    }
    assert_eq!(client.synchronize(), 0);
    assert!(resident_bytes(&server) < RESIDENT_BYTES_MAX);
}

/// A graph that has a graph in it would be run by whoever runs the nodes.
#[test]
fn graphs_do_not_nest() {
    let server = server();
    let client = Client::connect(&server.address);
    let inner = to_vec(
        Head::request(CuGraphLaunch::NUMBER, support::CONTEXT, 0),
        &CuGraphLaunch { exec: 1, stream: 0 },
    );
    let outer = CuGraphInstantiateWithFlags {
        exec: 1,
        flags: 0,
        node_count: 1,
        node_bytes: inner.len() as u64,
        edge_count: 0,
        bulk: 0,
        data: &inner,
    };
    let nested = client.try_call(&outer);
    assert!(
        nested.as_ref().map_or(true, |(status, _)| *status != 0),
        "{nested:?}"
    );
    assert_eq!(Client::connect(&server.address).synchronize(), 0);
}

#[test]
fn images_that_expand_are_refused_by_their_size() {
    let server = server();
    let client = Client::connect(&server.address);
    // 256 MiB of zeros are some thousand bytes on the wire; their header is then made to say more, and less.
    let packed = compress_for_wire(&vec![0; 256 << 20]);
    for says in [1_u64 << 31, u64::MAX, 1000] {
        let mut image = packed.clone();
        image[8..16].copy_from_slice(&says.to_le_bytes());
        let load = CuModuleLoadData {
            module: 1,
            kind: 1,
            total_bytes: image.len() as u64,
            bulk: 0,
            hash: &content_hash(&image),
            image: &image,
        };
        assert_ne!(client.call(&load).0, 0, "{says}");
    }
    assert_eq!(client.synchronize(), 0);
    assert!(resident_bytes(&server) < RESIDENT_BYTES_MAX);
}

/// 4 GiB of answers that nobody reads: the executor holds back what does not go out.
#[test]
fn unread_answers_take_bounded_memory() {
    let server = server();
    let client = Client::connect(&server.address);
    assert_eq!(client.alloc(0, MIB), 0);
    for bulk in 1..=4096 {
        let copy = CuMemcpyDtoHAsyncV2 {
            src: client.base(),
            count: MIB,
            stream: 0,
            bulk,
        };
        let _unread = client.begin(&copy);
    }
    client.endpoint.flush().unwrap();
    assert_eq!(Client::connect(&server.address).synchronize(), 0);
    let resident = resident_bytes(&server);
    assert!(resident < RESIDENT_BYTES_MAX, "{resident}");
}

/// Everybody has the same lease.
#[derive(Debug)]
struct OneLease(String);

impl Admission for OneLease {
    fn admit(&self, shown: Option<&[u8]>, _peer: Option<SocketAddr>) -> Result<Admitted, String> {
        let lease = shown.and_then(|shown| std::str::from_utf8(shown).ok()?.parse().ok());
        Ok(Admitted {
            lease: lease.ok_or("no number")?,
            client: "ann".to_owned(),
            devices: vec![AdmittedDevice {
                uuid: self.0.clone(),
                memory_bytes: MIB,
                share_permille: 100,
            }],
        })
    }
}

#[test]
fn a_lease_has_so_many_sessions_and_no_more() {
    let mut options = ServeOptions {
        listen: "127.0.0.1:0".to_owned(),
        device: DeviceChoice::Null,
        lease_sessions_max: 2,
        cache_bytes_max: 0,
        executor: Some(vec![
            env!("CARGO_BIN_EXE_farcall-test-server").into(),
            EXECUTOR_COMMAND.into(),
        ]),
        ..Default::default()
    };
    let inventory = Server::bind(&options).unwrap().inventory().unwrap();
    options.admission = Some(Arc::new(OneLease(uuid(&inventory))));
    let server = Server::bind(&options).unwrap();
    let (address, stopper) = (server.local_addr().to_string(), server.stopper());
    let thread = std::thread::spawn(move || server.run());
    let open = |lease: &str| Client::connect_as(&address, lease);
    let (one, two) = (open("7").unwrap(), open("7").unwrap());
    match open("7") {
        Err(ConnectError::Refused { code, message, .. }) => {
            assert_eq!(code, RefuseCode::BUSY);
            assert!(message.contains("2 sessions"), "{message}");
        }
        other => panic!("{:?}", other.map(|_| ())),
    }
    assert_eq!(open("8").unwrap().synchronize(), 0, "another lease");
    drop(one);
    eventually("there is room again", || open("7").is_ok());
    assert_eq!(two.synchronize(), 0);
    drop(two);
    stopper.stop();
    thread.join().unwrap().unwrap();
}

fn uuid(inventory: &Inventory) -> String {
    inventory.devices[0].uuid.clone()
}
