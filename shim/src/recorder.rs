//! `farcall trace --record`: writes the program's calls down so that they can be played again without it
//! ([`farcall_marshal::calltrace`]). Off unless asked for.
//!
//! What is kept of an argument follows from its type in the catalogue: numbers as they are, handles and addresses as
//! what the call gave that made them, memory as its size.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use farcall_marshal::calltrace::{self, Arg, Call, Step, TICK_NS, Token};
use farcall_marshal::catalogue::{CALLS, CallInfo};

use crate::module::Home;
use crate::process::process;
use crate::ptr::HostPtr;

/// Room for a result whose size the types do not say; names and property lists fit.
const RESULT_BYTES: u32 = 64;
/// Elements of an array argument that are kept; more make the call one that cannot be played.
const ELEMENTS_MAX: u64 = 4096;

/// Pointers to structures that are passed in, and their sizes (cuda.h 13).
const STRUCTS: [(&str, u64); 5] = [
    ("CUuuid", 16),
    ("CUlaunchConfig", 56),
    ("CUmemAccessDesc", 12),
    ("CUmemAllocationProp", 32),
    ("CUmemPoolProps", 88),
];

/// Types whose values name objects.
const HANDLES: [&str; 17] = [
    "CUarray",
    "CUcontext",
    "CUevent",
    "CUfunction",
    "CUgraph",
    "CUgraphExec",
    "CUgraphNode",
    "CUkernel",
    "CUlibrary",
    "CUlinkState",
    "CUlogsCallbackHandle",
    "CUmemGenericAllocationHandle",
    "CUmemoryPool",
    "CUmipmappedArray",
    "CUmodule",
    "CUstream",
    "CUtexObject",
];

/// Types of functions that the driver calls.
const CALLBACKS: [&str; 3] = ["CUhostFn", "CUlogsCallback", "CUstreamCallback"];

/// What was written down so far.
pub(crate) struct Recorder {
    path: PathBuf,
    contents: Vec<u8>,
    tokens: HashMap<u64, Token>,
    /// Start of each piece of memory that a call gave: its length and token.
    memory: BTreeMap<u64, (u64, Token)>,
    kernels: HashSet<u64>,
    /// The libraries that modules are of: the image belongs to the library.
    libraries: HashMap<u64, u64>,
    threads: HashMap<ThreadId, u32>,
    next: u32,
    returned: Instant,
}

/// A call under way.
pub(crate) struct Running {
    number: u16,
    thread: u32,
    gap: Duration,
    args: Vec<Arg>,
}

/// One argument and all that belongs to it.
struct Seen<'a> {
    info: &'a CallInfo,
    all: &'a [u64],
    index: usize,
    name: &'static str,
    ty: &'static str,
    value: u64,
}

