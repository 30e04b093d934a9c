//! What the process tests share.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::os::fd::OwnedFd;
use std::process::{Command, Output, Stdio};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use tempfile::TempDir;

/// `farcall` with an environment of its own: no configuration of this machine's user, and libraries that
/// exist but are never loaded.
pub(crate) struct Farcall {
    pub(crate) home: TempDir,
}

impl Farcall {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let libraries = home.path().join("lib");
        fs::create_dir(&libraries).unwrap();
        for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
            fs::write(libraries.join(name), "").unwrap();
        }
        Self { home }
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_farcall"));
        for (name, _) in
            std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("FARCALL_"))
        {
            command.env_remove(name);
        }
        command.args(args).stdin(Stdio::null());
        command
            .env("HOME", self.home.path())
            .env_remove("XDG_CONFIG_HOME");
        command.env("FARCALL_LIB_DIR", self.home.path().join("lib"));
        command
    }

    pub(crate) fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs a shell script under `farcall run`, without a server.
    pub(crate) fn run_script(&self, options: &[&str], script: &str) -> Output {
        let args: Vec<&str> = ["run", "--no-check"]
            .iter()
            .chain(options)
            .chain(&["--", "sh", "-c", script])
            .copied()
            .collect();
        self.output(&args)
    }
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn lines(stdout: impl Read) -> impl Iterator<Item = String> {
    BufReader::new(stdout).lines().map(Result::unwrap)
}

/// An address where nobody listens, as long as the descriptor is held.
pub(crate) fn dead_address() -> (OwnedFd, String) {
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(
        std::os::fd::AsRawFd::as_raw_fd(&fd),
        &SockaddrIn::new(127, 0, 0, 1, 0),
    )
    .unwrap();
    let address: SockaddrIn = getsockname(std::os::fd::AsRawFd::as_raw_fd(&fd)).unwrap();
    (fd, format!("127.0.0.1:{}", address.port()))
}
