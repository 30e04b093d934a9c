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
    /// What stands beside it from the same run: first the limit that `ratio` refers to, then peers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<Beside>,
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
}

impl Beside {
    /// By its name, in the figure's unit.
    #[must_use]
    pub fn new(name: impl Into<String>, value: f64) -> Self {
        Self {
            name: name.into(),
            value,
            latency: None,
            rounds: Vec::new(),
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
    /// At most this multiple of the first that stands beside it.
    Ratio(f64),
    /// At least this, in the figure's unit.
    ValueAtLeast(f64),
    /// At least this multiple of the first that stands beside it.
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

    /// The figure as a multiple of its limit.
    #[must_use]
    pub fn ratio(&self) -> Option<f64> {
        self.beside.first().map(|beside| self.ratio_to(beside))
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

    /// Whether the promise is kept; `None` without one.
    #[must_use]
    pub fn is_kept(&self) -> Option<bool> {
        Some(match self.target? {
            Target::Value(most) => self.value <= most,
            Target::Ratio(most) => self.ratio()? <= most,
            Target::ValueAtLeast(least) => self.value >= least,
            Target::RatioAtLeast(least) => self.ratio()? >= least,
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

/// The table for people: a line for each figure, and below it one for each that stands beside it, with its ratio.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut out = format!(
        "{:<44} {:>10} {:<6} {:>7}  {:>8} {:>8} {:>8} {:>9} {:>8}  {}\n",
        "figure", "value", "unit", "ratio", "p90", "p99", "p99.9", "max", "jitter", "target"
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
        let m = latency.measured;
        let _ = write!(
            out,
            "  {:>8} {:>8} {:>8} {:>9} {:>8}",
            shown(m.p90),
            shown(m.p99),
            shown(m.p99_9),
            shown(m.max),
            shown(latency.jitter_us)
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