impl Recorder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self {
            path,
            contents: Vec::new(),
            tokens: HashMap::new(),
            memory: BTreeMap::new(),
            kernels: HashSet::new(),
            libraries: HashMap::new(),
            threads: HashMap::new(),
            next: 0,
            returned: Instant::now(),
        }
    }

    /// Where the file is to be.
    pub(crate) fn path(&self) -> &PathBuf {
        &self.path
    }

    /// The file.
    pub(crate) fn file(&self) -> Vec<u8> {
        calltrace::pack(&self.contents)
    }

    /// The program named a phase.
    pub(crate) fn mark(&mut self, name: &str) {
        calltrace::encode(&Step::Mark(name.to_owned()), &mut self.contents);
    }

    /// A call begins.
    pub(crate) fn begin(&mut self, info: &CallInfo, args: &[u64], now: Instant) -> Running {
        let count = u32::try_from(self.threads.len()).unwrap_or(u32::MAX);
        let thread = *self
            .threads
            .entry(std::thread::current().id())
            .or_insert(count);
        let types = info.args.unwrap_or(&[]);
        let args_kept = args
            .iter()
            .enumerate()
            .map(|(index, value)| {
                let (name, ty) = types.get(index).copied().unwrap_or(("?", "?"));
                self.arg(&Seen {
                    info,
                    all: args,
                    index,
                    name,
                    ty,
                    value: *value,
                })
            })
            .collect();
        Running {
            number: info.number,
            thread,
            gap: now.saturating_duration_since(self.returned),
            args: args_kept,
        }
    }

    /// It has returned.
    pub(crate) fn end(
        &mut self,
        running: Running,
        info: &CallInfo,
        args: &[u64],
        status: u32,
        spent: Duration,
        waits: u32,
    ) {
        let mut kept = running.args;
        let mut gave = Vec::new();
        if status == 0 {
            for (index, (_, ty)) in info.args.unwrap_or(&[]).iter().enumerate() {
                if let (Some(at), Some(Arg::Out(_, token))) = (args.get(index), kept.get_mut(index))
                {
                    *token = self.result(info, args, ty, *at, &mut gave);
                }
            }
        }
        let number = if info.symbol == "cuModuleLoad" {
            // The file is the program's; its image is played.
            CALLS
                .iter()
                .find(|call| call.symbol == "cuModuleLoadData")
                .map_or(running.number, |call| call.number)
        } else {
            running.number
        };
        let step = Step::Call(Call {
            number,
            thread: running.thread,
            gap_ticks: ticks(running.gap),
            ticks: ticks(spent),
            waits,
            status,
            args: kept,
        });
        calltrace::encode(&step, &mut self.contents);
        gave.into_iter().for_each(|handle| self.kernel(handle));
        if status == 0
            && info.symbol == "cuLibraryGetModule"
            && let [place, library] = *args
            && let Ok(module) = HostPtr::from_address(place).input::<u64>().get()
        {
            self.libraries.insert(module, library);
        }
        if status == 0 && info.symbol.ends_with("GetGlobal_v2") | info.symbol.ends_with("GetGlobal")
        {
            self.variable(args);
        }
        self.returned = Instant::now();
    }

    fn arg(&self, seen: &Seen<'_>) -> Arg {
        if seen.value == 0 {
            return Arg::Value(0);
        }
        let is_load = ["cuModuleLoad", "cuLibraryLoad"]
            .iter()
            .any(|start| seen.info.symbol.starts_with(start));
        match (seen.name, seen.ty) {
            ("kernelParams", _) => self.parameters(seen),
            ("image" | "code" | "fatCubin", _) => Arg::Image,
            ("fname" | "fileName", _) if is_load => Arg::Image,
            (_, ty) if is_load && !ty.ends_with("CUmodule") && !ty.ends_with("CUlibrary") => {
                Arg::Value(0)
            }
            ("extra", _) => extra(seen.value),
            (_, ty) if CALLBACKS.contains(&ty) => Arg::Callback,
            (_, "CUoccupancyB2DSize") => Arg::Value(0),
            (_, "*mut void" | "*const void" | "CUdeviceptr") => self.address(seen),
            (_, ty) if HANDLES.contains(&ty) => self.handle(seen.value),
            (_, ty) => match pointed(ty) {
                None => Arg::Value(seen.value),
                Some(inner) => self.pointer(seen, inner),
            },
        }
    }

    fn handle(&self, value: u64) -> Arg {
        self.tokens
            .get(&value)
            .map_or(Arg::Value(value), |token| Arg::Of(*token, 0))
    }

    /// An address of unknown kind.
    fn address(&self, seen: &Seen<'_>) -> Arg {
        let found = self.memory.range(..=seen.value).next_back();
        if let Some((start, (len, token))) = found
            && seen.value - start < (*len).max(1)
        {
            return Arg::Of(*token, seen.value - start);
        }
        let has_callback = seen
            .info
            .args
            .unwrap_or(&[])
            .iter()
            .any(|(_, ty)| CALLBACKS.contains(ty));
        if has_callback {
            return Arg::Value(0);
        }
        if seen.info.symbol.contains("Attribute") && seen.ty == "*mut void" {
            return bytes(seen.value, 8);
        }
        Arg::Host(named(seen, &["ByteCount", "bytesize", "size"]).unwrap_or(1))
    }

    fn pointer(&self, seen: &Seen<'_>, inner: &'static str) -> Arg {
        let next = seen.all.get(seen.index + 1).copied().unwrap_or(0);
        match (seen.name, inner) {
            (_, "char") if seen.ty.starts_with("*const") => {
                let text = HostPtr::from_address(seen.value);
                text.text_len()
                    .map_or(Arg::Unknown, |len| bytes(seen.value, len as u64 + 1))
            }
            ("data", "*mut void") => self.result_pointers(seen),
            ("attributes", "CUpointer_attribute") => {
                bytes(seen.value, 4 * seen.all.first().copied().unwrap_or(0))
            }
            ("mode", "CUstreamCaptureMode") => bytes(seen.value, 4),
            (name, "usize") if name.starts_with("num") => bytes(seen.value, 8),
            (_, ty) if seen.ty.starts_with("*const") && HANDLES.contains(&ty) => {
                self.handles(seen.value, next)
            }
            ("config", "CUlaunchConfig") => self.launch_config(seen.value),
            (_, ty) if STRUCTS.iter().any(|(name, _)| *name == ty) && is_input(seen) => {
                let size = STRUCTS
                    .iter()
                    .find(|(name, _)| *name == ty)
                    .map_or(0, |(_, size)| *size);
                let count = if seen.name == "desc" { next.max(1) } else { 1 };
                bytes(seen.value, size * count)
            }
            (_, ty) if seen.ty.starts_with("*const") || ty.starts_with("CUDA_") => Arg::Unknown,
            (_, "char") => Arg::Out(u32::try_from(next).unwrap_or(RESULT_BYTES), None),
            _ => Arg::Out(RESULT_BYTES, None),
        }
    }

    /// Kernel parameters: only their sizes.
    fn parameters(&self, seen: &Seen<'_>) -> Arg {
        let function = seen
            .info
            .args
            .unwrap_or(&[])
            .iter()
            .position(|(_, ty)| *ty == "CUfunction");
        let handle = function.and_then(|at| seen.all.get(at)).copied();
        let sizes = handle.and_then(|handle| {
            let function = process().ok()?.functions.get(handle).ok()?;
            Some(
                function
                    .info()
                    .ok()?
                    .params
                    .iter()
                    .map(|param| param.size_bytes)
                    .collect(),
            )
        });
        sizes.map_or(Arg::Unknown, Arg::Parameters)
    }

    /// `cuPointerGetAttributes`: a place for each result.
    fn result_pointers(&self, seen: &Seen<'_>) -> Arg {
        let count = seen.all.first().copied().unwrap_or(0).min(ELEMENTS_MAX);
        let places = (0..count)
            .filter_map(|at| u32::try_from(8 * at).ok())
            .map(|offset| (offset, Arg::Out(RESULT_BYTES, None)))
            .collect();
        Arg::Bytes(vec![0; usize::try_from(8 * count).unwrap_or(0)], places)
    }

    fn handles(&self, at: u64, count: u64) -> Arg {
        if count > ELEMENTS_MAX {
            return Arg::Unknown;
        }
        let list = HostPtr::from_address(at).input::<u64>();
        let places = (0..count)
            .filter_map(|index| {
                let value = list.get_at(usize::try_from(index).ok()?).ok()?;
                Some((u32::try_from(8 * index).ok()?, self.handle(value)))
            })
            .collect();
        Arg::Bytes(vec![0; usize::try_from(8 * count).unwrap_or(0)], places)
    }

    fn launch_config(&self, at: u64) -> Arg {
        let config: crate::abi::CUlaunchConfig = match HostPtr::from_address(at).input().get() {
            Ok(config) => config,
            Err(_) => return Arg::Unknown,
        };
        let Arg::Bytes(mut head, _) = bytes(at, 56) else {
            return Arg::Unknown;
        };
        if let Some(pointers) = head.get_mut(32..48) {
            pointers.fill(0);
        }
        let attributes = bytes(config.attrs, 72 * u64::from(config.numAttrs));
        let places = vec![(32, self.handle(config.hStream)), (40, attributes)];
        Arg::Bytes(head, places)
    }

    /// What a call wrote to `at`, if later calls may be given it.
    fn result(
        &mut self,
        info: &CallInfo,
        args: &[u64],
        ty: &'static str,
        at: u64,
        gave: &mut Vec<u64>,
    ) -> Option<Token> {
        let inner = pointed(ty)?;
        let is_memory =
            inner == "CUdeviceptr" || inner == "*mut void" && info.symbol.starts_with("cuMem");
        if at == 0 || !(is_memory || HANDLES.contains(&inner)) {
            return None;
        }
        let value = HostPtr::from_address(at).input::<u64>().get().ok()?;
        if value == 0 {
            return None;
        }
        let token = match self.tokens.get(&value) {
            // What a query tells is what was made before; an address is a new piece of memory.
            Some(token) if !is_memory => *token,
            _ => {
                self.next += 1;
                Token(self.next)
            }
        };
        if is_memory {
            let known = process()
                .ok()
                .and_then(|process| process.memory.find(value))
                .filter(|allocation| allocation.start == value)
                .map(|allocation| allocation.bytes);
            let names = info.args.unwrap_or(&[]);
            let asked = names
                .iter()
                .position(|(name, _)| matches!(*name, "bytesize" | "size"))
                .and_then(|index| args.get(index))
                .copied();
            self.memory
                .insert(value, (known.or(asked).unwrap_or(1), token));
        } else {
            self.tokens.insert(value, token);
            if matches!(inner, "CUfunction" | "CUkernel") {
                gave.push(value);
            }
        }
        Some(token)
    }

    /// Token of the load that brought a module's or library's image.
    fn image_of(&self, handle: u64) -> Option<Token> {
        let loaded = self.libraries.get(&handle).unwrap_or(&handle);
        self.tokens.get(loaded).copied()
    }

    /// Names a variable: (address, bytes, module, name) of the call that asked for it.
    fn variable(&mut self, args: &[u64]) {
        let [address, _, module, name] = *args else {
            return;
        };
        let place = HostPtr::from_address(address).input::<u64>();
        let known = place.get().ok().and_then(|start| self.memory.get(&start));
        let name = HostPtr::from_address(name);
        let text = name.text_len().and_then(|len| name.bytes(len));
        if let (Some((bytes, _)), Some(module), Ok(text)) = (known, self.image_of(module), text) {
            let step = Step::Variable {
                module,
                name: String::from_utf8_lossy(text).into_owned(),
                bytes: *bytes,
            };
            calltrace::encode(&step, &mut self.contents);
        }
    }

    /// Names a kernel, once.
    fn kernel(&mut self, handle: u64) {
        if !self.kernels.insert(handle) {
            return;
        }
        let Ok(function) = process().and_then(|process| process.functions.get(handle)) else {
            return;
        };
        let home = match &function.home {
            Home::Module(module) => module.handle,
            Home::Library(library) => library.handle,
        };
        if let (Some(module), Ok(info)) = (self.image_of(home), function.info()) {
            let step = Step::Kernel {
                module,
                name: info.name.clone(),
                params: info.params.clone(),
            };
            calltrace::encode(&step, &mut self.contents);
        }
    }
}

