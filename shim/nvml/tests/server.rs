//! What a program gets with a server. One test, because it sets this process's environment.
#![allow(clippy::unwrap_used)]

mod common;

use std::ffi::CString;
use std::sync::atomic::Ordering;

use common::Nvml;
use common::server::{Server, TOTAL_BYTES};

const UNINITIALIZED: u32 = 1;
const INVALID_ARGUMENT: u32 = 2;
const NOT_SUPPORTED: u32 = 3;
const NOT_FOUND: u32 = 6;
const INSUFFICIENT_SIZE: u32 = 7;
const VERSION_MISMATCH: u32 = 25;

#[test]
fn a_program_sees_its_devices() {
    let server = Server::start("s3cret");
    for (name, value) in [
        ("FARCALL_SERVER", server.address.as_str()),
        ("FARCALL_TOKEN", "s3cret"),
        ("FARCALL_DEVICES", "2"),
        ("FARCALL_MEMORY", "6G"),
        ("CUDA_VISIBLE_DEVICES", "1"),
    ] {
        // SAFETY: no other thread of this process reads the environment.
        unsafe { std::env::set_var(name, value) };
    }
    let nvml = Nvml::load();
    life(&nvml);
    assert_eq!(nvml.call("nvmlInit_v2"), 0);
    let asked = server.asked.load(Ordering::SeqCst);
    identity(&nvml);
    handles(&nvml);
    places(&nvml);
    unsupported(&nvml);
    memory(&nvml);
    processes(&nvml);
    assert_eq!(
        server.asked.load(Ordering::SeqCst),
        asked,
        "fresh figures are not asked again"
    );
}

/// PyTorch asks when memory is short, and takes every other answer for a fault.
fn processes(nvml: &Nvml) {
    for version in ["", "_v2", "_v3"] {
        let name = format!("nvmlDeviceGetComputeRunningProcesses{version}");
        let list = nvml.get::<extern "C" fn(usize, *mut u32, usize) -> u32>(&name);
        let mut count = 7;
        assert_eq!((list(1, &raw mut count, 0), count), (0, 0), "{name}");
        assert_eq!(list(3, &raw mut count, 0), INVALID_ARGUMENT);
    }
}

fn life(nvml: &Nvml) {
    assert_eq!(nvml.call("nvmlShutdown"), UNINITIALIZED);
    assert_eq!(
        nvml.value_of::<u32>("nvmlDeviceGetIndex", 1),
        Err(UNINITIALIZED)
    );
    assert_eq!(nvml.call("nvmlInit"), 0);
    assert_eq!(
        nvml.get::<extern "C" fn(u32) -> u32>("nvmlInitWithFlags")(1),
        0
    );
    assert_eq!(nvml.call("nvmlShutdown"), 0);
    assert_eq!(
        nvml.value_of::<u32>("nvmlDeviceGetIndex", 1),
        Ok(0),
        "one user is left"
    );
    assert_eq!(nvml.call("nvmlShutdown"), 0);
    assert_eq!(
        nvml.value_of::<u32>("nvmlDeviceGetIndex", 1),
        Err(UNINITIALIZED)
    );
}

