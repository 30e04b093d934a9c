//! The supervisor: listening socket, authentication, limits, executors.

use std::net::SocketAddr;

use crate::{ServeError, ServeOptions};

/// Serves until SIGTERM or SIGINT. Calls `on_ready` once with the bound address. Blocks.
///
/// Blocks the two signals in the calling thread: call it before other threads are started.
///
/// # Errors
/// No such device, address taken, no executor can be started.
pub fn serve(options: &ServeOptions, on_ready: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    let server = Server::bind(options)?;
    on_ready(server.local_addr());
    server.run()
}

/// A server whose signals are somebody else's business.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
}

/// Ends a [`Server`] from any thread.
#[derive(Clone, Debug)]
pub struct Stopper {}

impl Stopper {
    /// Makes [`Server::run`] return once its executors are gone. Does not block.
    pub fn stop(&self) {}
}

impl Server {
    /// Opens devices and the listening socket and starts the first executors.
    ///
    /// # Errors
    /// No such device, address taken, no executor can be started.
    pub fn bind(options: &ServeOptions) -> Result<Self, ServeError> {
        Err(ServeError::Option(format!("device {}: the server is not in place yet", options.device)))
    }

    /// The bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Ends this server.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {}
    }

    /// Serves until stopped. Blocks.
    ///
    /// # Errors
    /// The listening socket failed for good.
    pub fn run(self) -> Result<(), ServeError> {
        Ok(())
    }
}
