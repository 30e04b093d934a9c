//! What every measurement does with its figures.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use clap::Args;
use farcall_bench::figure::{Figure, table};
use farcall_bench::machine::Machine;
use farcall_bench::run::{Run, results};

/// Where the figures go.
#[derive(Clone, Debug, Args)]
pub(crate) struct Output {
    /// JSON: the run with its figures, commit and machine.
    #[arg(long)]
    json: bool,
    /// Also appends the run to bench/results/NAME.ndjson, which `report` shows.
    #[arg(long, value_name = "NAME")]
    save: Option<String>,
    /// The same, to a file of any place.
    #[arg(long, value_name = "FILE")]
    save_to: Option<PathBuf>,
}

impl Output {
    /// Prints the figures; false if a promise is not kept.
    pub(crate) fn print(
        &self,
        figures: Vec<Figure>,
        server: Option<Machine>,
    ) -> Result<bool, String> {
        let run = Run::now(figures, server);
        if self.json {
            let text = serde_json::to_string_pretty(&run).map_err(|error| error.to_string())?;
            println!("{text}");
        } else {
            print!("{}", table(&run.figures));
            for warning in &run.warnings {
                eprintln!("note: {warning}");
            }
        }
        let named = self
            .save
            .iter()
            .map(|name| results().join(format!("{name}.ndjson")));
        for file in named.chain(self.save_to.clone()) {
            run.save(&file)
                .map_err(|error| format!("{}: {error}", file.display()))?;
        }
        Ok(run
            .figures
            .iter()
            .all(|figure| figure.is_kept() != Some(false)))
    }
}
