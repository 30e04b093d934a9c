//! What was: figures of the cluster, its servers, GPUs and clients over time.
//!
//! One sample every 10 s is kept for a day, means over 1 min for a week, means over 10 min for a year. The
//! samples of the current hour are in memory and in a journal, one row per interval; when the hour is over
//! they become one compressed block per thing and level, and what is too old goes. So a restart loses the
//! interval that it falls into, and a chart of 30 days reads 720 small blocks.
//!
//! History has a file of its own: grants never wait for it, and losing it loses nothing else.
#![forbid(unsafe_code)]

use std::path::Path;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod block;
mod file;
mod hour;
mod series;

pub use file::HistoryError;
pub use series::{Line, Range, Series};

use file::File;
use hour::Hour;

/// Between two samples.
pub const INTERVAL_MS: u64 = 10_000;
/// Things that are sampled in one hour; more are left out.
pub const THINGS_MAX: usize = 16_384;
const HOUR_MS: u64 = 60 * 60_000;
const SLOTS: usize = 360;

/// One figure of a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Figure {
    /// GPUs that could be handed out.
    Gpus,
    /// GPUs that are held, in shares.
    GpusHeld,
    /// GPUs that are held by leases which were used within the interval, in shares.
    GpusBusy,
    /// Device memory.
    MemoryBytes,
    /// Device memory that is held.
    MemoryHeldBytes,
    /// Device memory that programs have allocated.
    MemoryUsedBytes,
    /// Open sessions.
    Sessions,
    /// Requests in the queue.
    Waiting,
    /// How long the oldest of them has waited.
    WaitedMs,
    /// Driver calls that reached a device, each second.
    CallsPerS,
    /// Bytes from clients, each second.
    ReceivedBytesPerS,
    /// Bytes to clients, each second.
    SentBytesPerS,
    /// GPUs that kernels of sessions kept busy.
    ComputingGpus,
    /// Round trip of the slowest session, in microseconds.
    RttUs,
    /// GPUs that ran some kernel, whoever's, as their driver tells (NVML).
    UtilizedGpus,
    /// The hottest GPU, in degrees Celsius (NVML).
    TemperatureC,
    /// Power that GPUs take, in watts (NVML).
    PowerW,
    /// Memory errors that ECC could not correct, since the driver was loaded (NVML).
    EccUncorrected,
}

impl Figure {
    /// All of them, as samples are ordered.
    pub const ALL: [Self; FIGURES] = [
        Self::Gpus,
        Self::GpusHeld,
        Self::GpusBusy,
        Self::MemoryBytes,
        Self::MemoryHeldBytes,
        Self::MemoryUsedBytes,
        Self::Sessions,
        Self::Waiting,
        Self::WaitedMs,
        Self::CallsPerS,
        Self::ReceivedBytesPerS,
        Self::SentBytesPerS,
        Self::ComputingGpus,
        Self::RttUs,
        Self::UtilizedGpus,
        Self::TemperatureC,
        Self::PowerW,
        Self::EccUncorrected,
    ];
}

/// New figures go to the end: what was written before they were there stays readable.
const FIGURES: usize = 18;

/// All figures of one thing at one time; NaN where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Sample([f32; FIGURES]);

impl Default for Sample {
    fn default() -> Self {
        Self([f32::NAN; FIGURES])
    }
}

impl Sample {
    /// With one figure more.
    // A chart shows four digits.
    #[allow(clippy::cast_possible_truncation)]
    #[must_use]
    pub fn with(mut self, figure: Figure, value: f64) -> Self {
        self.0[figure as usize] = value as f32;
        self
    }

    /// One figure; NaN where there is none.
    #[must_use]
    pub fn get(&self, figure: Figure) -> f32 {
        self.0[figure as usize]
    }
}

/// What a sample is of: `cluster`, `server/NAME`, `gpu/SERVER/UUID`, `client/NAME`.
pub type Thing = String;

/// All samples of one time.
pub type Samples = Vec<(Thing, Sample)>;

/// The history of a pool. Methods block on the disk, each for some milliseconds.
#[derive(Debug)]
pub struct History {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    file: File,
    hour: Hour,
}

impl History {
    /// Opens the history in `path`, or begins one.
    ///
    /// # Errors
    /// The file cannot be used.
    pub fn open(path: &Path) -> Result<Self, HistoryError> {
        Self::of(File::open(path)?)
    }

    /// A history that ends with the process: for tests.
    ///
    /// # Errors
    /// No memory.
    pub fn in_memory() -> Result<Self, HistoryError> {
        Self::of(File::in_memory()?)
    }

    fn of(file: File) -> Result<Self, HistoryError> {
        let mut state = State {
            file,
            hour: Hour::new(0),
        };
        for (slot, samples) in state.file.journal()? {
            state.add(slot, samples)?;
        }
        Ok(Self {
            state: Mutex::new(state),
        })
    }

