//! What the two sides can choose, and the limits that they negotiate.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crate::error::CloseReason;
use crate::stream::tls::{TlsClient, TlsServer};

/// Which backend a client takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TransportChoice {
    /// The best that both sides have.
    #[default]
    Auto,
    /// TCP only.
    Tcp,
    /// Shared memory only: client and server on one host.
    Shm,
    /// RDMA only.
    Verbs,
    /// RDMA if both sides have it, else TCP, on the one connection that is opened: no probe, no shared memory.
    Network,
}

/// How data are found to have arrived over RDMA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RdmaMode {
    /// [`RdmaMode::Memory`] where the device grants no inline data (as VMware's PVRDMA, on which
    /// each empty poll of a completion queue leaves the virtual machine), else
    /// [`RdmaMode::Completions`]. The session takes `Memory` if either side does.
    #[default]
    Auto,
    /// Completions are polled: for hardware.
    Completions,
    /// Memory is polled, in lines that prove themselves whole; no inline data.
    Memory,
}

/// The name of a device (`rxe0`, `mlx5_0`), at most 63 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceName {
    bytes: [u8; Self::BYTES_MAX],
    len: u8,
}

impl DeviceName {
    /// Longest name, as the verbs have it.
    pub const BYTES_MAX: usize = 63;

    /// None when it is empty, too long, or no name of a device: letters, digits, `_`, `-`, `.`.
    #[must_use]
    pub fn new(name: &str) -> Option<Self> {
        let good = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if name.is_empty() || name.len() > Self::BYTES_MAX || !name.chars().all(good) {
            return None;
        }
        let mut bytes = [0; Self::BYTES_MAX];
        bytes[..name.len()].copy_from_slice(name.as_bytes());
        Some(Self {
            bytes,
            len: u8::try_from(name.len()).ok()?,
        })
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.bytes[..usize::from(self.len)]).unwrap_or_default()
    }
}

impl std::fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a side wants of RDMA. Without a wish: the device and the RoCE v2 GID of the address
/// family and network of the peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RdmaOptions {
    /// This device only.
    pub device: Option<DeviceName>,
    /// This entry of the port's GID table only.
    pub gid_index: Option<u8>,
    /// How to look for arrivals.
    pub mode: RdmaMode,
}

/// Sizes of one direction, announced in the handshake. The smaller `frame_bytes_max` of both
/// sides holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Largest payload of one frame, and so of one record. A multiple of 8.
    pub frame_bytes_max: u32,
    /// Memory of the send ring: what may be unacknowledged at once. A power of two of at
    /// least 64 KiB and at least twice `frame_bytes_max`.
    pub ring_bytes: u32,
    /// What the peer may send ahead of this side's handler. At least twice
    /// `frame_bytes_max`.
    pub window_bytes: u32,
}

impl Limits {
    /// Checks that a session can work with these sizes.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.frame_bytes_max >= 64
            && self.frame_bytes_max.is_multiple_of(8)
            && self.frame_bytes_max <= 16 << 20
            && self.ring_bytes.is_power_of_two()
            && (1 << 16..=1 << 30).contains(&self.ring_bytes)
            && u64::from(self.ring_bytes) >= 2 * u64::from(self.frame_bytes_max)
            && self.window_bytes <= 1 << 30
            && u64::from(self.window_bytes) >= 2 * u64::from(self.frame_bytes_max)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            frame_bytes_max: 256 << 10,
            ring_bytes: 1 << 20,
            window_bytes: 1 << 20,
        }
    }
}

/// How an endpoint waits and gathers; the same on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Tuning {
    /// How long a wait polls before it sleeps. Adapted: up to five times longer while that
    /// spares sleeps, next to nothing while polling turns out to be in vain.
    pub spin: Duration,
    /// How long a record may gather while something is in flight; five times, and in the long run twenty times
    /// as long behind a program that fills batches by itself.
    pub gather: Duration,
    /// Gathered bytes that leave at once.
    pub batch_bytes: u32,
    /// Delay added to every round trip, for tests and measurements.
    pub added_rtt: Duration,
    /// For measurements: whoever appends a record waits until the peer has it, as if each were a call of its own.
    pub call_by_call: bool,
    /// How long [`crate::Endpoint::close`] waits for the peer to acknowledge what is pending.
    pub close_timeout: Duration,
    /// How long a session outlives its connection, so that it can be resumed on another one: the client
    /// tries to for as long, the server keeps what the session has. Zero: it ends with its connection.
    pub grace: Duration,
    /// Server: the same where the peer's system has closed the connection (FIN or RST) instead of falling
    /// silent, if that is shorter. So ends the connection of a program that was killed, whose memory is to be
    /// freed soon; a client that lives sees the same end and is back within milliseconds.
    pub grace_closed: Duration,
    /// After how long without a word this side says one (a ping). A peer that is silent for
    /// [`SILENCE_KEEPALIVES`] times as long is given up as lost. Zero: never.
    pub keepalive: Duration,
}

/// How many times [`Tuning::keepalive`] a peer may be silent. With the default of 0.2 s that makes 2.6 s. A peer that is
/// stopped may have said its last word two keepalives before, as it looks that often whether to say one: a pause of
/// 2 s makes 2.4 s of silence at most, and alarms nobody. A dead one is noticed a keepalive (the last look that heard
/// it) and a quarter (the steps of the looks in doubt) later than that: after 2.85 s at most, less than 3 s.
pub const SILENCE_KEEPALIVES: u32 = 13;

