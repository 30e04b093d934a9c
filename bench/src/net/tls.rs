//! What services of this process show, and their clients know.
#![forbid(unsafe_code)]

use std::sync::OnceLock;

use farcall_transport::{TlsClient, TlsServer};
use rcgen::{CertifiedKey, generate_simple_self_signed};

/// Of this process; clients without TLS are let in, too.
///
/// # Panics
/// Without randomness.
#[must_use]
pub fn server() -> TlsServer {
    static MADE: OnceLock<TlsServer> = OnceLock::new();
    let make = || {
        let made = generate_simple_self_signed(Vec::new()).expect("a certificate");
        let CertifiedKey { cert, signing_key } = made;
        let key = signing_key.serialize_pem();
        let server = TlsServer::from_pem(cert.pem().as_bytes(), key.as_bytes());
        server
            .expect("a certificate and its key")
            .taking_plain(true)
    };
    MADE.get_or_init(make).clone()
}

/// A client that knows [`server`].
///
/// # Panics
/// Never.
#[must_use]
pub fn client() -> TlsClient {
    TlsClient::trust_fingerprints(server().fingerprint()).expect("a fingerprint")
}
