//! `farcall serve --metrics`: what devices and sessions have had, for Prometheus and for `farcall top`.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use farcall_gpu_exec::{DeviceNow, ServerUsage, SessionNow, SessionPart, Sessions};

/// Path of the figures as JSON.
pub(crate) const USAGE_PATH: &str = "/v1/usage";
const METRICS_PATH: &str = "/metrics";
/// Longest request that is read.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Connections answered at once.
const CONNECTIONS_MAX: usize = 16;
/// For a client to ask and to take the answer, and for the server to give it.
const PATIENCE: Duration = Duration::from_secs(5);
/// Stack of a thread that answers.
const STACK_BYTES: usize = 256 << 10;

/// Answers at `listen` from threads of its own, as long as the process lives. Returns the bound address.
///
/// # Errors
/// The address cannot be bound, no thread.
pub(crate) fn start(listen: &str, sessions: Sessions) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(listen)?;
    let address = listener.local_addr()?;
    let open = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for connection in listener.incoming().filter_map(Result::ok) {
            let (sessions, open) = (sessions.clone(), Guard::new(&open));
            let Some(open) = open else { continue };
            let answer = move || {
                if let Err(error) = answer(connection, &sessions) {
                    log::debug!("metrics: {error}");
                }
                drop(open);
            };
            let builder = std::thread::Builder::new().stack_size(STACK_BYTES);
            if let Err(error) = builder.spawn(answer) {
                log::warn!("metrics: {error}");
            }
        }
    };
    let builder = std::thread::Builder::new().name("metrics".to_owned());
    builder.stack_size(STACK_BYTES).spawn(accept)?;
    Ok(address)
}

/// One of the connections that there may be.
struct Guard(Arc<AtomicUsize>);

