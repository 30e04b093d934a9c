//! Copies between host and device memory.
//!
//! From host memory a copy is sent one way: the bytes leave before the call returns. To pageable host memory the
//! call waits, to pinned memory the bytes land later and the synchronization that the program must do waits for them.
#![forbid(unsafe_code)]

use std::io::IoSlice;
use std::sync::Arc;

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::record::INLINE_BYTES_MAX;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemcpyDtoDAsyncV2, CuMemcpyDtoHAsyncV2, CuMemcpyHtoDAsyncV2};

use super::stream;
use crate::coherent::{self, Access, Sending};
use crate::crossing;
use crate::graph::Node;
use crate::process::process;
use crate::ptr::HostPtr;
use crate::stream::Stream;
use crate::ticket::{Pending, Sink};

/// Longest transfer that is made at once.
const WHOLE_BYTES_MAX: usize = 8 << 20;
/// Longer ones are made in pieces of this size.
const PIECE_BYTES: usize = 4 << 20;

/// What an address of unknown kind is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Device,
    /// Pinned or registered: copies may land after the call.
    Pinned,
    Pageable,
}

fn place(address: u64) -> CuResult<Place> {
    Ok(match process()?.memory.find(address) {
        Some(allocation) if allocation.is_on_device() => Place::Device,
        Some(allocation) if allocation.is_shared() => Place::Device,
        Some(_) => Place::Pinned,
        None => Place::Pageable,
    })
}

/// Memory that an operation is about to write; held until it has been sent.
#[must_use]
pub(crate) struct Target {
    /// Whether only devices see the memory.
    pub(crate) only_devices: bool,
    _sending: Sending,
}

/// Refuses device ranges that leave their allocation, as a driver does. Host memory that the device is to use itself is
/// brought up to date there.
pub(crate) fn check_target(stream: &Stream, start: u64, bytes: u64) -> CuResult<Target> {
    let (only_devices, sending) = check_device_range(stream, start, bytes, Access::Write)?;
    Ok(Target {
        only_devices,
        _sending: sending,
    })
}

/// The same for memory that is read only; whether only devices see it.
pub(crate) fn check_source(stream: &Stream, start: u64, bytes: u64) -> CuResult<bool> {
    Ok(check_device_range(stream, start, bytes, Access::Read)?.0)
}

fn check_device_range(
    stream: &Stream,
    start: u64,
    bytes: u64,
    access: Access,
) -> CuResult<(bool, Sending)> {
    let allocation = process()?
        .memory
        .covering(start, bytes)
        .ok_or(CuStatus::INVALID_VALUE)?;
    if !std::ptr::eq(allocation.context.session(), stream.session()) {
        log::error!("memory of one server was to be used by another");
        return Err(CuStatus::INVALID_VALUE);
    }
    if allocation.is_on_device() {
        return Ok((true, Sending::NOTHING));
    }
    let sending = coherent::before_use(stream, &allocation, access)?;
    Ok((false, sending))
}

/// Whether the program sees the memory at an address that the device works with.
pub(crate) fn is_seen(address: u64) -> CuResult<bool> {
    let found = process()?.memory.find(address);
    Ok(found.is_some_and(|allocation| !allocation.is_on_device()))
}

/// The program is to see at once what was done to memory that it sees.
pub(crate) fn finish_now(stream: &Stream) -> CuResult {
    match stream.capturing()? {
        None => stream.synchronize(),
        Some(_) => Ok(()),
    }
}

