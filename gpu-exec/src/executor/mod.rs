//! An executor process: waits for a session, serves it, ends with it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use farcall_marshal::record::{Head, Record, split, to_vec};
use farcall_marshal::wire::{SessionOpen, SessionWelcome};
use farcall_transport::{Endpoint, Tuning};

use self::further::{Arrival, Further, Purpose};
use self::outbox::Connection;
use self::peers::{Dials, Peers};
use self::session::{Live, Session};
use self::watchdog::Watchdog;
use crate::DeviceKind;
use crate::cache::Cache;
use crate::control::{self, Counts, Message, OpenOrder, Order, Report};
use crate::device::Device;
use crate::device::cpu::memory::Memory;
use crate::device::cpu::{self, CpuDevice, CpuParts};
use crate::device::cuda::driver::Driver;
use crate::device::cuda::{self, CudaDevice, CudaParts};
use crate::device::describe::{cores, descriptions, driver_version};
use crate::ledger::{Account, Allowance, Ledger, Slot};
use crate::limits::STACK_BYTES;
use crate::share::board::{Board, Member};
use crate::share::gate::Gate;
use crate::sys::env;

mod confine;
mod further;
pub(crate) mod outbox;
pub(crate) mod peers;
pub(crate) mod session;
mod watchdog;

/// Argument of an executor that checks a GPU and ends: its number follows, a colon and, in hexadecimal digits, its UUID; [`WITH_KERNEL`] where
/// nobody else works there.
pub(crate) const CHECK_GPU: &str = "--check-gpu=";

/// End of that argument: a kernel is to run, too.
pub(crate) const WITH_KERNEL: &str = ":kernel";

/// Argument of an executor that starts its driver before it says that it is ready: that takes longer than all else.
pub(crate) const LOAD_DRIVER: &str = "--load-driver";

/// Exit code of such an executor that found no memory there.
pub(crate) const GPU_IS_FULL: u8 = 3;

