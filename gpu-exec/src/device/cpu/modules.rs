//! Modules and functions of a session, and the thread that loads images.
//!
//! A load decompresses, compiles and maybe waits for the bulk plane: too long for the loop. The loader is
//! one thread, so loads end in the order of their records. What is asked of a module that is still being
//! loaded waits in its entry.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::Receiver;

use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::CuLaunchKernel;
use farcall_ptx::{GlobalSpace, LoadedModule};
use parking_lot::Mutex;

use super::function::{Code, Function};
use super::memory::{Block, BlockKind, Memory};
use super::state::ContextKey;
use super::streams::Streams;
use super::work::Work;
use crate::cache::Cache;
use crate::device::cpu_limits::SHARED_BYTES_OPTIN;
use crate::device::handles::HandleTable;
use crate::device::loading::{Image, Loader, Waiting, answer_global, answer_load};
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::limits::{FUNCTIONS_MAX, MODULES_MAX, STACK_BYTES};

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: i32 = 8;
const IMAGE_PTX: u32 = 1;

/// A module to be loaded.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) reply: Reply,
    pub(crate) module: u64,
    pub(crate) context: ContextKey,
    pub(crate) device: usize,
    pub(crate) kind: u32,
    pub(crate) image: Image,
}

/// A question about a module that is being loaded.
#[derive(Debug)]
enum Question {
    Function {
        handle: u64,
        name: String,
        reply: Reply,
    },
    Global {
        name: String,
        reply: Reply,
    },
    Unload {
        reply: Reply,
    },
}

#[derive(Debug)]
enum Entry {
    Loading(ContextKey, Waiting<Question>),
    Loaded(ContextKey, Loaded, Vec<u64>),
}

/// What a loaded image comes to.
#[derive(Debug)]
enum Loaded {
    /// PTX, compiled.
    Compiled(LoadedModule),
    /// Where the variables are (address, bytes); kernels of any name do nothing.
    Named(HashMap<String, (u64, u64)>),
}

#[derive(Debug)]
struct Tables {
    modules: HandleTable<Entry>,
    functions: HandleTable<Arc<Function>>,
    compiled: HashMap<[u8; 32], Arc<farcall_ptx::Module>>,
}

/// Whether kernels are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compile {
    /// PTX is compiled, all else refused.
    Ptx,
    /// Any image is taken and never looked at.
    Nothing,
}

/// All modules of a session.
#[derive(Debug)]
pub(crate) struct Modules {
    tables: Mutex<Tables>,
    streams: Arc<Streams>,
    memory: Arc<Memory>,
    outbox: Arc<dyn Outbox>,
    cache: Cache,
    compile: Compile,
    loader: Loader<Load>,
}

impl Modules {
    /// No modules yet. Starts no thread.
    pub(crate) fn new(streams: Arc<Streams>, cache: Cache, compile: Compile) -> Arc<Self> {
        let (memory, outbox) = (streams.memory.clone(), streams.outbox.clone());
        let tables = Tables {
            modules: HandleTable::new(MODULES_MAX),
            functions: HandleTable::new(FUNCTIONS_MAX),
            compiled: HashMap::new(),
        };
        Arc::new(Self {
            tables: Mutex::new(tables),
            streams,
            memory,
            outbox,
            cache,
            compile,
            loader: Loader::new(),
        })
    }

    /// Hands a load to the loader, which answers it.
    pub(crate) fn load(self: &Arc<Self>, load: Load) {
        let begun = self.tables.lock().begin(&load);
        if let Err(status) = begun {
            return answer_load(&*self.outbox, load.reply, &status.into());
        }
        let (reply, module, context) = (load.reply, load.module, load.context);
        let this = self.clone();
        let handed = self
            .loader
            .hand_over(load, 32 * STACK_BYTES, move |loads| this.serve(&loads));
        if let Err(failure) = handed {
            self.finish(reply, module, context, Err(failure));
        }
    }

