//! What can be typed. The texts here are the help, the man pages and the completions.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum, ValueHint};
use farcall_config::{
    SizeError, parse_added_rtt, parse_busy_poll, parse_devices, parse_dscp, parse_gid_index,
    parse_local_end, parse_rdma_device, parse_server, parse_servers, parse_share, parse_size, vars,
};
use farcall_gpu_exec::Fault;
use farcall_transport::{DeviceName, LocalEnd};

use crate::pool::args::{
    LeasesArgs, MemberArgs, PoolArgs, PoolCommand, ReleaseArgs, RequestArgs, ShowArgs, WantArgs,
};
use crate::pool::lease::LeaseArgs;
use crate::top::TopArgs;

/// Runs unmodified CUDA programs on machines without a GPU.
#[derive(Debug, Parser)]
#[command(name = "farcall", version, arg_required_else_help = true, after_help = EXAMPLES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  On the machine with the GPU:
    farcall serve --listen 0.0.0.0:7474 --token-file /etc/farcall/token
  On the machine without:
    farcall devices --server gpu1:7474
    farcall run --server gpu1:7474 -n 1 -m 8GiB -- python train.py
  Without any GPU, to try it:
    farcall serve --device soft &
    farcall run -- ./vecadd
  With many servers: farcall pool --help

A server named in client.toml or FARCALL_SERVER need not be repeated with --server.";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve this machine's devices to programs elsewhere
    Serve(ServeArgs),
    /// Run a CUDA program on a server's devices
    Run(RunArgs),
    /// List a server's devices and how they are used
    Devices(DevicesArgs),
    /// Show what the devices of a server or a pool do, and for whom
    Top(TopArgs),
    /// Measure the way to a server: round trips, bandwidth, what would make it better
    Netperf(NetperfArgs),
    /// Administer a pool of servers, or be one
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Keep GPUs of a pool for later commands
    Request(RequestArgs),
    /// Give leases of a pool back
    Release(ReleaseArgs),
    /// List leases of a pool
    Leases(LeasesArgs),
    /// List a pool's GPUs and what is free of them
    #[command(after_help = "\
Examples:
  farcall gpus --pool https://pool:7475 --pool-ca ca.pem
  farcall gpus --json | jq '[.[].share_free_permille] | add'")]
    Gpus(ShowArgs),
    /// Say whether this machine, a pool, its servers and the ways to them are well
    #[command(after_help = "\
Examples:
  farcall health                                 this machine
  farcall health --pool https://pool:7475 --pool-ca ca.pem
  farcall health --json | jq '.checks[] | select(.outcome != \"ok\")'

Exit code: 0 all is well, or could be better; 69 something does not work, or a server of the pool is down.")]
    Health(ShowArgs),
    /// List which CUDA driver calls are implemented
    Coverage(CoverageArgs),
    /// Run a program and show every driver call it makes
    Trace(TraceArgs),
    /// Describe to container engines what a container needs to use a server or a pool (CDI)
    Cdi(CdiArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man(ManArgs),
}

/// Which server, and how it is convinced.
#[derive(Args, Clone, Debug)]
pub(crate) struct ServerArgs {
    /// Server to use, or several for one program: gpu1,gpu2 [default: FARCALL_SERVER, else client.toml, else 127.0.0.1:7474]
    #[arg(long, value_name = "HOST:PORT,...", value_parser = parse_servers, value_hint = ValueHint::Hostname)]
    pub(crate) server: Option<String>,
    /// File that holds the token which the server asks for
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) network: NetworkArgs,
}

