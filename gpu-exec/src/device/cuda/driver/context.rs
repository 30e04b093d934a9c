//! Contexts, streams, events, fences.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use super::table::{Driver, Raw, check};

const EVENT_DISABLE_TIMING: u32 = 2;
/// Events kept for the next fence.
const SPARE_EVENTS_MAX: usize = 256;

thread_local! {
    /// Number of the context that is current in this thread, so that most calls need not set it.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// A context of the driver.
#[derive(Debug)]
pub(crate) struct Context {
    pub(super) driver: &'static Driver,
    pub(super) raw: Raw,
    pub(super) device: i32,
    /// Never reused, unlike `raw`.
    id: u64,
    primary: bool,
    spare_events: Mutex<Vec<Raw>>,
}

impl Context {
    /// Retains the primary context of a device; `flags` apply if nobody has it yet.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn primary(
        driver: &'static Driver,
        ordinal: u32,
        flags: u32,
    ) -> CuResult<Arc<Self>> {
        let (device, mut raw) = (driver.device(ordinal)?, 0);
        // SAFETY: a device of the driver.
        let status = unsafe { (driver.table.cuDevicePrimaryCtxSetFlags_v2.call())(device, flags) };
        if status != 0 && CuStatus(status) != CuStatus::PRIMARY_CONTEXT_ACTIVE {
            return Err(CuStatus(status));
        }
        // SAFETY: a place for one handle.
        check(unsafe { (driver.table.cuDevicePrimaryCtxRetain.call())(&raw mut raw, device) })?;
        Ok(Self::wrap(driver, raw, device, true))
    }

    /// Makes a context.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn create(driver: &'static Driver, ordinal: u32, flags: u32) -> CuResult<Arc<Self>> {
        let (device, mut raw) = (driver.device(ordinal)?, 0);
        // SAFETY: a place for one handle.
        check(unsafe { (driver.table.cuCtxCreate_v2.call())(&raw mut raw, flags, device) })?;
        // The driver has made it current here.
        CURRENT.set(0);
        Ok(Self::wrap(driver, raw, device, false))
    }

    fn wrap(driver: &'static Driver, raw: Raw, device: i32, primary: bool) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(1);
        let id = IDS.fetch_add(1, Ordering::Relaxed);
        Arc::new(Self {
            driver,
            raw,
            device,
            id,
            primary,
            spare_events: Mutex::new(Vec::new()),
        })
    }

    /// Whether both are on one device.
    pub(crate) fn is_on_device_of(&self, other: &Self) -> bool {
        self.device == other.device
    }

    /// Makes it the calling thread's current context.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn make_current(&self) -> CuResult {
        if CURRENT.get() == self.id {
            return Ok(());
        }
        // SAFETY: the context lives as long as self.
        check(unsafe { (self.driver.table.cuCtxSetCurrent.call())(self.raw) })?;
        CURRENT.set(self.id);
        Ok(())
    }

    /// `cuCtxSetLimit`.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn set_limit(&self, limit: u32, value: u64) -> CuResult {
        self.make_current()?;
        let value = usize::try_from(value).map_err(|_| CuStatus::INVALID_VALUE)?;
        // SAFETY: plain numbers, which the driver checks.
        check(unsafe { (self.driver.table.cuCtxSetLimit.call())(limit, value) })
    }

    /// Waits for everything in the context. Blocks: only where a context ends.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn synchronize(&self) -> CuResult {
        self.make_current()?;
        // SAFETY: no parameters.
        check(unsafe { (self.driver.table.cuCtxSynchronize.call())() })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        for raw in self.spare_events.get_mut().drain(..) {
            // SAFETY: an event of ours that nobody else knows.
            unsafe { (self.driver.table.cuEventDestroy_v2.call())(raw) };
        }
        if self.primary {
            // SAFETY: retained once by `primary`; every object of the context held it and is gone.
            unsafe { (self.driver.table.cuDevicePrimaryCtxRelease_v2.call())(self.device) };
        } else {
            // SAFETY: made by `create`; every object of the context held it and is gone.
            unsafe { (self.driver.table.cuCtxDestroy_v2.call())(self.raw) };
        }
    }
}

/// A stream, or a context's legacy default stream.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(super) context: Arc<Context>,
    /// 0: the legacy stream.
    pub(super) raw: Raw,
}

impl Stream {
    /// The stream that synchronizes with the context's blocking streams.
    pub(crate) fn legacy(context: &Arc<Context>) -> Self {
        Self {
            context: context.clone(),
            raw: 0,
        }
    }

