//! Secrets: made by the system's randomness, shown once, kept as hashes.
#![forbid(unsafe_code)]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// What a secret is for; its first letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SecretKind {
    /// A client's or an administrator's token.
    Token,
    /// Lets a server join.
    Join,
    /// What a server that has joined shows.
    Credential,
}

impl SecretKind {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Token => "fct_",
            Self::Join => "fcj_",
            Self::Credential => "fcs_",
        }
    }

    /// What kind of secret a text looks like.
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        [Self::Token, Self::Join, Self::Credential]
            .into_iter()
            .find(|kind| text.starts_with(kind.prefix()))
    }
}

/// A new secret: 256 random bits as text.
///
/// # Errors
/// The system has no randomness.
pub fn generate(kind: SecretKind) -> std::io::Result<String> {
    let mut bytes = [0; 32];
    fill(&mut bytes)?;
    Ok(format!(
        "{}{}",
        kind.prefix(),
        URL_SAFE_NO_PAD.encode(bytes)
    ))
}

/// What is kept of a secret. The secrets are random and long: a fast hash is as good as a slow one.
#[must_use]
pub fn hash(secret: &str) -> String {
    blake3::derive_key("farcall pool 2026 secret v1", secret.as_bytes())
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// A name that nobody else has drawn: 128 random bits as text. No secret.
///
/// # Errors
/// The system has no randomness.
pub fn random_name() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    fill(&mut bytes)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

pub(crate) fn fill(bytes: &mut [u8]) -> std::io::Result<()> {
    getrandom::fill(bytes).map_err(std::io::Error::other)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{SecretKind, generate, hash};

    #[test]
    fn secrets_differ_and_tell_their_kind() {
        let (one, two) = (
            generate(SecretKind::Join).unwrap(),
            generate(SecretKind::Join).unwrap(),
        );
        assert_ne!(one, two);
        assert_ne!(hash(&one), hash(&two));
        assert_eq!(hash(&one), hash(&one));
        assert!(!hash(&one).contains(&one[4..12]));
        assert_eq!(SecretKind::of(&one), Some(SecretKind::Join));
        assert_eq!(SecretKind::of("hunter2"), None);
    }
}
