//! A request that no one server can hold: the fewest servers, and of such sets the one under the lowest switch, the nearest to
//! the client.
#![forbid(unsafe_code)]

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::cluster::Cluster;
use super::place::{Wanted, fitting, hops, pieces};
use crate::model::{LEASE_SERVERS_MAX, Piece, SERVER_GPUS_MAX, ServerId};

/// A server and how many of its GPUs fit.
type Room = (ServerId, usize);

/// Places a request on several servers.
pub(crate) fn place(cluster: &Cluster, wanted: &Wanted<'_>) -> Option<Vec<Piece>> {
    let count = usize::from(wanted.need.gpus);
    let mut found = [0_u16; SERVER_GPUS_MAX];
    let mut rooms: Vec<Room> = Vec::new();
    for (server, node) in cluster.iter() {
        let room = fitting(node, server, wanted, &mut found);
        if room > 0 {
            rooms.push((server, room));
        }
    }
    if rooms.iter().map(|(_, room)| room).sum::<usize>() < count {
        return None;
    }
    let chosen = choose(cluster, &rooms, count, wanted.near)?;
    let mut placed = Vec::with_capacity(count);
    for (server, _) in chosen {
        let node = cluster.node(server)?;
        let room = fitting(node, server, wanted, &mut found);
        let taken = room.min(count - placed.len());
        placed.extend(pieces(node, server, wanted, &found[..taken]));
    }
    Some(placed)
}

/// The best set over all switches that have enough below them.
fn choose(cluster: &Cluster, rooms: &[Room], count: usize, near: &[u32]) -> Option<Vec<Room>> {
    let mut below: BTreeMap<&[u32], Vec<Room>> = BTreeMap::new();
    for (server, room) in rooms {
        let switch = cluster.node(*server).map_or(&[][..], |node| &node.switch);
        for depth in 0..=switch.len() {
            let prefix = &switch[..depth];
            below.entry(prefix).or_default().push((*server, *room));
        }
    }
    let sets = below.into_iter().filter_map(|(prefix, rooms)| {
        let set = fewest(rooms, count)?;
        let spare: usize = set.iter().map(|(_, room)| room).sum::<usize>() - count;
        let score = (set.len(), Reverse(prefix.len()), hops(near, prefix), spare);
        Some((score, set))
    });
    sets.min_by_key(|(score, _)| *score).map(|(_, set)| set)
}

/// The largest rooms until it is enough; the last is the smallest that is. `None`: they are not enough, or too many servers.
fn fewest(mut rooms: Vec<Room>, count: usize) -> Option<Vec<Room>> {
    rooms.sort_by_key(|(server, room)| (Reverse(*room), *server));
    let mut missing = count;
    let mut chosen = Vec::new();
    for (index, (server, room)) in rooms.iter().enumerate().take(LEASE_SERVERS_MAX) {
        if *room >= missing {
            let last = rooms[index..]
                .iter()
                .rev()
                .find(|(_, room)| *room >= missing);
            chosen.push(*last.unwrap_or(&(*server, *room)));
            return Some(chosen);
        }
        missing -= room;
        chosen.push((*server, *room));
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use crate::alloc::cluster::{Cluster, Eligible, Gpu, Need, Node};
    use crate::alloc::place::{Wanted, place};
    use crate::model::ServerId;

    /// Servers with (free GPUs of 4, switch).
    fn cluster(servers: &[(usize, &[u32])]) -> Cluster {
        let node = |(free, switch): &(usize, &[u32])| {
            let gpu = |index| {
                let mut gpu = Gpu::new(1 << 30, true);
                if index >= *free {
                    gpu.share_free_permille = 0;
                }
                gpu
            };
            Node {
                open: true,
                switch: switch.to_vec(),
                gpus: (0..4).map(gpu).collect(),
            }
        };
        Cluster {
            nodes: servers.iter().map(node).collect(),
        }
    }

    fn servers(cluster: &Cluster, gpus: u16, near: &[u32]) -> Option<Vec<u32>> {
        let eligible = Eligible(vec![u64::MAX; cluster.nodes.len()]);
        let wanted = Wanted {
            need: Need {
                gpus,
                share_permille: 1000,
                memory_bytes: None,
            },
            eligible: &eligible,
            same_server: false,
            near,
            may_use_pinned: false,
        };
        let pieces = place(cluster, &wanted)?;
        assert_eq!(pieces.len(), usize::from(gpus));
        let mut servers: Vec<u32> = pieces
            .iter()
            .map(|piece| {
                let ServerId(server) = piece.server;
                server
            })
            .collect();
        servers.dedup();
        Some(servers)
    }

    #[test]
    fn one_server_where_possible_and_the_fullest() {
        let some = cluster(&[(4, &[1]), (2, &[1]), (3, &[1])]);
        assert_eq!(servers(&some, 2, &[]), Some(vec![1]));
        assert_eq!(servers(&some, 3, &[]), Some(vec![2]));
        assert_eq!(servers(&some, 4, &[]), Some(vec![0]));
    }

    #[test]
    fn the_nearest_server_first() {
        let some = cluster(&[(2, &[1, 1]), (4, &[1, 2]), (2, &[2, 1])]);
        assert_eq!(servers(&some, 2, &[1, 2]), Some(vec![1]));
        assert_eq!(servers(&some, 2, &[2, 2]), Some(vec![2]));
    }

    #[test]
    fn fewest_servers_then_the_lowest_switch() {
        let some = cluster(&[
            (4, &[1, 1]),
            (4, &[1, 2]),
            (3, &[2, 1]),
            (3, &[2, 1]),
            (1, &[2, 1]),
        ]);
        assert_eq!(servers(&some, 6, &[]), Some(vec![2, 3]), "one leaf");
        assert_eq!(servers(&some, 8, &[]), Some(vec![0, 1]), "two servers");
        assert_eq!(servers(&some, 15, &[]).unwrap().len(), 5);
        assert_eq!(servers(&some, 16, &[]), None);
    }

    #[test]
    fn of_equal_sets_the_nearest() {
        let some = cluster(&[
            (4, &[1, 1]),
            (4, &[1, 1]),
            (4, &[2, 1]),
            (4, &[2, 1]),
            (4, &[3, 1]),
            (4, &[3, 1]),
        ]);
        for hall in [1, 2, 3] {
            let first = 2 * (hall - 1);
            assert_eq!(servers(&some, 8, &[hall, 2]), Some(vec![first, first + 1]));
        }
    }

    #[test]
    fn as_many_servers_as_a_program_can_use() {
        let some = cluster(&[(1, &[1, 1][..]); 40]);
        assert_eq!(servers(&some, 16, &[]).unwrap().len(), 16);
        assert_eq!(servers(&some, 17, &[]), None);
        let mut larger = some;
        larger.nodes[30].gpus[1].share_free_permille = 1000;
        assert_eq!(servers(&larger, 17, &[]).unwrap().len(), 16);
    }
}
