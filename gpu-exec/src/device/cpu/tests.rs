//! Order, events, errors and limits of the CPU devices, without a connection. Host functions hold streams: they
//! end when the test says so.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use farcall_marshal::record::{Head, Record, to_vec};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::*;

use super::memory::tests::{MIB, memory};
use super::{CpuDevice, CpuParts};
use crate::cache::Cache;
use crate::device::Device;
use crate::executor::outbox::tests::Recorder;
use crate::executor::session::take;

const CONTEXT: u32 = 1;
const NOT_READY: u32 = 600;
const ILLEGAL_ADDRESS: u32 = 700;

struct Rig {
    device: CpuDevice,
    heard: Arc<Recorder>,
    base: u64,
    host: u64,
    ticket: u32,
}

impl Rig {
    fn new(runs_kernels: bool) -> Self {
        let (memory, turn) = memory(64 * MIB);
        let heard = Arc::new(Recorder::default());
        let (base, host) = (memory.device_area().base, memory.host_area().base);
        let outbox = heard.clone();
        let parts = CpuParts {
            memory,
            turn,
            outbox,
            cache: Cache::new(None),
            runs_kernels,
            workers: 2,
            device_count: 1,
        };
        let mut rig = Self {
            device: CpuDevice::new(parts),
            heard,
            base,
            host,
            ticket: 0,
        };
        rig.send(&CuDevicePrimaryCtxRetain {
            device: 0,
            flags: 0,
        });
        rig
    }

    /// One way.
    fn send<'a, R: Record<'a>>(&mut self, record: &R) {
        take(
            &mut self.device,
            &to_vec(Head::request(R::NUMBER, CONTEXT, 0), record),
        )
        .unwrap();
    }

    /// With a ticket, which is returned.
    fn begin<'a, R: Record<'a>>(&mut self, record: &R) -> u32 {
        self.ticket += 1;
        take(
            &mut self.device,
            &to_vec(Head::request(R::NUMBER, CONTEXT, self.ticket), record),
        )
        .unwrap();
        self.ticket
    }

    /// With a ticket, and waits: the status.
    fn call<'a, R: Record<'a>>(&mut self, record: &R) -> u32 {
        let ticket = self.begin(record);
        self.heard.reply(ticket).0
    }

    fn streams(&mut self, flags: u32, handles: &[u64]) {
        for stream in handles {
            assert_eq!(
                self.call(&CuStreamCreateWithPriority {
                    stream: *stream,
                    flags,
                    priority: 0
                }),
                0
            );
        }
    }

    /// Holds a stream until [`Self::release`].
    fn hold(&mut self, stream: u64, callback: u64) {
        self.send(&CuLaunchHostFunc { stream, callback });
    }

    fn release(&mut self, stream: u64, callback: u64) {
        self.device
            .host_func_done(HostFuncDone { callback, stream })
            .unwrap();
    }

    fn read(&mut self, src: u64, count: u64, stream: u64) -> Vec<u8> {
        let ticket = self.begin(&CuMemcpyDtoHAsyncV2 {
            src,
            count,
            stream,
            bulk: 0,
        });
        let (status, body) = self.heard.reply(ticket);
        assert_eq!(status, 0);
        CuMemcpyDtoHAsyncV2Reply::decode_body(&body)
            .unwrap()
            .data
            .to_vec()
    }

    fn load(&mut self, module: u64, ptx: &str) -> (u32, String) {
        let hash = farcall_marshal::image::content_hash(ptx.as_bytes());
        let image = farcall_marshal::image::compress_for_wire(ptx.as_bytes());
        let ticket = self.begin(&CuModuleLoadData {
            module,
            kind: 1,
            total_bytes: 0,
            bulk: 0,
            hash: &hash,
            image: &image,
        });
        let (status, body) = self.heard.reply(ticket);
        (
            status,
            CuModuleLoadDataReply::decode_body(&body)
                .unwrap()
                .message
                .to_owned(),
        )
    }
}

fn fill(dst: u64, value: u32, stream: u64) -> CuMemsetD8Async {
    CuMemsetD8Async {
        dst,
        count: 64,
        stream,
        value,
        width: 1,
    }
}

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

#[test]
fn non_blocking_streams_go_on_while_another_waits() {
    let mut rig = Rig::new(false);
    rig.streams(1, &[10, 11]);
    let base = rig.base;
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: MIB
        }),
        0
    );
    rig.hold(10, 1);
    let held = rig.begin(&fill(base, 1, 10));
    assert_eq!(rig.call(&fill(base + 64, 2, 11)), 0);
    assert_eq!(rig.call(&CuStreamQuery { stream: 10 }), NOT_READY);
    assert_eq!(rig.call(&CuStreamQuery { stream: 11 }), 0);
    assert!(!rig.heard.has_reply(held));
    rig.release(10, 1);
    assert_eq!(rig.heard.reply(held).0, 0);
    assert_eq!(
        rig.read(base + 32, 64, 11),
        [[1; 32], [2; 32]].as_flattened()
    );
}

