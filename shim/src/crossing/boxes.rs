//! Copies of boxes with ends on servers that are not the stream's, or not the same.
#![forbid(unsafe_code)]

use farcall_marshal::status::{CuResult, CuStatus};

use super::{abroad, copy, finish_at, owner, run_at};
use crate::api;
use crate::box_copy::BoxCopy;
use crate::context::Context;
use crate::stream::Stream;

/// Does a copy wherever its ends are, in the order of a stream.
///
/// # Errors
/// Those of [`BoxCopy::run`].
pub(crate) fn copy_box(of: &BoxCopy, stream: &Stream, is_async: bool) -> CuResult {
    let home = |address| abroad(stream, address);
    let (dst, src) = match (of.dst.is_host, of.src.is_host) {
        (true, true) => return of.run(stream, is_async),
        (false, true) => (home(of.dst.address)?, None),
        (true, false) => (None, home(of.src.address)?),
        (false, false) if is_between_servers(of)? => return pass(of, stream),
        (false, false) => (home(of.dst.address)?, None),
    };
    match dst.or(src) {
        None => of.run(stream, is_async),
        Some(owner) => {
            run_at(owner, stream, |lane| of.run(lane, true))?;
            // The program waits for its own stream, and bytes of another server's may come later than that is done.
            if is_async && !of.dst.is_host {
                Ok(())
            } else {
                finish_at(owner)
            }
        }
    }
}

/// Whether an end is memory of another server than the stream's.
pub(crate) fn is_abroad(of: &BoxCopy, stream: &Stream) -> CuResult<bool> {
    for end in [&of.dst, &of.src] {
        if !end.is_host && abroad(stream, end.address)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_between_servers(of: &BoxCopy) -> CuResult<bool> {
    let (dst, src) = (owner(of.dst.address)?, owner(of.src.address)?);
    Ok(!std::ptr::eq(dst.session(), src.session()))
}

/// From one server's device to another's: only rows without gaps travel.
fn pass(of: &BoxCopy, stream: &Stream) -> CuResult {
    let len = usize::try_from(of.bytes()?).map_err(|_| CuStatus::OUT_OF_MEMORY)?;
    if len == 0 {
        return Ok(());
    }
    if of.is_plain(&of.dst) && of.is_plain(&of.src) {
        return copy(stream, of.dst.address, of.src.address, len);
    }
    let (to, from) = (owner(of.dst.address)?, owner(of.src.address)?);
    let mut gathered = None;
    at(from, stream, |lane| {
        let passage = api::passage(lane, len)?;
        gathered = Some(passage);
        of.with_dst(of.plain_end(passage.start)).run(lane, true)
    })?;
    let mut arrived = None;
    at(to, stream, |lane| {
        arrived = Some(api::passage(lane, len)?);
        Ok(())
    })?;
    let (Some(gathered), Some(arrived)) = (gathered, arrived) else {
        return Err(CuStatus::UNKNOWN);
    };
    copy(stream, arrived.start, gathered.start, len)?;
    at(to, stream, |lane| {
        of.with_src(of.plain_end(arrived.start)).run(lane, true)?;
        api::end_passage(lane, &arrived)
    })?;
    at(from, stream, |lane| api::end_passage(lane, &gathered))
}

fn at(
    owner: &'static Context,
    stream: &Stream,
    work: impl FnOnce(&Stream) -> CuResult,
) -> CuResult {
    if std::ptr::eq(owner.session(), stream.session()) {
        work(stream)
    } else {
        run_at(owner, stream, work)
    }
}
