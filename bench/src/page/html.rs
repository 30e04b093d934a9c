//! The page for a browser.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::Section;
use super::series::Row;
use crate::figure::Figure;
use crate::latency::Latency;
use crate::run::Run;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;color:#1b1f24;\
background:#fff}table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25em .7em;text-align:right;\
border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}.missed{color:#b00020;font-weight:600}\
.kept{color:#00673e}.plots{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;max-width:100%}figure svg{max-width:100%;\
height:auto}figcaption{font-size:.85em;max-width:640px;color:#555}.beside td{color:#555;border:0}nav a{margin-right:1em}";

pub(super) fn page(last: &Run, rows: &[Row<'_>], sections: &[Section]) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" \
         content=\"width=device-width\"><title>farcall: measurements</title><style>{STYLE}</style></head><body>\
         <h1>farcall: measurements</h1><p>Last run: {} of commit {}, on {} ({} cores), Linux {}.</p>",
        escape(&last.date),
        escape(&last.commit),
        escape(&last.machine.cpu),
        last.machine.cores,
        escape(&last.machine.kernel),
    );
    if !last.warnings.is_empty() {
        out.push_str("<h2>What spoils it</h2><ul>");
        for warning in &last.warnings {
            let _ = write!(out, "<li>{}</li>", escape(warning));
        }
        out.push_str("</ul>");
    }
    table(&mut out, rows);
    for section in sections.iter().filter(|section| !section.plots.is_empty()) {
        let _ = write!(
            out,
            "<h2>{}</h2><p>{}</p><div class=\"plots\">",
            section.title, section.text
        );
        for plot in &section.plots {
            let caption = escape(&plot.caption);
            let _ = write!(
                out,
                "<figure>{}<figcaption>{caption}</figcaption></figure>",
                plot.svg
            );
        }
        out.push_str("</div>");
    }
    out.push_str("</body></html>\n");
    out
}

fn table(out: &mut String, rows: &[Row<'_>]) {
    out.push_str(
        "<h2>Figures</h2><table><tr><th>figure</th><th>value</th><th>unit</th><th>ratio</th><th>p50</th><th>p90</th>\
         <th>p99</th><th>p99.9</th><th>p99.99</th><th>max</th><th>jitter</th><th>promise</th><th>commit</th><th>date</th>\
         <th>hosts</th></tr>",
    );
    for Row { figure, run } in rows {
        let name = escape(&figure.name);
        line(
            out,
            "",
            &name,
            figure,
            figure.value,
            None,
            figure.latency.as_ref(),
        );
        let (commit, date, pair) = (&run.commit, &run.date, run.pair());
        let _ = write!(
            out,
            "<td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            verdict(figure),
            escape(commit),
            escape(date),
            escape(&pair)
        );
        for beside in &figure.beside {
            let name = format!("&nbsp;&nbsp;{}", escape(&beside.name));
            let (ratio, latency) = (figure.ratio_to(beside), beside.latency.as_ref());
            let class = " class=\"beside\"";
            line(
                out,
                class,
                &name,
                figure,
                beside.value,
                Some(ratio),
                latency,
            );
            out.push_str("<td></td><td></td><td></td><td></td></tr>");
        }
    }
    out.push_str(
        "</table><p>Latencies are in microseconds, those of closed loops with the calls that they left out (coordinated \
         omission); where too few samples lie beyond a percentile there is none. The ratio is the figure as a multiple of what \
         stands in that row.</p>",
    );
}

fn verdict(figure: &Figure) -> String {
    let of = |class: &str, target: String, word: &str| {
        format!("<span class=\"{class}\">{} {word}</span>", escape(&target))
    };
    match (figure.target, figure.is_kept()) {
        (Some(target), Some(true)) => of("kept", target.to_string(), "kept"),
        (Some(target), _) => of("missed", target.to_string(), "missed"),
        _ => String::new(),
    }
}

/// A row up to the promise.
fn line(
    out: &mut String,
    class: &str,
    name: &str,
    figure: &Figure,
    value: f64,
    ratio: Option<f64>,
    latency: Option<&Latency>,
) {
    let number = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.2}"));
    let _ = write!(
        out,
        "<tr{class}><td>{name}</td><td>{value:.3}</td><td>{}</td><td>{}</td>",
        figure.unit,
        number(ratio)
    );
    let of = latency.filter(|latency| !latency.curve.is_empty());
    let cells = of.map_or([None; 7], |latency| {
        let of = latency.shown();
        [
            of.p50, of.p90, of.p99, of.p99_9, of.p99_99, of.max, of.jitter,
        ]
    });
    for cell in cells {
        let _ = write!(out, "<td>{}</td>", number(cell));
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
