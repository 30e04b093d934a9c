//! Sessions over TCP with real processes, without the shim.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use farcall_gpu_exec::Inventory;
use farcall_marshal::record::Record;
use farcall_marshal::wire::*;
use farcall_transport::{ConnectError, ConnectOptions, RefuseCode, connect};

use support::{Client, PATIENCE, ServerProcess, eventually, hello, hello_with};

const MIB: u64 = 1 << 20;
const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const INVALID_HANDLE: u32 = 400;

fn used(server: &ServerProcess) -> (u64, u32) {
    let inventory = Inventory::fetch(&server.address, None, PATIENCE).unwrap();
    (
        inventory.devices[0].used_bytes,
        inventory.devices[0].sessions,
    )
}

#[test]
fn bytes_go_up_and_come_back_inline_and_in_bulk() {
    let server = ServerProcess::start(&["null", "1", "268435456"]);
    let client = Client::connect(&server.address);
    let base = client.base();
    assert_eq!(client.alloc(0, 8 * MIB), 0);
    for count in [1_usize, 4096, (3 << 20) + 5] {
        let data: Vec<u8> = (0..count)
            .map(|i| (i * 7 + count).to_le_bytes()[0])
            .collect();
        assert_eq!(client.upload(base + 64, &data), 0);
        assert_eq!(client.download(base + 64, count).unwrap(), data);
    }
    client.send(&CuMemsetD8Async {
        dst: base,
        count: 1024,
        stream: 0,
        value: 0x0102_0304,
        width: 4,
    });
    assert_eq!(client.download(base, 8).unwrap(), [4, 3, 2, 1, 4, 3, 2, 1]);
    client.send(&CuMemcpyDtoDAsyncV2 {
        dst: base + 4 * MIB,
        src: base,
        count: 4096,
        stream: 0,
    });
    assert_eq!(client.download(base + 4 * MIB, 4).unwrap(), [4, 3, 2, 1]);
    assert_eq!(client.download(base + 100 * MIB, 4), Err(INVALID_VALUE));
    assert_eq!(
        client.synchronize(),
        0,
        "a bad copy does not harm the context"
    );
}

#[test]
fn limits_hold_and_memory_returns_with_its_session() {
    let server = ServerProcess::start(&["null", "1", "67108864"]);
    let one = Client::connect_with(&server.address, 40 * MIB).unwrap();
    assert_eq!(one.alloc(0, 32 * MIB), 0);
    assert_eq!(
        one.alloc(32 * MIB, 9 * MIB),
        OUT_OF_MEMORY,
        "the session's limit"
    );
    let two = Client::connect(&server.address);
    assert_eq!(two.alloc(0, 33 * MIB), OUT_OF_MEMORY, "the device");
    assert_eq!(two.alloc(0, 32 * MIB), 0);
    assert_eq!(used(&server), (64 * MIB, 2));
    one.endpoint.close();
    eventually("the share of a closed session is free", || {
        used(&server) == (32 * MIB, 1)
    });
    assert_eq!(two.alloc(32 * MIB, 32 * MIB), 0);
    let freed = two.call(&CuMemFreeV2 { addr: two.base() }).0;
    assert_eq!((freed, used(&server)), (0, (32 * MIB, 1)));
    assert_eq!(
        two.call(&CuMemFreeV2 { addr: two.base() }).0,
        INVALID_VALUE,
        "freed twice"
    );
}

#[test]
fn sessions_do_not_see_each_other() {
    let server = ServerProcess::start(&["null", "1", "67108864"]);
    let (one, two) = (
        Client::connect(&server.address),
        Client::connect(&server.address),
    );
    assert_eq!(one.alloc(0, MIB), 0);
    assert_eq!(one.upload(one.base(), &[0xaa; 4096]), 0);
    assert_eq!(
        two.download(one.base(), 16),
        Err(INVALID_VALUE),
        "no memory of its own there"
    );
    assert_eq!(two.alloc(0, MIB), 0);
    assert_eq!(two.download(two.base(), 4096).unwrap(), [0; 4096]);
    one.send(&CuStreamCreateWithPriority {
        stream: 77,
        flags: 0,
        priority: 0,
    });
    assert_eq!(
        two.call(&CuStreamSynchronize { stream: 77 }).0,
        INVALID_HANDLE
    );
    assert_eq!(one.call(&CuStreamSynchronize { stream: 77 }).0, 0);
}

