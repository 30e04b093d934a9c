//! Which RDMA device each side takes. On two devices of one host (`scripts/testbed-vm`) each has its own, as what lies between
//! them is measured: by themselves both would take that of the address, and nothing would cross the link.
#![forbid(unsafe_code)]

use farcall_transport::{DeviceName, RdmaOptions};

use crate::pin::Side;

/// The device of both sides, by its name.
const DEVICE: &str = "FARCALL_BENCH_RDMA_DEVICE";
/// That of the server, if it has another.
const DEVICE_SERVER: &str = "FARCALL_BENCH_RDMA_DEVICE_SERVER";
/// Where perftest's server is to be found.
const HOST: &str = "FARCALL_BENCH_RDMA_HOST";

/// A side's device, if one was chosen.
pub(crate) fn device(side: Side) -> Option<String> {
    chosen(side, &|name| std::env::var(name).ok())
}

/// The address of a server on the server's device.
pub(crate) fn host() -> String {
    std::env::var(HOST).unwrap_or_else(|_| "127.0.0.1".to_owned())
}

/// What a side's sessions are told.
pub(crate) fn options(side: Side) -> RdmaOptions {
    RdmaOptions {
        device: device(side).and_then(|name| DeviceName::new(&name)),
        ..RdmaOptions::default()
    }
}

fn chosen(side: Side, setting: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let of_server = match side {
        Side::Server => setting(DEVICE_SERVER),
        Side::Client => None,
    };
    of_server.or_else(|| setting(DEVICE))
}

#[cfg(test)]
mod tests {
    use super::{DEVICE, DEVICE_SERVER, Side, chosen};

    #[test]
    fn a_server_may_have_a_device_of_its_own() {
        let of = |side, settings: &[(&str, &str)]| {
            chosen(side, &|name| {
                let found = settings.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        let (near, far) = (Some("rxe0".to_owned()), Some("rxe1".to_owned()));
        let one = [(DEVICE, "rxe0")];
        assert_eq!(
            (of(Side::Client, &one), of(Side::Server, &one)),
            (near.clone(), near.clone())
        );
        let two = [(DEVICE, "rxe0"), (DEVICE_SERVER, "rxe1")];
        assert_eq!(
            (of(Side::Client, &two), of(Side::Server, &two)),
            (near, far)
        );
        assert_eq!(of(Side::Server, &[]), None);
    }
}
