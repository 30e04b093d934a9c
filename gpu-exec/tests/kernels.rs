//! The soft device end to end over TCP: PTX in, numbers out, faults that stay where they belong.
#![allow(clippy::unwrap_used)]

mod support;

use farcall_gpu_exec::Inventory;
use farcall_marshal::record::Record;
use farcall_marshal::wire::*;

use support::{Client, PATIENCE, ServerProcess, launch};

const MIB: u64 = 1 << 20;
const ILLEGAL_ADDRESS: u32 = 700;
const FILE_NOT_FOUND: u32 = 301;

const VECADD: &str = r"
.version 8.0
.target sm_90
.address_size 64
.global .align 4 .u32 calls = 41;
.visible .entry vecadd(.param .u64 a, .param .u64 b, .param .u64 c, .param .u32 n)
{
    .reg .pred %p<2>;
    .reg .b32 %r<6>;
    .reg .f32 %f<4>;
    .reg .b64 %rd<12>;
    ld.param.u64 %rd1, [a];
    ld.param.u64 %rd2, [b];
    ld.param.u64 %rd3, [c];
    ld.param.u32 %r1, [n];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.u32 %p1, %r5, %r1;
    @%p1 bra DONE;
    mul.wide.u32 %rd4, %r5, 4;
    add.s64 %rd5, %rd1, %rd4;
    add.s64 %rd6, %rd2, %rd4;
    add.s64 %rd7, %rd3, %rd4;
    ld.global.f32 %f1, [%rd5];
    ld.global.f32 %f2, [%rd6];
    add.f32 %f3, %f1, %f2;
    st.global.f32 [%rd7], %f3;
DONE:
    ret;
}
.visible .entry spin()
{
LOOP:
    bra LOOP;
}
";

fn vecadd_params(client: &Client, n: u32) -> Vec<u8> {
    let base = client.base();
    let mut params: Vec<u8> = [base, base + MIB, base + 2 * MIB]
        .iter()
        .flat_map(|at| at.to_le_bytes())
        .collect();
    params.extend(n.to_le_bytes());
    params
}

fn ready(server: &ServerProcess) -> Client {
    let client = Client::connect(&server.address);
    assert_eq!(client.alloc(0, 3 * MIB), 0);
    assert_eq!(client.load(1, VECADD), (0, String::new()));
    for (function, name) in [(2, "vecadd"), (3, "spin")] {
        assert_eq!(
            client
                .call(&CuModuleGetFunction {
                    function,
                    module: 1,
                    name
                })
                .0,
            0
        );
    }
    client
}

fn check_vecadd(client: &Client, n: u32) {
    let floats = |scale: f32| {
        (0..n)
            .flat_map(|i| (i as f32 * scale).to_le_bytes())
            .collect::<Vec<u8>>()
    };
    assert_eq!(client.upload(client.base(), &floats(1.0)), 0);
    assert_eq!(client.upload(client.base() + MIB, &floats(0.5)), 0);
    client.launch(2, 0, n.div_ceil(256), 256, &vecadd_params(client, n));
    let sums = client
        .download(client.base() + 2 * MIB, n as usize * 4)
        .unwrap();
    assert_eq!(sums, floats(1.5));
}

#[test]
fn vecadd_gives_the_right_numbers() {
    let server = ServerProcess::start(&["soft", "1", "67108864"]);
    let client = ready(&server);
    check_vecadd(&client, 1000);
    check_vecadd(&client, 100_003);
}

#[test]
fn variables_of_a_module_are_device_memory() {
    let server = ServerProcess::start(&["soft", "1", "67108864"]);
    let client = ready(&server);
    let (status, body) = client.call(&CuModuleGetGlobalV2 {
        module: 1,
        name: "calls",
    });
    let global = CuModuleGetGlobalV2Reply::decode_body(&body).unwrap();
    assert_eq!((status, global.bytes), (0, 4));
    let welcome = client.welcome();
    let device_end = welcome.range_base + welcome.range_bytes;
    assert!(
        global.addr >= device_end && global.addr < welcome.host_range_base,
        "outside of the client's parts"
    );
    assert_eq!(client.download(global.addr, 4).unwrap(), [41, 0, 0, 0]);
    assert_eq!(
        client
            .call(&CuModuleGetGlobalV2 {
                module: 1,
                name: "none"
            })
            .0,
        500
    );
    assert_eq!(client.call(&CuModuleUnload { module: 1 }).0, 0);
    assert_eq!(
        client.download(global.addr, 4),
        Err(1),
        "it goes with its module"
    );
}

#[test]
fn a_fault_harms_its_own_session_alone() {
    let server = ServerProcess::start(&["soft", "1", "67108864"]);
    let (bad, good) = (ready(&server), ready(&server));
    // The third vector is too short for this many.
    bad.launch(2, 0, 4096, 256, &vecadd_params(&bad, 1 << 20));
    assert_eq!(bad.synchronize(), ILLEGAL_ADDRESS);
    let notice = bad.push(ErrorNotice::NUMBER);
    let notice = ErrorNotice::decode_body(&notice).unwrap();
    assert_eq!((notice.status, notice.sticky), (ILLEGAL_ADDRESS, 1));
    assert!(notice.message.contains("vecadd"), "{}", notice.message);
    assert_eq!(bad.download(bad.base(), 4), Err(ILLEGAL_ADDRESS));
    check_vecadd(&good, 5000);
    assert_eq!(bad.call(&CuDevicePrimaryCtxResetV2 { device: 0 }).0, 0);
    assert_eq!(bad.alloc(0, MIB), 0);
    assert_eq!(bad.synchronize(), 0);
}

