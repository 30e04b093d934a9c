//! `farcall trace`: every driver call of a program, readable.
//!
//! The shim writes JSON lines into a FIFO of ours and a thread renders them as they come, so the trace
//! of a program that hangs ends where it hangs.
#![forbid(unsafe_code)]

mod line;
mod render;

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Read as _, Write};
use std::path::Path;
use std::process::ExitCode;
use std::thread;

use farcall_config::vars;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

pub(crate) use render::duration;

use crate::args::TraceArgs;
use crate::failure::{Failure, code};
use crate::run::{self, Signals};
use render::{Renderer, Style};

/// Longer lines are cut; the shim writes none that are.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What we write behind the last line: everything that the command wrote stands before it.
const END: &[u8] = b"\nend of trace\n";

pub(crate) fn trace(args: &TraceArgs) -> Result<ExitCode, Failure> {
    let mut prepared = run::prepare(&args.server, &args.share, &args.command)?;
    if let Some(file) = &args.record {
        prepared.command.env(vars::RECORD, run::absolute(file)?);
        return prepared.run(&Signals::block()?).map(run::Ended::exit_code);
    }
    let (output, style) = output(args)?;
    let path = prepared.private.path().join("trace");
    let fifo = make_fifo(&path)?;
    let mut end = fifo
        .try_clone()
        .map_err(|error| fifo_failure(&path, &error))?;
    prepared
        .command
        .env(vars::TRACE, &path)
        .env_remove(vars::TRACE_STEPS);
    if args.steps {
        prepared.command.env(vars::TRACE_STEPS, "1");
    }
    // Before the thread is started, so that it does not get them either.
    let signals = Signals::block()?;
    let renderer = Renderer::new(output, style).only(args.only.clone());
    let renderer = thread::spawn(move || render_all(fifo, renderer));
    let ended = prepared.run(&signals);
    end.write_all(END)
        .map_err(|error| fifo_failure(&path, &error))?;
    let rendered = renderer
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the renderer failed")));
    if let Err(error) = rendered {
        eprintln!("farcall: the trace is not complete: {error}");
    }
    ended.map(run::Ended::exit_code)
}

fn output(args: &TraceArgs) -> Result<(Box<dyn Write + Send>, Style), Failure> {
    let Some(path) = &args.output else {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || !io::stderr().is_terminal();
        return Ok((
            Box::new(io::stderr()),
            if plain { Style::Plain } else { Style::Coloured },
        ));
    };
    let file = File::create(path).map_err(|error| {
        Failure::new(
            code::FAILED,
            format!("cannot write {}: {error}", path.display()),
            "name a file that you may write with -o FILE",
        )
    })?;
    Ok((Box::new(io::LineWriter::new(file)), Style::Plain))
}

/// Open for both directions: opening does not wait for the other side, writers find a reader as long as
/// we are there, and the end of one writer is not the end.
fn make_fifo(path: &Path) -> Result<File, Failure> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(io::Error::from)
        .and_then(|()| OpenOptions::new().read(true).write(true).open(path))
        .map_err(|error| fifo_failure(path, &error))
}

fn fifo_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::new(
        code::FAILED,
        format!("cannot use the FIFO {}: {error}", path.display()),
        "name another directory with TMPDIR",
    )
}

/// Renders until the end mark. Goes on reading if the output fails: the program must not block on us.
fn render_all(fifo: File, mut renderer: Renderer) -> io::Result<()> {
    let mut reader = BufReader::new(fifo);
    let mut result = Ok(());
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        (&mut reader)
            .take(LINE_BYTES_MAX)
            .read_until(b'\n', &mut bytes)?;
        if bytes == END.trim_ascii_start() {
            break;
        }
        if result.is_ok() {
            result = renderer.line(&bytes);
        }
    }
    result.and_then(|()| renderer.finish())
}
