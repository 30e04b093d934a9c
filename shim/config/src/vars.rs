//! Names of the environment variables that farcall reads.
#![forbid(unsafe_code)]

/// Path of the configuration file to read instead of the usual ones.
pub const CONFIG: &str = "FARCALL_CONFIG";
/// `HOST:PORT` of the server; several, separated by commas, for a program with devices of them all.
pub const SERVER: &str = "FARCALL_SERVER";
/// Token that the server checks.
pub const TOKEN: &str = "FARCALL_TOKEN";
/// File that holds the token.
pub const TOKEN_FILE: &str = "FARCALL_TOKEN_FILE";
/// How many devices the program gets; `all`, a number, or one for each server: `2,1`.
pub const DEVICES: &str = "FARCALL_DEVICES";
/// Device memory that the program may use, per device; a size.
pub const MEMORY: &str = "FARCALL_MEMORY";
/// Share of each device's compute that the program gets: `0.25`, `25%`.
pub const SHARE: &str = "FARCALL_SHARE";
/// How long a waiting call polls before it sleeps, in microseconds.
pub const SPIN_US: &str = "FARCALL_SPIN_US";
/// Seconds that a session waits to be resumed after its connection was lost.
pub const GRACE_S: &str = "FARCALL_GRACE_S";
/// `auto`, `tcp`, `shm` or `verbs`.
pub const TRANSPORT: &str = "FARCALL_TRANSPORT";
/// Connections over the network are made with TLS, to servers that this trusts: `off`, a file of authorities' certificates, or fingerprints.
pub const TLS: &str = "FARCALL_TLS";
/// Local address or network interface that connections leave from.
pub const BIND: &str = "FARCALL_BIND";
/// DSCP of the packets, by number or name.
pub const DSCP: &str = "FARCALL_DSCP";
/// How long a system call polls the network card, in microseconds.
pub const BUSY_POLL_US: &str = "FARCALL_BUSY_POLL_US";
/// Bound on opening a session, in milliseconds.
pub const CONNECT_TIMEOUT_MS: &str = "FARCALL_CONNECT_TIMEOUT_MS";
/// RDMA device.
pub const RDMA_DEVICE: &str = "FARCALL_RDMA_DEVICE";
/// Entry of the RDMA port's GID table.
pub const GID_INDEX: &str = "FARCALL_GID_INDEX";
/// `auto`, `completions` or `memory`.
pub const RDMA_MODE: &str = "FARCALL_RDMA_MODE";
/// Delay added to every round trip, in microseconds: to try a program over a longer way.
pub const ADDED_RTT_US: &str = "FARCALL_ADDED_RTT_US";
/// Anything but `0`: each call that goes to a server waits until the server has it, for measurements.
pub const CALL_BY_CALL: &str = "FARCALL_CALL_BY_CALL";
/// `off`, `error`, `warn`, `info`, `debug` or `trace`.
pub const LOG: &str = "FARCALL_LOG";
/// File that gets the statistics, as JSON, at exit.
pub const STATS: &str = "FARCALL_STATS";
/// File that gets one JSON line per driver call; `-` is stderr.
pub const TRACE: &str = "FARCALL_TRACE";
/// `1`: trace the steps of each call as well.
pub const TRACE_STEPS: &str = "FARCALL_TRACE_STEPS";
/// File that gets the record of the driver calls, at exit.
pub const RECORD: &str = "FARCALL_RECORD";
/// Directory that holds the shim libraries; read by the `farcall` command.
pub const LIB_DIR: &str = "FARCALL_LIB_DIR";
