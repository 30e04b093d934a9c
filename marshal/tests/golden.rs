//! The wire format and the table of calls, held against files: a change of either cannot go unnoticed.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fmt::Write as _;
use std::path::PathBuf;

use farcall_marshal::catalogue::{Lookup, proc_address};
use farcall_marshal::wire::samples;

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../fixtures/golden")
        .join(name)
}

/// Every record with made-up values. After a wanted change: `FARCALL_ACCEPT_GOLDEN=1 cargo test -p farcall-marshal`,
/// and a line in CHANGELOG.md that names the protocol version.
#[test]
fn records_are_encoded_as_ever() {
    let mut now = String::new();
    for (number, is_reply, name, body) in samples() {
        let hex: String = body.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(
            now,
            "{number}\t{}\t{name}\t{hex}",
            if is_reply { "reply" } else { "record" }
        )
        .unwrap();
    }
    let path = golden("records.tsv");
    if std::env::var_os("FARCALL_ACCEPT_GOLDEN").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap();
    for (kept, now) in kept.lines().zip(now.lines()) {
        assert_eq!(kept, now);
    }
    assert_eq!(kept.lines().count(), now.lines().count());
}

/// Names, versions and modes as a driver's `cuGetProcAddress` answered them.
#[test]
fn every_measured_name_resolves_as_measured() {
    let map = std::fs::read_to_string(golden("gpa_map.tsv")).unwrap();
    let mut rows = 0;
    for line in map.lines().skip(1) {
        let mut fields = line.split('\t');
        let (base, since, mode, symbol) = (
            fields.next().unwrap(),
            fields.next().unwrap(),
            fields.next().unwrap(),
            fields.next().unwrap(),
        );
        let answer = match proc_address(base, since.parse().unwrap(), !mode.is_empty()) {
            Lookup::Symbol(symbol) => symbol,
            other => panic!("{line}: {other:?}"),
        };
        assert_eq!(answer, symbol, "{line}");
        rows += 1;
    }
    assert_eq!(rows, 723);
}
