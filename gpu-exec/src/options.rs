//! What a server is told at its start.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use farcall_transport::{RdmaOptions, SocketOptions, TlsServer};

use crate::Admission;

/// Which device the administrator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// A GPU; an error if there is none. Never `soft` by itself.
    #[default]
    Auto,
    /// The real driver.
    Cuda,
    /// The CPU device that runs PTX.
    Soft,
    /// Memory works, kernels do nothing.
    Null,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cuda" => Ok(Self::Cuda),
            "soft" => Ok(Self::Soft),
            "null" => Ok(Self::Null),
            other => Err(format!(
                "no device `{other}`: it is one of auto, cuda, soft, null"
            )),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Cuda => "cuda",
            Self::Soft => "soft",
            Self::Null => "null",
        })
    }
}

/// Which device serves. The numbers travel in `session_welcome`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u32)]
pub enum DeviceKind {
    /// The real driver.
    Cuda = 1,
    /// The CPU device that runs PTX.
    Soft = 2,
    /// Memory works, kernels do nothing.
    Null = 3,
}

impl DeviceKind {
    /// From its number in `session_welcome`.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Cuda, Self::Soft, Self::Null]
            .into_iter()
            .find(|kind| *kind as u32 == number)
    }
}

impl fmt::Display for DeviceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cuda => "cuda",
            Self::Soft => "soft",
            Self::Null => "null",
        })
    }
}

/// Something that goes wrong on purpose; the `soft` device alone does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Device 0 is lost after so many kernels.
    GpuLostAfter(u64),
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix("gpu-lost-after=");
        match number.and_then(|number| number.parse().ok()) {
            Some(kernels) if kernels > 0 => Ok(Self::GpuLostAfter(kernels)),
            _ => Err(format!(
                "{text:?} is not gpu-lost-after=N, N kernels, at least 1"
            )),
        }
    }
}

/// What a server offers, to whom, and how much of it.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// `host:port`; port 0 takes any free one.
    pub listen: String,
    /// Path of a further socket, for clients on this host and in containers that have it mounted:
    /// they get shared memory.
    pub socket_path: Option<PathBuf>,
    /// What TCP sockets are told.
    pub socket: SocketOptions,
    /// Which RDMA device and how; None: clients get no RDMA.
    pub rdma: Option<RdmaOptions>,
    /// Clients over the network come with TLS.
    pub tls: Option<TlsServer>,
    /// Which device serves.
    pub device: DeviceChoice,
    /// How many devices: all GPUs, or one soft or null device, where it is `None`.
    pub device_count: Option<u32>,
    /// Memory of each soft or null device in bytes. `None`: half of the host's memory, shared evenly.
    pub memory_bytes: Option<u64>,
    /// Memory of this host that all sessions together may have pinned (`cuMemHostAlloc`), besides what copies pass through; `None`: half of it.
    pub pinned_bytes: Option<u64>,
    /// Secret that clients must show.
    pub token: Option<String>,
    /// Decides about clients instead of `token`.
    pub admission: Option<Arc<dyn Admission>>,
    /// Sessions at once.
    pub sessions_max: u32,
    /// Sessions at once that one lease may have, so that no client of a pool takes all of them.
    pub lease_sessions_max: u32,
    /// How long a session whose connection is lost is kept, with all that it has, for its client to come back.
    /// Zero: it ends with its connection.
    pub grace: Duration,
    /// The same where the client's system has closed the connection, as it does when the client is killed;
    /// a client that lives is back at once.
    pub grace_closed: Duration,
    /// Whether executors open and take links to other servers, for copies that do not pass through the client.
    pub peer_links: bool,
    /// After how long a call into the CUDA driver that has nothing to wait for counts as hanging: its session is ended and
    /// the GPU checked. Compilers get twenty times as long; launches and copies may wait for kernels for ever.
    pub driver_patience: Duration,
    /// Executors that stand ready for the next session.
    pub warm_executors: u32,
    /// Name that clients see; the host's name by default.
    pub server_name: String,
    /// Where modules are kept across sessions. `None`: `$XDG_CACHE_HOME/farcall/modules`, else below
    /// `$HOME/.cache`, else a directory of this server's own.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of modules kept; the least recently used go first. 0 keeps none.
    pub cache_bytes_max: u64,
    /// Whether the device time of all sessions is measured, for [`crate::Sessions::usage`]; else only where they share.
    pub measure: bool,
    /// What shall go wrong, to see what follows.
    pub fault: Option<Fault>,
    /// Whether executors may make any system call: for debuggers and valgrind, which need some that no session does.
    pub is_unconfined: bool,
    /// Program and arguments that start an executor; `None`: this program with
    /// [`crate::EXECUTOR_COMMAND`].
    pub executor: Option<Vec<OsString>>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:7474".to_owned(),
            socket_path: None,
            socket: SocketOptions::default(),
            rdma: Some(RdmaOptions::default()),
            tls: None,
            device: DeviceChoice::Auto,
            device_count: None,
            memory_bytes: None,
            pinned_bytes: None,
            token: None,
            admission: None,
            sessions_max: 64,
            lease_sessions_max: 48,
            grace: Duration::from_secs(60),
            grace_closed: Duration::from_millis(700),
            peer_links: true,
            driver_patience: Duration::from_secs(30),
            warm_executors: 2,
            server_name: host_name(),
            cache_dir: None,
            cache_bytes_max: 2 << 30,
            measure: false,
            fault: None,
            is_unconfined: false,
            executor: None,
        }
    }
}

fn host_name() -> String {
    match std::fs::read_to_string("/proc/sys/kernel/hostname") {
        Ok(name) if !name.trim().is_empty() => name.trim().to_owned(),
        _ => "farcall".to_owned(),
    }
}
