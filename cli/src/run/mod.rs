//! `farcall run`: a command whose driver is ours, otherwise as if it had been started alone.
#![forbid(unsafe_code)]

mod child;
mod environment;
pub(crate) mod libraries;
mod servers;
mod stats;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use tempfile::TempDir;

pub(crate) use child::{Ended, Signals};

use crate::args::{RunArgs, ServerArgs, ShareArgs};
use crate::connect;
use crate::failure::{Failure, code};
use crate::pool;

/// All of a device.
const WHOLE_PERMILLE: u16 = 1000;

pub(crate) fn run(args: &RunArgs) -> Result<ExitCode, Failure> {
    // As everywhere, an empty variable counts as unset.
    if args.pool.pool.as_deref().unwrap_or_default().is_empty() {
        let permille = args.want.share_permille;
        let share = ShareArgs {
            // All of it is what there is without asking.
            share_permille: (permille < WHOLE_PERMILLE).then_some(permille),
            ..args.share.clone()
        };
        return run_on(args, &args.server, &share, None);
    }
    let label = label(&args.command);
    let mut held = pool::hold(
        &args.pool,
        &args.want,
        &args.share,
        args.lease.lease,
        &label,
    )?;
    // Before the thread that keeps the lease is started: it shall get none of them.
    let outcome = Signals::block().and_then(|signals| {
        held.keep()?;
        let (server, share) = held.session(&args.server, &args.share);
        run_on(args, &server, &share, Some(signals))
    });
    held.release();
    outcome
}

/// What others are shown of a command: its name and what it runs (`python train.py`), and nothing that may be a secret, as values of
/// options are.
fn label(command: &[OsString]) -> String {
    let words = command.iter().map(|word| word.to_string_lossy());
    let shown = words.enumerate();
    let shown = shown.take_while(|(at, word)| *at == 0 || *at == 1 && !word.starts_with('-'));
    let shown: Vec<_> = shown.map(|(_, word)| word).collect();
    shown.join(" ")
}

/// Runs the command with this server and share.
fn run_on(
    args: &RunArgs,
    server: &ServerArgs,
    share: &ShareArgs,
    signals: Option<Signals>,
) -> Result<ExitCode, Failure> {
    let mut prepared = prepare(server, share, &args.command)?;
    let stats = args
        .stats
        .as_deref()
        .map(|file| stats::Stats::new(file, prepared.private.path()))
        .transpose()?;
    if let Some(stats) = &stats {
        prepared
            .command
            .env(farcall_config::vars::STATS, stats.path());
    }
    if let Some(target) = &args.trace {
        let target = if target == Path::new("-") {
            target.clone()
        } else {
            absolute(target)?
        };
        prepared.command.env(farcall_config::vars::TRACE, target);
    }
    let signals = signals.map_or_else(Signals::block, Ok)?;
    let ended = prepared.run(&signals)?;
    if let Some(stats) = stats {
        stats.report();
    }
    Ok(ended.exit_code())
}

/// A command that is ready to be started.
pub(crate) struct Prepared {
    pub(crate) command: Command,
    /// Directory of our own, gone when the command has ended.
    pub(crate) private: TempDir,
}

impl Prepared {
    /// Runs it to its end, forwarding signals. Blocks.
    pub(crate) fn run(&self, signals: &Signals) -> Result<Ended, Failure> {
        let program = self.command.get_program().to_owned();
        signals
            .run(&self.command)
            .map_err(|error| cannot_run(&program, &error))
    }
}

/// Checks the server, finds the libraries and sets the environment up.
pub(crate) fn prepare(
    server: &ServerArgs,
    share: &ShareArgs,
    words: &[OsString],
) -> Result<Prepared, Failure> {
    let config = connect::configuration(server)?;
    let chosen = servers::choose(&config, server, share)?;
    let private = tempfile::Builder::new()
        .prefix("farcall-")
        .tempdir()
        .map_err(|error| {
            let what = format!(
                "cannot make a directory in {}: {error}",
                std::env::temp_dir().display()
            );
            Failure::new(
                code::FAILED,
                what,
                "make room there, or name another directory with TMPDIR",
            )
        })?;
    let libraries = libraries::find(private.path())?;
    let (program, arguments) = words
        .split_first()
        .ok_or_else(|| Failure::new(2, "no command", "see farcall run --help"))?;
    let mut command = Command::new(program);
    command.args(arguments);
    environment::set(&mut command, &chosen, server, share, &libraries)?;
    Ok(Prepared { command, private })
}

/// A path that means the same to a program that changes its directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path).map_err(|error| {
        Failure::new(
            code::FAILED,
            format!("{}: {error}", path.display()),
            "name a file",
        )
    })
}

fn cannot_run(program: &OsString, error: &std::io::Error) -> Failure {
    let name = program.to_string_lossy();
    match error.kind() {
        std::io::ErrorKind::NotFound => {
            let advice = "check the spelling and PATH; for a script, check the interpreter in its first line";
            Failure::new(
                code::NOT_FOUND,
                format!("{name}: command not found"),
                advice,
            )
        }
        _ => {
            let advice = "check that it is a program for this machine and that you may execute it";
            Failure::new(
                code::NOT_EXECUTABLE,
                format!("cannot run {name}: {error}"),
                advice,
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::label;

    #[test]
    fn what_others_are_shown_of_a_command() {
        for (command, shown) in [
            (
                &["python", "train.py", "--key", "secret"][..],
                "python train.py",
            ),
            (&["python", "-m", "train", "secret"], "python"),
            (&["./vecadd"], "./vecadd"),
            (&["serve", "--api-key=secret"], "serve"),
        ] {
            let command: Vec<OsString> = command.iter().map(OsString::from).collect();
            assert_eq!(label(&command), shown);
        }
    }
}
