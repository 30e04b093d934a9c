//! Passwords that people think of: argon2id, which is slow on purpose, a few at a time.
#![forbid(unsafe_code)]

use argon2::Argon2;
use argon2::password_hash::phc::PasswordHash;
use argon2::password_hash::{PasswordHasher as _, PasswordVerifier as _};
use tokio::sync::Semaphore;

/// Shorter ones are guessed; there is no other rule.
pub(crate) const CHARS_MIN: usize = 12;
/// Longer ones only cost time.
pub(crate) const BYTES_MAX: usize = 1024;
/// Each takes 19 MiB and some ten milliseconds of a core.
const AT_ONCE: usize = 2;

/// Hashes and checks passwords on threads of their own.
#[derive(Debug)]
pub(crate) struct Hashing {
    places: Semaphore,
}

impl Default for Hashing {
    fn default() -> Self {
        Self {
            places: Semaphore::new(AT_ONCE),
        }
    }
}

impl Hashing {
    /// What is kept of a password; `None` if the system has no randomness or ends.
    pub(crate) async fn hash(&self, password: String) -> Option<String> {
        let _place = self.places.acquire().await.ok()?;
        let hashed = tokio::task::spawn_blocking(move || hash(&password));
        hashed.await.ok()?
    }

    /// Whether this is the password. Takes as long where there is none, so that the time does not tell.
    pub(crate) async fn verify(&self, password: String, hash: Option<String>) -> bool {
        let Ok(_place) = self.places.acquire().await else {
            return false;
        };
        let verified = tokio::task::spawn_blocking(move || verify(&password, hash.as_deref()));
        verified.await.unwrap_or(false)
    }
}

/// What is wrong with a new password.
pub(crate) fn complaint(password: &str) -> Option<String> {
    if password.chars().count() < CHARS_MIN {
        return Some(format!("a password has at least {CHARS_MIN} characters"));
    }
    let is_long = password.len() > BYTES_MAX;
    is_long.then(|| format!("a password has at most {BYTES_MAX} bytes"))
}

fn hash(password: &str) -> Option<String> {
    let hash = Argon2::default().hash_password(password.as_bytes());
    hash.ok().map(|hash| hash.to_string())
}

fn verify(password: &str, hash: Option<&str>) -> bool {
    let parsed = hash.and_then(|hash| PasswordHash::new(hash).ok());
    let Some(parsed) = parsed else {
        drop(self::hash(password));
        return false;
    };
    let checked = Argon2::default().verify_password(password.as_bytes(), &parsed);
    password.len() <= BYTES_MAX && checked.is_ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{complaint, hash, verify};

    #[test]
    fn only_the_password_is_the_password() {
        let kept = hash("correct horse battery").unwrap();
        assert!(kept.starts_with("$argon2id$"), "{kept}");
        assert!(verify("correct horse battery", Some(&kept)));
        assert!(!verify("correct horse batterY", Some(&kept)));
        assert!(!verify("correct horse battery", None));
        assert!(!verify("", Some("nonsense")));
        assert!(complaint("hunter2").is_some());
        assert!(complaint("correct horse battery").is_none());
    }
}
