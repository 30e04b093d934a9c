//! What the tests of every backend share.
#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    dead_code,
    missing_docs,
    unreachable_pub
)]

pub mod idle;
pub mod suite;
pub mod suite_bulk;
pub mod tls;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use farcall_transport::{
    CloseReason, ConnectOptions, DeviceName, Endpoint, Handler, IncomingKind, Limits,
    ListenOptions, Listener, RdmaMode, RdmaOptions, TlsServer, TransportChoice, Tuning, connect,
    sim,
};
use parking_lot::Mutex;

/// Generous: only a hang takes as long.
pub const PATIENCE: Duration = Duration::from_secs(20);

type OnFrame = Box<dyn Fn(&Endpoint, &[u8]) + Send + Sync>;

/// Calls a closure with each frame and remembers how the session ended.
pub struct Tap {
    on_frame: OnFrame,
    pub frames: AtomicU64,
    pub bytes: AtomicU64,
    pub closed: AtomicBool,
    pub why: parking_lot::Mutex<Option<CloseReason>>,
}

impl Tap {
    pub fn new(on_frame: impl Fn(&Endpoint, &[u8]) + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            on_frame: Box::new(on_frame),
            frames: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            why: parking_lot::Mutex::new(None),
        })
    }

    pub fn ignore() -> Arc<Self> {
        Self::new(|_, _| ())
    }

    /// Sends every frame back.
    pub fn echo() -> Arc<Self> {
        Self::new(|endpoint, frame| {
            // A session that ends meanwhile needs no echo.
            let _ = endpoint.append(frame.len(), |out| out.copy_from_slice(frame));
        })
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(SeqCst)
    }

    pub fn wait_closed(&self) -> CloseReason {
        wait_for(|| self.closed.load(SeqCst));
        self.why.lock().clone().unwrap()
    }
}

impl Handler for Tap {
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]) {
        assert_eq!(frame.as_ptr() as usize % 8, 0);
        assert_eq!(frame.len() % 8, 0);
        (self.on_frame)(endpoint, frame);
        self.frames.fetch_add(1, SeqCst);
        self.bytes.fetch_add(frame.len() as u64, SeqCst);
    }

    fn on_closed(&self, _: &Endpoint, why: &CloseReason) {
        let before = self.why.lock().replace(why.clone());
        assert!(before.is_none(), "closed twice");
        self.closed.store(true, SeqCst);
    }
}

/// Waits for something that another thread brings about, without an event to wait on.
pub fn wait_for(done: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited too long");
        thread::yield_now();
    }
}

/// How to make a pair of connected endpoints.
pub trait Backend {
    /// Sessions that are opened and closed in search of leaks: enough for a leak of a page in a
    /// hundred sessions to show.
    const SESSIONS: usize = 10_000;
    /// Whether large transfers go straight between lent memory.
    const DIRECT: bool = false;

    /// `server` is not running yet: call [`serve`].
    fn pair(
        limits: Limits,
        tuning: Tuning,
        client: Arc<dyn Handler>,
        server: Arc<dyn Handler>,
    ) -> (Endpoint, Endpoint);
}

/// Runs the server side on a thread.
pub fn serve(server: Endpoint) -> thread::JoinHandle<CloseReason> {
    thread::spawn(move || server.run())
}

/// TCP over loopback, through listener and handshake; further connections are attached.
pub struct Tcp;

impl Backend for Tcp {
    fn pair(
        limits: Limits,
        tuning: Tuning,
        client: Arc<dyn Handler>,
        server: Arc<dyn Handler>,
    ) -> (Endpoint, Endpoint) {
        let pair = connected(TransportChoice::Tcp, limits, tuning, client, server);
        assert_eq!(pair.0.transport_name(), "tcp");
        pair
    }
}

/// Shared memory, found beside a TCP address.
pub struct Shm;