impl Tuning {
    /// How long a server keeps a session whose connection ended so.
    pub(crate) fn grace_after(&self, why: &CloseReason) -> Duration {
        if why.is_closed() {
            self.grace.min(self.grace_closed)
        } else {
            self.grace
        }
    }
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            spin: Duration::from_micros(60),
            gather: Duration::from_micros(10),
            batch_bytes: 32 << 10,
            added_rtt: Duration::ZERO,
            call_by_call: false,
            close_timeout: Duration::from_secs(1),
            grace: Duration::ZERO,
            grace_closed: Duration::from_millis(700),
            keepalive: Duration::from_millis(200),
        }
    }
}

/// Where the connections of this side begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalEnd {
    /// An address of this host.
    Address(IpAddr),
    /// A network interface, by name: what routing says is not asked.
    Interface(String),
}

/// What the TCP sockets of one side are told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// Differentiated services code point of every packet sent, 0 to 63 (RFC 2474).
    pub dscp: Option<u8>,
    /// Where connections begin; the system's routing decides where it is `None`. A listener
    /// heeds an interface only: its address is its own.
    pub local: Option<LocalEnd>,
    /// How long a system call polls the network card's queue, in microseconds (`SO_BUSY_POLL`).
    /// A system that does not allow it is no error: it is logged.
    pub busy_poll_us: Option<u32>,
    /// Who opens connections instead of this process, which may not.
    pub dialer: Option<Dialer>,
}

/// Opens TCP connections for a process that may not do so itself.
#[derive(Clone)]
pub struct Dialer(Arc<Dial>);

type Dial = dyn Fn(SocketAddr) -> io::Result<OwnedFd> + Send + Sync;

impl Dialer {
    /// `dial` blocks until it has a connected socket, or a reason why there is none.
    pub fn new(dial: impl Fn(SocketAddr) -> io::Result<OwnedFd> + Send + Sync + 'static) -> Self {
        Self(Arc::new(dial))
    }

    pub(crate) fn dial(&self, address: SocketAddr) -> io::Result<OwnedFd> {
        (self.0)(address)
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").finish_non_exhaustive()
    }
}

impl PartialEq for Dialer {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Dialer {}

impl SocketOptions {
    /// Checks that the numbers are possible.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        self.dscp.is_none_or(|dscp| dscp < 64)
    }
}

/// What a client needs to open a session.
#[derive(Clone, Debug)]
pub struct ConnectOptions {
    /// `host:port`, IPv4, IPv6 (`[::1]:7474`) or a name; or `unix:PATH`, for shared memory
    /// with a server on this host.
    pub server: String,
    /// Secret that the server checks.
    pub token: Option<String>,
    /// Opaque hello of the application, at most [`crate::PAYLOAD_BYTES_MAX`].
    pub payload: Vec<u8>,
    /// Bound on the whole of [`crate::connect`].
    pub connect_timeout: Duration,
    /// Which backend.
    pub transport: TransportChoice,
    /// Sizes.
    pub limits: Limits,
    /// Waiting and gathering.
    pub tuning: Tuning,
    /// What its TCP sockets are told.
    pub socket: SocketOptions,
    /// Over RDMA: which device and how. None: never over RDMA.
    pub rdma: Option<RdmaOptions>,
    /// Over the network with TLS, which RDMA cannot have, or not at all. Shared memory leaves this host never, and needs none.
    pub tls: Option<TlsClient>,
    /// The newest version of the protocol to speak, from [`crate::PROTOCOL_VERSION_OLDEST`] on. With an older server it is that
    /// one's.
    pub protocol: u16,
}

impl ConnectOptions {
    /// Defaults for a server.
    #[must_use]
    pub fn new(server: impl Into<String>) -> Self {
        Self {
            server: server.into(),
            token: None,
            payload: Vec::new(),
            connect_timeout: Duration::from_secs(5),
            transport: TransportChoice::default(),
            limits: Limits::default(),
            tuning: Tuning::default(),
            socket: SocketOptions::default(),
            rdma: Some(RdmaOptions::default()),
            tls: None,
            protocol: crate::PROTOCOL_VERSION,
        }
    }
}

/// What a listener allows.
#[derive(Clone, Debug)]
pub struct ListenOptions {
    /// A client that has not sent its hello by then is dropped.
    pub handshake_timeout: Duration,
    /// Connections that may be in their handshake at once; the oldest is dropped for a new one.
    pub pending_max: usize,
    /// Sizes offered to clients.
    pub limits: Limits,
    /// Whether clients on this host get shared memory instead of TCP.
    pub shm: bool,
    /// What TCP sockets are told.
    pub socket: SocketOptions,
    /// Over RDMA: which device and how. None: clients get no RDMA.
    pub rdma: Option<RdmaOptions>,
    /// Clients over the network come with TLS.
    pub tls: Option<TlsServer>,
    /// The newest version of the protocol to speak. With an older client it is that one's.
    pub protocol: u16,
}

impl Default for ListenOptions {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            pending_max: 256,
            limits: Limits::default(),
            shm: true,
            socket: SocketOptions::default(),
            rdma: Some(RdmaOptions::default()),
            tls: None,
            protocol: crate::PROTOCOL_VERSION,
        }
    }
}
