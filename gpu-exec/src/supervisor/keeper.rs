//! The supervisor's loop: one thread that owns all executors and decides about all sessions.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use farcall_marshal::record::{Record, split};
use farcall_marshal::text::printable;
use farcall_marshal::wire::SessionOpen;
use farcall_transport::{Incoming, IncomingKind, RefuseCode};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::admission::Admitted;
use super::answer::{Inventories, inventory};
use super::executors::{Executor, Serving, Stage};
use super::inbox::{Event, Inbox};
use super::leases::Seen;
use super::plan::Plan;
use super::usage::{Counting, Past};
use super::wedged::Checks;
use crate::cache::Cache;
use crate::control::{self, Counts, OpenOrder, Order};
use crate::device::cuda::mps;
use crate::device::describe::{DeviceSpec, WHOLE_PERMILLE, device_uuid};
use crate::ledger::{Ledger, Slot};
use crate::limits::{OPEN_BYTES_MAX, SESSIONS_MAX};
use crate::share::board::Board;
use crate::{Fault, ServeError};

/// `session_open.device_count` of a client that only asks.
pub(crate) const INVENTORY_ONLY: u32 = u32::MAX;
/// How long executors have to say goodbye to their clients.
const FAREWELL: Duration = Duration::from_secs(3);
/// Executors that may fail to start in a row before no more are started unasked.
const FAILED_STARTS_MAX: u32 = 3;

/// Owner of all executors.
pub(crate) struct Keeper {
    pub(super) plan: Plan,
    pub(super) inbox: Arc<Inbox>,
    pub(super) ledger: Ledger,
    pub(super) board: Board,
    pub(super) cache: Cache,
    pub(super) executors: BTreeMap<u64, Executor>,
    next_id: u64,
    slots: Vec<Slot>,
    /// Clients for whom no executor is ready yet.
    pub(super) waiting: VecDeque<Client>,
    /// Leases that are over, and why.
    pub(super) ended: BTreeMap<u64, String>,
    pub(super) failed_starts: u32,
    inventories: Inventories,
    /// What sessions that are over have had, by device.
    pub(super) past: Past,
    pub(super) counting: Counting,
    pub(super) checks: Checks,
    pub(super) stopping: Option<Instant>,
}

/// A client whose hello was checked.
pub(super) struct Client {
    incoming: Incoming,
    name: String,
    devices: Vec<DeviceSpec>,
    /// 0 = none.
    lease: u64,
}

impl Client {
    pub(super) fn lease(&self) -> u64 {
        self.lease
    }

    /// What it will get of which devices.
    pub(super) fn devices(&self) -> &[DeviceSpec] {
        &self.devices
    }

    pub(super) fn refuse(self, why: &str) {
        self.incoming.refuse(RefuseCode::TOKEN, why);
    }
}

impl Keeper {
    /// Starts the first executors.
    ///
    /// # Errors
    /// No memory, or no executor can be started.
    pub(crate) fn new(plan: Plan, inbox: Arc<Inbox>) -> Result<Self, ServeError> {
        let ledger = Ledger::create().map_err(ServeError::system("make the ledger"))?;
        let board = Board::create().map_err(ServeError::system("make the board"))?;
        if let Some(Fault::GpuLostAfter(kernels)) = plan.fault {
            board.lose_after(0, kernels);
        }
        for device in plan.devices.iter().filter(|_| plan.measure) {
            board.measure(device.ordinal as usize);
        }
        let cache = Cache::new(plan.cache_directory.clone());
        cache.trim(plan.cache_bytes_max);
        let mut keeper = Self {
            inbox,
            ledger,
            board,
            cache,
            executors: BTreeMap::new(),
            next_id: 0,
            slots: (0..SESSIONS_MAX).rev().map(Slot).collect(),
            waiting: VecDeque::new(),
            ended: BTreeMap::new(),
            failed_starts: 0,
            inventories: Inventories::default(),
            past: Past::default(),
            counting: Counting::default(),
            checks: Checks::default(),
            stopping: None,
            plan,
        };
        keeper.start_executor().map_err(|source| {
            let program = keeper.plan.program.to_string_lossy().into_owned();
            ServeError::Executor { program, source }
        })?;
        Ok(keeper)
    }