/// The way to the server. Each is checked here and handed on as it was typed, as the variable of the same name.
#[derive(Args, Clone, Debug)]
pub(crate) struct NetworkArgs {
    /// How calls travel: auto takes the best that both sides have [default: auto]
    #[arg(long, value_enum)]
    pub(crate) transport: Option<TransportName>,
    /// Over the network with TLS alone, to a server whose certificate an authority of FILE has signed, or has this fingerprint
    #[arg(long, value_name = "FILE|sha256:FINGERPRINT", value_parser = crate::tls::trust, value_hint = ValueHint::FilePath)]
    pub(crate) tls: Option<String>,
    /// RDMA device that verbs uses [default: the one on the path to the server]
    #[arg(long, value_name = "NAME", value_parser = checked(parse_rdma_device))]
    pub(crate) rdma_device: Option<String>,
    /// Entry of the RDMA port's GID table [default: RoCE v2, in the server's network]
    #[arg(long, value_name = "N", value_parser = checked(parse_gid_index))]
    pub(crate) gid_index: Option<String>,
    /// Address or network interface of this machine that connections leave from
    #[arg(long, value_name = "ADDRESS|NAME", value_parser = checked(parse_local_end))]
    pub(crate) bind: Option<String>,
    /// Mark packets with this DSCP: a number, or a name such as af31
    #[arg(long, value_name = "DSCP", value_parser = checked(parse_dscp))]
    pub(crate) dscp: Option<String>,
    /// Microseconds that a system call polls the network card
    #[arg(long, value_name = "US", value_parser = checked(parse_busy_poll))]
    pub(crate) busy_poll_us: Option<String>,
    /// Microseconds added to every round trip, to try a program over a longer way
    #[arg(long, value_name = "US", value_parser = checked(parse_added_rtt))]
    pub(crate) added_rtt_us: Option<String>,
}

/// What is typed must parse, and stays a text.
fn checked<T>(
    parse: impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static,
) -> impl Fn(&str) -> Result<String, String> + Clone + Send + Sync + 'static {
    move |text| parse(text).map(|_| text.to_owned())
}

impl NetworkArgs {
    /// What was typed, by the names of the variables that mean the same.
    pub(crate) fn variables(&self) -> [(&'static str, Option<&str>); 8] {
        [
            (vars::TRANSPORT, self.transport.map(TransportName::name)),
            (vars::TLS, self.tls.as_deref()),
            (vars::RDMA_DEVICE, self.rdma_device.as_deref()),
            (vars::GID_INDEX, self.gid_index.as_deref()),
            (vars::BIND, self.bind.as_deref()),
            (vars::DSCP, self.dscp.as_deref()),
            (vars::BUSY_POLL_US, self.busy_poll_us.as_deref()),
            (vars::ADDED_RTT_US, self.added_rtt_us.as_deref()),
        ]
    }
}

/// What the program gets of the server.
#[derive(Args, Clone, Debug)]
pub(crate) struct ShareArgs {
    /// How many devices the program gets: a number, or all; of several servers the first ones' first [default: all]
    #[arg(short = 'n', long = "devices", value_name = "N", value_parser = DeviceCount::parse)]
    pub(crate) devices: Option<DeviceCount>,
    /// Device memory that the program may use, per device: 8GiB, 512M [default: all]
    #[arg(short = 'm', long = "memory", value_name = "SIZE", value_parser = size)]
    pub(crate) memory_bytes: Option<u64>,
    /// Share of each device's compute, in thousandths.
    #[arg(skip)]
    pub(crate) share_permille: Option<u16>,
    /// Devices of each server.
    #[arg(skip)]
    pub(crate) each: Vec<u32>,
    /// Do not ask the server first whether it can be used
    #[arg(long)]
    pub(crate) no_check: bool,
}

/// How calls travel.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum TransportName {
    /// The best that both sides have
    Auto,
    /// RDMA
    Verbs,
    /// Shared memory: client and server on one host
    Shm,
    /// TCP
    Tcp,
}

impl TransportName {
    /// As the configuration spells it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Verbs => "verbs",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
        }
    }
}

/// A number of devices, or all of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DeviceCount(pub(crate) Option<u32>);

impl DeviceCount {
    fn parse(text: &str) -> Result<Self, String> {
        parse_devices(text).map(Self)
    }
}

fn size(text: &str) -> Result<u64, SizeError> {
    parse_size(text)
}

