//! Host memory that the device uses itself: managed memory, and pinned or registered memory whose address a kernel was
//! given.
//!
//! Both sides have the pages at the same address; registered memory lies where the program has it, so the device has it
//! at another, its alias. Before the device works with them, what the program changed since
//! the last time goes there; after the program has waited for the device, what the device changed comes back. A
//! shadow of the server's bytes tells the changes apart, so neither side's writes are lost to the other's copy.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use farcall_marshal::record::INLINE_BYTES_MAX;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuEventCreate, CuEventRecordWithFlags, CuMemFreeHost, CuMemHostAlloc, CuMemcpyDtoHAsyncV2,
    CuMemcpyHtoDAsyncV2, CuStreamCreateWithPriority, CuStreamWaitEvent,
};
use parking_lot::Mutex;

use crate::context::Context;
use crate::memory::{self, Allocation, AllocationKind};
use crate::process::process;
use crate::ptr::HostPtr;
use crate::session::{EVENT_DISABLE_TIMING, Session};
use crate::stream::{STREAM_NON_BLOCKING, Stream};
use crate::ticket::{Pending, Sink};

/// Changes are looked for and sent in pieces of this size.
const PIECE: usize = 4096;

/// The shared regions of one session.
#[derive(Default)]
pub(crate) struct Coherent {
    /// Whether there is any region: the one thing that a launch looks at.
    is_used: AtomicBool,
    /// Stamp of the first work since the device was last asked what it has written; 0 = none.
    stale_from: AtomicU64,
    regions: Mutex<Vec<Region>>,
    lane: Mutex<Option<Lane>>,
}

struct Region {
    /// Where the device has it.
    start: u64,
    /// Where the program has it.
    host: u64,
    /// The server's bytes, as last known.
    shadow: Vec<u8>,
    /// Counts what the program changed, so that bytes which were asked for before are not taken for the device's.
    version: u64,
    context: &'static Context,
}

/// A stream of our own that fetches bytes as soon as a point in another stream is behind, and the event for that.
#[derive(Clone, Copy)]
struct Lane {
    context: u32,
    stream: u64,
    event: u64,
}

/// After which point bytes are fetched.
#[derive(Clone, Copy)]
pub(crate) enum Behind<'a> {
    /// All that was sent on this stream.
    Stream(&'a Stream),
    /// This event, as it was recorded last.
    Event(u64),
}

/// Bytes on their way from the server.
pub(crate) struct Fetch {
    region: u64,
    version: u64,
    /// Not looked at before `pending` is done: the server's bytes land here.
    bytes: Box<[u8]>,
    pending: Arc<Pending>,
}

impl Fetch {
    pub(crate) fn pending(&self) -> &Pending {
        &self.pending
    }
}

/// Makes host memory usable by kernels: at its own address, or at its alias.
pub(crate) fn share(allocation: &Allocation) -> CuResult {
    let session = allocation.context.session();
    let (start, host) = match allocation.kind {
        AllocationKind::Registered => return share(&memory::twin(allocation)?),
        AllocationKind::Alias => (allocation.start, allocation.twin),
        _ => (allocation.start, allocation.start),
    };
    let mut regions = session.coherent.regions.lock();
    if regions.iter().any(|region| region.start == start) {
        return Ok(());
    }
    // Managed memory was announced when it was made.
    if allocation.kind != AllocationKind::Managed {
        let record = CuMemHostAlloc {
            addr: memory::page_of(start),
            bytes: allocation.reserved_bytes,
            flags: allocation.flags,
        };
        session.send(allocation.context.id, &record)?;
    }
    let bytes = usize::try_from(allocation.bytes).map_err(|_| CuStatus::OUT_OF_MEMORY)?;
    regions.push(Region {
        start,
        host,
        shadow: vec![0; bytes],
        version: 0,
        context: allocation.context,
    });
    session.coherent.is_used.store(true, Ordering::Release);
    Ok(())
}

/// Ends what [`share`] began; whether it had. The caller frees managed memory on the server itself.
pub(crate) fn unshare(allocation: &Allocation) -> CuResult<bool> {
    let session = allocation.context.session();
    let mut regions = session.coherent.regions.lock();
    let before = regions.len();
    regions.retain(|region| region.start != allocation.start);
    let was_shared = regions.len() != before;
    if was_shared && allocation.kind != AllocationKind::Managed && allocation.context.is_alive() {
        let addr = memory::page_of(allocation.start);
        session.send(allocation.context.id, &CuMemFreeHost { addr })?;
    }
    session
        .coherent
        .is_used
        .store(!regions.is_empty(), Ordering::Release);
    Ok(was_shared)
}

/// Whether kernels use any host memory of the session.
#[inline]
pub(crate) fn is_used(session: &Session) -> bool {
    session.coherent.is_used.load(Ordering::Acquire)
}

