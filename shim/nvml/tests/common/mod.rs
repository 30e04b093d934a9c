//! The library as programs load it, and a server that answers the one question it asks.
#![allow(dead_code, clippy::unwrap_used)]

use std::ffi::{CStr, c_char};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use farcall_marshal::record::{Head, Record, split, to_vec};
use farcall_marshal::wire::{DeviceDescription, DeviceUsage, SessionOpen, SessionWelcome};
use farcall_transport::{Endpoint, Handler, ListenOptions, Listener, Tuning};
use libloading::{Library, Symbol};

/// `libnvidia-ml.so.1`, loaded.
pub(crate) struct Nvml(Library);

impl Nvml {
    pub(crate) fn load() -> Self {
        let test = std::env::current_exe().unwrap();
        let path = test.parent().unwrap().join("libnvidia_ml.so");
        // SAFETY: our own library; loading it runs no code.
        Self(unsafe { Library::new(&path) }.unwrap())
    }

    pub(crate) fn get<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: the tests name the type that nvml.h declares.
        unsafe { self.0.get(name) }.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A function without arguments, or one that does not look at them.
    pub(crate) fn call(&self, name: &str) -> u32 {
        self.get::<extern "C" fn() -> u32>(name)()
    }

    /// A text that a function writes for a device.
    pub(crate) fn text_of(&self, name: &str, device: usize, length: u32) -> Result<String, u32> {
        let function = self.get::<extern "C" fn(usize, *mut c_char, u32) -> u32>(name);
        read(length, |at| function(device, at, length))
    }

    pub(crate) fn system_text(&self, name: &str) -> Result<String, u32> {
        let function = self.get::<extern "C" fn(*mut c_char, u32) -> u32>(name);
        read(80, |at| function(at, 80))
    }

    /// One value that a function writes for a device.
    pub(crate) fn value_of<T: Default>(&self, name: &str, device: usize) -> Result<T, u32> {
        let function = self.get::<extern "C" fn(usize, *mut T) -> u32>(name);
        let mut value = T::default();
        match function(device, &raw mut value) {
            0 => Ok(value),
            status => Err(status),
        }
    }
}

fn read(length: u32, call: impl Fn(*mut c_char) -> u32) -> Result<String, u32> {
    let mut buffer = vec![c_char::MAX; length as usize + 1];
    match call(buffer.as_mut_ptr()) {
        0 => {
            assert_eq!(
                buffer.last(),
                Some(&c_char::MAX),
                "nothing is written behind the buffer"
            );
            // SAFETY: the function ended the text with a NUL within the buffer.
            Ok(unsafe { CStr::from_ptr(buffer.as_ptr()) }
                .to_str()
                .unwrap()
                .to_owned())
        }
        status => Err(status),
    }
}

/// A server with three devices.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) asked: Arc<AtomicUsize>,
    pub(crate) used_bytes: Arc<AtomicU64>,
    listener: Arc<Listener>,
}

pub(crate) const TOTAL_BYTES: u64 = 8 << 30;

impl Server {
    pub(crate) fn start(token: &'static str) -> Self {
        let listener = Arc::new(Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap());
        let address = listener.local_addr().to_string();
        let (asked, used_bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let server = Self {
            address,
            asked: asked.clone(),
            used_bytes: used_bytes.clone(),
            listener: listener.clone(),
        };
        std::thread::spawn(move || {
            while let Ok(incoming) = listener.accept() {
                assert_eq!(incoming.token(), Some(token.as_bytes()));
                let (head, body, _) = split(incoming.payload()).unwrap();
                assert_eq!(head.number, SessionOpen::NUMBER);
                assert_eq!(
                    SessionOpen::decode_body(body).unwrap().device_count,
                    u32::MAX,
                    "it only asks"
                );
                asked.fetch_add(1, Ordering::SeqCst);
                let welcome = welcome(used_bytes.load(Ordering::SeqCst));
                let (fd, state) = incoming.into_parts();
                let endpoint =
                    Endpoint::adopt(fd, &state, &welcome, &Tuning::default(), Arc::new(Deaf))
                        .unwrap();
                endpoint.run();
            }
        });
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.listener.close();
    }
}

struct Deaf;

impl Handler for Deaf {
    fn on_frame(&self, _: &Endpoint, _: &[u8]) {}
}

fn welcome(used_bytes: u64) -> Vec<u8> {
    let (mut devices, mut usage) = (Vec::new(), Vec::new());
    for ordinal in 0..3_u32 {
        let uuid = [u8::try_from(ordinal).unwrap() + 1; 16];
        let description = DeviceDescription {
            total_bytes: TOTAL_BYTES,
            limit_bytes: TOTAL_BYTES - used_bytes,
            server_ordinal: ordinal,
            sm: 90,
            pci_domain: 0,
            pci_bus: 0x40 + ordinal,
            pci_device: 0,
            uuid: &uuid,
            attributes: &[],
            name: "Farcall test device",
        };
        devices.extend(to_vec(
            Head::request(DeviceDescription::NUMBER, 0, 0),
            &description,
        ));
        let used = DeviceUsage {
            server_ordinal: ordinal,
            sessions: 1,
            total_bytes: TOTAL_BYTES,
            used_bytes,
        };
        usage.extend(to_vec(Head::request(DeviceUsage::NUMBER, 0, 0), &used));
    }
    let body = SessionWelcome {
        range_base: 0,
        range_bytes: 0,
        host_range_base: 0,
        host_range_bytes: 0,
        driver_version: 13000,
        device_kind: 2,
        devices: &devices,
        cached_modules: &[],
        server_name: "test",
    };
    let mut welcome = to_vec(Head::request(SessionWelcome::NUMBER, 0, 0), &body);
    welcome.extend(usage);
    welcome
}
