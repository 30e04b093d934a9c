//! Bytes of shared memory on their way from the server.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::sync::Arc;

use farcall_marshal::record::INLINE_BYTES_MAX;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::CuMemcpyDtoHAsyncV2;

use super::works::Waited;
use super::{Region, State, hold, is_used, record};
use crate::context::Context;
use crate::ptr::HostPtr;
use crate::session::Session;
use crate::stream::Stream;
use crate::ticket::{Pending, Sink};

/// After which point bytes are fetched.
#[derive(Clone, Copy)]
pub(crate) enum Behind<'a> {
    /// All that was sent on this stream.
    Stream(&'a Stream),
    /// This event, as it was recorded last, which was on this stream.
    Event(&'a Stream, u64),
}

impl Behind<'_> {
    fn waited(&self) -> Waited {
        match self {
            Self::Stream(stream) | Self::Event(stream, _) => stream.waited(),
        }
    }
}

/// Bytes of all regions on their way. Whoever asked takes them over when they have come, or drops this: the session has
/// it until then, as the bytes land in it.
pub(crate) struct Fetch {
    /// The higher it is the newer are the bytes, but for what a fetch brings that waits for a point, if another was asked
    /// for meanwhile.
    number: u64,
    /// Whether it waits for a point.
    is_behind: bool,
    waited: Waited,
    stamp: u64,
    parts: Vec<Part>,
}

/// Of one region.
struct Part {
    /// Where the device has it.
    region: u64,
    /// Where they land, not looked at before they have.
    bytes: Box<[u8]>,
    at: HostPtr,
    pending: Arc<Pending>,
}

impl Fetch {
    /// What has to be there before they can be taken over.
    pub(crate) fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.parts.iter().map(|part| &*part.pending)
    }

    pub(crate) fn is_done(&self) -> bool {
        self.pending().all(Pending::is_done)
    }

    /// Whether it waits for a point that may come after this one.
    fn is_held_up_beyond(&self, waited: Waited, stamp: u64) -> bool {
        let is_before = self.waited == waited && self.stamp <= stamp;
        self.is_behind && !is_before && !self.is_done()
    }
}

/// The program is about to wait for a point with this stamp: asks for what the device will have changed by then, so
/// that the bytes come with the answer.
pub(crate) fn fetch_behind(
    context: &'static Context,
    stamp: u64,
    behind: Behind<'_>,
) -> CuResult<Option<Arc<Fetch>>> {
    let session = context.session();
    if !is_used(session) {
        return Ok(None);
    }
    let mut state = session.coherent.state.lock();
    let waited = behind.waited();
    // Nobody is to wait for a later point, or one of another stream, that was asked about before: then the bytes come after
    // the wait.
    let holds_up = |fetch: &Arc<Fetch>| fetch.is_held_up_beyond(waited, stamp);
    if !state.works.are_due(waited, stamp) || state.fetches.iter().any(holds_up) {
        return Ok(None);
    }
    let event = match behind {
        Behind::Event(_, event) => event,
        Behind::Stream(stream) => record(stream)?,
    };
    state.ask(Some(event), waited, stamp).map(Some)
}

/// The program has waited for the device up to this stamp: what the device changed comes back, if it did not come
/// with the answer.
pub(crate) fn after_wait(session: &Session, waited: Waited, stamp: u64) -> CuResult {
    if !is_used(session) {
        return Ok(());
    }
    let fetch = {
        let mut state = session.coherent.state.lock();
        if !state.works.are_due(waited, stamp) {
            return Ok(());
        }
        state.ask(None, waited, stamp)?
    };
    let pending: Vec<&Pending> = fetch.pending().collect();
    session.wait_all(&pending)?;
    take_over(session, &fetch)
}

