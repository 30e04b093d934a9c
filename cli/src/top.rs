//! `farcall top`: what the devices of a server or of a pool do, and for whom.
#![forbid(unsafe_code)]

use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use farcall_config::format_size;
use farcall_gpu_exec::{ServerUsage, SessionNow};
use serde::Serialize;

use crate::args::metrics_address;
use crate::failure::{Failure, code, written};
use crate::metrics::USAGE_PATH;
use crate::pool::Now;
use crate::pool::args::PoolArgs;
use crate::table::{self, Align};

/// Where it looks, if it is not told.
const METRICS_DEFAULT: &str = "127.0.0.1:7476";
/// For the server to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longest answer.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// Moves the cursor home and clears what is below.
const CLEAR: &str = "\x1b[H\x1b[J";

/// `farcall top`.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  farcall serve --metrics 127.0.0.1:7476 &
  farcall top
  farcall top gpu1:7476 --once
  farcall top --json --once | jq '.devices[].busy_ns'
  farcall top --pool https://pool:7475 --pool-ca ca.pem     GPUs and leases of a pool

Exit code 69: nobody answers there.")]
pub(crate) struct TopArgs {
    /// Where the server was told to answer with --metrics [default: the pool, if one is named, else 127.0.0.1:7476]
    #[arg(value_name = "HOST:PORT", value_parser = metrics_address)]
    pub(crate) metrics: Option<String>,
    #[command(flatten)]
    pub(crate) pool: PoolArgs,
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 1.0, value_parser = interval)]
    pub(crate) interval: f64,
    /// Look once
    #[arg(long)]
    pub(crate) once: bool,
    /// Print JSON, one line per look
    #[arg(long)]
    pub(crate) json: bool,
}

fn interval(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.1..=3600.0).contains(&seconds) => Ok(seconds),
        _ => Err(format!("{text:?} is not a time; write 0.1 to 3600 seconds")),
    }
}

/// Figures, and when they were asked for.
struct Look {
    usage: ServerUsage,
    at: Instant,
}

pub(crate) fn top(args: &TopArgs) -> Result<ExitCode, Failure> {
    let of_pool = args.metrics.is_none() && args.pool.pool.is_some();
    let mut before: Option<Look> = None;
    loop {
        let mut out = Vec::new();
        if !args.once && !args.json && io::stdout().is_terminal() {
            out.extend_from_slice(CLEAR.as_bytes());
        }
        let drawn = if of_pool {
            let now = Now::ask(&args.pool)?;
            if args.json {
                json_line(&mut out, &now)
            } else {
                now.show(&mut out)
            }
        } else {
            let now = look(args.metrics.as_deref().unwrap_or(METRICS_DEFAULT))?;
            let drawn = if args.json {
                json_line(&mut out, &now.usage)
            } else {
                show(&mut out, &now, before.as_ref())
            };
            before = Some(now);
            drawn
        };
        let shown = drawn.and_then(|()| {
            io::stdout().write_all(&out)?;
            io::stdout().flush()
        });
        if args.once || shown.is_err() {
            return written(shown);
        }
        std::thread::sleep(Duration::from_secs_f64(args.interval));
    }
}

fn json_line(out: &mut Vec<u8>, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)
}

fn look(address: &str) -> Result<Look, Failure> {
    let unavailable = |why: String| {
        Failure::new(
            code::UNAVAILABLE,
            format!("no figures from {address}: {why}"),
            "start the server with --metrics HOST:PORT, and name that here",
        )
    };
    let text = get(address, USAGE_PATH).map_err(|error| unavailable(error.to_string()))?;
    let at = Instant::now();
    let usage = serde_json::from_str(&text).map_err(|error| unavailable(error.to_string()))?;
    Ok(Look { usage, at })
}

