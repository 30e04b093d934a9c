//! What the options come to on this host.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::health::healthy;
use super::{Admission, Guard};
use crate::cache::{default_directory, make_directory};
use crate::device::cuda::inventory;
use crate::device::describe::{DeviceSpec, WHOLE_PERMILLE};
use crate::limits::{DEVICES_MAX, SESSIONS_MAX};
use crate::{DeviceChoice, DeviceKind, EXECUTOR_COMMAND, Fault, ServeError, ServeOptions};

/// Least memory of a device.
const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// Most memory of a device.
const MEMORY_BYTES_MAX: u64 = 1 << 46;
/// Least and most patience with a driver.
const PATIENCE: RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(86_400);
/// Memory of a device is a multiple of this.
const MEMORY_GRAIN: u64 = 2 << 20;

/// A server's settings, checked.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) kind: DeviceKind,
    /// All devices; the limit of a session is at most the total.
    pub(crate) devices: Vec<DeviceSpec>,
    pub(crate) pinned_bytes_max: u64,
    pub(crate) token: Option<String>,
    pub(crate) admission: Option<Arc<dyn Admission>>,
    pub(crate) sessions_max: usize,
    pub(crate) lease_sessions_max: usize,
    pub(crate) grace_ms: u64,
    pub(crate) grace_closed_ms: u64,
    pub(crate) peer_links: bool,
    pub(crate) driver_patience: Duration,
    pub(crate) warm_executors: usize,
    pub(crate) server_name: String,
    pub(crate) cache_directory: Option<PathBuf>,
    pub(crate) cache_bytes_max: u64,
    pub(crate) measure: bool,
    pub(crate) fault: Option<Fault>,
    pub(crate) is_unconfined: bool,
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
}

impl Plan {
    /// Checks the options.
    ///
    /// # Errors
    /// No such device, or an option out of range.
    pub(crate) fn new(options: &ServeOptions) -> Result<Self, ServeError> {
        let (kind, gpus) = choose(options.device)?;
        let mut command = options
            .executor
            .clone()
            .unwrap_or_else(|| vec!["/proc/self/exe".into(), EXECUTOR_COMMAND.into()])
            .into_iter();
        let Some(program) = command.next() else {
            return Err(ServeError::Option("an empty executor command".to_owned()));
        };
        let arguments: Vec<OsString> = command.collect();
        let gpus = match kind {
            DeviceKind::Cuda => {
                healthy(within(gpus), &program, &arguments).map_err(ServeError::NoGpu)?
            }
            DeviceKind::Soft | DeviceKind::Null => gpus,
        };
        let bad = |what: String| Err(ServeError::Option(what));
        let has_gpus = kind == DeviceKind::Cuda;
        let all = if has_gpus { gpus.len() } else { 1 };
        let all = u32::try_from(all.min(DEVICES_MAX)).unwrap_or(1);
        let count = options.device_count.unwrap_or(all);
        if has_gpus && count > all {
            return bad(format!("{count} GPUs: this host has {all} that work"));
        }
        if count == 0 || count as usize > DEVICES_MAX {
            return bad(format!("{count} devices: there can be 1 to {DEVICES_MAX}"));
        }
        let total_bytes = options
            .memory_bytes
            .unwrap_or_else(|| (host_memory_bytes() / 2 / u64::from(count)) & !(MEMORY_GRAIN - 1));
        if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&total_bytes) {
            return bad(format!(
                "a device memory of {total_bytes} bytes: at least {MEMORY_BYTES_MIN}"
            ));
        }
        let wanted = options.memory_bytes.unwrap_or(0);
        let served = gpus.iter().take(count as usize);
        if let Some(gpu) = served.into_iter().find(|gpu| gpu.total_bytes < wanted) {
            return bad(format!(
                "{wanted} bytes of memory of each device: GPU {} has {}; leave --memory out to serve all of it",
                gpu.ordinal, gpu.total_bytes
            ));
        }
        if options.sessions_max == 0 || options.sessions_max as usize > SESSIONS_MAX {
            return bad(format!(
                "{} sessions: there can be 1 to {SESSIONS_MAX}",
                options.sessions_max
            ));
        }
        if options.fault.is_some() && kind != DeviceKind::Soft {
            return bad(format!(
                "--fault with --device {kind}: only soft fails on purpose"
            ));
        }
        if !PATIENCE.contains(&options.driver_patience) {
            let given = options.driver_patience;
            return bad(format!(
                "a patience of {given:?} with the driver: 0.1 s to a day"
            ));
        }
        if options.token.as_deref() == Some("") {
            return bad("an empty token".to_owned());
        }
        let cache_directory = match (&options.cache_dir, options.cache_bytes_max) {
            (_, 0) => None,
            (Some(directory), _) => make_directory(directory),
            (None, _) => default_directory(),
        };
        let device = |number: u32| {
            let gpu = gpus.get(number as usize);
            let most = options.memory_bytes.unwrap_or(u64::MAX);
            let total_bytes = gpu.map_or(total_bytes, |gpu| gpu.total_bytes.min(most));
            DeviceSpec {
                ordinal: gpu.map_or(number, |gpu| gpu.ordinal),
                total_bytes,
                limit_bytes: total_bytes,
                share_permille: WHOLE_PERMILLE,
            }
        };
        Ok(Self {
            kind,
            devices: (0..count).map(device).collect(),
            pinned_bytes_max: options
                .pinned_bytes
                .unwrap_or_else(|| host_memory_bytes() / 2),
            token: options.token.clone(),
            admission: options.admission.clone(),
            sessions_max: options.sessions_max as usize,
            lease_sessions_max: options.lease_sessions_max as usize,
            grace_ms: u64::try_from(options.grace.as_millis()).unwrap_or(u64::MAX),
            grace_closed_ms: u64::try_from(options.grace_closed.as_millis()).unwrap_or(u64::MAX),
            peer_links: options.peer_links,
            driver_patience: options.driver_patience,
            warm_executors: options.warm_executors.min(options.sessions_max) as usize,
            server_name: options.server_name.clone(),
            cache_directory,
            cache_bytes_max: options.cache_bytes_max,
            measure: options.measure,
            fault: options.fault,
            is_unconfined: options.is_unconfined,
            program,
            arguments,
        })
    }
}

