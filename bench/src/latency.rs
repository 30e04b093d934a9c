//! Distributions of latencies as a performance engineer wants them: high percentiles, jitter, their course over
//! time, and corrected for coordinated omission.
//!
//! A closed loop that waits for each answer sends nothing while an answer is late, and so leaves out the calls that
//! would have been late too. Two corrections: with a rate ([`crate::net::Load`]) each latency counts from the moment
//! at which the call was due; without one the histogram is filled up as if a call had been due every median
//! latency (`corrected`).
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Largest latency that is told apart: a minute, in nanoseconds.
const NS_MAX: u64 = 60_000_000_000;
/// Significant decimal digits of the histograms.
const DIGITS: u8 = 3;
/// Samples that have to lie beyond a percentile: of fewer it would be one of the largest, which chance decides.
const BEYOND_MIN: f64 = 10.0;
/// Samples that p99.9 takes.
pub const SAMPLES_OF_P99_9: u64 = 10_000;
/// Longest course over time that is kept.
const WINDOWS_MAX: usize = 200;

/// Percentiles, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Percentiles {
    /// The 10th percentile: what it costs when nothing gets in the way.
    pub p10: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
    /// The 99.9th percentile.
    pub p99_9: f64,
    /// The 99.99th percentile.
    pub p99_99: f64,
    /// The largest.
    pub max: f64,
}

/// A stretch of the run: when it ended, and what it was like. Microseconds, but for the time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Window {
    /// End of the stretch, since the recorder began.
    pub at_ms: f64,
    /// The stretch's median.
    pub p50: f64,
    /// Its 99th percentile.
    pub p99: f64,
    /// Its largest.
    pub max: f64,
}

/// A part of the run between whose parts other programs were measured. Microseconds, but for count and tail.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Round {
    /// How many latencies were recorded.
    pub count: u64,
    /// The median.
    pub p50: f64,
    /// p99.9 - p50, of a closed loop corrected.
    pub jitter: f64,
    /// p99.9 / p50, of a closed loop corrected.
    pub tail: f64,
    /// p99 - p1 of the time between two answers in a row.
    pub gap_spread: f64,
}

/// A distribution for people: microseconds, and None where too few samples lie beyond the percentile to say anything. Of a
/// closed loop it is the corrected one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Shown {
    /// The median.
    pub p50: Option<f64>,
    /// The 90th percentile.
    pub p90: Option<f64>,
    /// The 99th percentile.
    pub p99: Option<f64>,
    /// The 99.9th percentile.
    pub p99_9: Option<f64>,
    /// The 99.99th percentile.
    pub p99_99: Option<f64>,
    /// The largest.
    pub max: Option<f64>,
    /// p99.9 - p50.
    pub jitter: Option<f64>,
}

/// What is left of a recorder when the run is over.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// How many were recorded.
    pub count: u64,
    /// As measured; with a rate, from the moment at which each call was due.
    pub measured: Percentiles,
    /// Filled up for calls that a closed loop left out; with a rate the same as `measured`.
    pub corrected: Percentiles,
    /// p99.9 - p50 of `measured`, in microseconds.
    pub jitter_us: f64,
    /// With a rate: how many a second there really were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub achieved_per_s: Option<f64>,
    /// p99 - p1 of the time between two answers in a row, in microseconds.
    pub gap_spread_us: f64,
    /// The quantile curve of `corrected`: (percentile, microseconds).
    pub curve: Vec<(f64, f64)>,
    /// The course over time.
    pub windows: Vec<Window>,
}

/// Takes latencies. Recording allocates nothing, but at the end of a window.
#[derive(Clone, Debug)]
pub struct Recorder {
    all: Histogram<u64>,
    gaps: Histogram<u64>,
    window: Histogram<u64>,
    windows: Vec<Window>,
    round: Histogram<u64>,
    round_gaps: Histogram<u64>,
    rounds: Vec<Round>,
    window_ns: u64,
    now_ns: u64,
    window_end_ns: u64,
    is_open_loop: bool,
    paced_trips: u64,
    paced_ns: u64,
}

