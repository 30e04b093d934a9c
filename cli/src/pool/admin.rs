//! What administrators do.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use farcall_pool::client::{DELETE, PATCH, POST, PUT, PoolClient};
use farcall_pool::model::{Quota, Settings};
use farcall_pool::state::{NewToken, Role, TokenChange};
use farcall_pool::wire::{GroupQuota, NewJoin, NewPassword, NewSecret};

use super::args::{
    JoinArgs, PoolCommand, QuotaArgs, QuotaCommand, QuotaDefaultArgs, QuotaSetArgs, ReleaseArgs,
    RoleName, ServerNameArgs, SettingsArgs, TokenCommand, TokenCreateArgs, TokenNameArgs,
    TokenPasswordArgs,
};
use super::{client, done, failure, ms, serve, show};
use crate::failure::{Failure, code, written};

/// `farcall pool ...`.
pub(crate) fn command(command: &PoolCommand) -> Result<ExitCode, Failure> {
    match command {
        PoolCommand::Init(args) => serve::init(args),
        PoolCommand::Certify(args) => serve::certify(args),
        PoolCommand::Serve(args) => serve::serve(args),
        PoolCommand::Drain(args) => server(args, "/drain"),
        PoolCommand::Undrain(args) => server(args, "/undrain"),
        PoolCommand::Remove(args) => {
            let path = format!("/v1/servers/{}", args.server);
            done(client(&args.pool)?.order::<()>(DELETE, &path, None))
        }
        PoolCommand::Servers(args) => show::servers(args),
        PoolCommand::Join(args) => join(args),
        PoolCommand::Token(command) => token(command),
        PoolCommand::Quota(command) => quota(command),
        PoolCommand::Settings(args) => settings(args),
        PoolCommand::Log(args) => show::log(args),
    }
}

