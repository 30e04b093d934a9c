//! What a process has: sessions, devices, and every object that a handle names.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use farcall_config::{ClientConfig, ConfigError};
use farcall_marshal::record::{self, Record};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::text::printable;
use farcall_marshal::wire::{DeviceDescription, SessionOpen, SessionWelcome};
use farcall_transport::{ConnectOptions, connect};
use parking_lot::Mutex;

use crate::array::{Array, Mipmapped};
use crate::attributes::{self, LaunchLimits};
use crate::context::{Context, Primary};
use crate::crossing::Crossings;
use crate::event::Event;
use crate::global;
use crate::graph::{Graph, GraphExec, GraphMemory, GraphNode, UserObject};
use crate::handle::{Kind, Table};
use crate::link::Linker;
use crate::memory::Allocations;
use crate::module::{Function, Library, Module};
use crate::observe;
use crate::pool::Pool;
use crate::reserve::{self, Range, Reserved};
use crate::session::{DeviceKind, Inbox, Opened, Session, SessionKey};
use crate::stream::Stream;
use crate::texture::TextureObject;
use crate::virtual_memory::VirtualMemory;

/// Addresses reserved for device and pinned memory: far more than any GPU has. Freed ranges need not be reused soon, and programs
/// reserve a GPU's size of addresses several times over (PyTorch's expandable segments).
const DEVICE_RANGE_BYTES: u64 = 4 << 40;

/// `CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID`.
const PCI_DOMAIN_ID: usize = 50;

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
    pub(crate) textures: Mutex<HashMap<(SessionKey, u64), TextureObject>>,
    pub(crate) user_objects: Table<UserObject>,
    pub(crate) linkers: Table<Linker>,
    /// Memory of graphs, by address.
    pub(crate) graph_memory: Mutex<HashMap<u64, Weak<GraphMemory>>>,
    pub(crate) crossings: Crossings,
}

/// What this process has, or `NOT_INITIALIZED`.
#[inline]
pub(crate) fn process() -> CuResult<&'static Process> {
    global::process().ok_or(CuStatus::NOT_INITIALIZED)
}

impl Process {
    /// Whether devices are of several servers.
    #[inline]
    pub(crate) fn has_several_servers(&self) -> bool {
        self.sessions.len() > 1
    }

