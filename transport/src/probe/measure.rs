//! The client's side of a probe.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;

use super::wire::{HEAD_BYTES, Head, Operation, PAYLOAD, TRANSFER_BYTES_MAX};
use crate::connect::connect;
use crate::endpoint::{Endpoint, Handler};
use crate::error::ConnectError;
use crate::num::{to_u64, to_usize};
use crate::options::ConnectOptions;
use crate::stream::PathInfo;

/// How much is measured.
#[derive(Clone, Debug)]
pub struct ProbePlan {
    /// Sizes of records whose round trip is measured, in bytes; at least 24, at most one frame.
    pub record_bytes: Vec<usize>,
    /// Round trips of each size, after a tenth of them unmeasured.
    pub round_trips: usize,
    /// No size takes longer.
    pub time_max: Duration,
    /// Bytes of each bulk transfer, at most 16 MiB. 0: no bandwidth is measured.
    pub transfer_bytes: usize,
    /// Transfers in each direction, after an unmeasured one.
    pub transfers: usize,
}

impl Default for ProbePlan {
    /// For people: two seconds or so.
    fn default() -> Self {
        Self {
            record_bytes: vec![64, 1 << 10, 4 << 10, 64 << 10],
            round_trips: 2000,
            time_max: Duration::from_millis(400),
            transfer_bytes: to_usize(TRANSFER_BYTES_MAX),
            transfers: 16,
        }
    }
}

impl ProbePlan {
    /// A choice between two ways: a millisecond or so on a local network.
    #[must_use]
    pub fn short() -> Self {
        Self {
            record_bytes: vec![64],
            round_trips: 20,
            time_max: Duration::from_millis(5),
            transfer_bytes: 1 << 20,
            transfers: 2,
        }
    }
}

/// Round trips of one size, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundTrips {
    /// Bytes of the record, there and back.
    pub record_bytes: usize,
    /// How many were measured.
    pub count: usize,
    /// Half were as fast.
    pub p50_ns: u64,
    /// Nine of ten were as fast.
    pub p90_ns: u64,
    /// 99 of 100 were as fast.
    pub p99_ns: u64,
    /// 999 of 1000 were as fast.
    pub p999_ns: u64,
    /// The slowest.
    pub max_ns: u64,
}

/// What a probe found.
#[derive(Clone, Debug)]
pub struct PathReport {
    /// Which backend was measured.
    pub transport: &'static str,
    /// Why it was that one.
    pub reason: String,
    /// Round trips by size.
    pub round_trips: Vec<RoundTrips>,
    /// Client to server, in bytes a second; `None` where none was measured.
    pub up_bytes_per_s: Option<u64>,
    /// Server to client, in bytes a second.
    pub down_bytes_per_s: Option<u64>,
    /// What the system knows of the connection, where there is one.
    pub path: Option<PathInfo>,
}

/// Why a probe ended without a result.
fn over(error: impl std::error::Error + Send + Sync + 'static) -> ConnectError {
    ConnectError::System(std::io::Error::other(error))
}

/// Opens a probe session with these options (their payload is not used) and measures. Blocks for
/// as long as the plan takes.
///
/// # Errors
/// [`ConnectError`]; a server that knows no probes refuses.
pub fn probe(options: &ConnectOptions, plan: &ProbePlan) -> Result<PathReport, ConnectError> {
    let mut options = options.clone();
    options.payload = PAYLOAD.to_vec();
    let answers = Arc::new(Answers::default());
    let (endpoint, _) = connect(&options, answers.clone())?;
    let probe = Probe {
        endpoint,
        answers,
        patience: options.connect_timeout.max(Duration::from_secs(5)),
    };
    probe.run(plan)
}

/// Counts what came back: the questions are answered in order.
#[derive(Debug, Default)]
struct Answers {
    last_id: AtomicU64,
}

impl Handler for Answers {
    fn on_frame(&self, _: &Endpoint, mut frame: &[u8]) {
        while let Some((head, _, rest)) = Head::split(frame) {
            self.last_id.store(head.id(), Release);
            frame = rest;
        }
    }
}

struct Probe {
    endpoint: Endpoint,
    answers: Arc<Answers>,
    patience: Duration,
}

impl Probe {
    fn run(&self, plan: &ProbePlan) -> Result<PathReport, ConnectError> {
        let mut next_id = 1;
        let mut round_trips = Vec::new();
        for bytes in &plan.record_bytes {
            let bytes = (*bytes).clamp(HEAD_BYTES, self.endpoint.record_bytes_max());
            round_trips.push(self.round_trips(bytes.next_multiple_of(8), plan, &mut next_id)?);
        }
        let (mut up, mut down) = (None, None);
        if plan.transfer_bytes > 0 && plan.transfers > 0 {
            let mut buffer =
                vec![MaybeUninit::new(0); plan.transfer_bytes.min(to_usize(TRANSFER_BYTES_MAX))];
            up = Some(self.upload(plan.transfers, buffer.len(), &mut next_id)?);
            down = Some(self.download(plan.transfers, &mut buffer, &mut next_id)?);
        }
        let path = self.endpoint.path();
        self.endpoint.close();
        Ok(PathReport {
            transport: self.endpoint.transport_name(),
            reason: self.endpoint.transport_reason().to_owned(),
            round_trips,
            up_bytes_per_s: up,
            down_bytes_per_s: down,
            path,
        })
    }

