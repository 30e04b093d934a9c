//! Copies between devices of different servers: from server to server ([`super::direct`]), or else in pieces through this process:
//! while one piece goes to its server, the next comes from the other.
#![forbid(unsafe_code)]

use std::io::IoSlice;
use std::mem::ManuallyDrop;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use farcall_marshal::record::INLINE_BYTES_MAX;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemcpyDtoHAsyncV2, CuMemcpyHtoDAsyncV2, CuStreamSynchronize};

use super::direct;
use super::gate::{self, Gate, Meeting};
use super::{ferry_of, owner, refuse_capture};
use crate::api::{check_source, check_target};
use crate::counters;
use crate::global;
use crate::process::process;
use crate::ptr::HostPtr;
use crate::session::Session;
use crate::stream::Stream;
use crate::ticket::{Pending, Sink};

/// Bytes of a piece: long enough to keep a fast network busy, short enough that two of them are little memory.
const PIECE_BYTES: usize = 4 << 20;

/// Copies `bytes` from `src` to `dst`, which are memory of different servers, in the order of `stream`, a stream of any. Does
/// not wait; an error comes back later, as from every copy that is not waited for.
///
/// On stream 0 the copy is in the order of stream 0 of both ends, too, as `cuMemcpyPeer` promises.
pub(crate) fn copy(stream: &Stream, dst: u64, src: u64, bytes: usize) -> CuResult {
    refuse_capture(stream)?;
    let (to, from) = (owner(dst)?, owner(src)?);
    let passage = Passage {
        to: ferry_of(to)?,
        from: ferry_of(from)?,
        dst,
        src,
        bytes,
        asked_by: stream.session(),
        status: CuStatus::SUCCESS,
    };
    // Host memory that is used as the device's is brought up to date there.
    let _target = check_target(&passage.to, dst, bytes as u64)?;
    check_source(&passage.from, src, bytes as u64)?;
    let mut held = vec![stream];
    if stream.id == 0 {
        for legacy in [to.legacy(), from.legacy()] {
            if !held.iter().any(|known| std::ptr::eq(*known, &**legacy)) {
                held.push(legacy);
            }
        }
    }
    let crossings = &process()?.crossings;
    let _order = crossings.order();
    crossings.under_way.lock().push(passage.ends());
    let meeting = Meeting::of(held.len(), Some(passage));
    for stream in held {
        if let Err(status) = gate::put(stream, Gate::holding(&meeting)) {
            // Those that were put before meet without this one.
            Gate::holding(&meeting).lost(status);
        }
    }
    Ok(())
}

/// Waits for copies that read or write these addresses: the memory is about to go.
pub(crate) fn await_copies(start: u64, bytes: u64) -> CuResult {
    let process = process()?;
    if !process.has_several_servers() {
        return Ok(());
    }
    let crossings = &process.crossings;
    let mut under_way = crossings.under_way.lock();
    let overlaps = |(at, len): &(u64, u64)| {
        *at < start.saturating_add(bytes) && start < at.saturating_add(*len)
    };
    while under_way.iter().flatten().any(overlaps) {
        crossings.ended.wait(&mut under_way);
    }
    Ok(())
}

/// The thread that copies to one server; starts with the first copy.
#[derive(Default)]
pub(crate) struct Ferry {
    queue: OnceLock<Sender<(Passage, Arc<Meeting>)>>,
}

impl Ferry {
    fn take(&self, passage: Passage, meeting: Arc<Meeting>) {
        let queue = self.queue.get_or_init(|| {
            let (sender, receiver) = channel::<(Passage, Arc<Meeting>)>();
            let spawned = std::thread::Builder::new()
                .name("farcall-ferry".into())
                .spawn(move || {
                    for (passage, meeting) in receiver {
                        passage.finish(&meeting);
                    }
                });
            if let Err(error) = spawned {
                log::error!("no thread for copies between servers: {error}");
            }
            sender
        });
        if queue.send((passage, meeting)).is_err() {
            log::error!("a copy between servers is lost");
        }
    }
}

/// One copy.
pub(super) struct Passage {
    to: Arc<Stream>,
    from: Arc<Stream>,
    dst: u64,
    src: u64,
    bytes: usize,
    /// Whose next call returns what went wrong.
    asked_by: &'static Session,
    status: CuStatus,
}

/// A piece on its way here. Its bytes are given back by [`Piece::arrived`] alone: what is given up may still be written to.
struct Piece {
    bytes: ManuallyDrop<Vec<u8>>,
    at: usize,
    pending: Arc<Pending>,
}

