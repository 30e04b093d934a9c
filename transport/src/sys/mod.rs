//! Fences around system calls: what they need `unsafe` for ends here.

pub(crate) mod barrier;
pub(crate) mod event;
pub(crate) mod eventcount;
pub(crate) mod fdpass;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod interfaces;
pub(crate) mod lead;
pub(crate) mod mirror;
pub(crate) mod netopt;
pub(crate) mod poll;
pub(crate) mod processors;
pub(crate) mod random;
pub(crate) mod sharedring;
pub(crate) mod socket;
pub(crate) mod sync;
pub(crate) mod unix;
pub(crate) mod verbs;
