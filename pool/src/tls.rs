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
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;

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
        let (params, key) = (authority_params()?, KeyPair::generate()?);
        let authority = Identity {
            certificate: params.self_signed(&key)?.pem(),
            key: key.serialize_pem(),
        };
        Ok((authority, signed(&Issuer::new(params, key), hosts)?))
    };
    make().map_err(io::Error::other)
}

/// Another certificate of an authority that [`authority`] made, whose key this is.
///
/// # Errors
/// It is no key; else as [`authority`].
pub fn certify(authority_key: &str, hosts: &[String]) -> io::Result<Identity> {
    let make = || {
        let key = KeyPair::from_pem(authority_key)?;
        signed(&Issuer::new(authority_params()?, key), hosts)
    };
    make().map_err(io::Error::other)
}

/// What an authority's certificate says; the same of each, but for the key.
fn authority_params() -> Result<CertificateParams, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params
        .distinguished_name
        .push(DnType::CommonName, "farcall pool authority");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(VALID_YEARS.0, 1, 1);
    params.not_after = date_time_ymd(VALID_YEARS.1, 1, 1);
    Ok(params)
}

fn signed(issuer: &Issuer<'_, KeyPair>, hosts: &[String]) -> Result<Identity, rcgen::Error> {
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
    Ok(Identity {
        certificate: params.signed_by(&key, issuer)?.pem(),
        key: key.serialize_pem(),
    })
}

/// Whether the certificate in a file names one of these hosts.
///
/// # Errors
/// A file that cannot be read or is no certificate.
pub fn names_one_of(certificate: &Path, hosts: &[String]) -> io::Result<bool> {
    let der = CertificateDer::from_pem_file(certificate).map_err(io::Error::other)?;
    let parsed = ParsedCertificate::try_from(&der).map_err(io::Error::other)?;
    let is_named = |host: &String| {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        ServerName::try_from(host).is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
    };
    Ok(hosts.iter().any(is_named))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_certificate_names_the_hosts_that_it_was_made_for_and_another_takes_its_place() {
        let hosts =
            |names: &[&str]| -> Vec<String> { names.iter().map(|it| (*it).to_owned()).collect() };
        let (authority, pool) = authority(&hosts(&["pool.example", "10.0.0.5"])).unwrap();
        let names = |identity: &Identity, wanted: &[&str]| {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(identity.certificate.as_bytes()).unwrap();
            names_one_of(file.path(), &hosts(wanted)).unwrap()
        };
        assert!(names(&pool, &["other", "pool.example"]) && names(&pool, &["10.0.0.5"]));
        assert!(!names(&pool, &["10.0.0.6", "localhost", "not a name"]));
        let other = certify(&authority.key, &hosts(&["::1"])).unwrap();
        assert!(names(&other, &["[::1]"]) && !names(&other, &["pool.example"]));
        assert!(certify("no key", &hosts(&["::1"])).is_err());
    }
}
