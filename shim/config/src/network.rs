//! Settings of the way to the server, and all that the transport is told.
#![forbid(unsafe_code)]

use std::net::IpAddr;
use std::time::Duration;

use farcall_transport::{
    ConnectOptions, DeviceName, LocalEnd, RdmaMode, SocketOptions, TlsClient, TransportChoice,
};

use crate::{ClientConfig, Transport};

/// Longest name of a network interface (`IFNAMSIZ` less its end).
const INTERFACE_BYTES_MAX: usize = 15;
/// Whoever waits ten minutes for a server waits for ever.
const CONNECT_TIMEOUT_MS_MAX: u64 = 600_000;
/// More than a second between two systems is no network any more.
const ADDED_RTT_US_MAX: u64 = 1_000_000;
/// Polling the network card longer than this starves everything else.
const BUSY_POLL_US_MAX: u32 = 10_000;

impl ClientConfig {
    /// What a connection to the server is told: where, with which token and over what. The caller
    /// adds its payload.
    #[must_use]
    pub fn connect_options(&self) -> ConnectOptions {
        let mut options = ConnectOptions::new(self.server.clone());
        options.token = self.token.as_ref().map(|token| token.expose().to_owned());
        options.transport = match self.transport {
            Transport::Auto => TransportChoice::Auto,
            Transport::Tcp => TransportChoice::Tcp,
            Transport::Shm => TransportChoice::Shm,
            Transport::Verbs => TransportChoice::Verbs,
        };
        options.socket = self.socket.clone();
        options.rdma = Some(self.rdma);
        options.tls.clone_from(&self.tls);
        if let Some(timeout) = self.connect_timeout {
            options.connect_timeout = timeout;
        }
        if let Some(spin) = self.spin {
            options.tuning.spin = spin;
        }
        options.tuning.added_rtt = self.added_rtt;
        options.tuning.call_by_call = self.call_by_call;
        options
    }
}

/// Which servers are trusted over TLS: `off` (no TLS), the path of a file with certificates of authorities, or fingerprints
/// of certificates (`sha256:...`, commas between them).
///
/// # Errors
/// The message says what is allowed, or what is wrong with the file.
pub fn parse_tls(text: &str) -> Result<Option<TlsClient>, String> {
    let text = text.trim();
    if text == "off" {
        return Ok(None);
    }
    if TlsClient::is_fingerprint(text) {
        let client = TlsClient::trust_fingerprints(text).map_err(|error| error.to_string())?;
        return Ok(Some(client));
    }
    // A file of the directory that a program happens to be started in is no authority.
    if !text.starts_with('/') {
        return Err(format!(
            "{text:?} is not off, sha256:FINGERPRINT, or the path (from / on) of a file with the certificates of authorities"
        ));
    }
    let pem = std::fs::read(text).map_err(|error| format!("cannot read {text}: {error}"))?;
    let client = TlsClient::trust_authorities(&pem).map_err(|error| format!("{text}: {error}"))?;
    Ok(Some(client))
}

/// Where connections begin: an address of this host, or the name of an interface.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_local_end(text: &str) -> Result<LocalEnd, String> {
    let text = text.trim();
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(LocalEnd::Address(address));
    }
    let is_name = (1..=INTERFACE_BYTES_MAX).contains(&text.len())
        && !matches!(text, "." | "..")
        && text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && byte != b'/' && byte != b':');
    if is_name {
        Ok(LocalEnd::Interface(text.to_owned()))
    } else {
        Err(format!(
            "{text:?} is neither an address of this host nor the name of a network interface"
        ))
    }
}

/// A bound on opening a session, in milliseconds.
///
/// # Errors
/// The message says what is allowed.
pub(crate) fn parse_connect_timeout(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<u64>() {
        Ok(ms) if (1..=CONNECT_TIMEOUT_MS_MAX).contains(&ms) => Ok(Duration::from_millis(ms)),
        _ => Err(format!(
            "{text:?} is not a time in milliseconds from 1 to {CONNECT_TIMEOUT_MS_MAX}"
        )),
    }
}

/// An RDMA device, by the name that `ibv_devices` shows.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_rdma_device(text: &str) -> Result<DeviceName, String> {
    DeviceName::new(text.trim()).ok_or_else(|| {
        format!("{text:?} is no name of an RDMA device, such as mlx5_0 (ibv_devices lists them)")
    })
}