/// Sends host bytes to the device. They have left this memory when it returns.
pub(crate) fn to_device(stream: &Stream, dst: u64, src: HostPtr, bytes: usize) -> CuResult {
    if bytes == 0 {
        return Ok(());
    }
    if let Some(owner) = crossing::abroad(stream, dst)? {
        return crossing::run_at(owner, stream, |lane| to_device(lane, dst, src, bytes));
    }
    let target = check_target(stream, dst, bytes as u64)?;
    if let Some(capture) = stream.capturing()? {
        return capture.add(
            stream.id,
            Node::FromHost {
                to: dst,
                from: src,
                len: bytes,
            },
        );
    }
    let session = stream.session();
    if let Some(from) = coherent::on_device(session, src.address(), bytes as u64) {
        return device_to_device(stream, dst, from, bytes);
    }
    // What an earlier copy still has to write there is what this one is to read.
    process()?.await_writers(src.address(), bytes as u64)?;
    let data = src.bytes(bytes)?;
    let issue = |at: usize, count: usize, bulk: u64, data: &[u8]| {
        let record = CuMemcpyHtoDAsyncV2 {
            dst: dst + at as u64,
            count: count as u64,
            stream: stream.id,
            bulk,
            data,
        };
        stream.issue_for(target.only_devices, &record)
    };
    if bytes <= INLINE_BYTES_MAX {
        return issue(0, bytes, 0, data);
    }
    let send = |bulk: u64, data: &[u8]| {
        let sent = session.endpoint.bulk_send(bulk, &[IoSlice::new(data)]);
        sent.map_err(|_| CuStatus::DEVICE_UNAVAILABLE)
    };
    // The server makes room in the order of the records: bytes that came in another one might wait for each other.
    let _turn = session.uploads.lock();
    let mut announced = None;
    for (at, count) in pieces(bytes) {
        let (bulk, piece) = (session.new_id(), data.get(at..at + count));
        issue(at, count, bulk, &[])?;
        // One piece ahead, so that the server expects bytes when they come.
        if let Some((bulk, piece)) = announced.replace((bulk, piece.unwrap_or_default())) {
            send(bulk, piece)?;
        }
    }
    announced.map_or(Ok(()), |(bulk, piece)| send(bulk, piece))
}

/// Cuts a transfer that is longer than [`WHOLE_BYTES_MAX`], so that the server gives the device what has come while the rest comes, and sends
/// what the device has given: start and length of each piece. None is so short that it would belong in a record.
fn pieces(bytes: usize) -> impl Iterator<Item = (usize, usize)> {
    let piece = if bytes > WHOLE_BYTES_MAX {
        PIECE_BYTES
    } else {
        bytes
    };
    let mut at = 0;
    std::iter::from_fn(move || {
        let left = bytes - at;
        let count = if left <= piece + INLINE_BYTES_MAX {
            left
        } else {
            piece
        };
        let start = at;
        at += count;
        (count > 0).then_some((start, count))
    })
}

/// The same for a call that is over when it returns.
fn to_device_now(stream: &Stream, dst: u64, src: HostPtr, bytes: usize) -> CuResult {
    let session = stream.session();
    let (was_quiet, first) = (coherent::is_quiet(session), session.last_stamp() + 1);
    to_device(stream, dst, src, bytes)?;
    if let Some(owner) = crossing::abroad(stream, dst)? {
        return crossing::finish_at(owner);
    }
    session.uploaded(stream)?;
    if !coherent::is_used(session) || bytes == 0 || stream.capturing()?.is_some() {
        return Ok(());
    }
    // The program sees memory that the device uses too: what was written there, and what work before the copy wrote.
    if was_quiet && (!is_seen(dst)? || coherent::uploaded(stream, first, dst, src, bytes)?) {
        return Ok(());
    }
    finish_now(stream)
}