    /// Serves until stopped.
    ///
    /// # Errors
    /// The system's poll failed.
    pub(crate) fn run(mut self) -> Result<(), ServeError> {
        loop {
            self.refill();
            let readable = self.poll().map_err(ServeError::system("poll"))?;
            for event in self.inbox.take() {
                self.take_event(event);
            }
            for id in readable {
                self.read_reports(id);
            }
            self.assign_waiting();
            self.kill_overdue(FAREWELL);
            self.give_up_unkillable();
            self.answer_overdue();
            if let Some(since) = self.stopping {
                if self.executors.is_empty() {
                    return Ok(());
                }
                if since.elapsed() > FAREWELL {
                    self.executors.values().for_each(Executor::kill);
                }
            }
        }
    }

    /// Waits for something to happen; the executors that have something to say.
    fn poll(&self) -> std::io::Result<Vec<u64>> {
        let sockets: Vec<_> = self
            .executors
            .iter()
            .filter_map(|(id, executor)| Some((*id, executor.socket()?)))
            .collect();
        let mut polled = vec![PollFd::new(self.inbox.wake(), PollFlags::POLLIN)];
        polled.extend(
            sockets
                .iter()
                .map(|(_, socket)| PollFd::new(*socket, PollFlags::POLLIN)),
        );
        let timeout = if self.stopping.is_some() || self.is_ending() || self.counting.is_waiting() {
            PollTimeout::from(100_u8)
        } else {
            PollTimeout::NONE
        };
        match poll(&mut polled, timeout) {
            Err(nix::errno::Errno::EINTR) | Ok(0) => return Ok(Vec::new()),
            other => other?,
        };
        let ready = polled
            .iter()
            .skip(1)
            .zip(&sockets)
            .filter(|(fd, _)| fd.any().unwrap_or(true));
        Ok(ready.map(|(_, (id, _))| *id).collect())
    }

    fn take_event(&mut self, event: Event) {
        match event {
            Event::Client(incoming, _) if self.stopping.is_some() => {
                incoming.refuse(RefuseCode::DRAINING, "the server stops")
            }
            Event::Client(incoming, admitted) => self.take_client(incoming, admitted),
            Event::Further(incoming) => self.take_further(incoming),
            Event::EndLease(lease, reason) => self.end_lease(lease, &reason),
            // Who asked may have gone.
            Event::Activity(answer) => drop(answer.try_send(self.activity())),
            Event::Usage(answer) => self.count(answer),
            Event::Reaped(id) => self.forget(id),
            Event::Peer(incoming, session) => self.take_peer(incoming, session),
            Event::Dialed(id, number, outcome) => self.pass_on(id, number, outcome),
            Event::Checked(device, found) => self.take_checked(device, found),
            Event::Stop => self.stop(),
        }
    }

    /// Checks what a client asks for.
    fn take_client(&mut self, incoming: Incoming, admitted: Option<Admitted>) {
        let payload = incoming.payload();
        let hello = split(payload)
            .ok()
            .filter(|(head, _, rest)| head.number == SessionOpen::NUMBER && rest.is_empty());
        let hello = hello.and_then(|(_, body, _)| SessionOpen::decode_body(body).ok());
        let Some(hello) = hello.filter(|_| payload.len() <= OPEN_BYTES_MAX) else {
            return incoming.refuse(RefuseCode::MALFORMED, "the hello is no session_open");
        };
        if hello.device_count == INVENTORY_ONLY {
            let answer = inventory(&self.plan, &self.ledger, |device| self.sessions_of(device));
            return self.inventories.answer(incoming, answer);
        }
        let wanted = if hello.device_count == 0 {
            self.plan.devices.len()
        } else {
            hello.device_count as usize
        };
        if wanted > self.plan.devices.len() {
            let message = format!(
                "{wanted} devices wanted, this server has {}",
                self.plan.devices.len()
            );
            return incoming.refuse(RefuseCode::APPLICATION, &message);
        }
        let sessions = self
            .executors
            .values()
            .filter(|executor| executor.serving().is_some())
            .count();
        if sessions + self.waiting.len() >= self.plan.sessions_max {
            return incoming.refuse(
                RefuseCode::BUSY,
                &format!(
                    "all {} sessions of this server are in use",
                    self.plan.sessions_max
                ),
            );
        }
        let lease = admitted.as_ref().map_or(0, |admitted| admitted.lease);
        if lease != 0 && self.sessions_of_lease(lease) >= self.plan.lease_sessions_max {
            let most = self.plan.lease_sessions_max;
            let message = format!("this lease has {most} sessions here already, which is the most");
            return incoming.refuse(RefuseCode::BUSY, &message);
        }
        let peer = incoming
            .peer()
            .map_or_else(String::new, |peer| format!(" from {peer}"));
        let name = format!(
            "{} (pid {} on {}){peer}",
            told(hello.program),
            hello.pid,
            told(hello.host_name)
        );
        let Some(share_permille) = asked_share(hello.share_permille) else {
            let message = format!(
                "a share of {} thousandths of a GPU: there can be 1 to 1000",
                hello.share_permille
            );
            return incoming.refuse(RefuseCode::APPLICATION, &message);
        };
        let limit_bytes = if hello.memory_bytes == 0 {
            u64::MAX
        } else {
            hello.memory_bytes
        };
        let devices = match &admitted {
            None => self.choose_devices(wanted, limit_bytes, share_permille),
            Some(admitted) => self.granted_devices(admitted, hello.device_count, limit_bytes),
        };
        let devices = match devices {
            Ok(devices) => devices,
            Err(why) => return incoming.refuse(RefuseCode::APPLICATION, &why),
        };
        self.waiting.push_back(Client {
            lease,
            incoming,
            name,
            devices,
        });
    }

