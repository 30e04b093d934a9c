//! What must hold after every operation.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::model::{ServerId, Stage, WHOLE_PERMILLE};
use crate::state::{Client, Lease, Pool};

impl Pool {
    /// What does not hold, in words; empty if all is well. Reads everything.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut held: BTreeMap<(ServerId, u16), (u64, u64)> = BTreeMap::new();
        for (id, lease) in &self.leases {
            for piece in lease.unconfirmed() {
                let sum = held.entry((piece.server, piece.gpu)).or_default();
                sum.0 += u64::from(piece.share_permille);
                sum.1 += piece.memory_bytes;
                let server = self.servers.get(&piece.server);
                if server.is_none_or(|server| !server.holds.contains(id)) {
                    faults.push(format!("{id} is not among the holds of its server"));
                }
            }
            let right = match lease.stage {
                Stage::Queued => lease.pieces.is_empty(),
                Stage::Held | Stage::Ending => lease.unconfirmed().next().is_some(),
                Stage::Ended => true,
            };
            if !right {
                faults.push(format!("{id} is {:?} with {:?}", lease.stage, lease.pieces));
            }
        }
        for ((client, key), id) in &self.keys {
            let lease = self.leases.get(id);
            let is_right =
                |it: &&Lease| it.client == *client && it.ask.key == *key && it.end.is_none();
            if lease.filter(is_right).is_none() {
                faults.push(format!("the key {key:?} of {client:?} is not that of {id}"));
            }
        }
        self.check_gpus(&held, &mut faults);
        self.check_usage(&mut faults);
        self.check_groups(&mut faults);
        faults
    }

    fn check_groups(&self, faults: &mut Vec<String>) {
        for (name, group) in &self.groups {
            let is_member = |client: &&Client| client.group.as_ref() == Some(name);
            let members = self.clients.values().filter(is_member);
            let sums = members.fold((0, 0), |(shares, memory), client| {
                let held = client.used.held;
                (shares + held.shares_permille, memory + held.memory_bytes)
            });
            let held = group.used.held;
            if (held.shares_permille, held.memory_bytes) != sums {
                faults.push(format!("group {name} holds {sums:?}, counted {held:?}"));
            }
            let quota = &group.quota;
            if quota.shares_permille_max.is_some_and(|max| sums.0 > max)
                || quota.memory_bytes_max.is_some_and(|max| sums.1 > max)
            {
                faults.push(format!("group {name} is over its quota: {sums:?}"));
            }
        }
    }

    fn check_gpus(&self, held: &BTreeMap<(ServerId, u16), (u64, u64)>, faults: &mut Vec<String>) {
        for (server, node) in self.cluster.iter() {
            for (index, gpu) in (0_u16..).zip(&node.gpus) {
                let (share, memory) = held.get(&(server, index)).copied().unwrap_or_default();
                if share > u64::from(WHOLE_PERMILLE) || memory > gpu.memory_total_bytes {
                    faults.push(format!("GPU {index} of {server:?} is over-committed"));
                }
                let free = (
                    u64::from(gpu.share_free_permille) + share,
                    gpu.memory_free_bytes + memory,
                );
                if free != (u64::from(WHOLE_PERMILLE), gpu.memory_total_bytes) {
                    faults.push(format!(
                        "GPU {index} of {server:?}: held and free are {free:?}"
                    ));
                }
            }
        }
    }

    fn check_usage(&self, faults: &mut Vec<String>) {
        for (id, client) in &self.clients {
            let mut sums = (0, 0);
            let own = client.leases.iter().filter_map(|it| self.leases.get(it));
            let waiting = own.filter(|it| it.stage == Stage::Queued).count();
            if waiting != client.waiting as usize {
                faults.push(format!(
                    "of client {id:?} wait {waiting}, counted {}",
                    client.waiting
                ));
            }
            for lease in client.leases.iter().filter_map(|it| self.leases.get(it)) {
                if lease.stage == Stage::Held {
                    for piece in &lease.pieces {
                        sums.0 += u64::from(piece.share_permille);
                        sums.1 += piece.memory_bytes;
                    }
                }
            }
            let held = client.used.held;
            if (held.shares_permille, held.memory_bytes) != sums {
                faults.push(format!("client {id:?} holds {sums:?}, counted {held:?}"));
            }
            let quota = self.quota_of(*id);
            if quota.shares_permille_max.is_some_and(|max| sums.0 > max)
                || quota.memory_bytes_max.is_some_and(|max| sums.1 > max)
            {
                faults.push(format!("client {id:?} is over its quota: {sums:?}"));
            }
        }
    }
}
