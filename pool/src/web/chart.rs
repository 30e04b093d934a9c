//! Lines over time, as SVG. Text stays outside of the drawing, so that it keeps its size on every screen.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use crate::format::{bytes, bytes_per_s, clock, micros, part, per_s, short_date, span, whole};
use crate::history::{Figure, Line, Range, Series};

/// The drawing's own units; it is stretched to its place.
const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 120.0;

/// How the values of a chart are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Gpus,
    Bytes,
    Count,
    /// Milliseconds.
    Time,
    Microseconds,
    PerSecond,
    BytesPerSecond,
    /// Of a whole.
    Part,
    Degrees,
    Watts,
}

/// One line of a chart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Trace {
    pub(crate) figure: Figure,
    pub(crate) name: &'static str,
    /// A class of the style sheet.
    pub(crate) style: &'static str,
}

/// A chart, ready to be placed.
#[derive(Debug)]
pub(crate) struct Chart {
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    /// For those who do not see it.
    pub(crate) spoken: String,
    /// Upper end, middle and lower end of the scale.
    pub(crate) scale: [String; 3],
    /// Times below it.
    pub(crate) times: Vec<String>,
    pub(crate) legend: Vec<Legend>,
    /// Drawn content of the `svg` element; empty where nothing was sampled.
    pub(crate) drawing: String,
    pub(crate) start_ms: u64,
    pub(crate) step_ms: u64,
}

/// One line in words.
#[derive(Debug)]
pub(crate) struct Legend {
    pub(crate) name: &'static str,
    pub(crate) style: &'static str,
    pub(crate) now: String,
    pub(crate) peak: String,
    /// For the reading at the pointer: values, `;` between them.
    pub(crate) values: String,
}

/// Draws a chart of some figures of a series.
pub(crate) fn chart(
    id: &'static str,
    title: &'static str,
    unit: Unit,
    traces: &[Trace],
    series: &Series,
    range: Range,
) -> Chart {
    let found = |trace: &Trace| Some((*trace, series.line(trace.figure)?));
    let found: Vec<(Trace, &Line)> = traces.iter().filter_map(found).collect();
    let lines = found
        .iter()
        .map(|(trace, line)| (*trace, line.values.as_slice()));
    let lines: Vec<(Trace, &[Option<f64>])> = lines.collect();
    let peak = |values: &[Option<f64>]| values.iter().flatten().copied().fold(0.0, f64::max);
    let highest = lines
        .iter()
        .map(|(_, values)| peak(values))
        .fold(0.0, f64::max);
    let top = ceiling(highest, unit);
    let mut drawing = String::new();
    for (trace, values) in &lines {
        let path = path(values, top);
        let _ = write!(
            drawing,
            "<path class=\"line {}\" d=\"{path}\"/>",
            trace.style
        );
    }
    let legend: Vec<Legend> = found
        .iter()
        .map(|(trace, line)| Legend {
            name: trace.name,
            style: trace.style,
            now: line
                .last
                .map_or_else(|| "–".to_owned(), |value| unit.write(value)),
            peak: unit.write(peak(&line.values)),
            values: compact(&line.values, unit),
        })
        .collect();
    let spoken: Vec<String> = legend
        .iter()
        .map(|line| format!("{}: now {}, highest {}", line.name, line.now, line.peak))
        .collect();
    Chart {
        id,
        title,
        spoken: format!("{title}, last {}. {}", range.name(), spoken.join("; ")),
        scale: [unit.write(top), unit.write(top / 2.0), unit.write(0.0)],
        times: times(series, range),
        legend,
        drawing,
        start_ms: series.start_ms,
        step_ms: series.step_ms,
    }
}

impl Unit {
    fn write(self, value: f64) -> String {
        match self {
            Self::Gpus | Self::Count => {
                let text = if value >= 99.95 {
                    format!("{value:.0}")
                } else {
                    format!("{value:.1}")
                };
                text.strip_suffix(".0").unwrap_or(&text).to_owned()
            }
            Self::Bytes => bytes(whole(value)),
            Self::Time => span(whole(value)),
            Self::Microseconds => micros(value),
            Self::PerSecond => per_s(value),
            Self::BytesPerSecond => bytes_per_s(value),
            Self::Part => part(value),
            Self::Degrees => format!("{value:.0} °C"),
            Self::Watts => format!("{value:.0} W"),
        }
    }
}

