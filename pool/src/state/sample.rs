//! Figures of the moment, for the history and the metrics.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use crate::history::{Figure, INTERVAL_MS, Sample, Samples};
use crate::model::{ClientId, LeaseId, Piece, Stage, WHOLE_PERMILLE};
use crate::state::work::either;
use crate::state::{GpuNow, Lease, Pool, Work};

/// What a GPU's history is kept as. CPU devices of servers on one host have the same UUIDs.
pub(crate) fn gpu_thing(server: &str, uuid: &str) -> String {
    format!("gpu/{server}/{uuid}")
}

/// Sums, in the units of the figures.
#[derive(Clone, Debug, Default, PartialEq)]
struct Sums {
    gpus: f64,
    held: f64,
    busy: f64,
    memory: f64,
    memory_held: f64,
    memory_used: f64,
    sessions: f64,
    waiting: f64,
    work: Option<Work>,
    now: GpusNow,
}

/// What is known of GPUs.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct GpusNow {
    computing: Option<f64>,
    utilized: Option<f64>,
    temperature_c: Option<f64>,
    power_w: Option<f64>,
    ecc_uncorrected: Option<f64>,
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
        if let Some(work) = &mut cluster.work {
            // Of all ways of a pool the longest says nothing.
            work.rtt_us = None;
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
            of_gpu.now = server
                .load
                .gpus
                .get(index)
                .map_or_else(GpusNow::default, GpusNow::of);
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
            if let Some(work) = used.and_then(|used| used.work.as_ref()) {
                of_client.works(work);
                sums.works(work);
            }
            for piece in found.unconfirmed().filter(|piece| piece.server == id) {
                if let Some(gpu) = gpus.get_mut(usize::from(piece.gpu)) {
                    gpu.hold(piece, is_busy);
                }
                of_client.hold(piece, is_busy);
            }
        }
        for (of_gpu, facts) in gpus.iter().zip(&server.facts.gpus) {
            let thing = gpu_thing(&server.facts.name, &facts.uuid);
            samples.push((thing, of_gpu.of_gpu()));
            sums.add(of_gpu);
        }
        samples.push((format!("server/{}", server.facts.name), sums.of_server()));
        cluster.add(&sums);
        cluster.sessions += sums.sessions;
        if let Some(work) = &sums.work {
            cluster.works(work);
        }
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
        self.now = self.now.and(part.now);
    }

    fn works(&mut self, work: &Work) {
        self.work = Some(self.work.take().unwrap_or_default().and(work));
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
        let sample = sample.with(Figure::MemoryBytes, self.memory);
        self.now.add_to(sample)
    }

    fn of_server(&self) -> Sample {
        let sample = self.of_gpu().with(Figure::Sessions, self.sessions);
        with_traffic(sample, self.work.as_ref())
    }

    fn of_client(&self) -> Sample {
        let sample = self.of_holder().with(Figure::Sessions, self.sessions);
        let sample = sample.with(Figure::Waiting, self.waiting);
        let computing = self.work.as_ref().and_then(|work| work.computing_gpus);
        let sample = with_known(sample, Figure::ComputingGpus, computing);
        with_traffic(sample, self.work.as_ref())
    }

    fn of_all(&self) -> Sample {
        self.of_server().with(Figure::Waiting, self.waiting)
    }
}

impl GpusNow {
    fn of(gpu: &GpuNow) -> Self {
        Self {
            computing: gpu.computing,
            utilized: gpu.utilization,
            temperature_c: gpu.temperature_c,
            power_w: gpu.power_w,
            ecc_uncorrected: gpu.ecc_uncorrected.map(precise),
        }
    }

    /// With other GPUs: sums, and the highest temperature.
    fn and(self, other: Self) -> Self {
        let sum = |a: f64, b: f64| a + b;
        Self {
            computing: either(self.computing, other.computing, sum),
            utilized: either(self.utilized, other.utilized, sum),
            temperature_c: either(self.temperature_c, other.temperature_c, f64::max),
            power_w: either(self.power_w, other.power_w, sum),
            ecc_uncorrected: either(self.ecc_uncorrected, other.ecc_uncorrected, sum),
        }
    }

    fn add_to(self, sample: Sample) -> Sample {
        let known = [
            (Figure::ComputingGpus, self.computing),
            (Figure::UtilizedGpus, self.utilized),
            (Figure::TemperatureC, self.temperature_c),
            (Figure::PowerW, self.power_w),
            (Figure::EccUncorrected, self.ecc_uncorrected),
        ];
        let add = |sample, (figure, value)| with_known(sample, figure, value);
        known.into_iter().fold(sample, add)
    }
}

fn with_traffic(sample: Sample, work: Option<&Work>) -> Sample {
    let Some(work) = work else {
        return sample;
    };
    let sample = sample
        .with(Figure::CallsPerS, work.calls_per_s)
        .with(Figure::ReceivedBytesPerS, work.received_bytes_per_s)
        .with(Figure::SentBytesPerS, work.sent_bytes_per_s);
    with_known(sample, Figure::RttUs, work.rtt_us)
}

fn with_known(sample: Sample, figure: Figure, value: Option<f64>) -> Sample {
    value.map_or(sample, |value| sample.with(figure, value))
}

/// Exact up to 2^53, which no sum of bytes reaches.
#[allow(clippy::cast_precision_loss)]
fn precise(count: u64) -> f64 {
    count as f64
}