#[test]
fn a_killed_executor_ends_its_session_only() {
    let server = ServerProcess::start(&["null", "1", "67108864"]);
    let before = Client::connect(&server.address);
    assert_eq!(before.alloc(0, MIB), 0);
    let serving = server
        .executors()
        .into_iter()
        .find(|pid| is_serving(*pid))
        .unwrap();
    assert!(
        std::process::Command::new("kill")
            .args(["-9", &serving.to_string()])
            .status()
            .unwrap()
            .success()
    );
    let why = before.closed();
    assert!(why.contains("lost") || why.contains("closed"), "{why}");
    eventually("its share is free", || used(&server) == (0, 0));
    let after = Client::connect(&server.address);
    assert_eq!(after.alloc(0, 64 * MIB), 0);
}

/// Whether an executor has a session: then it holds the ledger.
fn is_serving(pid: u32) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    let mut files = entries
        .flatten()
        .filter_map(|entry| std::fs::read_link(entry.path()).ok());
    files.any(|file| file.to_string_lossy().contains("farcall-ledger"))
}

#[test]
fn a_client_that_vanishes_in_the_middle_of_a_batch_leaves_nothing() {
    let server = ServerProcess::start(&["null", "1", "67108864"]);
    let client = Client::connect(&server.address);
    for i in 0..32 {
        client.send(&CuMemAllocV2 {
            addr: client.base() + i * MIB,
            bytes: MIB,
        });
    }
    // An upload whose bytes never come.
    client.send(&CuMemcpyHtoDAsyncV2 {
        dst: client.base(),
        count: MIB,
        stream: 0,
        bulk: 9,
        data: &[],
    });
    client.endpoint.flush().unwrap();
    drop(client);
    eventually("everything is free", || used(&server) == (0, 0));
    assert_eq!(Client::connect(&server.address).alloc(0, 64 * MIB), 0);
}

