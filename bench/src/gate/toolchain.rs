//! What counts depend on besides the sources: whoever counts with other tools expects small changes.
#![forbid(unsafe_code)]

use std::process::Command;

use serde::{Deserialize, Serialize};

/// Versions, as the tools say them; empty where one is missing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: String,
    /// The C library, whose functions are counted as well.
    pub glibc: String,
    /// What counts.
    pub valgrind: String,
}

impl Toolchain {
    /// That of this machine.
    #[must_use]
    pub fn here() -> Self {
        Self {
            rustc: said("rustc", "--version"),
            glibc: said("getconf", "GNU_LIBC_VERSION"),
            valgrind: said("valgrind", "--version"),
        }
    }

    /// How `now` differs: `rustc 1.94.0 then, rustc 1.95.0 now`. Versions that are not known differ from none.
    #[must_use]
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let tools = [
            (&self.rustc, &now.rustc),
            (&self.glibc, &now.glibc),
            (&self.valgrind, &now.valgrind),
        ];
        let differ = tools
            .into_iter()
            .filter(|(then, now)| !then.is_empty() && then != now);
        differ
            .map(|(then, now)| format!("{then} then, {now} now"))
            .collect()
    }
}

fn said(tool: &str, argument: &str) -> String {
    let output = Command::new(tool).arg(argument).output();
    output.map_or_else(
        |_| String::new(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}

#[cfg(test)]
mod tests {
    use super::Toolchain;

    #[test]
    fn only_known_versions_differ() {
        let now = Toolchain::here();
        assert!(now.rustc.starts_with("rustc ") && now.glibc.starts_with("glibc "));
        let then = Toolchain {
            rustc: "rustc 1.0.0".to_owned(),
            valgrind: String::new(),
            ..now.clone()
        };
        let differences = then.differences(&now);
        assert!(
            matches!(&differences[..], [one] if one.starts_with("rustc 1.0.0 then, rustc ")),
            "{differences:?}"
        );
    }
}
