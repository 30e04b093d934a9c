//! What the call path costs, each figure beside its limit, measured in one run.
//!
//! - [`driver`] calls the exported functions of the built `libcuda.so.1`, as a program would;
//! - [`raw`] is the limit of a blocking call: a spinning TCP ping-pong;
//! - [`clock`] is the time of a thread, [`pin`] its core; [`spread`] the distribution of samples;
//! - [`measure`] makes the figures; [`report`] prints them.
//!
//! The criterion benches and the command `farcall-bench` share all of it. Like the tests' helpers, what cannot
//! do its work panics and says why.

pub mod clock;
pub mod driver;
pub mod measure;
pub mod pin;
pub mod raw;
pub mod report;
pub mod spread;
