//! Events of devices: sets of them can be had, but nothing is ever in one, because servers report none. Fenced `unsafe`.
//!
//! `nvidia-smi` gives up without a set, even when it registers for nothing.

#![allow(non_snake_case, reason = "names of nvml.h")]

use std::collections::BTreeSet;
use std::ffi::{c_uint, c_ulonglong};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::call::{Handle, answer, known};
use crate::ptr::Out;
use crate::status::{NvmlResult, Status};

/// `nvmlEventSet_t`: a number, never an address.
type Set = usize;

/// The sets that there are.
static SETS: Mutex<BTreeSet<Set>> = Mutex::new(BTreeSet::new());
/// A set is gone: who waits for it need not wait on.
static FREED: Condvar = Condvar::new();

/// A new set without events.
///
/// # Safety
/// `set` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlEventSetCreate(set: *mut Set) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(set) };
    answer(|| {
        let mut sets = sets();
        let number = sets.last().map_or(1, |last| last.saturating_add(1));
        out.set(number)?;
        sets.insert(number);
        Ok(())
    })
}

/// Ends a set.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlEventSetFree(set: Set) -> c_uint {
    answer(|| {
        let gone = sets().remove(&set);
        FREED.notify_all();
        if gone {
            Ok(())
        } else {
            Err(Status::INVALID_ARGUMENT)
        }
    })
}

/// The events that a device can report: none.
///
/// # Safety
/// `types` is null or valid for writes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlDeviceGetSupportedEventTypes(
    device: Handle,
    types: *mut c_ulonglong,
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(types) };
    answer(|| {
        known(device)?;
        out.set(0)
    })
}

/// Adds events of a device to a set: none can be, so only none may be asked for.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlDeviceRegisterEvents(
    device: Handle,
    types: c_ulonglong,
    set: Set,
) -> c_uint {
    answer(|| {
        known(device)?;
        if !sets().contains(&set) {
            return Err(Status::INVALID_ARGUMENT);
        }
        if types == 0 {
            Ok(())
        } else {
            Err(Status::NOT_SUPPORTED)
        }
    })
}

/// Waits for an event of a set: blocks for the whole `timeout_ms`, or until the set is freed.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlEventSetWait_v2(set: Set, _data: usize, timeout_ms: c_uint) -> c_uint {
    answer(|| wait(set, Duration::from_millis(u64::from(timeout_ms))))
}

/// As [`nvmlEventSetWait_v2`].
#[unsafe(no_mangle)]
pub(crate) extern "C" fn nvmlEventSetWait(set: Set, data: usize, timeout_ms: c_uint) -> c_uint {
    nvmlEventSetWait_v2(set, data, timeout_ms)
}

fn wait(set: Set, timeout: Duration) -> NvmlResult {
    let began = Instant::now();
    let mut sets = sets();
    loop {
        if !sets.contains(&set) {
            return Err(Status::INVALID_ARGUMENT);
        }
        let left = timeout.saturating_sub(began.elapsed());
        if left.is_zero() {
            return Err(Status::TIMEOUT);
        }
        let waited = FREED.wait_timeout(sets, left);
        (sets, _) = waited.unwrap_or_else(PoisonError::into_inner);
    }
}

/// A set is in or out at every moment, so a panic under the lock breaks nothing.
fn sets() -> MutexGuard<'static, BTreeSet<Set>> {
    SETS.lock().unwrap_or_else(PoisonError::into_inner)
}
