//! Which device, port and GID a session takes: what sysfs lists, and a pure choice among it.
#![forbid(unsafe_code)]

use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;

use super::RdmaPort;
use super::error::VerbsError;
use crate::options::RdmaOptions;
use crate::sys::interfaces::Network;

/// How packets that use a GID look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GidKind {
    /// Ethernet only: no routers.
    RoceV1,
    InfiniBand,
    /// UDP.
    RoceV2,
}

/// A GID of an active port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) device: String,
    pub(crate) port: u8,
    pub(crate) index: u8,
    pub(crate) gid: [u8; 16],
    pub(crate) kind: GidKind,
}

impl Candidate {
    pub(crate) fn address(&self) -> IpAddr {
        address(&self.gid)
    }
}

/// The IP address that a RoCE GID is.
pub(crate) fn address(gid: &[u8; 16]) -> IpAddr {
    Ipv6Addr::from(*gid).to_canonical()
}

/// What is known about the way to the peer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Way<'a> {
    /// This side's and the peer's address of the TCP connection.
    pub(crate) local: Option<IpAddr>,
    pub(crate) peer: Option<IpAddr>,
    /// The GID that the peer has chosen, if it has.
    pub(crate) peer_gid: Option<[u8; 16]>,
    pub(crate) networks: &'a [Network],
}

/// Where the kernel lists devices.
pub(crate) const SYSFS: &str = "/sys/class/infiniband";
/// Entries of a GID table that are looked at: a byte names them on the wire.
const GIDS_MAX: u8 = 255;

/// Every GID of every active port, by name, port and index. Reads sysfs.
///
/// # Errors
/// [`VerbsError::NoDevice`].
pub(crate) fn inventory(root: &Path) -> Result<Vec<Candidate>, VerbsError> {
    let mut devices = names(root);
    devices.sort();
    if devices.is_empty() {
        return Err(VerbsError::NoDevice);
    }
    let mut found = Vec::new();
    for device in devices {
        let ports = root.join(&device).join("ports");
        let mut numbers: Vec<u8> = names(&ports)
            .iter()
            .filter_map(|n| n.parse().ok())
            .collect();
        numbers.sort_unstable();
        for port in numbers {
            port_gids(&device, port, &ports.join(port.to_string()), &mut found);
        }
    }
    Ok(found)
}

fn port_gids(device: &str, port: u8, path: &Path, found: &mut Vec<Candidate>) {
    if !text(&path.join("state")).contains("ACTIVE") {
        return;
    }
    let infiniband = text(&path.join("link_layer")).starts_with("InfiniBand");
    for index in 0..GIDS_MAX {
        let Ok(gid) = text(&path.join(format!("gids/{index}")))
            .trim()
            .parse::<Ipv6Addr>()
        else {
            // The table ends here.
            return;
        };
        // An unused entry has no type.
        let kind = text(&path.join(format!("gid_attrs/types/{index}")));
        let kind = match kind.trim() {
            "RoCE v2" => GidKind::RoceV2,
            _ if infiniband => GidKind::InfiniBand,
            "IB/RoCE v1" => GidKind::RoceV1,
            _ => continue,
        };
        if !gid.is_unspecified() {
            found.push(Candidate {
                device: device.to_owned(),
                port,
                index,
                gid: gid.octets(),
                kind,
            });
        }
    }
}

/// The best of the candidates: what was asked for; then a GID in the network of the peer's GID;
/// then the local end of the TCP connection; then one in the network of the peer's TCP address.
/// Link-local addresses only when asked for by index; RoCE v2 before v1.
///
/// # Errors
/// [`VerbsError::UnknownDevice`], [`VerbsError::NoGid`] or [`VerbsError::NoPath`].
pub(crate) fn choose(
    candidates: &[Candidate],
    wish: &RdmaOptions,
    way: &Way<'_>,
) -> Result<Candidate, VerbsError> {
    let device = wish.device.as_ref().map(|name| name.as_str());
    let wished = candidates
        .iter()
        .filter(|c| device.is_none_or(|name| c.device == name))
        .filter(|c| wish.gid_index.is_none_or(|index| c.index == index));
    let best = wished
        .map(|c| (score(c, wish, way), c))
        .filter(|(score, _)| *score > 0)
        // The first of equals.
        .rev_max();
    match (best, device) {
        (Some(candidate), _) => Ok(candidate.clone()),
        (None, Some(name)) if !candidates.iter().any(|c| c.device == name) => {
            Err(VerbsError::UnknownDevice(name.to_owned()))
        }
        (None, Some(name)) => Err(VerbsError::NoGid(name.to_owned())),
        (None, None) => Err(VerbsError::NoPath(
            way.peer
                .map_or_else(|| "the peer".to_owned(), |peer| peer.to_string()),
        )),
    }
}

