//! Who may open a session, where one token for all is not enough.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use super::inbox::{Event, Inbox};
use super::usage::ServerUsage;

/// Decides about each client. Called on the accepting thread: must not block.
pub trait Admission: fmt::Debug + Send + Sync {
    /// What a client may have that shows `shown` and comes from `peer` (`None`: from this host).
    ///
    /// # Errors
    /// Why it may not come in, for the client to read.
    fn admit(&self, shown: Option<&[u8]>, peer: Option<SocketAddr>) -> Result<Admitted, String>;
}

/// What a client may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admitted {
    /// Sessions of one lease share its memory, and end together; not 0.
    pub lease: u64,
    /// Name of the client, for the log.
    pub client: String,
    /// Devices, in the order of the program's ordinals.
    pub devices: Vec<AdmittedDevice>,
}

/// A part of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmittedDevice {
    /// `GPU-xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx`.
    pub uuid: String,
    /// Memory that all sessions of the lease may have together.
    pub memory_bytes: u64,
    /// Share of the device's compute, in thousandths.
    pub share_permille: u16,
}

/// What a server does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Activity {
    /// Sessions that are open.
    pub sessions: u32,
    /// Allocated memory, by device.
    pub used_bytes: Vec<u64>,
    /// Leases with sessions.
    pub leases: Vec<LeaseActivity>,
}

/// How a lease is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseActivity {
    /// Which.
    pub lease: u64,
    /// Sessions that are open.
    pub sessions: u32,
    /// Since any of them did something; 0 while one waits for its device.
    pub idle: Duration,
    /// Device memory that its sessions have allocated.
    pub used_bytes: u64,
}

/// A running server's sessions, from any thread.
#[derive(Clone)]
pub struct Sessions {
    pub(super) inbox: Arc<Inbox>,
}

impl Sessions {
    /// What the server does now. Blocks for `timeout` at most; `None`: it does not run.
    #[must_use]
    pub fn activity(&self, timeout: Duration) -> Option<Activity> {
        let (answer, answered) = sync_channel(1);
        self.inbox.send(Event::Activity(answer));
        answered.recv_timeout(timeout).ok()
    }

    /// What the devices and the sessions have had. Blocks for `timeout` at most; `None`: it does not run.
    #[must_use]
    pub fn usage(&self, timeout: Duration) -> Option<ServerUsage> {
        let (answer, answered) = sync_channel(1);
        self.inbox.send(Event::Usage(answer));
        answered.recv_timeout(timeout).ok()
    }

    /// Ends all sessions of a lease, tells their clients why, and opens none for it any more. What
    /// [`Sessions::activity`] says afterwards takes this into account. Does not block.
    pub fn end_lease(&self, lease: u64, reason: &str) {
        self.inbox.send(Event::EndLease(lease, reason.to_owned()));
    }
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

/// Where an answer about the activity goes.
pub(crate) type ActivityAnswer = SyncSender<Activity>;
