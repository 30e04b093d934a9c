//! The commit that this program was built from.
//!
//! The sources may have changed since: where one is newer than what was built of it, nobody knows which commit it was.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

/// Said by whoever builds a commit away from its repository (`scripts/perf-gate ab`).
const BUILT_OF: Option<&str> = option_env!("FARCALL_COMMIT");

/// What is built, beside this program, and where its sources lie.
const BUILT: [(&str, &[&str]); 2] = [
    (
        "farcall-bench",
        &[
            "bench/src",
            "fixtures/src",
            "gpu-exec",
            "marshal",
            "transport",
        ],
    ),
    ("libcuda.so", &["marshal", "shim", "transport"]),
];
/// What is built of: tests and texts are not.
const SOURCES: [&str; 4] = ["rs", "cat", "c", "toml"];

/// Its short name, with `+` behind it if sources have changes that are not committed; `unknown` if the sources are not those
/// that it was built from, or lie elsewhere.
pub(crate) fn of_this_program() -> String {
    if let Some(commit) = BUILT_OF {
        return commit.to_owned();
    }
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let own = std::env::current_exe().unwrap_or_default();
    let known = is_current(&repository, &own).then(|| of(&repository));
    known.flatten().unwrap_or_else(|| "unknown".to_owned())
}

fn of(repository: &Path) -> Option<String> {
    let commit = git(repository, &["rev-parse", "--short=12", "HEAD"])?;
    // Texts and results change nothing that is measured.
    let sources = [":/", ":(top,exclude)*.md", ":(top,exclude)bench/results"];
    let status = [&["status", "--porcelain", "--"][..], &sources].concat();
    let changed = git(repository, &status)?;
    let mark = if changed.is_empty() { "" } else { "+" };
    Some(format!("{commit}{mark}"))
}

fn git(repository: &Path, args: &[&str]) -> Option<String> {
    let mut command = Command::new("git");
    let output = command.arg("-C").arg(repository).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}

/// Whether nothing is newer than what was built of it. `own` is this program; the others lie beside it, if they were built.
fn is_current(repository: &Path, own: &Path) -> bool {
    BUILT.iter().all(|(name, sources)| {
        let built = match *name {
            "farcall-bench" => own.to_owned(),
            name => own.with_file_name(name),
        };
        let is_own = built == own;
        let Some(built) = changed(&built) else {
            // What was not built is not measured.
            return !is_own;
        };
        let folders = sources.iter().map(|folder| repository.join(folder));
        folders.filter_map(newest).all(|source| source <= built)
    })
}

fn changed(file: &Path) -> Option<SystemTime> {
    file.metadata().ok()?.modified().ok()
}

/// When the last of the sources below a folder was changed.
fn newest(folder: PathBuf) -> Option<SystemTime> {
    let entries = folder.read_dir().ok()?.flatten();
    let times = entries.filter_map(|entry| {
        let path = entry.path();
        let kind = entry.file_type().ok()?;
        let is_test = ["tests", "benches", "target"].map(|name| path.ends_with(name));
        if kind.is_dir() {
            return (!is_test.contains(&true)).then(|| newest(path)).flatten();
        }
        let is_source = SOURCES
            .iter()
            .any(|of| path.extension().is_some_and(|is| is == *of));
        is_source.then(|| changed(&path)).flatten()
    });
    times.max()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs::{self, File};
    use std::time::{Duration, SystemTime};

    use super::is_current;

    #[test]
    fn sources_that_are_newer_are_not_what_was_built() {
        let repository = tempfile::tempdir().unwrap();
        let at = |name: &str| repository.path().join(name);
        let write = |name: &str, seconds: u64| {
            fs::create_dir_all(at(name).parent().unwrap()).unwrap();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            File::create(at(name)).unwrap().set_modified(time).unwrap();
        };
        write("built/farcall-bench", 100);
        write("transport/src/deep/stream.rs", 50);
        write("transport/README.md", 200);
        write("transport/tests/new.rs", 200);
        let own = at("built/farcall-bench");
        assert!(is_current(repository.path(), &own));
        // Of the library, which was not built.
        write("shim/src/lib.rs", 150);
        assert!(is_current(repository.path(), &own));
        write("built/libcuda.so", 120);
        assert!(!is_current(repository.path(), &own));
        write("built/libcuda.so", 160);
        assert!(is_current(repository.path(), &own));
        write("transport/src/deep/stream.rs", 101);
        assert!(!is_current(repository.path(), &own));
        assert!(!is_current(repository.path(), &at("built/gone")));
    }
}
