//! Copies between the client and the device, through pinned memory.
//!
//! Each device has one slab. Bytes that came in a record, transfers of up to [`REGION_BYTES_MAX`] and answers take a
//! region of it; longer ones are received or gathered in plain memory and cross the slab in pieces of
//! [`PIECE_BYTES`], so that pinned memory stays bounded. A copy that finds no room waits in its stream's queue, and a
//! transfer that finds none is not received: the client's bulk connection stands still then, the loop does not.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use super::abroad::near;
use super::driver::{Flow, Landing, Region, Slab, receive, receive_staged};
use super::issue::{Later, Progress, Shared};
use super::op::Op;
use super::sender::{Job, Payload, answer_read};
use super::state::{ContextKey, Lane, LaneKey, State};
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::limits::{DISCARD_BYTES_MAX, STAGING_BYTES_MAX};
use crate::sys::staging::Staging;

/// Pinned memory for copies of a device.
const SLAB_BYTES: usize = 32 << 20;
/// Longest transfer that has pinned memory for itself.
const REGION_BYTES_MAX: usize = 8 << 20;
/// Longer ones cross the slab in pieces of this size.
const PIECE_BYTES: usize = 4 << 20;
/// Copies whose memory waits for a fence that nobody has asked for yet.
const PENDING_MAX: usize = 64;
const PENDING_BYTES_MAX: usize = 1 << 20;

/// A transfer from the client.
#[derive(Debug)]
pub(crate) struct Transfer {
    id: u64,
    count: u64,
    buffer: Mutex<Buffer>,
}

#[derive(Debug)]
enum Buffer {
    /// There was no room to receive it.
    Unposted,
    /// On its way.
    Posted,
    Pinned(Region),
    Staged(Arc<Staging>),
    /// Came with another length, or will not come.
    Failed(Option<usize>),
    /// Used, or thrown away.
    Gone,
}

/// A transfer that now has room; to be received when the state is not locked.
#[derive(Debug)]
pub(crate) struct Arrival {
    transfer: Arc<Transfer>,
    room: Room,
}

#[derive(Debug)]
enum Room {
    Pinned(Region),
    Staged(usize),
}

impl Transfer {
    /// One of `count` bytes.
    pub(crate) fn new(id: u64, count: u64) -> Arc<Self> {
        Arc::new(Self {
            id,
            count,
            buffer: Mutex::new(Buffer::Unposted),
        })
    }

    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Whether it has to be taken off the bulk plane by somebody else; it is not received any more then.
    pub(crate) fn take_unposted(&self) -> bool {
        let mut buffer = self.buffer.lock();
        let unposted = matches!(*buffer, Buffer::Unposted);
        if unposted {
            *buffer = Buffer::Gone;
        }
        unposted
    }

    fn failure(&self, came: Option<usize>) -> Failure {
        let (id, count) = (self.id, self.count);
        match came {
            Some(bytes) => Failure::new(
                CuStatus::INVALID_VALUE,
                format!("bulk transfer {id} has {bytes} bytes, its copy {count}"),
            ),
            None => Failure::new(
                CuStatus::UNKNOWN,
                format!("bulk transfer {id} did not come"),
            ),
        }
    }

    fn came(&self, bytes: Option<usize>, arrived: Buffer) {
        let whole = bytes.is_some_and(|bytes| bytes as u64 == self.count);
        *self.buffer.lock() = if whole {
            arrived
        } else {
            Buffer::Failed(bytes)
        };
    }
}

/// A long read being put together.
#[derive(Debug)]
pub(crate) struct Gathering {
    bytes: Mutex<Vec<u8>>,
}

impl Shared {
    /// Lets a transfer be received, in its turn.
    pub(crate) fn announce(
        &self,
        state: &mut State,
        later: &mut Later,
        key: ContextKey,
        transfer: &Arc<Transfer>,
    ) {
        state.arriving.push_back((key, transfer.clone()));
        self.place_waiting(state, later);
    }

