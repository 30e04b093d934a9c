//! What can be typed about pools.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum, ValueHint};
use farcall_config::{SizeError, parse_share, parse_size};
use farcall_pool::filter::Filter;
use farcall_pool::model::{LeaseId, NetAddress};

use super::addresses::net_address;
use super::serve_args::{CertifyArgs, InitArgs, PoolServeArgs};

/// Which pool, and how it is convinced.
#[derive(Args, Clone, Debug)]
pub(crate) struct PoolArgs {
    /// Pool to get GPUs from: https://HOST:PORT, or http:// on this machine; its nodes, separated by commas
    #[arg(long, value_name = "URL", env = "FARCALL_POOL", value_hint = ValueHint::Url)]
    pub(crate) pool: Option<String>,
    /// File with the pool's authority (ca.pem), which https needs
    #[arg(long, value_name = "FILE", env = "FARCALL_POOL_CA", value_hint = ValueHint::FilePath)]
    pub(crate) pool_ca: Option<PathBuf>,
    /// File that holds the token which the pool gave you
    #[arg(long, value_name = "FILE", env = "FARCALL_POOL_TOKEN_FILE", value_hint = ValueHint::FilePath)]
    pub(crate) pool_token_file: Option<PathBuf>,
}

/// Which GPUs of a pool.
#[derive(Args, Clone, Debug)]
pub(crate) struct WantArgs {
    /// Share of each GPU: 0.5, 0.05, 25%; without -m its memory too
    #[arg(short = 'p', long = "share", value_name = "SHARE", value_parser = parse_share, default_value = "1")]
    pub(crate) share_permille: u16,
    /// What GPUs and servers must be like: gpu.name=H100, gpu.memory>=40GiB, cuda.version>=12.4; may be repeated
    #[arg(long = "filter", value_name = "CONDITION")]
    pub(crate) filters: Vec<Filter>,
    /// Only these servers
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(crate) servers: Vec<String>,
    /// This machine's place in the network, as servers write theirs: GPUs nearby come first
    #[arg(
        long,
        value_name = "SWITCHES",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) near: String,
    /// Wait in the pool's queue for so long if nothing is free: 90s, 15m, 8h, forever
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) wait: Option<Duration>,
    /// Give it up if it is unused for so long [default: the pool's]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) idle: Option<Duration>,
    /// What it is for, shown to others [default: the command and, if that is no option, its first argument]
    #[arg(long, value_name = "TEXT")]
    pub(crate) label: Option<String>,
}

/// `farcall request`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall request -n 1 -p 0.25 --for 8h          prints the lease: L12
  farcall run --lease L12 -- python train.py     as often as you like
  farcall release L12

It is kept until it is released, its time is over, or it is unused for too long.
Exit codes: 69 nothing free (or the wait was in vain), 77 not allowed or over a quota, 78 bad configuration.")]
pub(crate) struct RequestArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// How many GPUs
    #[arg(short = 'n', long = "devices", value_name = "N", default_value_t = 1)]
    pub(crate) gpus: u16,
    /// Device memory on each [default: the share's part of the GPU's]
    #[arg(short = 'm', long = "memory", value_name = "SIZE", value_parser = size)]
    pub(crate) memory_bytes: Option<u64>,
    #[command(flatten)]
    pub(crate) want: WantArgs,
    /// Keep it for so long at most: 30m, 8h
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) hold: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `farcall release`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall release L12
  farcall release L12 L13")]
pub(crate) struct ReleaseArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Leases, as `farcall leases` lists them
    #[arg(required = true, value_name = "LEASE")]
    pub(crate) leases: Vec<LeaseId>,
}

/// `farcall leases`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall leases
  farcall leases --all --json | jq '.[] | select(.stage == \"queued\")'")]
pub(crate) struct LeasesArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Everyone's (administrators and viewers)
    #[arg(long)]
    pub(crate) all: bool,
    /// Also those that ended lately
    #[arg(long)]
    pub(crate) ended: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `farcall gpus`, `farcall health`, and listings of `farcall pool`.
