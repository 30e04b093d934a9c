//! The keeper's part in links between executors of different servers: it opens and hands on connections.
#![forbid(unsafe_code)]

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use farcall_marshal::record::{Record, split};
use farcall_marshal::wire::PeerHello;
use farcall_transport::{Incoming, RefuseCode, SessionId};

use super::inbox::Event;
use super::keeper::Keeper;
use crate::control::{self, Order};
use crate::limits::STACK_BYTES;

/// Longest that a connection may take.
const CONNECT: Duration = Duration::from_secs(4);
/// Connections that may be opened for one executor at a time.
const DIALS_MAX: usize = 16;
/// Links that are remembered of a session, for their further connections.
const LINKS_MAX: usize = 16;

/// The session that a link is meant for, if this is one.
pub(super) fn session_of(incoming: &Incoming) -> Option<SessionId> {
    let (head, body, _) = split(incoming.payload()).ok()?;
    if head.number != PeerHello::NUMBER {
        return None;
    }
    let hello = PeerHello::decode_body(body).ok()?;
    hello.session.try_into().ok().map(SessionId)
}

impl Keeper {
    /// Hands a link to the executor of its session, which checks its right to it.
    pub(super) fn take_peer(&mut self, incoming: Incoming, session: SessionId) {
        let mut executors = self.executors.values_mut();
        let executor = executors.find(|executor| {
            let serving = executor.serving();
            serving.is_some_and(|serving| serving.session == session)
        });
        let Some(executor) = executor.filter(|_| self.plan.peer_links) else {
            return incoming.refuse(RefuseCode::SESSION, "no such session");
        };
        if let Some(serving) = executor.serving_mut() {
            if serving.links.len() >= LINKS_MAX {
                serving.links.remove(0);
            }
            serving.links.push(incoming.session());
        }
        let payload = incoming.payload().to_vec();
        let (connection, state) = incoming.into_parts();
        let Some(control) = executor.socket() else {
            return;
        };
        let fds = [connection.as_fd()];
        if let Err(error) = control::send(control, &Order::Peer, &state, &payload, &fds) {
            log::warn!("a link from another server is dropped: {error}");
        }
    }

    /// Opens a connection for an executor, which may not. Does not block.
    pub(super) fn dial(&mut self, id: u64, number: u64, address: SocketAddr) {
        let (inbox, may_link) = (self.inbox(), self.plan.peer_links);
        let Some(executor) = self.executors.get_mut(&id) else {
            return;
        };
        executor.dials += 1;
        if !may_link || executor.dials > DIALS_MAX {
            let refused = Err(io::ErrorKind::PermissionDenied.into());
            return inbox.send(Event::Dialed(id, number, refused));
        }
        let told = inbox.clone();
        let connect = move || {
            let socket = TcpStream::connect_timeout(&address, CONNECT);
            told.send(Event::Dialed(id, number, socket.map(OwnedFd::from)));
        };
        let builder = std::thread::Builder::new()
            .name("dial".to_owned())
            .stack_size(STACK_BYTES);
        if let Err(error) = builder.spawn(connect) {
            inbox.send(Event::Dialed(id, number, Err(error)));
        }
    }

    /// Tells an executor what became of its connection.
    pub(super) fn pass_on(&mut self, id: u64, number: u64, outcome: io::Result<OwnedFd>) {
        let Some(executor) = self.executors.get_mut(&id) else {
            return;
        };
        executor.dials = executor.dials.saturating_sub(1);
        let Some(control) = executor.socket() else {
            return;
        };
        let (failure, socket) = match outcome {
            Ok(socket) => (None, Some(socket)),
            Err(error) => (Some(error.to_string()), None),
        };
        let order = Order::Dialed { number, failure };
        let fds: Vec<_> = socket.iter().map(std::os::fd::AsFd::as_fd).collect();
        if let Err(error) = control::send(control, &order, &[], &[], &fds) {
            log::warn!("a connection for an executor is dropped: {error}");
        }
    }
}
