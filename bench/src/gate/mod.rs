//! The regression gate: instruction counts of the hot paths under callgrind, which no other load on the machine
//! moves, against budgets that are kept in `bench/budgets.toml`.
//!
//! - [`paths`] says what is counted, [`work`] does it within this process;
//! - [`callgrind`] runs valgrind and reads what it writes;
//! - [`steps`] plays recorded programs and tells their round trips and bytes, which are exact;
//! - [`budget`] compares, and says which function grew, [`only`] which paths and steps are wanted;
//! - [`toolchain`] is what counts depend on besides the sources;
//! - [`compare`] is for what counts cannot show: two programs in turns, and whether they differ.
#![forbid(unsafe_code)]

pub mod budget;
pub mod callgrind;
pub mod compare;
pub mod only;
pub mod paths;
pub mod steps;
pub mod toolchain;
pub mod work;