/// A round number that nothing exceeds.
fn ceiling(highest: f64, unit: Unit) -> f64 {
    if unit == Unit::Part {
        return highest.max(1.0);
    }
    let base = match unit {
        Unit::Bytes => 1024.0 * 1024.0,
        Unit::BytesPerSecond => 1024.0,
        Unit::Time => 1000.0,
        Unit::Degrees => 10.0,
        _ => 1.0,
    };
    let step = match unit {
        Unit::Bytes | Unit::BytesPerSecond => 1024.0_f64,
        Unit::Time => 60.0,
        _ => 10.0,
    };
    let mut size = base;
    while size * step <= highest && size < 1e18 {
        size *= step;
    }
    let parts = [
        1.0, 2.0, 4.0, 5.0, 8.0, 10.0, 16.0, 20.0, 30.0, 40.0, 64.0, 100.0, 128.0, 200.0, 256.0,
        400.0, 512.0, 800.0,
    ];
    let fitting = parts
        .iter()
        .map(|part| part * size)
        .find(|it| *it >= highest);
    fitting.unwrap_or(size * step)
}

/// A line with gaps where nothing is known. A value is drawn over its whole step, so all is horizontal or vertical.
fn path(values: &[Option<f64>], top: f64) -> String {
    let mut path = String::new();
    // Some hundred values at most.
    #[allow(clippy::cast_precision_loss)]
    let step = WIDTH / values.len().max(1) as f64;
    let mut is_drawing = false;
    let mut last_y = f64::NAN;
    let mut x = 0.0;
    for value in values {
        match value {
            Some(value) => {
                let y = HEIGHT - value / top * (HEIGHT - 2.0) - 1.0;
                if !is_drawing {
                    let _ = write!(path, "M{x:.0} {y:.1}");
                } else if (y - last_y).abs() > 0.04 {
                    let _ = write!(path, "H{x:.0}V{y:.1}");
                }
                (is_drawing, last_y) = (true, y);
            }
            None if is_drawing => {
                let _ = write!(path, "H{x:.0}");
                is_drawing = false;
            }
            None => {}
        }
        x += step;
    }
    if is_drawing {
        let _ = write!(path, "H{WIDTH:.0}");
    }
    path
}

fn compact(values: &[Option<f64>], unit: Unit) -> String {
    let write = |value: &Option<f64>| value.map_or_else(String::new, |value| unit.write(value));
    let mut texts: Vec<String> = Vec::with_capacity(values.len());
    let mut last = String::new();
    for value in values {
        let text = write(value);
        // The same as before is written as one letter.
        texts.push(if text == last && !text.is_empty() {
            "=".to_owned()
        } else {
            text.clone()
        });
        last = text;
    }
    texts.join(";")
}

fn times(series: &Series, range: Range) -> Vec<String> {
    const LABELS: u64 = 4;
    let write = |part: u64| {
        let at_ms = series.start_ms + range.length_ms() * part / LABELS;
        match range {
            Range::Hour | Range::Day => clock(at_ms)[..5].to_owned(),
            Range::Week | Range::Month => short_date(at_ms),
        }
    };
    (0..LABELS).map(write).chain(["now".to_owned()]).collect()
}

#[cfg(test)]
mod tests {
    use super::{Unit, ceiling, compact, path};

    #[test]
    fn gaps_are_gaps() {
        let stepped = path(&[Some(1.0), Some(0.0)], 1.0);
        assert_eq!(stepped, "M0 1.0H360V119.0H720");
        let drawn = path(&[None, Some(1.0), Some(1.0), None, Some(0.0)], 1.0);
        assert_eq!(drawn, "M144 1.0H432M576 119.0H720");
    }

    #[test]
    fn the_scale_ends_at_a_round_number() {
        assert!((ceiling(7.3, Unit::Gpus) - 8.0).abs() < 1e-9);
        assert!((ceiling(0.0, Unit::Gpus) - 1.0).abs() < 1e-9);
        let gib = f64::from(1 << 30);
        assert!((ceiling(79.0 * gib, Unit::Bytes) - 100.0 * gib).abs() < 1.0);
        assert!((ceiling(61_000.0, Unit::Time) - 120_000.0).abs() < 1e-6);
        assert_eq!(compact(&[Some(1.0), Some(1.0), None], Unit::Count), "1;=;");
    }
}