#[derive(Args, Debug)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `farcall pool log`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool log
  farcall pool log --csv > log.csv")]
pub(crate) struct LogArgs {
    #[command(flatten)]
    pub(crate) show: ShowArgs,
    /// Print CSV, all that is kept
    #[arg(long, conflicts_with = "json")]
    pub(crate) csv: bool,
}

/// `farcall pool`.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolCommand {
    /// Make a pool: authority, keys, store, the first administrator's token
    Init(InitArgs),
    /// Give a pool a certificate for other names or addresses
    Certify(CertifyArgs),
    /// Serve a pool until SIGINT or SIGTERM
    Serve(PoolServeArgs),
    /// Grant nothing more on a server; what runs there goes on
    #[command(after_help = "\
Examples:
  farcall pool drain gpu1                                 before maintenance
  farcall pool servers                                    wait until it has 0 leases, or end them: farcall release
  farcall pool undrain gpu1                               afterwards")]
    Drain(ServerNameArgs),
    /// Grant on a server again
    #[command(after_help = "\
Examples:
  farcall pool undrain gpu1")]
    Undrain(ServerNameArgs),
    /// Forget a server that is down; what is held on it ends
    #[command(after_help = "\
Examples:
  farcall pool remove gpu1                                it may join again, with a join token")]
    Remove(ServerNameArgs),
    /// List servers
    #[command(after_help = "\
Examples:
  farcall pool servers
  farcall pool servers --json | jq -r '.[] | select(.state == \"down\").name'")]
    Servers(ShowArgs),
    /// Make a token with which servers join
    Join(JoinArgs),
    /// Issue, list, change and revoke tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// Show and set quotas
    #[command(subcommand)]
    Quota(QuotaCommand),
    /// Show or change the pool's times
    Settings(SettingsArgs),
    /// Who did what
    Log(LogArgs),
}

/// One server.
#[derive(Args, Debug)]
pub(crate) struct ServerNameArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Its name, as `farcall pool servers` lists it
    pub(crate) server: String,
}

/// `farcall pool join`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool join --uses 20 > join.token
  farcall serve --pool https://pool:7475 --pool-ca ca.pem --join-token-file join.token")]
pub(crate) struct JoinArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// What the log calls it
    #[arg(long, default_value = "servers")]
    pub(crate) name: String,
    /// How long it is valid
    #[arg(long = "for", value_name = "TIME", value_parser = duration, default_value = "1h")]
    pub(crate) valid: Duration,
    /// How many servers may join with it
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) uses: u32,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// `farcall pool token`.
#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Issue a token; it is printed once and can never be shown again
    Create(TokenCreateArgs),
    /// List tokens
    #[command(after_help = "\
Examples:
  farcall pool token list
  farcall pool token list --json | jq '.[] | {name, share_seconds_today}'")]
    List(ShowArgs),
    /// Make a token valid for so long from now
    #[command(after_help = "\
Examples:
  farcall pool token extend ci --for 30d")]
    Extend(TokenExtendArgs),
    /// Refuse a token until it is enabled; what it holds ends
    #[command(after_help = "\
Examples:
  farcall pool token disable ann")]
    Disable(TokenNameArgs),
    /// Take a disabled token again
    #[command(after_help = "\
Examples:
  farcall pool token enable ann")]
    Enable(TokenNameArgs),
    /// Make a token void for ever; what it holds ends
    #[command(after_help = "\
Examples:
  farcall pool token revoke ann                  its name may be given again, to a new token")]
    Revoke(TokenNameArgs),
    /// Let a token's owner log in to the dashboard with a password
    Password(TokenPasswordArgs),
}

/// `farcall pool token create`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool token create ann --group vision > ann.token
  farcall pool token create ci --for 30d --gpus 2 --request-gpus 1")]
