//! Initialization, versions, names of errors, and how a program finds every other call.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CString, c_char, c_void};

use farcall_marshal::catalogue::{Lookup, proc_address};
use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use crate::abi::CUuuid;
use crate::ptr::{In, Out, Text};
use crate::{exports, global, observe, process, tables};

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`.
const PER_THREAD_DEFAULT_STREAM: u64 = 2;
/// What a driver without a server says it is: the newest version that the catalogue was measured with.
const VERSION_UNCONNECTED: u32 = 13_000;

pub(crate) fn cuInit(flags: u32) -> CuResult {
    if flags != 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    process::open().map(|_| ())
}

/// The version that the server's driver has, or stands for.
pub(crate) fn driver_version() -> u32 {
    let connected = global::process().or_else(|| process::open().ok());
    // Of several servers' drivers what all of them can do.
    connected
        .and_then(|process| process.sessions.iter().map(|s| s.driver_version).min())
        .unwrap_or(VERSION_UNCONNECTED)
}

pub(crate) fn cuDriverGetVersion(version: Out<i32>) -> CuResult {
    observe::early();
    version.set(i32::try_from(driver_version()).unwrap_or(0))
}

/// `CUdriverProcAddressQueryResult`.
mod query {
    pub(super) const SUCCESS: u32 = 0;
    pub(super) const SYMBOL_NOT_FOUND: u32 = 1;
    pub(super) const VERSION_NOT_SUFFICIENT: u32 = 2;
}

fn look_up(symbol: Text, version: i32, flags: u64) -> CuResult<(Option<*const ()>, u32)> {
    let name = symbol.get()?;
    let version = u32::try_from(version).map_err(|_| CuStatus::INVALID_VALUE)?;
    Ok(
        match proc_address(&name, version, flags == PER_THREAD_DEFAULT_STREAM) {
            Lookup::Symbol(symbol) => (exports::address(symbol), query::SUCCESS),
            Lookup::VersionTooOld => (None, query::VERSION_NOT_SUFFICIENT),
            Lookup::NotFound => (None, query::SYMBOL_NOT_FOUND),
        },
    )
}

pub(crate) fn cuGetProcAddress(
    symbol: Text,
    function: Out<*mut c_void>,
    version: i32,
    flags: u64,
) -> CuResult {
    if flags > PER_THREAD_DEFAULT_STREAM {
        return Err(CuStatus::INVALID_VALUE);
    }
    let (address, _) = look_up(symbol, version, flags)?;
    function.set(address.map_or(std::ptr::null_mut(), |address| address.cast_mut().cast()))?;
    address.map(|_| ()).ok_or(CuStatus::NOT_FOUND)
}

pub(crate) fn cuGetProcAddress_v2(
    symbol: Text,
    function: Out<*mut c_void>,
    version: i32,
    flags: u64,
    status: Out<u32>,
) -> CuResult {
    if flags > PER_THREAD_DEFAULT_STREAM {
        return Err(CuStatus::INVALID_VALUE);
    }
    let (address, answer) = look_up(symbol, version, flags)?;
    function.set(address.map_or(std::ptr::null_mut(), |address| address.cast_mut().cast()))?;
    status.set_if(answer);
    // With a place for the status a missing symbol is an answer, without one an error (cuda.h).
    if address.is_none() && status.is_null() {
        Err(CuStatus::NOT_FOUND)
    } else {
        Ok(())
    }
}

pub(crate) fn cuGetExportTable(table: Out<*const c_void>, uuid: In<CUuuid>) -> CuResult {
    table.set(std::ptr::null())?;
    table.set(tables::find(uuid.get()?.bytes)?)
}

/// A C string with the life of the process, made once per text.
fn static_text(text: &'static str) -> *const c_char {
    static TEXTS: Mutex<Option<HashMap<&'static str, &'static CString>>> = Mutex::new(None);
    let mut texts = TEXTS.lock();
    let texts = texts.get_or_insert_default();
    let leaked = texts
        .entry(text)
        .or_insert_with(|| Box::leak(Box::new(CString::new(text).unwrap_or_default())));
    leaked.as_ptr()
}

fn answer_text(place: Out<*const c_char>, text: Option<&'static str>) -> CuResult {
    match text {
        Some(text) => place.set(static_text(text)),
        None => {
            place.set_if(std::ptr::null());
            Err(CuStatus::INVALID_VALUE)
        }
    }
}

pub(crate) fn cuGetErrorName(error: u32, name: Out<*const c_char>) -> CuResult {
    answer_text(name, CuStatus(error).name())
}

pub(crate) fn cuGetErrorString(error: u32, text: Out<*const c_char>) -> CuResult {
    answer_text(text, CuStatus(error).text())
}

pub(crate) fn cuProfilerStart() -> CuResult {
    Ok(())
}

pub(crate) fn cuProfilerStop() -> CuResult {
    Ok(())
}

pub(crate) fn cuModuleGetLoadingMode(mode: Out<u32>) -> CuResult {
    const LAZY: u32 = 2;
    mode.set(LAZY)
}

/// The driver's error log has nothing that `stderr` does not say: callbacks are accepted and never called.
pub(crate) fn cuLogsRegisterCallback(
    callback: usize,
    _user_data: crate::ptr::HostPtr,
    handle: Out<u64>,
) -> CuResult {
    if callback == 0 {
        return Err(CuStatus::INVALID_VALUE);
    }
    handle.set_if((crate::handle::Kind::LogCallback as u64) << 40 | 16);
    Ok(())
}

pub(crate) fn cuLogsUnregisterCallback(_callback: u64) -> CuResult {
    Ok(())
}