fn identity(nvml: &Nvml) {
    assert_eq!(
        nvml.system_text("nvmlSystemGetDriverVersion").as_deref(),
        Ok("580.00")
    );
    assert_eq!(
        nvml.system_text("nvmlSystemGetNVMLVersion").as_deref(),
        Ok("13.580.00")
    );
    let mut version = 0;
    assert_eq!(
        nvml.get::<extern "C" fn(*mut i32) -> u32>("nvmlSystemGetCudaDriverVersion_v2")(
            &raw mut version
        ),
        0
    );
    assert_eq!(version, 13000);
    assert_eq!(
        nvml.text_of("nvmlDeviceGetName", 2, 64).as_deref(),
        Ok("Farcall test device")
    );
    assert_eq!(
        nvml.text_of("nvmlDeviceGetName", 2, 20).as_deref(),
        Ok("Farcall test device")
    );
    assert_eq!(
        nvml.text_of("nvmlDeviceGetName", 2, 19),
        Err(INSUFFICIENT_SIZE)
    );
    assert_eq!(
        nvml.text_of("nvmlDeviceGetUUID", 2, 96).as_deref(),
        Ok("GPU-02020202-0202-0202-0202-020202020202")
    );
    assert_eq!(nvml.value_of::<u32>("nvmlDeviceGetIndex", 2), Ok(1));
    assert_eq!(nvml.value_of::<u32>("nvmlDeviceGetMinorNumber", 2), Ok(1));
    let capability = nvml.get::<extern "C" fn(usize, *mut i32, *mut i32) -> u32>(
        "nvmlDeviceGetCudaComputeCapability",
    );
    let (mut major, mut minor) = (0, -1);
    assert_eq!(capability(1, &raw mut major, &raw mut minor), 0);
    assert_eq!((major, minor), (9, 0));
    assert_eq!(
        capability(1, std::ptr::null_mut(), &raw mut minor),
        INVALID_ARGUMENT
    );
    for wrong in [0, 3, usize::MAX] {
        assert_eq!(
            nvml.value_of::<u32>("nvmlDeviceGetIndex", wrong),
            Err(INVALID_ARGUMENT)
        );
    }
}

fn handles(nvml: &Nvml) {
    let count = |name: &str| {
        let mut count = 0_u32;
        assert_eq!(
            nvml.get::<extern "C" fn(*mut u32) -> u32>(name)(&raw mut count),
            0
        );
        count
    };
    assert_eq!(
        (count("nvmlDeviceGetCount"), count("nvmlDeviceGetCount_v2")),
        (2, 2),
        "three there, two wanted"
    );
    for name in [
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetHandleByIndex_v2",
    ] {
        let by_index = nvml.get::<extern "C" fn(u32, *mut usize) -> u32>(name);
        let mut handle = 0;
        assert_eq!((by_index(1, &raw mut handle), handle), (0, 2));
        assert_eq!(by_index(2, &raw mut handle), INVALID_ARGUMENT);
        assert_eq!(by_index(0, std::ptr::null_mut()), INVALID_ARGUMENT);
    }
    let by_text = |name: &str, text: &str| {
        let text = CString::new(text).unwrap();
        let mut handle = 0_usize;
        match nvml.get::<extern "C" fn(*const std::ffi::c_char, *mut usize) -> u32>(name)(
            text.as_ptr(),
            &raw mut handle,
        ) {
            0 => Ok(handle),
            status => Err(status),
        }
    };
    assert_eq!(
        by_text(
            "nvmlDeviceGetHandleByUUID",
            "GPU-02020202-0202-0202-0202-020202020202"
        ),
        Ok(2)
    );
    assert_eq!(
        by_text(
            "nvmlDeviceGetHandleByUUID",
            "GPU-03030303-0303-0303-0303-030303030303"
        ),
        Err(NOT_FOUND),
        "not one of ours"
    );
    assert_eq!(
        by_text("nvmlDeviceGetHandleByPciBusId_v2", "00000000:41:00.0"),
        Ok(2)
    );
    assert_eq!(
        by_text("nvmlDeviceGetHandleByPciBusId", "0000:40:00.0"),
        Ok(1)
    );
    assert_eq!(
        by_text("nvmlDeviceGetHandleByPciBusId", "nonsense"),
        Err(NOT_FOUND)
    );
}

/// `nvmlPciInfo_t` as nvml.h declares it.
#[repr(C)]
struct Pci {
    bus_id_legacy: [u8; 16],
    numbers: [u32; 5],
    bus_id: [u8; 32],
}

impl Default for Pci {
    fn default() -> Self {
        Self {
            bus_id_legacy: [0xff; 16],
            numbers: [0xff; 5],
            bus_id: [0xff; 32],
        }
    }
}