impl Latency {
    /// What is known of the distribution.
    #[must_use]
    pub fn shown(&self) -> Shown {
        let of = self.corrected;
        let known = |value: f64, beyond: f64| {
            let is_known = self.count as f64 * beyond >= BEYOND_MIN * (1.0 - 1e-9);
            is_known.then_some(value)
        };
        Shown {
            p50: Some(of.p50),
            p90: known(of.p90, 0.1),
            p99: known(of.p99, 0.01),
            p99_9: known(of.p99_9, 1e-3),
            p99_99: known(of.p99_99, 1e-4),
            max: Some(of.max),
            jitter: known(of.p99_9 - of.p50, 1e-3),
        }
    }
}

impl Recorder {
    /// A recorder whose course over time has a point for each `window_ns` nanoseconds of measured time.
    ///
    /// # Panics
    /// Never: the bounds of the histograms are constants that fit.
    #[must_use]
    pub fn new(window_ns: u64, is_open_loop: bool) -> Self {
        let empty = Histogram::new_with_bounds(1, NS_MAX, DIGITS).expect("bounds that fit");
        Self {
            all: empty.clone(),
            gaps: empty.clone(),
            round: empty.clone(),
            round_gaps: empty.clone(),
            rounds: Vec::new(),
            window: empty,
            windows: Vec::with_capacity(WINDOWS_MAX),
            window_ns: window_ns.max(1),
            now_ns: 0,
            window_end_ns: window_ns.max(1),
            is_open_loop,
            paced_trips: 0,
            paced_ns: 0,
        }
    }

    /// One latency, and the time since the answer before it.
    #[inline]
    pub fn record(&mut self, latency_ns: u64, gap_ns: u64) {
        self.gaps.saturating_record(gap_ns.max(1));
        self.round_gaps.saturating_record(gap_ns.max(1));
        self.take(latency_ns, gap_ns);
    }

    /// One latency, with no answer before it.
    pub fn record_first(&mut self, latency_ns: u64) {
        self.take(latency_ns, latency_ns);
    }

    /// So many trips of an open loop took so long, waiting for the next one's time included.
    pub fn paced(&mut self, trips: u64, took_ns: u64) {
        self.paced_trips += trips;
        self.paced_ns += took_ns;
    }

    #[inline]
    fn take(&mut self, latency_ns: u64, passed_ns: u64) {
        self.all.saturating_record(latency_ns.max(1));
        self.window.saturating_record(latency_ns.max(1));
        self.round.saturating_record(latency_ns.max(1));
        self.now_ns += passed_ns;
        if self.now_ns >= self.window_end_ns {
            self.end_window();
        }
    }

    #[cold]
    fn end_window(&mut self) {
        if self.windows.len() < WINDOWS_MAX {
            let at = |quantile| us(self.window.value_at_quantile(quantile));
            self.windows.push(Window {
                at_ms: self.now_ns as f64 / 1e6,
                p50: at(0.5),
                p99: at(0.99),
                max: us(self.window.max()),
            });
        }
        self.window.reset();
        self.window_end_ns = self.now_ns + self.window_ns;
    }

    /// A round is over: what is recorded from now on belongs to the next.
    pub fn end_round(&mut self) {
        if !self.round.is_empty() {
            let of = percentiles(&self.corrected(&self.round));
            self.rounds.push(Round {
                count: self.round.len(),
                p50: us(self.round.value_at_quantile(0.5)),
                jitter: of.p99_9 - of.p50,
                tail: of.p99_9 / of.p50,
                gap_spread: gap_spread(&self.round_gaps),
            });
        }
        self.round.reset();
        self.round_gaps.reset();
    }

    /// The rounds that are over.
    #[must_use]
    pub fn rounds(&self) -> &[Round] {
        &self.rounds
    }