#[test]
fn the_legacy_stream_and_blocking_streams_wait_for_each_other() {
    let mut rig = Rig::new(false);
    rig.streams(0, &[10, 11]);
    rig.streams(1, &[12]);
    let base = rig.base;
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: MIB
        }),
        0
    );
    rig.hold(10, 1);
    let legacy = rig.begin(&fill(base, 1, 0));
    let after_legacy = rig.begin(&fill(base, 2, 11));
    assert_eq!(
        rig.call(&fill(base + 128, 3, 12)),
        0,
        "a non-blocking stream does not care"
    );
    assert!(!rig.heard.has_reply(legacy) && !rig.heard.has_reply(after_legacy));
    rig.release(10, 1);
    assert_eq!(
        (rig.heard.reply(legacy).0, rig.heard.reply(after_legacy).0),
        (0, 0)
    );
    assert_eq!(rig.read(base, 1, 0), [2], "in the order of the calls");
}

#[test]
fn events_order_streams_and_take_times() {
    let mut rig = Rig::new(false);
    rig.streams(1, &[10, 11]);
    let base = rig.base;
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: MIB
        }),
        0
    );
    for (event, flags) in [(1, 0), (2, 0), (3, 2)] {
        assert_eq!(rig.call(&CuEventCreate { event, flags }), 0);
    }
    assert_eq!(rig.call(&CuEventQuery { event: 1 }), 0, "never recorded");
    rig.send(&CuEventRecordWithFlags {
        event: 1,
        stream: 10,
        flags: 0,
    });
    rig.hold(10, 1);
    rig.send(&CuEventRecordWithFlags {
        event: 2,
        stream: 10,
        flags: 0,
    });
    rig.send(&CuStreamWaitEvent {
        stream: 11,
        event: 2,
        flags: 0,
    });
    let after = rig.begin(&fill(base, 9, 11));
    let synchronized = rig.begin(&CuEventSynchronize { event: 2 });
    assert_eq!(rig.call(&CuEventQuery { event: 1 }), 0);
    assert_eq!(rig.call(&CuEventQuery { event: 2 }), NOT_READY);
    assert_eq!(
        rig.call(&CuEventElapsedTime { start: 1, end: 2 }),
        NOT_READY
    );
    assert!(!rig.heard.has_reply(after) && !rig.heard.has_reply(synchronized));
    rig.release(10, 1);
    assert_eq!(
        (rig.heard.reply(after).0, rig.heard.reply(synchronized).0),
        (0, 0)
    );
    let elapsed = rig.begin(&CuEventElapsedTime { start: 1, end: 2 });
    let (status, body) = rig.heard.reply(elapsed);
    assert_eq!(status, 0);
    assert!(CuEventElapsedTimeReply::decode_body(&body).unwrap().ms > 0.0);
    rig.send(&CuEventRecordWithFlags {
        event: 3,
        stream: 10,
        flags: 0,
    });
    assert_eq!(
        rig.call(&CuEventElapsedTime { start: 1, end: 3 }),
        CuStatus::INVALID_HANDLE.0,
        "made without timing"
    );
    assert_eq!(
        rig.call(&CuEventQuery { event: 99 }),
        CuStatus::INVALID_HANDLE.0
    );
}

#[test]
fn free_waits_for_work_and_a_new_block_waits_for_the_free() {
    let mut rig = Rig::new(false);
    rig.streams(1, &[10]);
    let base = rig.base;
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: 64 * MIB
        }),
        0
    );
    rig.hold(10, 1);
    rig.send(&fill(base, 7, 10));
    let freed = rig.begin(&CuMemFreeV2 { addr: base });
    // The same memory again: neither refused nor given early.
    let again = rig.begin(&CuMemAllocV2 {
        addr: base + MIB,
        bytes: 63 * MIB,
    });
    let used = rig.begin(&fill(base + MIB, 8, 0));
    assert!(
        ![freed, again, used]
            .iter()
            .any(|ticket| rig.heard.has_reply(*ticket))
    );
    rig.release(10, 1);
    for ticket in [freed, again, used] {
        assert_eq!(rig.heard.reply(ticket).0, 0);
    }
    assert_eq!(
        rig.call(&CuMemcpyDtoDAsyncV2 {
            dst: base + 2 * MIB,
            src: base,
            count: 4,
            stream: 0
        }),
        1,
        "gone"
    );
    assert!(rig.heard.notices().is_empty());
}

