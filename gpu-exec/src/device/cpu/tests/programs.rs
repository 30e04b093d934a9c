//! Graphs, kernels, modules.

use farcall_marshal::record::{Head, Record, to_vec};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::*;

use super::{CONTEXT, MIB, Rig, fill};

const ILLEGAL_ADDRESS: u32 = 700;

fn launch(function: u64, block_x: u32, params: &[u8]) -> CuLaunchKernel<'_> {
    let one = 1;
    CuLaunchKernel {
        function,
        stream: 0,
        grid_x: one,
        grid_y: one,
        grid_z: one,
        block_x,
        block_y: one,
        block_z: one,
        shared_bytes: 0,
        flags: 0,
        params,
    }
}

/// A memset, a host function, a copy.
fn nodes(base: u64) -> Vec<u8> {
    let request = |number| Head::request(number, CONTEXT, 0);
    let mut data = to_vec(request(CuMemsetD8Async::NUMBER), &fill(base, 5, 0));
    let call = CuLaunchHostFunc {
        stream: 0,
        callback: 3,
    };
    data.extend(to_vec(request(CuLaunchHostFunc::NUMBER), &call));
    let copy = CuMemcpyDtoDAsyncV2 {
        dst: base + 512,
        src: base,
        count: 64,
        stream: 0,
    };
    data.extend(to_vec(request(CuMemcpyDtoDAsyncV2::NUMBER), &copy));
    data
}

fn graph(
    exec: u64,
    node_count: u64,
    bulk: u64,
    data: &[u8],
    node_bytes: usize,
) -> CuGraphInstantiateWithFlags<'_> {
    let node_bytes = node_bytes as u64;
    CuGraphInstantiateWithFlags {
        exec,
        flags: 0,
        node_count,
        node_bytes,
        edge_count: 0,
        bulk,
        data,
    }
}

#[test]
fn graphs_run_their_nodes_in_order_and_stop_for_host_functions() {
    let mut rig = Rig::new(false);
    rig.streams(1, &[10]);
    let base = rig.base;
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: MIB
        }),
        0
    );
    let data = nodes(base);
    assert_eq!(rig.call(&graph(1, 3, 0, &data, data.len())), 0);
    assert_eq!(
        rig.call(&graph(2, 4, 0, &data, data.len())),
        1,
        "not as many nodes as announced"
    );
    let launched = rig.begin(&CuGraphLaunch {
        exec: 1,
        stream: 10,
    });
    let after = rig.begin(&fill(base, 6, 10));
    let due = HostFuncDue::decode_body(&rig.heard.message(HostFuncDue::NUMBER)).unwrap();
    assert_eq!((due.callback, due.stream), (3, 10));
    assert!(!rig.heard.has_reply(launched) && !rig.heard.has_reply(after));
    rig.release(10, 3);
    assert_eq!(
        (rig.heard.reply(launched).0, rig.heard.reply(after).0),
        (0, 0)
    );
    assert_eq!(
        (rig.read(base, 1, 10), rig.read(base + 512, 1, 10)),
        (vec![6], vec![5])
    );
}

#[test]
fn a_graph_whose_definition_is_on_its_way_holds_its_launches() {
    let mut rig = Rig::new(false);
    rig.streams(1, &[10]);
    let base = rig.base;
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: MIB
        }),
        0
    );
    let data = nodes(base);
    // A definition that comes later: launches wait for it.
    let defined = rig.begin(&graph(4, 3, 77, &[], data.len()));
    let launched = rig.begin(&CuGraphLaunch {
        exec: 4,
        stream: 10,
    });
    assert!(!rig.heard.has_reply(defined) && !rig.heard.has_reply(launched));
    rig.heard.deliver(77, &data);
    assert_eq!(rig.heard.reply(defined).0, 0);
    let begun = || {
        rig.heard
            .records
            .lock()
            .iter()
            .filter(|record| record[4..6] == HostFuncDue::NUMBER.to_le_bytes())
            .count()
            == 1
    };
    while !begun() {
        std::thread::yield_now();
    }
    rig.release(10, 3);
    assert_eq!(rig.heard.reply(launched).0, 0);
}

#[test]
fn a_fault_is_sticky_until_the_context_is_reset() {
    let ptx = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry poke(.param .u64 at)\n{\n.reg .b64 %rd<2>;\n.reg .b32 %r<2>;\n\
               ld.param.u64 %rd1, [at];\nmov.u32 %r1, 7;\nst.global.u32 [%rd1], %r1;\nret;\n}\n";
    let mut rig = Rig::new(true);
    let base = rig.base;
    assert_eq!(rig.load(1, ptx), (0, String::new()));
    assert_eq!(
        rig.call(&CuModuleGetFunction {
            function: 2,
            module: 1,
            name: "poke"
        }),
        0
    );
    assert_eq!(
        rig.call(&CuModuleGetFunction {
            function: 3,
            module: 1,
            name: "nothing"
        }),
        CuStatus::NOT_FOUND.0
    );
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: MIB
        }),
        0
    );
    rig.send(&launch(2, 1, &base.to_le_bytes()));
    assert_eq!(rig.read(base, 4, 0), [7, 0, 0, 0]);
    assert_eq!(
        rig.call(&launch(2, 2000, &base.to_le_bytes())),
        1,
        "too many threads"
    );
    assert_eq!(rig.call(&launch(2, 1, &[])), 1, "no parameters");
    rig.send(&launch(2, 1, &(base + MIB).to_le_bytes()));
    assert_eq!(rig.call(&CuCtxSynchronize {}), ILLEGAL_ADDRESS);
    assert_eq!(
        rig.heard.notices(),
        [(ILLEGAL_ADDRESS, u32::from(CuLaunchKernel::NUMBER), true)]
    );
    for status in [
        rig.call(&fill(base, 1, 0)),
        rig.call(&CuMemAllocV2 {
            addr: base + MIB,
            bytes: 512,
        }),
        rig.call(&CuStreamQuery { stream: 0 }),
    ] {
        assert_eq!(status, ILLEGAL_ADDRESS);
    }
    assert_eq!(rig.call(&CuDevicePrimaryCtxResetV2 { device: 0 }), 0);
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: 64 * MIB
        }),
        0,
        "all of its memory is back"
    );
    assert_eq!(rig.read(base, 4, 0), [0; 4]);
    assert_eq!(
        rig.call(&launch(2, 1, &base.to_le_bytes())),
        CuStatus::INVALID_HANDLE.0,
        "its modules are gone"
    );
}

