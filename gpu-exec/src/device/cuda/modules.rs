//! Modules and functions. Images are received, compiled and loaded on a thread of their own; a launch of a function whose
//! module is not loaded yet waits in its stream.
#![forbid(unsafe_code)]

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, OnceLock};

use farcall_marshal::image::{content_hash, expand_from_wire};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuModuleGetGlobalV2Reply, CuModuleLoadDataReply};
use parking_lot::Mutex;

use super::driver;
use super::issue::{Later, Shared};
use super::memory::Owner;
use super::op::{After, DropLater};
use super::state::ContextKey;
use crate::cache::Cache;
use crate::device::handles::HandleTable;
use crate::executor::outbox::{Failure, Outbox, Reply, clipped};
use crate::limits::{FUNCTIONS_MAX, IMAGE_BYTES_MAX, LOADS_MAX, MODULES_MAX, STACK_BYTES};

/// A kernel that the client has named.
#[derive(Debug)]
pub(crate) struct Function {
    name: String,
    module: u64,
    key: ContextKey,
    /// Set when the module is loaded, or was not.
    resolved: OnceLock<Result<driver::Function, Failure>>,
    /// What was set before that.
    settings: Mutex<Vec<Setting>>,
}

/// A property of a function.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Setting {
    Attribute(i32, i32),
    CacheConfig(u32),
}

impl Function {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The driver's function, once that is known.
    pub(crate) fn resolved(&self) -> Option<Result<&driver::Function, &Failure>> {
        self.resolved.get().map(Result::as_ref)
    }

    /// Sets a property, now or when the module is loaded.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn set(&self, setting: Setting) -> CuResult {
        let mut settings = self.settings.lock();
        match self.resolved() {
            None => settings.push(setting),
            Some(Ok(function)) => return apply(function, setting),
            Some(Err(failure)) => return Err(failure.status),
        }
        Ok(())
    }

    fn resolve(&self, found: Result<driver::Function, Failure>) -> Result<(), Failure> {
        let settings = self.settings.lock();
        let found = found.and_then(|function| {
            settings
                .iter()
                .try_for_each(|setting| apply(&function, *setting))?;
            Ok(function)
        });
        let outcome = found.as_ref().map(|_| ()).map_err(Clone::clone);
        let _ = self.resolved.set(found);
        outcome
    }
}

fn apply(function: &driver::Function, setting: Setting) -> CuResult {
    match setting {
        Setting::Attribute(attribute, value) => function.set_attribute(attribute, value),
        Setting::CacheConfig(config) => function.set_cache_config(config),
    }
}

/// A module to be loaded.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) reply: Reply,
    pub(crate) module: u64,
    pub(crate) owner: Owner,
    pub(crate) total_bytes: u64,
    pub(crate) bulk: u64,
    pub(crate) hash: [u8; 32],
    pub(crate) image: Vec<u8>,
}

/// What was asked of a module that is being loaded.
#[derive(Debug)]
enum Question {
    Function {
        function: Arc<Function>,
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
    Loading(Owner, Vec<Question>),
    Loaded(Owner, Arc<driver::Module>, Vec<u64>),
}

#[derive(Debug)]
struct Tables {
    modules: HandleTable<Entry>,
    functions: HandleTable<Arc<Function>>,
}

/// All modules of a session.
#[derive(Debug)]
pub(crate) struct Modules {
    tables: Mutex<Tables>,
    shared: Arc<Shared>,
    outbox: Arc<dyn Outbox>,
    cache: Cache,
    loader: Mutex<Option<SyncSender<Load>>>,
}

impl Modules {
    /// No modules yet. Starts no thread.
    pub(crate) fn new(shared: Arc<Shared>, cache: Cache) -> Arc<Self> {
        let tables = Tables {
            modules: HandleTable::new(MODULES_MAX),
            functions: HandleTable::new(FUNCTIONS_MAX),
        };
        let outbox = shared.outbox.clone();
        Arc::new(Self {
            tables: Mutex::new(tables),
            shared,
            outbox,
            cache,
            loader: Mutex::new(None),
        })
    }

    /// Hands a load to the loader, which answers it.
    pub(crate) fn load(self: &Arc<Self>, load: Load) {
        let (reply, module) = (load.reply, load.module);
        let inserted = self
            .tables
            .lock()
            .modules
            .insert(module, Entry::Loading(load.owner.clone(), Vec::new()));
        let handed = inserted
            .map_err(Failure::from)
            .and_then(|()| self.hand_over(load));
        if let Err(failure) = handed {
            if inserted.is_ok() {
                let _ = self.tables.lock().modules.remove(module);
            }
            self.answer_load(reply, &failure);
        }
    }