#[test]
fn stream_ordered_allocation_reuses_what_the_stream_has_freed() {
    let mut rig = Rig::new(false);
    rig.streams(1, &[10]);
    let base = rig.base;
    rig.hold(10, 1);
    rig.send(&CuMemAllocAsync {
        addr: base,
        bytes: 64 * MIB,
        stream: 10,
    });
    rig.send(&CuMemFreeAsync {
        addr: base,
        stream: 10,
    });
    rig.send(&CuMemAllocAsync {
        addr: base,
        bytes: 64 * MIB,
        stream: 10,
    });
    let last = rig.begin(&fill(base + 63 * MIB, 1, 10));
    rig.release(10, 1);
    assert_eq!(rig.heard.reply(last).0, 0);
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: 512
        }),
        1,
        "overlaps"
    );
    assert!(rig.heard.notices().is_empty());
}

#[test]
fn failures_nobody_waits_for_become_notices() {
    let mut rig = Rig::new(false);
    let base = rig.base;
    rig.send(&CuMemAllocV2 {
        addr: base,
        bytes: 65 * MIB,
    });
    rig.send(&fill(base, 1, 0));
    rig.send(&CuStreamDestroyV2 { stream: 5 });
    let calls = [
        (2, CuMemAllocV2::NUMBER),
        (1, CuMemsetD8Async::NUMBER),
        (400, CuStreamDestroyV2::NUMBER),
    ];
    let want: Vec<_> = calls
        .iter()
        .map(|(status, call)| (*status, u32::from(*call), false))
        .collect();
    assert_eq!(rig.heard.notices(), want);
    assert_eq!(rig.call(&CuCtxSynchronize {}), 0, "none of them is sticky");
}

#[test]
fn uploads_are_received_in_place_ahead_or_late_but_in_order() {
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
    let up = |dst, bulk| CuMemcpyHtoDAsyncV2 {
        dst,
        count: 128,
        stream: 10,
        bulk,
        data: &[],
    };
    let first = rig.begin(&up(base, 1));
    let behind = rig.begin(&fill(base, 2, 10));
    let second = rig.begin(&up(base, 2));
    assert!(
        rig.heard.is_posted(1) && rig.heard.is_posted(2),
        "the second is received ahead"
    );
    rig.heard.deliver(2, &[3; 128]);
    assert!(
        ![first, behind, second]
            .iter()
            .any(|ticket| rig.heard.has_reply(*ticket))
    );
    rig.heard.deliver(1, &[1; 128]);
    for ticket in [first, behind, second] {
        assert_eq!(rig.heard.reply(ticket).0, 0);
    }
    assert_eq!(rig.read(base, 128, 10), [3; 128]);
    let short = rig.begin(&up(base, 3));
    rig.heard.deliver(3, &[9; 100]);
    assert_eq!(rig.heard.reply(short).0, 1, "not what was announced");
    let nowhere = rig.begin(&up(base + 8 * MIB, 4));
    assert_eq!(rig.heard.reply(nowhere).0, 1);
    assert!(
        rig.heard.is_posted(4),
        "its bytes are taken off the bulk plane"
    );
}

#[test]
fn memory_is_not_freed_under_an_upload() {
    let mut rig = Rig::new(false);
    rig.streams(1, &[10, 11]);
    let base = rig.base;
    assert_eq!(
        rig.call(&CuMemAllocV2 {
            addr: base,
            bytes: MIB
        }),
        0
    );
    let up = rig.begin(&CuMemcpyHtoDAsyncV2 {
        dst: base,
        count: 4096,
        stream: 10,
        bulk: 1,
        data: &[],
    });
    // In the order of another stream: a mistake of the program, which must not harm the server.
    let freed = rig.begin(&CuMemFreeAsync {
        addr: base,
        stream: 11,
    });
    assert!(!rig.heard.has_reply(freed));
    rig.heard.deliver(1, &[1; 4096]);
    assert_eq!((rig.heard.reply(up).0, rig.heard.reply(freed).0), (0, 0));
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
    let request = |number| Head::request(number, CONTEXT, 0);
    let mut data = to_vec(request(CuMemsetD8Async::NUMBER), &fill(base, 5, 0));
    data.extend(to_vec(
        request(CuLaunchHostFunc::NUMBER),
        &CuLaunchHostFunc {
            stream: 0,
            callback: 3,
        },
    ));
    let copy = CuMemcpyDtoDAsyncV2 {
        dst: base + 512,
        src: base,
        count: 64,
        stream: 0,
    };
    data.extend(to_vec(request(CuMemcpyDtoDAsyncV2::NUMBER), &copy));
    let node_bytes = data.len() as u64;
    let make = |exec, node_count, bulk, data| CuGraphInstantiateWithFlags {
        exec,
        flags: 0,
        node_count,
        node_bytes,
        edge_count: 0,
        bulk,
        data,
    };
    assert_eq!(rig.call(&make(1, 3, 0, &data)), 0);
    assert_eq!(
        rig.call(&make(2, 4, 0, &data)),
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
    // A definition that comes later: launches wait for it.
    let defined = rig.begin(&make(4, 3, 77, &[]));
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
            == 2
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
