//! Contexts, and which one is current in a thread. All of it is client memory: no call here waits.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use farcall_marshal::catalogue::StreamMode;
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuCtxCreateV4, CuCtxDestroyV2, CuDevicePrimaryCtxResetV2, CuDevicePrimaryCtxRetain,
    CuStreamCreateWithPriority,
};
use parking_lot::Mutex;

use crate::crossing::Lanes;
use crate::global;
use crate::process::{Device, Process, process};
use crate::recent;
use crate::session::Session;
use crate::stream::Stream;

/// Handles that cuda.h gives a meaning.
const STREAM_LEGACY: u64 = 1;
const STREAM_PER_THREAD: u64 = 2;

/// A context. Contexts are few and threads keep pointers to them, so they are leaked, about a kilobyte each.
pub(crate) struct Context {
    /// Its number on the wire, unique in the process.
    pub(crate) id: u32,
    pub(crate) handle: u64,
    pub(crate) device: &'static Device,
    pub(crate) flags: AtomicU32,
    pub(crate) api_version: u32,
    pub(crate) is_primary: bool,
    /// The stream that handle 0 means.
    legacy: OnceLock<Arc<Stream>>,
    /// What the runtime keeps here (context-local storage): key to (value, destructor).
    pub(crate) storage: Mutex<HashMap<u64, (u64, u64)>>,
    pub(crate) settings: Mutex<Settings>,
    /// Streams of our own, for what other servers' streams do here.
    pub(crate) lanes: Lanes,
    alive: AtomicBool,
    broken: AtomicU32,
    epoch: u32,
}

/// What a program can set on a context and read back.
pub(crate) struct Settings {
    pub(crate) limits: HashMap<u32, u64>,
    pub(crate) cache_config: u32,
    pub(crate) shared_config: u32,
}

impl Default for Settings {
    fn default() -> Self {
        // What a driver answers before anything is set (CUlimit 0..6), seen on H100.
        let limits = [
            (0, 1024),
            (1, 7_340_032),
            (2, 8_388_608),
            (3, 2),
            (4, 2048),
            (5, 128),
            (6, 0),
            (7, 0),
            (8, 0),
        ];
        Self {
            limits: limits.into(),
            cache_config: 0,
            shared_config: 1,
        }
    }
}

/// A device's primary context.
#[derive(Default)]
pub(crate) struct Primary {
    pub(crate) context: Option<&'static Context>,
    pub(crate) retained: u32,
    pub(crate) flags: u32,
}

impl Context {
    pub(crate) fn session(&self) -> &'static Session {
        self.device.session
    }

    /// Whether the context can still work; its own fault or its session's end if not.
    #[inline]
    pub(crate) fn check(&self) -> CuResult {
        match self.broken.load(Ordering::Relaxed) {
            0 => {}
            status => return Err(CuStatus(status)),
        }
        if !self.alive.load(Ordering::Relaxed) {
            return Err(CuStatus::CONTEXT_IS_DESTROYED);
        }
        self.session().check()
    }

    /// A fault on the device: every later call in this context gives it.
    pub(crate) fn break_with(&self, status: CuStatus) {
        let _ = self
            .broken
            .compare_exchange(0, status.0, Ordering::Relaxed, Ordering::Relaxed);
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.alive.load(Ordering::Relaxed)
    }

    /// The stream that a handle means in this context.
    #[inline]
    pub(crate) fn stream(&'static self, mode: StreamMode, handle: u64) -> CuResult<Arc<Stream>> {
        match handle {
            0 if mode.is_per_thread() => self.thread_stream(),
            0 | STREAM_LEGACY => Ok(Arc::clone(self.legacy())),
            STREAM_PER_THREAD => self.thread_stream(),
            handle => {
                let streams = &process()?.streams;
                recent::STREAMS.with(|recent| recent.get(streams, handle))
            }
        }
    }

    /// The stream that a handle means, if it lives as long as the context.
    #[inline]
    pub(crate) fn lasting_stream(
        &'static self,
        mode: StreamMode,
        handle: u64,
    ) -> Option<&'static Stream> {
        let is_legacy = handle == STREAM_LEGACY || handle == 0 && !mode.is_per_thread();
        is_legacy.then(|| &**self.legacy())
    }

    /// The stream that handle 0 means where stream 0 is the legacy stream.
    #[inline]
    pub(crate) fn legacy(&'static self) -> &'static Arc<Stream> {
        self.legacy
            .get_or_init(|| Arc::new(Stream::new(self, 0, 0, 0)))
    }

    /// The calling thread's default stream, created on the first use. A thread that has lost its own, in an exit
    /// handler, gets the legacy stream.
    fn thread_stream(&'static self) -> CuResult<Arc<Stream>> {
        THREAD_STREAMS
            .try_with(|streams| self.stream_among(&mut streams.borrow_mut()))
            .unwrap_or_else(|_| Ok(Arc::clone(self.legacy())))
    }

    fn stream_among(&'static self, streams: &mut Vec<Arc<Stream>>) -> CuResult<Arc<Stream>> {
        streams.retain(|stream| stream.context.is_usable());
        if let Some(stream) = streams
            .iter()
            .find(|stream| std::ptr::eq(stream.context, self))
        {
            return Ok(Arc::clone(stream));
        }
        let id = self.session().new_id();
        self.session().send(
            self.id,
            &CuStreamCreateWithPriority {
                stream: id,
                flags: 0,
                priority: 0,
            },
        )?;
        let stream = Arc::new(Stream::new(self, id, 0, 0));
        streams.push(Arc::clone(&stream));
        Ok(stream)
    }

    fn is_usable(&self) -> bool {
        self.is_alive() && self.epoch == global::epoch()
    }
}

