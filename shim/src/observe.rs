//! What `--stats` and `farcall trace` show: counted only when asked for, so that a call costs one load more.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use farcall_config::{ClientConfig, LogLevel, TraceTarget};
use farcall_marshal::catalogue::{CALLS, CallInfo, Class};
use farcall_marshal::status::CuStatus;
use parking_lot::Mutex;
use serde_json::json;

use crate::counters;
use crate::process::Process;
use crate::recorder::{Recorder, Running};

static ON: AtomicBool = AtomicBool::new(false);
static SETTINGS: OnceLock<Settings> = OnceLock::new();
static IN_CHILD: AtomicBool = AtomicBool::new(false);

struct Settings {
    stats: Option<PathBuf>,
    trace: Option<Mutex<Box<dyn std::io::Write + Send>>>,
    steps: bool,
    record: Option<Mutex<Recorder>>,
    started: Instant,
}

/// Whether calls are counted or traced.
#[inline]
pub(crate) fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Applies what the configuration says about statistics, traces and the log. The first call holds.
pub(crate) fn configure(config: &ClientConfig) {
    start_log(config.log);
    let settings = SETTINGS.get_or_init(|| Settings {
        stats: config.stats.clone(),
        trace: config.trace.as_ref().and_then(open_trace).map(Mutex::new),
        steps: config.trace_steps,
        record: config.record.clone().map(Recorder::new).map(Mutex::new),
        started: Instant::now(),
    });
    if settings.stats.is_some() || settings.trace.is_some() || settings.record.is_some() {
        ON.store(true, Ordering::Relaxed);
    }
}

/// Reads the configuration before the first call is counted: a program asks for addresses long before `cuInit`.
pub(crate) fn early() {
    static DONE: OnceLock<()> = OnceLock::new();
    DONE.get_or_init(|| {
        if let Ok(config) = ClientConfig::from_process() {
            configure(&config);
        }
    });
}

fn open_trace(target: &TraceTarget) -> Option<Box<dyn std::io::Write + Send>> {
    match target {
        TraceTarget::Stderr => Some(Box::new(std::io::stderr())),
        TraceTarget::File(path) => match OpenOptions::new().create(true).append(true).open(path) {
            Ok(file) => Some(Box::new(file)),
            Err(error) => {
                eprintln!("farcall: no trace: {}: {error}", path.display());
                None
            }
        },
    }
}

/// The child of a fork counts for itself, in a file of its own.
pub(crate) fn forked() {
    IN_CHILD.store(true, Ordering::Relaxed);
    counters::reset();
}

/// A call is about to wait for a server.
pub(crate) fn round_trip() {
    if is_on() {
        counters::round_trip();
    }
}

/// What follows belongs to the phase `name`.
pub(crate) fn mark(name: String, process: Option<&Process>) {
    if let Some(recorder) = recorder() {
        recorder.lock().mark(&name);
    }
    counters::mark(name, process);
}

fn recorder() -> Option<&'static Mutex<Recorder>> {
    SETTINGS.get()?.record.as_ref()
}

/// A call begins; `None` unless calls are recorded.
pub(crate) fn record(info: &CallInfo, args: &[u64], began: Instant) -> Option<Running> {
    Some(recorder()?.lock().begin(info, args, began))
}

/// A recorded call has returned.
pub(crate) fn recorded(
    running: Running,
    info: &CallInfo,
    args: &[u64],
    status: u32,
    began: Instant,
) {
    let spent = began.elapsed();
    if let Some(recorder) = recorder() {
        recorder
            .lock()
            .end(running, info, args, status, spent, counters::waited());
    }
}

/// One call was made.
pub(crate) fn called(info: &CallInfo, args: &[u64], status: u32, began: Instant) {
    let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
    counters::left(info, ns);
    if let Some(settings) = SETTINGS.get()
        && let Some(trace) = &settings.trace
    {
        trace_call(settings, trace, info, args, status, began, ns);
    }
}

fn trace_call(
    settings: &Settings,
    trace: &Mutex<Box<dyn std::io::Write + Send>>,
    info: &CallInfo,
    args: &[u64],
    status: u32,
    began: Instant,
    ns: u64,
) {
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    let seq = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let line = json!({
        "seq": seq,
        "t_ns": u64::try_from(began.duration_since(settings.started).as_nanos()).unwrap_or(0),
        "ns": ns,
        "tid": thread_number(),
        "call": info.symbol,
        "class": info.class.name(),
        "args": shown(info, args),
        "status": status,
    });
    let mut text = format!("{line}\n");
    if settings.steps && info.class != Class::Local {
        for (step, detail) in crate::steps::take() {
            let _ = writeln!(
                text,
                "{}",
                json!({"seq": seq, "step": step, "detail": detail})
            );
        }
    }
    // One write: other processes of the program may share the file.
    let _ = trace.lock().write_all(text.as_bytes());
}

