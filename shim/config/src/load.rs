//! Puts environment, file and defaults together.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use farcall_transport::{RdmaOptions, SocketOptions, TlsClient};

use crate::file::{self, ConfigFile, NumberOrText};
use crate::network::{
    self, parse_added_rtt, parse_busy_poll, parse_connect_timeout, parse_dscp, parse_gid_index,
    parse_local_end, parse_rdma_device, parse_rdma_mode, parse_tls,
};
use crate::servers::{Other, assign};
use crate::values::{TokenLines, parse_devices_each, read_token_lines};
use crate::{
    ConfigError, DEFAULT_SERVER, LogLevel, Secret, TraceTarget, Transport, parse_servers,
    parse_share, parse_size, vars,
};

/// What a client process is told.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ClientConfig {
    /// `HOST:PORT` of the first server, the only one as a rule; [`ClientConfig::each`] has all.
    pub server: String,
    /// Who said so; for messages.
    pub server_origin: Origin,
    /// What the server checks.
    pub token: Option<Secret>,
    /// How many devices; `None` = all that the server gives, or there are several servers.
    pub devices: Option<u32>,
    /// How many devices of each server; empty = all.
    pub(crate) device_counts: Vec<u32>,
    /// Servers after the first.
    pub(crate) others: Vec<Other>,
    /// Device memory limit per device, in bytes; `None` = all.
    pub memory_bytes: Option<u64>,
    /// Share of each device's compute, in thousandths; `None` = all. Without a memory limit it is the share of the memory, too.
    pub share_permille: Option<u16>,
    /// How long a wait polls before it sleeps; `None` = the transport's default.
    pub spin: Option<Duration>,
    /// How long a session waits to be resumed after its connection was lost; zero: not at all.
    pub grace: Duration,
    /// Which transport.
    pub transport: Transport,
    /// Over the network with TLS, to servers that this trusts; `None` = without.
    pub tls: Option<TlsClient>,
    /// What TCP sockets are told.
    pub socket: SocketOptions,
    /// Bound on opening a session; `None` = the transport's default.
    pub connect_timeout: Option<Duration>,
    /// Over RDMA: which device and how.
    pub rdma: RdmaOptions,
    /// Delay added to every round trip.
    pub added_rtt: Duration,
    /// Whether each call that goes to a server waits until the server has it.
    pub call_by_call: bool,
    /// What is logged.
    pub log: LogLevel,
    /// Where statistics go at exit.
    pub stats: Option<PathBuf>,
    /// Where the trace goes.
    pub trace: Option<TraceTarget>,
    /// Whether the steps of each call are traced too.
    pub trace_steps: bool,
    /// Where the record of the calls goes at exit.
    pub record: Option<PathBuf>,
    /// The configuration file that was read.
    pub file: Option<PathBuf>,
}

/// Where a setting comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// An environment variable, by name.
    Variable(&'static str),
    /// A file, by path.
    File(PathBuf),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default"),
            Self::Variable(name) => f.write_str(name),
            Self::File(path) => write!(f, "{}", path.display()),
        }
    }
}

impl ClientConfig {
    /// Reads the configuration of this process. Blocks on files, allocates.
    ///
    /// # Errors
    /// See [`ClientConfig::load`].
    pub fn from_process() -> Result<Self, ConfigError> {
        // A value that is no UTF-8 is replaced, not dropped, so that it is refused by name.
        Self::load(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }

    /// Reads variables through `env`, and one file: `$FARCALL_CONFIG`, else the first that exists of
    /// `$XDG_CONFIG_HOME/farcall/client.toml` (or `$HOME/.config/...`) and `/etc/farcall/client.toml`.
    /// A variable wins over the file; an empty one counts as unset.
    ///
    /// # Errors
    /// A file that is named or exists cannot be read or has an unknown key, or a value cannot be used.
    pub fn load(env: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let env = |name: &str| env(name).filter(|value| !value.trim().is_empty());
        let (path, file) = match file::find(&env)? {
            Some((path, file)) => (Some(path), file),
            None => (None, ConfigFile::default()),
        };
        let tokens = tokens(&env, path.as_deref(), &file)?;
        let read = Reader {
            env: &env,
            path: path.as_deref(),
        };
        let servers = read.setting(vars::SERVER, "server", file.server, parse_servers)?;
        let (servers, server_origin) =
            servers.unwrap_or((DEFAULT_SERVER.to_owned(), Origin::Default));
        let servers = servers.split(',').map(str::to_owned).collect();
        let (server, token, others) =
            assign(servers, tokens).map_err(|message| ConfigError::Value {
                origin: server_origin.to_string(),
                message,
            })?;
        let number = |value: Option<NumberOrText>| value.map(NumberOrText::into_text);
        let size = |text: &str| parse_size(text).map_err(|error| error.to_string());
        let socket = network::socket_options(
            read.value(vars::BIND, "bind", file.bind, parse_local_end)?,
            read.value(vars::DSCP, "dscp", number(file.dscp), parse_dscp)?,
            read.value(
                vars::BUSY_POLL_US,
                "busy_poll_us",
                number(file.busy_poll_us),
                parse_busy_poll,
            )?,
        );
        let rdma = RdmaOptions {
            device: read.value(
                vars::RDMA_DEVICE,
                "rdma_device",
                file.rdma_device,
                parse_rdma_device,
            )?,
            gid_index: read.value(
                vars::GID_INDEX,
                "gid_index",
                number(file.gid_index),
                parse_gid_index,
            )?,
            mode: read
                .value(
                    vars::RDMA_MODE,
                    "rdma_mode",
                    file.rdma_mode,
                    parse_rdma_mode,
                )?
                .unwrap_or_default(),
        };
        let device_counts = read
            .value(
                vars::DEVICES,
                "devices",
                number(file.devices),
                parse_devices_each,
            )?
            .flatten()
            .unwrap_or_default();
        let added_rtt = read
            .value(
                vars::ADDED_RTT_US,
                "added_rtt_us",
                number(file.added_rtt_us),
                parse_added_rtt,
            )?
            .unwrap_or_default();
        Ok(Self {
            server,
            server_origin,
            token,
            devices: match (device_counts.as_slice(), others.is_empty()) {
                ([count], true) => Some(*count),
                _ => None,
            },
            device_counts,
            others,
            memory_bytes: read.value(vars::MEMORY, "memory", number(file.memory), size)?,
            share_permille: read.value(vars::SHARE, "share", number(file.share), parse_share)?,
            spin: read.value(vars::SPIN_US, "spin_us", number(file.spin_us), parse_spin)?,
            grace: read
                .value(vars::GRACE_S, "grace_s", number(file.grace_s), parse_grace)?
                .unwrap_or(GRACE_DEFAULT),
            transport: read
                .value(
                    vars::TRANSPORT,
                    "transport",
                    file.transport,
                    parse_transport,
                )?
                .unwrap_or_default(),
            tls: read.value(vars::TLS, "tls", file.tls, parse_tls)?.flatten(),
            socket,
            connect_timeout: read.value(
                vars::CONNECT_TIMEOUT_MS,
                "connect_timeout_ms",
                number(file.connect_timeout_ms),
                parse_connect_timeout,
            )?,
            rdma,
            added_rtt,
            call_by_call: env(vars::CALL_BY_CALL).is_some_and(|text| text != "0"),
            log: read
                .value(vars::LOG, "log", file.log, parse_log)?
                .unwrap_or_default(),
            stats: env(vars::STATS).map(PathBuf::from),
            trace: env(vars::TRACE).map(|text| TraceTarget::parse(&text)),
            trace_steps: env(vars::TRACE_STEPS).is_some_and(|text| text != "0"),
            record: env(vars::RECORD).map(PathBuf::from),
            file: path,
        })
    }
}

struct Reader<'a, E> {
    env: &'a E,
    path: Option<&'a Path>,
}

