//! The configuration file, and where it is looked for.
#![forbid(unsafe_code)]

use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{ConfigError, vars};

/// A file as it is written; every key may be missing.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ConfigFile {
    pub(crate) server: Option<String>,
    pub(crate) token: Option<String>,
    pub(crate) token_file: Option<PathBuf>,
    pub(crate) devices: Option<NumberOrText>,
    pub(crate) memory: Option<NumberOrText>,
    pub(crate) share: Option<NumberOrText>,
    pub(crate) spin_us: Option<NumberOrText>,
    pub(crate) grace_s: Option<NumberOrText>,
    pub(crate) transport: Option<String>,
    pub(crate) tls: Option<String>,
    pub(crate) connect_timeout_ms: Option<NumberOrText>,
    pub(crate) rdma_device: Option<String>,
    pub(crate) gid_index: Option<NumberOrText>,
    pub(crate) rdma_mode: Option<String>,
    pub(crate) bind: Option<String>,
    pub(crate) dscp: Option<NumberOrText>,
    pub(crate) busy_poll_us: Option<NumberOrText>,
    pub(crate) added_rtt_us: Option<NumberOrText>,
    pub(crate) log: Option<String>,
}

/// `4` and `"4"` mean the same.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(crate) enum NumberOrText {
    Number(i64),
    Fraction(f64),
    Text(String),
}

impl NumberOrText {
    pub(crate) fn into_text(self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Fraction(number) => number.to_string(),
            Self::Text(text) => text,
        }
    }
}

/// Reads the first file there is: the one that `FARCALL_CONFIG` names (then it must exist), the user's, the system's.
pub(crate) fn find(
    env: &impl Fn(&str) -> Option<String>,
) -> Result<Option<(PathBuf, ConfigFile)>, ConfigError> {
    if let Some(path) = env(vars::CONFIG).filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        let text = std::fs::read_to_string(&path).map_err(|source| ConfigError::Read {
            path: path.clone(),
            source,
        })?;
        return parse(&path, &text).map(|file| Some((path, file)));
    }
    for path in usual_paths(env) {
        match std::fs::read_to_string(&path) {
            Ok(text) => return parse(&path, &text).map(|file| Some((path, file))),
            Err(error) if is_absent(&error) => {}
            Err(source) => return Err(ConfigError::Read { path, source }),
        }
    }
    Ok(None)
}

/// The working directory is not among them: a program that is started in a directory which others
/// can write to would take its server and token from there.
fn usual_paths(env: &impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let absolute = |name: &str| {
        env(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let user =
        absolute("XDG_CONFIG_HOME").or_else(|| absolute("HOME").map(|home| home.join(".config")));
    let system = Path::new("/etc/farcall/client.toml").to_owned();
    user.map(|directory| directory.join("farcall/client.toml"))
        .into_iter()
        .chain([system])
        .collect()
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn parse(path: &Path, text: &str) -> Result<ConfigFile, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(1, |span| {
            text.bytes()
                .take(span.start)
                .filter(|byte| *byte == b'\n')
                .count()
                .saturating_add(1)
        });
        // A parser's message may go over several lines; ours is one.
        let message = error
            .message()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ");
        ConfigError::Syntax {
            path: path.to_owned(),
            message: format!("line {line}: {message}"),
        }
    })
}