/// Fetches device bytes. Waits unless `lands_later`.
pub(crate) fn to_host(
    stream: &Stream,
    dst: HostPtr,
    src: u64,
    bytes: usize,
    lands_later: bool,
) -> CuResult {
    if bytes == 0 {
        return Ok(());
    }
    if dst.is_null() {
        return Err(CuStatus::INVALID_VALUE);
    }
    if let Some(owner) = crossing::abroad(stream, src)? {
        // The program waits for its own stream, and bytes of another server's may come later than that is done.
        return crossing::run_at(owner, stream, |lane| to_host(lane, dst, src, bytes, false));
    }
    check_source(stream, src, bytes as u64)?;
    if let Some(capture) = stream.capturing()? {
        return capture.add(
            stream.id,
            Node::ToHost {
                to: dst,
                from: src,
                len: bytes,
            },
        );
    }
    stream.context.check()?;
    let session = stream.session();
    if let Some(to) = coherent::on_device(session, dst.address(), bytes as u64) {
        device_to_device(stream, to, src, bytes)?;
        return if lands_later {
            Ok(())
        } else {
            stream.synchronize()
        };
    }
    let request = |(at, count)| {
        let stamp = stream.mark()?;
        let ends = (dst.offset(at), src + at as u64);
        Ok((stamp, request_piece(stream, ends, count, lands_later)?))
    };
    if lands_later {
        return pieces(bytes).map(request).try_for_each(|asked| {
            let (stamp, pending) = asked?;
            session.lands(stamp, pending);
            Ok(())
        });
    }
    let stamp = if bytes <= WHOLE_BYTES_MAX {
        let (stamp, pending) = request((0, bytes))?;
        session.wait(&pending)?;
        done(&pending)?;
        stamp
    } else {
        let asked: Vec<(u64, Arc<Pending>)> =
            pieces(bytes).map(request).collect::<CuResult<_>>()?;
        let all: Vec<&Pending> = asked.iter().map(|(_, pending)| &**pending).collect();
        session.wait_all(&all)?;
        all.into_iter().try_for_each(done)?;
        asked.last().map_or(0, |(stamp, _)| *stamp)
    };
    stream.set_done(stamp);
    // To the program the work before the copy is over too, with all that it wrote.
    coherent::after_wait(session, stream.waited(), stamp)?;
    session.take_deferred()
}

/// How a request ended.
fn done(pending: &Pending) -> CuResult {
    match pending.take().0 {
        CuStatus::SUCCESS => Ok(()),
        status => Err(status),
    }
}

/// Asks for bytes at `from` to be sent to `to`.
fn request_piece(
    stream: &Stream,
    (to, from): (HostPtr, u64),
    len: usize,
    later: bool,
) -> CuResult<Arc<Pending>> {
    let session = stream.session();
    let is_inline = len <= INLINE_BYTES_MAX;
    let bulk = if is_inline { 0 } else { session.new_id() };
    let record = CuMemcpyDtoHAsyncV2 {
        src: from,
        count: len as u64,
        stream: stream.id,
        bulk,
    };
    let sink = Sink::Copy {
        to,
        len,
        bulk,
        later,
    };
    session.request(stream.context.id, &record, sink)
}

fn device_to_device(stream: &Stream, dst: u64, src: u64, bytes: usize) -> CuResult {
    if bytes == 0 {
        return Ok(());
    }
    if process()?.has_several_servers() {
        let (to, from) = (crossing::owner(dst)?, crossing::owner(src)?);
        if !std::ptr::eq(to.session(), from.session()) {
            return crossing::copy(stream, dst, src, bytes);
        }
        if !std::ptr::eq(to.session(), stream.session()) {
            return crossing::run_at(to, stream, |lane| device_to_device(lane, dst, src, bytes));
        }
    }
    let target = check_target(stream, dst, bytes as u64)?;
    let only_devices = check_source(stream, src, bytes as u64)? && target.only_devices;
    let record = CuMemcpyDtoDAsyncV2 {
        dst,
        src,
        count: bytes as u64,
        stream: stream.id,
    };
    crossing::run_between([dst, src], stream, || {
        stream.issue_for(only_devices, &record)
    })
}

/// The same for a call that is over when it returns, where the program can see that.
fn device_to_device_now(stream: &Stream, dst: u64, src: u64, bytes: usize) -> CuResult {
    device_to_device(stream, dst, src, bytes)?;
    if bytes != 0 && (is_seen(dst)? || is_seen(src)?) {
        return finish_now(stream);
    }
    Ok(())
}

/// A copy whose ends are of any kind (`cuMemcpy`).
fn any_to_any(
    mode: StreamMode,
    dst: u64,
    src: u64,
    bytes: usize,
    handle: u64,
    is_async: bool,
) -> CuResult {
    let stream = stream(mode, handle)?;
    if dst == 0 || src == 0 {
        return if bytes == 0 {
            Ok(())
        } else {
            Err(CuStatus::INVALID_VALUE)
        };
    }
    match (place(dst)?, place(src)?) {
        (Place::Device, Place::Device) if is_async => device_to_device(&stream, dst, src, bytes),
        (Place::Device, Place::Device) => device_to_device_now(&stream, dst, src, bytes),
        (Place::Device, _) if is_async => {
            to_device(&stream, dst, HostPtr::from_address(src), bytes)
        }
        (Place::Device, _) => to_device_now(&stream, dst, HostPtr::from_address(src), bytes),
        (to, Place::Device) => to_host(
            &stream,
            HostPtr::from_address(dst),
            src,
            bytes,
            is_async && to == Place::Pinned,
        ),
        _ => {
            stream.synchronize()?;
            HostPtr::from_address(dst).copy_from(HostPtr::from_address(src), bytes)
        }
    }
}

