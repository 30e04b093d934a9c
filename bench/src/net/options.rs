//! What is measured how.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use farcall_transport::TransportChoice;

/// Which backend, by its name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport(pub TransportChoice);

impl Transport {
    /// TCP.
    pub const TCP: Self = Self(TransportChoice::Tcp);
    /// Shared memory.
    pub const SHM: Self = Self(TransportChoice::Shm);

    /// As `FARCALL_TRANSPORT` and `--transport` have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
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
        Ok(Self(match name {
            "auto" => TransportChoice::Auto,
            "tcp" => TransportChoice::Tcp,
            "shm" => TransportChoice::Shm,
            "verbs" => TransportChoice::Verbs,
            _ => return Err(format!("no transport {name:?}: auto, tcp, shm or verbs")),
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
