//! Best fit: the GPUs that are left with the least, on the server that is left with the least, nearest first.
#![forbid(unsafe_code)]

use super::cluster::{Cluster, Eligible, Need, Node};
use super::span;
use crate::model::{Piece, SERVER_GPUS_MAX, ServerId};

/// A request as placement sees it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) need: Need,
    pub(crate) eligible: &'a Eligible,
    pub(crate) same_server: bool,
    /// Where the client is; empty = unknown.
    pub(crate) near: &'a [u32],
    pub(crate) may_use_pinned: bool,
}

/// Lower is better: hops from the client, what the chosen GPUs are left with, what the server is left with.
type Score = (usize, u32, u32);

/// Places a request on one server, or if it must be and may be, on several. `None`: it does not fit now.
pub(crate) fn place(cluster: &Cluster, wanted: &Wanted<'_>) -> Option<Vec<Piece>> {
    let mut best: Option<(Score, ServerId)> = None;
    for (server, node) in cluster.iter() {
        if let Some(score) = score(node, server, wanted)
            && best.is_none_or(|(least, _)| score < least)
        {
            best = Some((score, server));
        }
    }
    match best {
        Some((_, server)) => on_server(cluster, server, wanted),
        None if wanted.same_server || wanted.need.gpus < 2 => None,
        None => span::place(cluster, wanted),
    }
}

/// Places a request on this server or not at all.
pub(crate) fn on_server(
    cluster: &Cluster,
    server: ServerId,
    wanted: &Wanted<'_>,
) -> Option<Vec<Piece>> {
    let node = cluster.node(server)?;
    let mut chosen = [0_u16; SERVER_GPUS_MAX];
    let count = usize::from(wanted.need.gpus);
    let fitting = fitting(node, server, wanted, &mut chosen);
    let chosen = chosen.get(..fitting).filter(|found| found.len() >= count)?;
    Some(pieces(node, server, wanted, &chosen[..count]))
}

/// So many GPUs of a server as pieces of a placement.
pub(crate) fn pieces(
    node: &Node,
    server: ServerId,
    wanted: &Wanted<'_>,
    gpus: &[u16],
) -> Vec<Piece> {
    let piece = |gpu: &u16| Piece {
        server,
        gpu: *gpu,
        share_permille: wanted.need.share_permille,
        memory_bytes: wanted
            .need
            .memory_on(node.gpus[usize::from(*gpu)].memory_total_bytes),
    };
    gpus.iter().map(piece).collect()
}

/// The server's GPUs that fit, best first; how many there are.
pub(crate) fn fitting(
    node: &Node,
    server: ServerId,
    wanted: &Wanted<'_>,
    found: &mut [u16; SERVER_GPUS_MAX],
) -> usize {
    let mut count = 0;
    if !node.open {
        return 0;
    }
    let mut bits = wanted.eligible.of(server);
    while bits != 0 {
        let index = bits.trailing_zeros();
        bits &= bits - 1;
        let fits = node
            .gpus
            .get(index as usize)
            .is_some_and(|gpu| gpu.fits(&wanted.need, wanted.may_use_pinned));
        if fits {
            // Below 64: it is the number of a bit.
            found[count] = u16::try_from(index).unwrap_or(0);
            count += 1;
        }
    }
    let left = |gpu: &u16| {
        let gpu = &node.gpus[usize::from(*gpu)];
        (gpu.share_free_permille, gpu.memory_free_bytes)
    };
    if count > 1 {
        found[..count].sort_by_key(left);
    }
    count
}

fn score(node: &Node, server: ServerId, wanted: &Wanted<'_>) -> Option<Score> {
    if !node.open || wanted.eligible.of(server) == 0 {
        return None;
    }
    let count = usize::from(wanted.need.gpus);
    let left = if count == 1 {
        least_left(node, server, wanted)?
    } else {
        let mut found = [0_u16; SERVER_GPUS_MAX];
        let fitting = fitting(node, server, wanted, &mut found);
        let chosen = found.get(..fitting)?.get(..count)?;
        chosen
            .iter()
            .map(|gpu| u32::from(node.gpus[usize::from(*gpu)].share_free_permille))
            .sum()
    };
    let free = node
        .gpus
        .iter()
        .map(|gpu| u32::from(gpu.share_free_permille))
        .sum();
    Some((hops(wanted.near, &node.switch), left, free))
}

/// For one GPU nothing needs to be sorted.
fn least_left(node: &Node, server: ServerId, wanted: &Wanted<'_>) -> Option<u32> {
    let bits = wanted.eligible.of(server);
    let fits = |(index, gpu): &(usize, &super::Gpu)| {
        bits >> index & 1 == 1 && gpu.fits(&wanted.need, wanted.may_use_pinned)
    };
    let gpus = node.gpus.iter().take(SERVER_GPUS_MAX).enumerate();
    gpus.filter(fits)
        .map(|(_, gpu)| u32::from(gpu.share_free_permille))
        .min()
}

/// Links between two places of a tree of switches; 0 where one of them is not known.
pub(crate) fn hops(a: &[u32], b: &[u32]) -> usize {
    if a.is_empty() || b.is_empty() {
        return 0;
    }
    let common = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    a.len() - common + b.len() - common
}
