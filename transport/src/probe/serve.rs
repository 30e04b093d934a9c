//! The server's side of a probe.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use zerocopy::IntoBytes;

use super::wire::{HEAD_BYTES, Head, Operation, PAYLOAD};
use crate::endpoint::{Endpoint, Handler};
use crate::error::RefuseCode;
use crate::listener::{Incoming, IncomingKind};
use crate::num::to_usize;
use crate::options::Tuning;

/// Probes at once: each has a thread, and a buffer for its transfers.
const PROBES_MAX: usize = 4;
/// Transfers that a client may have asked for ahead.
const JOBS_MAX: usize = 64;
/// A client that asks nothing for so long is gone.
const IDLE: Duration = Duration::from_secs(10);
/// No probe takes longer.
const LONGEST: Duration = Duration::from_secs(120);
const STACK_BYTES: usize = 256 << 10;

/// Serves probes beside a server's sessions.
#[derive(Debug, Default)]
pub struct Prober {
    probes: Arc<Mutex<Vec<Endpoint>>>,
}

impl Prober {
    /// Takes what belongs to probes and gives back what does not. A server calls it with every
    /// connection whose token is in order, and with every bulk connection.
    ///
    /// Does not block; a probe gets a thread of its own, at most 4 at once.
    #[must_use]
    pub fn take(&self, incoming: Incoming) -> Option<Incoming> {
        match incoming.kind() {
            IncomingKind::New if incoming.payload() == PAYLOAD => self.start(incoming),
            IncomingKind::Bulk { session } => {
                let probes = self.probes.lock();
                let Some(probe) = probes.iter().find(|probe| probe.session() == session) else {
                    return Some(incoming);
                };
                let (fd, state) = incoming.into_parts();
                if let Err(error) = probe.attach_bulk(fd, &state) {
                    log::warn!("a bulk connection was refused: {error}");
                }
            }
            _ => return Some(incoming),
        }
        None
    }

    fn start(&self, incoming: Incoming) {
        let mut probes = self.probes.lock();
        probes.retain(|probe| probe.closed().is_none());
        if probes.len() >= PROBES_MAX {
            return incoming.refuse(RefuseCode::BUSY, "too many probes at once");
        }
        let peer = incoming.peer();
        let (fd, state) = incoming.into_parts();
        let jobs = Arc::new(Jobs::default());
        let tuning = Tuning::default();
        // The answer is one head: it fits any fresh socket's buffer.
        let endpoint = match Endpoint::adopt(fd, &state, PAYLOAD, &tuning, jobs.clone()) {
            Ok(endpoint) => endpoint,
            Err(error) => return log::warn!("no probe for {peer:?}: {error}"),
        };
        let serving = endpoint.clone();
        let started = thread::Builder::new()
            .name("probe".into())
            .stack_size(STACK_BYTES)
            .spawn(move || serve(&serving, &jobs));
        match started {
            Ok(_) => probes.push(endpoint),
            Err(error) => log::warn!("no probe for {peer:?}: {error}"),
        }
    }
}

/// Transfers that were asked for. Echoes are answered at once.
#[derive(Debug, Default)]
struct Jobs(Mutex<VecDeque<Head>>);

impl Handler for Jobs {
    fn on_frame(&self, endpoint: &Endpoint, mut frame: &[u8]) {
        while let Some((head, record, rest)) = Head::split(frame) {
            if head.operation() == Some(Operation::Echo) {
                // A session that ends meanwhile needs no echo.
                let _ = endpoint.append(record.len(), |out| out.copy_from_slice(record));
            } else {
                let mut jobs = self.0.lock();
                if jobs.len() < JOBS_MAX {
                    jobs.push_back(head);
                }
            }
            frame = rest;
        }
        if !frame.is_empty() {
            log::warn!("a probe sent what is no record");
            endpoint.close();
        }
    }
}

/// Serves one probe to its end.
fn serve(endpoint: &Endpoint, jobs: &Jobs) {
    let end = Instant::now() + LONGEST;
    let mut buffer = Vec::new();
    while Instant::now() < end {
        let has_job = || !jobs.0.lock().is_empty();
        let waited = endpoint.wait_until(&has_job, Some(IDLE));
        let Some(head) = jobs.0.lock().pop_front() else {
            break;
        };
        if waited.is_err() || !transfer(endpoint, &head, &mut buffer) {
            break;
        }
    }
    endpoint.close();
}

/// False when the session is over.
fn transfer(endpoint: &Endpoint, head: &Head, buffer: &mut Vec<MaybeUninit<u8>>) -> bool {
    let len = to_usize(head.transfer_bytes());
    if buffer.len() < len {
        buffer.resize(len, MaybeUninit::new(0));
    }
    if head.operation() == Some(Operation::Source) {
        let zeros = vec![0; len.min(1 << 20)];
        let parts: Vec<IoSlice<'_>> = (0..len.div_ceil(1 << 20))
            .map(|n| IoSlice::new(&zeros[..zeros.len().min(len - (n << 20))]))
            .collect();
        return endpoint.bulk_send(head.id(), &parts).is_ok();
    }
    let received = endpoint.bulk_recv(head.id(), &mut buffer[..len]);
    let answer = |out: &mut [u8]| out.copy_from_slice(head.as_bytes());
    received.is_ok() && endpoint.append_now(HEAD_BYTES, answer).is_ok()
}
