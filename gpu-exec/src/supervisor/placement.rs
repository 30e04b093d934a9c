//! Which devices a session gets that may have any.
#![forbid(unsafe_code)]

use super::executors::Executor;
use super::keeper::Keeper;
use crate::device::describe::{DeviceSpec, LOST_ADVICE, WHOLE_PERMILLE};

/// How much a device is in demand; the least is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Demand {
    /// It has not as much memory left as was asked for.
    is_short: bool,
    /// Shares that sessions have or are about to have, in thousandths.
    share_permille: u64,
    sessions: usize,
    used_bytes: u64,
    ordinal: u32,
}

impl Keeper {
    /// The devices that are least in demand. Who asks for a share and for no amount of memory gets that share of the memory.
    ///
    /// # Errors
    /// There are not enough; why.
    pub(super) fn choose_devices(
        &self,
        count: usize,
        limit_bytes: u64,
        share_permille: u16,
    ) -> Result<Vec<DeviceSpec>, String> {
        let mut devices = self.plan.devices.clone();
        devices.retain(|device| !self.board.is_lost(device.ordinal as usize));
        if devices.len() < count {
            let lost = self.plan.devices.len() - devices.len();
            return Err(format!(
                "{count} devices wanted, and {lost} of this server's are lost: {LOST_ADVICE}"
            ));
        }
        devices.retain(|device| limit_bytes == u64::MAX || limit_bytes <= device.total_bytes);
        if devices.len() < count {
            return Err(format!(
                "{limit_bytes} bytes of memory wanted on {count} devices, this server has {} that large",
                devices.len()
            ));
        }
        devices.sort_by_cached_key(|device| self.demand(device, limit_bytes));
        devices.truncate(count);
        devices.sort_by_key(|device| device.ordinal);
        for device in &mut devices {
            let part = device.total_bytes / u64::from(WHOLE_PERMILLE) * u64::from(share_permille);
            device.limit_bytes = match limit_bytes {
                u64::MAX if share_permille < WHOLE_PERMILLE => part,
                _ => limit_bytes.min(device.total_bytes),
            };
            device.share_permille = share_permille;
        }
        Ok(devices)
    }

    /// Sessions that have a device.
    pub(super) fn sessions_of(&self, device: u32) -> u32 {
        let having = self
            .executors
            .values()
            .filter_map(Executor::serving)
            .filter(|serving| serving.devices.contains(&device));
        u32::try_from(having.count()).unwrap_or(u32::MAX)
    }

    /// Counts clients that wait for an executor, too: many that come at once would all get the same device else.
    fn demand(&self, device: &DeviceSpec, limit_bytes: u64) -> Demand {
        let serving = self.executors.values().filter_map(Executor::serving);
        let parts = serving.flat_map(|serving| &serving.parts);
        let parts = parts.chain(self.waiting.iter().flat_map(|client| client.devices()));
        let parts = parts.filter(|part| part.ordinal == device.ordinal);
        let shares: Vec<u64> = parts.map(|part| part.share_permille.into()).collect();
        let used_bytes = self.ledger.used(device.ordinal as usize);
        let free_bytes = device.total_bytes.saturating_sub(used_bytes);
        Demand {
            is_short: limit_bytes != u64::MAX && limit_bytes > free_bytes,
            share_permille: shares.iter().sum(),
            sessions: shares.len(),
            used_bytes,
            ordinal: device.ordinal,
        }
    }
}