/// The client does not wait for a load on a device that compiles nothing, so its launches may overtake the loader.
#[test]
fn launches_that_come_before_their_module_is_loaded() {
    let mut rig = Rig::new(false);
    for module in 1..=50 {
        let text = format!(
            "// {module}\n.version 8.0\n.target sm_90\n.address_size 64\n.visible .entry any()\n{{\nret;\n}}\n"
        );
        rig.send(&CuModuleLoadData {
            module,
            kind: 1,
            total_bytes: 0,
            bulk: 0,
            hash: &farcall_marshal::image::content_hash(text.as_bytes()),
            image: &farcall_marshal::image::compress_for_wire(text.as_bytes()),
        });
        rig.send(&CuModuleGetFunction {
            module,
            function: 100 + module,
            name: "any",
        });
        rig.send(&launch(100 + module, 1, &[]));
    }
    assert_eq!(rig.call(&CuCtxSynchronize {}), 0);
    assert_eq!(rig.heard.notices(), []);
}

#[test]
fn bad_modules_are_explained() {
    let mut rig = Rig::new(true);
    let (status, message) = rig.load(
        1,
        ".version 8.0\n.target sm_90\n.address_size 64\n.entry k()\n{\nfrobnicate.u32 %r1;\n}\n",
    );
    assert_eq!(status, CuStatus::INVALID_PTX.0);
    assert!(
        message.contains("frobnicate") && message.contains("line 6"),
        "{message}"
    );
    let hash = [1; 32];
    let image = farcall_marshal::image::compress_for_wire(b"x");
    let load = |image| CuModuleLoadData {
        module: 2,
        kind: 2,
        total_bytes: 0,
        bulk: 0,
        hash: &hash,
        image,
    };
    assert_eq!(
        rig.call(&load(&image)),
        CuStatus::INVALID_IMAGE.0,
        "not what its hash says"
    );
    assert_eq!(
        rig.call(&load(&[])),
        CuStatus::FILE_NOT_FOUND.0,
        "not in the cache"
    );
    assert_eq!(
        rig.call(&load(b"garbage that was never compressed")),
        CuStatus::INVALID_IMAGE.0
    );
}

#[test]
fn the_null_device_takes_any_image_and_any_kernel_and_has_its_variables() {
    let mut rig = Rig::new(false);
    let ptx = ".version 8.0\n.target sm_90\n.address_size 64\n.global .align 4 .b8 table[100];\n.visible .entry k()\n{\nfrobnicate;\n}\n";
    assert_eq!(rig.load(1, ptx), (0, String::new()));
    assert_eq!(rig.load(2, "anything").0, 0);
    assert_eq!(
        rig.call(&CuModuleGetFunction {
            function: 5,
            module: 2,
            name: "whatever"
        }),
        0
    );
    assert_eq!(rig.call(&launch(5, 256, &[1, 2, 3])), 0);
    assert_eq!(rig.call(&launch(5, 0, &[])), 1);
    let ticket = rig.begin(&CuModuleGetGlobalV2 {
        module: 1,
        name: "table",
    });
    let (status, body) = rig.heard.reply(ticket);
    let global = CuModuleGetGlobalV2Reply::decode_body(&body).unwrap();
    assert_eq!((status, global.bytes), (0, 100));
    assert_eq!(rig.read(global.addr, 100, 0), [0; 100]);
}

#[test]
fn host_memory_lies_in_its_own_range() {
    let mut rig = Rig::new(false);
    let (base, host) = (rig.base, rig.host);
    assert_eq!(
        rig.call(&CuMemHostAlloc {
            addr: host,
            bytes: 100,
            flags: 0
        }),
        0
    );
    assert_eq!(
        rig.call(&CuMemAllocManaged {
            addr: host + 4096,
            bytes: 4096,
            flags: 1
        }),
        0
    );
    assert_eq!(
        rig.call(&CuMemAllocManaged {
            addr: base,
            bytes: 4096,
            flags: 1
        }),
        1
    );
    assert_eq!(rig.call(&fill(host, 3, 0)), 0);
    assert_eq!(
        rig.call(&CuMemFreeV2 { addr: host }),
        1,
        "pinned memory is not device memory"
    );
    assert_eq!(rig.call(&CuMemFreeHost { addr: host }), 0);
    assert_eq!(rig.call(&CuMemFreeV2 { addr: host + 4096 }), 0);
}
