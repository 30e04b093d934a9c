//! Checks of this machine alone. Each takes what was found as an argument, so that every outcome can be tested.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

use farcall_config::format_size;
use farcall_pool::model::{Check, Outcome};

use super::check;

/// The pool's, server's and modules' files need less; below this something will fail soon.
const DISK_BYTES_LOW: u64 = 1 << 30;

/// How much memory a process may pin. `None`: all.
pub(super) fn memlock(limit_bytes: Option<u64>) -> Check {
    const MEANING: &str = "RDMA and pinned buffers need memory that stays in place.";
    const ENOUGH_BYTES: u64 = 8 << 30;
    match limit_bytes {
        None => check("memlock", Outcome::Ok, "unlimited", MEANING, ""),
        Some(bytes) if bytes >= ENOUGH_BYTES => {
            check("memlock", Outcome::Ok, &format_size(bytes), MEANING, "")
        }
        Some(bytes) => check(
            "memlock",
            Outcome::Warning,
            &format_size(bytes),
            MEANING,
            "Set `ulimit -l unlimited`, LimitMEMLOCK=infinity in a systemd unit, or --ulimit memlock=-1 for a container.",
        ),
    }
}

/// The kernel's NVIDIA driver, by its file in /proc. `wants_gpu`: whether this machine serves real GPUs.
pub(super) fn driver(root: &Path, wants_gpu: bool) -> Check {
    const MEANING: &str = "Real GPUs need NVIDIA's kernel driver.";
    match driver_version(root) {
        Some(version) => check("driver", Outcome::Ok, &version, MEANING, ""),
        None if wants_gpu => check(
            "driver",
            Outcome::Failed,
            "not loaded",
            MEANING,
            "Install NVIDIA's driver, or load it with `modprobe nvidia`.",
        ),
        None => check("driver", Outcome::Ok, "none, none needed", MEANING, ""),
    }
}

/// Version of the kernel's NVIDIA driver, if it is loaded.
pub(super) fn driver_version(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join("proc/driver/nvidia/version")).ok()?;
    let mut words = text.lines().next()?.split_whitespace();
    let is_version =
        |word: &&str| word.contains('.') && word.starts_with(|c: char| c.is_ascii_digit());
    words.find(is_version).map(str::to_owned)
}

/// The CUDA version that a server's devices stand for, as `cuDriverGetVersion` gives it.
pub(super) fn cuda(version: u32) -> Check {
    const OLDEST: u32 = 12_000;
    let meaning = "Programs need this version of CUDA or an older one; frameworks of today are built for 12 or 13.";
    let outcome = if version >= OLDEST {
        Outcome::Ok
    } else {
        Outcome::Warning
    };
    let found = format!("{}.{}", version / 1000, version % 1000 / 10);
    let advice = "Install a newer driver (525 or later has CUDA 12).";
    check("cuda", outcome, &found, meaning, advice)
}

/// Free space where farcall keeps files.
pub(super) fn disk(place: &Path, free_bytes: u64, all_bytes: u64) -> Check {
    let found = format!(
        "{} of {} free in {}",
        format_size(free_bytes),
        format_size(all_bytes),
        place.display()
    );
    let meaning = "Credentials, module caches and the pool's store are written there.";
    let advice = "Free some space, or name another place.";
    let outcome = match free_bytes {
        0..DISK_BYTES_LOW => Outcome::Failed,
        _ if free_bytes < all_bytes / 20 => Outcome::Warning,
        _ => Outcome::Ok,
    };
    check("disk", outcome, &found, meaning, advice)
}

/// Folders that a program looks in for its libraries before the system's, and what it would find there.
pub(super) fn libraries(paths: &[PathBuf], preload: &str, ours: Option<&Path>) -> Check {
    let meaning =
        "A program takes the first libcuda.so.1 that it finds; `farcall run` puts its own first.";
    let is_ours = |path: &Path| {
        let (path, ours) = (
            path.canonicalize().ok(),
            ours.and_then(|it| it.canonicalize().ok()),
        );
        path.is_some() && path == ours
    };
    let mut others: Vec<String> = paths
        .iter()
        .filter(|path| !is_ours(path) && path.join("libcuda.so.1").exists())
        .map(|path| path.join("libcuda.so.1").display().to_string())
        .collect();
    let preloads = preload
        .split([':', ' '])
        .filter(|it| it.contains("libcuda") || it.contains("libnvidia"));
    others.extend(preloads.map(|it| format!("LD_PRELOAD={it}")));
    if others.is_empty() {
        return check("libraries", Outcome::Ok, "nothing in the way", meaning, "");
    }
    let advice = "Take it out of LD_LIBRARY_PATH or LD_PRELOAD where programs are to use farcall.";
    check(
        "libraries",
        Outcome::Warning,
        &others.join(", "),
        meaning,
        advice,
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::Path;

    use farcall_pool::model::Outcome;

    use super::{cuda, disk, driver, libraries, memlock};

    #[test]
    fn an_old_cuda_is_told_of() {
        assert_eq!(cuda(11_080).outcome, Outcome::Warning);
        assert_eq!(
            (cuda(13_000).outcome, &*cuda(13_000).found),
            (Outcome::Ok, "13.0")
        );
    }

    #[test]
    fn limits_and_space() {
        assert_eq!(memlock(None).outcome, Outcome::Ok);
        let low = memlock(Some(64 << 10));
        assert_eq!(low.outcome, Outcome::Warning);
        assert!(low.advice.contains("ulimit -l"), "{low:?}");
        let place = Path::new("/x");
        assert_eq!(disk(place, 1 << 20, 1 << 40).outcome, Outcome::Failed);
        assert_eq!(disk(place, 2 << 30, 1 << 40).outcome, Outcome::Warning);
        assert_eq!(disk(place, 1 << 39, 1 << 40).outcome, Outcome::Ok);
    }

    #[test]
    fn the_driver_is_missed_where_it_is_needed() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(driver(root.path(), false).outcome, Outcome::Ok);
        assert_eq!(driver(root.path(), true).outcome, Outcome::Failed);
        let folder = root.path().join("proc/driver/nvidia");
        fs::create_dir_all(&folder).unwrap();
        let text =
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.95.05  Tue Sep\nGCC version: 12\n";
        fs::write(folder.join("version"), text).unwrap();
        let found = driver(root.path(), true);
        assert_eq!(
            (found.outcome, found.found.as_str()),
            (Outcome::Ok, "580.95.05")
        );
    }

    #[test]
    fn other_drivers_are_in_the_way() {
        let (ours, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for folder in [&ours, &other] {
            fs::write(folder.path().join("libcuda.so.1"), "").unwrap();
        }
        let paths = [ours.path().to_owned(), other.path().to_owned()];
        assert_eq!(
            libraries(&paths[..1], "", Some(ours.path())).outcome,
            Outcome::Ok
        );
        let found = libraries(&paths, "/x/libcuda.so", Some(ours.path()));
        assert_eq!(found.outcome, Outcome::Warning);
        assert!(found.found.contains("LD_PRELOAD"), "{found:?}");
        assert!(
            found.found.contains(other.path().to_str().unwrap()),
            "{found:?}"
        );
    }
}
