//! What a process has: sessions, devices, and every object that a handle names.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use farcall_config::ClientConfig;
use farcall_marshal::record::{self, Record};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{DeviceDescription, SessionOpen, SessionWelcome};
use farcall_transport::{ConnectOptions, connect};
use parking_lot::Mutex;

use crate::array::{Array, Mipmapped};
use crate::attributes::LaunchLimits;
use crate::context::{Context, Primary};
use crate::event::Event;
use crate::global;
use crate::graph::{Graph, GraphExec, GraphMemory, GraphNode, UserObject};
use crate::handle::{Kind, Table};
use crate::link::Linker;
use crate::memory::{Allocations, Pool};
use crate::module::{Function, Library, Module};
use crate::observe;
use crate::reserve::{self, Range};
use crate::session::{DeviceKind, Inbox, Opened, Session};
use crate::stream::Stream;
use crate::texture::TextureObject;
use crate::virtual_memory::VirtualMemory;

/// Addresses reserved for device and pinned memory: far more than any GPU has. Freed ranges need not be reused soon, and programs
/// reserve a GPU's size of addresses several times over (PyTorch's expandable segments).
const DEVICE_RANGE_BYTES: u64 = 4 << 40;

/// One device, as the program numbers it.
pub(crate) struct Device {
    pub(crate) session: &'static Session,
    /// The program's ordinal.
    pub(crate) ordinal: u32,
    /// Ordinal within the session, which the server maps to its own.
    pub(crate) index: u32,
    /// The server's number for it, for people.
    pub(crate) server_ordinal: u32,
    pub(crate) name: String,
    pub(crate) uuid: [u8; 16],
    pub(crate) pci: (u32, u32, u32),
    pub(crate) sm: u32,
    pub(crate) limit_bytes: u64,
    pub(crate) attributes: Vec<i32>,
    pub(crate) used_bytes: AtomicU64,
    pub(crate) primary: Mutex<Primary>,
    /// Handle of its default memory pool.
    pub(crate) pool: u64,
    /// Handle of the pool that the program chose instead; 0 = none.
    pub(crate) chosen_pool: AtomicU64,
    limits: LaunchLimits,
}

impl Device {
    /// What a launch must keep to.
    #[inline]
    pub(crate) fn launch_limits(&self) -> &LaunchLimits {
        &self.limits
    }
}

/// Everything that this process has.
pub(crate) struct Process {
    pub(crate) sessions: Vec<&'static Session>,
    pub(crate) devices: Vec<&'static Device>,
    pub(crate) contexts: Table<&'static Context>,
    pub(crate) streams: Table<Stream>,
    pub(crate) events: Table<Event>,
    pub(crate) modules: Table<Module>,
    pub(crate) libraries: Table<Library>,
    pub(crate) functions: Table<Function>,
    pub(crate) graphs: Table<Graph>,
    pub(crate) graph_nodes: Table<GraphNode>,
    pub(crate) graph_execs: Table<GraphExec>,
    pub(crate) pools: Table<Pool>,
    pub(crate) memory: Allocations,
    pub(crate) space: VirtualMemory,
    pub(crate) arrays: Table<Array>,
    pub(crate) mipmapped: Table<Mipmapped>,
    /// Texture and surface objects, by the server's handle.
    pub(crate) textures: Mutex<HashMap<u64, TextureObject>>,
    pub(crate) user_objects: Table<UserObject>,
    pub(crate) linkers: Table<Linker>,
    /// Memory of graphs, by address.
    pub(crate) graph_memory: Mutex<HashMap<u64, Weak<GraphMemory>>>,
}

/// What this process has, or `NOT_INITIALIZED`.
#[inline]
pub(crate) fn process() -> CuResult<&'static Process> {
    global::process().ok_or(CuStatus::NOT_INITIALIZED)
}

impl Process {
    /// Whether waiting for one context is waiting for all.
    pub(crate) fn has_one_context(&self) -> bool {
        self.contexts.len() == 1
    }

    /// The device with this ordinal, or `INVALID_DEVICE`.
    #[inline]
    pub(crate) fn device(&self, ordinal: i32) -> CuResult<&'static Device> {
        let index = usize::try_from(ordinal).map_err(|_| CuStatus::INVALID_DEVICE)?;
        self.devices
            .get(index)
            .copied()
            .ok_or(CuStatus::INVALID_DEVICE)
    }
}

/// What this process has; connects on the first call. A failure is said once on stderr and tried again by the
/// next call.
pub(crate) fn open() -> CuResult<&'static Process> {
    static OPENING: Mutex<()> = Mutex::new(());
    if let Some(process) = global::process() {
        return Ok(process);
    }
    let _guard = OPENING.lock();
    if let Some(process) = global::process() {
        return Ok(process);
    }
    match connect_process() {
        Ok(process) => Ok(global::publish(Box::new(process))),
        Err(failure) => {
            static SAID: AtomicBool = AtomicBool::new(false);
            if !SAID.swap(true, Ordering::Relaxed) {
                eprintln!("farcall: {}", failure.line);
            }
            Err(failure.status)
        }
    }
}

