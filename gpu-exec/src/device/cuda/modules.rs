//! Modules and functions. Images are received, compiled and loaded on a thread of their own; a launch of a function whose
//! module is not loaded yet waits in its stream.
#![forbid(unsafe_code)]

use std::sync::mpsc::Receiver;
use std::sync::{Arc, OnceLock};

use farcall_marshal::status::{CuResult, CuStatus};
use parking_lot::Mutex;

use super::driver;
use super::issue::{Later, Shared};
use super::memory::Owner;
use super::op::{After, DropLater};
use super::state::ContextKey;
use crate::cache::Cache;
use crate::device::handles::HandleTable;
use crate::device::loading::{Image, Loader, Waiting, answer_global, answer_load};
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::limits::{FUNCTIONS_MAX, MODULES_MAX, STACK_BYTES};

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
    pub(crate) image: Image,
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
    Loading(Owner, Waiting<Question>),
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
    loader: Loader<Load>,
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
            loader: Loader::new(),
        })
    }

    /// Hands a load to the loader, which answers it.
    pub(crate) fn load(self: &Arc<Self>, load: Load) {
        let begun = self.tables.lock().begin(&load);
        if let Err(status) = begun {
            return answer_load(&*self.outbox, load.reply, &status.into());
        }
        let (reply, module, owner) = (load.reply, load.module, load.owner.clone());
        let this = self.clone();
        // The driver's compiler runs on it.
        let handed = self
            .loader
            .hand_over(load, 64 * STACK_BYTES, move |loads| this.serve(&loads));
        if let Err(failure) = handed {
            self.finish(reply, module, &owner, Err(failure));
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
                    Entry::Loading(_, waiting) => {
                        waiting
                            .questions
                            .push(Question::Function { function, reply });
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
            Ok(Entry::Loading(_, waiting)) => {
                return waiting.questions.push(Question::Global {
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
        answer_global(&*self.outbox, reply, found);
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

    fn serve(&self, loads: &Receiver<Load>) {
        for load in loads {
            match self.load_now(&load) {
                Err(failure)
                    if load.image.is_missing(load.reply, &failure)
                        && self.tables.lock().want(load.module) =>
                {
                    answer_load(&*self.outbox, load.reply, &failure);
                }
                outcome => self.finish(load.reply, load.module, &load.owner, outcome),
            }
            self.outbox.flush();
        }
    }

    fn finish(
        &self,
        reply: Reply,
        handle: u64,
        owner: &Owner,
        outcome: Result<Arc<driver::Module>, Failure>,
    ) {
        let mut tables = self.tables.lock();
        let questions = match tables.modules.remove(handle) {
            Ok(Entry::Loading(_, waiting)) => waiting.questions,
            // Its context has ended meanwhile.
            _ => Vec::new(),
        };
        let (failure, module) = match outcome {
            Ok(module) => (Failure::from(CuStatus::SUCCESS), Some(module)),
            Err(failure) => (failure, None),
        };
        if let Some(module) = &module {
            let entry = Entry::Loaded(owner.clone(), module.clone(), Vec::new());
            let _ = tables.modules.insert(handle, entry);
        }
        drop(tables);
        answer_load(&*self.outbox, reply, &failure);
        for question in questions {
            self.answer(handle, module.as_ref(), &failure, question);
        }
        self.shared.pump();
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

    fn load_now(&self, load: &Load) -> Result<Arc<driver::Module>, Failure> {
        let sent = load.image.receive(&*self.outbox)?;
        let image = load.image.kept(sent, &self.cache)?;
        driver::Module::load(&load.owner.context, &image)
            .map_err(|(status, log)| Failure::new(status, log))
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
        let entry = Entry::Loading(load.owner.clone(), Waiting::new());
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
