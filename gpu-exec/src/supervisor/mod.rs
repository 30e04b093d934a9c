//! The supervisor: listening socket, authentication, limits, executors.
#![forbid(unsafe_code)]

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use farcall_transport::{
    AcceptError, Incoming, IncomingKind, ListenOptions, Listener, Prober, RefuseCode,
    constant_time_eq,
};

use self::inbox::{Event, Inbox};
use self::keeper::Keeper;
use self::plan::Plan;
use crate::ledger::Ledger;
use crate::limits::STACK_BYTES;
use crate::{FetchError, Inventory, ServeError, ServeOptions};

pub use self::admission::{Activity, Admission, Admitted, AdmittedDevice, LeaseActivity, Sessions};
pub(crate) use self::answer::Deaf;
pub(crate) use self::keeper::INVENTORY_ONLY;

mod admission;
mod answer;
mod executors;
mod health;
mod inbox;
mod keeper;
mod leases;
mod peers;
mod placement;
mod plan;
mod reports;
mod signals;
pub(crate) mod usage;
mod wedged;

/// Serves until SIGTERM or SIGINT. Calls `on_ready` once with the bound address. Blocks.
///
/// Blocks the two signals in the calling thread: call it before other threads are started.
///
/// # Errors
/// No such device, address taken, no executor can be started.
pub fn serve(options: &ServeOptions, on_ready: impl FnOnce(SocketAddr)) -> Result<(), ServeError> {
    let signals = Signals::block()?;
    let server = Server::bind(options)?;
    server.serve(signals, on_ready)
}

/// SIGTERM and SIGINT, blocked until a server takes them.
#[derive(Debug)]
pub struct Signals(signals::Signals);

impl Signals {
    /// Blocks the two signals in the calling thread and in those that it starts: call it before any.
    ///
    /// # Errors
    /// No descriptors.
    pub fn block() -> Result<Self, ServeError> {
        signals::block()
            .map(Self)
            .map_err(ServeError::system("block signals"))
    }
}

/// A server whose signals are somebody else's business.
pub struct Server {
    listener: Arc<Listener>,
    inbox: Arc<Inbox>,
    stopped: Arc<AtomicBool>,
    plan: Plan,
}

/// Ends a [`Server`] from any thread.
#[derive(Clone)]
pub struct Stopper {
    /// Not kept: its end removes the socket's file, and must not wait for who could stop it.
    listener: Weak<Listener>,
    inbox: Arc<Inbox>,
    stopped: Arc<AtomicBool>,
}

impl Stopper {
    /// Makes [`Server::run`] return once its executors are gone. Does not block.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::SeqCst);
        if let Some(listener) = self.listener.upgrade() {
            listener.close();
        }
        self.inbox.send(Event::Stop);
    }
}

impl Server {
    /// Chooses the device and binds the listening socket.
    ///
    /// # Errors
    /// No such device, address taken.
    pub fn bind(options: &ServeOptions) -> Result<Self, ServeError> {
        let plan = Plan::new(options)?;
        let listen = ListenOptions {
            socket: options.socket.clone(),
            rdma: options.rdma,
            tls: options.tls.clone(),
            ..ListenOptions::default()
        };
        let failed = |address: String| move |source| ServeError::Listen { address, source };
        let mut listener =
            Listener::bind(&*options.listen, listen).map_err(failed(options.listen.clone()))?;
        if let Some(path) = &options.socket_path {
            let failed = failed(path.display().to_string());
            listener.listen_at(path).map_err(failed)?;
        }
        let inbox = Inbox::new().map_err(ServeError::system("make an event descriptor"))?;
        Ok(Self {
            listener: Arc::new(listener),
            inbox: Arc::new(inbox),
            stopped: Arc::default(),
            plan,
        })
    }