/// `farcall serve`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall serve                                  this machine's GPUs, for programs on this machine
  farcall serve --device soft                    no GPU: a CPU device that really runs PTX
  farcall serve --device soft --gpus 2 --memory 4GiB
  farcall serve --listen 0.0.0.0:7474 --token-file /etc/farcall/token
  farcall serve --pool https://pool:7475 --pool-ca ca.pem --join-token-file join.token

It serves until it gets SIGINT or SIGTERM. FARCALL_LOG=info says more about what goes on.")]
pub(crate) struct ServeArgs {
    /// Address to listen on; port 0 takes any free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:7474", value_parser = listen_address)]
    pub(crate) listen: String,
    /// Path of a further socket, for clients on this host or in containers that mount it: they get shared memory
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub(crate) socket: Option<PathBuf>,
    /// RDMA device for clients that come over verbs [default: the one on the path to each]
    #[arg(long, value_name = "NAME", value_parser = parse_rdma_device)]
    pub(crate) rdma_device: Option<DeviceName>,
    /// Entry of the RDMA port's GID table [default: RoCE v2, in the client's network]
    #[arg(long, value_name = "N", value_parser = parse_gid_index)]
    pub(crate) gid_index: Option<u8>,
    /// Take connections of this network interface only
    #[arg(long, value_name = "NAME", value_parser = interface)]
    pub(crate) interface: Option<String>,
    /// Mark packets with this DSCP: a number, or a name such as af31
    #[arg(long, value_name = "DSCP", value_parser = parse_dscp)]
    pub(crate) dscp: Option<u8>,
    /// Microseconds that a system call polls the network card
    #[arg(long, value_name = "US", value_parser = parse_busy_poll)]
    pub(crate) busy_poll_us: Option<u32>,
    /// Which device serves
    #[arg(long, value_enum, default_value_t = Device::Auto)]
    pub(crate) device: Device,
    /// How many devices: a number, or all [default: all GPUs, or one soft or null device]
    #[arg(long, value_name = "N", value_parser = DeviceCount::parse)]
    pub(crate) gpus: Option<DeviceCount>,
    /// Memory of each soft or null device [default: half of the host's, shared evenly]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// File that holds the token which clients must show
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) token_file: Option<PathBuf>,
    /// How much memory of this host all sessions together may have pinned (cuMemHostAlloc), besides what copies pass through [default: half of it]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) pinned: Option<u64>,
    /// Name that clients see [default: the host's name]
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// How many sessions (client processes) there may be at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_sessions: Option<u32>,
    /// How many of them one lease of a pool may have [default: 48, at most those of --max-sessions]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_lease_sessions: Option<u32>,
    /// How many seconds a session whose connection is lost is kept for its client to come back
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=86_400))]
    pub(crate) grace: Option<u64>,
    /// The same where the client's system has closed the connection, as it does when the client was killed: a
    /// client that lives is back within milliseconds [default: 0.7]. Longer, at most the grace, where a proxy
    /// or a firewall between closes connections and cannot be passed again at once
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) grace_closed: Option<Duration>,
    /// Open no connections to other servers for copies between their devices, and take none: such copies then pass through the client
    #[arg(long)]
    pub(crate) no_peer_links: bool,
    /// After how many seconds a call into the CUDA driver that has nothing to wait for counts as hanging, which ends its
    /// session [default: 30]. Compilers get twenty times as long, and what may wait for kernels any time
    #[arg(long, value_name = "SECONDS", value_parser = parse_seconds)]
    pub(crate) driver_timeout: Option<Duration>,
    /// How many executor processes stand ready for the next session
    #[arg(long, value_name = "N")]
    pub(crate) warm_executors: Option<u32>,
    /// Directory that keeps modules across sessions
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(crate) cache_dir: Option<PathBuf>,
    /// Most bytes of modules kept there
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) cache_size: Option<u64>,
    /// Answer there with metrics, for Prometheus and `farcall top`; without a password
    #[arg(long, value_name = "HOST:PORT", value_parser = metrics_address)]
    pub(crate) metrics: Option<String>,
    /// Let something go wrong, to see what follows: gpu-lost-after=N loses device 0 after N kernels (soft alone)
    #[arg(long, value_name = "FAULT")]
    pub(crate) fault: Option<Fault>,
    /// Let executors make any system call: for debuggers and valgrind, never with clients that are not trusted
    #[arg(long)]
    pub(crate) unconfined: bool,
    #[command(flatten)]
    pub(crate) tls: crate::tls::ServeTlsArgs,
    #[command(flatten)]
    pub(crate) member: MemberArgs,
}

