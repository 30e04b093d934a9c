//! Which server a subcommand uses, and whether it can be used.
#![forbid(unsafe_code)]

use std::time::Duration;

use farcall_config::SOCKET_PREFIX;
use farcall_config::{ClientConfig, ConfigError, Origin, vars};
use farcall_gpu_exec::{FetchError, Inventory};
use farcall_transport::{ConnectError, RefuseCode};

use crate::args::ServerArgs;
use crate::failure::{Failure, code};

/// Long enough for a busy server far away, short enough to wait for at a prompt.
const ASK_TIMEOUT: Duration = Duration::from_secs(3);

/// The configuration of this process, with what was typed in place of the variables.
pub(crate) fn configuration(args: &ServerArgs) -> Result<ClientConfig, Failure> {
    let from_process =
        |name: &str| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned());
    let token_file = args
        .token_file
        .as_ref()
        .map(|path| path.to_string_lossy().into_owned());
    let typed = |name: &str| {
        let variables = args.network.variables();
        let found = variables
            .into_iter()
            .find(|(variable, _)| *variable == name);
        found.and_then(|(_, value)| value.map(str::to_owned))
    };
    ClientConfig::load(|name| match name {
        vars::SERVER if args.server.is_some() => args.server.clone(),
        vars::TOKEN if token_file.is_some() => None,
        vars::TOKEN_FILE if token_file.is_some() => token_file.clone(),
        _ => typed(name).or_else(|| from_process(name)),
    })
    .map_err(|error| config_failure(&error))
}

/// The same for a command that is about one server.
pub(crate) fn single(args: &ServerArgs) -> Result<ClientConfig, Failure> {
    let config = configuration(args)?;
    match config.server_count() {
        1 => Ok(config),
        count => Err(Failure::new(
            2,
            format!("{count} servers are named, and this is about one"),
            "name one with --server HOST:PORT",
        )),
    }
}

/// Asks the server for its devices. Blocks for a few seconds at most.
pub(crate) fn ask(config: &ClientConfig, args: &ServerArgs) -> Result<Inventory, Failure> {
    let mut options = config.connect_options();
    options.connect_timeout = ASK_TIMEOUT;
    Inventory::fetch_with(options).map_err(|error| unavailable(&error, config, args))
}

/// No server: what is wrong, who named it, what to do.
pub(crate) fn unavailable(error: &FetchError, config: &ClientConfig, args: &ServerArgs) -> Failure {
    let origin = match (&args.server, &config.server_origin) {
        (Some(_), _) => "--server".to_owned(),
        (None, origin) => origin.to_string(),
    };
    Failure::new(
        code::UNAVAILABLE,
        format!("{error} (server from {origin})"),
        advice(error, config),
    )
}

pub(crate) fn config_failure(error: &ConfigError) -> Failure {
    let advice = match error {
        ConfigError::TokenFile { .. } | ConfigError::TokenContent { .. } => {
            "put the token that the server's administrator gave you into the file's first line"
        }
        ConfigError::Value { origin, .. } if origin.starts_with("FARCALL_") => {
            "change or unset the variable; docs/client-config.md lists them all"
        }
        _ => {
            "mend the file, or name another with FARCALL_CONFIG; docs/client-config.md lists its keys"
        }
    };
    Failure::new(code::CONFIG, error.to_string(), advice)
}

fn advice(error: &FetchError, config: &ClientConfig) -> String {
    let FetchError::Connect(error) = error else {
        return "client and server differ: use the same farcall version on both machines"
            .to_owned();
    };
    match error {
        ConnectError::Resolve { .. } => {
            format!(
                "check the name; {} says which server to use",
                where_to_change(config)
            )
        }
        ConnectError::Transport { .. } if config.server.starts_with(SOCKET_PREFIX) => {
            "start a server there with `farcall serve --socket PATH`; in a container the socket must be mounted"
                .to_owned()
        }
        ConnectError::Transport { .. } => {
            "use --transport auto, or see FARCALL_LOG=debug for what was tried".to_owned()
        }
        ConnectError::Connect { server, .. } => format!(
            "start a server there (`farcall serve --listen {server}`), or name another with --server HOST:PORT"
        ),
        ConnectError::TimedOut { .. } => {
            "check that the server runs and that no firewall is between".to_owned()
        }
        ConnectError::Tls { .. } => {
            "docs/cli.md#tls says how clients come to trust a server".to_owned()
        }
        ConnectError::NotFarcall { .. } => {
            "another program has this port; check the port in --server HOST:PORT".to_owned()
        }
        ConnectError::Version { .. } => "use the same farcall version on both machines".to_owned(),
        ConnectError::Refused {
            code: RefuseCode::TOKEN,
            ..
        } if config.token.is_none() => {
            "the server wants a token: give it with --token-file FILE, or in client.toml".to_owned()
        }
        ConnectError::Refused {
            code: RefuseCode::TOKEN,
            ..
        } => "ask the server's administrator for a valid token".to_owned(),
        ConnectError::Refused {
            code: RefuseCode::TLS,
            ..
        } => "its administrator knows what to give: --tls FILE or --tls sha256:FINGERPRINT".to_owned(),
        ConnectError::Refused {
            code: RefuseCode::BUSY | RefuseCode::DRAINING,
            ..
        } => "try again later, or name another server with --server HOST:PORT".to_owned(),
        ConnectError::Refused {
            code: RefuseCode::VERSION,
            ..
        } => "use the same farcall version on both machines".to_owned(),
        _ => "see the server's log for the reason".to_owned(),
    }
}

fn where_to_change(config: &ClientConfig) -> String {
    match &config.server_origin {
        Origin::File(path) => path.display().to_string(),
        Origin::Variable(name) => format!("--server or {name}"),
        Origin::Default => "--server HOST:PORT".to_owned(),
    }
}