    /// Names a function.
    pub(crate) fn name_function(&self, reply: Reply, module: u64, handle: u64, name: &str) {
        let mut tables = self.tables.lock();
        // Where nothing is compiled the function is known already, and launches of it follow at once.
        if self.compile == Compile::Ptx
            && let Ok(Entry::Loading(_, waiting)) = tables.modules.get_mut(module)
        {
            if waiting.questions.len() < FUNCTIONS_MAX {
                return waiting.questions.push(Question::Function {
                    handle,
                    name: name.to_owned(),
                    reply,
                });
            }
            drop(tables);
            return self
                .outbox
                .finish(reply, Err(CuStatus::OUT_OF_MEMORY.into()));
        }
        let outcome = tables.name_function(module, handle, name);
        drop(tables);
        self.outbox.finish(reply, outcome);
    }

    /// Answers where a variable is.
    pub(crate) fn find_global(&self, reply: Reply, module: u64, name: &str) {
        let mut tables = self.tables.lock();
        if let Ok(Entry::Loading(_, waiting)) = tables.modules.get_mut(module)
            && waiting.questions.len() < FUNCTIONS_MAX
        {
            return waiting.questions.push(Question::Global {
                name: name.to_owned(),
                reply,
            });
        }
        let found = tables.find_global(module, name);
        drop(tables);
        answer_global(&*self.outbox, reply, found);
    }

