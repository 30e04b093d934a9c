//! Plots as SVG.
#![forbid(unsafe_code)]

use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

/// Width and height, in pixels.
const SIZE: (u32, u32) = (640, 360);
/// Of lines and bars, in order; told apart by people who see fewer colours, too (Okabe and Ito).
const COLORS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Lines over two axes.
pub(super) struct Plot {
    pub(super) x: Axis,
    pub(super) y: Axis,
    pub(super) lines: Vec<Line>,
}

/// An axis.
pub(super) struct Axis {
    label: String,
    is_log: bool,
}

impl Axis {
    pub(super) fn linear(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            is_log: false,
        }
    }

    pub(super) fn log(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            is_log: true,
        }
    }
}

/// A line with its name in the legend.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) points: Vec<(f64, f64)>,
}

impl Plot {
    pub(super) fn svg(&self) -> Result<String, String> {
        let points = || self.lines.iter().flat_map(|line| &line.points);
        let x = bounds(points().map(|point| point.0), self.x.is_log);
        let y = bounds(points().map(|point| point.1), self.y.is_log);
        let range = |(from, to): (f64, f64)| from..to;
        match (self.x.is_log, self.y.is_log) {
            (false, false) => self.draw::<_, RangedCoordf64, _, RangedCoordf64>(range(x), range(y)),
            (false, true) => self.draw(range(x), range(y).log_scale()),
            (true, false) => self.draw(range(x).log_scale(), range(y)),
            (true, true) => self.draw(range(x).log_scale(), range(y).log_scale()),
        }
    }

    fn draw<X, XR, Y, YR>(&self, x: X, y: Y) -> Result<String, String>
    where
        X: AsRangedCoord<CoordDescType = XR, Value = f64>,
        XR: Ranged<ValueType = f64> + ValueFormatter<f64>,
        Y: AsRangedCoord<CoordDescType = YR, Value = f64>,
        YR: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        let mut svg = String::new();
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(10)
            .x_label_area_size(40)
            .y_label_area_size(60)
            .build_cartesian_2d(x, y)
            .map_err(text)?;
        let mut mesh = chart.configure_mesh();
        mesh.x_desc(self.x.label.as_str())
            .y_desc(self.y.label.as_str());
        mesh.light_line_style(WHITE)
            .x_label_formatter(&short)
            .y_label_formatter(&short);
        mesh.draw().map_err(text)?;
        for (line, color) in self.lines.iter().zip(COLORS.into_iter().cycle()) {
            let series = LineSeries::new(line.points.iter().copied(), color.stroke_width(2));
            let drawn = chart.draw_series(series).map_err(text)?;
            drawn.label(line.name.as_str()).legend(move |(x, y)| {
                PathElement::new(vec![(x, y), (x + 16, y)], color.stroke_width(2))
            });
        }
        if self.lines.len() > 1 {
            let mut legend = chart.configure_series_labels();
            legend
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.mix(0.8));
            legend.border_style(BLACK.mix(0.3)).draw().map_err(text)?;
        }
        root.present().map_err(text)?;
        drop(chart);
        drop(root);
        Ok(svg)
    }
}

/// Horizontal bars with their names and values.
pub(super) fn bars(bars: &[(String, f64)]) -> Result<String, String> {
    const ROW: i32 = 26;
    const NAMES: i32 = 250;
    const LONGEST: f64 = 300.0;
    let mut svg = String::new();
    let rows = i32::try_from(bars.len()).unwrap_or(i32::MAX / ROW);
    let height = u32::try_from(rows * ROW + 10).unwrap_or(SIZE.1);
    let root = SVGBackend::with_string(&mut svg, (SIZE.0, height)).into_drawing_area();
    let most = bars
        .iter()
        .map(|(_, value)| *value)
        .fold(f64::MIN_POSITIVE, f64::max);
    let font = ("sans-serif", 13).into_font();
    for ((row, (name, value)), color) in (0..).zip(bars).zip(COLORS.into_iter().cycle()) {
        let top = row * ROW + 5;
        // At most LONGEST pixels.
        #[allow(clippy::cast_possible_truncation)]
        let end = NAMES + (value / most * LONGEST).max(1.0) as i32;
        root.draw_text(name, &font.clone().into(), (5, top + 4))
            .map_err(text)?;
        root.draw(&Rectangle::new(
            [(NAMES, top), (end, top + ROW - 8)],
            color.filled(),
        ))
        .map_err(text)?;
        root.draw_text(&short(value), &font.clone().into(), (end + 6, top + 4))
            .map_err(text)?;
    }
    root.present().map_err(text)?;
    drop(root);
    Ok(svg)
}

/// Bounds of an axis: never empty, never below what a logarithm takes.
fn bounds(values: impl Iterator<Item = f64>, is_log: bool) -> (f64, f64) {
    let usable = values.filter(|value| value.is_finite() && (!is_log || *value > 0.0));
    let (least, most) = usable.fold((f64::MAX, f64::MIN), |(least, most), value| {
        (least.min(value), most.max(value))
    });
    match (least <= most, is_log) {
        (false, _) => (1.0, 10.0),
        (true, true) => (least * 0.8, (most * 1.3).max(least * 2.0)),
        (true, false) => (
            0.0_f64.min(least),
            if most > 0.0 { most * 1.15 } else { 1.0 },
        ),
    }
}

fn short(value: &f64) -> String {
    match value.abs() {
        v if v >= 1e6 => format!("{:.0}M", value / 1e6),
        v if v >= 1e4 => format!("{:.0}k", value / 1e3),
        v if v >= 100.0 || value.fract() == 0.0 => format!("{value:.0}"),
        v if v >= 1.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