pub(crate) fn metrics_address(text: &str) -> Result<String, String> {
    let port = text.rsplit_once(':').map(|(_, port)| port.parse::<u16>());
    match port {
        Some(Ok(_)) => listen_address(text),
        _ => Err(format!("{text:?} has no port; write HOST:PORT")),
    }
}

fn interface(text: &str) -> Result<String, String> {
    match parse_local_end(text)? {
        LocalEnd::Interface(name) => Ok(name),
        LocalEnd::Address(_) => Err("an address goes to --listen".to_owned()),
    }
}

/// A listening address may have port 0; otherwise it is written like a server's.
fn listen_address(text: &str) -> Result<String, String> {
    match text.strip_suffix(":0") {
        Some(host) => parse_server(host).map(|_| text.to_owned()),
        None => parse_server(text),
    }
}

/// Seconds, with a fraction if need be; at most a day.
fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|s| (0.0..=86_400.0).contains(s));
    let seconds = seconds.ok_or("a number of seconds from 0 to 86400 is needed, such as 0.7")?;
    Ok(Duration::from_secs_f64(seconds))
}

/// Which device serves.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Device {
    /// This machine's GPUs; an error if there is none
    Auto,
    /// This machine's GPUs, through the real driver
    Cuda,
    /// A CPU device that really runs PTX; needs no GPU
    Soft,
    /// A device whose kernels do nothing: for measuring
    Null,
}

/// `farcall run`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall run -- ./vecadd
  farcall run --server gpu1:7474 -n 1 -m 8GiB -- python train.py
  farcall run --pool https://pool:7475 -n 2 -p 0.5 --wait 10m -- python train.py
  farcall run --stats -- python train.py         a summary of its driver calls on stderr at the end
  farcall run --stats=calls.json -- ./vecadd     the same as JSON

Exit code: the command's own; 128+N if signal N killed it, 127 if it was not found, 126 if it cannot be
run. Before it has run: 69 no usable server or nothing free, 77 the pool says no, 72 libraries missing, 78 bad configuration, 2 bad usage.")]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) share: ShareArgs,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    #[command(flatten)]
    pub(crate) want: WantArgs,
    #[command(flatten)]
    pub(crate) lease: LeaseArgs,
    /// Print a summary of the driver calls at the end, or write it to FILE as JSON
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-", value_hint = ValueHint::FilePath)]
    pub(crate) stats: Option<PathBuf>,
    /// Write one JSON line per driver call to FILE, or to stderr; `farcall trace` is the readable form
    #[arg(long, value_name = "FILE", num_args = 0..=1, require_equals = true, default_missing_value = "-", value_hint = ValueHint::FilePath)]
    pub(crate) trace: Option<PathBuf>,
    /// The command and its arguments, after `--`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// `farcall devices`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall devices --server gpu1:7474
  farcall devices --json | jq '.devices[].free_bytes'

`used` counts what all sessions have allocated. Exit code 69: no usable server.")]
pub(crate) struct DevicesArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `farcall netperf`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall netperf --server gpu1:7474
  farcall netperf --server gpu1:7474 --transport tcp --json | jq '.round_trips[0].p50_ns, .advice'

Takes about three seconds and moves half a gigabyte. The server measures for at most four clients at once.
Exit code 69: no usable server.")]
pub(crate) struct NetperfArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `farcall coverage`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall coverage                    every call, by class
  farcall coverage --missing          only those that are not there yet
  farcall coverage --json | jq '.implemented, .total'

