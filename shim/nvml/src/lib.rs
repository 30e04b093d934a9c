//! `libnvidia-ml.so.1`: what programs ask about devices before and beside using them, answered from
//! the server's inventory.
//!
//! - `exports`, `events`, `processes` and `internal` have the C functions, `call` what surrounds them, `ptr` their pointers; every other
//!   module forbids `unsafe`;
//! - `layout` has the structures of nvml.h;
//! - `library` is what `nvmlInit` makes: the configuration and the newest inventory;
//! - `inventory` asks the server, `device` is one of its answers, `status` the result codes.
//!
//! There is no connection between calls: each question opens one and closes it, so that a fork
//! needs no care. Names, numbers and addresses are asked once; memory figures at most once a second.
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod call;
mod device;
mod events;
mod exports;
mod internal;
mod inventory;
mod layout;
mod library;
mod processes;
mod ptr;
mod status;
mod version;
