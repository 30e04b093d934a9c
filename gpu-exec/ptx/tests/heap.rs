//! Kernels that allocate memory themselves.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs)]

mod common;

use common::{Args, Device};
use farcall_ptx::FaultKind;

const TEXT: &str = ".version 8.0
.target sm_75
.address_size 64
.extern .func (.param .b64 result) malloc(.param .b64 bytes);
.extern .func free(.param .b64 at);
.visible .entry take(.param .u64 list, .param .u64 bytes)
{
.reg .b32 %r<4>; .reg .b64 %rd<8>; .param .b64 asked; .param .b64 got;
ld.param.u64 %rd1, [list]; ld.param.u64 %rd2, [bytes];
mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 8; add.u64 %rd1, %rd1, %rd3;
st.param.b64 [asked], %rd2; call (got), malloc, (asked); ld.param.b64 %rd4, [got];
st.global.u64 [%rd1], %rd4; ret;
}
.visible .entry give(.param .u64 list)
{
.reg .b32 %r<4>; .reg .b64 %rd<8>; .param .b64 at;
ld.param.u64 %rd1, [list]; mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 8; add.u64 %rd1, %rd1, %rd3;
ld.global.u64 %rd4, [%rd1]; st.u32 [%rd4+4], %r1; st.param.b64 [at], %rd4; call free, (at); ret;
}
";

fn taken(device: &Device, bytes: u64, list: u64) -> Vec<u64> {
    let module = device.load(TEXT);
    let args = Args::new().arg(list).arg(bytes);
    let take = module.kernel("take").unwrap();
    device.launch(&take, [1, 1, 1], [40, 1, 1], &args).unwrap();
    device.download::<u64>(list, 40)
}

#[test]
fn each_thread_has_its_own_until_it_frees_it() {
    let device = Device::new();
    let list = device.alloc(8 * 40);
    let mut starts = taken(&device, 8, list);
    let give = device.load(TEXT).kernel("give").unwrap();
    let args = Args::new().arg(list);
    device.launch(&give, [1, 1, 1], [40, 1, 1], &args).unwrap();
    for (thread, start) in starts.iter().enumerate() {
        assert_eq!(device.download::<u32>(*start, 2)[1], thread as u32);
    }
    assert!(device.memory.heap.read().is_empty());
    starts.sort_unstable();
    starts.dedup();
    assert_eq!(starts.len(), 40);
    let fault = device.launch(&give, [1, 1, 1], [40, 1, 1], &args);
    let kind = fault.unwrap_err().kind;
    assert!(matches!(kind, FaultKind::IllegalAddress { .. }), "{kind}");
}

#[test]
fn there_may_be_no_memory() {
    let device = Device::new();
    let list = device.alloc(8 * 40);
    assert_eq!(taken(&device, 1 << 30, list), [0; 40]);
}
