//! What the call path costs, each figure beside its limit, measured in one run.
//!
//! - [`driver`] calls the exported functions of the built `libcuda.so.1`, as a program would;
//! - [`net`] measures the transport, [`raw`] the limits: bare TCP, bare shared memory, `memcpy`;
//! - [`clock`] is the time of a thread, [`pin`] its core; [`spread`] the distribution of samples, [`latency`] that
//!   of latencies;
//! - [`gate`] counts the instructions of the hot paths against budgets, and compares builds;
//! - [`measure`] makes the main job's figures; [`figure`] prints them, [`run`] keeps them with commit and [`machine`],
//!   [`page`] makes the report of them;
//! - `commit` is what this program was built from, `environment` what counted programs see;
//! - [`peers`] runs other projects' tools beside ours; `rdma` says on which device.
//!
//! The criterion benches and the command `farcall-bench` share all of it. Like the tests' helpers, what cannot
//! do its work panics and says why.

pub mod clock;
mod commit;
pub mod driver;
mod environment;
pub mod figure;
pub mod gate;
pub mod latency;
pub mod machine;
pub mod measure;
pub mod net;
pub mod page;
pub mod peers;
pub mod pin;
pub mod raw;
mod rdma;
pub mod run;
mod serving;
pub mod spread;
