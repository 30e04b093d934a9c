//! Which servers a client takes for the right ones, and what a server shows of itself.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::{CryptoProvider, ring as provider, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};

use super::error::TlsError;

/// What farcall's connections are called in the handshake, so that no other protocol's are taken for them (RFC 7301).
const ALPN: &[u8] = b"farcall";
/// What a certificate's fingerprint is written behind.
const FINGERPRINT_PREFIX: &str = "sha256:";
/// Bytes of a fingerprint.
const FINGERPRINT_BYTES: usize = 32;

/// A client's connections go over TLS, to servers that it trusts.
#[derive(Clone)]
pub struct TlsClient {
    config: Arc<ClientConfig>,
    /// Blocks of 16 bytes under one key.
    blocks_max: u64,
}

impl TlsClient {
    /// Trusts servers whose certificate one of these authorities has signed, for the name that they are called by.
    ///
    /// # Errors
    /// What of the PEM text cannot be used.
    pub fn trust_authorities(pem: &[u8]) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(given)?;
            roots.add(certificate).map_err(given)?;
        }
        if roots.is_empty() {
            let why = "there is no certificate in it: PEM text is needed";
            return Err(TlsError::Given(why.to_owned()));
        }
        let provider = Arc::new(provider::default_provider());
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider);
        Self::new(Judge::Authorities(verifier.build().map_err(given)?))
    }

    /// Trusts servers whose certificate has one of these fingerprints: `sha256:` and 64 hexadecimal digits, with colons
    /// between them or not; commas between fingerprints.
    ///
    /// # Errors
    /// A text that is none.
    pub fn trust_fingerprints(text: &str) -> Result<Self, TlsError> {
        let fingerprints: Result<Vec<_>, _> = text.split(',').map(parse_fingerprint).collect();
        Self::new(Judge::Fingerprints(fingerprints?))
    }

    /// Whether `text` is meant as a fingerprint, and not as the name of a file.
    #[must_use]
    pub fn is_fingerprint(text: &str) -> bool {
        text.trim_start().starts_with(FINGERPRINT_PREFIX)
    }

    /// Sends no more than so many bytes under one key; then the session goes on over another connection. By default
    /// it is as much as is safe (256 GiB).
    #[must_use]
    pub fn with_key_bytes_max(mut self, bytes: u64) -> Self {
        self.blocks_max = bytes / 16;
        self
    }

    fn new(judge: Judge) -> Result<Self, TlsError> {
        let config = ClientConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(given)?;
        let mut config = config
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(judge))
            .with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_secret_extraction = true;
        Ok(Self {
            config: Arc::new(config),
            blocks_max: u64::MAX,
        })
    }

    pub(super) fn blocks_max(&self) -> u64 {
        self.blocks_max
    }

    /// A connection that begins.
    pub(super) fn begin(
        &self,
        name: &ServerName<'static>,
    ) -> Result<rustls::ClientConnection, TlsError> {
        let begun = rustls::ClientConnection::new(Arc::clone(&self.config), name.clone());
        begun.map_err(|error| TlsError::of_rustls(&error))
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").finish_non_exhaustive()
    }
}

/// By what name a server is called: the host of `HOST:PORT`.
pub(crate) fn name_of(server: &str) -> Result<ServerName<'static>, TlsError> {
    let host = server.rsplit_once(':').map_or(server, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    ServerName::try_from(host.to_owned())
        .map_err(|_| TlsError::Given(format!("{host} is no name that a certificate could have")))
}

/// Whether the other side shook hands as farcall does.
pub(super) fn is_farcall(alpn: Option<&[u8]>) -> bool {
    alpn == Some(ALPN)
}

/// Judges a server's certificate.
#[derive(Debug)]
enum Judge {
    Authorities(Arc<WebPkiServerVerifier>),
    Fingerprints(Vec<[u8; FINGERPRINT_BYTES]>),
}

impl ServerCertVerifier for Judge {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verifier = match self {
            Self::Authorities(verifier) => verifier,
            Self::Fingerprints(known) => {
                let shown = digest(end_entity);
                return if known.contains(&shown) {
                    Ok(ServerCertVerified::assertion())
                } else {
                    let fingerprint = hex(&shown);
                    Err(TlsError::Fingerprint { fingerprint }.into_rustls())
                };
            }
        };
        let fingerprint = hex(&digest(end_entity));
        verifier
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| match error {
                // A certificate that signed itself is no authority's.
                Error::InvalidCertificate(
                    CertificateError::UnknownIssuer | CertificateError::BadSignature,
                ) => TlsError::Authority { fingerprint }.into_rustls(),
                Error::InvalidCertificate(
                    CertificateError::NotValidForName
                    | CertificateError::NotValidForNameContext { .. },
                ) => TlsError::Name { fingerprint }.into_rustls(),
                other => other,
            })
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.3 is needed".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let CryptoProvider {
            signature_verification_algorithms,
            ..
        } = provider::default_provider();
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A server's certificate and key, for connections over TLS.
#[derive(Clone)]
pub struct TlsServer {
    config: Arc<ServerConfig>,
    fingerprint: String,
    takes_plain: bool,
}

