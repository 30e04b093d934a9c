//! Shares of a device's compute: who may launch, decided by measured device time.
//!
//! [`board`] is memory that the supervisor makes and its executors map: per device one token and, per session, a weight and
//! the device time that it has had. Who has the token launches; the others wait until they get it. [`gate`] is an
//! executor's way to it. No client's process maps any of it.
//!
//! The token goes to the session that is furthest behind: each has a virtual time, its device time divided by
//! its weight, as in stride scheduling (Waldspurger and Weihl, 1995) and start-time fair queueing (Goyal, Vin and Cheng,
//! 1996). A session that does not launch gives the token back at once, so what it does not use is used by others,
//! and it is owed no more than [`board::CREDIT_NS`] for it.
//!
//! Where no session of a device has less than the whole of it, or only one session has it, nobody takes turns: a
//! launch then costs one load.
#![forbid(unsafe_code)]

pub(crate) mod board;
pub(crate) mod gate;

#[cfg(test)]
mod simulation;
