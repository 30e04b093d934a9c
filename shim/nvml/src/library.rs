//! What stands between `nvmlInit` and `nvmlShutdown`.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use farcall_config::{ClientConfig, LogLevel};

use crate::device::Device;
use crate::inventory::{self, Inventory};
use crate::status::{NvmlResult, Status};

/// How old memory figures may be.
const FRESH: Duration = Duration::from_secs(1);

static USERS: Mutex<Users> = Mutex::new(Users {
    count: 0,
    library: None,
});
static COMPLAINED: AtomicBool = AtomicBool::new(false);

struct Users {
    /// Calls of `nvmlInit` without their `nvmlShutdown`.
    count: u32,
    library: Option<Arc<Library>>,
}

/// The devices that this process sees.
pub(crate) struct Library {
    /// What is known of each server, in the order of their devices.
    servers: Vec<ClientConfig>,
    latest: Mutex<Latest>,
    /// Held by the thread that asks the server; others use what is there.
    asking: Mutex<()>,
}

struct Latest {
    inventory: Arc<Inventory>,
    asked: Instant,
    /// Whether the server answered.
    reached: bool,
}

/// `nvmlInit`: asks the server if nobody has. Blocks.
pub(crate) fn init() -> NvmlResult {
    if let Some(count) = add_user() {
        return count;
    }
    // Not under the lock: it takes as long as the server takes.
    let config = ClientConfig::from_process().map_err(|error| error.to_string());
    let opened = config
        .and_then(Library::open)
        .map(Arc::new)
        .map_err(|message| {
            complain(&message);
            Status::DRIVER_NOT_LOADED
        })?;
    let mut users = lock(&USERS);
    users.library.get_or_insert(opened);
    users.count = users.count.saturating_add(1);
    Ok(())
}

/// `nvmlShutdown`.
pub(crate) fn shutdown() -> NvmlResult {
    let mut users = lock(&USERS);
    users.count = users.count.checked_sub(1).ok_or(Status::UNINITIALIZED)?;
    if users.count == 0 {
        users.library = None;
    }
    Ok(())
}

/// The library, if it is initialized.
pub(crate) fn library() -> NvmlResult<Arc<Library>> {
    lock(&USERS).library.clone().ok_or(Status::UNINITIALIZED)
}

fn add_user() -> Option<NvmlResult> {
    let mut users = lock(&USERS);
    users.library.as_ref()?;
    users.count = users.count.saturating_add(1);
    Some(Ok(()))
}

impl Library {
    fn open(config: ClientConfig) -> Result<Self, String> {
        let servers = config.each().map_err(|error| error.to_string())?;
        let inventory = inventory::of_all(&servers).map_err(|error| {
            format!(
                "no NVML: {error} (server from {}); start one with `farcall serve`, or name another with FARCALL_SERVER",
                config.server_origin
            )
        })?;
        let latest = Latest {
            inventory: Arc::new(inventory),
            asked: Instant::now(),
            reached: true,
        };
        Ok(Self {
            servers,
            latest: Mutex::new(latest),
            asking: Mutex::new(()),
        })
    }

    /// CUDA version that the server stands for.
    pub(crate) fn cuda_version(&self) -> u32 {
        lock(&self.latest).inventory.cuda_version
    }

    /// What a program may use of the memory of a device that has `total_bytes`.
    pub(crate) fn memory_limit_bytes(&self, total_bytes: u64) -> Option<u64> {
        let share = |permille: u16| (total_bytes / 1000).saturating_mul(u64::from(permille));
        // The same for devices of all servers.
        let config = self.servers.first()?;
        config
            .memory_bytes
            .or_else(|| config.share_permille.map(share))
    }

    /// How many devices this process gets. Does not block.
    pub(crate) fn device_count(&self) -> u32 {
        u32::try_from(lock(&self.latest).inventory.devices.len()).unwrap_or(u32::MAX)
    }

