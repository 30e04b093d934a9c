//! The way in: every exported function comes through here.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

use farcall_marshal::catalogue;
use farcall_marshal::status::{CuResult, CuStatus};

use crate::{counters, observe, steps};

/// Runs one call that is counted, traced or recorded.
#[cold]
pub(crate) fn observed(number: u16, args: &[u64], body: impl FnOnce() -> CuResult) -> u32 {
    let Some(info) = catalogue::call(number) else {
        return guarded(body);
    };
    counters::entered(info);
    steps::captured(info);
    let began = Instant::now();
    let recording = observe::record(info, args, began);
    let status = guarded(body);
    if let Some(running) = recording {
        observe::recorded(running, info, args, status, began);
    }
    steps::returned(info, CuStatus(status));
    observe::called(info, args, status, began);
    status
}

/// A call that is declared but not implemented.
#[cold]
pub(crate) fn missing(number: u16) -> u32 {
    let Some(info) = catalogue::call(number) else {
        return CuStatus::NOT_SUPPORTED.0;
    };
    let began = Instant::now();
    let status = observe::missing(info).0;
    if observe::is_on() {
        counters::entered(info);
        observe::called(info, &[], status, began);
    }
    status
}

/// Runs one call: a panic must not unwind into the program; it is a bug of ours, so it says where.
#[inline]
pub(crate) fn guarded(body: impl FnOnce() -> CuResult) -> u32 {
    let code = || match body() {
        Ok(()) => 0,
        Err(status) => refused(status),
    };
    catch_unwind(AssertUnwindSafe(code)).unwrap_or(CuStatus::UNKNOWN.0)
}

/// The code of an error. Out of the way of what succeeds, which else computes its code from a result in memory: a sixth
/// of the shortest calls.
#[cold]
#[inline(never)]
fn refused(status: CuStatus) -> u32 {
    std::hint::black_box(status.0)
}
