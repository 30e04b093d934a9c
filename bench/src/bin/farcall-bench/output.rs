//! What every measurement does with its figures.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use farcall_bench::figure::{Figure, table};
use farcall_bench::machine::Machine;
use farcall_bench::page;
use farcall_bench::run::{self, Before, Run, results};

/// Where the figures go.
#[derive(Clone, Debug, Args)]
pub(crate) struct Output {
    /// JSON: the run with its figures, commit and machine.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    keep: Keep,
}

/// Where they are kept.
#[derive(Clone, Debug, Args)]
pub(crate) struct Keep {
    /// Also appends the run to bench/results/NAME.ndjson, which `report` shows.
    #[arg(long, value_name = "NAME")]
    save: Option<String>,
    /// The same, to a file of any place.
    #[arg(long, value_name = "FILE")]
    save_to: Option<PathBuf>,
}

impl Keep {
    /// Appends the run.
    pub(crate) fn run(&self, run: &Run) -> Result<(), String> {
        let named = self
            .save
            .iter()
            .map(|name| results().join(format!("{name}.ndjson")));
        for file in named.chain(self.save_to.clone()) {
            run.save(&file)
                .map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(())
    }
}

impl Output {
    /// Prints the figures, and keeps them; false if a promise is not kept. What was measured before something `ended` it is
    /// printed and kept as well.
    pub(crate) fn print(
        &self,
        before: Before,
        figures: Vec<Figure>,
        server: Option<Machine>,
        ended: Result<(), String>,
    ) -> Result<bool, String> {
        if figures.is_empty() {
            return ended.and(Err("nothing was measured".to_owned()));
        }
        let run = before.run(figures, server);
        if self.json {
            let text = serde_json::to_string_pretty(&run).map_err(|error| error.to_string())?;
            println!("{text}");
        } else {
            print!("{}", table(&run.figures));
            for warning in &run.warnings {
                eprintln!("note: {warning}");
            }
        }
        self.keep.run(&run)?;
        ended?;
        let mut figures = run.figures.iter();
        Ok(figures.all(|figure| figure.is_kept() != Some(false)))
    }
}

/// `report`: makes the page of what was kept.
pub(crate) fn report(out: &Path, folder: Option<PathBuf>) -> Result<bool, String> {
    let kept = run::load(&folder.unwrap_or_else(results)).map_err(|error| error.to_string())?;
    for line in &kept.skipped {
        eprintln!("note: skipped {line}");
    }
    let report = page::report(&kept.runs)?;
    let failed = |error: std::io::Error| format!("{}: {error}", out.display());
    fs::create_dir_all(out).map_err(failed)?;
    let pages = [
        ("report.html", &report.html),
        ("report.md", &report.markdown),
    ];
    let plots = report.plots.iter().map(|(file, svg)| (file.as_str(), svg));
    for (file, text) in pages.into_iter().chain(plots) {
        fs::write(out.join(file), text).map_err(failed)?;
    }
    println!("{}", out.join("report.html").display());
    Ok(true)
}
