//! The suite over sim.
#![allow(clippy::unwrap_used)]

mod support;

suite!(support::Sim);
