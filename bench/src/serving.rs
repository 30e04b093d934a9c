//! A `null` server in this process.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::thread;

use farcall_gpu_exec::{DeviceChoice, ServeOptions, Server};

/// How executors are started.
pub(crate) struct Executors {
    pub(crate) command: Vec<OsString>,
    /// Whether they may make any system call: valgrind knows nothing of filters.
    pub(crate) is_unconfined: bool,
}

/// Runs `work` with a `null` server whose executors are started like that; ends the server before returning.
pub(crate) fn serving<T>(
    executors: Executors,
    work: impl FnOnce(&str) -> Result<T, String>,
) -> Result<T, String> {
    let options = ServeOptions {
        listen: "127.0.0.1:0".to_owned(),
        device: DeviceChoice::Null,
        warm_executors: 1,
        cache_bytes_max: 0,
        executor: Some(executors.command),
        is_unconfined: executors.is_unconfined,
        ..ServeOptions::default()
    };
    let server = Server::bind(&options).map_err(|error| error.to_string())?;
    let (stopper, address) = (server.stopper(), server.local_addr().to_string());
    // Started before: a client that comes early waits in the listener's queue.
    let running = thread::spawn(move || server.run());
    let done = work(&address);
    stopper.stop();
    let ended = running
        .join()
        .map_err(|_| "the server panicked".to_owned())?;
    ended.map_err(|error| error.to_string())?;
    done
}
