//! The one pointer to what this process has, and what happens to it at fork and at exit.
//!
//! Fenced `unsafe`: a leaked `Process` behind an atomic pointer, an atfork handler, a `.fini_array` entry.

use std::sync::Once;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::process::Process;

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());
/// Counts forks on the way down to this process: what was made before the last one is dead here.
static EPOCH: AtomicU32 = AtomicU32::new(0);
static HOOKS: Once = Once::new();

/// What this process has, once `cuInit` succeeded. A few instructions.
#[inline]
pub(crate) fn process() -> Option<&'static Process> {
    let at = PROCESS.load(Ordering::Acquire);
    if at.is_null() {
        return None;
    }
    // SAFETY: only `publish` stores here, a leaked box, which lives as long as the process
    // (Acquire pairs with its Release).
    Some(unsafe { &*at })
}

/// Makes `new` what the process has. It is never freed: contexts and threads point into it.
pub(crate) fn publish(new: Box<Process>) -> &'static Process {
    HOOKS.call_once(|| {
        // SAFETY: the handler is an `extern "C"` function that lives in this library, which is never unloaded.
        unsafe { libc::pthread_atfork(None, None, Some(forked)) };
    });
    let new: &'static mut Process = Box::leak(new);
    let shared: &'static Process = new;
    PROCESS.store(std::ptr::from_ref(shared).cast_mut(), Ordering::Release);
    shared
}

/// Number of forks between the first process and this one.
#[inline]
pub(crate) fn epoch() -> u32 {
    EPOCH.load(Ordering::Relaxed)
}

/// Runs in the child of a fork: the parent's session is the parent's; this process starts with nothing.
/// Only atomic stores: any other thread of the parent may have held any lock.
extern "C" fn forked() {
    EPOCH.fetch_add(1, Ordering::Relaxed);
    PROCESS.store(std::ptr::null_mut(), Ordering::Release);
    crate::observe::forked();
}

extern "C" fn at_exit() {
    crate::process::finish();
}

/// The dynamic linker runs this when the process ends, after the program's own exit handlers, in which the
/// CUDA runtime still calls us.
#[used]
#[unsafe(link_section = ".fini_array")]
static AT_EXIT: extern "C" fn() = at_exit;

extern "C" fn at_load() {
    // Programs ask for addresses and versions long before `cuInit`: what is counted starts here.
    if std::env::var_os(farcall_config::vars::STATS).is_some()
        || std::env::var_os(farcall_config::vars::TRACE).is_some()
        || std::env::var_os(farcall_config::vars::RECORD).is_some()
    {
        crate::observe::early();
    }
}

#[used]
#[unsafe(link_section = ".init_array")]
static AT_LOAD: extern "C" fn() = at_load;
