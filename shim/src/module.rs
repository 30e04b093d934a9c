//! Modules, libraries and their kernels. Images are opened, cut down to what the device needs and inspected
//! here, so that names, parameter layouts and attributes are client memory.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use farcall_marshal::image::{
    self, Accepts, CodeKind, Extent, Image, ImageError, ImageErrorClass, KernelInfo, ModuleInfo,
    ParamSpec, Target,
};
use farcall_marshal::record::{INLINE_BYTES_MAX, Record};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{
    CuFuncSetAttribute, CuModuleGetFunction, CuModuleGetGlobalV2, CuModuleGetGlobalV2Reply,
    CuModuleLoadData,
};
use parking_lot::Mutex;

use crate::api::Prepared;
use crate::context::Context;
use crate::counters;
use crate::memory::{self, Allocation, AllocationKind};
use crate::offers::{self, Offer};
use crate::process::{Device, process};
use crate::ptr::HostPtr;
use crate::session::{DeviceKind, Session};

/// `kind` of a module record.
const WIRE_PTX: u32 = 1;
const WIRE_CUBIN: u32 = 2;

/// What one device runs of an image, and what it says about itself.
pub(crate) struct Code {
    hash: [u8; 32],
    pub(crate) info: ModuleInfo,
    index: HashMap<String, usize>,
    /// The selected bytes: any server may have to be sent them.
    bytes: Vec<u8>,
}

impl Code {
    /// Opens the image that starts at `at`, for one device.
    pub(crate) fn open(at: HostPtr, device: &Device) -> CuResult<Self> {
        Self::from_bytes(image_bytes(at)?, device)
    }

    /// Opens an image, for one device.
    pub(crate) fn from_bytes(bytes: &[u8], device: &Device) -> CuResult<Self> {
        let accepts = match device.session.kind {
            DeviceKind::Cuda => Accepts::Native,
            DeviceKind::Soft => Accepts::PtxOnly,
            DeviceKind::Null => Accepts::Any,
        };
        let image = Image::open(bytes).map_err(|error| refused(&error))?;
        let selected = image::select(
            &image,
            &Target {
                sm: device.sm,
                accepts,
            },
        )
        .map_err(|error| refused(&error))?;
        let info = image::inspect(&selected.bytes).map_err(|error| refused(&error))?;
        let index = info
            .kernels
            .iter()
            .enumerate()
            .map(|(at, kernel)| (kernel.name.clone(), at))
            .collect();
        let hash = image::content_hash(&selected.bytes);
        Ok(Self {
            hash,
            info,
            index,
            bytes: selected.bytes.into_owned(),
        })
    }

    pub(crate) fn kernel_index(&self, name: &str) -> CuResult<usize> {
        self.index.get(name).copied().ok_or(CuStatus::NOT_FOUND)
    }

    /// Loads the code in a context; the module's number there. Waits only where the device compiles: machine
    /// code that we could inspect is accepted as it is, and a refusal comes back late.
    fn load(self: &Arc<Self>, context: &'static Context) -> CuResult<u64> {
        let session = context.session();
        let id = session.new_id();
        let waits = self.info.kind == CodeKind::Ptx && session.kind != DeviceKind::Null;
        let is_known = session.known_modules.lock().contains(&self.hash);
        match (is_known, waits) {
            (true, false) => self.offer(context, id)?,
            // What was only believed to be there is sent after all.
            (true, true) => match self.announce(context, id, &[], true) {
                Err(CuStatus::FILE_NOT_FOUND) => self.send(context, id, true)?,
                result => result?,
            },
            (false, _) => self.send(context, id, waits)?,
        }
        Ok(id)
    }

    /// Names the code to a server that is believed to have it, and waits for nothing.
    fn offer(self: &Arc<Self>, context: &'static Context, id: u64) -> CuResult {
        let offer = Offer {
            context,
            module: id,
            code: Arc::clone(self),
            has_image: false,
        };
        let record = self.record(id, 0, &[]);
        context.session().offer(&record, offer)
    }

    /// Sends what the server turned out not to have. Blocks while there is no room for it.
    pub(crate) fn send_offered(self: Arc<Self>, offer: Offer) -> CuResult {
        if !offer.context.is_alive() {
            return Ok(());
        }
        let session = offer.context.session();
        let packed = image::compress_for_wire(&self.bytes);
        let bulk = bulk_number(session, &packed);
        let record = self.record(offer.module, bulk, &packed);
        counters::module_sent(packed.len());
        session.offer(
            &record,
            Offer {
                has_image: true,
                ..offer
            },
        )?;
        send_beside(session, bulk, &packed)
    }

    /// Sends the whole.
    fn send(&self, context: &'static Context, id: u64, waits: bool) -> CuResult {
        let packed = image::compress_for_wire(&self.bytes);
        counters::module_sent(packed.len());
        self.announce(context, id, &packed, waits)?;
        context.session().known_modules.lock().insert(self.hash);
        Ok(())
    }