/// Takes over what has come. Nothing of a fetch that may have older bytes than one that was asked for later: [`after_wait`]
/// asks again then.
pub(crate) fn take_over(session: &Session, fetch: &Arc<Fetch>) -> CuResult {
    let mut guard = session.coherent.state.lock();
    let state = &mut *guard;
    state.fetches.retain(|other| !Arc::ptr_eq(other, fetch));
    let is_in_order = !fetch.is_behind || state.asked_now < fetch.number;
    for part in &fetch.parts {
        match part.pending.take().0 {
            CuStatus::SUCCESS => {}
            status => return Err(status),
        }
        if !is_in_order {
            continue;
        }
        let of_part = |region: &&mut Region| region.start == part.region;
        let Some(region) = state.regions.iter_mut().find(of_part) else {
            continue;
        };
        if region.mirror.len() != part.bytes.len() {
            continue;
        }
        let host = HostPtr::from_address(region.host);
        let new = part.at.bytes(part.bytes.len())?;
        region
            .mirror
            .take(fetch.number, new, |at, bytes| host.offset(at).write(bytes))?;
    }
    if is_in_order {
        state.works.came(fetch.waited, fetch.stamp);
    }
    state.forget_sent();
    Ok(())
}

impl State {
    /// Asks for the bytes of all regions, as they are behind an event or as they are now.
    fn ask(&mut self, behind: Option<u64>, waited: Waited, stamp: u64) -> CuResult<Arc<Fetch>> {
        self.forget_abandoned();
        if let Some(event) = behind {
            let contexts: BTreeSet<u32> = self.regions.iter().map(|r| r.context.id).collect();
            for lanes in contexts.iter().filter_map(|id| self.lanes.get(id)) {
                hold(&lanes.behind, event)?;
                // What the program changed before is in the bytes that come.
                lanes.now.wait_for_uploads(lanes.now.session())?;
                hold(&lanes.behind, record(&lanes.now)?)?;
            }
        }
        let mut fetch = Fetch {
            number: self.asked + 1,
            is_behind: behind.is_some(),
            waited,
            stamp,
            parts: Vec::new(),
        };
        let mut asked = Ok(());
        for region in &self.regions {
            let Some(lanes) = self.lanes.get(&region.context.id) else {
                continue;
            };
            let lane = match behind {
                Some(_) => &lanes.behind,
                None => &lanes.now,
            };
            match region.ask(lane) {
                Ok(part) => fetch.parts.push(part),
                Err(error) => asked = Err(error),
            }
        }
        // Even where some could not be asked for: what lands needs its place.
        let fetch = Arc::new(fetch);
        self.asked = fetch.number;
        if !fetch.is_behind {
            self.asked_now = fetch.number;
        }
        self.fetches.push(Arc::clone(&fetch));
        asked.map(|()| fetch)
    }

    /// Drops what has come and nobody takes over.
    pub(super) fn forget_abandoned(&mut self) {
        self.fetches
            .retain(|fetch| Arc::strong_count(fetch) > 1 || !fetch.is_done());
        self.forget_sent();
    }

    fn forget_sent(&mut self) {
        let oldest = self.fetches.first().map(|fetch| fetch.number);
        for region in &mut self.regions {
            region.mirror.forget_sent(oldest);
        }
    }
}

impl Region {
    fn ask(&self, lane: &Stream) -> CuResult<Part> {
        let session = lane.session();
        let mut bytes = vec![0_u8; self.mirror.len()].into_boxed_slice();
        let at = HostPtr::from_address(bytes.as_mut_ptr() as u64);
        let bulk = if bytes.len() <= INLINE_BYTES_MAX {
            0
        } else {
            session.new_id()
        };
        let record = CuMemcpyDtoHAsyncV2 {
            src: self.start,
            count: bytes.len() as u64,
            stream: lane.id,
            bulk,
        };
        let sink = Sink::Copy {
            to: at,
            len: bytes.len(),
            bulk,
            later: true,
        };
        lane.wait_for_uploads(session)?;
        let pending = session.request(lane.context.id, &record, sink)?;
        Ok(Part {
            region: self.start,
            bytes,
            at,
            pending,
        })
    }
}