impl<E: Fn(&str) -> Option<String>> Reader<'_, E> {
    fn value<T>(
        &self,
        variable: &'static str,
        key: &str,
        in_file: Option<String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        Ok(self
            .setting(variable, key, in_file, parse)?
            .map(|(value, _)| value))
    }

    fn setting<T>(
        &self,
        variable: &'static str,
        key: &str,
        in_file: Option<String>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<(T, Origin)>, ConfigError> {
        let (text, origin, name) = match ((self.env)(variable), in_file) {
            (Some(text), _) => (text, Origin::Variable(variable), variable.to_owned()),
            (None, Some(text)) => {
                let path = self.path.unwrap_or(Path::new(""));
                (
                    text,
                    Origin::File(path.to_owned()),
                    format!("{}: {key}", path.display()),
                )
            }
            (None, None) => return Ok(None),
        };
        match parse(&text) {
            Ok(value) => Ok(Some((value, origin))),
            Err(message) => Err(ConfigError::Value {
                origin: name,
                message,
            }),
        }
    }
}

/// The variables' token wins over the file's, and a token over a token file.
fn tokens(
    env: &impl Fn(&str) -> Option<String>,
    path: Option<&Path>,
    file: &ConfigFile,
) -> Result<Option<TokenLines>, ConfigError> {
    let alone = |token: &str| TokenLines {
        first: Secret::new(token.trim()),
        rest: Vec::new(),
    };
    if let Some(token) = env(vars::TOKEN) {
        return Ok(Some(alone(&token)));
    }
    if let Some(token_path) = env(vars::TOKEN_FILE) {
        return read_token_lines(Path::new(&token_path)).map(Some);
    }
    match (&file.token, &file.token_file) {
        (Some(_), Some(_)) => Err(ConfigError::Value {
            origin: path.unwrap_or(Path::new("")).display().to_string(),
            message: "has both token and token_file; keep one of them".to_owned(),
        }),
        (Some(token), None) => Ok(Some(alone(token))),
        (None, Some(token_path)) => {
            // A relative path means the same for every program that reads the file.
            let directory = path.and_then(Path::parent).unwrap_or(Path::new(""));
            read_token_lines(&directory.join(token_path)).map(Some)
        }
        (None, None) => Ok(None),
    }
}

/// Spinning longer than this burns a core for nothing.
const SPIN_US_MAX: u64 = 1_000_000;

fn parse_spin(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<u64>() {
        Ok(us) if us <= SPIN_US_MAX => Ok(Duration::from_micros(us)),
        _ => Err(format!(
            "{text:?} is not a time in microseconds from 0 to {SPIN_US_MAX}"
        )),
    }
}

/// As long as a server keeps a session by default.
const GRACE_DEFAULT: Duration = Duration::from_secs(60);
/// A program that waits longer seems to hang.
const GRACE_S_MAX: u64 = 86_400;

fn parse_grace(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<u64>() {
        Ok(s) if s <= GRACE_S_MAX => Ok(Duration::from_secs(s)),
        _ => Err(format!(
            "{text:?} is not a time in seconds from 0 to {GRACE_S_MAX}"
        )),
    }
}

fn parse_transport(text: &str) -> Result<Transport, String> {
    Transport::parse(text.trim())
        .ok_or_else(|| format!("{text:?} is not one of {}", Transport::ALLOWED))
}

fn parse_log(text: &str) -> Result<LogLevel, String> {
    LogLevel::parse(text.trim())
        .ok_or_else(|| format!("{text:?} is not one of {}", LogLevel::ALLOWED))
}

#[cfg(test)]
#[path = "load_tests.rs"]
mod tests;