    fn announce(&self, context: &'static Context, id: u64, packed: &[u8], waits: bool) -> CuResult {
        let session = context.session();
        let bulk = bulk_number(session, packed);
        let record = self.record(id, bulk, packed);
        if !waits {
            session.send(context.id, &record)?;
            return send_beside(session, bulk, packed);
        }
        let pending = session.request(context.id, &record, crate::ticket::Sink::Keep)?;
        send_beside(session, bulk, packed)?;
        session.wait(&pending)?;
        let (status, reply) = pending.take();
        if status.is_success() {
            return Ok(());
        }
        if status != CuStatus::FILE_NOT_FOUND {
            offers::tell(status, &reply);
        }
        Err(status)
    }

    fn record<'a>(&'a self, module: u64, bulk: u64, packed: &'a [u8]) -> CuModuleLoadData<'a> {
        CuModuleLoadData {
            module,
            kind: if self.info.kind == CodeKind::Ptx {
                WIRE_PTX
            } else {
                WIRE_CUBIN
            },
            total_bytes: packed.len() as u64,
            bulk,
            hash: &self.hash,
            image: if bulk == 0 { packed } else { &[] },
        }
    }
}

/// Number of the transfer that brings the image; 0 = it fits in the record.
fn bulk_number(session: &Session, packed: &[u8]) -> u64 {
    if packed.len() <= INLINE_BYTES_MAX {
        0
    } else {
        session.new_id()
    }
}

fn send_beside(session: &Session, bulk: u64, packed: &[u8]) -> CuResult {
    if bulk == 0 {
        return Ok(());
    }
    memory::send_bulk(session, bulk, packed)
}

fn refused(error: &ImageError) -> CuStatus {
    let status = match error.class() {
        ImageErrorClass::InvalidImage => CuStatus::INVALID_IMAGE,
        ImageErrorClass::NoBinaryForGpu => CuStatus::NO_BINARY_FOR_GPU,
        ImageErrorClass::InvalidPtx => CuStatus::INVALID_PTX,
        ImageErrorClass::InvalidSource => CuStatus::INVALID_SOURCE,
    };
    log::warn!("module not loaded: {error}");
    status
}

/// The bytes of an image of which only the address is known: its own headers say how long it is.
fn image_bytes<'a>(at: HostPtr) -> CuResult<&'a [u8]> {
    let mut at = at;
    let mut wanted = 4;
    let mut wrappers = 0;
    loop {
        match image::extent(at.mapped_bytes(wanted)?).map_err(|error| refused(&error))? {
            Extent::NeedMore(more) => wanted = more,
            Extent::Total(total) => return at.mapped_bytes(total),
            Extent::Text => return at.bytes(at.text_len()?),
            Extent::Wrapper { data_ptr, .. } if wrappers == 0 => {
                wrappers += 1;
                wanted = 4;
                at = HostPtr::from_address(data_ptr);
            }
            Extent::Wrapper { .. } => return Err(CuStatus::INVALID_IMAGE),
        }
    }
}

/// A module: code loaded in one context.
pub(crate) struct Module {
    pub(crate) handle: u64,
    pub(crate) context: &'static Context,
    pub(crate) code: Arc<Code>,
    pub(crate) id: u64,
    functions: Mutex<HashMap<usize, u64>>,
    globals: Mutex<HashMap<String, (u64, u64)>>,
}

impl Module {
    pub(crate) fn load(context: &'static Context, code: Arc<Code>) -> CuResult<Arc<Self>> {
        let id = code.load(context)?;
        let modules = &process()?.modules;
        let handle = modules.reserve();
        let module = Arc::new(Self {
            handle,
            context,
            code,
            id,
            functions: Mutex::default(),
            globals: Mutex::default(),
        });
        modules.insert(handle, Arc::clone(&module));
        Ok(module)
    }

    /// Handle of a function, the same at every call.
    pub(crate) fn function(self: &Arc<Self>, index: usize) -> CuResult<u64> {
        let mut functions = self.functions.lock();
        if let Some(handle) = functions.get(&index) {
            return Ok(*handle);
        }
        let handle = Function::create(
            Arc::clone(&self.code),
            index,
            Home::Module(Arc::clone(self)),
        )?;
        functions.insert(index, handle);
        Ok(handle)
    }

