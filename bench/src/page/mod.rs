//! The report: results as one self-contained HTML page, and as Markdown with the same plots beside it.
#![forbid(unsafe_code)]

mod html;
mod markdown;
mod plot;
mod series;

use crate::figure::Figure;
use crate::net::size_name;
use crate::run::Run;
use plot::{Axis, Line, Plot};
use series::{History, Slowdown, Throughput, history, latest, slowdowns, throughput};

/// A report.
#[derive(Clone, Debug)]
pub struct Report {
    /// One page that needs nothing else.
    pub html: String,
    /// The same for reading as text; names the plots by their files.
    pub markdown: String,
    /// The plots: file name and SVG.
    pub plots: Vec<(String, String)>,
}

/// A part of the report: a heading, a line of explanation, plots with their captions.
struct Section {
    title: &'static str,
    text: &'static str,
    plots: Vec<Captioned>,
}

struct Captioned {
    file: String,
    caption: String,
    svg: String,
}

/// Makes the report of these runs, oldest first. Those of builds without optimization are left out. Every figure is in the
/// table; drawn are those between the hosts of the last run.
///
/// # Errors
/// No runs, or the drawing library's.
pub fn report(runs: &[Run]) -> Result<Report, String> {
    let runs: Vec<Run> = runs
        .iter()
        .filter(|run| !run.is_debug_build)
        .cloned()
        .collect();
    let runs = runs.as_slice();
    let last = runs
        .last()
        .ok_or("no runs of release builds: farcall-bench ... --save NAME keeps one")?;
    let (rows, pair) = (latest(runs), last.pair());
    let drawn = rows.iter().filter(|row| row.run.pair() == pair);
    let figures: Vec<Figure> = drawn.map(|row| row.figure.clone()).collect();
    let sections = vec![
        distributions(&figures)?,
        courses(&figures)?,
        throughputs(&figures)?,
        distances(&figures)?,
        peers(&figures)?,
        histories(runs)?,
    ];
    let plots = sections.iter().flat_map(|section| &section.plots);
    Ok(Report {
        html: html::page(last, &rows, &sections),
        markdown: markdown::page(last, &rows, &sections),
        plots: plots
            .map(|plot| (plot.file.clone(), plot.svg.clone()))
            .collect(),
    })
}

fn captioned(kind: &str, name: &str, plot: &Plot) -> Result<Captioned, String> {
    Ok(Captioned {
        file: file_name(kind, name),
        caption: name.to_owned(),
        svg: plot.svg()?,
    })
}

/// Of letters, digits and a few others: a link to it needs no quoting.
fn file_name(kind: &str, name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    let plain = name.chars().map(|c| if is_plain(c) { c } else { '-' });
    format!("{kind}-{}.svg", plain.collect::<String>())
}

fn distributions(figures: &[Figure]) -> Result<Section, String> {
    let mut plots = Vec::new();
    for figure in figures.iter().filter(|figure| is_latency(figure)) {
        let ours = figure.latency.iter().map(|latency| ("farcall", latency));
        let others = figure
            .beside
            .iter()
            .filter_map(|b| Some((b.name.as_str(), b.latency.as_ref()?)));
        let lines = ours.chain(others).map(|(name, latency)| Line {
            name: name.to_owned(),
            // 1/(1-q): even steps for p90, p99, p99.9.
            points: latency
                .curve
                .iter()
                .map(|(q, us)| (100.0 / (100.0 - q).max(1e-9), *us))
                .collect(),
        });
        let plot = Plot {
            x: Axis::log("1 / (1 - quantile): 10 is p90, 100 p99, 1000 p99.9"),
            y: Axis::log("microseconds"),
            lines: lines.collect(),
        };
        plots.push(captioned("distribution", &figure.name, &plot)?);
    }
    Ok(Section {
        title: "Latency distributions",
        text: "The whole distribution of each round trip, beside its limit from the same run; of a closed loop with the calls \
               that it left out (coordinated omission).",
        plots,
    })
}