Classes: local is answered from client memory; cached is asked once, then local; one-way is sent and nobody
waits; blocking is sent and the caller waits for the reply.")]
pub(crate) struct CoverageArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    /// Only calls that are not implemented
    #[arg(long, conflicts_with = "implemented")]
    pub(crate) missing: bool,
    /// Only calls that are implemented
    #[arg(long)]
    pub(crate) implemented: bool,
}

/// `farcall trace`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall trace -- ./vecadd
  farcall trace --steps -- ./vecadd              and explain the way of the first calls, step by step
  farcall trace --steps --only cuLaunchKernel -- ./vecadd
  farcall trace -o calls.txt -- python train.py

The trace goes to stderr, so that the program's own output stays apart. NO_COLOR=1 turns colours off.
Exit codes are those of `farcall run`.")]
pub(crate) struct TraceArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) share: ShareArgs,
    /// Explain each step of the way of the first calls
    #[arg(long)]
    pub(crate) steps: bool,
    /// Show only calls of this name; may be given several times
    #[arg(long, value_name = "CALL")]
    pub(crate) only: Vec<String>,
    /// Show nothing; write a compact record to FILE, to be played again without the program
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, conflicts_with_all = ["steps", "only", "output"])]
    pub(crate) record: Option<PathBuf>,
    /// Write the trace to FILE
    #[arg(short = 'o', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
    /// The command and its arguments, after `--`
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND", value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

/// `farcall cdi`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall cdi --server gpu1:7474 --token-file /etc/farcall/token -o /etc/cdi/farcall.json
  podman run --device farcall.dev/gpu=1 IMAGE python train.py
  farcall cdi --pool https://pool:7475 --pool-ca /etc/farcall/ca.pem --pool-token-file /etc/farcall/pool-token -o /etc/cdi/farcall.json
  podman run --device farcall.dev/gpu=all IMAGE farcall run -p 0.5 -- python train.py

Write it again after moving or updating farcall. docs/containers.md has Docker, Podman and Kubernetes.")]
pub(crate) struct CdiArgs {
    #[command(flatten)]
    pub(crate) server: ServerArgs,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Device memory that a container's programs may use, per device: 8GiB, 512M [default: all]
    #[arg(short = 'm', long = "memory", value_name = "SIZE", value_parser = size)]
    pub(crate) memory_bytes: Option<u64>,
    /// Share of each device's compute that they get: 0.5, 25% [default: all]
    #[arg(short = 'p', long = "share", value_name = "SHARE", value_parser = parse_share)]
    pub(crate) share_permille: Option<u16>,
    /// Give containers this machine's RDMA devices, too
    #[arg(long)]
    pub(crate) rdma: bool,
    /// Write to FILE, /etc/cdi/farcall.json for instance [default: to standard output]
    #[arg(short = 'o', long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) output: Option<PathBuf>,
}

/// `farcall completions`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall completions bash > ~/.local/share/bash-completion/completions/farcall
  farcall completions zsh > ~/.zfunc/_farcall
  farcall completions fish > ~/.config/fish/completions/farcall.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// `farcall man`.
#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Directory that gets the pages; it is made if it is missing
    #[arg(value_hint = ValueHint::DirPath)]
    pub(crate) directory: PathBuf,
}

/// Whether only this machine can reach an address to listen on.
pub(crate) fn is_loopback(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or(listen, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::{Cli, is_loopback, listen_address};
    use clap::CommandFactory as _;

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn loopback() {
        for address in ["127.0.0.1:7474", "localhost:1", "[::1]:7474", "127.9.9.9:0"] {
            assert!(is_loopback(address), "{address}");
        }
        for address in ["0.0.0.0:7474", "gpu1:7474", "[::]:7474", "10.0.0.1:1"] {
            assert!(!is_loopback(address), "{address}");
        }
    }

    #[test]
    fn any_free_port() {
        assert_eq!(listen_address("127.0.0.1:0").as_deref(), Ok("127.0.0.1:0"));
        assert_eq!(listen_address("[::1]:0").as_deref(), Ok("[::1]:0"));
        assert_eq!(listen_address("gpu1").as_deref(), Ok("gpu1:7474"));
        assert!(listen_address("gpu1:99999").is_err());
    }
}