/// Whether a structure is read, not written.
fn is_input(seen: &Seen<'_>) -> bool {
    !seen.info.symbol.contains("Get") || seen.ty.starts_with("*const")
}

/// What a pointer type points to.
fn pointed(ty: &'static str) -> Option<&'static str> {
    ty.strip_prefix("*mut ")
        .or_else(|| ty.strip_prefix("*const "))
}

/// The value of the first argument with one of these names.
fn named(seen: &Seen<'_>, names: &[&str]) -> Option<u64> {
    let types = seen.info.args?;
    let index = types.iter().position(|(name, _)| names.contains(name))?;
    seen.all.get(index).copied()
}

/// The other way to pass kernel parameters: only their size. Pairs of a key (1: the buffer, 2: where its size is) and a
/// pointer, up to the key 0.
fn extra(at: u64) -> Arg {
    const PAIRS_MAX: usize = 4;
    let list = HostPtr::from_address(at).input::<u64>();
    let (mut content, mut pointers, mut size) = (Vec::new(), Vec::new(), 0);
    for index in (0..2 * PAIRS_MAX).step_by(2) {
        let (Ok(key), Ok(pointer)) = (list.get_at(index), list.get_at(index + 1)) else {
            return Arg::Unknown;
        };
        content.extend_from_slice(&key.to_le_bytes());
        if key == 0 {
            break;
        }
        let place = u32::try_from(content.len()).unwrap_or(0);
        content.extend_from_slice(&[0; 8]);
        if key == 2 {
            size = HostPtr::from_address(pointer)
                .input::<u64>()
                .get()
                .unwrap_or(0);
        }
        pointers.push((place, key, pointer));
    }
    let pointers = pointers
        .into_iter()
        .map(|(place, key, pointer)| match key {
            1 => (place, Arg::Out(u32::try_from(size).unwrap_or(0), None)),
            _ => (place, bytes(pointer, 8)),
        })
        .collect();
    Arg::Bytes(content, pointers)
}

fn bytes(at: u64, len: u64) -> Arg {
    let content = usize::try_from(len)
        .ok()
        .and_then(|len| HostPtr::from_address(at).bytes(len).ok());
    content.map_or(Arg::Unknown, |content| {
        Arg::Bytes(content.to_vec(), Vec::new())
    })
}

fn ticks(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX) / TICK_NS
}
