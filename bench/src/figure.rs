//! Figures and the table of them.
#![forbid(unsafe_code)]

use std::fmt::{self, Write as _};

use serde::{Deserialize, Serialize};

use crate::latency::Latency;
use crate::spread::Spread;

/// One figure. Its name is stable.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    /// What was measured, as in SPEC.md.
    pub name: String,
    /// The unit of `value` and of what stands beside it.
    pub unit: String,
    /// What was measured.
    pub value: f64,
    /// The distribution behind the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// The value of each round, where the run had several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<f64>,
    /// What stands beside it from the same run: first the limit that `ratio` refers to, if there is one, then peers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Beside>,
    /// What is to be known about it: becomes a warning of the run.
    #[serde(skip)]
    pub notes: Vec<String>,
    /// What is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// A limit or a peer, measured in the same run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Beside {
    /// What it is.
    pub name: String,
    /// In the figure's unit.
    pub value: f64,
    /// The distribution behind the value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<Latency>,
    /// The value of each round, in the order of the figure's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<f64>,
    /// Whether it is no limit: nothing is promised as a multiple of it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_peer: bool,
}

impl Beside {
    /// A limit by its name, in the figure's unit.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
            latency: None,
            rounds: Vec::new(),
            is_peer: false,
        }
    }

    /// The same as no limit.
    #[must_use]
    pub fn peer(self) -> Self {
        Self {
            is_peer: true,
            ..self
        }
    }

    /// The same with the distribution behind it.
    #[must_use]
    pub fn latency(mut self, latency: Latency) -> Self {
        self.latency = Some(latency);
        self
    }

    /// The same with the values of the rounds.
    #[must_use]
    pub fn rounds(mut self, rounds: Vec<f64>) -> Self {
        self.rounds = rounds;
        self
    }
}

/// The worst that a figure may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// At most this, in the figure's unit.
    Value(f64),
    /// At most this multiple of its limit.
    Ratio(f64),
    /// At least this, in the figure's unit.
    ValueAtLeast(f64),
    /// At least this multiple of its limit.
    RatioAtLeast(f64),
}

impl Figure {
    /// A figure alone.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: &str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit: unit.to_owned(),
            value,
            latency: None,
            rounds: Vec::new(),
            beside: Vec::new(),
            notes: Vec::new(),
            target: None,
        }
    }

    /// The same beside a limit or a peer of which only the value is known.
    #[must_use]
    pub fn beside(self, name: &str, value: f64) -> Self {
        self.with(Beside::new(name, value))
    }

    /// The same beside a limit or a peer.
    #[must_use]
    pub fn with(mut self, beside: Beside) -> Self {
        self.beside.push(beside);
        self
    }

    /// The same with the values of the rounds.
    #[must_use]
    pub fn rounds(mut self, rounds: Vec<f64>) -> Self {
        self.rounds = rounds;
        self
    }

    /// The same with the distribution behind it.
    #[must_use]
    pub fn latency(mut self, latency: Latency) -> Self {
        self.latency = Some(latency);
        self
    }

    /// The same without distributions, which stand with another figure of the run.
    #[must_use]
    pub fn without_latency(mut self) -> Self {
        self.latency = None;
        self.beside.iter_mut().for_each(|b| b.latency = None);
        self
    }

    /// The same with what is promised.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        self.target = Some(target);
        self
    }

    /// The same with what is to be known about it.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }

    /// The limit, if one stands beside it.
    #[must_use]
    pub fn limit(&self) -> Option<&Beside> {
        self.beside.iter().find(|beside| !beside.is_peer)
    }

    /// The figure as a multiple of its limit.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.limit().map(|limit| self.ratio_to(limit))
    }

    /// Whether more of it is better: of what is done in a time, not of what something takes.
    #[must_use]
    pub fn is_more_better(&self) -> bool {
        ["GB/s", "M/s", "/s"].contains(&self.unit.as_str())
    }

    /// The figure as a multiple of what stands beside it: where both were measured in several rounds, the median of the
    /// rounds' ratios, which a machine that changes between rounds does not move.
    #[must_use]
    pub fn ratio_to(&self, beside: &Beside) -> f64 {
        if self.rounds.len() < 2 || self.rounds.len() != beside.rounds.len() {
            return self.value / beside.value;
        }
        let pairs = self.rounds.iter().zip(&beside.rounds);
        Spread::of(&mut pairs.map(|(own, other)| own / other).collect::<Vec<_>>()).p50
    }

    /// Whether the promise is kept; `None` without one. What cannot be judged, as its limit is missing, is not kept.
    #[must_use]
    pub fn is_kept(&self) -> Option<bool> {
        let ratio = self.ratio().filter(|ratio| ratio.is_finite());
        Some(match self.target? {
            Target::Value(most) => self.value <= most,
            Target::Ratio(most) => ratio.is_some_and(|ratio| ratio <= most),
            Target::ValueAtLeast(least) => self.value.is_finite() && self.value >= least,
            Target::RatioAtLeast(least) => ratio.is_some_and(|ratio| ratio >= least),
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Value(most) => write!(f, "<= {most}"),
            Self::Ratio(most) => write!(f, "<= {most} x"),
            Self::ValueAtLeast(least) => write!(f, ">= {least}"),
            Self::RatioAtLeast(least) => write!(f, ">= {least} x"),
        }
    }
}

