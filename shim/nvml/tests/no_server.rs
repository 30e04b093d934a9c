//! What a program gets without a server. One test, because it sets this process's environment and stderr.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs::File;
use std::os::fd::AsFd as _;

use common::Nvml;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use nix::unistd::{dup, dup2_stderr};

const DRIVER_NOT_LOADED: u32 = 9;

#[test]
fn says_so_once_and_how_to_mend_it() {
    use std::os::fd::AsRawFd as _;
    // Bound and not listening: as long as we hold it, connecting is refused.
    let held = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .unwrap();
    bind(held.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).unwrap();
    let address = getsockname::<SockaddrIn>(held.as_raw_fd())
        .unwrap()
        .to_string();
    // SAFETY: this process has no other thread that reads the environment.
    unsafe { std::env::set_var("FARCALL_SERVER", &address) };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("stderr");

    let nvml = Nvml::load();
    let before = dup(std::io::stderr().as_fd()).unwrap();
    dup2_stderr(File::create(&path).unwrap().as_fd()).unwrap();
    let statuses = [
        nvml.call("nvmlInit_v2"),
        nvml.call("nvmlInit_v2"),
        nvml.call("nvmlDeviceGetCount_v2"),
    ];
    dup2_stderr(before.as_fd()).unwrap();

    assert_eq!(statuses, [DRIVER_NOT_LOADED, DRIVER_NOT_LOADED, 1]);
    let said = std::fs::read_to_string(&path).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    for part in [address.as_str(), "from FARCALL_SERVER", "farcall serve"] {
        assert!(said.contains(part), "{part} in {said}");
    }
}
