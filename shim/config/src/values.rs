//! Values of single settings, and how their texts are read.
#![forbid(unsafe_code)]

use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::ConfigError;
use crate::address::SERVERS_MAX;

/// Longest token, in bytes.
const TOKEN_BYTES_MAX: usize = 4096;

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes `text` as it is.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(...)")
    }
}

/// Which way frames travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// The best that both sides have.
    #[default]
    Auto,
    /// TCP.
    Tcp,
    /// Shared memory.
    Shm,
    /// RDMA.
    Verbs,
}

impl Transport {
    pub(crate) const ALLOWED: &'static str = "auto, tcp, shm or verbs";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "auto" => Self::Auto,
            "tcp" => Self::Tcp,
            "shm" => Self::Shm,
            "verbs" => Self::Verbs,
            _ => return None,
        })
    }
}

/// How much the shim says on stderr.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// Nothing at all.
    Off,
    /// What makes calls fail.
    Error,
    /// What the user should know.
    #[default]
    Warn,
    /// What was chosen and why.
    Info,
    /// For people who work on farcall.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    pub(crate) const ALLOWED: &'static str = "off, error, warn, info, debug or trace";

    pub(crate) fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "off" => Self::Off,
            "error" => Self::Error,
            "warn" => Self::Warn,
            "info" => Self::Info,
            "debug" => Self::Debug,
            "trace" => Self::Trace,
            _ => return None,
        })
    }

    /// The word for it, as `log::LevelFilter` parses it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// Where the trace of driver calls goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TraceTarget {
    /// `-`.
    Stderr,
    /// A file, or a FIFO.
    File(PathBuf),
}

impl TraceTarget {
    /// `-` is stderr, everything else a path.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        if text == "-" {
            Self::Stderr
        } else {
            Self::File(PathBuf::from(text))
        }
    }
}

/// A number of devices: `all` (`None`), or at least 1.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_devices(text: &str) -> Result<Option<u32>, String> {
    match text.trim() {
        "all" => Ok(None),
        number => match number.parse::<u32>() {
            Ok(count) if (1..=DEVICES_MAX).contains(&count) => Ok(Some(count)),
            _ => Err(format!(
                "{text:?} is not a number of devices; write a number from 1 to {DEVICES_MAX}, or all"
            )),
        },
    }
}

/// How many devices of each server: one number for the only one, or a list (`2,1`); `all`: all of each.
///
/// # Errors
/// The message says what is allowed.
pub(crate) fn parse_devices_each(text: &str) -> Result<Option<Vec<u32>>, String> {
    let counts: Option<Vec<u32>> = match text.split_once(',') {
        None => parse_devices(text)?.map(|count| vec![count]),
        Some(_) => text
            .split(',')
            .map(parse_devices)
            .collect::<Result<_, _>>()?,
    };
    match &counts {
        None if text.contains(',') => Err(format!("{text:?}: write a number for each server")),
        _ => Ok(counts),
    }
}

/// A share of a device, `0.25` or `25%`, in thousandths.
///
/// # Errors
/// Not a number, 0 or less, or above 1.
pub fn parse_share(text: &str) -> Result<u16, String> {
    let bad =
        || format!("{text:?} is not a share of a GPU; write 0.5, 0.05 or 25%: above 0, at most 1");
    let (number, whole) = match text.trim().strip_suffix('%') {
        Some(percent) => (percent, 100.0),
        None => (text.trim(), 1.0),
    };
    let share = number.trim().parse::<f64>().map_err(|_| bad())? / whole;
    let permille = (share * 1000.0).round();
    if (1.0..=1000.0).contains(&permille) && share <= 1.0 {
        // In range, so nothing is cut off.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        return Ok(permille as u16);
    }
    Err(bad())
}

/// More devices than any one process can have with CUDA.
const DEVICES_MAX: u32 = 256;

/// The token in `path`: its first line, without the spaces around it.
///
/// # Errors
/// The file cannot be read, is empty, or is no token.
pub fn read_token_file(path: &Path) -> Result<Secret, ConfigError> {
    read_token_lines(path).map(|lines| lines.first)
}

