//! NVML's words to ours.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use farcall_pool::core::wall_ms;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::{
    EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold,
};
use nvml_wrapper::enums::event::XidError;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, EventSet, Nvml};

use super::Found;

/// As the driver's packages install it; the name without a version comes with development files.
const LIBRARY: &str = "libnvidia-ml.so.1";
/// What NVML gives as the number of an error that it cannot name.
const XID_UNKNOWN: u64 = 999;

/// A GPU at one time. What the driver does not say is `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Reading {
    /// Number among the machine's.
    pub(crate) index: u32,
    /// `GPU-xxxxxxxx-...`.
    pub(crate) uuid: String,
    /// Part of the time in which some kernel ran, 0 to 1.
    pub(crate) utilization: Option<f64>,
    pub(crate) temperature_c: Option<f64>,
    /// From here on the chip slows itself down.
    pub(crate) slowdown_c: Option<f64>,
    pub(crate) power_w: Option<f64>,
    pub(crate) power_limit_w: Option<f64>,
    /// Since the driver was loaded; nothing where ECC is off, or not there.
    pub(crate) ecc_corrected: Option<u64>,
    pub(crate) ecc_uncorrected: Option<u64>,
    /// Whether critical errors (Xid) are told.
    pub(crate) tells_xids: bool,
    /// The last of them since somebody listens.
    pub(crate) xid: Option<Xid>,
}

/// A critical error that the driver told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Xid {
    pub(crate) number: u64,
    pub(crate) at_ms: u64,
}

/// Where errors are heard.
struct Ears<'a> {
    set: EventSet<'a>,
    /// Numbers of the GPUs that tell of theirs.
    gpus: BTreeSet<u32>,
}

/// The library, open.
#[derive(Debug)]
pub(super) struct Library(Nvml);

/// All GPUs now, without waiting for errors. Blocks for `timeout` at most: a broken driver may never answer.
///
/// # Errors
/// There is no such library, or no driver, in words.
pub(crate) fn read_once(timeout: Duration) -> Found {
    let (say, said) = channel();
    let read = move || {
        let found = Library::open().and_then(|it| it.read(&BTreeMap::new(), None));
        // Nobody waits any more, at worst.
        let _ = say.send(found);
    };
    let builder = std::thread::Builder::new().name("nvml".to_owned());
    builder.spawn(read).map_err(|error| error.to_string())?;
    said.recv_timeout(timeout)
        .unwrap_or_else(|_| Err(format!("no answer in {timeout:?}: the driver hangs")))
}

impl Library {
    pub(super) fn open() -> Result<Self, String> {
        let opened = Nvml::builder().lib_path(OsStr::new(LIBRARY)).init();
        opened.map(Self).map_err(|error| words(&error))
    }

    /// Tells what it reads, every `step` and when an error comes, as long as `tell` wants to hear it.
    ///
    /// # Errors
    /// The driver is gone.
    pub(super) fn follow(
        &self,
        step: Duration,
        tell: impl Fn(Vec<Reading>) -> bool,
    ) -> Result<(), String> {
        let ears = self.listen();
        let mut xids = BTreeMap::new();
        loop {
            if !tell(self.read(&xids, ears.as_ref())?) {
                return Ok(());
            }
            match &ears {
                None => std::thread::park_timeout(step),
                Some(ears) => wait(&ears.set, step, &mut xids),
            }
        }
    }

    /// Listens to the GPUs that tell of errors; nothing where none does.
    fn listen(&self) -> Option<Ears<'_>> {
        let mut set = self.0.create_event_set().ok()?;
        let mut gpus = BTreeSet::new();
        for index in 0..self.0.device_count().ok()? {
            let Ok(device) = self.0.device_by_index(index) else {
                continue;
            };
            let tells = device.supported_event_types();
            if tells.is_ok_and(|kinds| kinds.contains(EventTypes::CRITICAL_XID_ERROR)) {
                // A refusal takes the whole set with it.
                let registered = device.register_events(EventTypes::CRITICAL_XID_ERROR, set);
                set = registered.ok()?;
                gpus.insert(index);
            }
        }
        (!gpus.is_empty()).then_some(Ears { set, gpus })
    }

    fn read(
        &self,
        xids: &BTreeMap<String, Xid>,
        ears: Option<&Ears<'_>>,
    ) -> Result<Vec<Reading>, String> {
        let count = self.0.device_count().map_err(|error| words(&error))?;
        let reading = |index| {
            let device = self.0.device_by_index(index);
            let device = device.map_err(|error| format!("GPU {index}: {}", words(&error)))?;
            let tells_xids = ears.is_some_and(|ears| ears.gpus.contains(&index));
            Ok(reading(&device, index, xids, tells_xids))
        };
        (0..count).map(reading).collect()
    }
}

fn reading(
    device: &Device<'_>,
    index: u32,
    xids: &BTreeMap<String, Xid>,
    tells_xids: bool,
) -> Reading {
    let uuid = device.uuid().unwrap_or_default();
    let degrees = |value: u32| f64::from(value);
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    let errors = |kind| device.total_ecc_errors(kind, EccCounter::Volatile).ok();
    Reading {
        index,
        utilization: device
            .utilization_rates()
            .ok()
            .map(|rates| f64::from(rates.gpu) / 100.0),
        temperature_c: device.temperature(TemperatureSensor::Gpu).ok().map(degrees),
        slowdown_c: device
            .temperature_threshold(TemperatureThreshold::Slowdown)
            .ok()
            .map(degrees),
        power_w: device.power_usage().ok().map(watts),
        power_limit_w: device.enforced_power_limit().ok().map(watts),
        ecc_corrected: errors(MemoryError::Corrected),
        ecc_uncorrected: errors(MemoryError::Uncorrected),
        tells_xids,
        xid: xids.get(&uuid).copied(),
        uuid,
    }
}

/// Waits for errors until the step is over, or one has come.
fn wait(events: &EventSet<'_>, step: Duration, xids: &mut BTreeMap<String, Xid>) {
    let deadline = Instant::now() + step;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return;
        }
        let left_ms = u32::try_from(left.as_millis()).unwrap_or(u32::MAX).max(1);
        match events.wait(left_ms) {
            Ok(event) => {
                let number = match event.event_data {
                    Some(XidError::Value(number)) => number,
                    Some(XidError::Unknown) => XID_UNKNOWN,
                    None => continue,
                };
                let uuid = event.device.uuid().unwrap_or_default();
                log::error!("GPU {uuid}: Xid {number}");
                let at_ms = wall_ms();
                xids.insert(uuid, Xid { number, at_ms });
                return;
            }
            // It may return early, as at a signal.
            Err(NvmlError::Timeout) => {}
            // A GPU that is lost: what is read next says so. Not again and again at once.
            Err(error) => {
                log::debug!("NVML: {error}");
                std::thread::park_timeout(deadline.saturating_duration_since(Instant::now()));
                return;
            }
        }
    }
}

fn words(error: &NvmlError) -> String {
    match error {
        NvmlError::LibloadingError(_) => format!("{LIBRARY} is not there"),
        NvmlError::DriverNotLoaded => "NVIDIA's driver is not loaded".to_owned(),
        other => other.to_string(),
    }
}
