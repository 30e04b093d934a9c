//! What is free: one entry per GPU, a few words each, so that all of a large pool fits a cache.
#![forbid(unsafe_code)]

use crate::model::{Piece, ServerId, WHOLE_PERMILLE};

/// What a request needs of each of its GPUs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Need {
    pub(crate) gpus: u16,
    pub(crate) share_permille: u16,
    /// `None`: the share's part of the GPU's.
    pub(crate) memory_bytes: Option<u64>,
}

impl Need {
    /// Bytes needed on a GPU with so many. Rounded down, so that shares which fill a GPU fit its memory.
    pub(crate) fn memory_on(&self, total_bytes: u64) -> u64 {
        self.memory_bytes.unwrap_or_else(|| {
            // The exact part, without the division of 128 bits that a product of all bytes would need for each GPU.
            let (share, whole) = (u64::from(self.share_permille), u64::from(WHOLE_PERMILLE));
            let (thousandths, rest) = (total_bytes / whole, total_bytes % whole);
            let part = thousandths.saturating_mul(share);
            part.saturating_add(rest * share / whole)
        })
    }
}

/// What is free of one GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gpu {
    pub(crate) memory_total_bytes: u64,
    pub(crate) memory_free_bytes: u64,
    pub(crate) share_free_permille: u16,
    pub(crate) healthy: bool,
    /// Set aside for the request that has waited longest.
    pub(crate) pinned: bool,
}

impl Gpu {
    /// An empty one.
    pub(crate) fn new(memory_bytes: u64, healthy: bool) -> Self {
        Self {
            memory_total_bytes: memory_bytes,
            memory_free_bytes: memory_bytes,
            share_free_permille: WHOLE_PERMILLE,
            healthy,
            pinned: false,
        }
    }

    /// Whether it has what is needed now.
    pub(crate) fn fits(&self, need: &Need, may_use_pinned: bool) -> bool {
        self.healthy
            && self.share_free_permille >= need.share_permille
            && self.memory_free_bytes >= need.memory_on(self.memory_total_bytes)
            && (may_use_pinned || !self.pinned)
    }

    /// Whether it would have it if nobody else had anything.
    pub(crate) fn could_fit(&self, need: &Need) -> bool {
        self.memory_total_bytes >= need.memory_on(self.memory_total_bytes)
    }
}

/// One server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Node {
    /// Up and not drained.
    pub(crate) open: bool,
    /// Switches from the outermost to its own, as numbers.
    pub(crate) switch: Vec<u32>,
    pub(crate) gpus: Vec<Gpu>,
}

/// All servers; the index is the server's number.
#[derive(Debug, Default)]
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
}

impl Cluster {
    pub(crate) fn node(&self, server: ServerId) -> Option<&Node> {
        self.nodes.get(server.0 as usize)
    }

    /// The entry of a server, made if it is new.
    pub(crate) fn node_mut(&mut self, server: ServerId) -> &mut Node {
        let index = server.0 as usize;
        if index >= self.nodes.len() {
            self.nodes.resize_with(index + 1, Node::default);
        }
        &mut self.nodes[index]
    }

    /// Takes what a placement says. The caller has just found that it fits.
    pub(crate) fn take(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            if let Some(gpu) = self.gpu_mut(piece) {
                let share = gpu.share_free_permille.checked_sub(piece.share_permille);
                let memory = gpu.memory_free_bytes.checked_sub(piece.memory_bytes);
                debug_assert!(share.is_some() && memory.is_some(), "over-committed");
                gpu.share_free_permille = share.unwrap_or(0);
                gpu.memory_free_bytes = memory.unwrap_or(0);
            }
        }
    }

    /// Returns a piece.
    pub(crate) fn give_back(&mut self, piece: &Piece) {
        if let Some(gpu) = self.gpu_mut(piece) {
            let share = gpu.share_free_permille + piece.share_permille;
            gpu.share_free_permille = share.min(WHOLE_PERMILLE);
            let memory = gpu.memory_free_bytes.saturating_add(piece.memory_bytes);
            gpu.memory_free_bytes = memory.min(gpu.memory_total_bytes);
        }
    }

    pub(crate) fn gpu_mut(&mut self, piece: &Piece) -> Option<&mut Gpu> {
        self.nodes
            .get_mut(piece.server.0 as usize)?
            .gpus
            .get_mut(usize::from(piece.gpu))
    }

    /// Servers with their numbers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (ServerId, &Node)> {
        (0..).map(ServerId).zip(&self.nodes)
    }
}

/// Which GPUs of each server a request may have: one bit each, the index is the server's number.
#[derive(Clone, Debug, Default)]
pub(crate) struct Eligible(pub(crate) Vec<u64>);

impl Eligible {
    pub(crate) fn of(&self, server: ServerId) -> u64 {
        self.0.get(server.0 as usize).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Need;

    #[test]
    fn a_share_is_of_all_bytes_rounded_down() {
        for total_bytes in [
            0,
            1,
            999,
            1000,
            1001,
            85_899_345_920,
            u64::MAX / 7,
            u64::MAX,
        ] {
            for share_permille in [0, 1, 250, 333, 999, 1000] {
                let need = Need {
                    gpus: 1,
                    share_permille,
                    memory_bytes: None,
                };
                let exact = u128::from(total_bytes) * u128::from(share_permille) / 1000;
                assert_eq!(u128::from(need.memory_on(total_bytes)), exact);
            }
        }
    }
}