#[test]
fn garbage_ends_the_session_and_nothing_else() {
    let server = ServerProcess::start(&["null", "1", "67108864"]);
    let good = Client::connect(&server.address);
    let garbage: [&[u8]; 6] = [
        &[0xff; 64],
        &[0; 16],
        &[16, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
        &[8, 0, 0, 0, 1, 0, 0, 0],
        // A reply.
        &[16, 0, 0, 0, 62, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 0],
        // cuMemAlloc_v2 without its body.
        &[16, 0, 0, 0, 101, 1, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0],
    ];
    for bytes in garbage {
        let bad = Client::connect(&server.address);
        bad.endpoint
            .append_now(bytes.len(), |out| out.copy_from_slice(bytes))
            .unwrap();
        bad.closed();
    }
    assert_eq!(good.alloc(0, MIB), 0, "the others go on");
    eventually("the bad ones are gone", || used(&server).1 == 1);
}

#[test]
fn bad_hellos_are_refused_with_a_reason() {
    let server = ServerProcess::start(&["null", "2"]);
    let refused = |payload: Vec<u8>| {
        let mut options = ConnectOptions::new(&*server.address);
        options.payload = payload;
        match connect(&options, std::sync::Arc::new(support::Heard::default())) {
            Err(ConnectError::Refused { code, message }) => (code, message),
            other => panic!("{:?}", other.map(|_| ())),
        }
    };
    assert_eq!(refused(b"nonsense".to_vec()).0, RefuseCode::MALFORMED);
    assert_eq!(refused(Vec::new()).0, RefuseCode::MALFORMED);
    let (code, message) = refused(hello(0, 3));
    assert_eq!(code, RefuseCode::APPLICATION);
    assert!(message.contains('3') && message.contains('2'), "{message}");
}

#[test]
fn more_sessions_than_allowed_are_refused_until_one_ends() {
    let options = farcall_gpu_exec::ServeOptions {
        listen: "127.0.0.1:0".to_owned(),
        device: farcall_gpu_exec::DeviceChoice::Null,
        sessions_max: 2,
        warm_executors: 0,
        cache_bytes_max: 0,
        executor: Some(vec![
            env!("CARGO_BIN_EXE_farcall-test-server").into(),
            farcall_gpu_exec::EXECUTOR_COMMAND.into(),
        ]),
        ..Default::default()
    };
    let server = farcall_gpu_exec::Server::bind(&options).unwrap();
    let (address, stopper) = (server.local_addr().to_string(), server.stopper());
    let thread = std::thread::spawn(move || server.run());
    let (one, two) = (Client::connect(&address), Client::connect(&address));
    assert_eq!(
        (one.synchronize(), two.synchronize()),
        (0, 0),
        "without warm executors, too"
    );
    match Client::connect_with(&address, 0) {
        Err(ConnectError::Refused { code, .. }) => assert_eq!(code, RefuseCode::BUSY),
        other => panic!("{:?}", other.map(|_| ())),
    }
    drop(one);
    eventually("there is room again", || {
        Client::connect_with(&address, 0).is_ok()
    });
    drop(two);
    stopper.stop();
    thread.join().unwrap().unwrap();
}

#[test]
fn a_warm_executor_opens_a_session_quickly() {
    let server = ServerProcess::start(&["soft"]);
    let open = || {
        let start = Instant::now();
        let client = Client::connect(&server.address);
        assert_eq!(client.synchronize(), 0);
        start.elapsed()
    };
    open();
    let mut times: Vec<Duration> = Vec::new();
    for _ in 0..10 {
        eventually("executors are ready again", || {
            server.executors().len() >= 2
        });
        times.push(open());
    }
    times.sort();
    println!("session open to first answer: {times:?}");
    assert!(times[5] < Duration::from_millis(20), "{times:?}");
}

#[test]
fn an_idle_session_takes_little_memory() {
    let server = ServerProcess::start(&["soft"]);
    let client = Client::connect(&server.address);
    assert_eq!(client.alloc(0, 64 * MIB), 0);
    assert_eq!(client.synchronize(), 0);
    let serving = server
        .executors()
        .into_iter()
        .find(|pid| is_serving(*pid))
        .unwrap();
    let status = std::fs::read_to_string(format!("/proc/{serving}/status")).unwrap();
    let kib: u64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap()
        .split_whitespace()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    println!("resident memory of an idle session: {kib} KiB");
    assert!(kib < 30 << 10, "{kib} KiB");
}

#[test]
fn sigterm_ends_the_server_its_executors_and_tells_clients() {
    let mut server = ServerProcess::start(&["null"]);
    let client = Client::connect(&server.address);
    assert_eq!(client.synchronize(), 0);
    let executors = server.executors();
    assert!(executors.len() >= 2);
    server.signal("-TERM");
    client.closed();
    assert!(server.child.wait().unwrap().success());
    for pid in executors {
        assert!(
            !std::path::Path::new(&format!("/proc/{pid}")).exists(),
            "{pid} lives"
        );
    }
}

#[test]
fn executors_do_not_outlive_a_killed_supervisor() {
    let server = ServerProcess::start(&["null"]);
    let client = Client::connect(&server.address);
    assert_eq!(client.synchronize(), 0);
    let executors = server.executors();
    server.signal("-KILL");
    client.closed();
    let runs = |pid: &u32| {
        std::fs::read_to_string(format!("/proc/{pid}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z "))
    };
    eventually("all executors have ended", || !executors.iter().any(runs));
}

#[test]
fn the_inventory_names_the_devices() {
    let server = ServerProcess::start(&["soft", "2", "67108864"]);
    let inventory = Inventory::fetch(&server.address, None, PATIENCE).unwrap();
    assert_eq!(
        (inventory.devices.len(), inventory.driver_version),
        (2, 13_000)
    );
    assert!(inventory.devices[0].name.contains("soft"));
    assert_ne!(inventory.devices[0].uuid, inventory.devices[1].uuid);
    assert_eq!(
        (
            inventory.devices[1].total_bytes,
            inventory.devices[1].used_bytes
        ),
        (64 * MIB, 0)
    );
    let client = Client::connect(&server.address);
    let welcome = client.welcome();
    assert_eq!(welcome.device_kind, 2);
    assert!(
        welcome.range_bytes >= 128 * MIB
            && welcome.host_range_base >= welcome.range_base + welcome.range_bytes
    );
    let (_, body, _) = farcall_marshal::record::split(welcome.devices).unwrap();
    let device = DeviceDescription::decode_body(body).unwrap();
    assert_eq!(
        (device.sm, device.limit_bytes, device.uuid.len()),
        (90, 64 * MIB, 16)
    );
    assert!(device.attributes.len() >= 150 * 4);
}

/// Memory of the three kinds that a client can place: 8 MiB each.
fn fill_or_look(client: &Client, fill: Option<u8>) {
    const BYTES: u64 = 8 * MIB;
    let base = client.base();
    assert_eq!(client.alloc(0, BYTES), 0);
    let (addr, bytes) = (base + BYTES, BYTES);
    let in_order = CuMemAllocAsync {
        addr,
        bytes,
        stream: 0,
    };
    assert_eq!(client.call(&in_order).0, 0);
    let create = CuMemCreate {
        handle: 3,
        bytes,
        device: 0,
    };
    assert_eq!(client.call(&create).0, 0);
    let map = CuMemMap {
        addr: base + 2 * BYTES,
        bytes,
        offset: 0,
        handle: 3,
        access: 3,
    };
    assert_eq!(client.call(&map).0, 0);
    for block in 0..3 {
        let at = base + block * BYTES;
        let len = usize::try_from(BYTES).unwrap();
        match fill {
            // Over the bulk plane, so that the server's buffers have held it, too.
            Some(byte) => assert_eq!(client.upload(at, &vec![byte; len]), 0),
            None => {
                let got = client.download(at, len).unwrap();
                assert!(got.iter().all(|byte| *byte == 0), "block {block}");
            }
        }
    }
}

/// Whether a process has a page full of this byte anywhere in its memory.
fn holds(pid: u32, byte: u8) -> bool {
    use std::os::unix::fs::FileExt as _;
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut page = vec![0; 4096];
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (start, end) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        // Pages that are reserved for a session and never touched are not in the list.
        for at in (number(start)..number(end).min(number(start) + (256 << 20))).step_by(4096) {
            if memory.read_exact_at(&mut page, at).is_ok() && page.iter().all(|b| *b == byte) {
                return true;
            }
        }
    }
    false
}