fn courses(figures: &[Figure]) -> Result<Section, String> {
    let mut plots = Vec::new();
    for figure in figures.iter().filter(|figure| is_latency(figure)) {
        let windows = figure.latency.iter().flat_map(|latency| &latency.windows);
        let line = |name: &str, value: fn(&crate::latency::Window) -> f64| Line {
            name: name.to_owned(),
            points: windows
                .clone()
                .map(|window| (window.at_ms, value(window)))
                .collect(),
        };
        let plot = Plot {
            x: Axis::linear("milliseconds of measured time"),
            y: Axis::log("microseconds"),
            lines: vec![
                line("p50", |w| w.p50),
                line("p99", |w| w.p99),
                line("max", |w| w.max),
            ],
        };
        if plot.lines.iter().any(|line| line.points.len() > 1) {
            plots.push(captioned("course", &figure.name, &plot)?);
        }
    }
    Ok(Section {
        title: "Jitter over time",
        text: "Median, p99 and maximum of each stretch of the run: disturbances show as peaks.",
        plots,
    })
}

fn throughputs(figures: &[Figure]) -> Result<Section, String> {
    let mut plots = Vec::new();
    for Throughput { name, ours, limit } in throughput(figures) {
        let plot = Plot {
            x: Axis::log("bytes of a transfer"),
            y: Axis::linear("GB/s"),
            lines: [("farcall", ours), ("limit", limit)]
                .into_iter()
                .map(|(name, points)| Line {
                    name: name.to_owned(),
                    points,
                })
                .collect(),
        };
        plots.push(captioned("throughput", &name, &plot)?);
    }
    Ok(Section {
        title: "Throughput by size",
        text: "Bulk transfers, beside bare TCP or memcpy of the same size.",
        plots,
    })
}

fn distances(figures: &[Figure]) -> Result<Section, String> {
    let mut plots = Vec::new();
    for Slowdown {
        name,
        ours,
        call_by_call,
    } in slowdowns(figures)
    {
        let plot = Plot {
            x: Axis::linear("microseconds added to the round trip"),
            y: Axis::log("milliseconds of a step"),
            lines: [("farcall", ours), ("call by call", call_by_call)]
                .into_iter()
                .map(|(name, points)| Line {
                    name: name.to_owned(),
                    points,
                })
                .collect(),
        };
        plots.push(captioned("distance", &name, &plot)?);
    }
    Ok(Section {
        title: "Steps of programs by the distance of the server",
        text: "Recorded driver calls played again without the program's own computing, and what they take (or, not measured, would take) if every call that the \
               client cannot answer by itself waited for the server.",
        plots,
    })
}

fn peers(figures: &[Figure]) -> Result<Section, String> {
    let mut plots = Vec::new();
    let is_compared =
        |figure: &&Figure| !figure.beside.is_empty() && !figure.name.starts_with("replay/");
    for figure in figures.iter().filter(is_compared) {
        let others = figure
            .beside
            .iter()
            .map(|beside| (beside.name.clone(), beside.value));
        let bars: Vec<_> = [("farcall".to_owned(), figure.value)]
            .into_iter()
            .chain(others)
            .collect();
        plots.push(Captioned {
            file: file_name("peers", &figure.name),
            caption: format!("{}, {}", figure.name, figure.unit),
            svg: plot::bars(&bars)?,
        });
    }
    Ok(Section {
        title: "Side by side",
        text: "Each figure beside its limit and the peers that were installed, measured in the same run.",
        plots,
    })
}

fn histories(runs: &[Run]) -> Result<Section, String> {
    let mut plots = Vec::new();
    for History { name, unit, points } in history(runs) {
        let numbered = points
            .iter()
            .enumerate()
            .map(|(at, point)| (at as f64 + 1.0, point.value));
        let plot = Plot {
            x: Axis::linear("run"),
            y: Axis::linear(&unit),
            lines: vec![Line {
                name: name.clone(),
                points: numbered.collect(),
            }],
        };
        let mut drawn = captioned("history", &name, &plot)?;
        let named = points.iter().enumerate();
        let named =
            named.map(|(at, point)| format!("{}: {} ({})", at + 1, point.commit, point.date));
        drawn.caption = format!("{name}: {}", named.collect::<Vec<_>>().join(", "));
        plots.push(drawn);
    }
    Ok(Section {
        title: "History",
        text: "Figures that were measured more than once: as multiples of their limit where one stands beside them.",
        plots,
    })
}

fn is_latency(figure: &Figure) -> bool {
    figure.unit == "us"
        && figure
            .latency
            .as_ref()
            .is_some_and(|latency| latency.curve.len() > 1)
}

