//! One of several nodes of a pool. They share an etcd; one of them leads and decides, the others pass connections on to it,
//! so that any of them can be asked. Who leads stops to answer before another can lead, and what it writes holds only while it leads.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::api::{App, Role, service};
use crate::core::{Core, StartError};
use crate::etcd::Etcd;
use crate::etcd::election::{Attempt, KEEP_EVERY, Leadership};
use crate::grant::Signer;
use crate::history::History;
use crate::store::{EtcdStore, Records, Store, StoreError};

/// How often a node that follows looks whether somebody leads.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// What a node is made of.
pub struct Node {
    etcd: Etcd,
    /// Where other nodes reach this one: `HOST:PORT`.
    address: String,
    signer: Arc<Signer>,
    history: Arc<History>,
    /// What an empty etcd is filled with.
    first: Box<dyn Fn() -> Result<Records, StoreError> + Send>,
    runtime: Handle,
    roles: watch::Sender<Role>,
    events: (Sender<Event>, Receiver<Event>),
}

/// What ends a leadership before its time.
enum Event {
    /// The store of this leadership does not take anything any more.
    Failed(StoreError),
    /// The node ends.
    Stop,
}

impl Node {
    /// A node that other nodes reach at `address`. `first`: the records of a pool that had another store, for an etcd that has
    /// none. The node tells `roles` what it is ([`crate::api::Serving::bind_node`]); leading, it samples the history in `runtime`.
    #[must_use]
    pub fn new(
        etcd: Etcd,
        address: String,
        (signer, history): (Signer, History),
        first: impl Fn() -> Result<Records, StoreError> + Send + 'static,
        (runtime, roles): (Handle, watch::Sender<Role>),
    ) -> Self {
        Self {
            etcd,
            address,
            signer: Arc::new(signer),
            history: Arc::new(history),
            first: Box::new(first),
            runtime,
            roles,
            events: channel(),
        }
    }

    /// What makes [`Node::run`] return.
    pub fn stopper(&self) -> impl FnOnce() + Send + use<> {
        let events = self.events.0.clone();
        move || drop(events.send(Event::Stop))
    }

    /// Leads or follows until it is stopped. Blocks.
    pub fn run(self) {
        loop {
            match Leadership::attempt(&self.etcd, &self.address) {
                Ok(Attempt::Leading(leadership)) => {
                    if self.lead(leadership) {
                        return;
                    }
                }
                Ok(Attempt::Following(leader)) if leader == self.address => {
                    // Our own key of an earlier life: it ends with its lease.
                    self.turn(Role::Neither);
                }
                Ok(Attempt::Following(leader)) => self.turn(Role::Following(leader)),
                Err(error) => {
                    log::warn!("{error}");
                    self.turn(Role::Neither);
                }
            }
            if matches!(self.events.1.recv_timeout(LOOK_EVERY), Ok(Event::Stop)) {
                return;
            }
        }
    }

    /// Leads until it cannot any more. True: the node ends.
    fn lead(&self, mut leadership: Leadership) -> bool {
        // Left over from an earlier leadership.
        while self
            .events
            .1
            .try_recv()
            .is_ok_and(|event| matches!(event, Event::Failed(_)))
        {}
        // A large pool takes a while to read.
        let app = match leadership.kept(|| self.start(&leadership)) {
            Ok(app) => app,
            Err(error) => {
                log::error!("this node cannot lead: {error}");
                leadership.resign();
                return false;
            }
        };
        let sampler = self.runtime.spawn(app.clone().sample());
        log::info!("this node leads");
        self.turn(Role::Leading(service(app)));
        let is_end = loop {
            match self.events.1.recv_timeout(KEEP_EVERY) {
                Ok(Event::Stop) => break true,
                Ok(Event::Failed(error)) => {
                    log::error!("{error}");
                    break false;
                }
                Err(RecvTimeoutError::Timeout) if leadership.keep() => {}
                Err(_) => break false,
            }
        };
        log::info!("this node does not lead any more");
        self.turn(Role::Neither);
        sampler.abort();
        leadership.resign();
        is_end
    }

    fn start(&self, leadership: &Leadership) -> Result<App, StartError> {
        let mut store = EtcdStore::new(leadership.clone());
        let (version, records) = store.load()?;
        if records.is_empty() {
            let (_, first) = (self.first)()?;
            let changes: Vec<_> = first
                .into_iter()
                .map(|(key, value)| (key, Some(value)))
                .collect();
            if !changes.is_empty() {
                log::info!(
                    "etcd has no pool yet: it gets the {} records of this node",
                    changes.len()
                );
                store.commit(version, &changes)?;
            }
        }
        let events = self.events.0.clone();
        let core = Core::start(Box::new(store), move |outcome| {
            if let Err(error) = outcome {
                let _ = events.send(Event::Failed(error));
            }
        })?;
        Ok(App::sharing(
            core,
            self.signer.clone(),
            self.history.clone(),
        ))
    }

    fn turn(&self, role: Role) {
        self.roles.send_if_modified(|now| {
            let is_new = *now != role;
            *now = role;
            is_new
        });
    }
}
