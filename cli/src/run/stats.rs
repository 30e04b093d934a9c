//! Statistics of the driver calls: kept as JSON, or summed up on stderr.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use farcall_config::format_size;
use serde_json::Value;

use super::absolute;
use crate::failure::Failure;

/// How many functions a summary names.
const NAMED_MAX: usize = 5;

/// Where the shim writes them, and what becomes of them.
pub(crate) struct Stats {
    path: PathBuf,
    summary: bool,
}

impl Stats {
    /// `file` as typed, `-` for a summary; `private` is a directory of our own.
    pub(crate) fn new(file: &Path, private: &Path) -> Result<Self, Failure> {
        let summary = file == Path::new("-");
        let path = if summary {
            private.join("stats.json")
        } else {
            absolute(file)?
        };
        Ok(Self { path, summary })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Call it when the command has ended. Says so if there is nothing: it is what was asked for.
    pub(crate) fn report(&self) {
        let files = written(&self.path);
        if files.is_empty() {
            eprintln!(
                "farcall: no statistics: the program made no driver call, or did not end by itself"
            );
        } else if self.summary {
            let values: Vec<Value> = files.iter().filter_map(|path| read(path)).collect();
            eprint!("{}", Totals::of(&values).summary());
        }
    }
}

/// The file itself and those of further processes, `FILE.PID`.
fn written(path: &Path) -> Vec<PathBuf> {
    let is_of_a_process = |candidate: &Path| {
        let (Some(name), Some(of)) = (candidate.file_name(), path.file_name()) else {
            return false;
        };
        let (name, of) = (name.to_string_lossy(), of.to_string_lossy());
        let pid = name
            .strip_prefix(of.as_ref())
            .and_then(|rest| rest.strip_prefix('.'));
        name == of
            || pid
                .is_some_and(|pid| !pid.is_empty() && pid.bytes().all(|byte| byte.is_ascii_digit()))
    };
    let entries = path
        .parent()
        .and_then(|directory| fs::read_dir(directory).ok());
    entries
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| is_of_a_process(path))
        .collect()
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Sums over the processes of one command.
#[derive(Debug, Default)]
struct Totals {
    processes: usize,
    calls: u64,
    blocking_round_trips: u64,
    frames: u64,
    bytes_out: u64,
    bytes_in: u64,
    ns_in_calls: u64,
    by_class: BTreeMap<String, u64>,
    by_function: BTreeMap<String, u64>,
    transport: Option<String>,
    transport_reason: Option<String>,
    devices: Option<String>,
}

impl Totals {
    fn of(values: &[Value]) -> Self {
        let mut totals = Self {
            processes: values.len(),
            ..Self::default()
        };
        for value in values {
            totals.add(value);
        }
        totals
    }

    fn add(&mut self, value: &Value) {
        let number = |name: &str| count(value.get(name));
        self.calls += number("calls");
        self.blocking_round_trips += number("blocking_round_trips");
        self.frames += number("frames");
        self.bytes_out += number("bytes_out");
        self.bytes_in += number("bytes_in");
        self.ns_in_calls += number("ns_in_calls");
        for (name, into) in [
            ("by_class", &mut self.by_class),
            ("by_function", &mut self.by_function),
        ] {
            for (key, value) in value
                .get(name)
                .and_then(Value::as_object)
                .into_iter()
                .flatten()
            {
                *into.entry(key.clone()).or_default() += count(Some(value));
            }
        }
        let text = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        self.transport = self.transport.take().or_else(|| text("transport"));
        self.transport_reason = self
            .transport_reason
            .take()
            .or_else(|| text("transport_reason").filter(|reason| !reason.is_empty()));
        self.devices = self
            .devices
            .take()
            .or_else(|| value.get("devices").and_then(device_names));
    }

