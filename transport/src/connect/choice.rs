//! Which way to the server is the best, and why.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use super::{Link, local, over_tcp, over_verbs, verbs_at_hand};
use crate::error::ConnectError;
use crate::options::{ConnectOptions, TransportChoice};
use crate::probe::{PathReport, ProbePlan, probe};

/// What a typical step moves beside its round trip: the weight of the bandwidth.
const TYPICAL_BYTES: u64 = 64 << 10;
/// A way that costs the host more must be better by this much, in per cent.
const MARGIN_PERCENT: u64 = 10;

/// The best way that both sides have, and why it was taken. What the server says itself (a refusal)
/// is final.
pub(super) fn best(
    options: &ConnectOptions,
    deadline: Instant,
) -> Result<(Link, String), ConnectError> {
    let not_shm = match local::over_shm(options, deadline) {
        Err(ConnectError::Transport { reason, .. }) if !local::is_path(options) => reason,
        other => return Ok((other?, "client and server share a host".to_owned())),
    };
    if let Err(not_verbs) = verbs_at_hand(options) {
        let reason = format!("not shm ({not_shm}), not verbs ({not_verbs})");
        return Ok((over_tcp(options, deadline)?, reason));
    }
    let (verbs, reason) = compare(options, deadline);
    if verbs {
        match over_verbs(options, deadline) {
            Err(ConnectError::Transport { reason, .. }) => {
                return Ok((
                    over_tcp(options, deadline)?,
                    format!("not verbs ({reason})"),
                ));
            }
            other => return Ok((other?, reason)),
        }
    }
    Ok((over_tcp(options, deadline)?, reason))
}

/// Probes both ways over the network; whether verbs is to be taken, and why.
fn compare(options: &ConnectOptions, deadline: Instant) -> (bool, String) {
    let measure = |transport: TransportChoice| {
        let mut options = options.clone();
        options.transport = transport;
        options.connect_timeout = deadline.saturating_duration_since(Instant::now()) / 3;
        probe(&options, &ProbePlan::short()).map(|report| Worth::of(&report))
    };
    let verbs = match measure(TransportChoice::Verbs) {
        Ok(verbs) => verbs,
        // It got through to the server, which probes for others already, or not at all.
        Err(ConnectError::Refused { message, .. }) => {
            return (true, format!("it works; no probe ({message})"));
        }
        Err(error) => return (false, format!("not verbs ({error})")),
    };
    match measure(TransportChoice::Tcp) {
        Ok(tcp) => (
            !is_better(&tcp, &verbs),
            format!("verbs has {verbs}, tcp {tcp}"),
        ),
        Err(error) => (true, format!("it has {verbs}; no probe of tcp ({error})")),
    }
}

/// What a short probe found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Worth {
    rtt: Duration,
    /// The slower direction.
    bytes_per_s: u64,
}

impl Worth {
    fn of(report: &PathReport) -> Self {
        let rtt_ns = report
            .round_trips
            .first()
            .map_or(u64::MAX, |trips| trips.p50_ns);
        let rates = [report.up_bytes_per_s, report.down_bytes_per_s];
        Self {
            rtt: Duration::from_nanos(rtt_ns),
            bytes_per_s: rates.into_iter().flatten().min().unwrap_or(0),
        }
    }

    /// Time of a typical step, in nanoseconds.
    fn step_ns(&self) -> u64 {
        let moving = TYPICAL_BYTES.saturating_mul(1_000_000_000) / self.bytes_per_s.max(1);
        u64::try_from(self.rtt.as_nanos())
            .unwrap_or(u64::MAX)
            .saturating_add(moving)
    }
}

impl std::fmt::Display for Worth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (us, tenths) = (self.rtt.as_micros(), self.rtt.as_nanos() / 100 % 10);
        write!(
            f,
            "{us}.{tenths} us and {} MB/s",
            self.bytes_per_s / 1_000_000
        )
    }
}

/// Whether `one` is better than `other` by more than the margin.
fn is_better(one: &Worth, other: &Worth) -> bool {
    let bar = other.step_ns() / 100 * (100 - MARGIN_PERCENT);
    one.step_ns() < bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worth(rtt_us: u64, megabytes_per_s: u64) -> Worth {
        Worth {
            rtt: Duration::from_micros(rtt_us),
            bytes_per_s: megabytes_per_s * 1_000_000,
        }
    }

    #[test]
    fn round_trips_count_and_bandwidth_too() {
        assert!(is_better(&worth(5, 3000), &worth(30, 3000)));
        assert!(
            is_better(&worth(30, 3000), &worth(25, 100)),
            "655 us against 21 us to move"
        );
        assert!(
            !is_better(&worth(29, 3000), &worth(30, 3000)),
            "within the margin"
        );
        assert!(
            !is_better(&worth(5, 0), &worth(30, 3000)),
            "nothing got through"
        );
    }

    #[test]
    fn it_reads_well() {
        assert_eq!(worth(5, 2900).to_string(), "5.0 us and 2900 MB/s");
    }
}