    fn ask(
        &self,
        operation: Operation,
        bytes: usize,
        id: u64,
        transfer: usize,
    ) -> Result<(), ConnectError> {
        let record_bytes = u32::try_from(bytes).map_err(over)?;
        let head = Head::new(operation, record_bytes, id, to_u64(transfer));
        let fill = |out: &mut [u8]| {
            out[..HEAD_BYTES].copy_from_slice(head.as_bytes());
            out[HEAD_BYTES..].fill(0);
        };
        let asked = self.endpoint.append_now(bytes, fill);
        asked.map(|_| ()).map_err(over)
    }

    fn answered(&self, id: u64) -> Result<(), ConnectError> {
        let done = || self.answers.last_id.load(Acquire) == id;
        let waited = self.endpoint.wait_until(&done, Some(self.patience));
        waited.map_err(over)
    }

    fn round_trips(
        &self,
        bytes: usize,
        plan: &ProbePlan,
        next_id: &mut u64,
    ) -> Result<RoundTrips, ConnectError> {
        let warm_ups = plan.round_trips.div_ceil(10);
        let mut samples = Vec::with_capacity(plan.round_trips);
        let start = Instant::now();
        for n in 0..plan.round_trips + warm_ups {
            if start.elapsed() > plan.time_max && !samples.is_empty() {
                break;
            }
            let left = Instant::now();
            self.ask(Operation::Echo, bytes, *next_id, 0)?;
            self.answered(*next_id)?;
            *next_id += 1;
            if n >= warm_ups {
                samples.push(u64::try_from(left.elapsed().as_nanos()).unwrap_or(u64::MAX));
            }
        }
        Ok(RoundTrips::of(bytes, samples))
    }

    fn upload(
        &self,
        transfers: usize,
        bytes: usize,
        next_id: &mut u64,
    ) -> Result<u64, ConnectError> {
        let data = vec![0u8; bytes];
        let mut start = Instant::now();
        for n in 0..=transfers {
            // The first is over before the others are timed: it opens the connection.
            if n == 1 {
                self.answered(*next_id - 1)?;
                start = Instant::now();
            }
            self.ask(Operation::Sink, HEAD_BYTES, *next_id, bytes)?;
            let sent = self.endpoint.bulk_send(*next_id, &[IoSlice::new(&data)]);
            sent.map_err(over)?;
            *next_id += 1;
        }
        self.answered(*next_id - 1)?;
        Ok(rate(transfers * bytes, start.elapsed()))
    }

    fn download(
        &self,
        transfers: usize,
        buffer: &mut [MaybeUninit<u8>],
        next_id: &mut u64,
    ) -> Result<u64, ConnectError> {
        let first = *next_id;
        let last = first + to_u64(transfers);
        *next_id = last + 1;
        let mut start = Instant::now();
        for id in first..=last {
            // One is asked for ahead, so that the server never waits for a question.
            let ahead = if id == first {
                first..=first
            } else if id == first + 1 {
                id..=(id + 1).min(last)
            } else {
                id + 1..=(id + 1).min(last)
            };
            for id in ahead {
                self.ask(Operation::Source, HEAD_BYTES, id, buffer.len())?;
            }
            let received = self.endpoint.bulk_recv(id, buffer);
            received.map_err(over)?;
            if id == first {
                start = Instant::now();
            }
        }
        Ok(rate(transfers * buffer.len(), start.elapsed()))
    }
}

impl RoundTrips {
    fn of(record_bytes: usize, mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        let count = samples.len();
        let at = |per_mille: usize| {
            let rank = (count * per_mille).div_ceil(1000).max(1);
            samples.get(rank - 1).copied().unwrap_or(0)
        };
        Self {
            record_bytes,
            count,
            p50_ns: at(500),
            p90_ns: at(900),
            p99_ns: at(990),
            p999_ns: at(999),
            max_ns: at(1000),
        }
    }
}

/// Bytes a second.
fn rate(bytes: usize, time: Duration) -> u64 {
    let ns = time.as_nanos().max(1);
    u64::try_from(u128::from(to_u64(bytes)) * 1_000_000_000 / ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let trips = RoundTrips::of(64, (1..=1000).rev().collect());
        assert_eq!((trips.p50_ns, trips.p90_ns), (500, 900));
        assert_eq!(
            (trips.p99_ns, trips.p999_ns, trips.max_ns),
            (990, 999, 1000)
        );
        let one = RoundTrips::of(64, vec![7]);
        assert_eq!((one.count, one.p50_ns, one.max_ns), (1, 7, 7));
        assert_eq!(rate(1000, Duration::from_micros(1)), 1_000_000_000);
    }
}