    /// Gives room to transfers in the order of their announcement: the bulk plane brings them in that order.
    pub(crate) fn place_waiting(&self, state: &mut State, later: &mut Later) {
        while let Some((key, transfer)) = state.arriving.front().cloned() {
            if matches!(*transfer.buffer.lock(), Buffer::Unposted) {
                let Some(room) = room(state, key, transfer.count) else {
                    return;
                };
                *transfer.buffer.lock() = Buffer::Posted;
                later.arrivals.push(Arrival { transfer, room });
            }
            state.arriving.pop_front();
        }
    }

    /// Receives a transfer. The state must not be locked.
    pub(crate) fn expect(&self, arrival: Arrival) {
        let Arrival { transfer, room } = arrival;
        let (this, id) = (self.weak(), transfer.id);
        match room {
            Room::Pinned(region) => receive(&*self.outbox, id, region, move |region, came| {
                transfer.came(came, Buffer::Pinned(region));
                if let Some(this) = this.upgrade() {
                    this.pump();
                }
            }),
            Room::Staged(len) => {
                let staging = Arc::new(Staging::new(len));
                let held = staging.clone();
                receive_staged(&*self.outbox, id, &staging, len, move || {
                    transfer.came(held.contents().map(<[u8]>::len), Buffer::Staged(held));
                    if let Some(this) = this.upgrade() {
                        this.pump();
                    }
                });
            }
        }
    }

