//! What can go wrong with RDMA, as types.
#![forbid(unsafe_code)]

use std::io;

use crate::sys::verbs::abi;

/// Why RDMA cannot be used, or ceased to work. A session that ends with
/// [`crate::CloseReason::Lost`] over verbs has one of these inside its error
/// ([`VerbsError::of`]).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VerbsError {
    /// There is no libibverbs on this machine.
    #[error(
        "libibverbs.so.1 cannot be loaded: {0} (Debian, Ubuntu: apt-get install libibverbs1 ibverbs-providers)"
    )]
    Library(String),
    /// The library lacks a function that every release since 2007 has.
    #[error("libibverbs.so.1 has no {0}")]
    Symbol(&'static str),
    /// The machine has no RDMA device, or its driver is not loaded.
    #[error("this machine has no RDMA device")]
    NoDevice,
    /// The configured device does not exist.
    #[error("there is no RDMA device called {0}")]
    UnknownDevice(String),
    /// The configured device has no active port with a usable GID.
    #[error("no active port of {0} has the GID that was asked for")]
    NoGid(String),
    /// No active port is in the network of the peer.
    #[error("no RDMA device is on the path to {0}")]
    NoPath(String),
    /// The limit of locked memory is too low.
    #[error(
        "{bytes} bytes cannot be registered: raise the limit of locked memory (ulimit -l, now {})",
        memory_lock_limit()
    )]
    MemoryLock {
        /// What was to be registered.
        bytes: usize,
    },
    /// A verb failed.
    #[error("{verb}: {}", io::Error::from_raw_os_error(*errno))]
    Verb {
        /// Its name.
        verb: &'static str,
        /// The system's number.
        errno: i32,
    },
    /// The peer did not acknowledge in time, however often it was sent to.
    #[error("the peer does not answer any more (retries exceeded)")]
    RetryExceeded,
    /// The peer did not post receives in time.
    #[error("the peer takes nothing more (RNR retries exceeded)")]
    ReceiverNotReady,
    /// The peer's device refused an address or key.
    #[error("the peer's memory cannot be written (remote access error)")]
    RemoteAccess,
    /// Work was thrown away because the connection broke before.
    #[error("the queue pair is in the error state")]
    Flushed,
    /// Another failed completion.
    #[error("work completed with status {status} (vendor {vendor:#x})")]
    Completion {
        /// `enum ibv_wc_status`.
        status: u32,
        /// The device's own code.
        vendor: u32,
    },
    /// The device reported an error of the queue pair or its completion queue.
    #[error("the device gave the queue pair up")]
    QueueFatal,
    /// The port has no link any more.
    #[error("the port of {0} is down")]
    PortDown(String),
    /// The device is gone, or needs a reset.
    #[error("the device {0} is gone")]
    DeviceRemoved(String),
    /// The peer's message, credit or offer cannot be.
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    /// The peer cannot or will not; its own words.
    #[error("the server says: {0}")]
    Refused(String),
    /// The system refused memory or descriptors.
    #[error("{0}")]
    System(String),
}

impl VerbsError {
    /// The RDMA error behind the error of a lost connection.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    pub(crate) fn from_status(status: u32, vendor: u32) -> Self {
        match status {
            abi::WC_RETRY_EXC_ERR => Self::RetryExceeded,
            abi::WC_RNR_RETRY_EXC_ERR => Self::ReceiverNotReady,
            abi::WC_REM_ACCESS_ERR => Self::RemoteAccess,
            abi::WC_WR_FLUSH_ERR => Self::Flushed,
            status => Self::Completion { status, vendor },
        }
    }
}

impl From<VerbsError> for io::Error {
    fn from(error: VerbsError) -> Self {
        let kind = match error {
            VerbsError::Protocol(_) => io::ErrorKind::InvalidData,
            VerbsError::RetryExceeded => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, error)
    }
}

/// As `ulimit -l` shows it.
fn memory_lock_limit() -> String {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits
        .lines()
        .find_map(|l| l.strip_prefix("Max locked memory"));
    match line.and_then(|rest| rest.split_whitespace().next()) {
        Some("unlimited") | None => "unlimited".to_owned(),
        Some(bytes) => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_completion_status_has_its_error_and_survives_in_an_io_error() {
        for (status, expected) in [
            (12, VerbsError::RetryExceeded),
            (13, VerbsError::ReceiverNotReady),
            (10, VerbsError::RemoteAccess),
            (5, VerbsError::Flushed),
            (
                4,
                VerbsError::Completion {
                    status: 4,
                    vendor: 7,
                },
            ),
        ] {
            let error = io::Error::from(VerbsError::from_status(status, 7));
            assert_eq!(VerbsError::of(&error).unwrap(), &expected);
        }
        assert!(VerbsError::of(&io::ErrorKind::TimedOut.into()).is_none());
    }
}
