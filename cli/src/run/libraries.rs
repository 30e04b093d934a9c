//! Where the shim libraries are, under the names that programs look for.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::{env, fs, io, os::unix::fs::symlink};

use farcall_config::vars;

use crate::failure::{Failure, code};

/// What a program asks for, and what cargo calls the file that we build.
const NAMES: [(&str, &str); 2] = [
    ("libcuda.so.1", "libcuda.so"),
    ("libnvidia-ml.so.1", "libnvidia_ml.so"),
];

/// A directory with `libcuda.so.1` and `libnvidia-ml.so.1`: `FARCALL_LIB_DIR`, else `../lib/farcall` beside
/// this program's directory, else that directory itself (where cargo builds). If cargo built them there,
/// links with the right names are made in `private`.
pub(crate) fn find(private: &Path) -> Result<PathBuf, Failure> {
    if let Some(directory) = env::var_os(vars::LIB_DIR).filter(|directory| !directory.is_empty()) {
        return usable(Path::new(&directory), private)?
            .ok_or_else(|| not_found(&[directory.into()]));
    }
    let program = env::current_exe().map_err(|error| {
        Failure::new(
            code::NO_LIBRARIES,
            format!("cannot tell where farcall is: {error}"),
            "name their directory in FARCALL_LIB_DIR",
        )
    })?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let candidates = [beside.join("../lib/farcall"), beside.to_owned()];
    for directory in &candidates {
        if let Some(found) = usable(directory, private)? {
            return Ok(found);
        }
    }
    Err(not_found(&candidates))
}

fn usable(directory: &Path, private: &Path) -> Result<Option<PathBuf>, Failure> {
    let Ok(directory) = fs::canonicalize(directory) else {
        return Ok(None);
    };
    if NAMES
        .iter()
        .all(|(installed, _)| directory.join(installed).is_file())
    {
        return Ok(Some(directory));
    }
    if !NAMES
        .iter()
        .all(|(_, built)| directory.join(built).is_file())
    {
        return Ok(None);
    }
    let links = private.join("lib");
    link_all(&directory, &links)
        .map(|()| Some(links.clone()))
        .map_err(|error| {
            Failure::new(
                code::NO_LIBRARIES,
                format!("cannot make links in {}: {error}", links.display()),
                "name another directory with TMPDIR",
            )
        })
}

/// `libcuda.so` too: Triton's and others' linkers look for the name without a version.
fn link_all(built: &Path, links: &Path) -> io::Result<()> {
    fs::create_dir(links)?;
    for (installed, file) in NAMES {
        let target = built.join(file);
        symlink(&target, links.join(installed))?;
        symlink(&target, links.join(installed.trim_end_matches(".1")))?;
    }
    Ok(())
}

fn not_found(tried: &[PathBuf]) -> Failure {
    let tried: Vec<String> = tried
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    Failure::new(
        code::NO_LIBRARIES,
        format!(
            "libcuda.so.1 and libnvidia-ml.so.1 of farcall are not in {}",
            tried.join(" or ")
        ),
        "build them (cargo build --release --workspace), or name their directory in FARCALL_LIB_DIR",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::usable;
    use std::fs;

    #[test]
    fn installed_libraries_are_used_in_place() {
        let root = tempfile::tempdir().unwrap();
        for name in ["libcuda.so.1", "libnvidia-ml.so.1"] {
            fs::write(root.path().join(name), "").unwrap();
        }
        let found = usable(root.path(), root.path()).unwrap().unwrap();
        assert_eq!(found, root.path().canonicalize().unwrap());
    }

    #[test]
    fn built_libraries_get_their_names() {
        let (root, private) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::write(root.path().join("libcuda.so"), "cuda").unwrap();
        assert_eq!(
            usable(root.path(), private.path()).unwrap(),
            None,
            "one of them is not enough"
        );
        fs::write(root.path().join("libnvidia_ml.so"), "nvml").unwrap();
        let found = usable(root.path(), private.path()).unwrap().unwrap();
        assert!(found.starts_with(private.path()));
        for (name, content) in [
            ("libcuda.so.1", "cuda"),
            ("libcuda.so", "cuda"),
            ("libnvidia-ml.so.1", "nvml"),
            ("libnvidia-ml.so", "nvml"),
        ] {
            assert_eq!(fs::read_to_string(found.join(name)).unwrap(), content);
        }
    }
}