impl Piece {
    /// Waits until all of it is here.
    fn arrived(self, from: &Session) -> CuResult<Vec<u8>> {
        from.wait(&self.pending)?;
        match self.pending.take() {
            (CuStatus::SUCCESS, _) => Ok(ManuallyDrop::into_inner(self.bytes)),
            (status, _) => Err(status),
        }
    }
}

impl Passage {
    /// A stream of it has failed: there is nothing to copy.
    pub(super) fn spoil(&mut self, status: CuStatus) {
        self.status = status;
    }

    /// All streams have got there: copies, and lets them go on. Does not wait.
    pub(super) fn depart(self, meeting: Arc<Meeting>) {
        self.to.session().ferry.take(self, meeting);
    }

    fn ends(&self) -> [(u64, u64); 2] {
        [(self.dst, self.bytes as u64), (self.src, self.bytes as u64)]
    }

    fn finish(self, meeting: &Meeting) {
        let outcome = match self.status {
            CuStatus::SUCCESS => self.run(),
            status => Err(status),
        };
        if let Err(status) = outcome {
            let (to, from) = (self.to.session(), self.from.session());
            log::error!(
                "a copy of {} bytes from {} to {} failed: {status}",
                self.bytes,
                from.inbox.server(),
                to.inbox.server()
            );
            self.asked_by.inbox.defer(status);
        }
        if let Some(process) = global::process() {
            let crossings = &process.crossings;
            let mut under_way = crossings.under_way.lock();
            let ends = self.ends();
            if let Some(at) = under_way.iter().position(|known| *known == ends) {
                under_way.swap_remove(at);
            }
            crossings.ended.notify_all();
        }
        meeting.open();
    }

    /// From server to server where there is a way, else through here.
    fn run(&self) -> CuResult {
        let copy = direct::Copy {
            to: &self.to,
            from: &self.from,
            dst: self.dst,
            src: self.src,
            bytes: self.bytes,
        };
        let is_direct = copy.run()?;
        if !is_direct {
            self.carry()?;
        }
        counters::crossed(self.bytes, is_direct);
        Ok(())
    }

    fn carry(&self) -> CuResult {
        let mut spare = Vec::new();
        let mut next = Some(self.fetch(0, &mut spare)?);
        while let Some(piece) = next.take() {
            let end = piece.at + piece.bytes.len();
            // Asked for before this one is waited for: there is always one on its way.
            let following = (end < self.bytes).then(|| self.fetch(end, &mut spare));
            self.land(piece, &mut spare)?;
            next = following.transpose()?;
        }
        let session = self.to.session();
        let record = CuStreamSynchronize { stream: self.to.id };
        session.ask(self.to.context.id, &record).map(|_| ())
    }

    /// Asks for the piece that starts at this offset.
    fn fetch(&self, at: usize, spare: &mut Vec<Vec<u8>>) -> CuResult<Piece> {
        let len = (self.bytes - at).min(PIECE_BYTES);
        let mut bytes = ManuallyDrop::new(spare.pop().unwrap_or_default());
        bytes.resize(len, 0);
        let session = self.from.session();
        let bulk = if len <= INLINE_BYTES_MAX {
            0
        } else {
            session.new_id()
        };
        self.from.mark()?;
        let record = CuMemcpyDtoHAsyncV2 {
            src: self.src + at as u64,
            count: len as u64,
            stream: self.from.id,
            bulk,
        };
        let sink = Sink::Copy {
            to: HostPtr::from_address(bytes.as_mut_ptr().addr() as u64),
            len,
            bulk,
            later: false,
        };
        let pending = session.request(self.from.context.id, &record, sink)?;
        Ok(Piece { bytes, at, pending })
    }

    /// Waits for a piece and sends it on.
    fn land(&self, piece: Piece, spare: &mut Vec<Vec<u8>>) -> CuResult {
        let at = piece.at;
        let bytes = piece.arrived(self.from.session())?;
        self.send(&bytes, at)?;
        spare.push(bytes);
        Ok(())
    }

    fn send(&self, bytes: &[u8], at: usize) -> CuResult {
        let session = self.to.session();
        let is_inline = bytes.len() <= INLINE_BYTES_MAX;
        let bulk = if is_inline { 0 } else { session.new_id() };
        self.to.issue(&CuMemcpyHtoDAsyncV2 {
            dst: self.dst + at as u64,
            count: bytes.len() as u64,
            stream: self.to.id,
            bulk,
            data: if is_inline { bytes } else { &[] },
        })?;
        if is_inline {
            return Ok(());
        }
        session
            .endpoint
            .bulk_send(bulk, &[IoSlice::new(bytes)])
            .map_err(|_| CuStatus::DEVICE_UNAVAILABLE)
    }
}
