//! What a chart shows: a range of time, cut into equal steps.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::file::{File, HistoryError, Level};
use super::hour::{Hour, mean, means};
use super::{Figure, HOUR_MS, INTERVAL_MS, SLOTS, Sample};

/// How far back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub enum Range {
    /// The last hour.
    #[serde(rename = "1h")]
    Hour,
    /// The last day.
    #[default]
    #[serde(rename = "24h")]
    Day,
    /// The last week.
    #[serde(rename = "7d")]
    Week,
    /// The last 30 days.
    #[serde(rename = "30d")]
    Month,
}

impl Range {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Hour, Self::Day, Self::Week, Self::Month];

    /// As it is written in addresses.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hour => "1h",
            Self::Day => "24h",
            Self::Week => "7d",
            Self::Month => "30d",
        }
    }

    /// Its length.
    #[must_use]
    pub const fn length_ms(self) -> u64 {
        match self {
            Self::Hour => HOUR_MS,
            Self::Day => 24 * HOUR_MS,
            Self::Week => 7 * 24 * HOUR_MS,
            Self::Month => 30 * 24 * HOUR_MS,
        }
    }

    /// One value of the answer.
    const fn step_ms(self) -> u64 {
        match self {
            Self::Hour => INTERVAL_MS,
            Self::Day => 4 * 60_000,
            Self::Week => 30 * 60_000,
            Self::Month => 2 * HOUR_MS,
        }
    }

    const fn level(self) -> Level {
        match self {
            Self::Hour | Self::Day => Level::Sample,
            Self::Week => Level::Minute,
            Self::Month => Level::TenMinutes,
        }
    }
}

/// Figures of one thing over time.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Series {
    /// Time of the first value.
    pub start_ms: u64,
    /// Between two values.
    pub step_ms: u64,
    /// The figures that there are.
    pub lines: Vec<Line>,
}

/// One figure over time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    /// Which.
    pub figure: Figure,
    /// Means over a step; nothing where nothing was sampled.
    pub values: Vec<Option<f64>>,
    /// The newest sample, if it is not older than a minute.
    pub last: Option<f64>,
}

impl Series {
    /// One of the figures.
    #[must_use]
    pub fn line(&self, figure: Figure) -> Option<&Line> {
        self.lines.iter().find(|line| line.figure == figure)
    }
}

pub(super) fn read(
    file: &File,
    hour: &Hour,
    thing: &str,
    range: Range,
    now_ms: u64,
) -> Result<Series, HistoryError> {
    let (step_ms, level) = (range.step_ms(), range.level());
    // The step that is not over is the last.
    let end_ms = (now_ms / step_ms + 1) * step_ms;
    let start_ms = end_ms.saturating_sub(range.length_ms());
    let first_hour = start_ms / HOUR_MS;
    let mut blocks = file.block(level, first_hour..hour.number(), thing)?;
    if let Some(samples) = hour.of(thing) {
        blocks.push((hour.number(), means(samples, level.samples())));
    }
    let sample_ms = INTERVAL_MS * level.samples() as u64;
    let count = usize::try_from(range.length_ms() / step_ms).unwrap_or(0);
    let mut steps: Vec<Vec<Sample>> = vec![Vec::new(); count];
    for (hour, samples) in blocks {
        debug_assert!(samples.len() <= SLOTS);
        for (index, sample) in (0_u64..).zip(samples) {
            let at_ms = hour * HOUR_MS + index * sample_ms;
            let step = at_ms.checked_sub(start_ms).map(|since| since / step_ms);
            let step = step.and_then(|step| usize::try_from(step).ok());
            if let Some(step) = step.and_then(|step| steps.get_mut(step)) {
                step.push(sample);
            }
        }
    }
    let steps: Vec<Sample> = steps.iter().map(|samples| mean(samples)).collect();
    let line = |figure: Figure| {
        let value = |sample: &Sample| Some(sample.get(figure)).filter(|it| !it.is_nan());
        let values: Vec<Option<f64>> = steps.iter().map(|it| value(it).map(f64::from)).collect();
        let any = values.iter().any(Option::is_some);
        let last = newest(hour, thing, figure, now_ms);
        any.then_some(Line {
            figure,
            values,
            last,
        })
    };
    Ok(Series {
        start_ms,
        step_ms,
        lines: Figure::ALL.into_iter().filter_map(line).collect(),
    })
}

fn newest(hour: &Hour, thing: &str, figure: Figure, now_ms: u64) -> Option<f64> {
    const SAMPLES: u64 = 6;
    let slot = now_ms / INTERVAL_MS;
    let recent = (0..SAMPLES).filter_map(|ago| {
        let slot = slot.checked_sub(ago)?;
        let index = usize::try_from(slot % SLOTS as u64).ok()?;
        // What is left of the hour before is not recent enough to matter.
        let samples = hour
            .of(thing)
            .filter(|_| slot / SLOTS as u64 == hour.number())?;
        Some(samples.get(index)?.get(figure))
    });
    recent.filter(|value| !value.is_nan()).map(f64::from).next()
}
