//! The bootstrap: who speaks which version, who may come in, and which session it is about.
#![forbid(unsafe_code)]

mod handover;
mod hello;

pub(crate) use handover::{Handover, HandoverKind};
pub(crate) use hello::{
    ClientHead, HELLO_HEAD_BYTES, HelloKind, SERVER_HEAD_BYTES, ServerHead, TOKEN_BYTES_MAX,
};

use std::fmt;

/// Names a session; both sides know it, logs may show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);

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