    /// What a handle names.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub(crate) fn function(&self, handle: u64) -> CuResult<Arc<Function>> {
        self.tables.lock().functions.get(handle).cloned()
    }

    /// Whether this is a launch that does nothing, of a function that can be launched like this.
    pub(crate) fn is_nothing(&self, record: &CuLaunchKernel<'_>) -> bool {
        let grid = [record.grid_x, record.grid_y, record.grid_z];
        let block = [record.block_x, record.block_y, record.block_z];
        let tables = self.tables.lock();
        tables.functions.get(record.function).is_ok_and(|function| {
            let check = || function.check(grid, block, record.shared_bytes, record.params);
            function.is_quick() && check().is_ok()
        })
    }

    /// `cuFuncSetAttribute`.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `INVALID_VALUE`.
    pub(crate) fn set_attribute(&self, handle: u64, attribute: i32, value: i32) -> CuResult {
        let function = self.function(handle)?;
        if attribute == MAX_DYNAMIC_SHARED {
            let value = u32::try_from(value).map_err(|_| CuStatus::INVALID_VALUE)?;
            if value > SHARED_BYTES_OPTIN {
                return Err(CuStatus::INVALID_VALUE);
            }
            function.dynamic_shared_max.store(value, Ordering::Relaxed);
        }
        // The others are hints.
        Ok(())
    }

    /// Forgets a module and its functions. Its variables go when the work before is done, which answers; a module
    /// that is still being loaded goes when it is there.
    pub(crate) fn unload(&self, reply: Reply, module: u64) {
        let mut tables = self.tables.lock();
        let removed = match tables.modules.get_mut(module) {
            Ok(Entry::Loading(_, waiting)) => {
                return waiting.questions.push(Question::Unload { reply });
            }
            Ok(Entry::Loaded(..)) => tables.modules.remove(module),
            Err(status) => Err(status),
        };
        tables
            .functions
            .retain(|function| function.module != module);
        drop(tables);
        match removed {
            Ok(Entry::Loaded(context, _, addrs)) => {
                self.streams
                    .submit_after_all(reply, context, Work::RemoveGlobals { addrs });
            }
            Ok(Entry::Loading(..)) => {}
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
    }

    /// Forgets what a context had. Its memory is freed by itself.
    pub(crate) fn end_context(&self, key: ContextKey) {
        let mut tables = self.tables.lock();
        tables.functions.retain(|function| function.context != key);
        tables.modules.retain(|entry| match entry {
            Entry::Loading(context, _) | Entry::Loaded(context, ..) => *context != key,
        });
    }

    fn serve(&self, loads: &Receiver<Load>) {
        for load in loads {
            match self.load_now(&load) {
                Err(failure)
                    if load.image.is_missing(load.reply, &failure)
                        && self.tables.lock().want(load.module) =>
                {
                    answer_load(&*self.outbox, load.reply, &failure);
                }
                outcome => self.finish(load.reply, load.module, load.context, outcome),
            }
            self.outbox.flush();
        }
    }

    fn finish(
        &self,
        reply: Reply,
        module: u64,
        context: ContextKey,
        outcome: Result<(Loaded, Vec<u64>), Failure>,
    ) {
        let mut tables = self.tables.lock();
        let questions = match tables.modules.remove(module) {
            Ok(Entry::Loading(_, waiting)) => waiting.questions,
            // Its context has ended meanwhile, and the memory with it.
            _ => Vec::new(),
        };
        let failure = match outcome {
            Ok((loaded, globals)) => {
                let entry = Entry::Loaded(context, loaded, globals);
                let _ = tables.modules.insert(module, entry);
                Failure::from(CuStatus::SUCCESS)
            }
            Err(failure) => failure,
        };
        drop(tables);
        answer_load(&*self.outbox, reply, &failure);
        for question in questions {
            self.answer(module, question);
        }
    }

    fn answer(&self, module: u64, question: Question) {
        match question {
            Question::Function {
                handle,
                name,
                reply,
            } => self.name_function(reply, module, handle, &name),
            Question::Global { name, reply } => self.find_global(reply, module, &name),
            Question::Unload { reply } => self.unload(reply, module),
        }
    }

    fn load_now(&self, load: &Load) -> Result<(Loaded, Vec<u64>), Failure> {
        let known = self.tables.lock().compiled.get(&load.image.hash).cloned();
        let sent = load.image.receive(&*self.outbox)?;
        if let (None, Some(module)) = (&sent, known) {
            return self.place(load, &module);
        }
        let image = load.image.kept(sent, &self.cache)?;
        if self.compile == Compile::Nothing {
            return self.place_named(load, &image);
        }
        if load.kind != IMAGE_PTX {
            let message = "the soft device runs PTX; this module has only machine code (build with PTX, e.g. -gencode arch=compute_90,code=compute_90)";
            return Err(Failure::new(CuStatus::NO_BINARY_FOR_GPU, message));
        }
        let module = Arc::new(compile(&image)?);
        self.tables
            .lock()
            .compiled
            .insert(load.image.hash, module.clone());
        self.place(load, &module)
    }

    /// Gives the module's variables addresses and first contents.
    fn place(
        &self,
        load: &Load,
        module: &Arc<farcall_ptx::Module>,
    ) -> Result<(Loaded, Vec<u64>), Failure> {
        let (mut placed, mut refused) = (Vec::new(), None);
        let loaded = LoadedModule::load(module.clone(), &mut |global| {
            if global.external {
                return None;
            }
            let writable = global.space == GlobalSpace::Global;
            let block = Block {
                bytes: global.bytes,
                kind: BlockKind::Global,
                context: load.context.0,
                device: load.device,
                readable: true,
                writable,
            };
            match self.memory.place(block, global.align_bytes) {
                Ok(addr) => {
                    placed.push(addr);
                    Some(addr)
                }
                Err(status) => {
                    refused = Some(status);
                    None
                }
            }
        });
        let outcome = loaded.map_err(|error| {
            Failure::new(refused.unwrap_or(CuStatus::INVALID_PTX), error.to_string())
        });
        let outcome = outcome.and_then(|loaded| {
            for (addr, bytes) in loaded.images() {
                self.memory.initialize(addr, bytes)?;
            }
            Ok(loaded)
        });
        match outcome {
            Ok(loaded) => Ok((Loaded::Compiled(loaded), placed)),
            Err(failure) => {
                self.take_back(load, placed);
                Err(failure)
            }
        }
    }

    /// Gives the variables of an image that is not compiled addresses; they begin as zeros.
    fn place_named(&self, load: &Load, image: &[u8]) -> Result<(Loaded, Vec<u64>), Failure> {
        // What cannot be inspected has no variables to be asked for.
        let globals = farcall_marshal::image::inspect(image)
            .map(|info| info.globals)
            .unwrap_or_default();
        let (mut named, mut placed) = (HashMap::new(), Vec::new());
        for global in globals {
            let bytes = global.bytes;
            let block = Block {
                bytes,
                kind: BlockKind::Global,
                context: load.context.0,
                device: load.device,
                readable: true,
                writable: true,
            };
            match self.memory.place(block, 1) {
                Ok(addr) => {
                    placed.push(addr);
                    named.insert(global.name, (addr, bytes));
                }
                Err(status) => {
                    self.take_back(load, placed);
                    return Err(status.into());
                }
            }
        }
        Ok((Loaded::Named(named), placed))
    }

    /// Frees the variables of a module that was not loaded after all.
    fn take_back(&self, load: &Load, placed: Vec<u64>) {
        let nobody = Reply {
            ticket: 0,
            ..load.reply
        };
        self.streams
            .submit_after_all(nobody, load.context, Work::RemoveGlobals { addrs: placed });
    }
}