static FINISHING: AtomicBool = AtomicBool::new(false);

/// Whether the process is on its way out, so that a closed connection is nothing to report.
pub(crate) fn is_finishing() -> bool {
    FINISHING.load(Ordering::Relaxed)
}

/// Sends what is pending and writes what was counted. Runs once, when the process ends.
pub(crate) fn finish() {
    let Some(process) = global::process() else {
        observe::finish(None);
        return;
    };
    FINISHING.store(true, Ordering::Relaxed);
    observe::finish(Some(process));
    for session in &process.sessions {
        let _ = session.endpoint.flush();
        session.endpoint.close();
    }
}

/// Why no device can be had: one line that says what was tried and what to do.
struct Failure {
    status: CuStatus,
    line: String,
}

fn connect_process() -> Result<Process, Failure> {
    let config = ClientConfig::from_process().map_err(|error| Failure {
        status: CuStatus::NO_DEVICE,
        line: format!("no CUDA device: {error}"),
    })?;
    observe::configure(&config);
    let (session, descriptions) = connect_session(&config)?;
    let session: &'static Session = Box::leak(Box::new(session));
    let pools = Table::new(Kind::Pool);
    let mut devices: Vec<&'static Device> = Vec::new();
    for index in visible(&descriptions) {
        let pool = pools.reserve();
        let ordinal = u32::try_from(devices.len()).unwrap_or(u32::MAX);
        if let Some(description) = descriptions.get(index) {
            let device = Box::new(device(session, ordinal, index, description, pool));
            devices.push(Box::leak(device));
            pools.insert(pool, Arc::new(Pool::of_device(ordinal)));
        }
    }
    if devices.is_empty() {
        let line = format!(
            "no CUDA device: the server {} granted none (CUDA_VISIBLE_DEVICES hides them, or it has none free)",
            config.server
        );
        return Err(Failure {
            status: CuStatus::NO_DEVICE,
            line,
        });
    }
    Ok(Process {
        sessions: vec![session],
        devices,
        contexts: Table::new(Kind::Context),
        streams: Table::new(Kind::Stream),
        events: Table::new(Kind::Event),
        modules: Table::new(Kind::Module),
        libraries: Table::new(Kind::Library),
        functions: Table::new(Kind::Function),
        graphs: Table::new(Kind::Graph),
        graph_nodes: Table::new(Kind::GraphNode),
        graph_execs: Table::new(Kind::GraphExec),
        pools,
        memory: Allocations::default(),
        space: VirtualMemory::new(),
        arrays: Table::new(Kind::Array),
        mipmapped: Table::new(Kind::Mipmapped),
        textures: Mutex::default(),
        user_objects: Table::new(Kind::UserObject),
        linkers: Table::new(Kind::Linker),
        graph_memory: Mutex::default(),
    })
}

/// A device description that owns its parts.
struct Description {
    limit_bytes: u64,
    server_ordinal: u32,
    sm: u32,
    pci: (u32, u32, u32),
    uuid: [u8; 16],
    attributes: Vec<i32>,
    name: String,
}

fn connect_session(config: &ClientConfig) -> Result<(Session, Vec<Description>), Failure> {
    let unreachable = |why: String| Failure {
        status: CuStatus::NO_DEVICE,
        line: format!(
            "no CUDA device: server {} (from {}): {why}; start one with `farcall serve`, or name another with FARCALL_SERVER",
            config.server, config.server_origin
        ),
    };
    let proposed = reserve::anywhere(DEVICE_RANGE_BYTES);
    let inbox = Arc::new(Inbox::of(&config.server));
    let (endpoint, welcome) = connect(&options(config, proposed), Arc::clone(&inbox) as _)
        .map_err(|e| unreachable(e.to_string()))?;
    let foreign = |_| unreachable("it answers what no farcall server answers".to_owned());
    let (head, body, _) = record::split(&welcome).map_err(foreign)?;
    if head.number != SessionWelcome::NUMBER {
        return Err(unreachable("it does not welcome this client".to_owned()));
    }
    let welcome = SessionWelcome::decode_body(body).map_err(foreign)?;
    let descriptions = descriptions(welcome.devices).map_err(foreign)?;
    let kind = match welcome.device_kind {
        1 => DeviceKind::Cuda,
        2 => DeviceKind::Soft,
        3 => DeviceKind::Null,
        other => {
            return Err(unreachable(format!(
                "it has devices of the unknown kind {other}"
            )));
        }
    };
    let device_range = Range {
        start: welcome.range_base,
        bytes: welcome.range_bytes,
    };
    let host_range = Range {
        start: welcome.host_range_base,
        bytes: welcome.host_range_bytes,
    };
    settle(proposed, device_range, host_range);
    log::info!(
        "server {} ({}), transport {} ({})",
        config.server,
        welcome.server_name,
        endpoint.transport_name(),
        endpoint.transport_reason()
    );
    let session = Session::new(Opened {
        endpoint,
        inbox,
        kind,
        driver_version: welcome.driver_version,
        device_range,
        host_range,
        known_modules: welcome
            .cached_modules
            .as_chunks::<32>()
            .0
            .iter()
            .copied()
            .collect(),
    });
    Ok((session, descriptions))
}