impl TlsServer {
    /// From PEM texts: the certificate with what leads to its authority behind it, and its key.
    ///
    /// # Errors
    /// What of them cannot be used.
    pub fn from_pem(certificates: &[u8], key: &[u8]) -> Result<Self, TlsError> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificates).collect();
        let chain = chain.map_err(given)?;
        let Some(own) = chain.first() else {
            let why = "there is no certificate in it: PEM text is needed";
            return Err(TlsError::Given(why.to_owned()));
        };
        let fingerprint = format!("{FINGERPRINT_PREFIX}{}", hex(&digest(own)));
        let key = PrivateKeyDer::from_pem_slice(key).map_err(given)?;
        let config = ServerConfig::builder_with_provider(Arc::new(provider::default_provider()))
            .with_protocol_versions(&[&TLS13])
            .map_err(given)?
            .with_no_client_auth()
            .with_single_cert(chain, key);
        let mut config = config.map_err(given)?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_secret_extraction = true;
        // Nothing comes behind the handshake that the record layer of a session would have to understand.
        config.send_tls13_tickets = 0;
        Ok(Self {
            config: Arc::new(config),
            fingerprint,
            takes_plain: false,
        })
    }

    /// Lets clients without TLS in, too.
    #[must_use]
    pub fn taking_plain(mut self, takes_plain: bool) -> Self {
        self.takes_plain = takes_plain;
        self
    }

    /// What [`TlsClient::trust_fingerprints`] knows the server by.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub(crate) fn takes_plain(&self) -> bool {
        self.takes_plain
    }

    pub(super) fn begin(&self) -> Result<rustls::ServerConnection, TlsError> {
        rustls::ServerConnection::new(Arc::clone(&self.config))
            .map_err(|error| TlsError::of_rustls(&error))
    }
}

impl fmt::Debug for TlsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsServer")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

fn given(error: impl fmt::Display) -> TlsError {
    TlsError::Given(error.to_string())
}

fn digest(certificate: &CertificateDer<'_>) -> [u8; FINGERPRINT_BYTES] {
    let digest = ring::digest::digest(&ring::digest::SHA256, certificate);
    let mut bytes = [0; FINGERPRINT_BYTES];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn parse_fingerprint(text: &str) -> Result<[u8; FINGERPRINT_BYTES], TlsError> {
    let parse = || {
        let digits = text.trim().strip_prefix(FINGERPRINT_PREFIX)?;
        let digits: Vec<u32> = digits
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16))
            .collect::<Option<_>>()?;
        let bytes: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| u8::try_from(pair[0] * 16 + pair.get(1)?).ok())
            .collect();
        bytes?.try_into().ok()
    };
    parse().ok_or_else(|| {
        TlsError::Given(format!(
            "{text:?} is no fingerprint: {FINGERPRINT_PREFIX} and 64 hexadecimal digits"
        ))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn fingerprints_are_read_as_people_write_them() {
        let plain = format!("sha256:{}", "0aB".repeat(21) + "f");
        let bytes = parse_fingerprint(&plain).unwrap();
        assert_eq!(hex(&bytes), plain[7..].to_lowercase());
        let digits: Vec<&str> = plain.as_bytes()[7..]
            .chunks(2)
            .map(|pair| std::str::from_utf8(pair).unwrap())
            .collect();
        assert_eq!(
            parse_fingerprint(&format!(" sha256:{}", digits.join(":"))).unwrap(),
            bytes
        );
        for bad in [
            "",
            "sha256:",
            &plain[..70],
            &plain[7..],
            &plain.replace('f', "g"),
            &format!("{plain}00"),
        ] {
            assert!(
                matches!(parse_fingerprint(bad), Err(TlsError::Given(_))),
                "{bad}"
            );
        }
        assert!(TlsClient::trust_fingerprints(&format!("{plain},{plain}")).is_ok());
        assert!(TlsClient::trust_fingerprints(&format!("{plain},x")).is_err());
    }

    #[test]
    fn hosts_are_the_names() {
        for (server, name) in [
            ("gpu1:7474", "gpu1"),
            ("10.0.0.1:1", "10.0.0.1"),
            ("[fd00::1]:80", "fd00::1"),
        ] {
            assert_eq!(name_of(server).unwrap().to_str(), name);
        }
        assert!(name_of("two words:1").is_err());
    }
}