    fn sessions_of_lease(&self, lease: u64) -> usize {
        let serving = self.executors.values().filter_map(Executor::serving);
        let serving = serving.filter(|serving| serving.lease == lease).count();
        serving
            + self
                .waiting
                .iter()
                .filter(|client| client.lease == lease)
                .count()
    }

    fn assign_waiting(&mut self) {
        while !self.waiting.is_empty() {
            let ready = self.executors.iter().find(|(_, executor)| {
                matches!(executor.stage, Stage::Ready) && executor.control.is_some()
            });
            let Some(id) = ready.map(|(id, _)| *id) else {
                return;
            };
            if let Some(client) = self.waiting.pop_front() {
                self.assign(id, client);
            }
        }
    }

    fn assign(&mut self, id: u64, client: Client) {
        let Some(executor) = self.executors.get_mut(&id) else {
            return;
        };
        let (Some(slot), Some(control)) = (self.slots.pop(), &executor.control) else {
            return client
                .incoming
                .refuse(RefuseCode::BUSY, "no room for a session");
        };
        let Client {
            incoming,
            name,
            devices,
            lease,
        } = client;
        let mps_percentage = if executor.is_under_mps {
            mps::percentage(&devices)
        } else {
            None
        };
        let uuids = devices.iter();
        let order = OpenOrder {
            uuids: uuids
                .map(|device| device_uuid(self.plan.kind, device.ordinal))
                .collect(),
            pinned_bytes_max: self.plan.pinned_bytes_max,
            mps_percentage,
            kind: self.plan.kind,
            devices: devices.clone(),
            slot,
            lease,
            server_name: self.plan.server_name.clone(),
            cache_directory: self.plan.cache_directory.clone(),
            client: name.clone(),
            grace_ms: self.plan.grace_ms,
            grace_closed_ms: self.plan.grace_closed_ms,
            peer_links: self.plan.peer_links,
            driver_patience_ms: u64::try_from(self.plan.driver_patience.as_millis())
                .unwrap_or(u64::MAX),
            is_unconfined: self.plan.is_unconfined,
        };
        self.board
            .enter(slot, mps::shares_of_time(&devices, mps_percentage));
        let (session, payload) = (incoming.session(), incoming.payload().to_vec());
        let (connection, state) = incoming.into_parts();
        let order = Order::Open(Box::new(order));
        let sent = control::send(
            control.as_fd(),
            &order,
            &state,
            &payload,
            &[connection.as_fd(), self.ledger.file(), self.board.file()],
        );
        let parts = devices;
        let devices = parts.iter().map(|device| device.ordinal).collect();
        self.ledger.set_lease(slot, lease);
        // The slot is the executor's until it is reaped, whatever becomes of the order.
        executor.stage = Stage::Serving(Box::new(Serving {
            session,
            slot,
            lease,
            parts,
            counts: Counts::default(),
            seen: Seen::new(),
            ending: None,
            client: name,
            devices,
            since: Instant::now(),
            links: Vec::new(),
            is_suspect: false,
            farewell: None,
        }));
        if let Err(error) = sent {
            log::error!("executor {} takes no session: {error}", executor.process);
            executor.kill();
        }
    }