pub(crate) fn cuMemcpy(mode: StreamMode, dst: u64, src: u64, bytes: usize) -> CuResult {
    any_to_any(mode, dst, src, bytes, 0, false)
}

pub(crate) fn cuMemcpyAsync(
    mode: StreamMode,
    dst: u64,
    src: u64,
    bytes: usize,
    handle: u64,
) -> CuResult {
    any_to_any(mode, dst, src, bytes, handle, true)
}

pub(crate) fn cuMemcpyPeer(
    mode: StreamMode,
    dst: u64,
    _dst_context: u64,
    src: u64,
    _src_context: u64,
    bytes: usize,
) -> CuResult {
    any_to_any(mode, dst, src, bytes, 0, false)
}

pub(crate) fn cuMemcpyPeerAsync(
    mode: StreamMode,
    dst: u64,
    _dst_context: u64,
    src: u64,
    _src_context: u64,
    bytes: usize,
    handle: u64,
) -> CuResult {
    any_to_any(mode, dst, src, bytes, handle, true)
}

pub(crate) fn cuMemcpyHtoD_v2(mode: StreamMode, dst: u64, src: HostPtr, bytes: usize) -> CuResult {
    to_device_now(&*stream(mode, 0)?, dst, src, bytes)
}

pub(crate) fn cuMemcpyHtoDAsync_v2(
    mode: StreamMode,
    dst: u64,
    src: HostPtr,
    bytes: usize,
    handle: u64,
) -> CuResult {
    to_device(&*stream(mode, handle)?, dst, src, bytes)
}

pub(crate) fn cuMemcpyDtoH_v2(mode: StreamMode, dst: HostPtr, src: u64, bytes: usize) -> CuResult {
    to_host(&*stream(mode, 0)?, dst, src, bytes, false)
}

pub(crate) fn cuMemcpyDtoHAsync_v2(
    mode: StreamMode,
    dst: HostPtr,
    src: u64,
    bytes: usize,
    handle: u64,
) -> CuResult {
    let lands_later = place(dst.address())? == Place::Pinned;
    to_host(&*stream(mode, handle)?, dst, src, bytes, lands_later)
}

pub(crate) fn cuMemcpyDtoD_v2(mode: StreamMode, dst: u64, src: u64, bytes: usize) -> CuResult {
    device_to_device_now(&*stream(mode, 0)?, dst, src, bytes)
}

pub(crate) fn cuMemcpyDtoDAsync_v2(
    mode: StreamMode,
    dst: u64,
    src: u64,
    bytes: usize,
    handle: u64,
) -> CuResult {
    device_to_device(&*stream(mode, handle)?, dst, src, bytes)
}

#[cfg(test)]
mod tests {
    use super::{INLINE_BYTES_MAX, PIECE_BYTES, WHOLE_BYTES_MAX, pieces};

    #[test]
    fn pieces_are_the_whole_and_never_short() {
        let sizes = [
            0,
            1,
            600,
            INLINE_BYTES_MAX + 1,
            PIECE_BYTES,
            WHOLE_BYTES_MAX,
        ];
        for whole in sizes {
            let expected = (whole > 0).then_some((0, whole));
            assert_eq!(pieces(whole).collect::<Vec<_>>(), Vec::from_iter(expected));
        }
        for more in [1, INLINE_BYTES_MAX, INLINE_BYTES_MAX + 1, PIECE_BYTES] {
            let bytes = 5 * PIECE_BYTES + more;
            let mut end = 0;
            for (at, count) in pieces(bytes) {
                assert_eq!(at, end, "no gap");
                assert!(count > INLINE_BYTES_MAX && count <= PIECE_BYTES + INLINE_BYTES_MAX);
                end += count;
            }
            assert_eq!(end, bytes);
        }
    }
}