/// `farcall release`.
pub(crate) fn release(args: &ReleaseArgs) -> Result<ExitCode, Failure> {
    let pool = client(&args.pool)?;
    for lease in &args.leases {
        let released = pool.order::<()>(DELETE, &format!("/v1/leases/{lease}"), None);
        released.map_err(|error| failure(&error))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn server(args: &ServerNameArgs, what: &str) -> Result<ExitCode, Failure> {
    let path = format!("/v1/servers/{}{what}", args.server);
    done(client(&args.pool)?.order::<()>(POST, &path, None))
}

fn join(args: &JoinArgs) -> Result<ExitCode, Failure> {
    let new = NewJoin {
        name: args.name.clone(),
        valid_ms: ms(args.valid),
        uses: args.uses,
    };
    secret(&client(&args.pool)?, "/v1/joins", &new, args.json)
}

fn token(command: &TokenCommand) -> Result<ExitCode, Failure> {
    let disabled = |args: &TokenNameArgs, disabled| {
        let change = TokenChange {
            disabled: Some(disabled),
            ..TokenChange::default()
        };
        change_token(args, &change)
    };
    match command {
        TokenCommand::Create(args) => create_token(args),
        TokenCommand::List(args) => show::tokens(args),
        TokenCommand::Extend(args) => {
            let change = TokenChange {
                valid_ms: Some(ms(args.valid)),
                ..TokenChange::default()
            };
            change_token(&args.token, &change)
        }
        TokenCommand::Disable(args) => disabled(args, true),
        TokenCommand::Enable(args) => disabled(args, false),
        TokenCommand::Revoke(args) => {
            let path = format!("/v1/tokens/{}", args.name);
            done(client(&args.pool)?.order::<()>(DELETE, &path, None))
        }
        TokenCommand::Password(args) => password(args),
    }
}

fn password(args: &TokenPasswordArgs) -> Result<ExitCode, Failure> {
    let read = || match &args.file {
        Some(path) => std::fs::read_to_string(path),
        None => {
            if io::stdin().is_terminal() {
                eprint!("password (it is shown as you type): ");
            }
            let mut line = String::new();
            io::stdin().read_line(&mut line).map(|_| line)
        }
    };
    let password = if args.remove {
        None
    } else {
        let text = read()
            .map_err(|error| Failure::new(code::CONFIG, error.to_string(), "check --file FILE"))?;
        Some(text.trim_end_matches(['\n', '\r']).to_owned())
    };
    let path = format!("/v1/tokens/{}/password", args.token.name);
    let body = NewPassword { password };
    done(client(&args.token.pool)?.order(PUT, &path, Some(&body)))
}

fn create_token(args: &TokenCreateArgs) -> Result<ExitCode, Failure> {
    let new = NewToken {
        name: args.name.clone(),
        role: match args.role {
            RoleName::Admin => Role::Admin,
            RoleName::Viewer => Role::Viewer,
            RoleName::Client => Role::Client,
        },
        group: args.group.clone(),
        quota: quota_of(&args.quota),
        valid_ms: args.valid.filter(|it| *it != Duration::MAX).map(ms),
    };
    secret(&client(&args.pool)?, "/v1/tokens", &new, args.json)
}

fn change_token(args: &TokenNameArgs, change: &TokenChange) -> Result<ExitCode, Failure> {
    let path = format!("/v1/tokens/{}", args.name);
    done(client(&args.pool)?.order(PATCH, &path, Some(change)))
}

fn quota(command: &QuotaCommand) -> Result<ExitCode, Failure> {
    match command {
        QuotaCommand::Client(args) => client_quota(args),
        QuotaCommand::Group(args) => {
            let body = GroupQuota {
                quota: quota_of(&args.quota),
            };
            let path = format!("/v1/groups/{}/quota", args.name);
            done(client(&args.pool)?.order(PUT, &path, Some(&body)))
        }
        QuotaCommand::Default(args) => default_quota(args),
        QuotaCommand::Groups(args) => show::groups(args),
    }
}

fn client_quota(args: &QuotaSetArgs) -> Result<ExitCode, Failure> {
    let change = TokenChange {
        quota: Some(quota_of(&args.quota)),
        ..TokenChange::default()
    };
    let path = format!("/v1/tokens/{}", args.name);
    done(client(&args.pool)?.order(PATCH, &path, Some(&change)))
}

fn default_quota(args: &QuotaDefaultArgs) -> Result<ExitCode, Failure> {
    let pool = client(&args.pool)?;
    let mut settings: Settings = pool.get("/v1/settings").map_err(|error| failure(&error))?;
    settings.default_quota = quota_of(&args.quota);
    done(pool.order(PUT, "/v1/settings", Some(&settings)))
}

fn settings(args: &SettingsArgs) -> Result<ExitCode, Failure> {
    let pool = client(&args.pool)?;
    let mut settings: Settings = pool.get("/v1/settings").map_err(|error| failure(&error))?;
    let before = settings.clone();
    if let Some(idle) = args.idle {
        settings.idle_ms = (idle != Duration::MAX).then(|| ms(idle));
    }
    for (time, setting) in [
        (args.client_ttl, &mut settings.client_ttl_ms),
        (args.server_ttl, &mut settings.server_ttl_ms),
        (args.grant, &mut settings.grant_ms),
        (args.patience, &mut settings.patience_ms),
        (args.refresh, &mut settings.refresh_ms),
    ] {
        if let Some(time) = time {
            *setting = ms(time);
        }
    }
    if settings != before {
        return done(pool.order(PUT, "/v1/settings", Some(&settings)));
    }
    let out = &mut io::stdout().lock();
    written(show::json(out, &settings))
}

/// Prints a new secret, which is shown this once.
fn secret(
    pool: &PoolClient,
    path: &str,
    new: &impl serde::Serialize,
    as_json: bool,
) -> Result<ExitCode, Failure> {
    let made: NewSecret = pool
        .post(path, new, Duration::ZERO)
        .map_err(|error| failure(&error))?;
    if as_json {
        return written(show::json(&mut io::stdout().lock(), &made));
    }
    written(writeln!(io::stdout(), "{}", made.token))
}

fn quota_of(args: &QuotaArgs) -> Quota {
    // A day's share of all GPUs of the world fits.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let seconds = |hours: f64| (hours.max(0.0) * 3600.0).round() as u64;
    Quota {
        shares_permille_max: args.gpus,
        memory_bytes_max: args.memory,
        share_seconds_per_day_max: args.gpu_hours_per_day.map(seconds),
        request_gpus_max: args.request_gpus,
        hold_ms_max: args.longest.filter(|it| *it != Duration::MAX).map(ms),
        priority: args.priority,
    }
}