    /// Hands a further connection to the executor of its session, which checks its right to it.
    fn take_further(&self, incoming: Incoming) {
        let session = incoming.session();
        let order = match incoming.kind() {
            IncomingKind::Bulk { .. } => Order::Bulk,
            IncomingKind::Resume { .. } => Order::Resume,
            _ => return incoming.refuse(RefuseCode::INTERNAL, "unknown kind of connection"),
        };
        let executor = self.executors.values().find(|executor| {
            executor.serving().is_some_and(|serving| {
                serving.session == session || serving.links.contains(&session)
            })
        });
        let Some(control) = executor.and_then(Executor::socket) else {
            return incoming.refuse(RefuseCode::SESSION, "no such session");
        };
        let is_link = executor
            .and_then(Executor::serving)
            .is_some_and(|serving| serving.session != session);
        let link: &[u8] = if is_link { &session.0 } else { &[] };
        let (connection, state) = incoming.into_parts();
        if let Err(error) = control::send(control, &order, &state, link, &[connection.as_fd()]) {
            log::warn!("a connection is dropped: {error}");
        }
    }

    /// The process is gone: its share of memory is free.
    fn forget(&mut self, id: u64) {
        let Some(executor) = self.executors.remove(&id) else {
            return;
        };
        let suspects = executor.suspects();
        let Stage::Serving(serving) = executor.stage else {
            return;
        };
        let busy = self.note_end(&serving);
        self.counted(id);
        self.ledger.clear(serving.slot);
        self.board.leave(serving.slot);
        self.slots.push(serving.slot);
        let reason = serving
            .farewell
            .unwrap_or_else(|| "its executor died".to_owned());
        log::info!(
            "session closed: {}, after {:.1} s, {:.3} s of device time: {reason}",
            serving.client,
            serving.since.elapsed().as_secs_f64(),
            busy.as_secs_f64()
        );
        self.check_gpus(&suspects);
    }

    /// Where other threads tell what happened.
    pub(super) fn inbox(&self) -> Arc<Inbox> {
        self.inbox.clone()
    }

    /// Whether the server is about to end.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some()
    }

    /// Keeps enough executors at hand.
    fn refill(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        let idle = |executor: &&Executor| {
            matches!(executor.stage, Stage::Starting | Stage::Ready) && executor.control.is_some()
        };
        let missing = (self.plan.warm_executors + self.waiting.len())
            .saturating_sub(self.executors.values().filter(idle).count());
        for _ in 0..missing {
            if self.failed_starts >= FAILED_STARTS_MAX && self.waiting.is_empty() {
                return;
            }
            if self.failed_starts >= FAILED_STARTS_MAX {
                self.failed_starts = 0;
                for client in self.waiting.drain(..) {
                    client
                        .incoming
                        .refuse(RefuseCode::INTERNAL, "the server cannot start executors");
                }
                return;
            }
            if let Err(error) = self.start_executor() {
                self.failed_starts += 1;
                log::error!("cannot start an executor: {error}");
            }
        }
    }

    fn start_executor(&mut self) -> std::io::Result<()> {
        let executor = Executor::start(&self.plan)?;
        self.executors.insert(self.next_id, executor);
        self.next_id += 1;
        Ok(())
    }

    fn stop(&mut self) {
        if self.stopping.is_some() {
            return;
        }
        self.stopping = Some(Instant::now());
        for client in self.waiting.drain(..) {
            client
                .incoming
                .refuse(RefuseCode::DRAINING, "the server stops");
        }
        for (id, executor) in &mut self.executors {
            executor.reap(*id, &self.inbox, &self.cache, self.plan.cache_bytes_max);
        }
    }
}

/// What a hello asks for, in thousandths; 0 = all.
fn asked_share(permille: u32) -> Option<u16> {
    match u16::try_from(permille) {
        Ok(0) => Some(WHOLE_PERMILLE),
        Ok(permille) if permille <= WHOLE_PERMILLE => Some(permille),
        _ => None,
    }
}

/// A client's words for the log: short, without control characters.
fn told(text: &str) -> String {
    printable(&text.chars().take(80).collect::<String>())
}
