//! Sessions under NVIDIA's MPS: where its control daemon runs, a session that has a share of its GPUs gets no more of their
//! multiprocessors than that.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::device::describe::{DeviceSpec, WHOLE_PERMILLE};

/// What MPS reads when a process starts to use CUDA.
pub(crate) const PERCENTAGE: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";
/// Where the daemon's pipes are, if this does not say.
const PIPES_DEFAULT: &str = "/tmp/nvidia-mps";

/// The percentage for a session with these devices, if MPS runs and it has a share of some. MPS knows one number for all GPUs of a
/// process: the largest share.
pub(crate) fn percentage(devices: &[DeviceSpec]) -> Option<String> {
    let pipes = std::env::var_os("CUDA_MPS_PIPE_DIRECTORY");
    percentage_at(&directory(pipes), devices)
}

fn directory(variable: Option<OsString>) -> PathBuf {
    let named = variable.filter(|path| !path.is_empty());
    named.map_or_else(|| PIPES_DEFAULT.into(), PathBuf::from)
}

fn percentage_at(pipes: &Path, devices: &[DeviceSpec]) -> Option<String> {
    let largest = devices.iter().map(|device| device.share_permille).max()?;
    let is_part = largest < WHOLE_PERMILLE;
    (is_part && pipes.join("control").exists()).then(|| largest.div_ceil(10).to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::{directory, percentage_at};
    use crate::device::describe::DeviceSpec;

    fn devices(shares: &[u16]) -> Vec<DeviceSpec> {
        let device = |share_permille: &u16| DeviceSpec {
            ordinal: 0,
            total_bytes: 1,
            limit_bytes: 1,
            share_permille: *share_permille,
        };
        shares.iter().map(device).collect()
    }

    #[test]
    fn shares_are_percentages_where_the_daemon_runs() {
        let pipes = tempfile::tempdir().unwrap();
        let percentage = |shares: &[u16]| percentage_at(pipes.path(), &devices(shares));
        assert_eq!(percentage(&[250]), None, "no daemon");
        std::fs::write(pipes.path().join("control"), "").unwrap();
        assert_eq!(percentage(&[250]).as_deref(), Some("25"));
        assert_eq!(percentage(&[255, 3]).as_deref(), Some("26"));
        assert_eq!(percentage(&[250, 1000]), None, "all of one");
        assert_eq!(percentage(&[]), None);
    }

    #[test]
    fn the_pipes_are_where_the_variable_says() {
        assert_eq!(directory(None), Path::new("/tmp/nvidia-mps"));
        assert_eq!(directory(Some("".into())), Path::new("/tmp/nvidia-mps"));
        assert_eq!(directory(Some("/run/mps".into())), Path::new("/run/mps"));
    }
}
