//! The environment of programs that are counted and compared: nothing that a user has set.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::process::Command;

/// The settings of this project's programs begin so.
const OURS: &str = "FARCALL_";
/// A file of settings that is empty: it is read instead of the user's and the system's.
const NO_SETTINGS: [(&str, &str); 1] = [("FARCALL_CONFIG", "/dev/null")];

/// The program is started without the user's settings; what is set afterwards holds.
pub(crate) fn clear(command: &mut Command) {
    for name in ours() {
        command.env_remove(name);
    }
    command.envs(NO_SETTINGS);
}

/// The same as the beginning of a command line, for programs that others start; with `further` settings.
pub(crate) fn cleared(further: &[(&str, &str)]) -> Vec<OsString> {
    let unset = ours().flat_map(|name| [OsString::from("-u"), name]);
    let set = NO_SETTINGS.iter().chain(further);
    let set = set.map(|(name, value)| OsString::from(format!("{name}={value}")));
    std::iter::once("env".into())
        .chain(unset)
        .chain(set)
        .collect()
}

fn ours() -> impl Iterator<Item = OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| name.to_string_lossy().starts_with(OURS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::Command;

    use super::{clear, cleared};

    /// Runs this test again where a user has settings.
    #[test]
    fn a_users_settings_reach_nobody() {
        if std::env::var_os("BENCH_TEST_INNER").is_none() {
            let mut again = Command::new(std::env::current_exe().unwrap());
            again.args([
                "--exact",
                "environment::tests::a_users_settings_reach_nobody",
            ]);
            again.env("BENCH_TEST_INNER", "1");
            again.env("FARCALL_COMPRESSION", "always");
            let output = again.output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(
                output.status.success() && said.contains("1 passed"),
                "{said}"
            );
            return;
        }
        let mut by_us = Command::new("env");
        clear(&mut by_us);
        by_us.env("FARCALL_SERVER", "here");
        let words = cleared(&[("FURTHER", "1")]);
        let mut by_others = Command::new(&words[0]);
        by_others.args(&words[1..]);
        for (mut command, further) in [(by_us, "FARCALL_SERVER=here"), (by_others, "FURTHER=1")] {
            let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
            assert!(!text.contains("FARCALL_COMPRESSION"), "{text}");
            assert!(
                text.contains("FARCALL_CONFIG=/dev/null") && text.contains(further),
                "{text}"
            );
        }
    }
}