impl Backend for Shm {
    fn pair(
        limits: Limits,
        tuning: Tuning,
        client: Arc<dyn Handler>,
        server: Arc<dyn Handler>,
    ) -> (Endpoint, Endpoint) {
        let pair = connected(TransportChoice::Auto, limits, tuning, client, server);
        assert_eq!(
            (pair.0.transport_name(), pair.1.transport_name()),
            ("shm", "shm")
        );
        pair
    }
}

/// TLS over TCP.
pub struct Tls;

impl Backend for Tls {
    // Each shakes hands, which takes some milliseconds of both sides.
    const SESSIONS: usize = 2_000;

    fn pair(
        limits: Limits,
        tuning: Tuning,
        client: Arc<dyn Handler>,
        server: Arc<dyn Handler>,
    ) -> (Endpoint, Endpoint) {
        let door = Door::with("127.0.0.1:0", limits, None, Some(tls::server()));
        let options = ConnectOptions {
            limits,
            tuning,
            transport: TransportChoice::Tcp,
            tls: Some(tls::client()),
            ..ConnectOptions::new("")
        };
        let pair = connected_at(&door, options, client, server);
        assert_eq!(
            (pair.0.transport_name(), pair.1.transport_name()),
            ("tls", "tls")
        );
        pair
    }
}