/// A kernel is about to be launched with these parameters.
#[inline]
pub(crate) fn before_launch(stream: &Stream, params: &[u8]) -> CuResult {
    share_pointers(stream.session(), params)?;
    before_graph(stream)
}

/// A graph is about to be launched.
#[inline]
pub(crate) fn before_graph(stream: &Stream) -> CuResult {
    if is_used(stream.session()) {
        push(stream)
    } else {
        Ok(())
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
pub(crate) fn before_use(stream: &Stream, allocation: &Allocation) -> CuResult {
    if allocation.kind == AllocationKind::Registered {
        // The device has it at its alias only.
        return Err(CuStatus::INVALID_VALUE);
    }
    share(allocation)?;
    push(stream)
}

/// Sends what the program changed.
fn push(stream: &Stream) -> CuResult {
    let session = stream.session();
    // The work that is about to be sent gets the next stamp, or a later one.
    let _ = session.coherent.stale_from.compare_exchange(
        0,
        session.last_stamp() + 1,
        Ordering::Relaxed,
        Ordering::Relaxed,
    );
    for region in session.coherent.regions.lock().iter_mut() {
        let host = HostPtr::from_address(region.host).bytes(region.shadow.len())?;
        let mut at = 0;
        while let Some((from, to)) = changed(host, &region.shadow, at) {
            at = to;
            let (Some(new), Some(old)) = (host.get(from..to), region.shadow.get_mut(from..to))
            else {
                break;
            };
            old.copy_from_slice(new);
            region.version += 1;
            for (index, data) in old.chunks(INLINE_BYTES_MAX).enumerate() {
                let dst = region.start + (from + index * INLINE_BYTES_MAX) as u64;
                stream.mark()?;
                let record = CuMemcpyHtoDAsyncV2 {
                    dst,
                    count: data.len() as u64,
                    stream: stream.id,
                    bulk: 0,
                    data,
                };
                session.send(stream.context.id, &record)?;
            }
        }
    }
    Ok(())
}

/// The next run of pieces, from `at` on, in which the two differ.
fn changed(new: &[u8], old: &[u8], at: usize) -> Option<(usize, usize)> {
    let differs = |piece: usize| {
        let range = piece..(piece + PIECE).min(new.len());
        new.get(range.clone()) != old.get(range)
    };
    let from = (at..new.len())
        .step_by(PIECE)
        .find(|piece| differs(*piece))?;
    let to = (from..new.len())
        .step_by(PIECE)
        .find(|piece| !differs(*piece))
        .unwrap_or(new.len());
    Some((from, to))
}

/// Whether work up to `stamp` may have written what has not been fetched. From then on it counts as fetched.
fn take_stale(session: &Session, stamp: u64) -> bool {
    let coherent = &session.coherent;
    if !coherent.is_used.load(Ordering::Acquire) {
        return false;
    }
    let from = coherent.stale_from.load(Ordering::Relaxed);
    if from == 0 || from > stamp {
        return false;
    }
    // What was sent after that point stays to be fetched.
    let rest = if session.last_stamp() > stamp {
        stamp + 1
    } else {
        0
    };
    coherent.stale_from.store(rest, Ordering::Relaxed);
    true
}

/// The program is about to wait for a point with this stamp: asks for what the device will have changed by then, so
/// that the bytes come with the answer.
pub(crate) fn fetch_behind(
    context: &'static Context,
    stamp: u64,
    behind: Behind<'_>,
) -> CuResult<Vec<Fetch>> {
    let session = context.session();
    if !session.coherent.is_used.load(Ordering::Acquire) {
        return Ok(Vec::new());
    }
    let regions = session.coherent.regions.lock();
    let is_foreign = |region: &Region| !std::ptr::eq(region.context, context);
    if regions.iter().any(is_foreign) || !take_stale(session, stamp) {
        return Ok(Vec::new());
    }
    let lane = lane(context)?;
    let event = match behind {
        Behind::Event(event) => event,
        Behind::Stream(stream) => {
            let record = CuEventRecordWithFlags {
                event: lane.event,
                stream: stream.id,
                flags: 0,
            };
            session.send(context.id, &record)?;
            lane.event
        }
    };
    let wait = CuStreamWaitEvent {
        stream: lane.stream,
        event,
        flags: 0,
    };
    session.send(context.id, &wait)?;
    regions
        .iter()
        .map(|region| fetch(region, lane.stream))
        .collect()
}

/// The stream that fetches, made on the first use.
fn lane(context: &'static Context) -> CuResult<Lane> {
    let session = context.session();
    let mut lane = session.coherent.lane.lock();
    if let Some(lane) = *lane
        && lane.context == context.id
    {
        return Ok(lane);
    }
    let new = Lane {
        context: context.id,
        stream: session.new_id(),
        event: session.new_id(),
    };
    let stream = CuStreamCreateWithPriority {
        stream: new.stream,
        flags: STREAM_NON_BLOCKING,
        priority: 0,
    };
    session.send(context.id, &stream)?;
    let event = CuEventCreate {
        event: new.event,
        flags: EVENT_DISABLE_TIMING,
    };
    session.send(context.id, &event)?;
    *lane = Some(new);
    Ok(new)
}

fn fetch(region: &Region, stream: u64) -> CuResult<Fetch> {
    let session = region.context.session();
    let mut bytes = vec![0_u8; region.shadow.len()].into_boxed_slice();
    let bulk = if bytes.len() <= INLINE_BYTES_MAX {
        0
    } else {
        session.new_id()
    };
    let record = CuMemcpyDtoHAsyncV2 {
        src: region.start,
        count: bytes.len() as u64,
        stream,
        bulk,
    };
    let sink = Sink::Copy {
        to: HostPtr::from_address(bytes.as_mut_ptr() as u64),
        len: bytes.len(),
        bulk,
        later: true,
    };
    let pending = session.request(region.context.id, &record, sink)?;
    Ok(Fetch {
        region: region.start,
        version: region.version,
        bytes,
        pending,
    })
}

/// Takes over what has come. The bytes of a region that the program changed meanwhile are asked for again later.
pub(crate) fn take_over(session: &Session, fetches: Vec<Fetch>) -> CuResult {
    let mut regions = session.coherent.regions.lock();
    for fetch in fetches {
        match fetch.pending.take().0 {
            CuStatus::SUCCESS => {}
            status => return Err(status),
        }
        let Some(region) = regions.iter_mut().find(|r| r.start == fetch.region) else {
            continue;
        };
        if region.version != fetch.version || region.shadow.len() != fetch.bytes.len() {
            session.coherent.stale_from.store(1, Ordering::Relaxed);
            continue;
        }
        let pieces = fetch
            .bytes
            .chunks(PIECE)
            .zip(region.shadow.chunks_mut(PIECE))
            .enumerate();
        for (index, (new, old)) in pieces {
            if new != old {
                let at = HostPtr::from_address(region.host + (index * PIECE) as u64);
                merge(at, new, old)?;
                old.copy_from_slice(new);
            }
        }
    }
    Ok(())
}

/// The program has waited for the device up to this stamp: what the device changed comes back, if it did not come
/// with the answer.
pub(crate) fn after_wait(context: &'static Context, stamp: u64) -> CuResult {
    let session = context.session();
    if !take_stale(session, stamp) {
        return Ok(());
    }
    let fetches = {
        let regions = session.coherent.regions.lock();
        regions
            .iter()
            .map(|region| fetch(region, lane(region.context)?.stream))
            .collect::<CuResult<Vec<Fetch>>>()?
    };
    let pending: Vec<&Pending> = fetches.iter().map(Fetch::pending).collect();
    session.wait_all(&pending)?;
    take_over(session, fetches)
}

/// Writes the bytes that the device changed, and only those.
fn merge(at: HostPtr, new: &[u8], old: &[u8]) -> CuResult {
    let mut index = 0;
    while index < new.len() {
        let is_changed = |i: usize| new.get(i) != old.get(i);
        let end = (index..new.len())
            .find(|i| is_changed(*i) != is_changed(index))
            .unwrap_or(new.len());
        if is_changed(index) {
            at.offset(index)
                .write(new.get(index..end).unwrap_or_default())?;
        }
        index = end;
    }
    Ok(())
}

/// Forgets the regions of a context that has gone.
pub(crate) fn forget_context(context: &'static Context) {
    let coherent = &context.session().coherent;
    let mut regions = coherent.regions.lock();
    regions.retain(|region| !std::ptr::eq(region.context, context));
    coherent
        .is_used
        .store(!regions.is_empty(), Ordering::Release);
}

/// Managed memory is shared from the start.
pub(crate) fn share_managed(allocation: &Allocation) -> CuResult {
    share(allocation).inspect_err(|_| memory::release(allocation))
}

#[cfg(test)]
mod tests {
    use super::{PIECE, changed};

    #[test]
    fn runs_of_changed_pieces() {
        let old = vec![0_u8; 4 * PIECE + 10];
        let mut new = old.clone();
        assert_eq!(changed(&new, &old, 0), None);
        new[PIECE] = 1;
        new[2 * PIECE] = 1;
        assert_eq!(changed(&new, &old, 0), Some((PIECE, 3 * PIECE)));
        new[4 * PIECE + 9] = 1;
        assert_eq!(
            changed(&new, &old, 3 * PIECE),
            Some((4 * PIECE, 4 * PIECE + 10))
        );
    }
}
