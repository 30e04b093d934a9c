//! What an idle session costs the server.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use farcall_fixtures::Server;

use crate::figure::{Figure, Target};

/// The promise, in MB (1e6 bytes).
const TARGET_MB: f64 = 30.0;

/// Memory of the process that serves an idle session.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct IdleMemory {
    /// Resident, in MB.
    pub rss_mb: f64,
    /// The same with pages that other processes map too counted in shares, in MB.
    pub pss_mb: f64,
}

/// `memory/*`: a session on the `soft` device that has loaded a module, allocated memory and run a kernel, and
/// then does nothing.
///
/// # Panics
/// If the session cannot be had, or its process cannot be told.
#[must_use]
pub fn idle_memory(farcall_bench: &Path) -> Vec<Figure> {
    let server = Server::start("soft", &[]);
    let mut session = server.client().start(farcall_bench, &["rest"]);
    assert_eq!(
        session.process.line(),
        "idle",
        "{}",
        session.process.output()
    );
    let idle = server
        .descendants()
        .into_iter()
        .filter_map(of_process)
        .max_by(|a, b| a.pss_mb.total_cmp(&b.pss_mb))
        .expect("a process that serves the session");
    let _ = session.finish().expect_success();
    vec![
        Figure::new("memory/idle_session_rss", "MB", idle.rss_mb).target(Target::Value(TARGET_MB)),
        Figure::new("memory/idle_session_pss", "MB", idle.pss_mb).target(Target::Value(TARGET_MB)),
    ]
}

fn of_process(pid: i32) -> Option<IdleMemory> {
    parse(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

fn parse(rollup: &str) -> Option<IdleMemory> {
    let mb = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
        Some(kib * 1024.0 / 1e6)
    };
    Some(IdleMemory {
        rss_mb: mb("Rss:")?,
        pss_mb: mb("Pss:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::{IdleMemory, of_process, parse};

    #[test]
    fn kibibytes_become_megabytes() {
        let text = "5580-7fff ---p 00 00:00 0 [rollup]\nRss:      10000 kB\nPss:       5000 kB\nPss_Dirty: 1 kB\n";
        assert_eq!(
            parse(text),
            Some(IdleMemory {
                rss_mb: 10.24,
                pss_mb: 5.12
            })
        );
        assert_eq!(parse("Rss: 1 kB\n"), None);
    }

    #[test]
    fn this_process_has_some() {
        let own = of_process(std::process::id().cast_signed());
        assert!(own.is_some_and(|own| own.pss_mb > 0.0 && own.rss_mb >= own.pss_mb));
    }
}
