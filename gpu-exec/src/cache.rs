//! Modules kept across sessions: one file per image, named by its hash, in a directory of the server.
//!
//! Whoever reads a file checks its hash; so it does not matter who wrote it, or whether the machine stopped in
//! between. A failing cache costs an upload, never a session.
#![forbid(unsafe_code)]

use std::fs::{self, DirEntry, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use farcall_marshal::image::content_hash;

use crate::limits::{CACHED_MODULES_MAX, IMAGE_BYTES_MAX};

/// A directory of images, or nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cache {
    directory: Option<PathBuf>,
}

impl Cache {
    /// Keeps images in `directory`, which exists; `None` keeps none.
    pub(crate) fn new(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    /// An image by its hash, and makes it the most recently used.
    pub(crate) fn load(&self, hash: &[u8; 32]) -> Option<Vec<u8>> {
        let path = self.path(hash)?;
        if fs::metadata(&path).ok()?.len() > IMAGE_BYTES_MAX as u64 {
            return None;
        }
        let image = fs::read(&path).ok()?;
        if content_hash(&image) != *hash {
            log::warn!("{} is damaged, it is removed", path.display());
            let _ = fs::remove_file(&path);
            return None;
        }
        if let Ok(file) = File::options().append(true).open(&path) {
            let _ = file.set_modified(SystemTime::now());
        }
        Some(image)
    }

    /// Keeps an image whose hash was verified.
    pub(crate) fn store(&self, hash: &[u8; 32], image: &[u8]) {
        let Some(path) = self.path(hash) else { return };
        if path.exists() {
            return;
        }
        let scratch = path.with_extension(format!("{}", std::process::id()));
        let stored = fs::write(&scratch, image).and_then(|()| fs::rename(&scratch, &path));
        if let Err(error) = stored {
            log::warn!("{} cannot be kept: {error}", path.display());
            let _ = fs::remove_file(&scratch);
        }
    }

    /// Hashes of what is kept, newest first.
    pub(crate) fn hashes(&self) -> Vec<[u8; 32]> {
        let files = self.files().unwrap_or_default();
        files
            .into_iter()
            .filter_map(|file| file.hash)
            .take(CACHED_MODULES_MAX)
            .collect()
    }

    /// Removes the least recently used images until at most `bytes_max` are kept, and what crashes left behind.
    pub(crate) fn trim(&self, bytes_max: u64) {
        let mut kept_bytes = 0_u64;
        for file in self.files().unwrap_or_default() {
            kept_bytes = kept_bytes.saturating_add(file.bytes);
            let hour_old = file
                .modified
                .elapsed()
                .is_ok_and(|age| age.as_secs() > 3600);
            if kept_bytes > bytes_max || (file.hash.is_none() && hour_old) {
                let _ = fs::remove_file(&file.path);
            }
        }
    }

    fn path(&self, hash: &[u8; 32]) -> Option<PathBuf> {
        Some(
            self.directory
                .as_ref()?
                .join(blake3::Hash::from_bytes(*hash).to_hex().as_str()),
        )
    }

    /// Files, newest first.
    fn files(&self) -> io::Result<Vec<CachedFile>> {
        let Some(directory) = &self.directory else {
            return Ok(Vec::new());
        };
        let mut files: Vec<CachedFile> = fs::read_dir(directory)?
            .flatten()
            .filter_map(|entry| CachedFile::of(&entry))
            .collect();
        files.sort_by_key(|file| std::cmp::Reverse(file.modified));
        Ok(files)
    }
}

/// The directory that a server uses by default, made if need be.
pub(crate) fn default_directory() -> Option<PathBuf> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    let base = base
        .unwrap_or_else(|| std::env::temp_dir().join(format!("farcall-{}", std::process::id())));
    make_directory(&base.join("farcall").join("modules"))
}

/// Makes a directory that only this user can read; `None` if that fails.
pub(crate) fn make_directory(path: &Path) -> Option<PathBuf> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path);
    if let Err(error) = &made {
        log::warn!("modules are not kept: {}: {error}", path.display());
    }
    made.ok().map(|()| path.to_owned())
}

#[derive(Debug)]
struct CachedFile {
    path: PathBuf,
    hash: Option<[u8; 32]>,
    bytes: u64,
    modified: SystemTime,
}

impl CachedFile {
    fn of(entry: &DirEntry) -> Option<Self> {
        let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
        let hash = entry
            .file_name()
            .to_str()
            .and_then(|name| blake3::Hash::from_hex(name).ok())
            .map(|hash| *hash.as_bytes());
        Some(Self {
            path: entry.path(),
            hash,
            bytes: metadata.len(),
            modified: metadata.modified().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs::File;
    use std::time::{Duration, SystemTime};

    use farcall_marshal::image::content_hash;

    use super::Cache;

    fn age(cache: &Cache, hash: &[u8; 32], seconds: u64) {
        let file = File::options()
            .append(true)
            .open(cache.path(hash).unwrap())
            .unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(seconds))
            .unwrap();
    }

    #[test]
    fn images_come_back_newest_first_and_the_oldest_go() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(directory.path().to_owned()));
        let images = [b"first".to_vec(), b"second".to_vec(), b"third".to_vec()];
        let hashes: Vec<[u8; 32]> = images.iter().map(|image| content_hash(image)).collect();
        for (i, (hash, image)) in hashes.iter().zip(&images).enumerate() {
            cache.store(hash, image);
            age(&cache, hash, 100 - i as u64);
        }
        assert_eq!(cache.hashes(), [hashes[2], hashes[1], hashes[0]]);
        assert_eq!(cache.load(&hashes[0]).unwrap(), images[0]);
        assert_eq!(
            cache.hashes(),
            [hashes[0], hashes[2], hashes[1]],
            "reading makes it the newest"
        );
        cache.trim(11);
        assert_eq!(cache.hashes(), [hashes[0], hashes[2]]);
    }

    #[test]
    fn damaged_files_are_never_served() {
        let directory = tempfile::tempdir().unwrap();
        let cache = Cache::new(Some(directory.path().to_owned()));
        let hash = content_hash(b"good");
        cache.store(&hash, b"good");
        std::fs::write(cache.path(&hash).unwrap(), b"evil").unwrap();
        assert_eq!(cache.load(&hash), None);
        assert!(cache.hashes().is_empty());
        assert!(Cache::new(None).load(&hash).is_none());
    }
}