    /// Host to device, the bytes at hand.
    pub(crate) fn write<'a>(
        &self,
        state: &mut State,
        lane: LaneKey,
        dst: u64,
        data: Cow<'a, [u8]>,
    ) -> Progress<'a> {
        let extent = match state.memory.extent(dst, data.len() as u64) {
            Ok(extent) => extent,
            Err(status) => {
                return Progress::Given(Err(Failure::new(
                    status,
                    format!("no {} bytes at {dst:#x}", data.len()),
                )));
            }
        };
        match self.region(state, lane, data.len(), Flow::Up) {
            Err(status) => Progress::Given(Err(status.into())),
            Ok(None) => Progress::Blocked(Op::Write { dst, data }),
            Ok(Some(mut region)) => {
                region.write(0, &data);
                let outcome = near(state, lane, dst, |stream| stream.upload(extent, &region));
                Progress::Given(
                    self.keep(state, lane, region)
                        .and(outcome)
                        .map_err(Failure::from),
                )
            }
        }
    }

    /// Host to device over the bulk plane.
    pub(crate) fn upload<'a>(
        &self,
        state: &mut State,
        lane: LaneKey,
        dst: u64,
        transfer: Arc<Transfer>,
        at: usize,
    ) -> Progress<'a> {
        let buffer = std::mem::replace(&mut *transfer.buffer.lock(), Buffer::Gone);
        match buffer {
            Buffer::Unposted | Buffer::Posted => {
                *transfer.buffer.lock() = buffer;
                Progress::Blocked(Op::Upload { dst, transfer, at })
            }
            Buffer::Failed(came) => Progress::Given(Err(transfer.failure(came))),
            Buffer::Gone => Progress::Given(Err(transfer.failure(None))),
            Buffer::Pinned(region) => {
                let bytes = region.bytes();
                let outcome = state.memory.extent(dst, bytes as u64).and_then(|extent| {
                    near(state, lane, dst, |stream| stream.upload(extent, &region))
                });
                let outcome = self.keep(state, lane, region).and(outcome);
                Progress::Given(
                    outcome.map_err(|status| {
                        Failure::new(status, format!("{bytes} bytes to {dst:#x}"))
                    }),
                )
            }
            Buffer::Staged(staging) => match self.upload_pieces(state, lane, dst, &staging, at) {
                Ok(None) => {
                    state.staged_bytes -= usize::try_from(transfer.count)
                        .unwrap_or(0)
                        .min(state.staged_bytes);
                    Progress::Given(Ok(()))
                }
                Ok(Some(at)) => {
                    *transfer.buffer.lock() = Buffer::Staged(staging);
                    Progress::Blocked(Op::Upload { dst, transfer, at })
                }
                Err(status) => {
                    state.staged_bytes -= usize::try_from(transfer.count)
                        .unwrap_or(0)
                        .min(state.staged_bytes);
                    Progress::Given(Err(Failure::new(
                        status,
                        format!("{} bytes to {dst:#x}", transfer.count),
                    )))
                }
            },
        }
    }

    /// Device to host. `of`: the bulk transfer, how much has been given to the driver, and where it is gathered.
    pub(crate) fn read<'a>(
        &self,
        state: &mut State,
        lane: LaneKey,
        reply: Reply,
        src: u64,
        count: u64,
        of: (u64, usize, Option<Arc<Gathering>>),
    ) -> Progress<'a> {
        let (bulk, at, gathering) = of;
        let outcome = state.memory.extent(src, count);
        let Ok(extent) = outcome else {
            return Progress::Given(Err(Failure::new(
                CuStatus::INVALID_VALUE,
                format!("no {count} bytes at {src:#x}"),
            )));
        };
        if extent.bytes() > REGION_BYTES_MAX {
            return self.read_pieces(state, lane, reply, (src, count), (bulk, at, gathering));
        }
        let region = match self.region(state, lane, extent.bytes(), Flow::Down) {
            Err(status) => return Progress::Given(Err(status.into())),
            Ok(None) => {
                return Progress::Blocked(Op::Read {
                    src,
                    count,
                    bulk,
                    at,
                    gathering,
                });
            }
            Ok(Some(region)) => region,
        };
        let (landing, key, unanswered) = match self.land(state, lane, region, extent) {
            Ok(landed) => landed,
            Err(status) => return Progress::Given(Err(status.into())),
        };
        let (this, fence) = (self.weak(), landing.fence().clone());
        let landed = move |status: CuStatus| {
            let Some(this) = this.upgrade() else { return };
            match this.judge(key, status) {
                CuStatus::SUCCESS if bulk != 0 => this.sender.send(Job {
                    id: bulk,
                    payload: Payload::Landing(landing),
                    reply,
                    unanswered,
                }),
                CuStatus::SUCCESS => {
                    answer_read(&*this.outbox, reply, landing.bytes().unwrap_or_default());
                    unanswered.fetch_sub(1, Ordering::Release);
                }
                error => {
                    this.outbox.status(reply, error);
                    unanswered.fetch_sub(1, Ordering::Release);
                }
            }
            this.pump();
        };
        self.completion.when(vec![fence], Box::new(landed));
        Progress::Answering
    }

    /// A region of the stream's slab, which is made by the first call; `None` while there is no room.
    fn region(
        &self,
        state: &mut State,
        lane: LaneKey,
        bytes: usize,
        flow: Flow,
    ) -> CuResult<Option<Region>> {
        let key = state
            .lanes
            .get(&lane)
            .map(|lane| lane.key)
            .ok_or(CuStatus::INVALID_HANDLE)?;
        let region = slab(state, key)?.take(bytes, flow);
        if region.is_none() {
            // What only waits for a fence that nobody asked for gets one.
            let holds = |(at, lane): (&LaneKey, &Lane)| (!lane.pending.is_empty()).then_some(*at);
            let lanes: Vec<LaneKey> = state.lanes.iter().filter_map(holds).collect();
            for lane in lanes {
                let is_own = state.lanes.get(&lane).is_some_and(|lane| lane.key == key);
                match self.fence(state, lane) {
                    Err(status) if is_own => return Err(status),
                    // What another context has come to it tells itself.
                    _ => {}
                }
            }
        }
        Ok(region)
    }

    /// Keeps a region until the device has read it.
    fn keep(&self, state: &mut State, lane: LaneKey, region: Region) -> CuResult {
        let Some(held) = state.lanes.get_mut(&lane) else {
            return Ok(());
        };
        held.pending.push(region);
        let bytes: usize = held.pending.iter().map(Region::bytes).sum();
        if bytes > PENDING_BYTES_MAX || held.pending.len() > PENDING_MAX {
            self.fence(state, lane)?;
        }
        Ok(())
    }

    /// Copies the rest of a staged upload; where it stopped for lack of room.
    fn upload_pieces(
        &self,
        state: &mut State,
        lane: LaneKey,
        dst: u64,
        staging: &Staging,
        at: usize,
    ) -> CuResult<Option<usize>> {
        let data = staging.contents().unwrap_or_default();
        let extent = state.memory.extent(dst, data.len() as u64)?;
        let mut at = at;
        while let Some(rest) = data.get(at..).filter(|rest| !rest.is_empty()) {
            let piece = rest.get(..PIECE_BYTES).unwrap_or(rest);
            let Some(mut region) = self.region(state, lane, piece.len(), Flow::Up)? else {
                return Ok(Some(at));
            };
            let part = extent
                .part(at, piece.len())
                .ok_or(CuStatus::INVALID_VALUE)?;
            region.write(0, piece);
            let outcome = near(state, lane, dst, |stream| stream.upload(part, &region));
            self.keep(state, lane, region).and(outcome)?;
            at += piece.len();
        }
        Ok(None)
    }

    fn read_pieces<'a>(
        &self,
        state: &mut State,
        lane: LaneKey,
        reply: Reply,
        from: (u64, u64),
        of: (u64, usize, Option<Arc<Gathering>>),
    ) -> Progress<'a> {
        let ((src, count), (bulk, mut at, gathering)) = (from, of);
        let blocked = |at, gathering| {
            Progress::Blocked(Op::Read {
                src,
                count,
                bulk,
                at,
                gathering,
            })
        };
        let len = usize::try_from(count).unwrap_or(usize::MAX);
        let gathering = match gathering {
            Some(gathering) => gathering,
            None if !may_stage(state.gathered_bytes, len) => return blocked(at, None),
            None => {
                state.gathered_bytes += len;
                Arc::new(Gathering {
                    bytes: Mutex::new(vec![0; len]),
                })
            }
        };
        while at < len {
            let bytes = PIECE_BYTES.min(len - at);
            let landed = match self.region(state, lane, bytes, Flow::Down) {
                Ok(None) => return blocked(at, Some(gathering)),
                Ok(Some(region)) => {
                    let extent = state.memory.extent(src + at as u64, bytes as u64);
                    extent.and_then(|extent| self.land(state, lane, region, extent))
                }
                Err(status) => Err(status),
            };
            let (landing, key, unanswered) = match landed {
                Ok(landed) => landed,
                Err(status) => {
                    state.gathered_bytes -= len.min(state.gathered_bytes);
                    return Progress::Given(Err(status.into()));
                }
            };
            let is_last = at + bytes == len;
            let job = is_last.then_some((bulk, reply, len));
            self.gather(key, landing, (gathering.clone(), at), unanswered, job);
            at += bytes;
        }
        Progress::Answering
    }

    /// Puts a piece of a long read where it belongs when it has landed; sends the whole behind the last one.
    fn gather(
        &self,
        key: ContextKey,
        landing: Landing,
        to: (Arc<Gathering>, usize),
        unanswered: Arc<AtomicUsize>,
        last: Option<(u64, Reply, usize)>,
    ) {
        let (this, fence, (gathering, at)) = (self.weak(), landing.fence().clone(), to);
        let landed = move |status: CuStatus| {
            let Some(this) = this.upgrade() else { return };
            let status = this.judge(key, status);
            let bytes = landing.bytes().unwrap_or_default();
            if let Some(place) = gathering.bytes.lock().get_mut(at..at + bytes.len()) {
                place.copy_from_slice(bytes);
            }
            drop(landing);
            let Some((bulk, reply, len)) = last else {
                unanswered.fetch_sub(1, Ordering::Release);
                return this.pump();
            };
            let mut state = this.state();
            state.gathered_bytes -= len.min(state.gathered_bytes);
            drop(state);
            if status == CuStatus::SUCCESS {
                let bytes = std::mem::take(&mut *gathering.bytes.lock());
                this.sender.send(Job {
                    id: bulk,
                    payload: Payload::Bytes(bytes),
                    reply,
                    unanswered,
                });
            } else {
                this.outbox.status(reply, status);
                unanswered.fetch_sub(1, Ordering::Release);
            }
            this.pump();
        };
        self.completion.when(vec![fence], Box::new(landed));
    }

    fn land(
        &self,
        state: &mut State,
        lane: LaneKey,
        region: Region,
        extent: super::driver::Extent,
    ) -> CuResult<(Landing, ContextKey, Arc<AtomicUsize>)> {
        let landing = near(state, lane, extent.addr(), |stream| {
            stream.download(region, extent)
        })?;
        let held = state.lanes.get_mut(&lane).ok_or(CuStatus::INVALID_HANDLE)?;
        self.attach(held, landing.fence());
        held.unanswered.fetch_add(1, Ordering::Relaxed);
        Ok((landing, held.key, held.unanswered.clone()))
    }

    /// Makes a fence the stream's last one; the regions that waited for one go with it.
    pub(crate) fn attach(&self, lane: &mut Lane, fence: &Arc<super::driver::Fence>) {
        lane.fence = Some(fence.clone());
        if lane.pending.is_empty() {
            return;
        }
        let (regions, this) = (std::mem::take(&mut lane.pending), self.weak());
        let free = move |_| {
            drop(regions);
            if let Some(this) = this.upgrade() {
                this.pump();
            }
        };
        self.completion.when(vec![fence.clone()], Box::new(free));
    }
}