/// What a token file holds.
pub(crate) struct TokenLines {
    pub(crate) first: Secret,
    /// The lines that follow without an empty one between: tokens of further servers, if there are some.
    pub(crate) rest: Vec<Secret>,
}

/// All tokens in `path`.
pub(crate) fn read_token_lines(path: &Path) -> Result<TokenLines, ConfigError> {
    let unreadable = |source| ConfigError::TokenFile {
        path: path.to_owned(),
        source,
    };
    let bad = |why| ConfigError::TokenContent {
        path: path.to_owned(),
        why,
    };
    let mut bytes = Vec::new();
    let limit = u64::try_from(TOKEN_BYTES_MAX.saturating_mul(SERVERS_MAX))
        .unwrap_or(u64::MAX)
        .saturating_add(2);
    std::fs::File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(unreadable)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| bad("it is not UTF-8 text"))?;
    let mut lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.is_empty());
    let first = lines.next().ok_or_else(|| bad("its first line is empty"))?;
    let rest: Vec<&str> = lines.take(SERVERS_MAX).collect();
    if first.len() > TOKEN_BYTES_MAX {
        return Err(bad("its first line is longer than 4096 bytes"));
    }
    Ok(TokenLines {
        first: Secret::new(first),
        rest: rest.into_iter().map(Secret::new).collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{
        Secret, parse_devices, parse_devices_each, parse_share, read_token_file, read_token_lines,
    };

    #[test]
    fn devices() {
        assert_eq!(parse_devices("all"), Ok(None));
        assert_eq!(parse_devices(" 4"), Ok(Some(4)));
        for bad in ["0", "-1", "", "many", "257", "1.0"] {
            assert!(
                parse_devices(bad)
                    .unwrap_err()
                    .contains("from 1 to 256, or all"),
                "{bad}"
            );
        }
    }

    #[test]
    fn devices_of_each_server() {
        assert_eq!(parse_devices_each("all"), Ok(None));
        assert_eq!(parse_devices_each("3"), Ok(Some(vec![3])));
        assert_eq!(parse_devices_each("2, 1"), Ok(Some(vec![2, 1])));
        for bad in ["1,all", "1,", "1,0", "all,all"] {
            assert!(parse_devices_each(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tokens_of_several_servers() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, "a\n b\nc\n\nnote\n").unwrap();
        let lines = read_token_lines(&path).unwrap();
        assert_eq!(lines.first, Secret::new("a"));
        assert_eq!(lines.rest, [Secret::new("b"), Secret::new("c")]);
    }

    #[test]
    fn shares() {
        assert_eq!(parse_share("0.5"), Ok(500));
        assert_eq!(parse_share(" 25 %"), Ok(250));
        assert_eq!(parse_share("1"), Ok(1000));
        assert_eq!(parse_share("0.05"), Ok(50));
        for bad in [
            "0", "0.0001", "1.5", "1.0004", "101%", "half", "-1", "NaN", "inf", "",
        ] {
            assert!(parse_share(bad).unwrap_err().contains("at most 1"), "{bad}");
        }
    }

    #[test]
    fn token_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        let read = |content: &[u8]| {
            std::fs::write(&path, content).unwrap();
            read_token_file(&path)
        };
        assert_eq!(read(b" s3cret \nmore\n").unwrap(), Secret::new("s3cret"));
        assert!(read(b"\n").unwrap_err().to_string().contains("empty"));
        assert!(read(b"\xff\xfe").unwrap_err().to_string().contains("UTF-8"));
        assert!(
            read(&[b'x'; 5000])
                .unwrap_err()
                .to_string()
                .contains("longer")
        );
        assert!(read(&[b'x'; 4096]).is_ok());
        assert!(
            read_token_file(&directory.path().join("none"))
                .unwrap_err()
                .to_string()
                .contains("none")
        );
    }

    #[test]
    fn a_secret_is_not_printed() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }
}
