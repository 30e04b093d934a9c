//! The pool's own certificate authority, and TLS for its connections.
#![forbid(unsafe_code)]

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Certificates are valid from and to these years: a pool that is found broken on a birthday helps nobody.
const VALID_YEARS: (i32, i32) = (2020, 2120);

/// A certificate and its key, in PEM.
#[derive(Debug)]
pub struct Identity {
    /// Certificate.
    pub certificate: String,
    /// Key, to be kept secret.
    pub key: String,
}

/// A new authority, and a certificate of it for these host names and addresses.
///
/// # Errors
/// A name that cannot be in a certificate; no randomness.
pub fn authority(hosts: &[String]) -> io::Result<(Identity, Identity)> {
    let make = || -> Result<(Identity, Identity), rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params
            .distinguished_name
            .push(DnType::CommonName, "farcall pool authority");
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = date_time_ymd(VALID_YEARS.0, 1, 1);
        params.not_after = date_time_ymd(VALID_YEARS.1, 1, 1);
        let key = KeyPair::generate()?;
        let authority = Identity {
            certificate: params.self_signed(&key)?.pem(),
            key: key.serialize_pem(),
        };
        let issuer = Issuer::new(params, key);
        let mut params = CertificateParams::new(hosts.to_vec())?;
        params
            .distinguished_name
            .push(DnType::CommonName, "farcall pool");
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = date_time_ymd(VALID_YEARS.0, 1, 1);
        params.not_after = date_time_ymd(VALID_YEARS.1, 1, 1);
        let key = KeyPair::generate()?;
        let pool = Identity {
            certificate: params.signed_by(&key, &issuer)?.pem(),
            key: key.serialize_pem(),
        };
        Ok((authority, pool))
    };
    make().map_err(io::Error::other)
}

/// What a listening socket needs.
///
/// # Errors
/// A file that cannot be read or is no certificate or key.
pub fn server_config(certificate: &Path, key: &Path) -> io::Result<Arc<rustls::ServerConfig>> {
    let bad = |path: &Path, why: String| {
        io::Error::other(format!("{}: {why}", PathBuf::from(path).display()))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(certificate)
        .map_err(|error| bad(certificate, error.to_string()))?
        .collect();
    let chain = chain.map_err(|error| bad(certificate, error.to_string()))?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| bad(key, error.to_string()))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, private)
        .map_err(|error| bad(certificate, error.to_string()))?;
    Ok(Arc::new(config))
}

/// Whether only this machine can reach a host.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
}