#[test]
fn what_a_session_left_is_nowhere_whatever_ended_it() {
    const LEFT: u8 = 0xa5;
    for is_killed in [false, true] {
        let server = ServerProcess::start(&["soft", "1", "67108864"]);
        let first = Client::connect(&server.address);
        fill_or_look(&first, Some(LEFT));
        let own = server.executors().into_iter().find(|pid| holds(*pid, LEFT));
        let own = own.expect("the look finds what is there");
        if is_killed {
            let pid = nix::unistd::Pid::from_raw(own.try_into().unwrap());
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        }
        drop(first);
        eventually("the memory is free", || used(&server) == (0, 0));
        let second = Client::connect(&server.address);
        fill_or_look(&second, None);
        for pid in server.executors() {
            assert!(!holds(pid, LEFT), "in a buffer of another executor");
        }
    }
}

/// Clients that come at once, before there are executors for them, get a device each.
#[test]
fn clients_that_come_at_once_are_spread_over_the_devices() {
    const DEVICES: u32 = 8;
    let server = ServerProcess::start(&["null", &DEVICES.to_string(), "67108864"]);
    let connect = |_| {
        let address = server.address.clone();
        std::thread::spawn(move || Client::connect_for(&address, hello(0, 1)).unwrap())
    };
    let clients: Vec<_> = (0..DEVICES).map(connect).collect();
    // All stay until the last one has come.
    let clients: Vec<Client> = clients.into_iter().map(|it| it.join().unwrap()).collect();
    let device = |client: &Client| {
        let (_, body, _) = farcall_marshal::record::split(client.welcome().devices).unwrap();
        DeviceDescription::decode_body(body).unwrap().server_ordinal
    };
    let mut devices: Vec<u32> = clients.iter().map(device).collect();
    devices.sort_unstable();
    assert_eq!(devices, Vec::from_iter(0..DEVICES));
}

/// A session goes where least of a device is taken, and where there is the memory that it asks for.
#[test]
fn a_session_goes_where_most_is_left() {
    let server = ServerProcess::start(&["null", "2", "67108864"]);
    let open = |memory_bytes, share| {
        Client::connect_for(&server.address, hello_with(memory_bytes, 1, share)).unwrap()
    };
    let device = |client: &Client| {
        let (_, body, _) = farcall_marshal::record::split(client.welcome().devices).unwrap();
        DeviceDescription::decode_body(body).unwrap().server_ordinal
    };
    let half = open(0, 500);
    let (tenth, fifth) = (open(0, 100), open(0, 200));
    assert_eq!([&half, &tenth, &fifth].map(device), [0, 1, 1]);
    assert_eq!(device(&open(0, 150)), 1, "0.3 are less than 0.5");
    let large = open(48 * MIB, 100);
    assert_eq!((device(&large), large.alloc(0, 48 * MIB)), (1, 0));
    assert_eq!(device(&open(32 * MIB, 100)), 0, "it has the memory");
}
