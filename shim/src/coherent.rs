//! Host memory that the device uses itself: managed memory, and pinned or registered memory whose address a kernel was
//! given.
//!
//! Both sides have the pages at the same address; registered memory lies where the program has it, so the device has it
//! at another, its alias. Before the device works with them, what the program changed since
//! the last time goes there; after the program has waited for the device, what the device changed comes back. A
//! mirror of the server's bytes tells the changes apart, so neither side's writes are lost to the other's copy.
//!
//! What the program changed goes there on a stream of our own, at once and in one order whichever stream the work is for,
//! as the program's writes would; the work waits for it. While the device may be changing bytes of the same page, only the
//! very bytes go that the program changed.
#![forbid(unsafe_code)]

mod fetch;
mod mirror;
mod works;

use std::collections::HashMap;
use std::collections::btree_map::{BTreeMap, Entry};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farcall_marshal::record::INLINE_BYTES_MAX;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuCtxSynchronize, CuEventRecordWithFlags, CuMemFreeHost, CuMemHostAlloc, CuMemcpyHtoDAsyncV2,
    CuStreamWaitEvent,
};
use parking_lot::Mutex;

use self::mirror::{Grain, Mirror};
use self::works::Works;

pub(crate) use self::fetch::{Behind, Fetch, after_wait, fetch_behind, take_over};
pub(crate) use self::works::Waited;

use crate::context::Context;
use crate::crossing;
use crate::memory::{self, Allocation, AllocationKind};
use crate::process::process;
use crate::ptr::HostPtr;
use crate::session::Session;
use crate::stream::{STREAM_NON_BLOCKING, Stream};

/// More runs of bytes than this are not sent each by itself while the device works: the program waits for the device, and
/// then whole pieces can go.
const RUNS_MAX: usize = 1024;
/// Streams of which it is known what they wait for.
const HELD_MAX: usize = 1024;

/// The shared regions of one session.
#[derive(Default)]
pub(crate) struct Coherent {
    /// Whether there is any region: the one thing that a launch looks at.
    is_used: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    regions: Vec<Region>,
    /// Streams of our own, by context.
    lanes: BTreeMap<u32, Lanes>,
    works: Works,
    /// How many threads are sending such work.
    sending: usize,
    /// What was asked for and has not come, in the order in which it was. They own the memory into which bytes come.
    fetches: Vec<Arc<Fetch>>,
    /// Number of the last of them, and of the last that waits for no point.
    asked: u64,
    asked_now: u64,
}

struct Region {
    /// Where the device has it.
    start: u64,
    /// Where the program has it.
    host: u64,
    mirror: Mirror,
    context: &'static Context,
}

/// Two streams in the context of a region, which wait for none of the program's.
struct Lanes {
    /// What the program changed goes there, and what the device has changed by now comes back.
    now: Arc<Stream>,
    /// Waits for points in the program's streams, so that bytes come back with the answer to a wait.
    behind: Arc<Stream>,
    /// How often something was sent on `now`.
    sent: u64,
    /// The program's streams, by context and number, that wait for what was sent up to this count.
    held: HashMap<(u32, u64), u64>,
}

/// What work does with shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Work that may change shared memory is being sent; it has been when this is dropped.
#[must_use]
pub(crate) struct Sending(Option<Sent>);

struct Sent {
    context: &'static Context,
    stream: u64,
    is_blocking: bool,
    first: u64,
}

impl Sending {
    /// Nothing is shared.
    pub(crate) const NOTHING: Self = Self(None);
}

impl Drop for Sending {
    fn drop(&mut self) {
        let Some(sent) = &self.0 else { return };
        let session = sent.context.session();
        let mut state = session.coherent.state.lock();
        state.sending -= 1;
        let stream = (sent.context.id, sent.stream);
        let last = session.last_stamp().max(sent.first);
        state.works.add(stream, sent.is_blocking, sent.first, last);
    }
}

