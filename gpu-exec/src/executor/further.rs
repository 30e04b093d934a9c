//! Further connections of a session and of the links to it. A thread of their own takes them: a peer that falls silent in the
//! middle holds that up for as long as a handshake may take, and the supervisor's word that the session is over must not wait.
#![forbid(unsafe_code)]

use std::os::fd::OwnedFd;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use farcall_transport::{Endpoint, SessionId};

use super::peers::Peers;
use crate::limits::STACK_BYTES;

/// Connections that may wait for their turn; more are closed, and their client comes again.
const WAITING_MAX: usize = 8;

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Bulk data of a connection that is there.
    Bulk,
    /// Instead of a connection that was lost.
    Resume,
}

/// A connection, as the supervisor hands it over.
pub(super) struct Arrival {
    pub(super) purpose: Purpose,
    pub(super) fd: OwnedFd,
    pub(super) state: Vec<u8>,
    /// Name of the link that is meant; empty: the session itself.
    pub(super) link: Vec<u8>,
}

/// Takes connections, in their order.
pub(super) struct Further {
    endpoint: Endpoint,
    peers: Arc<Peers>,
    /// To the thread, once there was a connection.
    queue: OnceLock<SyncSender<Arrival>>,
}

impl Further {
    pub(super) fn new(endpoint: Endpoint, peers: Arc<Peers>) -> Self {
        Self {
            endpoint,
            peers,
            queue: OnceLock::new(),
        }
    }

    /// Hands a connection to the thread. Does not block.
    pub(super) fn take(&self, connection: Arrival) {
        let queue = self.queue.get_or_init(|| self.start());
        if queue.try_send(connection).is_err() {
            log::warn!("a connection was not taken: too many of this session wait");
        }
    }

    fn start(&self) -> SyncSender<Arrival> {
        let (queue, connections) = sync_channel::<Arrival>(WAITING_MAX);
        let (endpoint, peers) = (self.endpoint.clone(), Arc::clone(&self.peers));
        let adopt = move || {
            for connection in connections {
                let link = &connection.link;
                let meant = if link.is_empty() {
                    Some(endpoint.clone())
                } else {
                    let session = link.as_slice().try_into().map(SessionId);
                    session.ok().and_then(|session| peers.link(session))
                };
                if let Some(meant) = meant {
                    connection.adopt(&meant);
                }
            }
        };
        let builder = std::thread::Builder::new()
            .name("connections".to_owned())
            .stack_size(STACK_BYTES);
        if let Err(error) = builder.spawn(adopt) {
            log::error!("further connections cannot be taken: {error}");
        }
        queue
    }
}

impl Arrival {
    fn adopt(self, endpoint: &Endpoint) {
        let taken = match self.purpose {
            Purpose::Bulk => endpoint.attach_bulk(self.fd, &self.state),
            Purpose::Resume => endpoint.resume(self.fd, &self.state),
        };
        if let Err(error) = taken {
            log::warn!("a connection was not taken: {error}");
        }
    }
}