    /// How many latencies were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.all.len()
    }

    /// Adds what another recorder of the same run took at the same time (its course and its rounds are dropped).
    ///
    /// # Panics
    /// Never: all recorders have the same bounds.
    pub fn merge(&mut self, other: &Self) {
        self.all.add(&other.all).expect("the same bounds");
        self.gaps.add(&other.gaps).expect("the same bounds");
        self.paced_trips += other.paced_trips;
        self.paced_ns = self.paced_ns.max(other.paced_ns);
    }

    /// Of a closed loop with the calls that it left out.
    fn corrected(&self, histogram: &Histogram<u64>) -> Histogram<u64> {
        if self.is_open_loop || histogram.is_empty() {
            histogram.clone()
        } else {
            histogram.clone_correct(histogram.value_at_quantile(0.5))
        }
    }

    /// The distribution.
    #[must_use]
    pub fn finish(&self) -> Latency {
        let measured = percentiles(&self.all);
        let corrected = self.corrected(&self.all);
        let achieved = || self.paced_trips as f64 * 1e9 / self.paced_ns as f64;
        Latency {
            count: self.all.len(),
            measured,
            corrected: percentiles(&corrected),
            jitter_us: measured.p99_9 - measured.p50,
            achieved_per_s: (self.paced_ns > 0).then(achieved),
            gap_spread_us: gap_spread(&self.gaps),
            curve: curve(&corrected),
            windows: self.windows.clone(),
        }
    }

    /// The distribution, of a closed loop corrected, in the text form that HdrHistogram's plotter reads; values in
    /// microseconds.
    #[must_use]
    pub fn export(&self) -> String {
        let of = self.corrected(&self.all);
        let mut out = format!(
            "{:>12} {:>14} {:>10} {:>14}\n\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        );
        let mut count = 0;
        for step in of.iter_quantiles(5) {
            let quantile = step.quantile_iterated_to();
            let value = us(step.value_iterated_to());
            count += step.count_since_last_iteration();
            let _ = if quantile < 1.0 {
                let inverse = 1.0 / (1.0 - quantile);
                writeln!(
                    out,
                    "{value:12.3} {quantile:2.12} {count:10} {inverse:14.2}"
                )
            } else {
                writeln!(out, "{value:12.3} {quantile:2.12} {count:10}")
            };
        }
        let (mean, deviation) = (of.mean() / 1e3, of.stdev() / 1e3);
        let (max, total) = (us(of.max()), of.len());
        let _ = writeln!(
            out,
            "#[Mean    = {mean:12.3}, StdDeviation   = {deviation:12.3}]"
        );
        let _ = writeln!(out, "#[Max     = {max:12.3}, Total count    = {total:12}]");
        out
    }
}

fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    let at = |quantile| us(histogram.value_at_quantile(quantile));
    Percentiles {
        p10: at(0.1),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        p99_9: at(0.999),
        p99_99: at(0.9999),
        max: us(histogram.max()),
    }
}

/// p99 - p1.
fn gap_spread(gaps: &Histogram<u64>) -> f64 {
    us(gaps.value_at_quantile(0.99)) - us(gaps.value_at_quantile(0.01))
}

/// Points that are even on the axis that tails are read on, 1/(1-q).
fn curve(histogram: &Histogram<u64>) -> Vec<(f64, f64)> {
    const POINTS_PER_DECADE: u32 = 8;
    let samples = histogram.len() as f64;
    let points = (0..=5 * POINTS_PER_DECADE).map(|step| {
        let rest = 10_f64.powf(-f64::from(step) / f64::from(POINTS_PER_DECADE));
        (rest, 1.0 - rest)
    });
    let shown = points.filter(|(rest, _)| rest * samples >= 1.0);
    shown
        .map(|(_, quantile)| (quantile * 100.0, us(histogram.value_at_quantile(quantile))))
        .collect()
}

