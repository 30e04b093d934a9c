//! Export tables: arrays of function pointers that NVIDIA's own libraries ask for by UUID.
//!
//! Fenced `unsafe`: C functions behind the slots. Which slots are called, with what, and what their callers
//! accept is measured (facts in docs/export-tables.md).

mod self_test;

use std::ffi::c_void;
use std::sync::OnceLock;

use farcall_marshal::status::{CuResult, CuStatus};

use crate::ptr::Out;
use crate::{context, exports};

/// What a table's slots hold: functions, and its size in bytes in front.
#[derive(Clone, Copy)]
union Slot {
    bytes: usize,
    function: *const (),
}

/// A table of at most this many words.
struct Words<const N: usize>([Slot; N]);

// SAFETY: the words are addresses of functions and a size; nobody writes them after they were made.
unsafe impl<const N: usize> Sync for Words<N> {}
// SAFETY: as above.
unsafe impl<const N: usize> Send for Words<N> {}

/// Accepts whatever it is called with: for slots whose callers only look for success.
extern "C" fn accept() -> u32 {
    0
}

/// A table with its size in front and `accept` in every slot but those given.
fn sized<const N: usize>(slots: &[(usize, *const ())]) -> Words<N> {
    let mut words = [Slot {
        function: accept as *const (),
    }; N];
    for (at, function) in slots {
        if let Some(word) = words.get_mut(*at) {
            *word = Slot {
                function: *function,
            };
        }
    }
    if let Some(first) = words.first_mut() {
        *first = Slot {
            bytes: N * size_of::<usize>(),
        };
    }
    Words(words)
}

macro_rules! table {
    ($name:ident, $words:literal, [$($slot:literal: $function:path),*]) => {
        fn $name() -> *const c_void {
            static TABLE: OnceLock<Words<$words>> = OnceLock::new();
            TABLE.get_or_init(|| sized(&[$(($slot, $function as *const ())),*])).0.as_ptr().cast()
        }
    };
}

table!(cudart_interface, 13, [1: module_from_image, 2: primary_context, 6: module_from_image, 8: module_from_image_swapped]);
table!(callback_hooks, 7, [2: callback_buffer_large, 6: callback_buffer_small]);
table!(tools_tls, 4, []);
table!(context_checks, 4, [2: context_check]);
table!(table_2131, 128, []);
table!(table_1734, 128, []);
table!(table_6e16, 128, [7: for_each_function]);
table!(error_log, 128, []);
table!(tools_7cb6, 128, []);

/// Context-local storage has no size in front: its first slot is a function.
fn context_storage() -> *const c_void {
    static TABLE: Words<4> = Words([
        Slot {
            function: storage_put as *const (),
        },
        Slot {
            function: storage_delete as *const (),
        },
        Slot {
            function: storage_get as *const (),
        },
        Slot {
            function: accept as *const (),
        },
    ]);
    TABLE.0.as_ptr().cast()
}

/// The table with this UUID; `NOT_FOUND` for those that callers do well without.
pub(crate) fn find(uuid: [u8; 16]) -> CuResult<*const c_void> {
    Ok(match uuid {
        [
            0x6b,
            0xd5,
            0xfb,
            0x6c,
            0x5b,
            0xf4,
            0xe7,
            0x4a,
            0x89,
            0x87,
            0xd9,
            0x39,
            0x12,
            0xfd,
            0x9d,
            0xf9,
        ] => cudart_interface(),
        [
            0xa0,
            0x94,
            0x79,
            0x8c,
            0x2e,
            0x74,
            0x2e,
            0x74,
            0x93,
            0xf2,
            0x08,
            0x00,
            0x20,
            0x0c,
            0x0a,
            0x66,
        ] => callback_hooks(),
        [
            0x42,
            0xd8,
            0x5a,
            0x81,
            0x23,
            0xf6,
            0xcb,
            0x47,
            0x82,
            0x98,
            0xf6,
            0xe7,
            0x8a,
            0x3a,
            0xec,
            0xdc,
        ] => tools_tls(),
        [
            0xc6,
            0x93,
            0x33,
            0x6e,
            0x11,
            0x21,
            0xdf,
            0x11,
            0xa8,
            0xc3,
            0x68,
            0xf3,
            0x55,
            0xd8,
            0x95,
            0x93,
        ] => context_storage(),
        [
            0x26,
            0x3e,
            0x88,
            0x60,
            0x7c,
            0xd2,
            0x61,
            0x43,
            0x92,
            0xf6,
            0xbb,
            0xd5,
            0x00,
            0x6d,
            0xfa,
            0x7e,
        ] => context_checks(),
        [
            0xd4,
            0x08,
            0x20,
            0x55,
            0xbd,
            0xe6,
            0x70,
            0x4b,
            0x8d,
            0x34,
            0xba,
            0x12,
            0x3c,
            0x66,
            0xe1,
            0xf2,
        ] => self_test::table(),
        [
            0x21,
            0x31,
            0x8c,
            0x60,
            0x97,
            0x14,
            0x32,
            0x48,
            0x8c,
            0xa6,
            0x41,
            0xff,
            0x73,
            0x24,
            0xc8,
            0xf2,
        ] => table_2131(),
        [
            0x17,
            0x34,
            0xdc,
            0x26,
            0x80,
            0x0d,
            0x47,
            0x45,
            0x87,
            0x26,
            0xc0,
            0xf1,
            0xe7,
            0xdd,
            0x8b,
            0xca,
        ] => table_1734(),
        [
            0x6e,
            0x16,
            0x3f,
            0xbe,
            0xb9,
            0x58,
            0x44,
            0x4d,
            0x83,
            0x5c,
            0xe1,
            0x82,
            0xaf,
            0xf1,
            0x99,
            0x1e,
        ] => table_6e16(),
        [
            0xf8,
            0xcf,
            0xf9,
            0x51,
            0x21,
            0x46,
            0x8b,
            0x4e,
            0xb9,
            0xe2,
            0xfb,
            0x46,
            0x9e,
            0x7c,
            0x0d,
            0xd9,
        ] => error_log(),
        // CUPTI asks for it again and again until its stack is used up if it is refused.
        [
            0x7c,
            0xb6,
            0x3f,
            0x9b,
            0x9c,
            0xa4,
            0x8e,
            0x42,
            0xa4,
            0x84,
            0xbe,
            0xb6,
            0x6e,
            0x6a,
            0xed,
            0x7f,
        ] => tools_7cb6(),
        _ => {
            log::debug!("export table {uuid:02x?} is refused");
            return Err(CuStatus::NOT_FOUND);
        }
    })
}

