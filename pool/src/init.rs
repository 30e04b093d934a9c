//! The directory of a pool: keys, certificates, the store.
#![forbid(unsafe_code)]

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::core::wall_ms;
use crate::grant::Signer;
use crate::model::Quota;
use crate::secrets::{SecretKind, generate, hash};
use crate::state::{NewToken, Pool, Role};
use crate::store::{EmbeddedStore, Store as _};
use crate::tls;

/// A pool's directory.
#[derive(Clone, Debug)]
pub struct Layout {
    directory: PathBuf,
}

impl Layout {
    /// The pool in `directory`.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
        }
    }

    /// Certificate of the authority: what clients and servers need to trust the pool.
    #[must_use]
    pub fn authority(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Key of that authority: who has it can pretend to be the pool.
    #[must_use]
    pub fn authority_key(&self) -> PathBuf {
        self.directory.join("ca.key")
    }

    /// Certificate of the pool.
    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("pool.pem")
    }

    /// Key of that certificate.
    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.directory.join("pool.key")
    }

    /// Key that signs grants.
    #[must_use]
    pub fn grant_key(&self) -> PathBuf {
        self.directory.join("grant.key")
    }

    /// The store.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.directory.join("pool.redb")
    }

    /// What was, for the dashboard's charts.
    #[must_use]
    pub fn history(&self) -> PathBuf {
        self.directory.join("history.redb")
    }

    /// Token of the first administrator.
    #[must_use]
    pub fn admin_token(&self) -> PathBuf {
        self.directory.join("admin.token")
    }

    /// Makes a pool: an authority, a certificate for `hosts`, a key for grants, a store with one
    /// administrator, whose token is in a file that only this user can read. Blocks on the disk.
    ///
    /// # Errors
    /// There is a pool already, or the directory cannot be written.
    pub fn create(&self, hosts: &[String]) -> io::Result<()> {
        if self.store().exists() || self.authority().exists() {
            let what = format!("{}: there is a pool already", self.directory.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
        }
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o700)
            .create(&self.directory)?;
        let (authority, pool) = tls::authority(hosts)?;
        write_new(&self.authority(), &authority.certificate, 0o644)?;
        write_new(&self.authority_key(), &authority.key, 0o600)?;
        write_new(&self.certificate(), &pool.certificate, 0o644)?;
        write_new(&self.key(), &pool.key, 0o600)?;
        write_new(&self.grant_key(), &Signer::generate()?.seed(), 0o600)?;
        let token = generate(SecretKind::Token)?;
        let mut state = Pool::new();
        let admin = NewToken {
            name: "admin".to_owned(),
            role: Role::Admin,
            group: None,
            quota: Quota::default(),
            valid_ms: None,
        };
        state
            .create_token(wall_ms(), admin, &hash(&token), "init")
            .map_err(io::Error::other)?;
        let mut store = EmbeddedStore::open(&self.store()).map_err(io::Error::other)?;
        let (version, _) = store.load().map_err(io::Error::other)?;
        store
            .commit(version, &state.take_changes())
            .map_err(io::Error::other)?;
        write_new(&self.admin_token(), &format!("{token}\n"), 0o600)
    }

    /// Replaces the pool's certificate by one for `hosts`, of the same authority, so that who trusts the pool goes on to. A pool that
    /// runs has the old one until it is started again. Blocks on the disk.
    ///
    /// # Errors
    /// There is no authority's key, or the directory cannot be written.
    pub fn certify(&self, hosts: &[String]) -> io::Result<()> {
        let path = self.authority_key();
        let key = fs::read_to_string(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        let pool = tls::certify(&key, hosts)?;
        // Whoever starts between the two finds a key that does not fit, and says so.
        replace(&self.key(), &pool.key, 0o600)?;
        replace(&self.certificate(), &pool.certificate, 0o644)
    }

    /// The key that signs grants.
    ///
    /// # Errors
    /// The file cannot be read or has no key.
    pub fn signer(&self) -> io::Result<Signer> {
        let path = self.grant_key();
        let text = fs::read_to_string(&path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        Signer::from_seed(&text)
            .ok_or_else(|| io::Error::other(format!("{}: no key", path.display())))
    }
}

/// Writes a file anew: whole, or not at all.
fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_new(&new, text, mode)?;
    fs::rename(&new, path)
}

/// Writes a file that was not there, whole.
fn write_new(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