#[test]
fn a_client_that_leaves_an_endless_kernel_leaves_nothing() {
    let server = ServerProcess::start(&["soft", "1", "67108864"]);
    let client = ready(&server);
    client.launch(3, 0, 1, 1, &[]);
    assert_eq!(client.call(&CuStreamQuery { stream: 0 }).0, 600);
    assert_eq!(
        client.call(&CuStreamSynchronize { stream: 99 }).0,
        400,
        "the loop answers meanwhile"
    );
    drop(client);
    support::eventually("the session is gone", || {
        let inventory = Inventory::fetch(&server.address, None, PATIENCE).unwrap();
        (
            inventory.devices[0].used_bytes,
            inventory.devices[0].sessions,
        ) == (0, 0)
    });
}

#[test]
fn launches_that_cannot_be_are_refused() {
    let server = ServerProcess::start(&["soft", "1", "67108864"]);
    let client = ready(&server);
    let params = vecadd_params(&client, 1);
    for (grid, block, params) in [
        (0, 1, &*params),
        (1, 0, &params),
        (1, 1025, &params),
        (1 << 31, 1, &params),
        (1, 1, &params[..20]),
    ] {
        assert_eq!(
            client.call(&launch(2, 0, grid, block, params)).0,
            1,
            "{grid} {block} {}",
            params.len()
        );
    }
    assert_eq!(client.call(&launch(77, 0, 1, 1, &params)).0, 400);
    check_vecadd(&client, 10);
}

#[test]
fn modules_are_kept_across_sessions() {
    let directory = tempfile::tempdir().unwrap();
    let options = farcall_gpu_exec::ServeOptions {
        listen: "127.0.0.1:0".to_owned(),
        device: farcall_gpu_exec::DeviceChoice::Soft,
        memory_bytes: Some(64 * MIB),
        cache_dir: Some(directory.path().to_owned()),
        executor: Some(vec![
            env!("CARGO_BIN_EXE_farcall-test-server").into(),
            farcall_gpu_exec::EXECUTOR_COMMAND.into(),
        ]),
        ..Default::default()
    };
    let server = farcall_gpu_exec::Server::bind(&options).unwrap();
    let (address, stopper) = (server.local_addr().to_string(), server.stopper());
    let thread = std::thread::spawn(move || server.run());
    let hash = farcall_marshal::image::content_hash(VECADD.as_bytes());
    let known = CuModuleLoadData {
        module: 1,
        kind: 1,
        total_bytes: 0,
        bulk: 0,
        hash: &hash,
        image: &[],
    };
    let first = Client::connect(&address);
    assert!(first.welcome().cached_modules.is_empty());
    assert_eq!(first.call(&known).0, FILE_NOT_FOUND);
    assert_eq!(first.load(2, VECADD).0, 0);
    let second = Client::connect(&address);
    assert_eq!(second.welcome().cached_modules, hash);
    assert_eq!(second.call(&known).0, 0);
    assert_eq!(
        second
            .call(&CuModuleGetFunction {
                function: 2,
                module: 1,
                name: "vecadd"
            })
            .0,
        0
    );
    lose_and_send(&address, directory.path(), &known);
    drop((first, second));
    stopper.stop();
    thread.join().unwrap().unwrap();
}

/// What the cache has lost since it was listed is asked for, and what was asked of the module meanwhile waits.
fn lose_and_send(address: &str, cache: &std::path::Path, known: &CuModuleLoadData<'_>) {
    let client = Client::connect(address);
    assert!(!client.welcome().cached_modules.is_empty());
    for file in std::fs::read_dir(cache).unwrap() {
        std::fs::write(file.unwrap().path(), "damaged").unwrap();
    }
    assert_eq!(client.call(known).0, FILE_NOT_FOUND);
    let name = CuModuleGetFunction {
        function: 2,
        module: known.module,
        name: "vecadd",
    };
    let ticket = client.begin(&name);
    assert_eq!(client.load(known.module, VECADD).0, 0);
    assert_eq!(client.wait(ticket).unwrap().0, 0);
    assert_eq!(client.alloc(0, 3 * MIB), 0);
    check_vecadd(&client, 1000);
    assert_ne!(client.load(known.module, VECADD).0, 0, "wanted once only");
    assert_eq!(
        client
            .call(&CuModuleLoadData {
                module: 9,
                ..*known
            })
            .0,
        0
    );
}

#[test]
fn a_token_is_needed_where_one_is_set() {
    let options = farcall_gpu_exec::ServeOptions {
        listen: "127.0.0.1:0".to_owned(),
        device: farcall_gpu_exec::DeviceChoice::Null,
        token: Some("sesame".to_owned()),
        sessions_max: 1,
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
    let fetch =
        |token| Inventory::fetch(&address, token, PATIENCE).map_err(|error| error.to_string());
    for token in [None, Some("wrong"), Some("sesame!"), Some("")] {
        assert!(fetch(token).unwrap_err().contains("token"), "{token:?}");
    }
    assert_eq!(fetch(Some("sesame")).unwrap().devices[0].sessions, 0);
    stopper.stop();
    thread.join().unwrap().unwrap();
}