/// What the columns behind the ratio are.
const OF_PERCENTILES: &str = "p90 to jitter: microseconds; of a closed loop with the calls that it left out; - where too few \
                              samples lie beyond\n";

/// The table for people: a line for each figure, and below it one for each that stands beside it, with its ratio.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut out = format!(
        "{:<44} {:>10} {:<6} {:>7}  {:>8} {:>8} {:>8} {:>8} {:>9} {:>8}  {}\n",
        "figure",
        "value",
        "unit",
        "ratio",
        "p90",
        "p99",
        "p99.9",
        "p99.99",
        "max",
        "jitter",
        "target"
    );
    for figure in figures {
        line(
            &mut out,
            &figure.name,
            &figure.unit,
            figure.value,
            None,
            figure.latency.as_ref(),
        );
        let verdict = match (figure.target, figure.is_kept()) {
            (Some(target), Some(true)) => format!("  {target} kept"),
            (Some(target), _) => format!("  {target} MISSED"),
            _ => String::new(),
        };
        let _ = writeln!(out, "{verdict}");
        for beside in &figure.beside {
            let (name, ratio) = (format!("  beside {}", beside.name), figure.ratio_to(beside));
            line(
                &mut out,
                &name,
                &figure.unit,
                beside.value,
                Some(ratio),
                beside.latency.as_ref(),
            );
            out.push('\n');
        }
    }
    if figures.iter().any(|figure| figure.latency.is_some()) {
        out.push_str(OF_PERCENTILES);
    }
    out
}

fn line(
    out: &mut String,
    name: &str,
    unit: &str,
    value: f64,
    ratio: Option<f64>,
    latency: Option<&Latency>,
) {
    let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
    let _ = write!(out, "{name:<44} {:>10} {unit:<6} {ratio:>7}", shown(value));
    if let Some(latency) = latency {
        let of = latency.shown();
        let known = |value: Option<f64>| value.map_or("-".to_owned(), shown);
        let _ = write!(
            out,
            "  {:>8} {:>8} {:>8} {:>8} {:>9} {:>8}",
            known(of.p90),
            known(of.p99),
            known(of.p99_9),
            known(of.p99_99),
            known(of.max),
            known(of.jitter)
        );
    }
}

fn shown(value: f64) -> String {
    if value.fract() == 0.0 || value >= 1000.0 {
        format!("{value:.0}")
    } else if value < 10.0 {
        format!("{value:.2}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Beside, Figure, Target, table};

    #[test]
    fn rounds_are_compared_pair_by_pair() {
        // The machine is five times as slow in two rounds of three, of which ours and the peer share one.
        let figure = Figure::new("a", "us", 10.0).rounds(vec![2.0, 10.0, 10.0]);
        let peer = Beside::new("peer", 1.0).rounds(vec![1.0, 5.0, 1.0]);
        assert!((figure.ratio_to(&peer) - 2.0).abs() < 1e-9);
        let once = Beside::new("once", 5.0);
        assert!((figure.with(once).ratio().unwrap_or_default() - 2.0).abs() < 1e-9);
    }

    #[test]
    fn promises_are_judged_by_limits_alone() {
        let figure = Figure::new("a", "us", 1.0).target(Target::Ratio(1.5));
        assert_eq!(figure.is_kept(), Some(false), "no limit");
        let peer = Beside::new("peer", 10.0).peer();
        let beside_peer = figure.with(peer);
        assert_eq!(beside_peer.ratio(), None);
        assert_eq!(beside_peer.is_kept(), Some(false));
        assert!(table(std::slice::from_ref(&beside_peer)).contains("MISSED"));
        let beside_limit = beside_peer.with(Beside::new("limit", 1.0));
        assert_eq!(beside_limit.is_kept(), Some(true));
        let of_nothing = Figure::new("b", "GB/s", f64::INFINITY).beside("raw", 1.0);
        let of_nothing = of_nothing.target(Target::RatioAtLeast(0.9));
        assert_eq!(of_nothing.is_kept(), Some(false));
    }

    #[test]
    fn promises_are_judged_by_value_or_ratio() {
        let by_value = Figure::new("a", "ns", 151.0).target(Target::Value(150.0));
        let by_ratio = Figure::new("b", "us", 14.0)
            .beside("raw", 10.0)
            .target(Target::Ratio(1.5));
        assert_eq!(
            (by_value.is_kept(), by_ratio.is_kept()),
            (Some(false), Some(true))
        );
        assert_eq!(Figure::new("c", "", 1.0).is_kept(), None);
        let rate = |at_least| {
            Figure::new("d", "GB/s", 4.0)
                .beside("raw", 5.0)
                .target(at_least)
        };
        assert_eq!(rate(Target::RatioAtLeast(0.8)).is_kept(), Some(true));
        assert_eq!(rate(Target::ValueAtLeast(4.1)).is_kept(), Some(false));
        let text = table(&[by_value, by_ratio]);
        assert!(
            text.contains("<= 150 MISSED")
                && text.contains("<= 1.5 x kept")
                && text.contains("1.40"),
            "{text}"
        );
    }
}
