//! Stream-ordered memory pools. Memory that is freed goes back to the server at once, so a pool is its attributes and
//! its accounts, which are kept as a driver keeps them: what was reserved once stays so until the program waits.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

/// A driver takes memory for a pool in pieces of this size.
const CHUNK: u64 = 32 << 20;
/// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
const RELEASE_THRESHOLD: usize = 4;

/// Whether any pool was ever used, and how often the program has waited since: it is then that pools let go of memory.
static IS_USED: AtomicBool = AtomicBool::new(false);
static WAITS: AtomicU64 = AtomicU64::new(0);

/// The program has waited for a stream, an event or a context.
#[inline]
pub(crate) fn waited() {
    if IS_USED.load(Ordering::Relaxed) {
        WAITS.fetch_add(1, Ordering::Relaxed);
    }
}

/// A pool.
pub(crate) struct Pool {
    pub(crate) device: u32,
    pub(crate) attributes: Mutex<[u64; 16]>,
    /// The most that it may give; 0 = the device's.
    max_bytes: u64,
    accounts: Mutex<Accounts>,
}

/// Bytes, as the attributes tell them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Accounts {
    pub(crate) used: u64,
    pub(crate) used_high: u64,
    pub(crate) reserved: u64,
    pub(crate) reserved_high: u64,
    /// The count of waits up to which memory was let go of.
    waits: u64,
}

impl Accounts {
    fn take(&mut self, bytes: u64) {
        self.used += bytes;
        self.used_high = self.used_high.max(self.used);
        self.reserved = self.reserved.max(self.needed());
        self.reserved_high = self.reserved_high.max(self.reserved);
    }

    /// Lets go of what is reserved beyond `keep` and not needed.
    fn trim(&mut self, keep: u64) {
        self.reserved = self.reserved.min(keep.max(self.needed()));
    }

    fn needed(&self) -> u64 {
        self.used.next_multiple_of(CHUNK)
    }
}

impl Pool {
    pub(crate) fn of_device(device: u32) -> Self {
        Self::new(device, 0)
    }

    /// One that gives `max_bytes` at most; 0 = as much as there is.
    pub(crate) fn new(device: u32, max_bytes: u64) -> Self {
        let mut attributes = [0; 16];
        // Reuse policies are on by default (cuda.h, CU_MEMPOOL_ATTR_REUSE_*).
        attributes[1..4].fill(1);
        Self {
            device,
            attributes: Mutex::new(attributes),
            max_bytes,
            accounts: Mutex::default(),
        }
    }

    /// Memory is about to be allocated.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`: more than the pool may give.
    pub(crate) fn take(&self, bytes: u64) -> CuResult {
        IS_USED.store(true, Ordering::Relaxed);
        self.up_to_date(|accounts| {
            let used = accounts.used.checked_add(bytes);
            let used = used.ok_or(CuStatus::OUT_OF_MEMORY)?;
            if self.max_bytes != 0 && used > self.max_bytes {
                return Err(CuStatus::OUT_OF_MEMORY);
            }
            accounts.take(bytes);
            Ok(())
        })
    }

    /// Memory was freed.
    pub(crate) fn give(&self, bytes: u64) {
        self.up_to_date(|accounts| accounts.used = accounts.used.saturating_sub(bytes));
    }

    /// `cuMemPoolTrimTo`.
    pub(crate) fn trim(&self, keep_bytes: u64) {
        self.up_to_date(|accounts| accounts.trim(keep_bytes));
    }

    /// The accounts as they are now.
    pub(crate) fn accounts(&self) -> Accounts {
        self.up_to_date(|accounts| *accounts)
    }

    /// Starts the high-water mark anew.
    pub(crate) fn forget_high(&self, is_reserved: bool) {
        self.up_to_date(|accounts| {
            if is_reserved {
                accounts.reserved_high = accounts.reserved;
            } else {
                accounts.used_high = accounts.used;
            }
        });
    }

    fn up_to_date<T>(&self, change: impl FnOnce(&mut Accounts) -> T) -> T {
        let threshold = self.attributes.lock()[RELEASE_THRESHOLD];
        let mut accounts = self.accounts.lock();
        let waits = WAITS.load(Ordering::Relaxed);
        if accounts.waits != waits {
            accounts.waits = waits;
            accounts.trim(threshold);
        }
        change(&mut accounts)
    }
}

#[cfg(test)]
mod tests {
    use super::{Accounts, CHUNK};

    #[test]
    fn freed_memory_stays_reserved_until_it_is_trimmed() {
        let mut accounts = Accounts::default();
        accounts.take(512);
        accounts.take(CHUNK);
        assert_eq!(accounts.reserved, 2 * CHUNK);
        accounts.used = 512;
        assert_eq!(accounts.reserved, 2 * CHUNK);
        accounts.trim(CHUNK + 1);
        assert_eq!(accounts.reserved, CHUNK + 1);
        accounts.trim(0);
        assert_eq!(
            (accounts.reserved, accounts.reserved_high),
            (CHUNK, 2 * CHUNK)
        );
    }
}