    /// Waits for copies of any server that write to these addresses: a program may read there next.
    pub(crate) fn await_writers(&self, start: u64, len: u64) -> CuResult {
        self.sessions
            .iter()
            .try_for_each(|session| session.await_writers(start, len))
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
    let unusable = |error: ConfigError| Failure {
        status: CuStatus::NO_DEVICE,
        line: format!("no CUDA device: {error}"),
    };
    let config = ClientConfig::from_process().map_err(unusable)?;
    observe::configure(&config);
    let (mut connected, mut described) = (Vec::new(), Vec::new());
    for (number, config) in config.each().map_err(unusable)?.iter().enumerate() {
        let (session, mut descriptions) = connect_session(config)?;
        keep_apart(&connected, &session, config)?;
        for description in &mut descriptions {
            description.move_to_domain(number);
        }
        connected.push(session);
        described.extend(descriptions.into_iter().enumerate().map(|of| (number, of)));
    }
    let chosen = visible(&described);
    if chosen.is_empty() {
        let line = format!(
            "no CUDA device: the server {} granted none (CUDA_VISIBLE_DEVICES hides them, or it has none free)",
            config.server_list()
        );
        return Err(Failure {
            status: CuStatus::NO_DEVICE,
            line,
        });
    }
    let is_used = |number: usize| chosen.iter().any(|(of, _)| *of == number);
    // A server all of whose devices are hidden has the program no longer.
    let kept: HashMap<usize, &'static Session> = connected
        .into_iter()
        .enumerate()
        .filter(|(number, _)| is_used(*number))
        .map(|(number, session)| (number, &*Box::leak(Box::new(session))))
        .collect();
    let pools = Table::new(Kind::Pool);
    let mut devices: Vec<&'static Device> = Vec::new();
    for (number, (index, description)) in chosen {
        let Some(session) = kept.get(&number) else {
            continue;
        };
        let pool = pools.reserve();
        let ordinal = u32::try_from(devices.len()).unwrap_or(u32::MAX);
        let device = Box::new(device(session, ordinal, *index, description, pool));
        devices.push(Box::leak(device));
        pools.insert(pool, Arc::new(Pool::of_device(ordinal)));
    }
    let mut sessions: Vec<(usize, &'static Session)> = kept.into_iter().collect();
    sessions.sort_unstable_by_key(|(number, _)| *number);
    let sessions = sessions.into_iter().map(|(_, session)| session).collect();
    Ok(Process::of(sessions, devices, pools))
}

impl Process {
    fn of(
        sessions: Vec<&'static Session>,
        devices: Vec<&'static Device>,
        pools: Table<Pool>,
    ) -> Self {
        Self {
            sessions,
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
            crossings: Crossings::default(),
        }
    }
}

/// Pointers tell devices of several servers apart, so no address may mean something on two of them.
fn keep_apart(earlier: &[Session], new: &Session, config: &ClientConfig) -> Result<(), Failure> {
    let refused = |why: String| {
        Err(Failure {
            status: CuStatus::NO_DEVICE,
            line: format!("no CUDA device: server {}: {why}", config.server),
        })
    };
    for other in earlier {
        if other.places_memory() || new.places_memory() {
            return refused(
                "a driver that cannot map memory where it is told to shares no program with another server's; use one server"
                    .to_owned(),
            );
        }
        if other.overlaps(new) {
            return refused(
                "it can only use addresses that another server of this program uses; start the program again"
                    .to_owned(),
            );
        }
    }
    Ok(())
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

impl Description {
    /// Programs tell devices apart by their bus addresses, which servers give independently of each other.
    fn move_to_domain(&mut self, server: usize) {
        let offset = farcall_config::pci_domain_offset(server);
        self.pci.0 = self.pci.0.saturating_add(offset);
        if let (Some(domain), Ok(value)) = (
            self.attributes.get_mut(PCI_DOMAIN_ID),
            i32::try_from(self.pci.0),
        ) {
            *domain = value;
        }
    }
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
    let (endpoint, welcome) = connect(&options(config, proposed.as_ref()), Arc::clone(&inbox) as _)
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
    let host_range = settle(proposed, device_range, host_range);
    log::info!(
        "server {} ({}), transport {} ({})",
        config.server,
        printable(welcome.server_name),
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
/// was proposed, and returns what pinned memory can have of it. Where device memory is taken, its pointers still
/// work; only the promise that no host pointer looks like one is lost. Where pinned memory is, there can be none.
fn settle(proposed: Option<Reserved>, device: Range, host: Range) -> Reserved {
    if device.bytes == 0 && host.bytes == 0 {
        // The server's driver places memory where it likes: there is nothing to keep free for it.
        return Reserved::NONE;
    }
    let wanted = |range: Range| range.holds(&device) && (host.bytes == 0 || range.holds(&host));
    let reserved = match proposed {
        Some(proposed) if wanted(proposed.range()) => Some(proposed),
        Some(proposed) => {
            reserve::release(proposed);
            reserve_both(device, host)
        }
        None => reserve_both(device, host),
    };
    if host.bytes == 0 {
        return Reserved::NONE;
    }
    if let Some(Ok(part)) = reserved.map(|reserved| reserved.part(host)) {
        return part;
    }
    log::warn!(
        "addresses of {:#x} bytes from {:#x} are taken in this process: host and device pointers may look alike",
        device.bytes,
        device.start
    );
    reserve::at(host.start, host.bytes).unwrap_or_else(|| {
        log::warn!(
            "so are {:#x} bytes from {:#x}: there is no pinned or managed memory on this server",
            host.bytes,
            host.start
        );
        Reserved::NONE
    })
}

/// Both ranges and what lies between, pinned memory behind device memory as servers have it.
fn reserve_both(device: Range, host: Range) -> Option<Reserved> {
    let end = match host.bytes {
        0 => device.start.checked_add(device.bytes)?,
        bytes => host.start.checked_add(bytes)?,
    };
    reserve::at(device.start, end.checked_sub(device.start)?)
}

fn options(config: &ClientConfig, proposed: Option<&Reserved>) -> ConnectOptions {
    let program =
        std::env::current_exe().map_or_else(|_| String::new(), |path| path.display().to_string());
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let open = SessionOpen {
        range_base: proposed.map_or(0, |range| range.range().start),
        range_bytes: proposed.map_or(0, |range| range.range().bytes),
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
        attributes: attributes::at_a_distance(&d.attributes),
        used_bytes: AtomicU64::new(0),
        primary: Mutex::default(),
        pool,
        chosen_pool: AtomicU64::new(0),
        limits: LaunchLimits::of(&d.attributes),
    }
}

/// A device of a server: the server's number, and its own in the session.
type Described = (usize, (usize, Description));

/// Devices in the order of CUDA_VISIBLE_DEVICES: ordinals or beginnings of UUIDs; the first that is
/// neither ends the list, as the CUDA runtime documents it.
fn visible(described: &[Described]) -> Vec<(usize, &(usize, Description))> {
    let Ok(wanted) = std::env::var("CUDA_VISIBLE_DEVICES") else {
        return described.iter().map(|(server, of)| (*server, of)).collect();
    };
    let mut list: Vec<usize> = Vec::new();
    for item in wanted.split(',').map(str::trim) {
        let found = match item.strip_prefix("GPU-") {
            Some(prefix) => {
                let prefix = prefix.replace('-', "").to_lowercase();
                described
                    .iter()
                    .position(|(_, (_, d))| hex(&d.uuid).starts_with(&prefix))
            }
            None => item.parse().ok().filter(|index| *index < described.len()),
        };
        match found {
            Some(index) if !list.contains(&index) => list.push(index),
            _ => break,
        }
    }
    list.into_iter()
        .filter_map(|index| described.get(index))
        .map(|(server, of)| (*server, of))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::settle;
    use crate::reserve::{self, Range};

    const GIB: u64 = 1 << 30;

    /// Device memory and pinned memory behind it, from `start` on.
    fn ranges(start: u64) -> [Range; 2] {
        [start, start + GIB].map(|start| Range { start, bytes: GIB })
    }

    #[test]
    fn what_was_proposed_is_used() {
        let proposed = reserve::anywhere(2 * GIB).unwrap();
        let [device, host] = ranges(proposed.range().start);
        assert_eq!(settle(Some(proposed), device, host).range(), host);
    }

    #[test]
    fn what_the_server_moved_is_reserved_where_it_is() {
        let [proposed, other] = [(); 2].map(|()| reserve::anywhere(2 * GIB).unwrap());
        let start = other.range().start;
        reserve::release(other);
        let [device, host] = ranges(start);
        let settled = settle(Some(proposed), device, host);
        assert_eq!(settled.range(), host);
        assert!(reserve::at(device.start, GIB).is_none());
    }

    #[test]
    fn device_memory_may_be_taken_but_pinned_memory_is_never_put_over_the_programs() {
        let [proposed, theirs, free] = [(); 3].map(|()| reserve::anywhere(2 * GIB).unwrap());
        let (start, taken) = (proposed.range().start, theirs.range());
        let [device, _] = ranges(start);
        let on_theirs = Range {
            start: taken.start,
            bytes: GIB,
        };
        // Device memory where it was proposed, pinned memory over something of the program's.
        assert_eq!(settle(Some(proposed), device, on_theirs).range().bytes, 0);
        // And the other way round.
        let host = ranges(free.range().start)[1];
        reserve::release(free);
        assert_eq!(settle(None, on_theirs, host).range(), host);
        // Ranges that run over the end of all addresses.
        let endless = Range {
            start: u64::MAX - 4095,
            bytes: GIB,
        };
        assert_eq!(settle(None, endless, endless).range().bytes, 0);
    }
}
