//! One run of a measurement as it is kept: what, where, when, of which commit.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::figure::Figure;
use crate::machine::Machine;

/// Version of this form.
const SCHEMA: u32 = 1;

/// A run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Run {
    /// Version of this form.
    pub schema: u32,
    /// The command line, without the program's path.
    pub command: String,
    /// Of the sources that lie where this program was built; `+` behind it: with changes that are not committed.
    pub commit: String,
    /// Seconds since 1970.
    pub unix_s: u64,
    /// The same as a date, in UTC.
    pub date: String,
    /// Whether the program was built without optimization, which makes every time worthless.
    pub is_debug_build: bool,
    /// The client's host.
    pub machine: Machine,
    /// The server's, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Machine>,
    /// What spoils these figures.
    pub warnings: Vec<String>,
    /// What came out.
    pub figures: Vec<Figure>,
}

impl Run {
    /// Of these figures, made just now by this process.
    #[must_use]
    pub fn now(figures: Vec<Figure>, server: Option<Machine>) -> Self {
        let machine = Machine::here();
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let mut warnings = machine.warnings();
        if let Some(server) = &server {
            warnings.extend(
                server
                    .warnings()
                    .into_iter()
                    .map(|warning| format!("server: {warning}")),
            );
        }
        if cfg!(debug_assertions) {
            warnings.insert(
                0,
                "built without optimization: cargo build --release".to_owned(),
            );
        }
        Self {
            schema: SCHEMA,
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            commit: commit(),
            unix_s: since.as_secs(),
            date: date(since.as_secs()),
            is_debug_build: cfg!(debug_assertions),
            machine,
            server,
            warnings,
            figures,
        }
    }

    /// Appends the run to a file, one line of JSON for each run.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        let mut file = OpenOptions::new().create(true).append(true).open(file)?;
        file.write_all(line.as_bytes())
    }
}

/// Every run in the `.ndjson` files of a folder, oldest first.
///
/// # Errors
/// The system's; `InvalidData` for a line that is no run, with its file and number.
pub fn load(folder: &Path) -> io::Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(runs),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_none_or(|extension| extension != "ndjson")
        {
            continue;
        }
        for (number, line) in fs::read_to_string(&path)?.lines().enumerate() {
            let run = serde_json::from_str(line).map_err(|error| {
                let text = format!("{}:{}: {error}", path.display(), number + 1);
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?;
            runs.push(run);
        }
    }
    runs.sort_by_key(|run| run.unix_s);
    Ok(runs)
}

/// Where results are kept: `bench/results`.
#[must_use]
pub fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results")
}

fn commit() -> String {
    let git = |args: &[&str]| {
        let mut command = Command::new("git");
        let output = command
            .arg("-C")
            .arg(env!("CARGO_MANIFEST_DIR"))
            .args(args)
            .output()
            .ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    let changed = git(&[
        "status",
        "--porcelain",
        "--",
        ":/*.rs",
        ":/*.cat",
        ":/Cargo.*",
    ]);
    let mark = if changed.is_none_or(|changed| changed.is_empty()) {
        ""
    } else {
        "+"
    };
    format!("{commit}{mark}")
}

/// `2026-01-31 12:00:00` of seconds since 1970 (the days by Howard Hinnant's `civil_from_days`).
fn date(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400 + 719_468, unix_s % 86_400);
    let era = days / 146_097;
    let day_of_era = days % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Run, date, load};
    use crate::figure::Figure;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(date(1_767_225_599), "2025-12-31 23:59:59");
    }

    #[test]
    fn runs_are_kept_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let figure = Figure::new("rtt/tcp/64B", "us", 7.5).beside("raw", 7.0);
        for _ in 0..2 {
            Run::now(vec![figure.clone()], None)
                .save(&folder.path().join("a.ndjson"))
                .unwrap();
        }
        let runs = load(folder.path()).unwrap();
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[0].figures[0].beside[0].value, 7.0);
        std::fs::write(folder.path().join("b.ndjson"), "{}\n").unwrap();
        assert!(
            load(folder.path())
                .unwrap_err()
                .to_string()
                .contains("b.ndjson:1")
        );
        assert!(load(&folder.path().join("none")).unwrap().is_empty());
    }
}