    /// Names a function.
    pub(crate) fn name_function(&self, reply: Reply, module: u64, handle: u64, name: &str) {
        let mut tables = self.tables.lock();
        let Tables { modules, functions } = &mut *tables;
        let outcome = modules
            .get_mut(module)
            .map_err(Failure::from)
            .and_then(|entry| {
                let key = entry.owner().key;
                let (resolved, settings) = (OnceLock::new(), Mutex::default());
                let function = Arc::new(Function {
                    name: name.to_owned(),
                    module,
                    key,
                    resolved,
                    settings,
                });
                functions.insert(handle, function.clone())?;
                match entry {
                    Entry::Loading(_, questions) => {
                        questions.push(Question::Function { function, reply });
                        Ok(None)
                    }
                    Entry::Loaded(_, module, _) => {
                        let outcome = resolve(module, &function);
                        if outcome.is_err() {
                            let _ = functions.remove(handle);
                        }
                        outcome.map(Some)
                    }
                }
            });
        drop(tables);
        match outcome {
            Ok(None) => {}
            Ok(Some(())) => self.outbox.finish(reply, Ok(())),
            Err(failure) => self.outbox.finish(reply, Err(failure)),
        }
    }

    /// Answers where a variable is.
    pub(crate) fn find_global(&self, reply: Reply, module: u64, name: &str) {
        let mut tables = self.tables.lock();
        let found = match tables.modules.get_mut(module) {
            Ok(Entry::Loading(_, questions)) => {
                return questions.push(Question::Global {
                    name: name.to_owned(),
                    reply,
                });
            }
            Ok(Entry::Loaded(owner, module, globals)) => module.global(name).map(|global| {
                let place = (global.base(), global.bytes());
                globals.push(place.0);
                self.shared.state().memory.insert_global(owner, global);
                place
            }),
            Err(status) => Err(status),
        };
        drop(tables);
        match found {
            Ok((addr, bytes)) => self.outbox.record(
                reply,
                CuStatus::SUCCESS,
                &CuModuleGetGlobalV2Reply { addr, bytes },
            ),
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
    }

    /// What a handle names.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub(crate) fn function(&self, handle: u64) -> CuResult<Arc<Function>> {
        self.tables.lock().functions.get(handle).cloned()
    }