    fn summary(&self) -> String {
        let mut out = String::new();
        let transport = self.transport.as_deref().unwrap_or("no transport");
        let devices = self.devices.as_deref().unwrap_or("no device");
        let _ = writeln!(
            out,
            "farcall: {} driver calls on {devices} over {transport}",
            self.calls
        );
        if let Some(reason) = &self.transport_reason {
            let _ = writeln!(out, "  {transport}: {reason}");
        }
        for (class, calls) in &self.by_class {
            let _ = writeln!(
                out,
                "  {class:<9} {calls:>9}  {:>5.1} %",
                percent(*calls, self.calls)
            );
        }
        let _ = writeln!(
            out,
            "  {} blocking round trips, {} frames, {} out, {} in, {} in calls",
            self.blocking_round_trips,
            self.frames,
            format_size(self.bytes_out),
            format_size(self.bytes_in),
            crate::trace::duration(self.ns_in_calls),
        );
        let mut functions: Vec<_> = self
            .by_function
            .iter()
            .filter(|(_, calls)| **calls > 0)
            .collect();
        functions.sort_by_key(|(name, calls)| (std::cmp::Reverse(**calls), name.as_str()));
        let named: Vec<String> = functions
            .iter()
            .take(NAMED_MAX)
            .map(|(name, calls)| format!("{name} {calls}"))
            .collect();
        if !named.is_empty() {
            let _ = writeln!(out, "  most called: {}", named.join(", "));
        }
        if self.processes > 1 {
            let _ = writeln!(out, "  sum over {} processes", self.processes);
        }
        out
    }
}

/// A number, or the `calls` of an object.
fn count(value: Option<&Value>) -> u64 {
    match value {
        Some(Value::Object(fields)) => fields.get("calls").and_then(Value::as_u64).unwrap_or(0),
        other => other.and_then(Value::as_u64).unwrap_or(0),
    }
}

/// Names of the devices, or how many there are.
fn device_names(value: &Value) -> Option<String> {
    let Value::Array(devices) = value else {
        return value.as_u64().map(|count| format!("{count} devices"));
    };
    let name = |device: &Value| {
        device
            .as_str()
            .or_else(|| device.get("name")?.as_str())
            .map(str::to_owned)
    };
    Some(
        devices
            .iter()
            .filter_map(name)
            .collect::<Vec<_>>()
            .join(", "),
    )
    .filter(|names| !names.is_empty())
}

#[expect(clippy::cast_precision_loss, reason = "one decimal of a percentage")]
fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 {
        0.0
    } else {
        100.0 * part as f64 / whole as f64
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Stats, Totals, written};
    use serde_json::json;
    use std::fs;
    use std::path::Path;

    #[test]
    fn processes_are_summed() {
        let one = json!({
            "calls": 10, "by_class": {"local": 8, "blocking": 2}, "by_function": {"cuInit": 1, "cuCtxGetDevice": 9},
            "blocking_round_trips": 2, "frames": 3, "bytes_out": 1024, "bytes_in": 512, "ns_in_calls": 2_500_000,
            "transport": "tcp", "transport_reason": "asked for", "devices": ["soft 0"],
        });
        let text = Totals::of(&[one.clone(), one]).summary();
        assert!(
            text.starts_with("farcall: 20 driver calls on soft 0 over tcp\n"),
            "{text}"
        );
        for part in [
            "local            16   80.0 %",
            "4 blocking round trips, 6 frames, 2 KiB out, 1 KiB in, 5.00 ms",
            "  tcp: asked for\n",
            "most called: cuCtxGetDevice 18, cuInit 2",
            "2 processes",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn anything_can_stand_in_the_file() {
        assert!(
            Totals::of(&[json!(null), json!([1]), json!({"calls": "x"})])
                .summary()
                .contains("0 driver calls")
        );
    }

    #[test]
    fn files_of_further_processes() {
        let directory = tempfile::tempdir().unwrap();
        let stats = Stats::new(Path::new("-"), directory.path()).unwrap();
        for name in [
            "stats.json",
            "stats.json.12",
            "stats.json.x",
            "stats.jsonl",
            "other",
        ] {
            fs::write(directory.path().join(name), "{}").unwrap();
        }
        let mut names: Vec<_> = written(stats.path())
            .iter()
            .map(|p| p.file_name().unwrap().to_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["stats.json", "stats.json.12"]);
    }
}
