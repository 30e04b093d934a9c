//! What sessions and GPUs do now, as their servers tell with each renewal.
//!
//! What is not known is left out, and never 0.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Ways of calls that one server can name for a lease; there are three.
const TRANSPORTS_MAX: usize = 8;
/// Longest name of one.
const TRANSPORT_BYTES_MAX: usize = 32;

/// What sessions do: means over about ten seconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct Work {
    /// Driver calls that reach the device, each second.
    pub calls_per_s: f64,
    /// From clients, calls and copies.
    pub received_bytes_per_s: f64,
    /// To clients, answers and copies.
    pub sent_bytes_per_s: f64,
    /// GPUs that kernels keep busy: 0.5 is half of one GPU's time. Nothing where that is not measured.
    pub computing_gpus: Option<f64>,
    /// How calls travel: `tcp`, `shm`, `verbs`, each once; empty where no session is open.
    pub transports: Vec<String>,
    /// Round trip to the client, of the slowest session, as the transport estimates it.
    pub rtt_us: Option<f64>,
}

/// A GPU, now.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(default)]
pub struct GpuNow {
    /// Which; its server's order may be another than the pool's.
    pub uuid: String,
    /// It does not answer any more: nothing of it is granted until its server has been started anew.
    pub is_lost: bool,
    /// Part of the time in which kernels of sessions ran, 0 to 1: a mean over about ten seconds.
    pub computing: Option<f64>,
    /// Part of the time in which some kernel ran, whoever's, 0 to 1 (NVML, over its last sample period).
    pub utilization: Option<f64>,
    /// Temperature of the chip, in degrees Celsius (NVML).
    pub temperature_c: Option<f64>,
    /// Power that the board takes, in watts (NVML).
    pub power_w: Option<f64>,
    /// What it may take at most (NVML).
    pub power_limit_w: Option<f64>,
    /// Memory errors since the driver was loaded that ECC corrected (NVML).
    pub ecc_corrected: Option<u64>,
    /// Memory errors since the driver was loaded that ECC could not correct (NVML).
    pub ecc_uncorrected: Option<u64>,
    /// The last critical error that the driver told of since the server was started (Xid).
    pub xid: Option<u64>,
}

impl Work {
    /// With what sessions on another server do.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        self.calls_per_s += other.calls_per_s;
        self.received_bytes_per_s += other.received_bytes_per_s;
        self.sent_bytes_per_s += other.sent_bytes_per_s;
        self.computing_gpus = either(self.computing_gpus, other.computing_gpus, |a, b| a + b);
        self.rtt_us = either(self.rtt_us, other.rtt_us, f64::max);
        for transport in &other.transports {
            if !self.transports.contains(transport) {
                self.transports.push(transport.clone());
            }
        }
        self.transports.sort();
        self
    }

    /// Sums over all; nothing where nobody says anything.
    pub fn sum<'a>(all: impl Iterator<Item = &'a Self>) -> Option<Self> {
        all.fold(None, |sum, work| Some(sum.unwrap_or_default().and(work)))
    }

    /// Without what no server says that means well: it is drawn and added up.
    pub(super) fn tidy(&mut self) {
        for rate in [
            &mut self.calls_per_s,
            &mut self.received_bytes_per_s,
            &mut self.sent_bytes_per_s,
        ] {
            *rate = possible(Some(*rate)).unwrap_or(0.0);
        }
        self.computing_gpus = possible(self.computing_gpus);
        self.rtt_us = possible(self.rtt_us);
        self.transports
            .retain(|name| name.len() <= TRANSPORT_BYTES_MAX);
        self.transports.truncate(TRANSPORTS_MAX);
    }
}

impl GpuNow {
    /// As [`Work::tidy`].
    pub(super) fn tidy(&mut self) {
        for part in [&mut self.computing, &mut self.utilization] {
            *part = possible(*part).map(|part| part.min(1.0));
        }
        for value in [
            &mut self.temperature_c,
            &mut self.power_w,
            &mut self.power_limit_w,
        ] {
            *value = possible(*value);
        }
    }
}

/// One of two that is known, or both together.
pub(super) fn either(
    one: Option<f64>,
    other: Option<f64>,
    both: impl Fn(f64, f64) -> f64,
) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(both(one, other)),
        (one, other) => one.or(other),
    }
}

fn possible(value: Option<f64>) -> Option<f64> {
    value.filter(|value| value.is_finite() && (0.0..=1e18).contains(value))
}

#[cfg(test)]
mod tests {
    use super::{GpuNow, Work};

    fn work(calls_per_s: f64, transport: &str, rtt_us: Option<f64>) -> Work {
        Work {
            calls_per_s,
            transports: vec![transport.to_owned()],
            rtt_us,
            ..Work::default()
        }
    }

    #[test]
    fn sums_keep_what_is_not_known_apart_from_zero() {
        assert_eq!(Work::sum([].into_iter()), None);
        let parts = [
            work(1.0, "tcp", None),
            work(2.0, "shm", Some(9.0)),
            work(4.0, "tcp", Some(30.0)),
        ];
        let sum = Work::sum(parts.iter());
        let expected = Work {
            calls_per_s: 7.0,
            transports: vec!["shm".to_owned(), "tcp".to_owned()],
            rtt_us: Some(30.0),
            ..Work::default()
        };
        assert_eq!(sum, Some(expected));
        let measured = Work {
            computing_gpus: Some(0.5),
            ..Work::default()
        };
        let sum = measured.clone().and(&parts[0]).and(&measured);
        assert_eq!(sum.computing_gpus, Some(1.0));
    }

    #[test]
    fn nonsense_is_left_out() {
        let mut work = Work {
            calls_per_s: -1.0,
            rtt_us: Some(f64::INFINITY),
            computing_gpus: Some(f64::NAN),
            transports: vec!["x".repeat(100), "tcp".to_owned()],
            ..Work::default()
        };
        work.tidy();
        let expected = Work {
            transports: vec!["tcp".to_owned()],
            ..Work::default()
        };
        assert_eq!(work, expected);
        let mut gpu = GpuNow {
            utilization: Some(7.0),
            power_w: Some(-3.0),
            ..GpuNow::default()
        };
        gpu.tidy();
        assert_eq!((gpu.utilization, gpu.power_w), (Some(1.0), None));
    }
}
