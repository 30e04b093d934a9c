//! Large buffers: throughput of the bulk plane.
//!
//! Fenced `unsafe`: memory that the service lends to a transfer.

use std::mem::MaybeUninit;
use std::sync::Arc;

use farcall_transport::Endpoint;
use parking_lot::Mutex;

use super::link::{Download, Link, Upload};
use super::service::Mode;
use super::turns::throughput;
use super::{Against, Failure, Load, Party, Transport, in_turns, size_name};
use crate::figure::{Figure, Target};
use crate::peers::{Tools, What};
use crate::pin::{self, Side};
use crate::raw::copy::MemCopy;
use crate::raw::tcp;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// To the server.
    Up,
    /// From the server.
    Down,
}

/// What memory the client's bytes come from and go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Memory {
    /// Any.
    Pageable,
    /// Lent to the session, as pinned memory is.
    Pinned,
}

/// Memory for transfers.
#[derive(Default)]
pub(super) struct Buffer {
    bytes: Vec<u8>,
    lent_to: Option<Endpoint>,
}

impl Buffer {
    /// Of `bytes` bytes, lent to a session.
    pub(super) fn new(bytes: usize, lent_to: Option<&Endpoint>) -> Self {
        let mut bytes = vec![1; bytes];
        if let Some(endpoint) = lent_to {
            // SAFETY: the bytes stay where they are until `drop`, which takes them back; meanwhile they are only
            // given to transfers, and their values decide nothing here.
            unsafe { endpoint.bulk_lend(bytes.as_mut_ptr(), bytes.len()) };
        }
        Self {
            bytes,
            lent_to: lent_to.cloned(),
        }
    }

    /// Becomes a new one unless it is as long.
    pub(super) fn fit(&mut self, bytes: usize, lent_to: &Endpoint) {
        if self.bytes.len() != bytes {
            *self = Self::new(bytes, Some(lent_to));
        }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// To be received into.
    pub(super) fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        let (at, len) = (self.bytes.as_mut_ptr().cast(), self.bytes.len());
        // SAFETY: the bytes of `self`, borrowed as they are; the transport writes initialised ones only.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(endpoint) = &self.lent_to {
            endpoint.bulk_reclaim(self.bytes.as_ptr());
        }
    }
}

/// The size that promises are made for.
const PROMISED_BYTES: usize = 64 << 20;

/// `bulk/*`: gigabytes (1e9) a second of transfers of so many bytes, from the median time, beside bare TCP or
/// `memcpy`, or beside TLS the same without it; then peers.
///
/// # Errors
/// The transport's; perftest, the limit of RDMA, is missing.
pub fn bulk(
    against: &Against<'_>,
    transport: Transport,
    bytes: usize,
    direction: Direction,
    memory: Memory,
    load: &Load,
) -> Result<Figure, Failure> {
    pin::on(Side::Client, || {
        let link = Link::open(against.server, transport, Mode::Bulk)?;
        let name = link.transport_name();
        let mut tools = Tools::beside(against, name, What::Bulk, bytes)?;
        let load = load.in_rounds(tools.rounds());
        let party = |name: &str, link: Link| match direction {
            Direction::Up => Party::new(name, Upload::new(link, bytes, memory), &load),
            Direction::Down => Party::new(name, Download::new(link, bytes, memory), &load),
        };
        let mut parties = vec![party(name, link)];
        if transport.tls {
            let plain = Link::open(against.server, Transport::TCP, Mode::Bulk)?;
            parties.push(party("plain tcp", plain));
        } else if against.is_local && name == "shm" {
            parties.push(Party::new("memcpy", MemCopy::new(bytes), &load));
        } else if against.is_local && name != "verbs" {
            // What RDMA can do, perftest measures (`crate::peers`).
            let raw = tcp::Bulk::new(bytes);
            parties.push(Party::new("raw TCP, spinning", raw, &load));
        }
        let pinned = match memory {
            Memory::Pinned => ", pinned",
            Memory::Pageable => "",
        };
        let way = match direction {
            Direction::Up => "up",
            Direction::Down => "down",
        };
        let title = load.named(format!("bulk/{name}/{way}/{}{pinned}", size_name(bytes)));
        let done = in_turns(&load, parties, &mut || tools.round())?;
        // Bytes per microsecond are megabytes per second.
        let figure = throughput(title, "GB/s", bytes as f64 / 1000.0, &load, &done);
        let mut figure = tools.stand_beside(figure)?;
        let is_promised = bytes == PROMISED_BYTES && against.is_local && load.rate.is_none();
        if is_promised && !transport.tls {
            let least = if name == "shm" { 0.8 } else { 0.95 };
            figure = figure.target(Target::RatioAtLeast(least));
        }
        Ok(figure)
    })
}

/// Receives transfer `id` into the session's memory and then answers with 8 bytes. Ends the session if it cannot.
pub(super) fn receive_into(endpoint: &Endpoint, id: u64, bytes: u64, memory: &Arc<Mutex<Buffer>>) {
    let mut buffer = std::mem::take(&mut *memory.lock());
    buffer.fit(usize::try_from(bytes).unwrap_or_default(), endpoint);
    let (at, len) = (buffer.bytes.as_mut_ptr(), buffer.bytes.len());
    let (own, memory) = (endpoint.clone(), Arc::clone(memory));
    let done = Box::new(move |received: Result<usize, _>| {
        let answered = received.is_ok() && own.append_now(8, |out| out.fill(0)).is_ok();
        if answered {
            *memory.lock() = buffer;
        } else {
            own.close();
        }
    });
    // SAFETY: `buffer` has `len` bytes at `at`, and moves into `done`, untouched (a vector that is moved leaves its
    // bytes where they are): nothing else uses them before `done` is called, which the endpoint keeps until then.
    if unsafe { endpoint.bulk_post(id, at, len, done) }.is_err() {
        endpoint.close();
    }
}
