//! Grants: short statements that the pool signs and a server checks without asking anyone.
//!
//! `fcg1.PAYLOAD.SIGNATURE`, both in unpadded base64url; the payload is a [`Grant`] in JSON, the signature
//! Ed25519 (RFC 8032) over [`CONTEXT`] and the payload.
#![forbid(unsafe_code)]

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::model::LeaseId;

/// What a signature of a grant is over, before the payload: it can be mistaken for nothing else.
const CONTEXT: &[u8] = b"farcall grant v1\0";
const PREFIX: &str = "fcg1";
/// Clocks may differ by so much.
pub const SKEW_MS_MAX: u64 = 60_000;
/// Longest name of a holder.
pub const HOLDER_BYTES_MAX: usize = 64;
/// Longest text of a grant.
pub const GRANT_BYTES_MAX: usize = 8192;

/// A part of a GPU that a client may use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantedGpu {
    /// Which.
    pub uuid: String,
    /// How much of its memory.
    pub memory_bytes: u64,
    /// How much of its compute, in thousandths.
    pub share_permille: u16,
}

/// Who may use what, where, until when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grant {
    /// What it is part of.
    pub lease: LeaseId,
    /// Name of the client.
    pub client: String,
    /// Name of the server that it is for.
    pub server: String,
    /// GPUs there, in the order of the program's ordinals.
    pub gpus: Vec<GrantedGpu>,
    /// Who uses the lease with it: a number that a client draws for each use. Grants of one holder are good from one address; empty
    /// where the client did not say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub holder: String,
    /// When it was signed.
    pub issued_ms: u64,
    /// No session can be opened with it after that.
    pub expires_ms: u64,
}

/// Why a grant is no good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// It is not a grant at all.
    #[error("this is not a grant of a pool")]
    Malformed,
    /// The pool has not signed this.
    #[error("the grant's signature is not this pool's")]
    Signature,
    /// It is for another server.
    #[error("the grant is for the server {0:?}")]
    Server(String),
    /// It is too late.
    #[error(
        "the grant expired {0} s ago: get a new one; if it is new, check the clocks of pool and server"
    )]
    Expired(u64),
    /// Its time has not come: the clocks differ by more than a minute.
    #[error("the grant is from the future, by {0} s: check the clocks of pool and server")]
    Future(u64),
}

/// Signs grants.
#[derive(Debug)]
pub struct Signer(SigningKey);

impl Signer {
    /// A new key.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn generate() -> std::io::Result<Self> {
        let mut seed = [0; 32];
        crate::secrets::fill(&mut seed)?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// A key as [`Signer::seed`] wrote it.
    #[must_use]
    pub fn from_seed(text: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(text.trim()).ok()?;
        Some(Self(SigningKey::from_bytes(&bytes.try_into().ok()?)))
    }

    /// The key itself, to be kept secret.
    #[must_use]
    pub fn seed(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.to_bytes())
    }

    /// What servers need.
    #[must_use]
    pub fn public(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0.verifying_key().to_bytes())
    }

    /// A signed grant.
    #[must_use]
    pub fn sign(&self, grant: &Grant) -> String {
        let payload = serde_json::to_vec(grant).unwrap_or_default();
        let signature = self.0.sign(&[CONTEXT, &payload].concat());
        format!(
            "{PREFIX}.{}.{}",
            URL_SAFE_NO_PAD.encode(payload),
            URL_SAFE_NO_PAD.encode(signature.to_bytes())
        )
    }
}

/// Checks grants.
#[derive(Clone, Debug)]
pub struct Verifier {
    key: VerifyingKey,
    server: String,
}

impl Verifier {
    /// For grants that the pool with this public key gives for this server.
    #[must_use]
    pub fn new(public: &str, server: &str) -> Option<Self> {
        let bytes = URL_SAFE_NO_PAD.decode(public).ok()?;
        let key = VerifyingKey::from_bytes(&bytes.try_into().ok()?).ok()?;
        Some(Self {
            key,
            server: server.to_owned(),
        })
    }

