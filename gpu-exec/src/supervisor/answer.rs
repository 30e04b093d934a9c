//! Answers to clients that only ask what there is.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use farcall_marshal::record::{Head, Record, to_vec};
use farcall_marshal::wire::{DeviceUsage, SessionWelcome};
use farcall_transport::{CloseReason, Endpoint, Handler, Incoming, RefuseCode, Tuning};

use super::plan::Plan;
use crate::device::describe::{descriptions, driver_version};
use crate::ledger::Ledger;
use crate::limits::{INVENTORIES_MAX, STACK_BYTES};

/// What a server has, as the payload of a welcome: `session_welcome`, then one `device_usage` per device.
pub(crate) fn inventory(plan: &Plan, ledger: &Ledger, sessions: impl Fn(u32) -> u32) -> Vec<u8> {
    let mut devices = plan.devices.clone();
    let mut usages = Vec::new();
    for device in &mut devices {
        let used_bytes = ledger.used(device.ordinal as usize).min(device.total_bytes);
        device.limit_bytes = device.total_bytes - used_bytes;
        let (server_ordinal, total_bytes) = (device.ordinal, device.total_bytes);
        let usage = DeviceUsage {
            server_ordinal,
            sessions: sessions(server_ordinal),
            total_bytes,
            used_bytes,
        };
        usages.extend(to_vec(Head::request(DeviceUsage::NUMBER, 0, 0), &usage));
    }
    let welcome = SessionWelcome {
        range_base: 0,
        range_bytes: 0,
        host_range_base: 0,
        host_range_bytes: 0,
        driver_version: driver_version(plan.kind),
        device_kind: plan.kind as u32,
        devices: &descriptions(plan.kind, &devices),
        cached_modules: &[],
        server_name: &plan.server_name,
    };
    let mut payload = to_vec(Head::request(SessionWelcome::NUMBER, 0, 0), &welcome);
    payload.extend(usages);
    payload
}

/// Answers that are on their way.
#[derive(Debug, Default)]
pub(crate) struct Inventories {
    under_way: Arc<AtomicUsize>,
}

impl Inventories {
    /// Sends the answer from a thread of its own: a client may be slow to take it.
    pub(crate) fn answer(&self, incoming: Incoming, payload: Vec<u8>) {
        if self.under_way.load(Ordering::Relaxed) >= INVENTORIES_MAX {
            return incoming.refuse(RefuseCode::BUSY, "too many questions at once");
        }
        self.under_way.fetch_add(1, Ordering::Relaxed);
        let under_way = self.under_way.clone();
        let answer = move || {
            let (connection, state) = incoming.into_parts();
            // Over before anybody could fall silent.
            let tuning = Tuning {
                keepalive: Duration::ZERO,
                ..Tuning::default()
            };
            match Endpoint::adopt(connection, &state, &payload, &tuning, Arc::new(Deaf)) {
                Ok(endpoint) => endpoint.close(),
                Err(error) => log::warn!("an inventory was not sent: {error}"),
            }
            under_way.fetch_sub(1, Ordering::Relaxed);
        };
        let builder = std::thread::Builder::new()
            .name("inventory".to_owned())
            .stack_size(STACK_BYTES);
        if let Err(error) = builder.spawn(answer) {
            self.under_way.fetch_sub(1, Ordering::Relaxed);
            log::error!("an inventory was not sent: {error}");
        }
    }
}

/// Hears nothing: such a client has nothing to say.
#[derive(Debug)]
pub(crate) struct Deaf;

impl Handler for Deaf {
    fn on_frame(&self, endpoint: &Endpoint, _frame: &[u8]) {
        endpoint.close();
    }

    fn on_closed(&self, _endpoint: &Endpoint, _why: &CloseReason) {}
}