pub(crate) struct TokenCreateArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Name of the token and its client
    pub(crate) name: String,
    /// What it may do
    #[arg(long, value_enum, default_value_t = RoleName::Client)]
    pub(crate) role: RoleName,
    /// Clients of a group share its quota
    #[arg(long, value_name = "NAME")]
    pub(crate) group: Option<String>,
    /// Valid for so long [default: until it is revoked]
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) valid: Option<Duration>,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// What a token may do.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum RoleName {
    /// Everything
    Admin,
    /// See everything, change nothing
    Viewer,
    /// Ask for GPUs
    Client,
}

/// `farcall pool token extend`.
#[derive(Args, Debug)]
pub(crate) struct TokenExtendArgs {
    #[command(flatten)]
    pub(crate) token: TokenNameArgs,
    /// How long from now
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) valid: Duration,
}

/// `farcall pool token password`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool token password admin              asks for it
  farcall pool token password ann --remove       only the token logs in")]
pub(crate) struct TokenPasswordArgs {
    #[command(flatten)]
    pub(crate) token: TokenNameArgs,
    /// File that holds it [default: standard input]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) file: Option<PathBuf>,
    /// Take the password away
    #[arg(long, conflicts_with = "file")]
    pub(crate) remove: bool,
}

/// One token.
#[derive(Args, Debug)]
pub(crate) struct TokenNameArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Its name
    pub(crate) name: String,
}

/// `farcall pool quota`.
#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// Limit a client; limits that are not given are lifted
    Client(QuotaSetArgs),
    /// Limit a group; limits that are not given are lifted
    Group(QuotaSetArgs),
    /// Limit clients that have no limit of their own
    #[command(after_help = "\
Examples:
  farcall pool quota default --gpus 4 --longest 24h --gpu-hours-per-day 50
  farcall pool quota default                     lifts all of them")]
    Default(QuotaDefaultArgs),
    /// Show groups, their limits and use
    #[command(after_help = "\
Examples:
  farcall pool quota groups
  farcall pool quota groups --json")]
    Groups(ShowArgs),
}

/// `farcall pool quota client|group`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool quota client ann --gpus 2 --memory 40GiB --longest 12h
  farcall pool quota group vision --gpus 8 --gpu-hours-per-day 100")]
pub(crate) struct QuotaSetArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Name of the token or group
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
}

/// `farcall pool quota default`.
#[derive(Args, Debug)]
pub(crate) struct QuotaDefaultArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    #[command(flatten)]
    pub(crate) quota: QuotaArgs,
}

/// Limits.
#[derive(Args, Clone, Debug)]
pub(crate) struct QuotaArgs {
    /// GPUs at once, in shares: 2, 0.5
    #[arg(long, value_name = "GPUS", value_parser = gpus)]
    pub(crate) gpus: Option<u64>,
    /// Device memory at once
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(crate) memory: Option<u64>,
    /// Share x time in one day, in hours of a whole GPU
    #[arg(long, value_name = "HOURS")]
    pub(crate) gpu_hours_per_day: Option<f64>,
    /// GPUs in one request
    #[arg(long, value_name = "N")]
    pub(crate) request_gpus: Option<u16>,
    /// Longest lease
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) longest: Option<Duration>,
    /// Each step is worth five minutes of waiting: -10 to 10
    #[arg(long, value_name = "STEPS", allow_negative_numbers = true, value_parser = clap::value_parser!(i8).range(-10..=10))]
    pub(crate) priority: Option<i8>,
}

/// `farcall pool settings`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall pool settings
  farcall pool settings --idle 30m --client-ttl 1m")]
pub(crate) struct SettingsArgs {
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Leases that are unused for so long are taken back; `never`
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) idle: Option<Duration>,
    /// A client that is silent for so long has lost what it held
    #[arg(long, value_name = "TIME", value_parser = bounded)]
    pub(crate) client_ttl: Option<Duration>,
    /// A server that is silent for so long is down
    #[arg(long, value_name = "TIME", value_parser = bounded)]
    pub(crate) server_ttl: Option<Duration>,
    /// How long a signed grant opens sessions
    #[arg(long, value_name = "TIME", value_parser = bounded)]
    pub(crate) grant: Option<Duration>,
    /// Once the first in the queue has waited so long, GPUs are set aside for it
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(crate) patience: Option<Duration>,
    /// Open pages of the dashboard ask for new figures that often
    #[arg(long, value_name = "TIME", value_parser = bounded)]
    pub(crate) refresh: Option<Duration>,
}