thread_local! {
    static TOP: Cell<Option<&'static Context>> = const { Cell::new(None) };
    /// Never dropped, only emptied: libraries push and pop contexts in their exit handlers, when what has a destructor
    /// is gone.
    static BELOW: RefCell<ManuallyDrop<Vec<Option<&'static Context>>>> =
        const { RefCell::new(ManuallyDrop::new(Vec::new())) };
    static THREAD_STREAMS: RefCell<Vec<Arc<Stream>>> = const { RefCell::new(Vec::new()) };
}

/// The calling thread's current context, working or not; `INVALID_CONTEXT` if it has none.
#[inline]
pub(crate) fn current_any() -> CuResult<&'static Context> {
    match TOP.get() {
        Some(context) if context.epoch == global::epoch() => Ok(context),
        Some(_) => Err(CuStatus::NOT_INITIALIZED),
        None => {
            process()?;
            Err(CuStatus::INVALID_CONTEXT)
        }
    }
}

/// The calling thread's current context, which can work.
#[inline]
pub(crate) fn current() -> CuResult<&'static Context> {
    let context = current_any()?;
    context.check()?;
    Ok(context)
}

/// The context with this handle; 0 is the current one.
pub(crate) fn by_handle(handle: u64) -> CuResult<&'static Context> {
    if handle == 0 {
        return current_any();
    }
    process()?
        .contexts
        .get(handle)
        .map(|context| *context)
        .map_err(|_| CuStatus::INVALID_CONTEXT)
}

/// Replaces the top of the calling thread's stack; 0 pops it.
pub(crate) fn set_current(handle: u64) -> CuResult {
    if handle == 0 {
        let _ = pop();
        return Ok(());
    }
    TOP.set(Some(by_handle(handle)?));
    Ok(())
}

pub(crate) fn push(context: &'static Context) {
    BELOW.with_borrow_mut(|below| below.push(TOP.get()));
    TOP.set(Some(context));
}

pub(crate) fn pop() -> CuResult<&'static Context> {
    let top = current_any()?;
    TOP.set(BELOW.with_borrow_mut(|below| {
        let next = below.pop().flatten();
        if below.is_empty() {
            **below = Vec::new();
        }
        next
    }));
    Ok(top)
}

/// Makes a context and its record; `is_primary` decides which.
fn create(
    process: &Process,
    device: &'static Device,
    flags: u32,
    api_version: u32,
    is_primary: bool,
) -> CuResult<&'static Context> {
    let session = device.session;
    let id = Session::new_context_id();
    if is_primary {
        session.send(
            id,
            &CuDevicePrimaryCtxRetain {
                device: device.index,
                flags,
            },
        )?;
    } else {
        session.send(
            id,
            &CuCtxCreateV4 {
                device: device.index,
                flags,
            },
        )?;
    }
    let handle = process.contexts.reserve();
    let context: &'static Context = Box::leak(Box::new(Context {
        id,
        handle,
        device,
        flags: AtomicU32::new(flags),
        api_version,
        is_primary,
        legacy: OnceLock::new(),
        storage: Mutex::default(),
        settings: Mutex::default(),
        lanes: Lanes::default(),
        alive: AtomicBool::new(true),
        broken: AtomicU32::new(0),
        epoch: global::epoch(),
    }));
    process.contexts.insert(handle, Arc::new(context));
    session.inbox.add_context(context);
    Ok(context)
}