impl Plan {
    /// Who is let in.
    pub(crate) fn guard(&self) -> Guard {
        match (&self.admission, &self.token) {
            (Some(admission), _) => Guard::Admission(admission.clone()),
            (None, Some(token)) => Guard::Token(token.clone()),
            (None, None) => Guard::Open,
        }
    }
}

/// The kind, and the GPUs if it is them. Never `soft` unless it was asked for.
fn choose(choice: DeviceChoice) -> Result<(DeviceKind, Vec<DeviceSpec>), ServeError> {
    match choice {
        DeviceChoice::Soft => Ok((DeviceKind::Soft, Vec::new())),
        DeviceChoice::Null => Ok((DeviceKind::Null, Vec::new())),
        DeviceChoice::Auto | DeviceChoice::Cuda => {
            let gpus = inventory::devices();
            let gpus = gpus.map_err(|error| ServeError::NoGpu(error.to_string()))?;
            if gpus.is_empty() {
                let why = "the CUDA driver shows no GPU".to_owned();
                return Err(ServeError::NoGpu(why));
            }
            Ok((DeviceKind::Cuda, gpus))
        }
    }
}

/// The GPUs that there is room for: what sessions share has a place for each number.
fn within(mut gpus: Vec<DeviceSpec>) -> Vec<DeviceSpec> {
    gpus.retain(|gpu| {
        let is_within = (gpu.ordinal as usize) < DEVICES_MAX;
        if !is_within {
            log::error!(
                "GPU {} is not served: a server has at most {DEVICES_MAX}; start another one with CUDA_VISIBLE_DEVICES",
                gpu.ordinal
            );
        }
        is_within
    });
    gpus
}

fn host_memory_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.map_or(4 << 30, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Plan, within};
    use crate::device::describe::DeviceSpec;
    use crate::{DeviceChoice, ServeOptions};

    fn options() -> ServeOptions {
        ServeOptions {
            device: DeviceChoice::Null,
            cache_bytes_max: 0,
            ..ServeOptions::default()
        }
    }

    #[test]
    fn a_missing_gpu_is_said_and_never_replaced() {
        for device in [DeviceChoice::Auto, DeviceChoice::Cuda] {
            let error = Plan::new(&ServeOptions {
                device,
                ..options()
            })
            .unwrap_err()
            .to_string();
            assert!(error.contains("--device soft"), "{error}");
        }
    }

    #[test]
    fn gpus_whose_number_has_no_place_are_left_out() {
        let gpu = |ordinal| DeviceSpec {
            ordinal,
            total_bytes: 1,
            limit_bytes: 1,
            share_permille: 1000,
        };
        // The first one did not work, say.
        let left = within((1..=17).map(gpu).collect());
        assert_eq!(left.last().map(|gpu| gpu.ordinal), Some(15));
    }

    #[test]
    fn options_out_of_range_are_refused() {
        assert!(
            Plan::new(&ServeOptions {
                device_count: Some(0),
                ..options()
            })
            .is_err()
        );
        assert!(
            Plan::new(&ServeOptions {
                device_count: Some(17),
                ..options()
            })
            .is_err()
        );
        assert!(
            Plan::new(&ServeOptions {
                memory_bytes: Some(5),
                ..options()
            })
            .is_err()
        );
        assert!(
            Plan::new(&ServeOptions {
                sessions_max: 0,
                ..options()
            })
            .is_err()
        );
        assert!(
            Plan::new(&ServeOptions {
                token: Some(String::new()),
                ..options()
            })
            .is_err()
        );
        let plan = Plan::new(&ServeOptions {
            device_count: Some(3),
            ..options()
        })
        .unwrap();
        assert_eq!(plan.devices.len(), 3);
        assert!(
            plan.devices
                .iter()
                .all(|device| device.total_bytes >= 1 << 20)
        );
    }
}