    /// Forgets a module and its functions; the driver's go when the work before is done, which answers.
    pub(crate) fn unload(&self, reply: Reply, module: u64) {
        let mut tables = self.tables.lock();
        let removed = match tables.modules.get_mut(module) {
            Ok(Entry::Loading(_, questions)) => return questions.push(Question::Unload { reply }),
            Ok(Entry::Loaded(..)) => tables.modules.remove(module),
            Err(status) => Err(status),
        };
        tables
            .functions
            .retain(|function| function.module != module);
        drop(tables);
        match removed {
            Ok(Entry::Loaded(owner, module, globals)) => {
                let mut later = Later::default();
                let mut state = self.shared.state();
                for addr in globals {
                    drop(state.memory.take(addr));
                }
                self.shared.after_all(
                    &mut state,
                    &mut later,
                    reply,
                    owner.key,
                    After::Drop(DropLater::new(module)),
                );
                drop(state);
                self.shared.settle(later);
            }
            Ok(Entry::Loading(..)) => {}
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
    }

    /// Takes out what a context had; to be dropped when its work is done.
    pub(crate) fn end_context(&self, key: ContextKey) -> DropLater {
        let mut tables = self.tables.lock();
        let mut gone = Vec::new();
        tables.functions.retain(|function| function.key != key);
        tables.modules.retain(|entry| {
            let stays = entry.owner().key != key;
            if let (false, Entry::Loaded(_, module, _)) = (stays, entry) {
                gone.push(module.clone());
            }
            stays
        });
        DropLater::new(gone)
    }

    fn hand_over(self: &Arc<Self>, load: Load) -> Result<(), Failure> {
        let mut loader = self.loader.lock();
        let sender = match &*loader {
            Some(sender) => sender,
            None => {
                let (sender, receiver) = sync_channel(LOADS_MAX);
                let this = self.clone();
                // The driver's compiler runs on it.
                let builder = std::thread::Builder::new()
                    .name("loader".to_owned())
                    .stack_size(64 * STACK_BYTES);
                builder
                    .spawn(move || this.serve(&receiver))
                    .map_err(|error| Failure::new(CuStatus::OPERATING_SYSTEM, error.to_string()))?;
                loader.insert(sender)
            }
        };
        sender.try_send(load).map_err(|refused| match refused {
            TrySendError::Full(_) => {
                Failure::new(CuStatus::OUT_OF_MEMORY, "too many modules are being loaded")
            }
            TrySendError::Disconnected(_) => Failure::new(CuStatus::UNKNOWN, "the loader is gone"),
        })
    }

    fn serve(&self, loads: &Receiver<Load>) {
        for load in loads {
            let outcome = self.load_now(&load);
            let mut tables = self.tables.lock();
            let questions = match tables.modules.remove(load.module) {
                Ok(Entry::Loading(_, questions)) => questions,
                // Its context has ended meanwhile.
                _ => Vec::new(),
            };
            let (failure, module) = match outcome {
                Ok(module) => (Failure::from(CuStatus::SUCCESS), Some(module)),
                Err(failure) => (failure, None),
            };
            if let Some(module) = &module {
                let _ = tables.modules.insert(
                    load.module,
                    Entry::Loaded(load.owner.clone(), module.clone(), Vec::new()),
                );
            }
            drop(tables);
            self.answer_load(load.reply, &failure);
            for question in questions {
                self.answer(load.module, module.as_ref(), &failure, question);
            }
            self.shared.pump();
            self.outbox.flush();
        }
    }

    fn answer(
        &self,
        handle: u64,
        module: Option<&Arc<driver::Module>>,
        failure: &Failure,
        question: Question,
    ) {
        match question {
            Question::Function { function, reply } => {
                let outcome = match module {
                    Some(module) => resolve(module, &function),
                    None => function.resolve(Err(failure.clone())),
                };
                self.outbox.finish(reply, outcome);
            }
            Question::Global { name, reply } => self.find_global(reply, handle, &name),
            Question::Unload { reply } => self.unload(reply, handle),
        }
    }

    fn answer_load(&self, reply: Reply, failure: &Failure) {
        if reply.ticket == 0 && failure.status != CuStatus::SUCCESS {
            self.outbox.notice(reply, failure);
        }
        self.outbox.record(
            reply,
            failure.status,
            &CuModuleLoadDataReply {
                message: clipped(&failure.message),
            },
        );
    }

    fn load_now(&self, load: &Load) -> Result<Arc<driver::Module>, Failure> {
        let image = match self.receive(load)? {
            Some(image) => {
                self.cache.store(&load.hash, &image);
                image
            }
            None => self
                .cache
                .load(&load.hash)
                .ok_or_else(|| Failure::new(CuStatus::FILE_NOT_FOUND, "not in the module cache"))?,
        };
        driver::Module::load(&load.owner.context, &image)
            .map_err(|(status, log)| Failure::new(status, log))
    }

    /// The image that came with the load, expanded and verified; `None` if none came.
    fn receive(&self, load: &Load) -> Result<Option<Vec<u8>>, Failure> {
        let invalid = |message: String| Failure::new(CuStatus::INVALID_IMAGE, message);
        let came;
        let packed = if load.bulk == 0 {
            &load.image
        } else {
            let len = usize::try_from(load.total_bytes)
                .unwrap_or(usize::MAX)
                .min(IMAGE_BYTES_MAX);
            came = self.outbox.bulk_receive(load.bulk, len);
            came.as_ref()
                .ok_or_else(|| invalid(format!("bulk transfer {} did not come", load.bulk)))?
        };
        if packed.is_empty() {
            return Ok(None);
        }
        let image = expand_from_wire(packed, IMAGE_BYTES_MAX)
            .map_err(|error| invalid(error.to_string()))?;
        if content_hash(&image) != load.hash {
            return Err(invalid("the image is not what its hash says".to_owned()));
        }
        Ok(Some(image))
    }
}

impl Entry {
    fn owner(&self) -> &Owner {
        match self {
            Self::Loading(owner, _) | Self::Loaded(owner, ..) => owner,
        }
    }
}

fn resolve(module: &Arc<driver::Module>, function: &Function) -> Result<(), Failure> {
    let found = module.function(&function.name);
    function.resolve(
        found.map_err(|status| Failure::new(status, format!("no kernel `{}`", function.name))),
    )
}