/// Bytes of a size's name in a figure's, such as `64MiB`.
fn bytes_of(name: &str) -> Option<usize> {
    (0..=30)
        .map(|power| 1 << power)
        .find(|bytes| size_name(*bytes) == name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{bytes_of, file_name, report};
    use crate::figure::{Beside, Figure, Target};
    use crate::latency::Recorder;
    use crate::run::{Before, Run};

    fn run(value: f64) -> Run {
        let mut recorder = Recorder::new(1000, true);
        (1..5000).for_each(|n| recorder.record(n * 10, 100));
        let latency = recorder.finish();
        let rtt = Figure::new("rtt/tcp/64B", "us", value)
            .latency(latency.clone())
            .with(Beside::new("raw <TCP>", 7.0).latency(latency))
            .target(Target::Ratio(1.15));
        let bulk = |size, value| {
            Figure::new(format!("bulk/tcp/up/{size}"), "GB/s", value).beside("raw TCP", 5.0)
        };
        let step = |rtt: u32| {
            let name = format!("replay/torch/shm/train_step/wall@{rtt}us");
            let each_waits = Beside::new(crate::measure::CALL_BY_CALL, f64::from(2 + rtt));
            Figure::new(name, "ms", 2.0).with(each_waits.peer())
        };
        let bulks = [bulk("1MiB", 3.0), bulk("64MiB", 4.0)];
        let others = bulks.into_iter().chain([step(0), step(100)]);
        let run = Before::here().run([rtt].into_iter().chain(others).collect(), None);
        Run {
            is_debug_build: false,
            ..run
        }
    }

    #[test]
    fn runs_between_other_hosts_have_rows_of_their_own() {
        let mut far = run(90.0);
        far.server = Some(far.machine.clone());
        far.commit = "of-two-hosts".to_owned();
        let mut older = run(8.0);
        older.commit = "of-one-host".to_owned();
        let mut unoptimized = run(1000.0);
        unoptimized.is_debug_build = true;
        let made = report(&[far, older.clone(), unoptimized.clone()]).unwrap();
        let rows = made
            .markdown
            .lines()
            .filter(|line| line.starts_with("| rtt/tcp/64B "));
        let rows: Vec<&str> = rows.collect();
        assert_eq!(rows.len(), 2, "{rows:?}");
        for (commit, value) in [("of-two-hosts", "90.000"), ("of-one-host", "8.000")] {
            let is_of = |row: &&&str| row.contains(commit) && row.contains(value);
            assert_eq!(rows.iter().filter(is_of).count(), 1, "{rows:?}");
            assert!(made.html.contains(commit));
        }
        assert!(report(&[unoptimized]).is_err());
        // No history of one host with two.
        let history = |(file, _): &&(String, String)| file.starts_with("history-");
        assert_eq!(made.plots.iter().find(history), None);
    }

    #[test]
    fn links_to_plots_need_no_quoting() {
        let name = file_name("peers", "bulk/tcp/up/64MiB, pinned");
        assert_eq!(name, "peers-bulk-tcp-up-64MiB--pinned.svg");
    }

    #[test]
    fn a_page_has_every_kind_of_plot_and_needs_nothing_else() {
        let made = report(&[run(8.0), run(7.5)]).unwrap();
        for kind in [
            "distribution-",
            "course-",
            "throughput-",
            "distance-",
            "peers-",
            "history-",
        ] {
            assert!(
                made.plots.iter().any(|(file, _)| file.starts_with(kind)),
                "{kind}"
            );
        }
        assert!(
            made.plots
                .iter()
                .all(|(_, svg)| svg.starts_with("<svg") && svg.contains("</svg>"))
        );
        assert!(made.html.contains("raw &lt;TCP&gt;") && !made.html.contains("raw <TCP>"));
        for outside in ["http://", "https://", "src=", "<script"] {
            let found = made
                .html
                .replace("http://www.w3.org/2000/svg", "")
                .contains(outside);
            assert!(!found, "{outside}");
        }
        assert!(
            made.markdown.contains("| rtt/tcp/64B |")
                && made.markdown.contains("(distribution-rtt-tcp-64B.svg)")
        );
        assert!(report(&[]).is_err());
    }

    #[test]
    fn sizes_are_read_back() {
        assert_eq!(
            (bytes_of("64MiB"), bytes_of("8B"), bytes_of("up")),
            (Some(64 << 20), Some(8), None)
        );
    }
}
