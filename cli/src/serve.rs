//! `farcall serve`: a server until SIGINT or SIGTERM.
#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use farcall_config::{LogLevel, read_token_file, vars};
use farcall_gpu_exec::{DeviceChoice, ServeError, ServeOptions, Server, Signals};
use farcall_transport::{LocalEnd, RdmaMode, RdmaOptions, SocketOptions};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::args::{Device, DeviceCount, ServeArgs, is_loopback};
use crate::connect::config_failure;
use crate::failure::{Failure, code};
use crate::metrics;
use crate::pool::serve_in_pool;
use crate::run::absolute;

pub(crate) fn serve(args: &ServeArgs) -> Result<ExitCode, Failure> {
    start_log();
    allow_descriptors();
    let options = options(args)?;
    if let Some(tls) = &options.tls {
        // As below, whoever reads it.
        let known_by = tls.fingerprint();
        let _ = writeln!(io::stdout(), "clients know this server by --tls {known_by}");
    }
    if let Some(url) = &args.member.pool {
        return serve_in_pool(args, url, options);
    }
    if options.token.is_none() && !is_loopback(&options.listen) {
        eprintln!(
            "farcall: everyone who can reach {} can use these devices; --token-file FILE asks for a token",
            options.listen
        );
    }
    let device = options.device;
    let signals = Signals::block().map_err(|error| failure(&error))?;
    let server = Server::bind(&options).map_err(|error| failure(&error))?;
    start_metrics(args, &server)?;
    let served = server.serve(signals, |address| {
        // One line that a script can wait for; if nobody reads it, serving goes on.
        let _ = writeln!(io::stdout(), "serving on {address} (--device {device})");
        let _ = io::stdout().flush();
    });
    served
        .map(|()| ExitCode::SUCCESS)
        .map_err(|error| failure(&error))
}

/// Raises the limit of open files as far as it goes: a shell's usual 1024 would end at some hundred sessions.
fn allow_descriptors() {
    let files = Resource::RLIMIT_NOFILE;
    let raised = getrlimit(files).and_then(|(soft, hard)| {
        if soft < hard {
            setrlimit(files, hard, hard)
        } else {
            Ok(())
        }
    });
    if let Err(error) = raised {
        log::warn!("the limit of open files stays as it is: {error}");
    }
}

/// Answers with metrics, if that is wanted.
pub(crate) fn start_metrics(args: &ServeArgs, server: &Server) -> Result<(), Failure> {
    let Some(listen) = &args.metrics else {
        return Ok(());
    };
    let address = metrics::start(listen, server.sessions()).map_err(|error| {
        Failure::new(
            code::FAILED,
            format!("cannot answer with metrics at {listen}: {error}"),
            "--metrics HOST:PORT takes another address",
        )
    })?;
    let _ = writeln!(io::stdout(), "metrics on http://{address}/metrics");
    Ok(())
}

/// Log on stderr: warnings, or what `FARCALL_LOG` says.
pub(crate) fn start_log() {
    let wanted = std::env::var(vars::LOG)
        .ok()
        .filter(|level| !level.is_empty());
    let level = wanted.unwrap_or_else(|| LogLevel::Warn.name().to_owned());
    let logger = Discreet::new(&level);
    log::set_max_level(logger.0.filter());
    // Fails only where there is a logger already.
    let _ = log::set_boxed_logger(Box::new(logger));
}

/// A logger that keeps quiet about what nobody may read, whatever it is told to log.
struct Discreet(env_logger::Logger);

impl Discreet {
    fn new(filters: &str) -> Self {
        Self(env_logger::Builder::new().parse_filters(filters).build())
    }
}

impl log::Log for Discreet {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        // Its traces have every byte of a request, tokens among them.
        let is_secret =
            metadata.level() == log::Level::Trace && metadata.target().starts_with("ureq_proto");
        !is_secret && self.0.enabled(metadata)
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            self.0.log(record);
        }
    }

    fn flush(&self) {
        self.0.flush();
    }
}

fn options(args: &ServeArgs) -> Result<ServeOptions, Failure> {
    let defaults = ServeOptions::default();
    let token = args
        .token_file
        .as_deref()
        .map(read_token_file)
        .transpose()
        .map_err(|error| config_failure(&error))?;
    Ok(ServeOptions {
        listen: args.listen.clone(),
        socket_path: args.socket.as_deref().map(absolute).transpose()?,
        socket: SocketOptions {
            dscp: args.dscp,
            local: args.interface.clone().map(LocalEnd::Interface),
            busy_poll_us: args.busy_poll_us.filter(|us| *us > 0),
            dialer: None,
        },
        rdma: Some(RdmaOptions {
            device: args.rdma_device,
            gid_index: args.gid_index,
            mode: RdmaMode::Auto,
        }),
        tls: args.tls.server()?,
        device: match args.device {
            Device::Auto => DeviceChoice::Auto,
            Device::Cuda => DeviceChoice::Cuda,
            Device::Soft => DeviceChoice::Soft,
            Device::Null => DeviceChoice::Null,
        },
        device_count: args.gpus.and_then(|DeviceCount(count)| count),
        memory_bytes: args.memory,
        token: token.map(|token| token.expose().to_owned()),
        sessions_max: args.max_sessions.unwrap_or(defaults.sessions_max),
        lease_sessions_max: args
            .max_lease_sessions
            .unwrap_or(defaults.lease_sessions_max),
        grace: args.grace.map_or(defaults.grace, Duration::from_secs),
        grace_closed: args.grace_closed.unwrap_or(defaults.grace_closed),
        driver_patience: args.driver_timeout.unwrap_or(defaults.driver_patience),
        pinned_bytes: args.pinned,
        warm_executors: args.warm_executors.unwrap_or(defaults.warm_executors),
        server_name: args.name.clone().unwrap_or(defaults.server_name),
        cache_dir: args.cache_dir.clone(),
        cache_bytes_max: args.cache_size.unwrap_or(defaults.cache_bytes_max),
        admission: None,
        peer_links: !args.no_peer_links,
        measure: args.metrics.is_some() || (args.member.pool.is_some() && !args.member.no_measure),
        fault: args.fault,
        is_unconfined: args.unconfined,
        executor: None,
    })
}

pub(crate) fn failure(error: &ServeError) -> Failure {
    let advice = match error {
        ServeError::NoGpu(_) => "on a machine without a GPU: farcall serve --device soft",
        ServeError::Option(_) => "see farcall serve --help",
        ServeError::Listen { .. } => {
            "is another server running there? --listen HOST:PORT takes another address"
        }
        ServeError::Executor { .. } => {
            "the program must stay in place and executable while it serves"
        }
        _ => "FARCALL_LOG=debug says more",
    };
    Failure::new(code::FAILED, error.to_string(), advice)
}

#[cfg(test)]
mod tests {
    use log::{Level, Log as _, Metadata};

    use super::Discreet;

    #[test]
    fn requests_are_never_traced_and_nothing_is_logged_that_was_not_asked_for() {
        let logs = |filters: &str, target: &str, level: Level| {
            let metadata = Metadata::builder().target(target).level(level).build();
            Discreet::new(filters).enabled(&metadata)
        };
        assert!(!logs("warn", "ureq_proto::client", Level::Debug));
        assert!(logs("debug", "ureq_proto::client", Level::Debug));
        assert!(!logs("trace", "ureq_proto::client", Level::Trace));
        assert!(!logs(
            "ureq_proto=trace",
            "ureq_proto::client",
            Level::Trace
        ));
        assert!(logs("trace", "farcall_transport", Level::Trace));
    }
}
