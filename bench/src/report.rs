//! Figures and the table of them.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use serde::Serialize;

/// One figure. Its name is stable.
#[derive(Clone, Debug, Serialize)]
pub struct Figure {
    /// What was measured, as in bench/README.md.
    pub name: String,
    /// The unit of `value` and `beside`.
    pub unit: &'static str,
    /// What was measured.
    pub value: f64,
    /// What stands beside it from the same run: the limit that `ratio` refers to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beside: Option<Beside>,
    /// What is promised.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// A limit measured in the same run.
#[derive(Clone, Debug, Serialize)]
pub struct Beside {
    /// What it is.
    pub name: &'static str,
    /// In the figure's unit.
    pub value: f64,
}

/// The most that a figure may be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// In the figure's unit.
    Value(f64),
    /// As a multiple of what stands beside it.
    Ratio(f64),
}

impl Figure {
    /// A figure alone.
    #[must_use]
    pub fn new(name: impl Into<String>, unit: &'static str, value: f64) -> Self {
        Self {
            name: name.into(),
            unit,
            value,
            beside: None,
            target: None,
        }
    }

    /// The same beside a limit.
    #[must_use]
    pub fn beside(mut self, name: &'static str, value: f64) -> Self {
        self.beside = Some(Beside { name, value });
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
        self.beside.as_ref().map(|beside| self.value / beside.value)
    }

    /// Whether the promise is kept; `None` without one.
    #[must_use]
    pub fn is_kept(&self) -> Option<bool> {
        Some(match self.target? {
            Target::Value(most) => self.value <= most,
            Target::Ratio(most) => self.ratio()? <= most,
        })
    }
}

/// The table for people.
#[must_use]
pub fn table(figures: &[Figure]) -> String {
    let mut out = format!(
        "{:<46} {:>10} {:<6} {:>10} {:>7}  {}\n",
        "figure", "value", "unit", "beside", "ratio", "target"
    );
    for figure in figures {
        let beside = figure
            .beside
            .as_ref()
            .map_or(String::new(), |b| shown(b.value));
        let ratio = figure
            .ratio()
            .map_or(String::new(), |ratio| format!("{ratio:.2}"));
        let target = match figure.target {
            None => String::new(),
            Some(Target::Value(most)) => format!("<= {most}"),
            Some(Target::Ratio(most)) => format!("<= {most} x"),
        };
        let verdict = match figure.is_kept() {
            None => "",
            Some(true) => " kept",
            Some(false) => " MISSED",
        };
        let of = figure
            .beside
            .as_ref()
            .map_or(String::new(), |b| format!(" ({})", b.name));
        let _ = writeln!(
            out,
            "{:<46} {:>10} {:<6} {beside:>10} {ratio:>7}  {target}{verdict}{of}",
            figure.name,
            shown(figure.value),
            figure.unit
        );
    }
    out
}

fn shown(value: f64) -> String {
    if value.fract() == 0.0 || value >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.1}")
    }
}

#[cfg(test)]
mod tests {
    use super::{Figure, Target, table};

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
        let text = table(&[by_value, by_ratio]);
        assert!(
            text.contains("<= 150 MISSED") && text.contains("1.40  <= 1.5 x kept (raw)"),
            "{text}"
        );
    }
}