    /// Address and size of a variable. Asked once.
    pub(crate) fn global(&self, name: &str) -> CuResult<(u64, u64)> {
        if let Some(known) = self.globals.lock().get(name) {
            return Ok(*known);
        }
        if !self
            .code
            .info
            .globals
            .iter()
            .any(|global| global.name == name)
        {
            return Err(CuStatus::NOT_FOUND);
        }
        let reply = self.context.session().ask(
            self.context.id,
            &CuModuleGetGlobalV2 {
                module: self.id,
                name,
            },
        )?;
        let reply = CuModuleGetGlobalV2Reply::decode_body(&reply).map_err(|_| CuStatus::UNKNOWN)?;
        process()?.memory.insert(Allocation {
            start: memory::placed(reply.addr, reply.bytes)?,
            bytes: reply.bytes,
            reserved_bytes: reply.bytes,
            kind: AllocationKind::Global,
            context: self.context,
            flags: 0,
            serial: 0,
            pool: 0,
            twin: 0,
        });
        self.globals
            .lock()
            .insert(name.to_owned(), (reply.addr, reply.bytes));
        Ok((reply.addr, reply.bytes))
    }

    /// The module has been unloaded: its functions and variables go with it.
    pub(crate) fn forget(&self) -> CuResult {
        let process = process()?;
        for (_, handle) in self.functions.lock().drain() {
            let _ = process.functions.remove(handle);
        }
        for (_, (start, _)) in self.globals.lock().drain() {
            let _ = process.memory.remove(start, &[AllocationKind::Global]);
        }
        Ok(())
    }
}

/// A library: code that is loaded in a context when something of it is used there.
pub(crate) struct Library {
    pub(crate) handle: u64,
    pub(crate) code: Arc<Code>,
    modules: Mutex<HashMap<u32, Arc<Module>>>,
    kernels: Mutex<HashMap<usize, u64>>,
}

impl Library {
    pub(crate) fn new(handle: u64, code: Code) -> Self {
        Self {
            handle,
            code: Arc::new(code),
            modules: Mutex::default(),
            kernels: Mutex::default(),
        }
    }

    /// The library's module in a context, loaded on the first use.
    pub(crate) fn module(&self, context: &'static Context) -> CuResult<Arc<Module>> {
        let mut modules = self.modules.lock();
        if let Some(module) = modules.get(&context.id)
            && module.context.is_alive()
        {
            return Ok(Arc::clone(module));
        }
        let module = Module::load(context, Arc::clone(&self.code))?;
        modules.insert(context.id, Arc::clone(&module));
        Ok(module)
    }

    /// Handle of a kernel, the same at every call.
    pub(crate) fn kernel(self: &Arc<Self>, index: usize) -> CuResult<u64> {
        let mut kernels = self.kernels.lock();
        if let Some(handle) = kernels.get(&index) {
            return Ok(*handle);
        }
        let handle = Function::create(
            Arc::clone(&self.code),
            index,
            Home::Library(Arc::clone(self)),
        )?;
        kernels.insert(index, handle);
        Ok(handle)
    }

    /// The library has been unloaded; its modules are returned for the server to unload.
    pub(crate) fn forget(&self) -> CuResult<Vec<Arc<Module>>> {
        let process = process()?;
        for (_, handle) in self.kernels.lock().drain() {
            let _ = process.functions.remove(handle);
        }
        Ok(self
            .modules
            .lock()
            .drain()
            .map(|(_, module)| module)
            .collect())
    }
}

/// Where a function comes from.
pub(crate) enum Home {
    Module(Arc<Module>),
    Library(Arc<Library>),
}

/// A kernel's parameters as a launch copies them, and its own limit.
pub(crate) struct Parameters {
    pub(crate) list: Box<[ParamSpec]>,
    /// All of them together.
    pub(crate) bytes: usize,
    /// Whether it is known where each of them lies.
    pub(crate) is_known: bool,
    /// Whether there are bytes between them.
    pub(crate) has_gaps: bool,
    /// Whether some are neither 4 nor 8 bytes long: pointers may lie in them.
    pub(crate) has_structs: bool,
    /// The most threads in a block that the source promised.
    pub(crate) threads_max: u32,
}

impl Parameters {
    fn of(kernel: &KernelInfo) -> Self {
        let list = &kernel.params;
        let covered: u64 = list.iter().map(|spec| u64::from(spec.size_bytes)).sum();
        Self {
            list: list.as_slice().into(),
            bytes: kernel.param_bytes as usize,
            is_known: kernel.has_layout(),
            // They do not overlap.
            has_gaps: covered != u64::from(kernel.param_bytes),
            has_structs: list.iter().any(|spec| !matches!(spec.size_bytes, 4 | 8)),
            threads_max: kernel.max_threads.unwrap_or(u32::MAX),
        }
    }
}