impl Tables {
    /// A load came: of a new module, or the image of one that waits for it.
    fn begin(&mut self, load: &Load) -> CuResult {
        if let Ok(Entry::Loading(_, waiting)) = self.modules.get_mut(load.module)
            && waiting.take_wanted()
        {
            return Ok(());
        }
        let entry = Entry::Loading(load.context, Waiting::new());
        self.modules.insert(load.module, entry)
    }

    /// The client is asked for a module's image; whether the module is still there.
    fn want(&mut self, module: u64) -> bool {
        match self.modules.get_mut(module) {
            Ok(Entry::Loading(_, waiting)) => {
                waiting.want();
                true
            }
            _ => false,
        }
    }

    fn name_function(&mut self, module: u64, handle: u64, name: &str) -> Result<(), Failure> {
        let (context, code) = match self.modules.get(module)? {
            Entry::Loading(context, _) => (context, Code::Nothing),
            Entry::Loaded(context, Loaded::Named(_), _) => (context, Code::Nothing),
            Entry::Loaded(context, Loaded::Compiled(module), _) => {
                let kernel = module.kernel(name).ok_or_else(|| {
                    Failure::new(CuStatus::NOT_FOUND, format!("no kernel `{name}`"))
                })?;
                (context, Code::Kernel(kernel))
            }
        };
        let function = Function {
            context: *context,
            module,
            code,
            dynamic_shared_max: AtomicU32::new(0),
        };
        self.functions.insert(handle, Arc::new(function))?;
        Ok(())
    }

    fn find_global(&self, module: u64, name: &str) -> CuResult<(u64, u64)> {
        match self.modules.get(module)? {
            Entry::Loaded(_, Loaded::Compiled(module), _) => {
                module.global(name).ok_or(CuStatus::NOT_FOUND)
            }
            Entry::Loaded(_, Loaded::Named(named), _) => {
                named.get(name).copied().ok_or(CuStatus::NOT_FOUND)
            }
            Entry::Loading(..) => Err(CuStatus::NOT_FOUND),
        }
    }
}

fn compile(image: &[u8]) -> Result<farcall_ptx::Module, Failure> {
    let end = image
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(image.len());
    let text = std::str::from_utf8(image.get(..end).unwrap_or_default());
    let text = text.map_err(|_| Failure::new(CuStatus::INVALID_PTX, "the text is not UTF-8"))?;
    farcall_ptx::Module::parse(text)
        .map_err(|error| Failure::new(CuStatus::INVALID_PTX, error.to_string()))
}