/// How `farcall serve` joins a pool.
#[derive(Args, Clone, Debug)]
pub(crate) struct MemberArgs {
    /// Join this pool: clients then need its grants
    #[arg(long, value_name = "URL", conflicts_with = "token_file", value_hint = ValueHint::Url)]
    pub(crate) pool: Option<String>,
    /// File with the pool's authority (ca.pem), which https needs
    #[arg(long, value_name = "FILE", requires = "pool", value_hint = ValueHint::FilePath)]
    pub(crate) pool_ca: Option<PathBuf>,
    /// File with a join token; needed the first time only
    #[arg(long, value_name = "FILE", requires = "pool", value_hint = ValueHint::FilePath)]
    pub(crate) join_token_file: Option<PathBuf>,
    /// File that keeps the credential which the pool gives [default: below ~/.local/state/farcall]
    #[arg(long, value_name = "FILE", requires = "pool", value_hint = ValueHint::FilePath)]
    pub(crate) pool_credential: Option<PathBuf>,
    /// Where this server is reached, of several the first by clients: gpu=HOST:PORT, management=HOST:PORT
    /// [default: the address it listens on]
    #[arg(long, value_name = "[NETWORK=]HOST:PORT", requires = "pool", value_parser = net_address)]
    pub(crate) advertise: Vec<NetAddress>,
    /// Do not measure how long kernels of each client run, which the pool shows
    #[arg(long, requires = "pool")]
    pub(crate) no_measure: bool,
    /// Place in the network, outermost switch first: hall1/rack7/leaf2
    #[arg(
        long,
        value_name = "SWITCHES",
        requires = "pool",
        default_value = "",
        hide_default_value = true
    )]
    pub(crate) switch: String,
}

fn size(text: &str) -> Result<u64, SizeError> {
    parse_size(text)
}

fn gpus(text: &str) -> Result<u64, String> {
    let permille = thousandths(text).filter(|it| (0.0..=1e9).contains(it));
    let permille = permille.ok_or_else(|| format!("{text:?} is not a number of GPUs"))?;
    // In range, so nothing is cut off.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(permille.round() as u64)
}

fn thousandths(text: &str) -> Option<f64> {
    text.trim()
        .parse::<f64>()
        .ok()
        .map(|number| number * 1000.0)
}

/// `90s`, `15m`, `8h`, `30d`, `500ms`, `forever`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let bad = || format!("{text:?} is not a time; write 90s, 15m, 8h, 30d or forever");
    let trimmed = text.trim();
    if trimmed == "forever" || trimmed == "never" {
        return Ok(Duration::MAX);
    }
    let at = trimmed
        .find(|c: char| !c.is_ascii_digit())
        .ok_or_else(bad)?;
    let (number, unit) = trimmed.split_at(at);
    let number: u64 = number.parse().map_err(|_| bad())?;
    let ms = match unit.trim() {
        "ms" => 1,
        "s" => 1000,
        "m" | "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    number
        .checked_mul(ms)
        .map(Duration::from_millis)
        .ok_or_else(bad)
}

/// The same without `forever`, where that would make no sense.
fn bounded(text: &str) -> Result<Duration, String> {
    match duration(text) {
        Ok(Duration::MAX) => Err(format!("{text:?} is too long; write 90s, 15m or 8h")),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bounded, duration, gpus};

    #[test]
    fn numbers_of_gpus() {
        assert_eq!(gpus("2.5"), Ok(2500));
    }

    #[test]
    fn durations() {
        assert_eq!(duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("8h"), Ok(Duration::from_secs(8 * 3600)));
        assert_eq!(duration("forever"), Ok(Duration::MAX));
        assert_eq!(bounded("8h"), duration("8h"));
        assert!(bounded("forever").is_err());
        for bad in ["", "8", "h", "8 weeks", "-1s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
