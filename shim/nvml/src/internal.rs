//! The table that `nvidia-smi` asks for instead of using the documented functions alone. Fenced `unsafe`.
//!
//! It is not in nvml.h. What stands here was seen with nvidia-smi 535.261.03 and a table that logs which of its entries are
//! called (docs/nvml.md): the first word is the table's size in bytes, an entry beyond it is not used, and of those used only
//! the one that finds a device must work. All others say that they are not supported, which it shows as `N/A`.

#![allow(non_snake_case, reason = "names of nvml.h")]

use std::ffi::c_uint;

use crate::call::{Handle, answer, handle};
use crate::library;
use crate::ptr::{Out, get};
use crate::status::Status;

/// What names the table.
const TABLE_ID: [u8; 16] = [
    0xc4, 0xfe, 0x3e, 0x6c, 0xc9, 0x8f, 0x6c, 0x4e, 0xa3, 0x27, 0xee, 0x69, 0x6e, 0x12, 0xf7, 0xc4,
];
/// Number of the entry that finds a device; the size is entry 0.
const DEVICE_BY_INDEX: usize = 81;
/// Entries, the size among them: nothing behind the one that works.
const ENTRIES: usize = DEVICE_BY_INDEX + 1;

/// An entry of the table.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) union Entry {
    bytes: usize,
    unsupported: extern "C" fn() -> c_uint,
    device_by_index: unsafe extern "C" fn(c_uint, *mut Handle, c_uint) -> c_uint,
}

static TABLE: [Entry; ENTRIES] = table();

const fn table() -> [Entry; ENTRIES] {
    let mut table = [Entry { unsupported }; ENTRIES];
    table[0] = Entry {
        bytes: size_of::<[Entry; ENTRIES]>(),
    };
    table[DEVICE_BY_INDEX] = Entry { device_by_index };
    table
}

/// A table of functions that no header declares, by its 16 bytes.
///
/// # Safety
/// `table` is null or valid for writes; `id` is null or 16 bytes.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn nvmlInternalGetExportTable(
    table: *mut *const Entry,
    id: *const [u8; 16],
) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let (id, out) = (unsafe { get(id) }, unsafe { Out::new(table) });
    answer(|| {
        if id? != TABLE_ID {
            return Err(Status::NOT_SUPPORTED);
        }
        out.set(TABLE.as_ptr())
    })
}

extern "C" fn unsupported() -> c_uint {
    Status::NOT_SUPPORTED.0
}

/// Handle of a device by its number. The flags, which say what kind of devices, are not looked at.
///
/// # Safety
/// `device` is null or valid for writes.
unsafe extern "C" fn device_by_index(index: c_uint, device: *mut Handle, _flags: c_uint) -> c_uint {
    // SAFETY: the caller's promise is the one this function asks for.
    let out = unsafe { Out::new(device) };
    answer(|| {
        library::library()?.device(index)?;
        out.set(handle(index)?)
    })
}