/// Makes host memory usable by kernels: at its own address, or at its alias.
pub(crate) fn share(allocation: &Allocation) -> CuResult {
    let context = allocation.context;
    let session = context.session();
    let (start, host) = match allocation.kind {
        AllocationKind::Registered => return share(&memory::twin(allocation)?),
        AllocationKind::Alias => (allocation.start, allocation.twin),
        _ => (allocation.start, allocation.start),
    };
    let mut state = session.coherent.state.lock();
    if state.regions.iter().any(|region| region.start == start) {
        return Ok(());
    }
    // Managed memory was announced when it was made.
    if allocation.kind != AllocationKind::Managed {
        let record = CuMemHostAlloc {
            addr: memory::page_of(start),
            bytes: allocation.reserved_bytes,
            flags: allocation.flags,
        };
        session.send(context.id, &record)?;
    }
    if let Entry::Vacant(place) = state.lanes.entry(context.id) {
        place.insert(Lanes {
            now: crossing::new_stream(context)?,
            behind: crossing::new_stream(context)?,
            sent: 0,
            held: HashMap::new(),
        });
    }
    let bytes = usize::try_from(allocation.bytes).map_err(|_| CuStatus::OUT_OF_MEMORY)?;
    state.regions.push(Region {
        start,
        host,
        mirror: Mirror::new(bytes),
        context,
    });
    session.coherent.is_used.store(true, Ordering::Release);
    Ok(())
}

/// Ends what [`share`] began; whether it had. The caller frees managed memory on the server itself.
pub(crate) fn unshare(allocation: &Allocation) -> CuResult<bool> {
    let session = allocation.context.session();
    let mut state = session.coherent.state.lock();
    let before = state.regions.len();
    state
        .regions
        .retain(|region| region.start != allocation.start);
    let was_shared = state.regions.len() != before;
    if was_shared && allocation.kind != AllocationKind::Managed && allocation.context.is_alive() {
        let addr = memory::page_of(allocation.start);
        session.send(allocation.context.id, &CuMemFreeHost { addr })?;
    }
    state.tell_used(&session.coherent);
    Ok(was_shared)
}

/// Whether kernels use any host memory of the session.
#[inline]
pub(crate) fn is_used(session: &Session) -> bool {
    session.coherent.is_used.load(Ordering::Acquire)
}

/// A kernel is about to be launched with these parameters.
#[inline]
pub(crate) fn before_launch(stream: &Stream, params: &[u8]) -> CuResult<Sending> {
    share_pointers(stream.session(), params)?;
    before_graph(stream)
}

/// A graph is about to be launched.
#[inline]
pub(crate) fn before_graph(stream: &Stream) -> CuResult<Sending> {
    if is_used(stream.session()) {
        push(stream, Access::Write)
    } else {
        Ok(Sending::NOTHING)
    }
}

/// Makes host memory that a kernel is given usable by it.
#[inline]
pub(crate) fn share_pointers(session: &Session, params: &[u8]) -> CuResult {
    let (words, _) = params.as_chunks::<8>();
    for word in words {
        let address = u64::from_le_bytes(*word);
        if session.host_range.contains(address)
            && let Some(allocation) = process()?.memory.find(address)
        {
            share(&allocation)?;
        }
    }
    Ok(())
}

/// A copy or memset is about to work with this host memory on the device.
pub(crate) fn before_use(
    stream: &Stream,
    allocation: &Allocation,
    access: Access,
) -> CuResult<Sending> {
    if allocation.kind == AllocationKind::Registered {
        // The device has it at its alias only.
        return Err(CuStatus::INVALID_VALUE);
    }
    share(allocation)?;
    push(stream, access)
}

/// Where the device has host memory that it may be changing just now: a copy from or to it belongs there, in the order of
/// its stream. `None`: the program has the newest bytes.
pub(crate) fn on_device(session: &Session, at: u64, bytes: u64) -> Option<u64> {
    if !is_used(session) {
        return None;
    }
    let state = session.coherent.state.lock();
    if state.is_quiet() {
        return None;
    }
    let (region, offset) = state.find(|region| region.host, at, bytes)?;
    Some(region.start + offset as u64)
}

/// Whether the program has the newest bytes of all shared memory.
pub(crate) fn is_quiet(session: &Session) -> bool {
    !is_used(session) || session.coherent.state.lock().is_quiet()
}