/// Reserves here what the server settled on, from device memory to the end of pinned memory, unless it is what
/// was proposed. Where it is taken, device pointers still work; only the promise that no host pointer looks like
/// one is lost.
fn settle(proposed: Option<Range>, device: Range, host: Range) {
    if device.bytes == 0 && host.bytes == 0 {
        // The server's driver places memory where it likes: there is nothing to keep free for it.
        return;
    }
    let end = host.start.saturating_add(host.bytes);
    if let Some(range) = proposed {
        if range.start == device.start && end <= range.start + range.bytes {
            return;
        }
        reserve::release(range);
    }
    if reserve::at(device.start, end.saturating_sub(device.start)).is_none() {
        log::warn!(
            "addresses {:#x}..{end:#x} are taken in this process: host and device pointers may look alike",
            device.start
        );
    }
}

fn options(config: &ClientConfig, proposed: Option<Range>) -> ConnectOptions {
    let program =
        std::env::current_exe().map_or_else(|_| String::new(), |path| path.display().to_string());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let open = SessionOpen {
        range_base: proposed.map_or(0, |range| range.start),
        range_bytes: proposed.map_or(0, |range| range.bytes),
        memory_bytes: config.memory_bytes.unwrap_or(0),
        pid: std::process::id(),
        device_count: config.devices.unwrap_or(0),
        share_permille: config.share_permille.map_or(0, u32::from),
        host_name: host.trim(),
        program: &program,
    };
    let mut options = config.connect_options();
    options.tuning.grace = config.grace;
    options.payload = record::to_vec(record::Head::request(SessionOpen::NUMBER, 0, 0), &open);
    options
}

fn descriptions(mut bytes: &[u8]) -> Result<Vec<Description>, record::DecodeError> {
    let mut list = Vec::new();
    while !bytes.is_empty() {
        let (_, body, rest) = record::split(bytes)?;
        let d = DeviceDescription::decode_body(body)?;
        let mut uuid = [0; 16];
        uuid.iter_mut()
            .zip(d.uuid)
            .for_each(|(to, from)| *to = *from);
        list.push(Description {
            limit_bytes: d.limit_bytes,
            server_ordinal: d.server_ordinal,
            sm: d.sm,
            pci: (d.pci_domain, d.pci_bus, d.pci_device),
            uuid,
            attributes: d
                .attributes
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| i32::from_le_bytes(*bytes))
                .collect(),
            name: d.name.to_owned(),
        });
        bytes = rest;
    }
    Ok(list)
}

fn device(
    session: &'static Session,
    ordinal: u32,
    index: usize,
    d: &Description,
    pool: u64,
) -> Device {
    Device {
        session,
        ordinal,
        index: u32::try_from(index).unwrap_or(u32::MAX),
        server_ordinal: d.server_ordinal,
        name: d.name.clone(),
        uuid: d.uuid,
        pci: d.pci,
        sm: d.sm,
        limit_bytes: d.limit_bytes,
        attributes: d.attributes.clone(),
        used_bytes: AtomicU64::new(0),
        primary: Mutex::default(),
        pool,
        chosen_pool: AtomicU64::new(0),
        limits: LaunchLimits::of(&d.attributes),
    }
}

/// Devices in the order of CUDA_VISIBLE_DEVICES: ordinals or beginnings of UUIDs; the first that is
/// neither ends the list, as the CUDA runtime documents it.
fn visible(descriptions: &[Description]) -> Vec<usize> {
    let Ok(wanted) = std::env::var("CUDA_VISIBLE_DEVICES") else {
        return (0..descriptions.len()).collect();
    };
    let mut list = Vec::new();
    for item in wanted.split(',').map(str::trim) {
        let found = match item.strip_prefix("GPU-") {
            Some(prefix) => {
                let prefix = prefix.replace('-', "").to_lowercase();
                descriptions
                    .iter()
                    .position(|d| hex(&d.uuid).starts_with(&prefix))
            }
            None => item
                .parse()
                .ok()
                .filter(|index| *index < descriptions.len()),
        };
        match found {
            Some(index) if !list.contains(&index) => list.push(index),
            _ => break,
        }
    }
    list
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
