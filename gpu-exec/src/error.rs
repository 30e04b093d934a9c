//! What can go wrong at the start of a server, and in asking one.
#![forbid(unsafe_code)]

use std::io;

use farcall_transport::ConnectError;

/// Why a server does not run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// There is no GPU and none was replaced.
    #[error("{0}; `--device soft` serves a CPU device that runs PTX")]
    NoGpu(String),
    /// An option that cannot be used.
    #[error("bad option: {0}")]
    Option(String),
    /// The address cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// As given.
        address: String,
        /// What the system said.
        source: io::Error,
    },
    /// No executor can be started.
    #[error("cannot start an executor ({program}): {source}")]
    Executor {
        /// The program that was tried.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// Another system error.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl ServeError {
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}

/// Why a server's inventory is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// No session came about.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The answer is not an inventory.
    #[error("the server's answer does not decode: {0}")]
    Answer(String),
}
