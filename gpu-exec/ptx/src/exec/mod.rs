//! Execution: warps of 32 lanes over pre-decoded code.
// Registers hold bits: narrowing and reinterpreting them is what execution does. Lane, warp and element numbers are
// far below the limits of their types.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap
)]

mod access;
pub(crate) mod alu;
mod atom;
mod block;
pub(crate) mod carry;
pub(crate) mod code;
pub(crate) mod engine;
mod heap;
mod job;
mod matrix;
mod mem;
pub(crate) mod num;
mod printf;
pub(crate) mod regs;
mod special;
mod sync;
mod texture;
mod warp;