impl Guard {
    fn new(open: &Arc<AtomicUsize>) -> Option<Self> {
        let guard = Self(open.clone());
        (open.fetch_add(1, Ordering::Relaxed) < CONNECTIONS_MAX).then_some(guard)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn answer(mut connection: TcpStream, sessions: &Sessions) -> io::Result<()> {
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    let request = read_request(&mut connection)?;
    let mut words = request.split_ascii_whitespace();
    let (method, path) = (words.next(), words.next().unwrap_or_default());
    let path = path.split('?').next().unwrap_or_default();
    let (status, kind, body) = match (method, path) {
        (Some("GET"), METRICS_PATH | USAGE_PATH) => match sessions.usage(PATIENCE) {
            None => (
                "503 Service Unavailable",
                TEXT,
                "the server does not answer\n".to_owned(),
            ),
            Some(usage) if path == METRICS_PATH => ("200 OK", PROMETHEUS, text(&usage)),
            Some(usage) => ("200 OK", "application/json", serde_json::to_string(&usage)?),
        },
        (Some("GET"), _) => (
            "404 Not Found",
            TEXT,
            format!("{METRICS_PATH} and {USAGE_PATH} are here\n"),
        ),
        _ => ("405 Method Not Allowed", TEXT, "GET alone\n".to_owned()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes())?;
    connection.write_all(body.as_bytes())
}

const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The head of a request.
fn read_request(connection: &mut TcpStream) -> io::Result<String> {
    let mut bytes = Vec::new();
    let mut part = [0; 1024];
    while !bytes.windows(4).any(|end| end == b"\r\n\r\n") {
        let count = connection.read(&mut part)?;
        if count == 0 || bytes.len() + count > REQUEST_BYTES_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        bytes.extend(part.iter().take(count));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The figures in Prometheus' text format; `docs/metrics-server.md` lists them.
fn text(usage: &ServerUsage) -> String {
    let mut page = Page::default();
    let version = usage.driver_version;
    let labels = [
        ("server", usage.server_name.clone()),
        ("device", usage.kind.to_string()),
        (
            "cuda",
            format!("{}.{}", version / 1000, version % 1000 / 10),
        ),
        ("version", env!("CARGO_PKG_VERSION").to_owned()),
    ];
    page.family("farcall_server_info", "gauge", "What serves; always 1");
    page.sample(&labels, 1.0);
    page.family("farcall_sessions", "gauge", "Sessions that are open");
    page.sample(&[], number(usage.sessions.len() as u64));
    page.family(
        "farcall_sessions_ended_total",
        "counter",
        "Sessions that are over",
    );
    page.sample(&[], number(usage.sessions_ended));
    for (name, kind, help, value) in GPU {
        page.family(name, kind, help);
        for device in &usage.devices {
            let labels = [
                ("gpu", device.ordinal.to_string()),
                ("uuid", device.uuid.clone()),
            ];
            page.sample(&labels, value(device));
        }
    }
    for (name, kind, help, value) in SESSION {
        page.family(name, kind, help);
        for session in &usage.sessions {
            page.sample(&labels_of(session), value(session));
        }
    }
    round_trips(&mut page, &usage.sessions);
    for (name, kind, help, value) in PART {
        page.family(name, kind, help);
        for session in &usage.sessions {
            for part in &session.devices {
                let mut labels = labels_of(session);
                labels.push(("gpu", part.ordinal.to_string()));
                page.sample(&labels, value(part));
            }
        }
    }
    page.text
}

type Family<T> = (&'static str, &'static str, &'static str, fn(&T) -> f64);

const GPU: [Family<DeviceNow>; 6] = [
    (
        "farcall_gpu_memory_total_bytes",
        "gauge",
        "Memory of the GPU",
        |gpu| number(gpu.total_bytes),
    ),
    (
        "farcall_gpu_memory_used_bytes",
        "gauge",
        "Memory that sessions have allocated",
        |gpu| number(gpu.used_bytes),
    ),
    (
        "farcall_gpu_sessions",
        "gauge",
        "Sessions that have the GPU",
        |gpu| gpu.sessions.into(),
    ),
    (
        "farcall_gpu_busy_seconds_total",
        "counter",
        "Time that kernels of sessions ran",
        |gpu| seconds(gpu.busy_ns),
    ),
    (
        "farcall_gpu_kernels_total",
        "counter",
        "Kernels of sessions",
        |gpu| number(gpu.kernels),
    ),
    (
        "farcall_gpu_lost",
        "gauge",
        "1: the GPU does not answer any more",
        |gpu| f64::from(u8::from(gpu.is_lost)),
    ),
];

const SESSION: [Family<SessionNow>; 4] = [
    (
        "farcall_session_age_seconds",
        "gauge",
        "Time since the session was opened",
        |session| number(session.age_ms) / 1e3,
    ),
    (
        "farcall_session_calls_total",
        "counter",
        "Driver calls that reached the device",
        |session| number(session.records),
    ),
    (
        "farcall_session_received_bytes_total",
        "counter",
        "Bytes from the client, calls and copies",
        |session| number(session.bytes_in),
    ),
    (
        "farcall_session_sent_bytes_total",
        "counter",
        "Bytes to the client, answers and copies",
        |session| number(session.bytes_out),
    ),
];

/// Round trips that are known, with the way.
fn round_trips(page: &mut Page, sessions: &[SessionNow]) {
    page.family(
        ROUND_TRIP,
        "gauge",
        "Round trip to the client, as the transport estimates it",
    );
    for session in sessions.iter().filter(|session| session.rtt_ns > 0) {
        let mut labels = labels_of(session);
        labels.push(("transport", session.transport.clone()));
        page.sample(&labels, seconds(session.rtt_ns));
    }
}

const ROUND_TRIP: &str = "farcall_session_round_trip_seconds";

const PART: [Family<SessionPart>; 5] = [
    (
        "farcall_session_memory_used_bytes",
        "gauge",
        "Memory that the session has allocated",
        |part| number(part.used_bytes),
    ),
    (
        "farcall_session_memory_limit_bytes",
        "gauge",
        "Memory that the session may allocate",
        |part| number(part.limit_bytes),
    ),
    (
        "farcall_session_share_ratio",
        "gauge",
        "Share of the GPU's compute, 0 to 1",
        |part| f64::from(part.share_permille) / 1e3,
    ),
    (
        "farcall_session_busy_seconds_total",
        "counter",
        "Time that the session's kernels ran",
        |part| seconds(part.busy_ns),
    ),
    (
        "farcall_session_kernels_total",
        "counter",
        "The session's kernels",
        |part| number(part.kernels),
    ),
];

fn labels_of(session: &SessionNow) -> Vec<(&'static str, String)> {
    let lease = match session.lease {
        0 => String::new(),
        lease => format!("L{lease}"),
    };
    vec![
        ("session", session.session.to_string()),
        ("client", session.client.clone()),
        ("lease", lease),
    ]
}

/// Prometheus' numbers are floats: exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn number(value: u64) -> f64 {
    value as f64
}

fn seconds(ns: u64) -> f64 {
    Duration::from_nanos(ns).as_secs_f64()
}

#[derive(Default)]
struct Page {
    text: String,
    name: &'static str,
}

impl Page {
    fn family(&mut self, name: &'static str, kind: &str, help: &str) {
        self.name = name;
        let _ = write!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}\n");
    }

    fn sample(&mut self, labels: &[(&'static str, String)], value: f64) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels.join(",") {
            none if none.is_empty() => none,
            some => format!("{{{some}}}"),
        };
        let _ = writeln!(self.text, "{}{labels} {value}", self.name);
    }
}

fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use farcall_gpu_exec::{DeviceKind, DeviceNow, ServerUsage, SessionNow, SessionPart};

    use super::{GPU, PART, ROUND_TRIP, SESSION, text};

    fn usage() -> ServerUsage {
        ServerUsage {
            server_name: "a \"host\"".to_owned(),
            kind: DeviceKind::Soft,
            driver_version: 13_000,
            devices: vec![DeviceNow {
                ordinal: 0,
                uuid: "GPU-1".to_owned(),
                total_bytes: 1 << 40,
                used_bytes: 5,
                sessions: 1,
                busy_ns: 1_500_000_000,
                kernels: 7,
                is_lost: true,
            }],
            sessions: vec![SessionNow {
                session: 3,
                client: "python".to_owned(),
                lease: 12,
                age_ms: 2500,
                records: 9,
                bytes_in: 10,
                bytes_out: 11,
                transport: "tcp".to_owned(),
                rtt_ns: 40_000,
                devices: vec![SessionPart {
                    ordinal: 0,
                    used_bytes: 5,
                    limit_bytes: 6,
                    share_permille: 250,
                    busy_ns: 500_000_000,
                    kernels: 2,
                }],
            }],
            sessions_ended: 4,
            is_measured: true,
            leases: Vec::new(),
        }
    }

    #[test]
    fn the_page_is_prometheus_text() {
        let page = text(&usage());
        for line in [
            "farcall_server_info{server=\"a \\\"host\\\"\",device=\"soft\",cuda=\"13.0\",version=",
            "farcall_sessions_ended_total 4\n",
            "farcall_gpu_memory_total_bytes{gpu=\"0\",uuid=\"GPU-1\"} 1099511627776\n",
            "farcall_gpu_busy_seconds_total{gpu=\"0\",uuid=\"GPU-1\"} 1.5\n",
            "farcall_gpu_lost{gpu=\"0\",uuid=\"GPU-1\"} 1\n",
            "farcall_session_share_ratio{session=\"3\",client=\"python\",lease=\"L12\",gpu=\"0\"} 0.25\n",
            "farcall_session_round_trip_seconds{session=\"3\",client=\"python\",lease=\"L12\",transport=\"tcp\"} 0.00004\n",
            "farcall_session_age_seconds{session=\"3\",client=\"python\",lease=\"L12\"} 2.5\n",
        ] {
            assert!(page.contains(line), "{line}\n{page}");
        }
    }

    #[test]
    fn every_metric_is_documented() {
        let docs = include_str!("../../docs/metrics-server.md");
        let names = GPU.iter().map(|it| it.0);
        let names = names.chain(SESSION.iter().map(|it| it.0));
        let names = names.chain([ROUND_TRIP]);
        for name in names.chain(PART.iter().map(|it| it.0)) {
            assert!(docs.contains(&format!("| `{name}` |")), "{name}");
        }
    }
}
