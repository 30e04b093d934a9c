//! Figures of the moment, for the history and the metrics.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::history::{Figure, INTERVAL_MS, Sample, Samples};
use crate::model::{ClientId, LeaseId, Piece, Stage, WHOLE_PERMILLE};
use crate::state::{Lease, Pool};

/// Sums, in the units of the figures.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    gpus: f64,
    held: f64,
    busy: f64,
    memory: f64,
    memory_held: f64,
    memory_used: f64,
    sessions: f64,
    waiting: f64,
}

impl Pool {
    /// How everything is: the cluster, each server, its GPUs, and each client that holds something or waits.
    #[must_use]
    pub fn sample(&self, now_ms: u64) -> Samples {
        let mut samples = Vec::new();
        let mut cluster = Sums::default();
        let mut clients: BTreeMap<ClientId, Sums> = BTreeMap::new();
        for id in self.servers.keys() {
            self.sample_server(*id, &mut cluster, &mut clients, &mut samples);
        }
        let waited_ms = self.sample_queue(now_ms, &mut cluster, &mut clients);
        for (client, sums) in clients {
            let name = self.client_name(client);
            if !name.is_empty() {
                samples.push((format!("client/{name}"), sums.of_client()));
            }
        }
        let cluster = cluster.of_all();
        let cluster = cluster.with(Figure::WaitedMs, precise(waited_ms));
        samples.insert(0, ("cluster".to_owned(), cluster));
        samples
    }

    fn sample_server(
        &self,
        id: crate::model::ServerId,
        cluster: &mut Sums,
        clients: &mut BTreeMap<ClientId, Sums>,
        samples: &mut Samples,
    ) {
        let (Some(server), Some(node)) = (self.servers.get(&id), self.cluster.node(id)) else {
            return;
        };
        if !server.up {
            return;
        }
        let mut sums = Sums {
            sessions: server.load.sessions.into(),
            ..Sums::default()
        };
        let mut gpus = vec![Sums::default(); node.gpus.len()];
        for ((gpu, of_gpu), index) in node.gpus.iter().zip(&mut gpus).zip(0..) {
            let used = server.load.used_bytes.get(index).copied().unwrap_or(0);
            of_gpu.gpus = f64::from(u8::from(node.open && gpu.healthy));
            of_gpu.memory = precise(gpu.memory_total_bytes);
            of_gpu.memory_used = precise(used);
        }
        for lease in server.holds.iter() {
            let Some((lease_id, found)) = self.leases.get(lease).map(|it| (*lease, it)) else {
                continue;
            };
            let uses = server.load.leases.iter();
            let used = uses.clone().find(|used| used.lease == lease_id);
            let is_busy = used.is_some_and(|it| it.sessions > 0 && it.idle_ms < INTERVAL_MS);
            let of_client = clients.entry(found.client).or_default();
            of_client.memory_used += used.map_or(0.0, |used| precise(used.used_bytes));
            of_client.sessions += used.map_or(0.0, |used| used.sessions.into());
            for piece in found.unconfirmed().filter(|piece| piece.server == id) {
                if let Some(gpu) = gpus.get_mut(usize::from(piece.gpu)) {
                    gpu.hold(piece, is_busy);
                }
                of_client.hold(piece, is_busy);
            }
        }
        for (of_gpu, facts) in gpus.iter().zip(&server.facts.gpus) {
            samples.push((format!("gpu/{}", facts.uuid), of_gpu.of_gpu()));
            sums.add(of_gpu);
        }
        samples.push((format!("server/{}", server.facts.name), sums.of_server()));
        cluster.add(&sums);
        cluster.sessions += sums.sessions;
    }

    /// Returns how long the oldest request has waited.
    fn sample_queue(
        &self,
        now_ms: u64,
        cluster: &mut Sums,
        clients: &mut BTreeMap<ClientId, Sums>,
    ) -> u64 {
        let queued = |(_, lease): &(&LeaseId, &Lease)| lease.stage == Stage::Queued;
        let mut waited_ms = 0;
        for (_, lease) in self.leases.iter().filter(queued) {
            cluster.waiting += 1.0;
            clients.entry(lease.client).or_default().waiting += 1.0;
            waited_ms = waited_ms.max(now_ms.saturating_sub(lease.queued_ms));
        }
        waited_ms
    }
}

impl Sums {
    fn hold(&mut self, piece: Piece, is_busy: bool) {
        let share = f64::from(piece.share_permille) / f64::from(WHOLE_PERMILLE);
        self.held += share;
        if is_busy {
            self.busy += share;
        }
        self.memory_held += precise(piece.memory_bytes);
    }

    fn add(&mut self, part: &Self) {
        self.gpus += part.gpus;
        self.held += part.held;
        self.busy += part.busy;
        self.memory += part.memory;
        self.memory_held += part.memory_held;
        self.memory_used += part.memory_used;
    }

    fn of_holder(&self) -> Sample {
        Sample::default()
            .with(Figure::GpusHeld, self.held)
            .with(Figure::GpusBusy, self.busy)
            .with(Figure::MemoryHeldBytes, self.memory_held)
            .with(Figure::MemoryUsedBytes, self.memory_used)
    }

    fn of_gpu(&self) -> Sample {
        let sample = self.of_holder().with(Figure::Gpus, self.gpus);
        sample.with(Figure::MemoryBytes, self.memory)
    }

    fn of_server(&self) -> Sample {
        self.of_gpu().with(Figure::Sessions, self.sessions)
    }

    fn of_client(&self) -> Sample {
        let sample = self.of_holder().with(Figure::Sessions, self.sessions);
        sample.with(Figure::Waiting, self.waiting)
    }

    fn of_all(&self) -> Sample {
        self.of_server().with(Figure::Waiting, self.waiting)
    }
}

/// Exact up to 2^53, which no sum of bytes reaches.
#[allow(clippy::cast_precision_loss)]
fn precise(count: u64) -> f64 {
    count as f64
}
