//! What can go wrong with TLS, as types.
#![forbid(unsafe_code)]

use std::io;

use rustls::{CertificateError, Error, OtherError};

/// Why there is no connection over TLS, or there is none any more.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// What answers there is a server without TLS, or no server at all.
    #[error(
        "it does not speak TLS: start it with `farcall serve --tls DIRECTORY`, or leave --tls and FARCALL_TLS off here"
    )]
    NotTls,
    /// TLS, but not farcall's.
    #[error("it speaks TLS, but is not a farcall server")]
    NotFarcall,
    /// No authority that is trusted has signed the certificate.
    #[error(
        "its certificate (sha256:{fingerprint}) is of an authority that is not trusted here: give the authority's certificate with --tls FILE, or, if its administrator says that the fingerprint is right, --tls sha256:{fingerprint}"
    )]
    Authority {
        /// Of the certificate that it showed.
        fingerprint: String,
    },
    /// The certificate is another than the one that is trusted.
    #[error(
        "its certificate has the fingerprint sha256:{fingerprint}, which is not the one that was given: it is another server, or its administrator has made it a new certificate"
    )]
    Fingerprint {
        /// Of the certificate that it showed.
        fingerprint: String,
    },
    /// The certificate is for other names.
    #[error(
        "its certificate is for other names than the one it was called by: use a name that the certificate has, or --tls sha256:{fingerprint}"
    )]
    Name {
        /// Of the certificate that it showed.
        fingerprint: String,
    },
    /// The certificate cannot be used, for a reason of its own.
    #[error("its certificate cannot be used: {0}")]
    Certificate(String),
    /// A certificate, key or fingerprint that was given cannot be used.
    #[error("{0}")]
    Given(String),
    /// The handshake failed.
    #[error("the TLS handshake failed: {0}")]
    Handshake(String),
    /// What came is not what the peer sent: damaged on the way, or forged.
    #[error("a TLS record is damaged or forged")]
    Record,
    /// The peer broke TLS in another way.
    #[error("the peer broke TLS: {0}")]
    Protocol(&'static str),
    /// As much was sent under one key as is safe; the next connection has another.
    #[error("as much was sent as is safe under one TLS key")]
    KeyUsedUp,
}

impl TlsError {
    /// The reason inside an I/O error of a connection over TLS.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// What a verifier of certificates says to rustls.
    pub(super) fn into_rustls(self) -> Error {
        let other = OtherError(std::sync::Arc::new(self));
        Error::InvalidCertificate(CertificateError::Other(other))
    }

    /// What rustls says.
    pub(super) fn of_rustls(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => inner
                .downcast_ref()
                .cloned()
                .unwrap_or_else(|| Self::Certificate(inner.to_string())),
            Error::InvalidCertificate(why) => Self::Certificate(why.to_string()),
            Error::InvalidMessage(_) => Self::NotTls,
            Error::NoApplicationProtocol => Self::NotFarcall,
            other => Self::Handshake(other.to_string()),
        }
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        Self::new(io::ErrorKind::InvalidData, error)
    }
}
