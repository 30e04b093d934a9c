//! The end of a link that sends.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use farcall_marshal::record::{Head, Record, encode, record_bytes, to_vec};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{PeerConnect, PeerHello, PeerPush, PeerPut};
use farcall_transport::{
    CloseReason, ConnectOptions, Endpoint, Handler, SocketOptions, TransportChoice, connect,
};
use parking_lot::Mutex;

use super::{Dials, LINKS_MAX, Secret, TICKETS_MAX, dialer};
use crate::device::Violation;
use crate::executor::outbox::{Failure, Outbox, Reply};
use crate::limits::STACK_BYTES;

/// Longest that opening a link may take.
const CONNECT: Duration = Duration::from_secs(5);
/// Longest text of an address.
const ADDRESS_BYTES_MAX: usize = 64;
/// Transfers that a link takes ahead, where they are copied.
const AHEAD_MAX: usize = 4;

/// Links that this session sends over.
pub(crate) struct Outgoing {
    dials: Option<Arc<Dials>>,
    is_copying: bool,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Default)]
struct Inner {
    links: HashMap<u64, Arc<Link>>,
    /// Links that are being opened.
    opening: usize,
    pushes: HashMap<u64, Push>,
}

/// A transfer that goes to another server.
#[derive(Clone, Copy)]
struct Push {
    peer: u64,
    /// Its number there.
    to: u64,
    secret: Secret,
}

/// An open link.
struct Link {
    endpoint: Endpoint,
    /// To the thread that sends, where what is sent was copied.
    queue: Option<SyncSender<(Push, Vec<u8>)>>,
}

impl Outgoing {
    pub(super) fn new(dials: Option<Arc<Dials>>, is_copying: bool) -> Self {
        Self {
            dials,
            is_copying,
            inner: Arc::default(),
        }
    }

    /// Opens a link to a session of another server, on a thread of its own, which answers.
    pub(super) fn connect(
        &self,
        record: &PeerConnect<'_>,
        reply: Reply,
        outbox: &Arc<dyn Outbox>,
    ) -> Result<(), Violation> {
        let secret = Secret::decode(record.secret)?;
        let address = record.address.to_owned();
        let Some(dials) = self
            .dials
            .clone()
            .filter(|_| address.len() <= ADDRESS_BYTES_MAX)
        else {
            return Err(Violation::Rule("no address of a server"));
        };
        let mut inner = self.inner.lock();
        inner
            .links
            .retain(|_, link| link.endpoint.closed().is_none());
        if inner.links.len() + inner.opening >= LINKS_MAX {
            return Err(Violation::Rule("too many links between servers"));
        }
        inner.opening += 1;
        drop(inner);
        let (peer, session) = (record.peer, record.session.to_vec());
        let (shared, outbox, is_copying) = (self.inner.clone(), outbox.clone(), self.is_copying);
        let open = move || {
            let hello = to_vec(
                Head::request(PeerHello::NUMBER, 0, 0),
                &PeerHello {
                    session: &session,
                    link: peer,
                    secret: &secret.0,
                },
            );
            let opened = Link::open(&address, hello, &dials, is_copying);
            let mut inner = shared.lock();
            inner.opening -= 1;
            let outcome = opened.map(|link| drop(inner.links.insert(peer, Arc::new(link))));
            drop(inner);
            // What is wrong exactly is the server's business: a client could ask for any address.
            let outcome = outcome.map_err(|why| {
                log::info!("no link to another server at {address}: {why}");
                Failure::from(CuStatus::NOT_SUPPORTED)
            });
            outbox.finish(reply, outcome);
            outbox.flush();
        };
        let builder = std::thread::Builder::new().name("link".to_owned());
        if let Err(error) = builder.stack_size(2 * STACK_BYTES).spawn(open) {
            log::error!("no thread for a link to another server: {error}");
            self.inner.lock().opening -= 1;
        }
        Ok(())
    }

    /// A transfer goes to another server.
    pub(super) fn announce(&self, record: &PeerPush<'_>) -> Result<(), Violation> {
        let mut inner = self.inner.lock();
        if inner.pushes.len() >= TICKETS_MAX {
            return Err(Violation::Rule("too many copies between servers"));
        }
        let push = Push {
            peer: record.peer,
            to: record.to,
            secret: Secret::decode(record.secret)?,
        };
        inner.pushes.insert(record.bulk, push);
        Ok(())
    }

    /// Sends a transfer that was announced; false if its link is gone. `None`: it was not.
    ///
    /// Blocks until the bytes are on their way, or copied.
    pub(super) fn send(&self, id: u64, data: &[u8]) -> Option<bool> {
        let mut inner = self.inner.lock();
        let push = inner.pushes.remove(&id)?;
        let link = inner.links.get(&push.peer).cloned();
        drop(inner);
        let Some(link) = link else {
            return Some(false);
        };
        Some(match &link.queue {
            Some(queue) => {
                link.endpoint.closed().is_none() && queue.send((push, data.to_vec())).is_ok()
            }
            None => put(&link.endpoint, &push, data),
        })
    }
}

impl Link {
    fn open(
        address: &str,
        hello: Vec<u8>,
        dials: &Arc<Dials>,
        is_copying: bool,
    ) -> Result<Self, String> {
        let mut options = ConnectOptions::new(address);
        options.payload = hello;
        options.connect_timeout = CONNECT;
        options.transport = TransportChoice::Network;
        options.socket = SocketOptions {
            dialer: Some(dialer(dials)),
            ..SocketOptions::default()
        };
        // No name is resolved: this process could not, and the client gives a number.
        address
            .parse::<std::net::SocketAddr>()
            .map_err(|_| "no address".to_owned())?;
        let (endpoint, _) =
            connect(&options, Arc::new(Silent)).map_err(|error| error.to_string())?;
        if !is_copying {
            return Ok(Self {
                endpoint,
                queue: None,
            });
        }
        let (queue, transfers) = sync_channel::<(Push, Vec<u8>)>(AHEAD_MAX);
        let sending = endpoint.clone();
        let send = move || {
            for (push, data) in transfers {
                if !put(&sending, &push, &data) {
                    return;
                }
            }
        };
        let builder = std::thread::Builder::new().name("pusher".to_owned());
        let spawned = builder.stack_size(STACK_BYTES).spawn(send);
        spawned.map_err(|error| error.to_string())?;
        Ok(Self {
            endpoint,
            queue: Some(queue),
        })
    }
}

/// Shows a ticket and sends its bytes. A link over which that fails is closed, which the other end takes for the end of
/// all that was to come.
fn put(link: &Endpoint, push: &Push, data: &[u8]) -> bool {
    let record = PeerPut {
        bulk: push.to,
        byte_count: data.len() as u64,
        secret: &push.secret.0,
    };
    let head = Head::request(PeerPut::NUMBER, 0, 0);
    let shown = link.append_now(record_bytes(&record), |out| encode(head, &record, out));
    let sent = shown.and_then(|_| link.bulk_send(push.to, &[IoSlice::new(data)]));
    if let Err(error) = &sent {
        log::warn!("a link to another server ended: {error}");
        link.close();
    }
    sent.is_ok()
}

/// Nothing is said in this direction.
struct Silent;

impl Handler for Silent {
    fn on_frame(&self, endpoint: &Endpoint, _frame: &[u8]) {
        endpoint.close();
    }

    fn on_closed(&self, _endpoint: &Endpoint, _why: &CloseReason) {}
}
