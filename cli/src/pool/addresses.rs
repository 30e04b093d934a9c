//! Where a server is reached, by network.
#![forbid(unsafe_code)]

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};

use farcall_config::parse_server;
use farcall_pool::model::NetAddress;
use farcall_transport::RdmaPort;

use crate::failure::{Failure, code};

/// The network of the address that clients use, unless it is called otherwise.
const GPU: &str = "gpu";
/// The network that the pool is reached through.
const MANAGEMENT: &str = "management";
/// Longest name of a network.
const NAME_BYTES_MAX: usize = 40;

/// `[NETWORK=]HOST:PORT`.
pub(super) fn net_address(text: &str) -> Result<NetAddress, String> {
    let (network, address) = text.split_once('=').unwrap_or((GPU, text));
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if network.is_empty() || network.len() > NAME_BYTES_MAX || !network.chars().all(is_name) {
        return Err(format!(
            "{network:?} is no name of a network; write gpu=HOST:PORT"
        ));
    }
    Ok(NetAddress {
        network: network.to_owned(),
        address: parse_server(address)?,
    })
}

/// What the administrator said, first; then, where the server listens on every address, that of the network card which leads to the
/// pool, and those of RDMA devices.
///
/// # Errors
/// No client could reach it.
pub(super) fn addresses(
    advertised: &[NetAddress],
    bound: SocketAddr,
    pool_url: &str,
    rdma: &[RdmaPort],
) -> Result<Vec<NetAddress>, Failure> {
    let mut addresses = advertised.to_vec();
    if !bound.ip().is_unspecified() {
        if addresses.is_empty() {
            addresses.push(on(GPU, bound.ip(), bound.port()));
        }
        return Ok(addresses);
    }
    if addresses.is_empty() {
        let what = format!("clients cannot reach {bound}");
        let advice = "say where clients reach this server: --advertise HOST:PORT";
        return Err(Failure::new(code::CONFIG, what, advice));
    }
    let rdma = rdma.iter().map(|port| (port.device.as_str(), port.address));
    let management = leads_to(pool_url).map(|ip| (MANAGEMENT, ip));
    for (network, ip) in management.into_iter().chain(rdma) {
        let found = on(network, ip, bound.port());
        let is_known = |known: &NetAddress| {
            known.network == network || host_of(&known.address) == host_of(&found.address)
        };
        // 0.0.0.0 takes no IPv6.
        if (bound.is_ipv6() || ip.is_ipv4()) && !addresses.iter().any(is_known) {
            addresses.push(found);
        }
    }
    Ok(addresses)
}

fn on(network: &str, ip: IpAddr, port: u16) -> NetAddress {
    NetAddress {
        network: network.to_owned(),
        address: SocketAddr::new(ip, port).to_string(),
    }
}

fn host_of(address: &str) -> &str {
    address.rsplit_once(':').map_or(address, |(host, _)| host)
}

/// This machine's address on the way to the pool; nothing where that is on this machine. Sends nothing.
fn leads_to(pool_url: &str) -> Option<IpAddr> {
    let host = pool_url.split("://").nth(1)?;
    let peer = host.to_socket_addrs().ok()?.next()?;
    let any = if peer.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(peer).ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback()).then_some(ip)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use farcall_transport::RdmaPort;

    use super::{addresses, net_address};

    fn named(found: &[farcall_pool::model::NetAddress]) -> Vec<String> {
        let one = |it: &farcall_pool::model::NetAddress| format!("{}={}", it.network, it.address);
        found.iter().map(one).collect()
    }

    #[test]
    fn networks_have_names() {
        let found = net_address("gpu1:7474").unwrap();
        assert_eq!(named(&[found]), ["gpu=gpu1:7474"]);
        let found = net_address("management=10.0.0.1:7474").unwrap();
        assert_eq!(named(&[found]), ["management=10.0.0.1:7474"]);
        for bad in ["=gpu1:7474", "a b=gpu1:7474", "gpu=", "gpu=x:y"] {
            assert!(net_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_said_comes_first_and_what_listens_is_added() {
        let said = [net_address("gpu=10.1.0.5:7474").unwrap()];
        let pool = "http://127.0.0.1:7475";
        let rdma = |device: &str, ip: &str| RdmaPort {
            device: device.to_owned(),
            port: 1,
            address: ip.parse().unwrap(),
        };
        let ports = [
            rdma("mlx5_0", "10.1.0.5"),
            rdma("mlx5_1", "10.2.0.5"),
            rdma("mlx5_2", "fd00::5"),
        ];
        let of = |bound: &str, said: &[_]| addresses(said, bound.parse().unwrap(), pool, &ports);
        let all = of("0.0.0.0:7474", &said).unwrap();
        assert_eq!(named(&all), ["gpu=10.1.0.5:7474", "mlx5_1=10.2.0.5:7474"]);
        let all = of("[::]:7474", &said).unwrap();
        assert_eq!(named(&all)[2..], ["mlx5_2=[fd00::5]:7474"]);
        // It listens on one address alone.
        let one = of("10.1.0.5:7474", &[]).unwrap();
        assert_eq!(named(&one), ["gpu=10.1.0.5:7474"]);
        assert!(of("0.0.0.0:7474", &[]).is_err());
    }
}
