//! One run of a measurement as it is kept: what, where, when, of which commit.
#![forbid(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::commit;
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
    /// Of the sources that this program was built from; `+` behind it: with changes that are not committed.
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

/// What is seen before a measurement, as the measurement itself makes the machine busy.
#[derive(Clone, Debug)]
pub struct Before {
    machine: Machine,
}

impl Before {
    /// This host, which measures nothing yet.
    #[must_use]
    pub fn here() -> Self {
        Self {
            machine: Machine::here(),
        }
    }

    /// These figures, made since by this process.
    #[must_use]
    pub fn run(self, mut figures: Vec<Figure>, server: Option<Machine>) -> Run {
        let machine = self.machine;
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
        warnings.extend(figures.iter_mut().flat_map(|figure| figure.notes.drain(..)));
        if cfg!(debug_assertions) {
            warnings.insert(
                0,
                "built without optimization: cargo build --release".to_owned(),
            );
        }
        Run {
            schema: SCHEMA,
            command: std::env::args().skip(1).collect::<Vec<_>>().join(" "),
            commit: commit::of_this_program(),
            unix_s: since.as_secs(),
            date: date(since.as_secs()),
            is_debug_build: cfg!(debug_assertions),
            machine,
            server,
            warnings,
            figures,
        }
    }
}

impl Run {
    /// Between which hosts it was measured: figures of others have other reasons.
    #[must_use]
    pub fn pair(&self) -> String {
        let host = |of: &Machine| format!("{} ({} cores)", of.cpu, of.cores);
        match &self.server {
            None => host(&self.machine),
            Some(server) => format!("{} to {}", host(&self.machine), host(server)),
        }
    }

    /// Appends the run to a file, one line of JSON for each run.
    ///
    /// # Errors
    /// The system's; `InvalidData` for a figure that is no number, which could not be read again.
    pub fn save(&self, file: &Path) -> io::Result<()> {
        let mut values = self.figures.iter().flat_map(|figure| {
            let beside = figure
                .beside
                .iter()
                .map(|beside| (&beside.name, beside.value));
            std::iter::once((&figure.name, figure.value)).chain(beside)
        });
        if let Some((name, value)) = values.find(|(_, value)| !value.is_finite()) {
            let text = format!("{name} is {value}: the run is not kept");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        let mut file = OpenOptions::new().create(true).append(true).open(file)?;
        file.write_all(line.as_bytes())
    }
}

/// What was kept.
#[derive(Clone, Debug, Default)]
pub struct Kept {
    /// Oldest first.
    pub runs: Vec<Run>,
    /// Lines that are no runs, each with file, number and reason: one that was cut off does not hide the others.
    pub skipped: Vec<String>,
}

/// Every run in the `.ndjson` files of a folder.
///
/// # Errors
/// The system's.
pub fn load(folder: &Path) -> io::Result<Kept> {
    let mut kept = Kept::default();
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(kept),
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
            match read(line) {
                Ok(run) => kept.runs.push(run),
                Err(error) => {
                    let text = format!("{}:{}: {error}", path.display(), number + 1);
                    kept.skipped.push(text);
                }
            }
        }
    }
    kept.runs.sort_by_key(|run| run.unix_s);
    Ok(kept)
}

fn read(line: &str) -> Result<Run, String> {
    let run: Run = serde_json::from_str(line).map_err(|error| error.to_string())?;
    if run.schema == SCHEMA {
        Ok(run)
    } else {
        Err(format!("form {}, this program reads {SCHEMA}", run.schema))
    }
}

/// Where results are kept: `bench/results`.
#[must_use]
pub fn results() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("results")
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

    use std::io::Write as _;

    use super::{Before, SCHEMA, date, load};
    use crate::figure::Figure;

    #[test]
    fn dates() {
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(date(1_767_225_599), "2025-12-31 23:59:59");
    }

    #[test]
    fn runs_are_kept_line_by_line_and_a_bad_line_hides_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.ndjson");
        let figure = Figure::new("rtt/tcp/64B", "us", 7.5).beside("raw", 7.0);
        let run = Before::here().run(vec![figure], None);
        run.save(&file).unwrap();
        let mut open = std::fs::OpenOptions::new()
            .append(true)
            .open(&file)
            .unwrap();
        let other = SCHEMA + 1;
        writeln!(open, "{{\"schema\": ").unwrap();
        run.save(&file).unwrap();
        let text = serde_json::to_string(&run).unwrap();
        let schema = format!("\"schema\":{SCHEMA}");
        let newer = text.replace(&schema, &format!("\"schema\":{other}"));
        writeln!(open, "{newer}").unwrap();
        let kept = load(folder.path()).unwrap();
        assert_eq!(
            (kept.runs.len(), kept.skipped.len()),
            (2, 2),
            "{:?}",
            kept.skipped
        );
        assert_eq!(kept.runs[0].figures[0].beside[0].value, 7.0);
        assert!(
            kept.skipped[0].contains("a.ndjson:2:"),
            "{:?}",
            kept.skipped
        );
        assert!(load(&folder.path().join("none")).unwrap().runs.is_empty());
    }

    #[test]
    fn what_could_not_be_read_again_is_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.ndjson");
        let figure = Figure::new("bulk", "GB/s", f64::INFINITY);
        let error = Before::here()
            .run(vec![figure], None)
            .save(&file)
            .unwrap_err();
        assert!(error.to_string().contains("bulk is inf"), "{error}");
        assert!(!file.exists());
    }

    #[test]
    fn notes_of_figures_are_warnings_of_the_run() {
        let figure = Figure::new("a", "us", 1.0).note("not as fast as wanted");
        let run = Before::here().run(vec![figure], None);
        assert!(run.warnings.contains(&"not as fast as wanted".to_owned()));
    }
}
