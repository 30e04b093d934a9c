//! TLS of sessions: what a server shows, and whom a client trusts.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use clap::{Args, ValueHint};
use farcall_config::parse_tls;
use farcall_transport::{TlsClient, TlsServer};
use rcgen::{CertificateParams, DnType, KeyPair, date_time_ymd};

use crate::failure::{Failure, code};

/// Names of the files in the directory of `serve --tls`.
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
/// A certificate that is known by its fingerprint does not end by itself.
const VALID_YEARS: (i32, i32) = (2020, 2120);

/// What clients over the network come with.
#[derive(Args, Debug)]
pub(crate) struct ServeTlsArgs {
    /// Take clients over the network with TLS alone. DIRECTORY has cert.pem and key.pem; a pair is made if it has none, which
    /// clients know by the fingerprint that is said then
    #[arg(long = "tls", value_name = "DIRECTORY", value_hint = ValueHint::DirPath)]
    pub(crate) directory: Option<PathBuf>,
    /// Take clients without TLS, too: while not all of them have been told
    #[arg(long = "tls-or-plain", requires = "directory")]
    pub(crate) takes_plain: bool,
}

impl ServeTlsArgs {
    /// What the server shows, if it is to.
    pub(crate) fn server(&self) -> Result<Option<TlsServer>, Failure> {
        let Some(directory) = &self.directory else {
            return Ok(None);
        };
        let failed = |why: String| {
            let what = format!("no TLS with {}: {why}", directory.display());
            Failure::new(
                code::CONFIG,
                what,
                "the directory of --tls has cert.pem and key.pem, or neither, or the key alone",
            )
        };
        let (certificate, key) = (directory.join(CERTIFICATE), directory.join(KEY));
        if !certificate.exists() {
            make(directory).map_err(|error| failed(error.to_string()))?;
        }
        let read = |path: &Path| {
            fs::read(path).map_err(|error| failed(format!("{}: {error}", path.display())))
        };
        let server = TlsServer::from_pem(&read(&certificate)?, &read(&key)?);
        let server = server.map_err(|error| failed(error.to_string()))?;
        Ok(Some(server.taking_plain(self.takes_plain)))
    }
}

/// A certificate that signs itself, and its key, which nobody else may read. A key that is there already is used: whoever
/// made it was killed before there was a certificate, or wants to keep it.
fn make(directory: &Path) -> io::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)?;
    let key = match fs::read_to_string(directory.join(KEY)) {
        Ok(text) => KeyPair::from_pem(&text).map_err(io::Error::other)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate().map_err(io::Error::other)?;
            place(directory, KEY, 0o600, &key.serialize_pem())?;
            key
        }
        Err(error) => return Err(error),
    };
    let mut params = CertificateParams::new(Vec::new()).map_err(io::Error::other)?;
    params
        .distinguished_name
        .push(DnType::CommonName, "farcall server");
    params.not_before = date_time_ymd(VALID_YEARS.0, 1, 1);
    params.not_after = date_time_ymd(VALID_YEARS.1, 1, 1);
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    place(directory, CERTIFICATE, 0o644, &certificate.pem())
}

/// Makes a file that is there as a whole or not at all.
fn place(directory: &Path, name: &str, mode: u32, text: &str) -> io::Result<()> {
    let unfinished = directory.join(format!(".{name}.new"));
    let mut options = fs::OpenOptions::new();
    let options = options.write(true).create(true).truncate(true).mode(mode);
    let mut file = options.open(&unfinished)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(unfinished, directory.join(name))
}

/// What a client is told to trust, checked; the path of a file from / on, as programs may change their directory.
pub(crate) fn trust(text: &str) -> Result<String, String> {
    let text = text.trim();
    let whole = if text == "off" || TlsClient::is_fingerprint(text) {
        text.to_owned()
    } else {
        let path = std::path::absolute(text).map_err(|error| format!("{text}: {error}"))?;
        path.display().to_string()
    };
    parse_tls(&whole).map(|_| whole)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn served(directory: &Path) -> Result<TlsServer, Failure> {
        let args = ServeTlsArgs {
            directory: Some(directory.to_owned()),
            takes_plain: false,
        };
        args.server().map(Option::unwrap)
    }

    #[test]
    fn a_certificate_is_made_once_and_kept() {
        let folder = tempfile::tempdir().unwrap();
        let directory = folder.path().join("deeper/tls");
        let made = served(&directory).unwrap().fingerprint().to_owned();
        assert_eq!(served(&directory).unwrap().fingerprint(), made);
        let mode = fs::metadata(directory.join(KEY)).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        assert_eq!(trust(&made), Ok(made));
        // Whoever made them may have been killed in between.
        let key = fs::read(directory.join(KEY)).unwrap();
        fs::remove_file(directory.join(CERTIFICATE)).unwrap();
        served(&directory).unwrap();
        assert_eq!(fs::read(directory.join(KEY)).unwrap(), key);
        // A key that is lost is not made up for: the certificate's clients would not know the new one.
        fs::remove_file(directory.join(KEY)).unwrap();
        assert!(served(&directory).is_err());
    }

    #[test]
    fn what_is_trusted_is_checked_when_it_is_typed() {
        assert!(trust("sha256:123").is_err_and(|why| why.contains("64 hexadecimal")));
        assert!(trust("no/such/file").is_err_and(|why| why.contains("cannot read /")));
        assert_eq!(trust("off").as_deref(), Ok("off"));
        let folder = tempfile::tempdir().unwrap();
        served(folder.path()).unwrap();
        let path = folder.path().join(CERTIFICATE).display().to_string();
        assert_eq!(trust(&path).as_deref(), Ok(&*path));
        let key = folder.path().join(KEY).display().to_string();
        assert!(trust(&key).is_err_and(|why| why.contains("no certificate")));
    }
}
