//! Round trips and bytes of the steps of recorded programs (`fixtures/traces`).
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::budget::Step;
use crate::measure::counts;
use crate::net::Transport;

/// The records: name and file.
///
/// # Errors
/// The system's.
pub fn records() -> Result<Vec<(String, PathBuf)>, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/traces");
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let entries = std::fs::read_dir(&folder).map_err(failed)?;
    let mut found: Vec<(String, PathBuf)> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            Some((name.strip_suffix(".calls")?.to_owned(), entry.path()))
        })
        .collect();
    found.sort();
    Ok(found)
}

/// Plays a record on a `null` server: its steps by name.
///
/// # Errors
/// The replay fails.
pub fn of_record(
    program: &Path,
    name: &str,
    file: &Path,
) -> Result<BTreeMap<String, Step>, String> {
    let counted = counts(program, file, Transport::TCP)?;
    let steps = counted.into_iter().map(|(step, counts)| {
        let what = Step {
            trips: counts.trips,
            bytes_out: counts.bytes_out,
        };
        (format!("{name}/{step}"), what)
    });
    Ok(steps.collect())
}
