//! What is measured how.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

use farcall_transport::{ConnectError, TransportChoice};
use thiserror::Error;

/// Which backend, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// As the transport has it.
    pub choice: TransportChoice,
    /// TCP with TLS.
    pub tls: bool,
}

impl Transport {
    /// TCP.
    pub const TCP: Self = Self::plain(TransportChoice::Tcp);
    /// Shared memory.
    pub const SHM: Self = Self::plain(TransportChoice::Shm);
    /// TCP with TLS.
    pub const TLS: Self = Self {
        choice: TransportChoice::Tcp,
        tls: true,
    };

    const fn plain(choice: TransportChoice) -> Self {
        Self { choice, tls: false }
    }

    /// As `FARCALL_TRANSPORT` and `--transport` have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.choice {
            TransportChoice::Tcp if self.tls => "tls",
            TransportChoice::Auto => "auto",
            TransportChoice::Tcp => "tcp",
            TransportChoice::Shm => "shm",
            TransportChoice::Verbs => "verbs",
            TransportChoice::Network => "network",
        }
    }
}

impl FromStr for Transport {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Ok(Self::plain(match name {
            "auto" => TransportChoice::Auto,
            "tls" => return Ok(Self::TLS),
            "tcp" => TransportChoice::Tcp,
            "shm" => TransportChoice::Shm,
            "verbs" => TransportChoice::Verbs,
            _ => {
                return Err(format!(
                    "no transport {name:?}: auto, tcp, tls, shm or verbs"
                ));
            }
        }))
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How long and how fast.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Measured time of each party.
    pub duration: Duration,
    /// Time of each party before that, which is not measured.
    pub warm_up: Duration,
    /// Parts that the measured time comes in, at least one: between them other programs are measured.
    pub rounds: u32,
    /// Trips a second, open loop: each is due at its time, whether the one before is back or not. None: closed loop.
    pub rate: Option<f64>,
}

impl Load {
    /// The same in so many rounds, or more.
    #[must_use]
    pub fn in_rounds(self, rounds: u32) -> Self {
        Self {
            rounds: self.rounds.max(rounds),
            ..self
        }
    }

    /// A figure's name: with the rate, if there is one, as such a figure is not to be compared with others.
    #[must_use]
    pub fn named(&self, name: String) -> String {
        match self.rate {
            Some(rate) => format!("{name}@{rate}/s"),
            None => name,
        }
    }
}

/// Against what is measured, and beside what.
#[derive(Clone, Copy, Debug)]
pub struct Against<'a> {
    /// The far side: a [`super::service::Service`].
    pub server: &'a str,
    /// Whether that is of this process: the limits of this machine then stand beside the figures.
    pub is_local: bool,
    /// Whether the peers that are installed stand beside them, too.
    pub with_peers: bool,
}

/// A session that ended while it was measured.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("the session ended: {0}")]
pub struct Lost(String);

impl Lost {
    /// For this reason.
    pub fn new(reason: impl fmt::Display) -> Self {
        Self(reason.to_string())
    }
}

/// Why nothing was measured.
#[derive(Debug, Error)]
pub enum Failure {
    /// No session.
    #[error(transparent)]
    Transport(#[from] ConnectError),
    /// A session ended.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// A limit that cannot be measured.
    #[error(transparent)]
    Limit(#[from] io::Error),
}