/// An upload to shared memory, the one thing that was sent since [`is_quiet`] with stamps from `first` on, is over for the
/// program: it sees the bytes. False: other work is there as well, so that only the device knows.
pub(crate) fn uploaded(
    stream: &Stream,
    first: u64,
    dst: u64,
    src: HostPtr,
    len: usize,
) -> CuResult<bool> {
    let mut guard = stream.session().coherent.state.lock();
    let state = &mut *guard;
    let own = (stream.context.id, stream.id);
    if state.sending != 0 || !state.works.are_only(own, first) {
        return Ok(false);
    }
    let asked = state.asked_last();
    let to_device = |region: &Region| region.start;
    let Some((region, offset)) = State::find_in(&mut state.regions, to_device, dst, len as u64)
    else {
        return Ok(false);
    };
    let host = HostPtr::from_address(region.host);
    host.offset(offset).copy_from(src, len)?;
    let bytes = host.bytes(region.mirror.len())?;
    region.mirror.send(offset..offset + len, bytes, asked);
    state.works.clear();
    Ok(true)
}

/// Sends what the program changed, before work that uses shared memory.
fn push(stream: &Stream, access: Access) -> CuResult<Sending> {
    let session = stream.session();
    await_copies_into_regions(session)?;
    for runs_max in [RUNS_MAX, usize::MAX] {
        let mut state = session.coherent.state.lock();
        if state.push(stream, runs_max)? {
            if access == Access::Read {
                return Ok(Sending::NOTHING);
            }
            state.sending += 1;
            return Ok(Sending(Some(Sent {
                context: stream.context,
                stream: stream.id,
                is_blocking: stream.flags & STREAM_NON_BLOCKING == 0,
                first: session.last_stamp() + 1,
            })));
        }
        drop(state);
        drain(session)?;
    }
    Err(CuStatus::UNKNOWN)
}

/// What copies still have to write to shared memory, the work is to see.
fn await_copies_into_regions(session: &Session) -> CuResult {
    let ranges: Vec<(u64, u64)> = {
        let state = session.coherent.state.lock();
        let range = |region: &Region| (region.host, region.mirror.len() as u64);
        state.regions.iter().map(range).collect()
    };
    ranges
        .into_iter()
        .try_for_each(|(start, bytes)| process()?.await_writers(start, bytes))
}

/// Waits for all work that may change shared memory.
fn drain(session: &Session) -> CuResult {
    let contexts = session.coherent.state.lock().works.contexts();
    for context in contexts {
        let stamp = session.last_stamp();
        session.ask(context, &CuCtxSynchronize {})?;
        after_wait(session, Waited::Context(context), stamp)?;
    }
    Ok(())
}

impl State {
    /// Whether the device has nothing to do that may change shared memory, and whatever it changed has come.
    fn is_quiet(&self) -> bool {
        self.works.is_empty() && self.sending == 0 && self.fetches.is_empty()
    }

    /// Number of the last fetch, if one is under way.
    fn asked_last(&self) -> Option<u64> {
        (!self.fetches.is_empty()).then_some(self.asked)
    }

    /// The region that has a range, which begins at the offset given beside it.
    fn find(
        &self,
        start: impl Fn(&Region) -> u64,
        at: u64,
        bytes: u64,
    ) -> Option<(&Region, usize)> {
        self.regions
            .iter()
            .find_map(|region| Some((region, region.offset(start(region), at, bytes)?)))
    }

    fn find_in(
        regions: &mut [Region],
        start: impl Fn(&Region) -> u64,
        at: u64,
        bytes: u64,
    ) -> Option<(&mut Region, usize)> {
        regions.iter_mut().find_map(|region| {
            let offset = region.offset(start(region), at, bytes)?;
            Some((region, offset))
        })
    }

    fn tell_used(&self, coherent: &Coherent) {
        let is_used = !self.regions.is_empty();
        coherent.is_used.store(is_used, Ordering::Release);
    }

