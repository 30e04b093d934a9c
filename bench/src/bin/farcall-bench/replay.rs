//! `replay`, and the processes that it starts.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use clap::Args;
use farcall_bench::measure::{self, Replay};
use farcall_bench::net::Transport;
use farcall_bench::run::Before;

use crate::net::of_calls;
use crate::output::Output;

/// What `replay` is told.
#[derive(Clone, Debug, Args)]
pub(crate) struct Told {
    /// A record of driver calls: `farcall trace --record`, or one of fixtures/traces.
    trace: PathBuf,
    /// Backend.
    #[arg(long, default_value = "shm", value_parser = of_calls)]
    transport: Transport,
    /// Microseconds added to the round trip; the others are compared with the first.
    #[arg(long, value_delimiter = ',', default_value = "0,20,50,100,200,500")]
    added_rtt_us: Vec<u32>,
    /// Runs of each kind; the least counts.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    #[command(flatten)]
    output: Output,
}

pub(crate) fn replay(told: &Told) -> Result<bool, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let how = Replay {
        trace: &told.trace,
        transport: told.transport,
        added_rtt_us: &told.added_rtt_us,
        runs: told.runs,
    };
    let before = Before::here();
    let figures = measure::replay(&program, &how)?;
    told.output.print(before, figures, None, Ok(()))
}

/// Plays a record in this process and prints what came of it.
pub(crate) fn play(trace: &Path, is_hollow: bool) -> Result<bool, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let report = measure::play(&program, trace, is_hollow)?;
    let text = serde_json::to_string(&report).map_err(|error| error.to_string())?;
    println!("{text}");
    Ok(true)
}