    /// Keeps the samples of one time; the second of one interval replaces the first. Durable when it returns.
    ///
    /// # Errors
    /// The file cannot be written; the next call may succeed.
    pub fn record(&self, at_ms: u64, samples: Samples) -> Result<(), HistoryError> {
        self.record_all(vec![(at_ms, samples)])
    }

    /// As [`History::record`] for several times, oldest first.
    ///
    /// # Errors
    /// As [`History::record`].
    pub fn record_all(&self, times: Vec<(u64, Samples)>) -> Result<(), HistoryError> {
        let mut state = self.state.lock();
        let slots = times
            .into_iter()
            .map(|(at_ms, samples)| (at_ms / INTERVAL_MS, samples));
        let slots: Vec<_> = slots.collect();
        // Hours that are over again before this returns need no journal.
        let last_hour = slots.last().map_or(0, |(slot, _)| hour_of(*slot));
        state
            .file
            .append(slots.iter().filter(|(slot, _)| hour_of(*slot) == last_hour))?;
        for (slot, samples) in slots {
            state.add(slot, samples)?;
        }
        Ok(())
    }

    /// How a thing was until `now_ms`; empty for one that was never seen.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn series(&self, thing: &str, range: Range, now_ms: u64) -> Result<Series, HistoryError> {
        let state = self.state.lock();
        series::read(&state.file, &state.hour, thing, range, now_ms)
    }
}

impl State {
    /// Adds to the current hour, after closing the one before.
    fn add(&mut self, slot: u64, samples: Samples) -> Result<(), HistoryError> {
        let hour = hour_of(slot);
        if hour < self.hour.number() {
            // The clock was set back: this hour is written already.
            return Ok(());
        }
        if hour > self.hour.number() {
            let over = std::mem::replace(&mut self.hour, Hour::new(hour));
            self.file.close(&over)?;
        }
        self.hour.add(slot, samples);
        Ok(())
    }
}

fn hour_of(slot: u64) -> u64 {
    slot / SLOTS as u64
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Figure, HOUR_MS, History, INTERVAL_MS, Range, Sample, Samples};

    const START_MS: u64 = 1_700_000_000_000 / HOUR_MS * HOUR_MS;

    fn held(gpus: f64) -> Samples {
        let sample = Sample::default().with(Figure::GpusHeld, gpus);
        vec![("cluster".to_owned(), sample)]
    }

    fn values(history: &History, range: Range, now_ms: u64) -> Vec<f64> {
        let series = history.series("cluster", range, now_ms).unwrap();
        let line = series.line(Figure::GpusHeld);
        line.map_or_else(Vec::new, |line| {
            line.values.iter().flatten().copied().collect()
        })
    }

    #[test]
    fn a_restart_loses_nothing_that_was_recorded() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.redb");
        let mut now_ms = START_MS;
        // Into the next hour.
        for index in 0..10 {
            now_ms = START_MS + 40 * index * INTERVAL_MS;
            let history = History::open(&path).unwrap();
            history.record(now_ms, held(7.0)).unwrap();
        }
        let history = History::open(&path).unwrap();
        assert_eq!(values(&history, Range::Day, now_ms).len(), 10);
        assert!(
            values(&history, Range::Day, now_ms)
                .iter()
                .all(|it| *it > 6.9)
        );
        assert_eq!(
            values(&history, Range::Day, now_ms + 2 * 24 * HOUR_MS).len(),
            0
        );
    }

    #[test]
    fn old_samples_become_means_and_go() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("history.redb");
        let history = History::open(&path).unwrap();
        let hours = 24 * 9;
        let times = (0..hours * 360).map(|slot| {
            // 0 in the first half of each minute, 2 in the second.
            let gpus = if slot % 6 < 3 { 0.0 } else { 2.0 };
            (START_MS + slot * INTERVAL_MS, held(gpus))
        });
        history.record_all(times.collect()).unwrap();
        let now_ms = START_MS + hours * HOUR_MS - 1;
        let hour = values(&history, Range::Hour, now_ms);
        assert_eq!(hour.len(), 360);
        assert_eq!(hour.iter().sum::<f64>(), 360.0);
        for range in [Range::Week, Range::Month] {
            let means = values(&history, range, now_ms);
            assert!(means.len() > 60, "{range:?}: {}", means.len());
            assert!(means.iter().all(|it| (it - 1.0).abs() < 1e-3), "{range:?}");
        }
        // Nine days were recorded, of which a week is kept by the minute, and a day by the sample.
        let sizes = history.state.lock().file.blocks().unwrap();
        assert_eq!(sizes, [25, 24 * 7 + 1, hours - 1]);
        drop(history);
        let history = History::open(&path).unwrap();
        assert_eq!(values(&history, Range::Hour, now_ms), hour);
    }

    #[test]
    fn an_unknown_thing_has_no_values() {
        let directory = tempfile::tempdir().unwrap();
        let history = History::open(&directory.path().join("history.redb")).unwrap();
        history.record(START_MS, held(1.0)).unwrap();
        let series = history.series("server/x", Range::Day, START_MS).unwrap();
        assert!(series.lines.is_empty());
    }
}
