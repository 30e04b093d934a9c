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
use crate::share::gate;

mod boxes;
mod mapped;
mod passing;
mod programs;
mod tensor_maps;

const CONTEXT: u32 = 1;
const NOT_READY: u32 = 600;

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
            gate: gate::tests::alone(1),
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
            &mut |_, _| None,
            &to_vec(Head::request(R::NUMBER, CONTEXT, 0), record),
            &mut 0,
        )
        .unwrap();
    }

    /// With a ticket, which is returned.
    fn begin<'a, R: Record<'a>>(&mut self, record: &R) -> u32 {
        self.ticket += 1;
        take(
            &mut self.device,
            &mut |_, _| None,
            &to_vec(Head::request(R::NUMBER, CONTEXT, self.ticket), record),
            &mut 0,
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
    rig.streams(1, &[10, 11, 12]);
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
    // Too long for the calling thread: the device thread, which takes the oldest that is ready, has looked at the free.
    let long = CuMemsetD8Async {
        count: MIB / 2,
        ..fill(base + MIB / 2, 1, 12)
    };
    assert_eq!(rig.call(&long), 0);
    assert!(!rig.heard.has_reply(freed));
    rig.heard.deliver(1, &[1; 4096]);
    assert_eq!((rig.heard.reply(up).0, rig.heard.reply(freed).0), (0, 0));
}