fn places(nvml: &Nvml) {
    let pci: Pci = nvml.value_of("nvmlDeviceGetPciInfo_v3", 2).unwrap();
    assert!(
        pci.bus_id.starts_with(b"00000000:41:00.0\0")
            && pci.bus_id_legacy.starts_with(b"0000:41:00.0\0")
    );
    assert_eq!(pci.numbers, [0, 0x41, 0, 0, 0]);
    let pci: Pci = nvml.value_of("nvmlDeviceGetPciInfo", 1).unwrap();
    assert!(pci.bus_id_legacy.starts_with(b"0000:40:00.0\0"));
    assert_eq!(
        (pci.numbers, pci.bus_id),
        ([0, 0x40, 0, 0, 0xff], [0xff; 32]),
        "no more than the first version has"
    );
}

/// `nvmlFieldValue_t` as nvml.h declares it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Field {
    ids: [u32; 2],
    times: [i64; 2],
    kind: u32,
    status: u32,
    value: u64,
}

fn unsupported(nvml: &Nvml) {
    for line in include_str!("../names.txt")
        .lines()
        .filter(|line| line.starts_with("nvml"))
    {
        let _ = nvml.get::<extern "C" fn() -> u32>(line);
    }
    for name in [
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMaxMigDeviceCount",
        "nvmlDeviceGetNvLinkState",
        "nvmlDeviceGetNvLinkCapability",
        "nvmlDeviceGetUtilizationRates",
        "nvmlDeviceGetTemperature",
    ] {
        assert_eq!(nvml.call(name), NOT_SUPPORTED, "{name}");
    }
    let fields =
        nvml.get::<extern "C" fn(usize, i32, *mut Field) -> u32>("nvmlDeviceGetFieldValues");
    let mut values = [Field {
        ids: [1, 2],
        times: [3, 4],
        kind: 5,
        status: 0,
        value: 6,
    }; 3];
    assert_eq!(fields(1, 2, values.as_mut_ptr()), 0);
    assert_eq!(
        values.map(|field| field.status),
        [NOT_SUPPORTED, NOT_SUPPORTED, 0]
    );
    assert_eq!(values.map(|field| field.value), [6; 3]);
    assert_eq!(fields(1, -1, values.as_mut_ptr()), INVALID_ARGUMENT);
    assert_eq!(fields(1, 1, std::ptr::null_mut()), INVALID_ARGUMENT);
    let mut status = 0;
    let p2p =
        nvml.get::<extern "C" fn(usize, usize, u32, *mut u32) -> u32>("nvmlDeviceGetP2PStatus");
    assert_eq!((p2p(1, 2, 0, &raw mut status), status), (0, 5));
    let text =
        nvml.get::<extern "C" fn(u32) -> *const std::ffi::c_char>("nvmlErrorString")(NOT_SUPPORTED);
    // SAFETY: a static text.
    assert_eq!(unsafe { std::ffi::CStr::from_ptr(text) }, c"Not Supported");
}

/// `nvmlMemory_v2_t` as nvml.h declares it.
#[repr(C)]
#[derive(Default)]
struct MemoryV2 {
    version: u32,
    bytes: [u64; 4],
}

fn memory(nvml: &Nvml) {
    let limit = 6 << 30;
    assert!(limit < TOTAL_BYTES);
    assert_eq!(
        nvml.value_of::<[u64; 3]>("nvmlDeviceGetMemoryInfo", 1),
        Ok([limit, limit, 0]),
        "total, free, used"
    );
    let function =
        nvml.get::<extern "C" fn(usize, *mut MemoryV2) -> u32>("nvmlDeviceGetMemoryInfo_v2");
    let mut memory = MemoryV2 {
        version: 40 | 2 << 24,
        ..MemoryV2::default()
    };
    assert_eq!(function(1, &raw mut memory), 0);
    assert_eq!(
        memory.bytes,
        [limit, 0, limit, 0],
        "total, reserved, free, used"
    );
    memory.version = 7;
    assert_eq!(function(1, &raw mut memory), VERSION_MISMATCH);
}