    /// Sends what the program changed; `stream` waits for it. False: nothing was sent, as it is more than `runs_max` runs.
    fn push(&mut self, stream: &Stream, runs_max: usize) -> CuResult<bool> {
        self.forget_abandoned();
        let grain = if self.is_quiet() {
            Grain::Piece
        } else {
            Grain::Byte
        };
        let runs_max = match grain {
            Grain::Piece => usize::MAX,
            Grain::Byte => runs_max,
        };
        let mut changes: Vec<(usize, Vec<Range<usize>>)> = Vec::new();
        let mut left = runs_max;
        for (index, region) in self.regions.iter().enumerate() {
            let host = HostPtr::from_address(region.host).bytes(region.mirror.len())?;
            let Some(runs) = region.mirror.changes(host, grain, left) else {
                return Ok(false);
            };
            if !runs.is_empty() {
                left -= runs.len();
                changes.push((index, runs));
            }
        }
        let asked = self.asked_last();
        for (index, runs) in changes {
            let Some(region) = self.regions.get_mut(index) else {
                continue;
            };
            let Some(lanes) = self.lanes.get_mut(&region.context.id) else {
                continue;
            };
            region.send(&lanes.now, runs, asked)?;
            lanes.sent += 1;
        }
        self.lanes
            .values_mut()
            .try_for_each(|lanes| lanes.hold(stream))?;
        Ok(true)
    }
}

impl Lanes {
    /// Makes a stream wait for what was sent, whichever thread sent it, unless it has been told.
    fn hold(&mut self, stream: &Stream) -> CuResult {
        let key = (stream.context.id, stream.id);
        let held = self.held.get(&key).copied().unwrap_or(0);
        if held == self.sent {
            return Ok(());
        }
        hold(stream, record(&self.now)?)?;
        // Streams that are not known wait once more.
        if self.held.len() >= HELD_MAX {
            self.held.clear();
        }
        self.held.insert(key, self.sent);
        Ok(())
    }
}

impl Region {
    /// Where a range is in it, if it is; `start`: where it begins, as whoever names the range knows it.
    fn offset(&self, start: u64, at: u64, bytes: u64) -> Option<usize> {
        let offset = at.checked_sub(start)?;
        let end = offset.checked_add(bytes)?;
        (end <= self.mirror.len() as u64).then(|| usize::try_from(offset).ok())?
    }

    /// Sends runs of the program's bytes.
    fn send(&mut self, lane: &Stream, runs: Vec<Range<usize>>, asked: Option<u64>) -> CuResult {
        let host = HostPtr::from_address(self.host).bytes(self.mirror.len())?;
        for run in runs {
            let from = run.start;
            let bytes = self.mirror.send(run, host, asked);
            for (index, data) in bytes.chunks(INLINE_BYTES_MAX).enumerate() {
                lane.wait_for_uploads(lane.session())?;
                let record = CuMemcpyHtoDAsyncV2 {
                    dst: self.start + (from + index * INLINE_BYTES_MAX) as u64,
                    count: data.len() as u64,
                    stream: lane.id,
                    bulk: 0,
                    data,
                };
                lane.session().send(lane.context.id, &record)?;
            }
        }
        Ok(())
    }
}

/// Records an event behind all that was sent on a stream; the event.
fn record(on: &Stream) -> CuResult<u64> {
    let event = on.crossed.event(on)?;
    let record = CuEventRecordWithFlags {
        event,
        stream: on.id,
        flags: 0,
    };
    on.session().send(on.context.id, &record)?;
    Ok(event)
}

/// Makes later work of a stream wait for an event.
fn hold(stream: &Stream, event: u64) -> CuResult {
    let record = CuStreamWaitEvent {
        stream: stream.id,
        event,
        flags: 0,
    };
    stream.session().send(stream.context.id, &record)
}

/// Forgets the regions of a context that has gone.
pub(crate) fn forget_context(context: &'static Context) {
    let coherent = &context.session().coherent;
    let mut state = coherent.state.lock();
    state
        .regions
        .retain(|region| !std::ptr::eq(region.context, context));
    state.lanes.remove(&context.id);
    state.works.forget(context.id);
    state.tell_used(coherent);
}

/// Managed memory is shared from the start.
pub(crate) fn share_managed(allocation: &Allocation) -> CuResult {
    share(allocation).inspect_err(|_| memory::release(allocation))
}