    /// The bound address.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Ends this server.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        Stopper {
            listener: Arc::downgrade(&self.listener),
            inbox: self.inbox.clone(),
            stopped: self.stopped.clone(),
        }
    }

    /// What it serves, with nothing in use.
    ///
    /// # Errors
    /// The driver says nothing sensible about its GPUs.
    pub fn inventory(&self) -> Result<Inventory, FetchError> {
        let ledger = Ledger::create();
        let ledger = ledger.map_err(|error| FetchError::Answer(error.to_string()))?;
        Inventory::decode(&answer::inventory(&self.plan, &ledger, |_| 0))
    }

    /// Its sessions, once it runs.
    #[must_use]
    pub fn sessions(&self) -> Sessions {
        Sessions {
            inbox: self.inbox.clone(),
        }
    }

    /// Serves until one of the signals comes. Calls `on_ready` once with the bound address. Blocks.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub fn serve(
        self,
        signals: Signals,
        on_ready: impl FnOnce(SocketAddr),
    ) -> Result<(), ServeError> {
        let stopper = self.stopper();
        signals.0.watch(move |name| {
            log::info!("{name}: the server stops");
            stopper.stop();
        })?;
        on_ready(self.local_addr());
        self.run()
    }

    /// Serves until stopped. Blocks. Executors die with the thread that calls this.
    ///
    /// # Errors
    /// No executor can be started, or the listening socket failed for good.
    pub fn run(self) -> Result<(), ServeError> {
        let stopper = self.stopper();
        let (listener, inbox, guard) = (self.listener, self.inbox.clone(), self.plan.guard());
        let builder = std::thread::Builder::new()
            .name("accept".to_owned())
            .stack_size(STACK_BYTES);
        let accept = builder.spawn(move || accept_clients(&listener, &inbox, &guard));
        let accept = accept.map_err(ServeError::system("start a thread"))?;
        let outcome = Keeper::new(self.plan, self.inbox).and_then(Keeper::run);
        stopper.stop();
        let _ = accept.join();
        outcome
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Stopper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stopper").finish_non_exhaustive()
    }
}

/// Turns away who may not come in, hands on the others.
fn accept_clients(listener: &Listener, inbox: &Inbox, guard: &Guard) {
    let prober = Prober::default();
    loop {
        match listener.accept() {
            // The right of a further connection to its session is checked by its executor.
            Ok(incoming) if matches!(incoming.kind(), IncomingKind::New) => {
                // The right to a link, too, is checked by the executor: its client drew the secret.
                if let Some(session) = peers::session_of(&incoming) {
                    inbox.send(Event::Peer(incoming, session));
                    continue;
                }
                let Some((client, admitted)) = admit(incoming, guard) else {
                    continue;
                };
                if let Some(client) = prober.take(client) {
                    inbox.send(Event::Client(client, admitted));
                }
            }
            Ok(incoming) => {
                if let Some(incoming) = prober.take(incoming) {
                    inbox.send(Event::Further(incoming));
                }
            }
            Err(AcceptError::Closed) => return,
            Err(error) => {
                log::error!("{error}");
                // Out of descriptors, most likely: some must be closed before it can go on.
                std::thread::park_timeout(std::time::Duration::from_millis(50));
            }
        }
    }
}

/// Who is let in.
#[derive(Debug)]
pub(crate) enum Guard {
    /// Everyone.
    Open,
    /// Who shows this.
    Token(String),
    /// Whom somebody else lets in.
    Admission(Arc<dyn Admission>),
}

fn admit(incoming: Incoming, guard: &Guard) -> Option<(Incoming, Option<Admitted>)> {
    let refusal = match guard {
        Guard::Open => return Some((incoming, None)),
        Guard::Token(token) => {
            let shown = incoming.token();
            if shown.is_some_and(|shown| constant_time_eq(shown, token.as_bytes())) {
                return Some((incoming, None));
            }
            "the token is missing or wrong".to_owned()
        }
        Guard::Admission(admission) => match admission.admit(incoming.token(), incoming.peer()) {
            Ok(admitted) => return Some((incoming, Some(admitted))),
            Err(why) => why,
        },
    };
    let peer = incoming.peer().map(|peer| peer.to_string());
    log::warn!("{}: {refusal}", peer.as_deref().unwrap_or("a local client"));
    incoming.refuse(RefuseCode::TOKEN, &refusal);
    None
}
