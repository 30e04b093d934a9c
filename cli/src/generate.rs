//! `farcall completions` and `farcall man`: what packages ship beside the program.
#![forbid(unsafe_code)]

use std::io;
use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::failure::{Failure, code, written};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<ExitCode, Failure> {
    // Into memory first: the generator panics where stdout is closed.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "farcall", &mut script);
    written(io::Write::write_all(&mut io::stdout().lock(), &script))
}

pub(crate) fn man(args: &ManArgs) -> Result<ExitCode, Failure> {
    std::fs::create_dir_all(&args.directory)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), &args.directory))
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| {
            let what = format!(
                "cannot write the man pages to {}: {error}",
                args.directory.display()
            );
            Failure::new(code::FAILED, what, "name a directory that you may write to")
        })
}