/// Addresses that some peer could be reached through: those of [`choose`], whoever the peer is. One for each device, port and
/// address.
///
/// # Errors
/// [`VerbsError::UnknownDevice`] or [`VerbsError::NoGid`] of a device that was asked for.
pub(crate) fn usable(
    candidates: &[Candidate],
    wish: &RdmaOptions,
) -> Result<Vec<RdmaPort>, VerbsError> {
    let device = wish.device.as_ref().map(|name| name.as_str());
    let mut ports: Vec<RdmaPort> = Vec::new();
    for candidate in candidates {
        let is_wished = device.is_none_or(|name| candidate.device == name)
            && wish.gid_index.is_none_or(|index| candidate.index == index);
        let address = candidate.address();
        let is_local = is_link_local(address) && candidate.kind != GidKind::InfiniBand;
        if !is_wished || (is_local && wish.gid_index.is_none()) {
            continue;
        }
        let port = RdmaPort {
            device: candidate.device.clone(),
            port: candidate.port,
            address,
        };
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    match device {
        Some(name) if !candidates.iter().any(|it| it.device == name) => {
            Err(VerbsError::UnknownDevice(name.to_owned()))
        }
        Some(name) if ports.is_empty() => Err(VerbsError::NoGid(name.to_owned())),
        _ => Ok(ports),
    }
}

trait BestFirst<'a> {
    fn rev_max(self) -> Option<&'a Candidate>;
}

impl<'a, I: Iterator<Item = (u32, &'a Candidate)>> BestFirst<'a> for I {
    fn rev_max(self) -> Option<&'a Candidate> {
        self.fold(None, |best: Option<(u32, &Candidate)>, next| match best {
            Some(best) if best.0 >= next.0 => Some(best),
            _ => Some(next),
        })
        .map(|(_, candidate)| candidate)
    }
}

/// 0: not to be used.
fn score(candidate: &Candidate, wish: &RdmaOptions, way: &Way<'_>) -> u32 {
    if let Some(gid) = &way.peer_gid
        && address(gid).is_ipv4() != candidate.address().is_ipv4()
    {
        return 0;
    }
    let kind = u32::from(candidate.kind == GidKind::RoceV2);
    if wish.gid_index.is_some() {
        return 1 + kind;
    }
    if is_link_local(candidate.address()) && candidate.kind != GidKind::InfiniBand {
        return 0;
    }
    let own = candidate.address();
    let reaches = |ip: Option<IpAddr>| ip.is_some_and(|ip| same_network(own, ip, way.networks));
    let near_gid = u32::from(reaches(way.peer_gid.as_ref().map(address))) << 4;
    let local = u32::from(way.local == Some(own)) << 3;
    let near_peer = u32::from(reaches(way.peer)) << 2;
    let by_path = near_gid | local | near_peer;
    // A device that was named may reach the peer through a router.
    let by_name = u32::from(wish.device.is_some()) << 1;
    match by_path | by_name {
        0 => 0,
        score => score + kind,
    }
}

/// Whether `ip` is in a network that this machine's address `own` is in, too.
fn same_network(own: IpAddr, ip: IpAddr, networks: &[Network]) -> bool {
    networks
        .iter()
        .filter(|network| network.address == own)
        .any(|network| prefix(own, network.prefix_bits) == prefix(ip, network.prefix_bits))
}

