//! The page as text.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::Section;
use super::series::Row;
use crate::latency::Latency;
use crate::run::Run;

pub(super) fn page(last: &Run, rows: &[Row<'_>], sections: &[Section]) -> String {
    let (machine, cores) = (&last.machine.cpu, last.machine.cores);
    let mut out = format!(
        "# farcall: measurements\n\nLast run: {} of commit {}, on {machine} ({cores} cores).\n\n",
        last.date, last.commit
    );
    for warning in &last.warnings {
        let _ = writeln!(out, "- {warning}");
    }
    out.push_str(
        "\n| figure | value | unit | beside | its value | ratio | p99.9 | jitter | promise | commit | date | hosts |\n",
    );
    out.push_str("|---|---:|---|---|---:|---:|---:|---:|---|---|---|---|\n");
    for Row { figure, run } in rows {
        let (name, value, unit) = (&figure.name, figure.value, &figure.unit);
        let us = |value: Option<f64>| value.map_or(String::new(), |us| format!("{us:.2}"));
        let shown = figure.latency.as_ref().map(Latency::shown);
        let tail = us(shown.and_then(|shown| shown.p99_9));
        let jitter = us(shown.and_then(|shown| shown.jitter));
        let verdict = match (figure.target, figure.is_kept()) {
            (Some(target), Some(true)) => format!("{target} kept"),
            (Some(target), _) => format!("{target} **missed**"),
            _ => String::new(),
        };
        let first = figure.beside.first();
        let (beside, limit) = first.map_or((String::new(), String::new()), |b| {
            (b.name.clone(), format!("{:.3}", b.value))
        });
        let ratio = us(first.map(|first| figure.ratio_to(first)));
        let (commit, date, pair) = (&run.commit, &run.date, run.pair());
        let _ = writeln!(
            out,
            "| {name} | {value:.3} | {unit} | {beside} | {limit} | {ratio} | {tail} | {jitter} | {verdict} | {commit} | \
             {date} | {pair} |"
        );
        for peer in figure.beside.iter().skip(1) {
            let ratio = figure.ratio_to(peer);
            let _ = writeln!(
                out,
                "| | | | {} | {:.3} | {ratio:.2} | | | | | | |",
                peer.name, peer.value
            );
        }
    }
    for section in sections.iter().filter(|section| !section.plots.is_empty()) {
        let _ = write!(out, "\n## {}\n\n{}\n\n", section.title, section.text);
        for plot in &section.plots {
            let _ = writeln!(out, "![{}]({})", plot.caption, plot.file);
        }
    }
    out
}
