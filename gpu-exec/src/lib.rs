//! Server side: a supervisor that owns the listening socket, one executor process per client
//! process, and the devices that executors drive.
//!
//! # Quick start
//! [`serve`] runs a server until it is told to stop. It starts executors by running its own
//! program again with the argument [`EXECUTOR_COMMAND`]: a program that calls [`serve`] must call
//! [`executor_main`] when it finds that argument, before it does anything else.
//! [`Inventory::fetch`] asks a server for its devices.
//!
//! # Processes
//! The supervisor authenticates a client, checks what it asks for, and hands its connection to an
//! executor that stands ready. From then on bytes go between client and executor alone. What an
//! executor does to itself (an illegal address, a crash) reaches no other session.
mod cache;
mod control;
mod device;
mod error;
mod executor;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod inventory;
mod ledger;
mod limits;
mod options;
mod share;
mod supervisor;
mod sys;

pub use error::{FetchError, ServeError};
pub use executor::executor_main;
pub use inventory::{DeviceUsage, Inventory};
pub use options::{DeviceChoice, DeviceKind, Fault, ServeOptions};
pub use supervisor::usage::{DeviceNow, LeaseTotals, ServerUsage, SessionNow, SessionPart};
pub use supervisor::{
    Activity, Admission, Admitted, AdmittedDevice, LeaseActivity, Server, Sessions, Signals,
    Stopper, serve,
};

/// First argument of a program that shall be an executor.
pub const EXECUTOR_COMMAND: &str = "__executor";
