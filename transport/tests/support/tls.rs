//! Certificates for tests.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    dead_code,
    missing_docs,
    unreachable_pub
)]

use std::sync::OnceLock;

use farcall_transport::{TlsClient, TlsServer};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedKey, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    generate_simple_self_signed,
};

/// A server's certificate that signed itself, of this process.
pub fn server() -> TlsServer {
    static MADE: OnceLock<TlsServer> = OnceLock::new();
    MADE.get_or_init(|| self_signed(&["127.0.0.1"])).clone()
}

/// A client that knows [`server`] by its fingerprint.
pub fn client() -> TlsClient {
    TlsClient::trust_fingerprints(server().fingerprint()).unwrap()
}

pub fn self_signed(names: &[&str]) -> TlsServer {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
    let key = signing_key.serialize_pem();
    TlsServer::from_pem(cert.pem().as_bytes(), key.as_bytes()).unwrap()
}

/// An authority.
pub struct Authority {
    pub pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Self { pem, issuer }
    }

    /// A server that it vouches for.
    pub fn server(&self, names: &[&str]) -> TlsServer {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let params = CertificateParams::new(names).unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = key.serialize_pem();
        TlsServer::from_pem(certificate.pem().as_bytes(), key.as_bytes()).unwrap()
    }

    pub fn client(&self) -> TlsClient {
        TlsClient::trust_authorities(self.pem.as_bytes()).unwrap()
    }
}