fn us(ns: u64) -> f64 {
    ns as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::Recorder;

    #[test]
    fn percentiles_and_jitter_of_a_ramp() {
        let mut recorder = Recorder::new(u64::MAX, true);
        for us in 1..=10_000 {
            recorder.record(us * 1000, 10_000);
        }
        let latency = recorder.finish();
        let near = |got: f64, want: f64| (got - want).abs() / want < 2e-3;
        let m = latency.measured;
        assert!(near(m.p50, 5000.0) && near(m.p99_9, 9990.0), "{m:?}");
        assert!(near(m.p99_99, 9999.0) && near(m.max, 10_000.0), "{m:?}");
        assert!(near(latency.jitter_us, 4990.0), "{}", latency.jitter_us);
        assert_eq!((latency.count, latency.corrected), (10_000, m));
        assert!(latency.gap_spread_us.abs() < 0.02);
    }

    #[test]
    fn a_closed_loop_that_stalls_is_corrected_for_what_it_left_out() {
        let mut recorder = Recorder::new(1_000_000, false);
        for _ in 0..999 {
            recorder.record(10_000, 10_000);
        }
        recorder.record(10_000_000, 10_000_000);
        let latency = recorder.finish();
        // One of a thousand was late; as seen by calls that are due every 10 us, half of the time nobody answered.
        assert!(latency.measured.p99 < 11.0, "{:?}", latency.measured);
        assert!(latency.corrected.p99 > 9000.0, "{:?}", latency.corrected);
        assert_eq!(latency.windows.last().map(|w| w.max > 9000.0), Some(true));
        // That is what everybody sees.
        assert_eq!(latency.shown().p99, Some(latency.corrected.p99));
        assert!(recorder.export().contains("Total count    =         1998"));
        recorder.end_round();
        let round = recorder.rounds()[0];
        assert!(round.tail > 900.0 && round.jitter > 9000.0, "{round:?}");
    }

    #[test]
    fn percentiles_of_few_samples_are_not_shown() {
        let shown = |count: u64| {
            let mut recorder = Recorder::new(u64::MAX, true);
            (0..count).for_each(|us| recorder.record(us * 1000, 1));
            recorder.finish().shown()
        };
        let few = shown(100);
        assert!(few.p50.is_some() && few.p90.is_some() && few.max.is_some());
        assert_eq!((few.p99, few.p99_9, few.jitter), (None, None, None));
        let many = shown(super::SAMPLES_OF_P99_9);
        assert!(many.p99_9.is_some() && many.jitter.is_some() && many.p99_99.is_none());
    }

    #[test]
    fn trips_of_an_open_loop_are_so_many_a_second() {
        let mut recorder = Recorder::new(u64::MAX, true);
        assert_eq!(recorder.finish().achieved_per_s, None);
        (0..2).for_each(|_| recorder.paced(50, 100_000_000));
        assert_eq!(recorder.finish().achieved_per_s, Some(500.0));
        // Clients that measure at the same time.
        let mut all = recorder.clone();
        all.merge(&recorder);
        assert_eq!(all.finish().achieved_per_s, Some(1000.0));
    }

    #[test]
    fn rounds_have_figures_of_their_own() {
        let mut recorder = Recorder::new(u64::MAX, true);
        for us in [10, 100] {
            (0..1000).for_each(|_| recorder.record(us * 1000, 20_000));
            (0..3).for_each(|_| recorder.record(10 * us * 1000, 20_000));
            recorder.end_round();
        }
        recorder.end_round();
        let near = |got: f64, want: f64| (got - want).abs() / want < 2e-3;
        let [first, second] = recorder.rounds() else {
            panic!("{:?}", recorder.rounds());
        };
        assert!(near(first.p50, 10.0) && near(second.p50, 100.0));
        assert!(near(first.jitter, 90.0) && near(second.jitter, 900.0));
        assert!(first.gap_spread.abs() < 0.1);
        assert_eq!(recorder.finish().count, 2006);
    }

    #[test]
    fn the_export_ends_at_the_largest() {
        let mut recorder = Recorder::new(u64::MAX, true);
        (1..=100).for_each(|us| recorder.record(us * 1000, 1));
        let text = recorder.export();
        assert!(
            text.contains("1.000000000000") && text.contains("Total count    =          100"),
            "{text}"
        );
    }
}
