//! Checks of this machine's networks, from sysfs.
#![forbid(unsafe_code)]

use std::fs;
use std::path::Path;

use farcall_pool::model::{Check, Outcome};

use super::check;

const MTU_ADVISED: u32 = 9000;

/// MTU of the network cards that are up.
pub(super) fn mtu(root: &Path) -> Check {
    let meaning = "Large frames carry more for the same work. Both ends and the switches between need the same MTU.";
    let mut cards: Vec<(String, u32)> = entries(&root.join("sys/class/net"))
        .into_iter()
        .filter_map(|name| {
            let card = root.join("sys/class/net").join(&name);
            // Only hardware has a device; bridges and tunnels follow it.
            let is_up = read(&card.join("operstate")) == "up" && card.join("device").exists();
            let mtu = read(&card.join("mtu")).parse().ok()?;
            is_up.then_some((name, mtu))
        })
        .collect();
    cards.sort();
    let found: Vec<String> = cards
        .iter()
        .map(|(name, mtu)| format!("{name} {mtu}"))
        .collect();
    match cards.iter().map(|(_, mtu)| *mtu).max() {
        None => check("mtu", Outcome::Ok, "no network card is up", meaning, ""),
        Some(mtu) if mtu >= MTU_ADVISED => {
            check("mtu", Outcome::Ok, &found.join(", "), meaning, "")
        }
        Some(_) => check(
            "mtu",
            Outcome::Warning,
            &found.join(", "),
            meaning,
            "Set 9000 on the GPU network: `ip link set NAME mtu 9000`, here, at the other end and on the switches.",
        ),
    }
}

/// RDMA devices: their ports and addresses.
pub(super) fn rdma(root: &Path) -> Check {
    let meaning = "With RDMA, calls and copies bypass the kernel of both machines.";
    let class = root.join("sys/class/infiniband");
    let mut found = Vec::new();
    let (mut is_usable, mut advice) = (false, "");
    for device in entries(&class) {
        for port in entries(&class.join(&device).join("ports")) {
            let port_path = class.join(&device).join("ports").join(&port);
            // `4: ACTIVE`
            let state = read(&port_path.join("state"));
            let state = state.split(": ").last().unwrap_or_default().to_lowercase();
            let gids = entries(&port_path.join("gid_attrs/types"));
            let version_2 = gids.iter().filter(|index| {
                let kind = read(&port_path.join("gid_attrs/types").join(index));
                let gid = read(&port_path.join("gids").join(index));
                kind.contains("v2") && gid.chars().any(|c| !matches!(c, '0' | ':'))
            });
            let count = version_2.count();
            found.push(format!(
                "{device} port {port} {state}, {count} RoCE v2 GIDs"
            ));
            if state != "active" {
                advice = "Bring the port up: check its cable and `ip link`.";
            } else if count == 0 {
                advice = "Give its network card an address: a RoCE v2 GID comes with it.";
            } else {
                is_usable = true;
            }
        }
    }
    match (found.is_empty(), is_usable) {
        (true, _) => check("rdma", Outcome::Ok, "no device; TCP is used", meaning, ""),
        (false, true) => check("rdma", Outcome::Ok, &found.join("; "), meaning, ""),
        (false, false) => check("rdma", Outcome::Failed, &found.join("; "), meaning, advice),
    }
}

fn entries(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|it| it.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).map_or_else(|_| String::new(), |text| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::fs;
    use std::path::Path;

    use farcall_pool::model::Outcome;

    use super::{mtu, rdma};

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn frames_are_large_or_it_is_said() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(mtu(root).outcome, Outcome::Ok);
        for (name, size, state) in [("eth0", "1500\n", "up\n"), ("eth1", "9000\n", "down\n")] {
            write(root, &format!("sys/class/net/{name}/mtu"), size);
            write(root, &format!("sys/class/net/{name}/operstate"), state);
            write(root, &format!("sys/class/net/{name}/device/vendor"), "x");
        }
        let found = mtu(root);
        assert_eq!(
            (found.outcome, found.found.as_str()),
            (Outcome::Warning, "eth0 1500")
        );
        write(root, "sys/class/net/eth1/operstate", "up\n");
        assert_eq!(mtu(root).outcome, Outcome::Ok);
    }

    #[test]
    fn a_port_must_be_active_and_have_an_address() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(rdma(root).outcome, Outcome::Ok);
        let port = "sys/class/infiniband/mlx5_0/ports/1";
        write(root, &format!("{port}/state"), "1: DOWN\n");
        assert!(rdma(root).advice.contains("cable"));
        write(root, &format!("{port}/state"), "4: ACTIVE\n");
        write(root, &format!("{port}/gid_attrs/types/0"), "RoCE v2\n");
        write(
            root,
            &format!("{port}/gids/0"),
            "0000:0000:0000:0000:0000:0000:0000:0000\n",
        );
        assert_eq!(rdma(root).outcome, Outcome::Failed);
        write(
            root,
            &format!("{port}/gids/0"),
            "0000:0000:0000:0000:0000:ffff:0a00:0001\n",
        );
        assert_eq!(rdma(root).outcome, Outcome::Ok);
    }
}
