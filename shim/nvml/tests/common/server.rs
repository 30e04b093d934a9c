//! A server that answers the one question that the library asks.
#![allow(dead_code, clippy::unwrap_used, clippy::arithmetic_side_effects)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};

use farcall_marshal::record::{Head, Record, split, to_vec};
use farcall_marshal::wire::{DeviceDescription, DeviceUsage, SessionOpen, SessionWelcome};
use farcall_transport::{Endpoint, Handler, ListenOptions, Listener, Tuning};

/// A server with three devices.
pub(crate) struct Server {
    pub(crate) address: String,
    pub(crate) asked: Arc<AtomicUsize>,
    pub(crate) used_bytes: Arc<AtomicU64>,
    /// Every byte of the first device's UUID.
    pub(crate) uuid_first: Arc<AtomicU8>,
    listener: Arc<Listener>,
}

pub(crate) const TOTAL_BYTES: u64 = 8 << 30;

impl Server {
    pub(crate) fn start(token: &'static str) -> Self {
        let listener = Arc::new(Listener::bind("127.0.0.1:0", ListenOptions::default()).unwrap());
        let address = listener.local_addr().to_string();
        let (asked, used_bytes) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU64::new(0)));
        let uuid_first = Arc::new(AtomicU8::new(1));
        let server = Self {
            address,
            uuid_first: uuid_first.clone(),
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
                let welcome = welcome(
                    used_bytes.load(Ordering::SeqCst),
                    uuid_first.load(Ordering::SeqCst),
                );
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

fn welcome(used_bytes: u64, uuid_first: u8) -> Vec<u8> {
    let (mut devices, mut usage) = (Vec::new(), Vec::new());
    for ordinal in 0..3_u32 {
        let uuid = [u8::try_from(ordinal).unwrap() + uuid_first; 16];
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
