//! `docs/refused-calls.md` lists what the catalogue refuses for good, and why.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use farcall_marshal::catalogue::{CALLS, Class};

#[test]
fn the_list_of_refused_calls_is_the_catalogue_s() {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for call in CALLS.iter().filter(|call| call.class == Class::Refused) {
        assert!(
            !call.implemented && !call.refusal.is_empty(),
            "{}",
            call.symbol
        );
        by_reason.entry(call.refusal).or_default().push(call.symbol);
    }
    let mut text = String::from(
        "# Calls that are refused\n\nThese return `CUDA_ERROR_NOT_SUPPORTED`, whatever the server has. Made of the catalogue by\n\
         `FARCALL_ACCEPT_GOLDEN=1 cargo test -p farcall-marshal --test refused`.\n",
    );
    for (reason, mut symbols) in by_reason {
        symbols.sort_unstable();
        let list: Vec<String> = symbols.iter().map(|symbol| format!("`{symbol}`")).collect();
        let mut title = reason.to_owned();
        title.get_mut(..1).unwrap().make_ascii_uppercase();
        write!(text, "\n## {title}\n{}\n", list.join(", ")).unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/refused-calls.md");
    if std::env::var_os("FARCALL_ACCEPT_GOLDEN").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        kept == text,
        "docs/refused-calls.md is not what the catalogue says: FARCALL_ACCEPT_GOLDEN=1 cargo test -p farcall-marshal --test refused"
    );
}