/// A place in a GID table.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_gid_index(text: &str) -> Result<u8, String> {
    let index = text
        .trim()
        .parse::<u8>()
        .ok()
        .filter(|index| *index < u8::MAX);
    index.ok_or_else(|| format!("{text:?} is no GID index: a number from 0 to 254"))
}

/// How arrivals over RDMA are found.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_rdma_mode(text: &str) -> Result<RdmaMode, String> {
    match text.trim() {
        "auto" => Ok(RdmaMode::Auto),
        "completions" => Ok(RdmaMode::Completions),
        "memory" => Ok(RdmaMode::Memory),
        _ => Err(format!(
            "{text:?} is not one of auto, completions or memory"
        )),
    }
}

/// A DSCP by number or by the name of its class (RFC 2474, 2597, 3246).
///
/// # Errors
/// The message says what is allowed.
pub fn parse_dscp(text: &str) -> Result<u8, String> {
    let lower = text.trim().to_ascii_lowercase();
    let number = match lower.as_bytes() {
        b"ef" => Some(46),
        [b'c', b's', class @ b'0'..=b'7'] => Some(class.wrapping_sub(b'0').wrapping_mul(8)),
        [b'a', b'f', class @ b'1'..=b'4', drop @ b'1'..=b'3'] => {
            let (class, drop) = (class.wrapping_sub(b'0'), drop.wrapping_sub(b'0'));
            Some(class.wrapping_mul(8).wrapping_add(drop.wrapping_mul(2)))
        }
        _ => lower.parse::<u8>().ok().filter(|number| *number < 64),
    };
    number.ok_or_else(|| {
        format!("{text:?} is no DSCP: a number from 0 to 63, or cs0 to cs7, af11 to af43, ef")
    })
}

/// A time that calls of the system poll the network card, in microseconds.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_busy_poll(text: &str) -> Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(us) if us <= BUSY_POLL_US_MAX => Ok(us),
        _ => Err(format!(
            "{text:?} is not a time in microseconds from 0 to {BUSY_POLL_US_MAX}"
        )),
    }
}

/// A delay to be added to every round trip, in microseconds.
///
/// # Errors
/// The message says what is allowed.
pub fn parse_added_rtt(text: &str) -> Result<Duration, String> {
    match text.trim().parse::<u64>() {
        Ok(us) if us <= ADDED_RTT_US_MAX => Ok(Duration::from_micros(us)),
        _ => Err(format!(
            "{text:?} is not a time in microseconds from 0 to {ADDED_RTT_US_MAX}"
        )),
    }
}

/// The options of sockets that are set; zero polling is none.
pub(crate) fn socket_options(
    local: Option<LocalEnd>,
    dscp: Option<u8>,
    busy_poll_us: Option<u32>,
) -> SocketOptions {
    SocketOptions {
        dscp,
        local,
        busy_poll_us: busy_poll_us.filter(|us| *us > 0),
        dialer: None,
    }
}

#[cfg(test)]
mod tests {
    use super::{parse_busy_poll, parse_dscp, parse_local_end};
    use farcall_transport::LocalEnd;

    #[test]
    fn dscp_by_number_and_by_name() {
        for (text, value) in [
            ("0", 0),
            ("63", 63),
            (" 26", 26),
            ("ef", 46),
            ("CS5", 40),
            ("af31", 26),
            ("AF43", 38),
        ] {
            assert_eq!(parse_dscp(text), Ok(value), "{text}");
        }
        for bad in ["64", "-1", "", "af14", "af51", "cs8", "voice"] {
            let error = parse_dscp(bad).err().unwrap_or_default();
            assert!(error.contains("0 to 63"), "{bad}");
        }
    }

    #[test]
    fn addresses_and_interfaces() {
        let interface = |name: &str| Ok(LocalEnd::Interface(name.to_owned()));
        let address = |text: &str| Ok(LocalEnd::Address(text.parse().expect("an address")));
        assert_eq!(parse_local_end("10.1.2.3"), address("10.1.2.3"));
        assert_eq!(parse_local_end("fd00::1"), address("fd00::1"));
        assert_eq!(parse_local_end(" enp1s0f0np0"), interface("enp1s0f0np0"));
        for bad in ["", "..", "a/b", "a b", "sixteen-chars-xx", "eth0:1"] {
            assert!(parse_local_end(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn polling_is_bounded() {
        assert_eq!(parse_busy_poll("50"), Ok(50));
        assert!(parse_busy_poll("10001").is_err());
    }
}
