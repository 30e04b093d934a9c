//! A child process that gets the signals that we get, and whose end is ours.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, ExitCode};

use nix::errno::Errno;
use nix::libc::SI_KERNEL;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawnp};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::failure::{Failure, code};

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(i32),
    Signalled(Signal),
}

impl Ended {
    pub(crate) fn exit_code(self) -> ExitCode {
        let number = match self {
            Self::Exited(number) => number,
            Self::Signalled(signal) => i32::from(code::SIGNALLED) + signal as i32,
        };
        ExitCode::from(u8::try_from(number & 0xff).unwrap_or(code::FAILED))
    }
}

const FORWARDED: [Signal; 9] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGTSTP,
    Signal::SIGCONT,
];

/// Signals that wait in a descriptor instead of acting on this process.
pub(crate) struct Signals {
    descriptor: SignalFd,
    /// What was blocked before; the child gets this.
    mask_before: SigSet,
}

impl Signals {
    /// Blocks them in the calling thread, and so in threads that it starts from then on. Call it before
    /// other threads are started.
    pub(crate) fn block() -> Result<Self, Failure> {
        let mut set = SigSet::empty();
        set.add(Signal::SIGCHLD);
        FORWARDED.into_iter().for_each(|signal| set.add(signal));
        let block = || -> nix::Result<Self> {
            let mask_before = SigSet::thread_get_mask()?;
            set.thread_block()?;
            let descriptor = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC)?;
            Ok(Self {
                descriptor,
                mask_before,
            })
        };
        block().map_err(|error| {
            let what = format!("cannot wait for signals: {error}");
            Failure::new(
                code::FAILED,
                what,
                "check the limit of open files (ulimit -n)",
            )
        })
    }

    /// Runs `command` to its end. Blocks. Takes program, arguments and environment of it.
    pub(crate) fn run(&self, command: &Command) -> io::Result<Ended> {
        let child = self.spawn(command)?;
        loop {
            let Some(info) = self.descriptor.read_signal()? else {
                continue;
            };
            let number = i32::try_from(info.ssi_signo).map_err(io::Error::other)?;
            match Signal::try_from(number)? {
                Signal::SIGCHLD => {
                    if let Some(ended) = look(child)? {
                        return Ok(ended);
                    }
                }
                // The terminal signals its whole foreground group: the child has this one already.
                _ if info.ssi_code == SI_KERNEL => {}
                // An error means that it has just ended; SIGCHLD says so next.
                signal => drop(kill(child, signal)),
            }
        }
    }
}

impl Signals {
    /// Not `Command::spawn`: that gives the child our mask, with which no signal would ever reach it.
    fn spawn(&self, command: &Command) -> io::Result<Pid> {
        let mut attributes = PosixSpawnAttr::init()?;
        attributes.set_flags(
            PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF,
        )?;
        attributes.set_sigmask(&self.mask_before)?;
        // The Rust runtime ignores SIGPIPE; programs expect it to end them.
        attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
        let words = std::iter::once(command.get_program()).chain(command.get_args());
        let words = words.map(c_string).collect::<io::Result<Vec<_>>>()?;
        let environment = environment(command)
            .into_iter()
            .map(|(name, value)| c_string(&joined(&name, &value)));
        let environment = environment.collect::<io::Result<Vec<_>>>()?;
        let program = c_string(command.get_program())?;
        Ok(posix_spawnp(
            &program,
            &PosixSpawnFileActions::init()?,
            &attributes,
            &words,
            &environment,
        )?)
    }
}

/// Ours with the command's changes.
fn environment(command: &Command) -> BTreeMap<OsString, OsString> {
    let mut variables: BTreeMap<OsString, OsString> = std::env::vars_os().collect();
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => variables.insert(name.to_owned(), value.to_owned()),
            None => variables.remove(name),
        };
    }
    variables
}

fn joined(name: &OsStr, value: &OsStr) -> OsString {
    let mut line = name.to_owned();
    line.push("=");
    line.push(value);
    line
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "it has a NUL byte"))
}

/// Whether the child has ended. If it stopped, we stop with it, so that a shell sees its job stopped.
fn look(child: Pid) -> io::Result<Option<Ended>> {
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG | WaitPidFlag::WUNTRACED)) {
            Ok(WaitStatus::Exited(_, number)) => return Ok(Some(Ended::Exited(number))),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(Ended::Signalled(signal))),
            Ok(WaitStatus::Stopped(..)) => raise(Signal::SIGSTOP)?,
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            // Whoever started us ignores SIGCHLD, and so the system has thrown the status away.
            Err(Errno::ECHILD) => return Ok(Some(Ended::Exited(i32::from(code::FAILED)))),
            Err(error) => return Err(error.into()),
        }
    }
}