/// The whole life of an executor process; its control socket is standard input. Set up logging before.
#[must_use]
pub fn executor_main() -> ExitCode {
    // The supervisor's end is noticed by the control socket too; this is for one that cannot even close it.
    let _ = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL);
    if let Some((ordinal, uuid, runs_kernel)) = checked_gpu(std::env::args()) {
        return match cuda::health::check(ordinal, uuid, runs_kernel) {
            Ok(()) => ExitCode::SUCCESS,
            Err(broken) => {
                println!("{}", broken.why);
                ExitCode::from(if broken.is_full { GPU_IS_FULL } else { 1 })
            }
        };
    }
    // Nothing that it starts, should a client ever bring it to start something, gains rights by a set-uid bit.
    let harmless = nix::sys::prctl::set_no_new_privs().map_err(io::Error::from);
    let loads_driver = std::env::args().any(|arg| arg == LOAD_DRIVER);
    match harmless.and_then(|()| serve_one_session(loads_driver)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("executor: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The GPU that this process was started to check, instead of serving a session.
fn checked_gpu(mut args: impl Iterator<Item = String>) -> Option<(u32, u128, bool)> {
    args.find_map(|arg| {
        let (ordinal, rest) = arg.strip_prefix(CHECK_GPU)?.split_once(':')?;
        let uuid = rest.strip_suffix(WITH_KERNEL);
        let runs_kernel = uuid.is_some();
        let uuid = u128::from_str_radix(uuid.unwrap_or(rest), 16).ok()?;
        Some((ordinal.parse().ok()?, uuid, runs_kernel))
    })
}

fn serve_one_session(loads_driver: bool) -> io::Result<()> {
    let control = io::stdin().as_fd().try_clone_to_owned()?;
    if loads_driver && let Err(error) = Driver::get() {
        // Whoever gets this executor is told.
        log::error!("{error}");
    }
    control::send(control.as_fd(), &Report::Ready, &[], &[], &[])?;
    let Some(message) = control::receive::<Order>(control.as_fd(), true)? else {
        return Ok(());
    };
    let Message {
        header: Order::Open(order),
        state,
        payload,
        fds,
    } = message
    else {
        return Err(io::Error::other("the first order is to open a session"));
    };
    // Before anything of the client's is looked at, and before there are threads but a driver's.
    if order.is_unconfined {
        log::warn!("unconfined: this executor may make any system call");
    } else {
        confine::confine(order.kind)?;
    }
    let [connection, ledger, board] = <[OwnedFd; 3]>::try_from(fds)
        .map_err(|_| io::Error::other("an order without its descriptors"))?;
    let watched = Arc::new(OnceLock::new());
    let watchdog = Watchdog {
        control: control.try_clone()?,
        patience: Duration::from_millis(order.driver_patience_ms),
        grace: Duration::from_millis(order.grace_ms),
        endpoint: watched.clone(),
    };
    let dials = dials(&control, &order)?;
    let peers = Arc::new(Peers::new(dials.clone(), order.kind != DeviceKind::Cuda));
    let parts = Parts {
        connection,
        ledger,
        board,
        watchdog,
        peers: peers.clone(),
    };
    let (endpoint, session) = open(&order, parts, &state, &payload)?;
    let _ = watched.set(endpoint.clone());
    control::send(control.as_fd(), &Report::Opened, &[], &[], &[])?;
    let orders = Orders {
        control: control.try_clone()?,
        endpoint: endpoint.clone(),
        session: session.clone(),
        further: Further::new(endpoint.clone(), peers.clone()),
        peers,
        dials,
    };
    let watcher = std::thread::Builder::new()
        .name("control".to_owned())
        .stack_size(STACK_BYTES);
    watcher.spawn(move || orders.follow())?;
    let why = endpoint.run();
    session.close();
    let report = Report::Closed {
        reason: session.violation().unwrap_or_else(|| why.to_string()),
        resumes: endpoint.stats().resumes,
        counts: count(&endpoint, &*session),
    };
    // The supervisor may be gone: then nobody needs to know.
    let _ = control::send(control.as_fd(), &report, &[], &[], &[]);
    // Device and loader thread may be in the middle of something that nobody wants any more.
    std::process::exit(0);
}

/// How this process gets connections to other servers, where it may have any.
fn dials(control: &OwnedFd, order: &OpenOrder) -> io::Result<Option<Arc<Dials>>> {
    if !order.peer_links {
        return Ok(None);
    }
    let control = control.try_clone()?;
    Ok(Some(Dials::new(move |number, address| {
        let report = Report::Dial { number, address };
        control::send(control.as_fd(), &report, &[], &[], &[])
    })))
}

/// What the supervisor's orders are about.
struct Orders {
    control: OwnedFd,
    endpoint: Endpoint,
    session: Arc<dyn Live>,
    further: Further,
    peers: Arc<Peers>,
    dials: Option<Arc<Dials>>,
}

impl Orders {
    /// Takes further connections; ends the session when the supervisor says so or is gone.
    fn follow(&self) {
        loop {
            match control::receive::<Order>(self.control.as_fd(), true) {
                Ok(Some(message)) => self.obey(message),
                Ok(None) => return self.endpoint.close(),
                Err(error) => {
                    log::error!("control: {error}");
                    return self.endpoint.close();
                }
            }
        }
    }

    fn obey(&self, message: Message<Order>) {
        let Message {
            header,
            state,
            payload,
            fds,
        } = message;
        let fd = fds.into_iter().next();
        match (header, fd) {
            (Order::Open(_), _) => log::error!("a second session for one executor"),
            (Order::Count, _) => {
                let counts = count(&self.endpoint, &*self.session);
                // A supervisor that is gone is seen at the next order.
                let report = Report::Counted(counts);
                let _ = control::send(self.control.as_fd(), &report, &[], &[], &[]);
            }
            (Order::Close { reason }, _) => {
                self.session.farewell(&reason);
                self.endpoint.close();
            }
            (Order::Dialed { number, failure }, fd) => {
                let why = || io::Error::other(failure.unwrap_or_default());
                if let Some(dials) = &self.dials {
                    dials.dialed(number, fd.ok_or_else(why));
                }
            }
            (_, None) => log::error!("an order without its descriptor"),
            (Order::Peer, Some(fd)) => self.peers.open(fd, state, &payload),
            (header @ (Order::Bulk | Order::Resume), Some(fd)) => self.further.take(Arrival {
                purpose: match header {
                    Order::Resume => Purpose::Resume,
                    _ => Purpose::Bulk,
                },
                fd,
                state,
                link: payload,
            }),
        }
    }
}

/// What the session has moved so far.
fn count(endpoint: &Endpoint, session: &dyn Live) -> Counts {
    let stats = endpoint.stats();
    // Before the transport's own first estimate, that of the system.
    let by_system = || {
        let path = endpoint.path();
        path.map_or(0, |path| u64::from(path.kernel_rtt_us) * 1000)
    };
    Counts {
        records: session.records(),
        bytes_in: stats.bytes_in + stats.bulk_bytes_in,
        bytes_out: stats.bytes_out + stats.bulk_bytes_out,
        transport: endpoint.transport_name().to_owned(),
        rtt_ns: Some(stats.rtt_ns)
            .filter(|ns| *ns > 0)
            .unwrap_or_else(by_system),
    }
}

type OpenSession = (Endpoint, Arc<dyn Live>);

/// What a session is opened with.
struct Parts {
    connection: OwnedFd,
    ledger: OwnedFd,
    board: OwnedFd,
    watchdog: Watchdog,
    peers: Arc<Peers>,
}

fn open(order: &OpenOrder, parts: Parts, state: &[u8], payload: &[u8]) -> io::Result<OpenSession> {
    let Parts {
        connection,
        ledger,
        board,
        watchdog,
        peers,
    } = parts;
    let malformed =
        |error| io::Error::new(io::ErrorKind::InvalidData, format!("session_open: {error}"));
    let (_, body, _) = split(payload).map_err(malformed)?;
    let hello = SessionOpen::decode_body(body).map_err(malformed)?;
    let ledger = Arc::new(Ledger::open(ledger)?);
    let allowances = order.devices.iter().map(|device| Allowance {
        device: device.ordinal as usize,
        total_bytes: device.total_bytes,
        limit_bytes: device.limit_bytes,
    });
    let member = Member::new(Arc::new(Board::open(board)?), order.slot);
    let devices = order.devices.iter().map(|device| device.ordinal as usize);
    let gate = Gate::new(member, devices.collect());
    let limit_bytes: u64 = order.devices.iter().map(|device| device.limit_bytes).sum();
    let account = Account::new(
        ledger.clone(),
        order.slot,
        allowances.collect(),
        Allowance::host(order.pinned_bytes_max, limit_bytes),
    );
    let total_bytes: u64 = order.devices.iter().map(|device| device.total_bytes).sum();
    let wanted_bytes = total_bytes.saturating_mul(8).next_power_of_two();
    let (base, bytes) = (hello.range_base, hello.range_bytes);
    let cache = Cache::new(order.cache_directory.clone());
    let outbox = Arc::new(Connection::new(ledger.clone(), order.slot, peers));
    if order.kind == DeviceKind::Cuda {
        if let Some(percentage) = order.mps_percentage
            && !env::set_while_alone(cuda::mps::PERCENTAGE, &percentage.to_string())
        {
            log::warn!("MPS is not told of this session's share: the process has threads already");
        }
        watchdog.start()?;
        let driver = Driver::get().map_err(io::Error::other)?;
        check_numbers(driver, order)?;
        let memory = cuda::memory::Memory::open(driver, base, bytes, wanted_bytes, account);
        let welcome = welcome(order, memory.areas(), &cache);
        let device = CudaDevice::new(CudaParts {
            driver,
            memory,
            outbox: outbox.clone(),
            cache,
            ordinals: order.devices.iter().map(|device| device.ordinal).collect(),
            gate,
        });
        let adopted = (outbox, ledger, order.slot);
        return adopt(order, (connection, state), &welcome, device, adopted);
    }
    let (memory, turn) = Memory::open(base, bytes, wanted_bytes, account)?;
    let (device, host) = cpu::areas(&memory);
    let areas = [(device.base, device.bytes), (host.base, host.bytes)];
    let welcome = welcome(order, areas, &cache);
    let device = CpuDevice::new(CpuParts {
        memory,
        turn,
        outbox: outbox.clone(),
        cache,
        runs_kernels: order.kind == DeviceKind::Soft,
        workers: cores(),
        device_count: order.devices.len(),
        gate,
    });
    let adopted = (outbox, ledger, order.slot);
    adopt(order, (connection, state), &welcome, device, adopted)
}

/// Refuses a session whose GPUs this driver has under other numbers: it was started after one was lost.
fn check_numbers(driver: &Driver, order: &OpenOrder) -> io::Result<()> {
    for (device, uuid) in order.devices.iter().zip(&order.uuids) {
        if uuid.is_some() && driver.device_uuid(device.ordinal).ok() != *uuid {
            let ordinal = device.ordinal;
            return Err(io::Error::other(format!(
                "the driver has another GPU {ordinal} than when this server was started; restart it"
            )));
        }
    }
    Ok(())
}

/// Lets a device serve the connection.
fn adopt<D: Device + 'static>(
    order: &OpenOrder,
    (connection, state): (OwnedFd, &[u8]),
    welcome: &[u8],
    device: D,
    (outbox, ledger, slot): (Arc<Connection>, Arc<Ledger>, Slot),
) -> io::Result<OpenSession> {
    let session = Arc::new(Session::new(device, outbox.clone(), ledger, slot));
    let tuning = Tuning {
        grace: Duration::from_millis(order.grace_ms),
        grace_closed: Duration::from_millis(order.grace_closed_ms),
        ..Tuning::default()
    };
    let endpoint = Endpoint::adopt(connection, state, welcome, &tuning, session.clone());
    let endpoint = endpoint.map_err(io::Error::other)?;
    outbox.attach(endpoint.clone());
    Ok((endpoint, session))
}

/// `areas`: base and size of what is for device memory, and for pinned and managed memory.
fn welcome(order: &OpenOrder, areas: [(u64, u64); 2], cache: &Cache) -> Vec<u8> {
    let [
        (range_base, range_bytes),
        (host_range_base, host_range_bytes),
    ] = areas;
    let (devices, cached) = (descriptions(order.kind, &order.devices), cache.hashes());
    let record = SessionWelcome {
        range_base,
        range_bytes,
        host_range_base,
        host_range_bytes,
        driver_version: driver_version(order.kind),
        device_kind: order.kind as u32,
        devices: &devices,
        cached_modules: cached.as_flattened(),
        server_name: &order.server_name,
    };
    to_vec(Head::request(SessionWelcome::NUMBER, 0, 0), &record)
}
