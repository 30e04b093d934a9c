//! The page for a browser.
#![forbid(unsafe_code)]

use std::fmt::Write as _;

use super::Section;
use crate::figure::Figure;
use crate::run::Run;

const STYLE: &str = "body{font:15px/1.5 system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;color:#1b1f24;\
background:#fff}table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.25em .7em;text-align:right;\
border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}.missed{color:#b00020;font-weight:600}\
.kept{color:#00673e}.plots{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0;max-width:100%}figure svg{max-width:100%;\
height:auto}figcaption{font-size:.85em;max-width:640px;color:#555}.beside td{color:#555;border:0}nav a{margin-right:1em}";

pub(super) fn page(last: &Run, figures: &[Figure], sections: &[Section]) -> String {
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
    table(&mut out, figures);
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

fn table(out: &mut String, figures: &[Figure]) {
    out.push_str(
        "<h2>Figures</h2><table><tr><th>figure</th><th>value</th><th>unit</th><th>ratio</th><th>p50</th><th>p90</th>\
         <th>p99</th><th>p99.9</th><th>p99.99</th><th>max</th><th>jitter</th><th>promise</th></tr>",
    );
    for figure in figures {
        let verdict = match (figure.target, figure.is_kept()) {
            (Some(target), Some(true)) => format!(
                "<span class=\"kept\">{} kept</span>",
                escape(&target.to_string())
            ),
            (Some(target), _) => format!(
                "<span class=\"missed\">{} missed</span>",
                escape(&target.to_string())
            ),
            _ => String::new(),
        };
        let ours = (
            figure.name.as_str(),
            figure.value,
            None,
            figure.latency.as_ref(),
            verdict.as_str(),
        );
        let others = figure.beside.iter().map(|beside| {
            let ratio = Some(figure.ratio_to(beside));
            (
                beside.name.as_str(),
                beside.value,
                ratio,
                beside.latency.as_ref(),
                "",
            )
        });
        for (index, (name, value, ratio, latency, verdict)) in
            [ours].into_iter().chain(others).enumerate()
        {
            let class = if index == 0 { "" } else { " class=\"beside\"" };
            let name = if index == 0 {
                escape(name)
            } else {
                format!("&nbsp;&nbsp;{}", escape(name))
            };
            let ratio = ratio.map_or(String::new(), |ratio| format!("{ratio:.2}"));
            let _ = write!(
                out,
                "<tr{class}><td>{name}</td><td>{value:.3}</td><td>{}</td><td>{ratio}</td>",
                figure.unit
            );
            let cells = latency
                .filter(|latency| !latency.curve.is_empty())
                .map(|latency| {
                    let m = latency.measured;
                    [
                        m.p50,
                        m.p90,
                        m.p99,
                        m.p99_9,
                        m.p99_99,
                        m.max,
                        latency.jitter_us,
                    ]
                });
            for at in 0..7 {
                let cell = cells.and_then(|cells| cells.get(at).copied());
                let _ = write!(
                    out,
                    "<td>{}</td>",
                    cell.map_or(String::new(), |us| format!("{us:.2}"))
                );
            }
            let _ = write!(out, "<td>{verdict}</td></tr>");
        }
    }
    out.push_str("</table><p>Latencies are in microseconds; the ratio is the figure as a multiple of what stands in that row.</p>");
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
