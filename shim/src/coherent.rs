//! Host memory that the device uses itself: managed memory, and pinned memory whose address a kernel was given.
//!
//! Both sides have the pages at the same address. Before the device works with them, what the program changed since
//! the last time goes there; after the program has waited for the device, what the device changed comes back. A
//! shadow of the server's bytes tells the changes apart, so neither side's writes are lost to the other's copy.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, Ordering};

use farcall_marshal::record::INLINE_BYTES_MAX;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuMemFreeHost, CuMemHostAlloc, CuMemcpyDtoHAsyncV2, CuMemcpyHtoDAsyncV2,
};
use parking_lot::Mutex;

use crate::context::Context;
use crate::memory::{self, Allocation, AllocationKind};
use crate::process::process;
use crate::ptr::HostPtr;
use crate::session::Session;
use crate::stream::Stream;
use crate::ticket::Sink;

/// Changes are looked for and sent in pieces of this size.
const PIECE: usize = 4096;

/// The shared regions of one session.
#[derive(Default)]
pub(crate) struct Coherent {
    /// Whether there is any region: the one thing that a launch looks at.
    is_used: AtomicBool,
    /// Whether the device may have written since the last time it was asked.
    is_stale: AtomicBool,
    regions: Mutex<Vec<Region>>,
}

struct Region {
    start: u64,
    /// The server's bytes, as last known.
    shadow: Vec<u8>,
    context: &'static Context,
}

/// Makes host memory usable by kernels at its own address.
pub(crate) fn share(allocation: &Allocation) -> CuResult {
    let session = allocation.context.session();
    if allocation.kind == AllocationKind::Registered {
        log::error!(
            "registered host memory cannot be used by kernels yet; allocate it with cuMemHostAlloc"
        );
        return Err(CuStatus::NOT_SUPPORTED);
    }
    let mut regions = session.coherent.regions.lock();
    if regions
        .iter()
        .any(|region| region.start == allocation.start)
    {
        return Ok(());
    }
    // Managed memory was announced when it was made.
    if allocation.kind == AllocationKind::Host {
        let record = CuMemHostAlloc {
            addr: allocation.start,
            bytes: allocation.reserved_bytes,
            flags: allocation.flags,
        };
        session.send(allocation.context.id, &record)?;
    }
    let bytes = usize::try_from(allocation.reserved_bytes).map_err(|_| CuStatus::OUT_OF_MEMORY)?;
    regions.push(Region {
        start: allocation.start,
        shadow: vec![0; bytes],
        context: allocation.context,
    });
    session.coherent.is_used.store(true, Ordering::Release);
    Ok(())
}

/// Ends what [`share`] began. The caller frees managed memory on the server itself.
pub(crate) fn unshare(allocation: &Allocation) -> CuResult {
    let session = allocation.context.session();
    let mut regions = session.coherent.regions.lock();
    let before = regions.len();
    regions.retain(|region| region.start != allocation.start);
    if regions.len() != before
        && allocation.kind == AllocationKind::Host
        && allocation.context.is_alive()
    {
        session.send(
            allocation.context.id,
            &CuMemFreeHost {
                addr: allocation.start,
            },
        )?;
    }
    session
        .coherent
        .is_used
        .store(!regions.is_empty(), Ordering::Release);
    Ok(())
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
    if stream.session().coherent.is_used.load(Ordering::Acquire) {
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
    share(allocation)?;
    push(stream)
}

/// Sends what the program changed.
fn push(stream: &Stream) -> CuResult {
    let session = stream.session();
    session.coherent.is_stale.store(true, Ordering::Relaxed);
    for region in session.coherent.regions.lock().iter_mut() {
        let host = HostPtr::from_address(region.start).bytes(region.shadow.len())?;
        let mut at = 0;
        while let Some((from, to)) = changed(host, &region.shadow, at) {
            at = to;
            let (Some(new), Some(old)) = (host.get(from..to), region.shadow.get_mut(from..to))
            else {
                break;
            };
            old.copy_from_slice(new);
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

/// The program has waited for the device: what the device changed comes back.
pub(crate) fn after_wait(context: &'static Context) -> CuResult {
    let session = context.session();
    if !session.coherent.is_used.load(Ordering::Acquire)
        || !session.coherent.is_stale.swap(false, Ordering::Relaxed)
    {
        return Ok(());
    }
    for region in session.coherent.regions.lock().iter_mut() {
        let mut fresh = vec![0_u8; region.shadow.len()];
        fetch(region.context, &mut fresh, region.start)?;
        let pieces = fresh
            .chunks(PIECE)
            .zip(region.shadow.chunks_mut(PIECE))
            .enumerate();
        for (index, (new, old)) in pieces {
            if new != old {
                merge(
                    HostPtr::from_address(region.start + (index * PIECE) as u64),
                    new,
                    old,
                )?;
                old.copy_from_slice(new);
            }
        }
    }
    Ok(())
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

fn fetch(context: &'static Context, to: &mut [u8], from: u64) -> CuResult {
    let session = context.session();
    let bulk = if to.len() <= INLINE_BYTES_MAX {
        0
    } else {
        session.new_id()
    };
    let record = CuMemcpyDtoHAsyncV2 {
        src: from,
        count: to.len() as u64,
        stream: 0,
        bulk,
    };
    let sink = Sink::Copy {
        to: HostPtr::from_address(to.as_mut_ptr() as u64),
        len: to.len(),
        bulk,
        later: false,
    };
    let pending = session.request(context.id, &record, sink)?;
    session.wait(&pending)?;
    match pending.take().0 {
        CuStatus::SUCCESS => Ok(()),
        status => Err(status),
    }
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