/// A function (of a module) or kernel (of a library). Programs pass one for the other.
pub(crate) struct Function {
    pub(crate) handle: u64,
    pub(crate) code: Arc<Code>,
    pub(crate) index: usize,
    pub(crate) home: Home,
    /// Context number (high half) and function number there (low half) of the first context that used it:
    /// nearly always the only one, so a launch finds it with one load.
    first: AtomicU64,
    others: Mutex<HashMap<u32, (u64, &'static Context)>>,
    /// What `cuKernelSetAttribute` set: the program's number of the device, attribute, value. Contexts that come later are
    /// told.
    settings: Mutex<Vec<(u32, u32, i32)>>,
    /// What a launch needs of [`Self::info`].
    pub(crate) parameters: Parameters,
    pub(crate) dynamic_shared_max: AtomicI32,
    pub(crate) carveout: AtomicI32,
    /// For launches as CUDA 3 had them.
    pub(crate) prepared: Mutex<Prepared>,
}

impl Function {
    fn create(code: Arc<Code>, index: usize, home: Home) -> CuResult<u64> {
        let functions = &process()?.functions;
        let handle = functions.reserve();
        let kernel = code.info.kernels.get(index);
        let kernel = kernel.ok_or(CuStatus::INVALID_HANDLE)?;
        let shared = kernel.resources.shared_static_bytes;
        let parameters = Parameters::of(kernel);
        let function = Self {
            handle,
            code,
            index,
            home,
            first: AtomicU64::new(0),
            others: Mutex::default(),
            settings: Mutex::default(),
            parameters,
            // 48 KiB in all without opting in (CUDA programming guide, shared memory).
            dynamic_shared_max: AtomicI32::new(
                (48 << 10) - i32::try_from(shared).unwrap_or(48 << 10),
            ),
            carveout: AtomicI32::new(-1),
            prepared: Mutex::default(),
        };
        functions.insert(handle, Arc::new(function));
        Ok(handle)
    }

    #[inline]
    pub(crate) fn info(&self) -> CuResult<&KernelInfo> {
        self.code
            .info
            .kernels
            .get(self.index)
            .ok_or(CuStatus::INVALID_HANDLE)
    }

    /// The function's number in a context, which is told of it on the first use.
    #[inline]
    pub(crate) fn id_in(&self, context: &'static Context) -> CuResult<u64> {
        let first = self.first.load(Ordering::Relaxed);
        if first >> 32 == u64::from(context.id) {
            return Ok(first & u64::from(u32::MAX));
        }
        self.resolve(context)
    }

    fn resolve(&self, context: &'static Context) -> CuResult<u64> {
        let mut others = self.others.lock();
        if let Some((id, _)) = others.get(&context.id) {
            return Ok(*id);
        }
        let module = match &self.home {
            Home::Module(module) if std::ptr::eq(module.context, context) => Arc::clone(module),
            Home::Module(_) => return Err(CuStatus::INVALID_CONTEXT),
            Home::Library(library) => library.module(context)?,
        };
        let session = context.session();
        let id = session.new_id();
        session.send(
            context.id,
            &CuModuleGetFunction {
                function: id,
                module: module.id,
                name: &self.info()?.name,
            },
        )?;
        for (ordinal, attribute, value) in &*self.settings.lock() {
            if *ordinal == context.device.ordinal {
                tell_setting(context, id, *attribute, *value)?;
            }
        }
        others.insert(context.id, (id, context));
        if let Ok(small) = u32::try_from(id) {
            let packed = u64::from(context.id) << 32 | u64::from(small);
            let _ = self
                .first
                .compare_exchange(0, packed, Ordering::Relaxed, Ordering::Relaxed);
        }
        Ok(id)
    }

    /// Keeps an attribute for all contexts of a device, those that there are and those that come later.
    pub(crate) fn set_on(&self, ordinal: u32, attribute: u32, value: i32) -> CuResult {
        // Held over both: no context comes in between.
        let others = self.others.lock();
        let mut settings = self.settings.lock();
        settings.retain(|(on, known, _)| (*on, *known) != (ordinal, attribute));
        settings.push((ordinal, attribute, value));
        others
            .values()
            .filter(|(_, context)| context.device.ordinal == ordinal && context.is_alive())
            .try_for_each(|(id, context)| tell_setting(context, *id, attribute, value))
    }

    /// Whether it has this number in some context.
    pub(crate) fn has_id(&self, id: u64) -> bool {
        self.others.lock().values().any(|(known, _)| *known == id)
    }

    /// Whether the function still means something when `context` has gone.
    pub(crate) fn lives_without(&self, context: &'static Context) -> bool {
        match &self.home {
            Home::Module(module) => !std::ptr::eq(module.context, context),
            Home::Library(_) => true,
        }
    }
}

/// Tells a context of an attribute of a function.
pub(crate) fn tell_setting(
    context: &'static Context,
    function: u64,
    attribute: u32,
    value: i32,
) -> CuResult {
    let record = CuFuncSetAttribute {
        function,
        attribute: attribute.cast_signed(),
        value,
    };
    context.session().send(context.id, &record)
}
