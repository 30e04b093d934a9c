//! What can be wrong with a configuration.
#![forbid(unsafe_code)]

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why the configuration cannot be used. The message is one line and says what is allowed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file exists, or was named, and cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file is no TOML, or has a key or a type that is not known.
    #[error("{}: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong where.
        message: String,
    },
    /// A value that cannot be.
    #[error("{origin}: {message}")]
    Value {
        /// The variable, or the file and key.
        origin: String,
        /// What is wrong and what is allowed.
        message: String,
    },
    /// The token's file cannot be read.
    #[error("cannot read the token in {}: {source}", path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The token's file holds no token.
    #[error("no token in {}: {why}", path.display())]
    TokenContent {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: &'static str,
    },
}
