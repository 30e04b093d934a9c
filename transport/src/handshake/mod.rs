//! The bootstrap: who speaks which version, who may come in, and which session it is about.
#![forbid(unsafe_code)]

mod handover;
mod hello;

pub(crate) use handover::{Handover, HandoverKind};
pub(crate) use hello::{
    ClientHead, HELLO_HEAD_BYTES, HelloKind, Positions, SERVER_HEAD_BYTES, ServerHead,
    TOKEN_BYTES_MAX, preamble, reads_on,
};

use std::fmt;

use crate::sys::random::random16;

/// Names a session; both sides know it, logs may show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

/// Bytes of a session's name that say which run of which server made it.
pub(crate) const INSTANCE_BYTES: usize = 8;

/// A run of a server: drawn at its start, so that after a restart it knows the sessions that it cannot
/// have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instance([u8; INSTANCE_BYTES]);

impl Instance {
    /// A fresh one.
    pub(crate) fn draw() -> std::io::Result<Self> {
        let mut instance = [0; INSTANCE_BYTES];
        instance.copy_from_slice(&random16()?[..INSTANCE_BYTES]);
        Ok(Self(instance))
    }

    /// A name for a new session.
    pub(crate) fn name(self) -> std::io::Result<SessionId> {
        let mut name = random16()?;
        name[..INSTANCE_BYTES].copy_from_slice(&self.0);
        Ok(SessionId(name))
    }

    /// Whether this run made the session.
    pub(crate) fn made(self, session: SessionId) -> bool {
        session.0.starts_with(&self.0)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Proves the right to a session: a further connection must bring it. Never shown.
#[derive(Clone, Copy)]
pub(crate) struct SessionKey(pub(crate) [u8; 16]);

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey(..)")
    }
}

impl SessionKey {
    /// Compares in constant time.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        constant_time_eq(&self.0, &other.0)
    }
}

/// Compares secrets without telling by its time where they differ. The lengths are no secret.
#[must_use]
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let difference = a.iter().zip(b).fold(0u8, |all, (x, y)| all | (x ^ y));
    std::hint::black_box(difference) == 0
}
