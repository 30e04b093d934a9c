//! Sessions under NVIDIA's MPS: where its control daemon runs, a session that has a share of its GPUs gets that part of their
//! multiprocessors, instead of turns: both together would give it the share of a share.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use crate::device::describe::{DeviceSpec, WHOLE_PERMILLE};

/// What MPS reads when a process starts to use CUDA.
pub(crate) const PERCENTAGE: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";
/// Where the daemon's pipes are, if this does not say.
const PIPES_DEFAULT: &str = "/tmp/nvidia-mps";

/// Whether its daemon runs.
pub(crate) fn is_running() -> bool {
    runs_at(&directory(std::env::var_os("CUDA_MPS_PIPE_DIRECTORY")))
}

/// The percentage for a session with these devices under MPS, if it has a share. MPS knows one number for all GPUs of a process, so
/// there is none where their shares differ: such a session takes turns.
pub(crate) fn percentage(devices: &[DeviceSpec]) -> Option<u16> {
    let share = devices.first()?.share_permille;
    let is_one_part =
        share < WHOLE_PERMILLE && devices.iter().all(|device| device.share_permille == share);
    is_one_part.then(|| share.div_ceil(10))
}

/// The shares for which a session takes turns: of the whole where MPS divides the multiprocessors.
pub(crate) fn shares_of_time(
    devices: &[DeviceSpec],
    percentage: Option<u16>,
) -> impl Iterator<Item = (usize, u16)> {
    devices.iter().map(move |device| {
        let share = match percentage {
            Some(_) => WHOLE_PERMILLE,
            None => device.share_permille,
        };
        (device.ordinal as usize, share)
    })
}

fn directory(variable: Option<OsString>) -> PathBuf {
    let named = variable.filter(|path| !path.is_empty());
    named.map_or_else(|| PIPES_DEFAULT.into(), PathBuf::from)
}

fn runs_at(pipes: &Path) -> bool {
    pipes.join("control").exists()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use super::{directory, percentage, runs_at, shares_of_time};
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
    fn the_daemon_runs_where_its_pipe_is() {
        let pipes = tempfile::tempdir().unwrap();
        assert!(!runs_at(pipes.path()));
        std::fs::write(pipes.path().join("control"), "").unwrap();
        assert!(runs_at(pipes.path()));
    }

    #[test]
    fn a_session_has_a_percentage_or_turns() {
        for (shares, expected) in [
            (&[250][..], Some(25)),
            (&[255, 255], Some(26)),
            (&[255, 3], None),
            (&[1000, 1000], None),
            (&[], None),
        ] {
            let devices = devices(shares);
            let found = percentage(&devices);
            assert_eq!(found, expected, "{shares:?}");
            let turns = shares_of_time(&devices, found).map(|(_, share)| share);
            let whole = vec![1000; shares.len()];
            let expected = if found.is_some() { &whole } else { shares };
            assert_eq!(turns.collect::<Vec<_>>(), expected, "{shares:?}");
        }
    }

    #[test]
    fn the_pipes_are_where_the_variable_says() {
        assert_eq!(directory(None), Path::new("/tmp/nvidia-mps"));
        assert_eq!(directory(Some("".into())), Path::new("/tmp/nvidia-mps"));
        assert_eq!(directory(Some("/run/mps".into())), Path::new("/run/mps"));
    }
}
