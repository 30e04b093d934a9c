//! The suite over tcp.
#![allow(clippy::unwrap_used)]

mod support;

suite!(support::Tcp);