/// The slab of a context's device, made by the first call.
pub(crate) fn slab(state: &mut State, key: ContextKey) -> CuResult<Arc<Slab>> {
    let context = state.contexts.get(&key).ok_or(CuStatus::INVALID_CONTEXT)?;
    match state.slabs.entry(context.owner.device) {
        Entry::Occupied(slab) => Ok(slab.get().clone()),
        Entry::Vacant(place) => {
            let slab = Slab::new(&context.owner.context, SLAB_BYTES)?;
            Ok(place.insert(slab).clone())
        }
    }
}

fn room(state: &mut State, key: ContextKey, count: u64) -> Option<Room> {
    let len = usize::try_from(count).ok()?;
    if len <= REGION_BYTES_MAX {
        // Without pinned memory it goes through plain memory: the copy itself will say what is wrong.
        match slab(state, key).map(|slab| slab.take(len, Flow::Up)) {
            Ok(Some(region)) => return Some(Room::Pinned(region)),
            Ok(None) => return None,
            Err(_) => {}
        }
    }
    if !may_stage(state.staged_bytes, len) {
        return None;
    }
    state.staged_bytes += len;
    Some(Room::Staged(len))
}

/// Takes a transfer off the bulk plane that nobody wants, so that those behind it can come.
pub(crate) fn discard(outbox: &dyn Outbox, id: u64, count: u64) {
    // A longer one ends the session: the transport takes no more than was posted.
    let len = usize::try_from(count.min(DISCARD_BYTES_MAX)).unwrap_or(0);
    receive_staged(outbox, id, &Arc::new(Staging::new(len)), len, || ());
}

/// Whether `len` bytes more may be in plain memory where `bytes` are; one transfer of any size always may. What goes up and what comes
/// down is counted apart, so that neither waits for the other.
fn may_stage(bytes: usize, len: usize) -> bool {
    bytes == 0 || bytes.saturating_add(len) <= STAGING_BYTES_MAX / 2
}
