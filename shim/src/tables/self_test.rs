//! The CUDA runtime's self-test of its driver.
//!
//! cudart compares the driver's answer with its own; a wrong one makes every runtime call fail. The inputs are
//! this process's own (pid, thread, addresses), so the answer can only be given here. It exists so that
//! NVIDIA's own runtime talks to NVIDIA's own driver at a distance; the constants are those that other
//! interoperability projects (ZLUDA, Lupine) publish. Cargo feature `self-test`, on by default.

use std::ffi::c_void;
use std::sync::OnceLock;

use super::{Words, sized};

/// The table: 3 words, slot 1 answers.
pub(super) fn table() -> *const c_void {
    static TABLE: OnceLock<Words<3>> = OnceLock::new();
    TABLE
        .get_or_init(|| sized(&[(1, answer as *const ())]))
        .0
        .as_ptr()
        .cast()
}

#[cfg(not(feature = "self-test"))]
extern "C" fn answer(_version: u32, _unix_seconds: u64, _answer: *mut u64) -> u32 {
    farcall_marshal::status::CuStatus::NOT_SUPPORTED.0
}

#[cfg(feature = "self-test")]
extern "C" fn answer(version: u32, unix_seconds: u64, answer: *mut u64) -> u32 {
    let words = match version % 10 {
        0 => [0x3341_181C_03CB_675C, 0x8ED3_83AA_1F4C_D1E8],
        1 => [0x1841_181C_03CB_675C, 0x8ED3_83AA_1F4C_D1E8],
        _ => keyed::answer(
            version,
            unix_seconds,
            table() as u64,
            self::answer as *const () as u64,
        ),
    };
    let out = super::out(answer);
    out.set_at(0, words[0]);
    out.set_at(1, words[1]);
    0
}

#[cfg(feature = "self-test")]
mod keyed {
    use hmac::SimpleHmac;
    use hmac::digest::{KeyInit, Mac};
    use md2::Md2;

    const KEY: [u8; 16] = [
        0x14, 0x6A, 0xDD, 0xAE, 0x53, 0xA9, 0xA7, 0x52, 0xAA, 0x08, 0x41, 0x36, 0x0B, 0xF5, 0x5A,
        0x9F,
    ];

    /// HMAC (RFC 2104, block 16) over MD2 (RFC 1319) of what the process is.
    pub(super) fn answer(version: u32, unix_seconds: u64, table: u64, function: u64) -> [u64; 2] {
        let Ok(mut mac) = SimpleHmac::<Md2>::new_from_slice(&KEY) else {
            return [0; 2];
        };
        mac.update(&crate::api::driver_version().to_le_bytes());
        mac.update(&version.to_le_bytes());
        mac.update(&std::process::id().to_le_bytes());
        mac.update(&thread_word().to_le_bytes());
        for address in [
            super::super::cudart_interface_address(),
            table,
            function,
            unix_seconds,
        ] {
            mac.update(&address.to_le_bytes());
        }
        if let Ok(process) = crate::process::process() {
            for device in &process.devices {
                mac.update(&device.uuid);
                for part in [device.pci.0, device.pci.1, device.pci.2] {
                    mac.update(&part.to_le_bytes());
                }
            }
        }
        let digest: [u8; 16] = mac.finalize().into_bytes().into();
        let (low, high) = digest.split_at(8);
        [low, high].map(|half| u64::from_le_bytes(half.try_into().unwrap_or([0; 8])))
    }

    /// The low 32 bits of `pthread_self`.
    #[allow(clippy::cast_possible_truncation)]
    fn thread_word() -> u32 {
        // SAFETY: takes nothing, returns the calling thread's own identifier.
        let this = unsafe { libc::pthread_self() };
        this as u32
    }
}