/// Whether the steps of each call are wanted.
pub(crate) fn wants_steps() -> bool {
    is_on() && SETTINGS.get().is_some_and(|settings| settings.steps)
}

fn thread_number() -> i32 {
    nix::unistd::gettid().as_raw()
}

fn shown(info: &CallInfo, args: &[u64]) -> String {
    let names = info.args.unwrap_or(&[]);
    let parts: Vec<String> = args
        .iter()
        .enumerate()
        .map(|(index, value)| {
            let (name, ty) = names.get(index).copied().unwrap_or(("?", ""));
            if ty == "f32" {
                return format!(
                    "{name}={}",
                    f32::from_bits(u32::try_from(*value).unwrap_or(0))
                );
            }
            if *value < 65536 {
                format!("{name}={value}")
            } else {
                format!("{name}={value:#x}")
            }
        })
        .collect();
    parts.join(" ")
}

/// Kernel output (`printf` on the device) goes to standard output, as CUDA has it.
pub(crate) fn print(text: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text);
    let _ = out.flush();
}

/// Writes the statistics, when the process ends.
pub(crate) fn finish(process: Option<&Process>) {
    let Some(settings) = SETTINGS.get() else {
        return;
    };
    if let Some(trace) = &settings.trace {
        let _ = trace.lock().flush();
    }
    // In the child of a fork another thread may have held the recorder.
    if let Some(recorder) = settings.record.as_ref().and_then(Mutex::try_lock)
        && !IN_CHILD.load(Ordering::Relaxed)
        && let Err(error) = std::fs::write(recorder.path(), recorder.file())
    {
        eprintln!("farcall: no record: {}: {error}", recorder.path().display());
    }
    let Some(path) = &settings.stats else { return };
    let path = if IN_CHILD.load(Ordering::Relaxed) {
        let mut name = path.clone().into_os_string();
        name.push(format!(".{}", std::process::id()));
        PathBuf::from(name)
    } else {
        path.clone()
    };
    let text = statistics(process).to_string();
    if let Err(error) = File::create(&path).and_then(|mut file| writeln!(file, "{text}")) {
        eprintln!("farcall: no statistics: {}: {error}", path.display());
    }
}

fn statistics(process: Option<&Process>) -> serde_json::Value {
    let rtt_ns: u64 = process.map_or(0, |p| {
        p.sessions.iter().map(|s| s.endpoint.stats().rtt_ns).sum()
    });
    let devices: Vec<serde_json::Value> = process.map_or_else(Vec::new, |p| {
        p.devices
            .iter()
            .map(|d| json!({"ordinal": d.ordinal, "server": d.session.inbox.server(), "server_ordinal": d.server_ordinal, "name": d.name, "memory_bytes": d.limit_bytes}))
            .collect()
    });
    let endpoint = process
        .and_then(|p| p.sessions.first())
        .map(|s| &s.endpoint);
    let mut object = counters::to_json(process);
    object.insert("rtt_ns".to_owned(), rtt_ns.into());
    object.insert(
        "transport".to_owned(),
        json!(endpoint.map(farcall_transport::Endpoint::transport_name)),
    );
    object.insert(
        "transport_reason".to_owned(),
        json!(endpoint.map(farcall_transport::Endpoint::transport_reason)),
    );
    object.insert("devices".to_owned(), devices.into());
    object.into()
}

fn start_log(level: LogLevel) {
    let level = match level {
        LogLevel::Off => log::LevelFilter::Off,
        LogLevel::Error => log::LevelFilter::Error,
        LogLevel::Warn => log::LevelFilter::Warn,
        LogLevel::Info => log::LevelFilter::Info,
        LogLevel::Debug => log::LevelFilter::Debug,
        LogLevel::Trace => log::LevelFilter::Trace,
    };
    static LOGGER: Stderr = Stderr;
    let _ = log::set_logger(&LOGGER);
    log::set_max_level(level);
}

/// Log lines of the shim: on stderr, marked as ours, because the stream belongs to the program.
struct Stderr;

impl log::Log for Stderr {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!(
            "farcall: {}: {}",
            record.level().as_str().to_lowercase(),
            record.args()
        );
    }

    fn flush(&self) {}
}

/// Names a call that is not implemented, once.
pub(crate) fn missing(info: &CallInfo) -> CuStatus {
    static NAMED: [AtomicBool; CALLS.len() + 1] =
        [const { AtomicBool::new(false) }; CALLS.len() + 1];
    if NAMED
        .get(usize::from(info.number))
        .is_some_and(|named| !named.swap(true, Ordering::Relaxed))
    {
        if info.refusal.is_empty() {
            log::warn!(
                "{} is not implemented yet: it returns CUDA_ERROR_NOT_SUPPORTED (see `farcall coverage`)",
                info.symbol
            );
        } else {
            log::warn!(
                "{} is refused with CUDA_ERROR_NOT_SUPPORTED: {}",
                info.symbol,
                info.refusal
            );
        }
    }
    CuStatus::NOT_SUPPORTED
}