fn connected(
    transport: TransportChoice,
    limits: Limits,
    tuning: Tuning,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> (Endpoint, Endpoint) {
    connected_at(
        &Door::at("127.0.0.1:0", limits, Some(RdmaOptions::default())),
        ConnectOptions {
            limits,
            tuning,
            transport,
            ..ConnectOptions::new("")
        },
        client,
        server,
    )
}

fn connected_at(
    door: &Door,
    mut options: ConnectOptions,
    client: Arc<dyn Handler>,
    server: Arc<dyn Handler>,
) -> (Endpoint, Endpoint) {
    let made = door.made.lock();
    *door.expected.lock() = Some((options.tuning, server));
    options.server.clone_from(&door.address);
    let (client, welcome) = connect(&options, client).unwrap();
    assert_eq!(welcome, b"welcome");
    (client, made.recv().unwrap())
}

/// A listener of this process and what it makes; one for each set of limits, as long as the process lives.
struct Door {
    limits: Limits,
    rdma: Option<RdmaOptions>,
    has_tls: bool,
    address: String,
    /// How the next session's server is made.
    expected: Mutex<Option<(Tuning, Arc<dyn Handler>)>>,
    /// Locked by whoever waits for a session.
    made: Mutex<Receiver<Endpoint>>,
}

impl Door {
    fn at(address: &str, limits: Limits, rdma: Option<RdmaOptions>) -> Arc<Self> {
        Self::with(address, limits, rdma, None)
    }

    fn with(
        address: &str,
        limits: Limits,
        rdma: Option<RdmaOptions>,
        tls: Option<TlsServer>,
    ) -> Arc<Self> {
        let has_tls = tls.is_some();
        static DOORS: Mutex<Vec<Arc<Door>>> = Mutex::new(Vec::new());
        let mut doors = DOORS.lock();
        if let Some(door) = doors
            .iter()
            .find(|d| (d.limits, d.rdma, d.has_tls) == (limits, rdma, has_tls))
        {
            return Arc::clone(door);
        }
        let options = ListenOptions {
            limits,
            rdma,
            tls,
            ..ListenOptions::default()
        };
        let listener = Listener::bind(address, options).unwrap();
        let (send, receive) = channel();
        let door = Arc::new(Self {
            limits,
            rdma,
            has_tls,
            address: listener.local_addr().to_string(),
            expected: Mutex::new(None),
            made: Mutex::new(receive),
        });
        doors.push(Arc::clone(&door));
        let accepting = Arc::clone(&door);
        thread::spawn(move || accepting.accept_for_ever(&listener, &send));
        door
    }

    /// Makes sessions, and gives them their further connections.
    fn accept_for_ever(&self, listener: &Listener, made: &Sender<Endpoint>) {
        let mut servers: Vec<Endpoint> = Vec::new();
        while let Ok(incoming) = listener.accept() {
            servers.retain(|server| server.closed().is_none());
            let (kind, session) = (incoming.kind(), incoming.session());
            let (fd, state) = incoming.into_parts();
            if kind == IncomingKind::New {
                let (tuning, handler) = self.expected.lock().take().unwrap();
                let server = Endpoint::adopt(fd, &state, b"welcome", &tuning, handler).unwrap();
                made.send(server.clone()).unwrap();
                servers.push(server);
            } else if let Some(server) = servers.iter().find(|s| s.session() == session) {
                let server = server.clone();
                // On a thread of its own, as a lost connection may hold it up.
                thread::spawn(move || match kind {
                    IncomingKind::Resume { .. } => server.resume(fd, &state),
                    _ => server.attach_bulk(fd, &state),
                });
            }
        }
    }
}

/// RDMA, in the mode that its parameter names: for the VM of `scripts/rdma-vm`. With two devices
/// there, client and server take one each.
pub struct Verbs<const MEMORY: bool>;

/// What a side wants of RDMA in the VM: on the device that this variable names, if it does.
pub fn rdma_options(device: &str, mode: RdmaMode) -> RdmaOptions {
    let two = std::env::var("RDMA_VM_DEV2").is_ok();
    let name = std::env::var(device).ok().filter(|_| two);
    RdmaOptions {
        device: name.map(|name| DeviceName::new(&name).unwrap()),
        gid_index: None,
        mode,
    }
}

/// The address of the RDMA device in the VM.
pub fn rdma_address() -> String {
    std::env::var("RDMA_VM_IP").expect("an RDMA device: run this with scripts/rdma-vm")
}

impl<const MEMORY: bool> Backend for Verbs<MEMORY> {
    // Each takes a tenth of a second and more in an emulated machine. A queue pair or a
    // registration that stays shows as a descriptor or a mapping all the same.
    const SESSIONS: usize = 20;
    const DIRECT: bool = true;

    fn pair(
        limits: Limits,
        tuning: Tuning,
        client: Arc<dyn Handler>,
        server: Arc<dyn Handler>,
    ) -> (Endpoint, Endpoint) {
        let mode = if MEMORY {
            RdmaMode::Memory
        } else {
            RdmaMode::Completions
        };
        let options = ConnectOptions {
            limits,
            tuning,
            transport: TransportChoice::Verbs,
            rdma: Some(rdma_options("RDMA_VM_DEV", mode)),
            connect_timeout: PATIENCE,
            ..ConnectOptions::new("")
        };
        let far = rdma_options("RDMA_VM_DEV2", mode);
        let door = Door::at(&format!("{}:0", rdma_address()), limits, Some(far));
        let pair = connected_at(&door, options, client, server);
        assert_eq!(
            (pair.0.transport_name(), pair.1.transport_name()),
            ("verbs", "verbs")
        );
        pair
    }
}

/// A number at the start of a record.
pub fn number(record: &[u8]) -> u64 {
    u64::from_le_bytes(record[..8].try_into().unwrap())
}

/// Open descriptors, resident bytes and mappings of this process.
pub fn resources() -> (usize, usize, usize) {
    let fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    (fds, pages * 4096, maps.lines().count())
}

/// The simulated connection, with faults from a seed.
pub struct Sim;

impl Backend for Sim {
    fn pair(
        limits: Limits,
        tuning: Tuning,
        client: Arc<dyn Handler>,
        server: Arc<dyn Handler>,
    ) -> (Endpoint, Endpoint) {
        static SEED: AtomicU64 = AtomicU64::new(1);
        let seed = std::env::var("FARCALL_SIM_SEED")
            .map_or_else(|_| SEED.fetch_add(1, SeqCst), |seed| seed.parse().unwrap());
        eprintln!("FARCALL_SIM_SEED={seed}");
        let faults = sim::Faults {
            short: 40,
            stall: 40,
            cut_after_bytes: None,
        };
        sim::pair(seed, faults, limits, &tuning, client, server).unwrap()
    }
}
