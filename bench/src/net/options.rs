//! What is measured how.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use farcall_transport::TransportChoice;

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
    /// Trips a second, open loop: each is due at its time, whether the one before is back or not. None: closed loop.
    pub rate: Option<f64>,
}