    /// Device `index` as last seen. Does not block.
    pub(crate) fn device(&self, index: u32) -> NvmlResult<Device> {
        if index >= self.device_count() {
            return Err(Status::INVALID_ARGUMENT);
        }
        let at = usize::try_from(index).map_err(|_| Status::INVALID_ARGUMENT)?;
        lock(&self.latest)
            .inventory
            .devices
            .get(at)
            .cloned()
            .ok_or(Status::INVALID_ARGUMENT)
    }

    /// Number of the first device that `wanted` picks. Does not block.
    pub(crate) fn find(&self, wanted: impl Fn(&Device) -> bool) -> NvmlResult<u32> {
        let found = (0..self.device_count())
            .find(|index| self.device(*index).is_ok_and(|device| wanted(&device)));
        found.ok_or(Status::NOT_FOUND)
    }

    /// Device `index` with figures that are at most a second old at `now`. Blocks while the server is asked.
    pub(crate) fn device_now(&self, index: u32, now: Instant) -> NvmlResult<Device> {
        self.refresh(now);
        if !lock(&self.latest).reached {
            return Err(Status::GPU_IS_LOST);
        }
        self.device(index)
    }

    /// Asks again if the figures are old and no other thread is asking. A server that does not answer
    /// is not asked more often either.
    fn refresh(&self, now: Instant) {
        if now.saturating_duration_since(lock(&self.latest).asked) < FRESH {
            return;
        }
        let _asking = match self.asking.try_lock() {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        let answer = inventory::of_all(&self.servers);
        let mut latest = lock(&self.latest);
        latest.asked = now;
        // Devices keep their numbers as long as the library is in use; others are another server's.
        latest.reached = answer
            .as_ref()
            .is_ok_and(|new| same_devices(new, &latest.inventory));
        if let (true, Ok(new)) = (latest.reached, answer) {
            latest.inventory = Arc::new(new);
        }
    }
}

fn same_devices(a: &Inventory, b: &Inventory) -> bool {
    a.devices
        .iter()
        .map(|device| device.uuid)
        .eq(b.devices.iter().map(|device| device.uuid))
}

/// One line on stderr, once per process: a program that polls would fill the screen.
fn complain(message: &str) {
    let silent =
        std::env::var(farcall_config::vars::LOG).is_ok_and(|level| level == LogLevel::Off.name());
    if !silent && !COMPLAINED.swap(true, Ordering::Relaxed) {
        eprintln!("farcall: {message}");
    }
}

/// None of the critical sections can leave a value half changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[path = "../tests/common/server.rs"]
mod server;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::arithmetic_side_effects)]
    use std::sync::atomic::Ordering;
    use std::time::{Duration, Instant};

    use farcall_config::{ClientConfig, vars};

    use super::Library;
    use super::server::Server;
    use crate::status::Status;

    #[test]
    fn figures_are_asked_once_a_second_and_a_lost_server_is_told() {
        let server = Server::start("t");
        let config = ClientConfig::load(|name| match name {
            vars::SERVER => Some(server.address.clone()),
            vars::TOKEN => Some("t".to_owned()),
            _ => None,
        });
        let library = Library::open(config.unwrap()).unwrap();
        let asked = || server.asked.load(Ordering::SeqCst);
        let start = Instant::now();
        let used = |seconds| {
            library
                .device_now(0, start + Duration::from_secs(seconds))
                .map(|device| device.used_bytes)
        };
        assert_eq!(library.device_count(), 3);
        server.used_bytes.store(4096, Ordering::SeqCst);
        assert_eq!((used(0), asked()), (Ok(0), 1));
        assert_eq!((used(2), asked()), (Ok(4096), 2));
        assert_eq!((used(2), asked()), (Ok(4096), 2));

        server.uuid_first.store(9, Ordering::SeqCst);
        assert_eq!(
            (used(4), asked()),
            (Err(Status::GPU_IS_LOST), 3),
            "other devices are there now"
        );
        assert_eq!((used(4), asked()), (Err(Status::GPU_IS_LOST), 3));
        server.uuid_first.store(1, Ordering::SeqCst);
        assert_eq!(
            (used(6), asked()),
            (Ok(4096), 4),
            "the same devices are back"
        );
    }
}