/// A new context, current in the calling thread.
pub(crate) fn create_pushed(
    ordinal: i32,
    flags: u32,
    api_version: u32,
) -> CuResult<&'static Context> {
    let process = process()?;
    let context = create(process, process.device(ordinal)?, flags, api_version, false)?;
    push(context);
    Ok(context)
}

/// Ends a context of [`create_pushed`].
pub(crate) fn destroy(handle: u64) -> CuResult {
    let context = process()?
        .contexts
        .get(handle)
        .map(|context| *context)
        .map_err(|_| CuStatus::INVALID_CONTEXT)?;
    if context.is_primary {
        return Err(CuStatus::INVALID_CONTEXT);
    }
    process()?.memory.await_landings(context)?;
    context.session().send(context.id, &CuCtxDestroyV2 {})?;
    bury(context)?;
    if TOP.get().is_some_and(|top| std::ptr::eq(top, context)) {
        let _ = pop();
    }
    Ok(())
}

/// A context of this device for what belongs to no context: the current one, or the primary one, which is made if there is
/// none and counts as used by nobody.
pub(crate) fn of_device(device: &'static Device) -> CuResult<&'static Context> {
    if let Ok(context) = current()
        && std::ptr::eq(context.device, device)
    {
        return Ok(context);
    }
    let mut primary = device.primary.lock();
    let context = match primary.context {
        Some(context) => context,
        None => create(process()?, device, primary.flags, 3020, true)?,
    };
    primary.context = Some(context);
    context.check()?;
    Ok(context)
}

/// One more user of the primary context.
pub(crate) fn retain_primary(ordinal: i32) -> CuResult<&'static Context> {
    let process = process()?;
    let device = process.device(ordinal)?;
    let mut primary = device.primary.lock();
    let context = match primary.context {
        Some(context) => context,
        None => create(process, device, primary.flags, 3020, true)?,
    };
    primary.context = Some(context);
    primary.retained += 1;
    Ok(context)
}

/// One user less; the last one ends the context.
pub(crate) fn release_primary(ordinal: i32) -> CuResult {
    let device = process()?.device(ordinal)?;
    {
        let mut primary = device.primary.lock();
        primary.retained = primary
            .retained
            .checked_sub(1)
            .ok_or(CuStatus::INVALID_CONTEXT)?;
        if primary.retained > 0 {
            return Ok(());
        }
    }
    end_primary(device)
}

/// Ends the primary context, whoever uses it.
pub(crate) fn reset_primary(ordinal: i32) -> CuResult {
    end_primary(process()?.device(ordinal)?)
}

fn end_primary(device: &'static Device) -> CuResult {
    let Some(context) = device.primary.lock().context.take() else {
        return Ok(());
    };
    process()?.memory.await_landings(context)?;
    // A broken or ended context is buried all the same: a reset is how a program recovers.
    let sent = context.session().send(
        context.id,
        &CuDevicePrimaryCtxResetV2 {
            device: device.index,
        },
    );
    bury(context)?;
    sent
}

/// Forgets a context and all that lives in it.
fn bury(context: &'static Context) -> CuResult {
    let process = process()?;
    process.memory.await_copies(context)?;
    context.alive.store(false, Ordering::Relaxed);
    context.session().inbox.remove_context(context.id);
    let _ = process.contexts.remove(context.handle);
    process
        .streams
        .retain(|stream| !std::ptr::eq(stream.context, context));
    process
        .events
        .retain(|event| !std::ptr::eq(event.context, context));
    process
        .modules
        .retain(|module| !std::ptr::eq(module.context, context));
    process
        .functions
        .retain(|function| function.lives_without(context));
    crate::coherent::forget_context(context);
    process.memory.forget_context(context);
    Ok(())
}