fn prefix(ip: IpAddr, bits: u32) -> (bool, u128) {
    let (width, value) = match ip {
        IpAddr::V4(ip) => (32, u128::from(ip.to_bits())),
        IpAddr::V6(ip) => (128, ip.to_bits()),
    };
    let cut = width - bits.min(width);
    (ip.is_ipv4(), value.checked_shr(cut).unwrap_or(0))
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::options::DeviceName;

    fn gid(text: &str) -> [u8; 16] {
        match text.parse().unwrap() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
            IpAddr::V6(ip) => ip.octets(),
        }
    }

    fn candidate(device: &str, index: u8, ip: &str, kind: GidKind) -> Candidate {
        Candidate {
            device: device.to_owned(),
            port: 1,
            index,
            gid: gid(ip),
            kind,
        }
    }

    fn host() -> (Vec<Candidate>, Vec<Network>) {
        let v2 = GidKind::RoceV2;
        let candidates = vec![
            candidate("mlx5_0", 0, "fe80::1", GidKind::RoceV1),
            candidate("mlx5_0", 1, "fe80::1", v2),
            candidate("mlx5_0", 2, "10.1.0.5", GidKind::RoceV1),
            candidate("mlx5_0", 3, "10.1.0.5", v2),
            candidate("mlx5_0", 4, "fd00::5", v2),
            candidate("mlx5_1", 3, "10.2.0.5", v2),
            candidate("old_0", 0, "10.3.0.5", GidKind::RoceV1),
        ];
        let network = |ip: &str, prefix_bits| Network {
            address: ip.parse().unwrap(),
            prefix_bits,
        };
        let networks = vec![
            network("10.1.0.5", 16),
            network("10.2.0.5", 16),
            network("10.3.0.5", 16),
            network("fd00::5", 64),
            network("192.168.1.5", 24),
        ];
        (candidates, networks)
    }

    fn chosen(
        wish: &RdmaOptions,
        local: &str,
        peer: &str,
        peer_gid: Option<&str>,
    ) -> Result<(String, u8), VerbsError> {
        let (candidates, networks) = host();
        let way = Way {
            local: local.parse().ok(),
            peer: peer.parse().ok(),
            peer_gid: peer_gid.map(gid),
            networks: &networks,
        };
        choose(&candidates, wish, &way).map(|c| (c.device, c.index))
    }

    #[test]
    fn family_and_network_of_the_peer_decide() {
        let any = RdmaOptions::default();
        let is = |local, peer, gid, device: &str, index| {
            assert_eq!(
                chosen(&any, local, peer, gid).unwrap(),
                (device.to_owned(), index)
            );
        };
        is("10.1.0.5", "10.1.0.9", None, "mlx5_0", 3);
        is("10.2.0.5", "10.2.7.7", None, "mlx5_1", 3);
        // Behind a router, but the connection leaves here.
        is("10.2.0.5", "172.16.0.1", None, "mlx5_1", 3);
        is("fd00::5", "fd00::9", None, "mlx5_0", 4);
        // The connection is on another network than the GID that the peer took.
        is("192.168.1.5", "192.168.1.9", Some("10.2.0.9"), "mlx5_1", 3);
        is("10.1.0.5", "10.1.0.9", Some("10.2.0.9"), "mlx5_1", 3);
        // RoCE v1 where there is nothing else.
        is("10.3.0.5", "10.3.0.9", None, "old_0", 0);
        let nowhere = chosen(&any, "192.168.1.5", "192.168.1.9", None);
        assert_eq!(nowhere, Err(VerbsError::NoPath("192.168.1.9".to_owned())));
        // An IPv6 peer does not get an IPv4 GID.
        assert!(chosen(&any, "10.1.0.5", "10.1.0.9", Some("fd11::9")).is_err());
    }

    #[test]
    fn wishes_come_first() {
        let wish = |device: Option<&str>, gid_index| RdmaOptions {
            device: device.map(|name| DeviceName::new(name).unwrap()),
            gid_index,
            ..RdmaOptions::default()
        };
        let local = ("10.1.0.5", "10.1.0.9");
        let is = |wish: &RdmaOptions| chosen(wish, local.0, local.1, None);
        assert_eq!(is(&wish(Some("mlx5_1"), None)), Ok(("mlx5_1".into(), 3)));
        assert_eq!(is(&wish(Some("mlx5_0"), Some(1))), Ok(("mlx5_0".into(), 1)));
        assert_eq!(is(&wish(None, Some(2))), Ok(("mlx5_0".into(), 2)));
        assert_eq!(
            is(&wish(Some("mlx5_9"), None)),
            Err(VerbsError::UnknownDevice("mlx5_9".into()))
        );
        assert_eq!(
            is(&wish(Some("mlx5_1"), Some(9))),
            Err(VerbsError::NoGid("mlx5_1".into()))
        );
    }

    #[test]
    fn usable_ports_are_those_that_some_peer_could_use() {
        let (candidates, _) = host();
        let of = |wish: &RdmaOptions| {
            let ports = usable(&candidates, wish)?;
            let text = |port: &RdmaPort| format!("{} {}", port.device, port.address);
            Ok::<Vec<String>, VerbsError>(ports.iter().map(text).collect())
        };
        let all = of(&RdmaOptions::default()).unwrap();
        let expected = [
            "mlx5_0 10.1.0.5",
            "mlx5_0 fd00::5",
            "mlx5_1 10.2.0.5",
            "old_0 10.3.0.5",
        ];
        assert_eq!(all, expected);
        let wish = |device: &str, gid_index| RdmaOptions {
            device: DeviceName::new(device),
            gid_index,
            ..RdmaOptions::default()
        };
        assert_eq!(of(&wish("mlx5_1", None)).unwrap(), ["mlx5_1 10.2.0.5"]);
        assert_eq!(of(&wish("mlx5_0", Some(1))).unwrap(), ["mlx5_0 fe80::1"]);
        assert!(matches!(
            of(&wish("mlx5_9", None)),
            Err(VerbsError::UnknownDevice(_))
        ));
        assert!(matches!(
            of(&wish("mlx5_1", Some(9))),
            Err(VerbsError::NoGid(_))
        ));
        assert_eq!(usable(&[], &RdmaOptions::default()), Ok(Vec::new()));
    }

    #[test]
    fn sysfs_is_read() {
        let root = std::env::temp_dir().join(format!("farcall-sysfs-{}", std::process::id()));
        let port = root.join("rxe0/ports/1");
        let put = |name: &str, text: &str| {
            let path = port.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        put("state", "4: ACTIVE\n");
        put("link_layer", "Ethernet\n");
        put("gids/0", "fe80:0000:0000:0000:0000:00ff:fe00:0001\n");
        put("gid_attrs/types/0", "RoCE v2\n");
        put("gids/1", "0000:0000:0000:0000:0000:ffff:0a63:0001\n");
        put("gid_attrs/types/1", "RoCE v2\n");
        put("gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n");
        let found = inventory(&root).unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[1].address(), "10.99.0.1".parse::<IpAddr>().unwrap());
        put("state", "1: DOWN\n");
        assert!(inventory(&root).unwrap().is_empty());
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(inventory(&root), Err(VerbsError::NoDevice));
    }
}