fn code(result: CuResult) -> u32 {
    result.map_or_else(|status| status.0, |()| 0)
}

/// Wraps what a slot was called with.
fn out<T: Copy>(at: *mut T) -> Out<T> {
    // SAFETY: the slots' callers pass places for results as cuda.h's functions do.
    unsafe { Out::from_program(at) }
}

/// As the exported function, so that it is counted and recorded as one.
extern "C" fn module_from_image(module: *mut u64, image: *const c_void) -> u32 {
    // SAFETY: the runtime passes a place and an image as it does to cuModuleLoadData.
    unsafe { exports::cuModuleLoadData(module, image) }
}

extern "C" fn module_from_image_swapped(image: *const c_void, module: *mut u64) -> u32 {
    module_from_image(module, image)
}

/// As the exported function, so that it is counted and recorded as one.
extern "C" fn primary_context(context: *mut u64, device: i32) -> u32 {
    // SAFETY: the runtime passes a place as it does to cuDevicePrimaryCtxRetain.
    unsafe { exports::cuDevicePrimaryCtxRetain(context, device) }
}

/// A zeroed buffer that the runtime keeps its tools' callbacks in.
extern "C" fn callback_buffer_large(buffer: *mut *const c_void, words: *mut u64) -> u32 {
    static BUFFER: [std::sync::atomic::AtomicU32; 1024] =
        [const { std::sync::atomic::AtomicU32::new(0) }; 1024];
    code(
        out(buffer)
            .set(BUFFER.as_ptr().cast())
            .and_then(|()| out(words).set(1024)),
    )
}

extern "C" fn callback_buffer_small(buffer: *mut *const c_void, words: *mut u64) -> u32 {
    static BUFFER: [std::sync::atomic::AtomicU32; 14] =
        [const { std::sync::atomic::AtomicU32::new(0) }; 14];
    code(
        out(buffer)
            .set(BUFFER.as_ptr().cast())
            .and_then(|()| out(words).set(14)),
    )
}

extern "C" fn context_check(_context: u64, answer: *mut u32) -> u32 {
    out(answer).set_if(0);
    0
}

/// cuFFT walks the functions of a module with this: `callback(user, function, module)`; 1 = walked.
extern "C" fn for_each_function(_: u64, module: u64, callback: usize, user: u64) -> u32 {
    let Ok(functions) = crate::api::module_functions(module) else {
        return 0;
    };
    if callback == 0 {
        return 0;
    }
    // SAFETY: cuFFT passes a function of this type (seen in its calls).
    let callback: extern "C" fn(u64, u64, u64) -> u64 = unsafe { std::mem::transmute(callback) };
    for function in functions {
        callback(user, function, module);
    }
    1
}

extern "C" fn storage_put(context: u64, key: u64, value: u64, destructor: u64) -> u32 {
    code(context::by_handle(context).map(|context| {
        context.storage.lock().insert(key, (value, destructor));
    }))
}

extern "C" fn storage_delete(context: u64, key: u64) -> u32 {
    code(context::by_handle(context).map(|context| {
        context.storage.lock().remove(&key);
    }))
}

/// On nearly every call of the runtime: client memory, one lock.
extern "C" fn storage_get(value: *mut u64, context: u64, key: u64) -> u32 {
    let found = context::by_handle(context).and_then(|context| {
        context
            .storage
            .lock()
            .get(&key)
            .map(|(value, _)| *value)
            .ok_or(CuStatus::INVALID_HANDLE)
    });
    code(found.and_then(|found| out(value).set(found)))
}

/// Addresses that the self-test answers with.
fn cudart_interface_address() -> u64 {
    cudart_interface() as u64
}