    /// `cuStreamCreateWithPriority`.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn create(context: &Arc<Context>, flags: u32, priority: i32) -> CuResult<Self> {
        context.make_current()?;
        let mut raw = 0;
        // SAFETY: a place for one handle.
        check(unsafe {
            (context.driver.table.cuStreamCreateWithPriority.call())(&raw mut raw, flags, priority)
        })?;
        Ok(Self {
            context: context.clone(),
            raw,
        })
    }

    /// Its context.
    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// `NOT_READY` while work is not done. Does not block.
    ///
    /// # Errors
    /// `NOT_READY`, and what the work failed with.
    pub(crate) fn query(&self) -> CuResult {
        self.context.make_current()?;
        // SAFETY: a live stream of the current context.
        check(unsafe { (self.context.driver.table.cuStreamQuery.call())(self.raw) })
    }

    /// Records an event behind everything issued so far.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn record(&self, event: &Event) -> CuResult {
        self.context.make_current()?;
        // SAFETY: live handles.
        check(unsafe { (self.context.driver.table.cuEventRecord.call())(event.raw, self.raw) })
    }

    /// Lets what is issued from now on wait for the last record of an event.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn wait(&self, event: &Event) -> CuResult {
        self.context.make_current()?;
        // SAFETY: live handles; no flags.
        check(unsafe {
            (self.context.driver.table.cuStreamWaitEvent.call())(self.raw, event.raw, 0)
        })
    }

    /// A fence behind everything issued so far.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn fence(&self) -> CuResult<Arc<Fence>> {
        let event = Event::spare(&self.context)?;
        self.record(&event)?;
        Ok(Fence::of(Arc::new(event)))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.raw != 0 && self.context.make_current().is_ok() {
            // SAFETY: a stream of ours; the driver ends it when its work is done.
            unsafe { (self.context.driver.table.cuStreamDestroy_v2.call())(self.raw) };
        }
    }
}

/// An event.
#[derive(Debug)]
pub(crate) struct Event {
    context: Arc<Context>,
    pub(super) raw: Raw,
    /// Goes back to the context's spare events.
    spare: bool,
}

impl Event {
    /// `cuEventCreate`.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn create(context: &Arc<Context>, flags: u32) -> CuResult<Self> {
        context.make_current()?;
        let mut raw = 0;
        // SAFETY: a place for one handle.
        check(unsafe { (context.driver.table.cuEventCreate.call())(&raw mut raw, flags) })?;
        Ok(Self {
            context: context.clone(),
            raw,
            spare: false,
        })
    }

    /// An event without timing, used over and over.
    fn spare(context: &Arc<Context>) -> CuResult<Self> {
        let spare = context.spare_events.lock().pop();
        match spare {
            Some(raw) => Ok(Self {
                context: context.clone(),
                raw,
                spare: true,
            }),
            None => {
                let mut event = Self::create(context, EVENT_DISABLE_TIMING)?;
                event.spare = true;
                Ok(event)
            }
        }
    }

    /// `NOT_READY` until the last record is reached; success if there was none. Does not block.
    ///
    /// # Errors
    /// `NOT_READY`, and what the work before it failed with.
    pub(crate) fn query(&self) -> CuResult {
        self.context.make_current()?;
        // SAFETY: a live event.
        check(unsafe { (self.context.driver.table.cuEventQuery.call())(self.raw) })
    }

    /// Milliseconds from this event's record to another's.
    ///
    /// # Errors
    /// As the driver; `NOT_READY`.
    pub(crate) fn elapsed_ms(&self, end: &Self) -> CuResult<f32> {
        self.context.make_current()?;
        let mut ms = 0.0;
        // SAFETY: live events, a place for one float.
        check(unsafe {
            (self.context.driver.table.cuEventElapsedTime.call())(&raw mut ms, self.raw, end.raw)
        })?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.spare {
            let mut spares = self.context.spare_events.lock();
            if spares.len() < SPARE_EVENTS_MAX {
                return spares.push(self.raw);
            }
        }
        // SAFETY: an event of ours that nobody else knows.
        unsafe { (self.context.driver.table.cuEventDestroy_v2.call())(self.raw) };
    }
}

/// A point of a stream that somebody waits for; asked for at most until it has passed.
#[derive(Debug)]
pub(crate) struct Fence {
    event: Arc<Event>,
    /// `PENDING`, or the status that it passed with.
    outcome: AtomicU32,
}

const PENDING: u32 = u32::MAX;

impl Fence {
    /// The last record of an event.
    pub(crate) fn of(event: Arc<Event>) -> Arc<Self> {
        Arc::new(Self {
            event,
            outcome: AtomicU32::new(PENDING),
        })
    }

    /// How it passed, if it has. Asks the driver; does not block.
    pub(crate) fn poll(&self) -> Option<CuStatus> {
        let known = self.outcome.load(Ordering::Acquire);
        if known != PENDING {
            return Some(CuStatus(known));
        }
        let status = match self.event.query() {
            Ok(()) => CuStatus::SUCCESS,
            Err(CuStatus::NOT_READY) => return None,
            Err(status) => status,
        };
        self.outcome.store(status.0, Ordering::Release);
        Some(status)
    }

    /// Whether everything before it has been done without error, as far as [`Self::poll`] has seen.
    pub(super) fn has_succeeded(&self) -> bool {
        self.outcome.load(Ordering::Acquire) == 0
    }
}
