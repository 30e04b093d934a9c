//! The fence around libibverbs: loading it, and owning what it makes. Everything above works
//! with these types and needs no `unsafe`.

pub(crate) mod abi;
mod device;
mod library;
mod memory;
mod queue;

pub(crate) use device::{AsyncCause, Bounds, Device, preload};
pub(crate) use memory::{Domain, Region, Registration};
pub(crate) use queue::{CompletionKind, Cq, Qp, QpPath, Verb, Work};

use std::io;

use crate::stream::verbs::error::VerbsError;

/// What a failed verb says. Verbs that return pointers leave the reason in `errno`.
fn last_error(verb: &'static str) -> VerbsError {
    VerbsError::Verb {
        verb,
        errno: io::Error::last_os_error().raw_os_error().unwrap_or(0),
    }
}

/// Verbs that return integers return the reason.
fn check(verb: &'static str, result: i32) -> Result<(), VerbsError> {
    if result == 0 {
        return Ok(());
    }
    // Some return -1 and set errno, as system calls do.
    if result < 0 {
        return Err(last_error(verb));
    }
    Err(VerbsError::Verb {
        verb,
        errno: result,
    })
}