/// The body of a page.
fn get(address: &str, path: &str) -> io::Result<String> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for resolved in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&resolved, PATIENCE) {
            Ok(connection) => return ask(connection, address, path),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn ask(mut connection: TcpStream, host: &str, path: &str) -> io::Result<String> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    write!(connection, "GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n")?;
    let mut answer = String::new();
    connection
        .take(ANSWER_BYTES_MAX)
        .read_to_string(&mut answer)?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(io::ErrorKind::InvalidData)?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) == Some("200") {
        Ok(body.to_owned())
    } else {
        Err(io::Error::other(format!("it says {status:?}")))
    }
}

/// Writes the tables. Busy times are those since the last look; without one, since the session was opened.
fn show(out: &mut Vec<u8>, now: &Look, before: Option<&Look>) -> io::Result<()> {
    use Align::{Left, Right};
    let usage = &now.usage;
    let sessions = usage.sessions.len();
    writeln!(
        out,
        "{} (--device {}), {sessions} sessions\n",
        usage.server_name, usage.kind
    )?;
    let devices: Vec<Vec<String>> = usage
        .devices
        .iter()
        .map(|device| {
            let past = before.and_then(|look| {
                let same = look
                    .usage
                    .devices
                    .iter()
                    .find(|it| it.ordinal == device.ordinal)?;
                Some((same.busy_ns, now.at - look.at))
            });
            vec![
                device.ordinal.to_string(),
                if device.is_lost {
                    "lost".to_owned()
                } else {
                    "ok".to_owned()
                },
                past.map_or_else(
                    || "-".to_owned(),
                    |(busy, time)| percent(device.busy_ns - busy.min(device.busy_ns), time),
                ),
                format_size(device.used_bytes),
                format_size(device.total_bytes),
                device.sessions.to_string(),
                device.kernels.to_string(),
            ]
        })
        .collect();
    let header = [
        ("GPU", Right),
        ("STATE", Left),
        ("BUSY", Right),
        ("USED", Right),
        ("MEMORY", Right),
        ("SESSIONS", Right),
        ("KERNELS", Right),
    ];
    table::write(out, &header, &devices)?;
    writeln!(out)?;
    let header = [
        ("SESSION", Right),
        ("GPU", Right),
        ("SHARE", Right),
        ("BUSY", Right),
        ("USED", Right),
        ("LIMIT", Right),
        ("CALLS", Right),
        ("IN", Right),
        ("OUT", Right),
        ("WAY", Left),
        ("CLIENT", Left),
    ];
    table::write(out, &header, &session_rows(now, before))
}

fn session_rows(now: &Look, before: Option<&Look>) -> Vec<Vec<String>> {
    let rows = now.usage.sessions.iter().flat_map(|session| {
        session.devices.iter().map(move |part| {
            let past = before.and_then(|look| {
                let same = look
                    .usage
                    .sessions
                    .iter()
                    .find(|it| it.session == session.session)?;
                let same = same.devices.iter().find(|it| it.ordinal == part.ordinal)?;
                Some((same.busy_ns, now.at - look.at))
            });
            let (busy_before, time) =
                past.unwrap_or((0, Duration::from_millis(session.age_ms.max(1))));
            vec![
                session.session.to_string(),
                part.ordinal.to_string(),
                format!("{:.2}", f64::from(part.share_permille) / 1e3),
                percent(part.busy_ns.saturating_sub(busy_before), time),
                format_size(part.used_bytes),
                format_size(part.limit_bytes),
                session.records.to_string(),
                format_size(session.bytes_in),
                format_size(session.bytes_out),
                way(session),
                session.client.clone(),
            ]
        })
    });
    rows.collect()
}

/// How calls travel, and their round trip.
fn way(session: &SessionNow) -> String {
    match session.rtt_ns {
        0 => session.transport.clone(),
        ns => format!("{} {}us", session.transport, ns.div_ceil(1000)),
    }
}

fn percent(busy_ns: u64, time: Duration) -> String {
    let busy = Duration::from_nanos(busy_ns).as_secs_f64();
    format!(
        "{:.0}%",
        (100.0 * busy / time.as_secs_f64().max(1e-9)).min(100.0)
    )
}
