//! How a subcommand ends when it cannot do its work: one line says what, one what to do.
#![forbid(unsafe_code)]

use std::io::Write as _;
use std::process::ExitCode;

/// Exit codes of farcall itself. `run` and `trace` give the command's own code once it has run.
pub(crate) mod code {
    /// Anything that has no code of its own.
    pub(crate) const FAILED: u8 = 1;
    /// No server can be used: not reachable, another version, refused.
    pub(crate) const UNAVAILABLE: u8 = 69;
    /// The shim libraries are not where they should be.
    pub(crate) const NO_LIBRARIES: u8 = 72;
    /// A pool says no: a token, a quota.
    pub(crate) const NOT_PERMITTED: u8 = 77;
    /// A configuration file or variable cannot be used.
    pub(crate) const CONFIG: u8 = 78;
    /// The command was found and cannot be run.
    pub(crate) const NOT_EXECUTABLE: u8 = 126;
    /// The command was not found.
    pub(crate) const NOT_FOUND: u8 = 127;
    /// A command that signal N killed gives this plus N.
    pub(crate) const SIGNALLED: u8 = 128;
}

/// Why farcall could not do its work.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    what: String,
    advice: String,
}

impl Failure {
    pub(crate) fn new(code: u8, what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            code,
            what: what.into(),
            advice: advice.into(),
        }
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }

    pub(crate) fn print(&self) {
        // Nobody is left to tell if stderr is gone.
        let _ = writeln!(
            std::io::stderr(),
            "farcall: {}\n  {}",
            self.what,
            self.advice
        );
    }
}

/// Result of writing to stdout: a reader that closed early (`| head`) is no failure.
pub(crate) fn written(result: std::io::Result<()>) -> Result<ExitCode, Failure> {
    match result {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
        Err(error) => Err(Failure::new(
            code::FAILED,
            format!("cannot write the output: {error}"),
            "check where the output goes (disk full, closed pipe)",
        )),
    }
}
