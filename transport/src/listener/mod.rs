//! The server's door: accepts connections, reads their hellos, and hands them on.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::error::AcceptError;
use crate::handshake::Instance;
use crate::options::{ListenOptions, SocketOptions};
use crate::sys::event::EventFd;
use crate::sys::poll::{self, IN};
use crate::sys::{netopt, unix};

mod incoming;
mod pending;

pub use incoming::{Incoming, IncomingKind};
use pending::{Pending, Progress};

/// A listening socket. One thread calls [`Listener::accept`]; slow clients do not hold it up,
/// as their hellos are read side by side.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    options: ListenOptions,
    address: SocketAddr,
    /// Doors for clients on this host, which get shared memory.
    local: Vec<UnixListener>,
    /// Their sockets in the file system, removed in the end.
    paths: Vec<PathBuf>,
    wake: EventFd,
    closed: AtomicBool,
    pending: Mutex<Vec<Pending>>,
    instance: Instance,
}

/// After a failure of accept (out of descriptors): how long to leave new connections waiting.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The door beside a TCP address. Without it clients on this host use TCP, as others do.
fn listen_local(address: SocketAddr) -> Option<UnixListener> {
    match unix::listen(&unix::name_of(address)) {
        Ok(listener) => Some(listener),
        Err(error) => {
            log::warn!("no shared memory for clients of {address} on this host: {error}");
            None
        }
    }
}

fn bind_first(addresses: impl ToSocketAddrs, options: &SocketOptions) -> io::Result<TcpListener> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in addresses.to_socket_addrs()? {
        match netopt::listen(&address, options) {
            Ok(socket) => return Ok(socket),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Listener {
    /// Listens on the first of the addresses that can be bound. Port 0 takes a free one.
    ///
    /// # Errors
    /// The system's; `InvalidInput` for limits that cannot work.
    pub fn bind(address: impl ToSocketAddrs, options: ListenOptions) -> io::Result<Self> {
        if !options.limits.is_valid() || options.pending_max == 0 || !options.socket.is_valid() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "impossible limits",
            ));
        }
        let socket = bind_first(address, &options.socket)?;
        let address = socket.local_addr()?;
        let local = if options.shm {
            listen_local(address)
        } else {
            None
        };
        Ok(Self {
            socket,
            local: local.into_iter().collect(),
            paths: Vec::new(),
            options,
            address,
            wake: EventFd::new()?,
            closed: AtomicBool::new(false),
            pending: Mutex::new(Vec::new()),
            instance: Instance::draw()?,
        })
    }

    /// Also listens on a Unix socket at `path`: for clients in containers that have it mounted
    /// (`unix:PATH`), which then get shared memory. A socket that nobody listens on any more
    /// is replaced.
    ///
    /// # Errors
    /// The system's.
    pub fn listen_at(&mut self, path: &Path) -> io::Result<()> {
        self.local.push(unix::listen_at(path)?);
        self.paths.push(path.to_owned());
        Ok(())
    }

    /// The address with the port that was really taken.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Makes `accept` return [`AcceptError::Closed`], now and from then on. From any thread.
    pub fn close(&self) {
        self.closed.store(true, SeqCst);
        self.wake.set();
    }

    /// The next client whose hello is complete. Clients that speak another protocol, another
    /// version, or too slowly are sent away here and not seen by the caller.
    ///
    /// Blocks until there is one. The token is not judged here: see [`Incoming::token`].
    ///
    /// # Errors
    /// [`AcceptError`]; after `System` the listener goes on working.
    pub fn accept(&self) -> Result<Incoming, AcceptError> {
        let mut pending = self.pending.lock();
        let mut pause = None;
        loop {
            if self.closed.load(SeqCst) {
                return Err(AcceptError::Closed);
            }
            if let Some(incoming) = self.advance(&mut pending)? {
                return Ok(incoming);
            }
            let listen = pause.take().is_none();
            self.sleep(&pending, listen)?;
            if listen && self.take_new(&mut pending)? {
                pause = Some(());
            }
        }
    }

    /// Reads what the pending clients have sent.
    fn advance(&self, pending: &mut Vec<Pending>) -> Result<Option<Incoming>, AcceptError> {
        let now = Instant::now();
        let mut at = 0;
        while at < pending.len() {
            match pending[at].advance(now, &self.options) {
                Progress::Waiting => at += 1,
                Progress::Gone => drop(pending.swap_remove(at)),
                Progress::Ready => {
                    let ready = pending.swap_remove(at);
                    if let Some(incoming) = Incoming::new(ready, &self.options, self.instance)? {
                        return Ok(Some(incoming));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Sleeps until a client sends, a new one comes, or a handshake times out.
    fn sleep(&self, pending: &[Pending], listen: bool) -> io::Result<()> {
        let now = Instant::now();
        let next = pending.iter().map(Pending::deadline).min();
        let mut timeout = next.map(|at| at.saturating_duration_since(now));
        if !listen {
            timeout = Some(timeout.map_or(ACCEPT_PAUSE, |t| t.min(ACCEPT_PAUSE)));
        }
        let doors = self
            .local
            .iter()
            .map(AsRawFd::as_raw_fd)
            .chain([self.socket.as_raw_fd()]);
        let fds = doors.filter(|_| listen).chain([self.wake.raw()]);
        let fds = fds.chain(pending.iter().map(Pending::raw));
        poll::wait_any(fds.map(|fd| (fd, IN)), timeout)
    }

    /// Takes new connections. True when the system is out of something for now.
    fn take_new(&self, pending: &mut Vec<Pending>) -> io::Result<bool> {
        let tcp = || {
            self.socket
                .accept()
                .map(|(stream, peer)| (stream.into(), Some(peer)))
        };
        let mut exhausted = self.take_from(pending, tcp)?;
        for door in &self.local {
            let unix = || door.accept().map(|(stream, _)| (stream.into(), None));
            exhausted |= self.take_from(pending, unix)?;
        }
        Ok(exhausted)
    }

    fn take_from(
        &self,
        pending: &mut Vec<Pending>,
        accept: impl Fn() -> io::Result<(OwnedFd, Option<SocketAddr>)>,
    ) -> io::Result<bool> {
        loop {
            match accept() {
                Ok((stream, peer)) => {
                    if pending.len() >= self.options.pending_max {
                        let oldest = (0..pending.len()).min_by_key(|&n| pending[n].deadline());
                        oldest.map(|n| pending.swap_remove(n));
                        log::warn!("too many connections in their handshake: dropped the oldest");
                    }
                    let deadline = Instant::now() + self.options.handshake_timeout;
                    pending.push(Pending::new(stream, peer, deadline)?);
                }
                Err(error) => match error.kind() {
                    io::ErrorKind::WouldBlock => return Ok(false),
                    io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                    _ => {
                        log::warn!("cannot accept a connection: {error}");
                        return Ok(true);
                    }
                },
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        for path in &self.paths {
            // Gone already, or no longer ours to remove.
            let _ = std::fs::remove_file(path);
        }
    }
}
