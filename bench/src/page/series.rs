//! What is drawn, taken from the runs.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::bytes_of;
use crate::figure::Figure;
use crate::measure::{CALL_BY_CALL, CALL_BY_CALL_MEASURED};
use crate::run::Run;

/// A figure, and the run that made it.
pub(super) struct Row<'a> {
    pub(super) figure: &'a Figure,
    pub(super) run: &'a Run,
}

/// The last of each figure, by name and hosts.
pub(super) fn latest(runs: &[Run]) -> Vec<Row<'_>> {
    let all = runs.iter().flat_map(|run| {
        let row = move |figure| Row { figure, run };
        run.figures.iter().map(row)
    });
    let named = all.map(|row| ((row.figure.name.as_str(), row.run.pair()), row));
    named.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// Transfers of one kind, by size.
pub(super) struct Throughput {
    pub(super) name: String,
    pub(super) ours: Vec<(f64, f64)>,
    pub(super) limit: Vec<(f64, f64)>,
}

pub(super) fn throughput(figures: &[Figure]) -> Vec<Throughput> {
    let mut kinds: BTreeMap<&str, Vec<(usize, &Figure)>> = BTreeMap::new();
    for figure in figures
        .iter()
        .filter(|figure| figure.name.starts_with("bulk/"))
    {
        let Some((kind, size)) = figure.name.rsplit_once('/') else {
            continue;
        };
        if let Some(bytes) = bytes_of(size) {
            kinds.entry(kind).or_default().push((bytes, figure));
        }
    }
    let kinds = kinds.into_iter().filter(|(_, sizes)| sizes.len() > 1);
    kinds
        .map(|(name, mut sizes)| {
            sizes.sort_by_key(|(bytes, _)| *bytes);
            let points = |value: fn(&Figure) -> Option<f64>| {
                let known = sizes
                    .iter()
                    .filter_map(|(bytes, figure)| Some((*bytes as f64, value(figure)?)));
                known.collect()
            };
            Throughput {
                name: name.to_owned(),
                ours: points(|figure| Some(figure.value)),
                limit: points(|figure| Some(figure.limit()?.value)),
            }
        })
        .collect()
}

/// A step of a recorded program, by microseconds that were added to the round trip.
pub(super) struct Slowdown {
    pub(super) name: String,
    pub(super) ours: Vec<(f64, f64)>,
    /// The same if every call that the client cannot answer waited.
    pub(super) call_by_call: Vec<(f64, f64)>,
}

pub(super) fn slowdowns(figures: &[Figure]) -> Vec<Slowdown> {
    let mut steps: BTreeMap<&str, Vec<(u32, &Figure)>> = BTreeMap::new();
    for figure in figures {
        let named = figure
            .name
            .strip_prefix("replay/")
            .and_then(|name| name.split_once("/wall@"));
        let Some((step, rtt)) = named else {
            continue;
        };
        if let Some(rtt_us) = rtt.strip_suffix("us").and_then(|us| us.parse().ok()) {
            steps.entry(step).or_default().push((rtt_us, figure));
        }
    }
    let steps = steps.into_iter().filter(|(_, points)| points.len() > 1);
    steps
        .map(|(name, mut points)| {
            points.sort_by_key(|(rtt_us, _)| *rtt_us);
            // What was measured, and where it was not, what it comes to.
            let call_by_call = |figure: &Figure| {
                let found = |name| figure.beside.iter().find(|b| b.name == name);
                let best = found(CALL_BY_CALL_MEASURED).or_else(|| found(CALL_BY_CALL));
                best.map(|beside| beside.value)
            };
            let of = |value: &dyn Fn(&Figure) -> Option<f64>| {
                let known = points
                    .iter()
                    .filter_map(|(rtt_us, figure)| Some((f64::from(*rtt_us), value(figure)?)));
                known.collect()
            };
            Slowdown {
                name: name.to_owned(),
                ours: of(&|figure| Some(figure.value)),
                call_by_call: of(&call_by_call),
            }
        })
        .collect()
}

/// A figure over the runs.
pub(super) struct History {
    pub(super) name: String,
    pub(super) unit: String,
    pub(super) points: Vec<Point>,
}

/// One run's.
pub(super) struct Point {
    pub(super) commit: String,
    pub(super) date: String,
    pub(super) value: f64,
}

/// Figures of at least two runs between the same hosts: those of the last run.
pub(super) fn history(runs: &[Run]) -> Vec<History> {
    let Some(pair) = runs.last().map(Run::pair) else {
        return Vec::new();
    };
    let mut found: BTreeMap<&str, History> = BTreeMap::new();
    for run in runs.iter().filter(|run| run.pair() == pair) {
        for figure in &run.figures {
            let ratio = figure.ratio();
            let unit = ratio.map_or(figure.unit.as_str(), |_| "multiple of the limit");
            let history = found.entry(&figure.name).or_insert_with(|| History {
                name: figure.name.clone(),
                unit: unit.to_owned(),
                points: Vec::new(),
            });
            if history.unit == unit {
                history.points.push(Point {
                    commit: run.commit.clone(),
                    date: run.date.clone(),
                    value: ratio.unwrap_or(figure.value),
                });
            }
        }
    }
    found
        .into_values()
        .filter(|history| history.points.len() > 1)
        .collect()
}