    /// The grant in `text`, if it is good at `now_ms`. Needs nobody.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn verify(&self, text: &[u8], now_ms: u64) -> Result<Grant, GrantError> {
        if text.len() > GRANT_BYTES_MAX {
            return Err(GrantError::Malformed);
        }
        let text = std::str::from_utf8(text).map_err(|_| GrantError::Malformed)?;
        let mut parts = text.split('.');
        let (Some(PREFIX), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(GrantError::Malformed);
        };
        let decode = |text: &str| {
            let decoded = URL_SAFE_NO_PAD.decode(text);
            decoded.map_err(|_| GrantError::Malformed)
        };
        let (payload, signature) = (decode(payload)?, decode(signature)?);
        let signature = signature.try_into().map_err(|_| GrantError::Malformed)?;
        let signature = Signature::from_bytes(&signature);
        self.key
            .verify_strict(&[CONTEXT, &payload].concat(), &signature)
            .map_err(|_| GrantError::Signature)?;
        let grant: Grant = serde_json::from_slice(&payload).map_err(|_| GrantError::Malformed)?;
        if grant.server != self.server {
            return Err(GrantError::Server(grant.server));
        }
        if now_ms > grant.expires_ms.saturating_add(SKEW_MS_MAX) {
            return Err(GrantError::Expired((now_ms - grant.expires_ms) / 1000));
        }
        if grant.issued_ms > now_ms.saturating_add(SKEW_MS_MAX) {
            return Err(GrantError::Future((grant.issued_ms - now_ms) / 1000));
        }
        Ok(grant)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{Grant, GrantError, GrantedGpu, SKEW_MS_MAX, Signer, Verifier};
    use crate::model::LeaseId;

    fn grant() -> Grant {
        Grant {
            lease: LeaseId(7),
            client: "ann".into(),
            server: "a1".into(),
            gpus: vec![GrantedGpu {
                uuid: "GPU-1".into(),
                memory_bytes: 1 << 30,
                share_permille: 500,
            }],
            holder: "h1".into(),
            issued_ms: 1_000_000,
            expires_ms: 1_600_000,
        }
    }

    #[test]
    fn what_was_signed_comes_back() {
        let signer = Signer::generate().unwrap();
        let again = Signer::from_seed(&signer.seed()).unwrap();
        let verifier = Verifier::new(&again.public(), "a1").unwrap();
        let text = signer.sign(&grant());
        assert_eq!(verifier.verify(text.as_bytes(), 1_000_000), Ok(grant()));
        assert!(text.len() < 512, "{}", text.len());
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let signer = Signer::generate().unwrap();
        let verifier = Verifier::new(&signer.public(), "a1").unwrap();
        let text = signer.sign(&grant()).into_bytes();
        for at in 0..text.len() {
            for with in [b'A', b'z', b'.', 0] {
                let mut changed = text.clone();
                if std::mem::replace(&mut changed[at], with) != with {
                    assert!(verifier.verify(&changed, 1_000_000).is_err(), "byte {at}");
                }
            }
            assert!(verifier.verify(&text[..at], 1_000_000).is_err());
        }
    }

    #[test]
    fn other_pools_servers_and_times_are_refused() {
        let signer = Signer::generate().unwrap();
        let text = signer.sign(&grant());
        let check = |signer: &Signer, server: &str, now_ms| {
            let verifier = Verifier::new(&signer.public(), server).unwrap();
            verifier.verify(text.as_bytes(), now_ms).map(|_| ())
        };
        assert_eq!(
            check(&Signer::generate().unwrap(), "a1", 1_000_000),
            Err(GrantError::Signature)
        );
        assert_eq!(
            check(&signer, "a2", 1_000_000),
            Err(GrantError::Server("a1".into()))
        );
        assert_eq!(check(&signer, "a1", 1_600_000 + SKEW_MS_MAX), Ok(()));
        assert_eq!(
            check(&signer, "a1", 1_601_000 + SKEW_MS_MAX),
            Err(GrantError::Expired(61))
        );
        assert_eq!(check(&signer, "a1", 1_000_000 - SKEW_MS_MAX), Ok(()));
        assert_eq!(
            check(&signer, "a1", 990_000 - SKEW_MS_MAX),
            Err(GrantError::Future(70))
        );
    }
}
