//! The far side of the measurements: a listener, a thread for each session, and what a session is told to do.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use farcall_transport::{
    CloseReason, Endpoint, Handler, Incoming, IncomingKind, ListenOptions, Listener, SessionId,
    Tuning,
};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::pin::{self, Side};
use crate::rdma;

use super::bulk::{Buffer, receive_into};
use super::tls;

/// Version of what is said in hello, welcome and orders.
const VERSION: u32 = 1;
/// Largest bulk transfer that the service lends memory for.
const BULK_BYTES_MAX: u64 = 1 << 30;

/// What a session's service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Sends every frame back.
    Echo,
    /// Takes records, and answers with 8 bytes whenever so many bytes have come.
    Sink {
        /// The bytes.
        bytes: u64,
    },
    /// Obeys [`Order`]s.
    Bulk,
}

/// What the client says first.
#[derive(Debug, Serialize, Deserialize)]
pub struct Hello {
    version: u32,
    mode: Mode,
}

impl Hello {
    /// For a session of this mode.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self {
            version: VERSION,
            mode,
        }
    }
}

/// What the service answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Welcome {
    /// The service's host.
    pub machine: Machine,
}

/// A record that starts a bulk transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The client sends transfer `id`: receive it and answer with 8 bytes.
    Receive {
        /// Number of the transfer.
        id: u64,
        /// Its length.
        bytes: u64,
    },
    /// Send transfer `id`.
    Send {
        /// Number of the transfer.
        id: u64,
        /// Its length.
        bytes: u64,
    },
}

/// Length of an [`Order`].
pub const BULK_RECORD_BYTES: usize = 24;

impl Order {
    /// Little-endian words: what, which, how long.
    #[must_use]
    pub fn encode(self) -> [u8; BULK_RECORD_BYTES] {
        let (what, id, bytes): (u64, u64, u64) = match self {
            Self::Receive { id, bytes } => (0, id, bytes),
            Self::Send { id, bytes } => (1, id, bytes),
        };
        let mut out = [0; BULK_RECORD_BYTES];
        for (place, word) in out.as_chunks_mut::<8>().0.iter_mut().zip([what, id, bytes]) {
            *place = word.to_le_bytes();
        }
        out
    }

    /// None for bytes that are no order.
    #[must_use]
    pub fn decode(record: &[u8; BULK_RECORD_BYTES]) -> Option<Self> {
        let &[what, id, bytes] = record.as_chunks::<8>().0 else {
            return None;
        };
        let [what, id, bytes] = [what, id, bytes].map(u64::from_le_bytes);
        match what {
            _ if bytes > BULK_BYTES_MAX => None,
            0 => Some(Self::Receive { id, bytes }),
            1 => Some(Self::Send { id, bytes }),
            _ => None,
        }
    }
}

/// A listening service. It ends when dropped; sessions end with their clients.
#[derive(Debug)]
pub struct Service {
    listener: Arc<Listener>,
    acceptor: Option<JoinHandle<()>>,
}

impl Service {
    /// Listens at `address` (port 0: a free one) and serves on the server's core.
    ///
    /// # Errors
    /// The system's.
    pub fn start(address: &str) -> io::Result<Self> {
        let options = ListenOptions {
            tls: Some(tls::server()),
            rdma: Some(rdma::options(Side::Server)),
            ..ListenOptions::default()
        };
        let listener = Arc::new(Listener::bind(address, options)?);
        let own = Arc::clone(&listener);
        // Before the thread has but one core.
        let machine = Machine::here();
        let acceptor = pin::on(Side::Server, || {
            thread::spawn(move || accept(&own, &machine))
        });
        Ok(Self {
            listener,
            acceptor: Some(acceptor),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.listener.local_addr()
    }

    /// Serves until the process ends.
    pub fn wait(mut self) {
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.listener.close();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(listener: &Listener, machine: &Machine) {
    let mut sessions: HashMap<SessionId, Endpoint> = HashMap::new();
    while let Ok(incoming) = listener.accept() {
        sessions.retain(|_, endpoint| endpoint.closed().is_none());
        match incoming.kind() {
            IncomingKind::New => {
                if let Some(endpoint) = open(incoming, machine) {
                    sessions.insert(endpoint.session(), endpoint);
                }
            }
            IncomingKind::Bulk { session } => {
                let (fd, state) = incoming.into_parts();
                if let Some(endpoint) = sessions.get(&session) {
                    let _ = endpoint.attach_bulk(fd, &state);
                }
            }
            _ => {}
        }
    }
}

/// A session on a thread of its own; None for a client of another version.
fn open(incoming: Incoming, machine: &Machine) -> Option<Endpoint> {
    let hello: Hello = serde_json::from_slice(incoming.payload()).ok()?;
    if hello.version != VERSION {
        return None;
    }
    // The rest does not change while a service runs.
    let welcome = Welcome {
        machine: machine.clone().with_load_now(),
    };
    let welcome = serde_json::to_vec(&welcome).ok()?;
    let (fd, state) = incoming.into_parts();
    let handler: Arc<dyn Handler> = match hello.mode {
        Mode::Echo => Arc::new(EchoHandler),
        Mode::Sink { bytes } => Arc::new(SinkHandler::new(bytes)),
        Mode::Bulk => Arc::new(BulkHandler::default()),
    };
    let endpoint = Endpoint::adopt(fd, &state, &welcome, &Tuning::default(), handler).ok()?;
    let own = endpoint.clone();
    thread::spawn(move || own.run());
    Some(endpoint)
}

struct EchoHandler;

impl Handler for EchoHandler {
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]) {
        // A session that ends meanwhile needs no echo.
        let _ = endpoint.append(frame.len(), |out| out.copy_from_slice(frame));
    }
}

struct SinkHandler {
    every: u64,
    left: parking_lot::Mutex<u64>,
}

impl SinkHandler {
    fn new(every: u64) -> Self {
        let every = every.max(1);
        Self {
            every,
            left: every.into(),
        }
    }
}

impl Handler for SinkHandler {
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]) {
        let mut left = self.left.lock();
        let mut came = frame.len() as u64;
        while came >= *left {
            came -= *left;
            *left = self.every;
            let _ = endpoint.append_now(8, |out| out.fill(0));
        }
        *left -= came;
    }
}

/// Memory that transfers of the session come from and go to.
#[derive(Default)]
struct BulkHandler {
    buffer: Arc<parking_lot::Mutex<Buffer>>,
}

impl Handler for BulkHandler {
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]) {
        for record in frame.as_chunks::<BULK_RECORD_BYTES>().0 {
            match Order::decode(record) {
                Some(Order::Receive { id, bytes }) => {
                    receive_into(endpoint, id, bytes, &self.buffer);
                }
                Some(Order::Send { id, bytes }) => {
                    let mut buffer = self.buffer.lock();
                    buffer.fit(usize::try_from(bytes).unwrap_or_default(), endpoint);
                    let _ = endpoint.bulk_send(id, &[IoSlice::new(buffer.bytes())]);
                }
                None => endpoint.close(),
            }
        }
    }

    fn on_closed(&self, _: &Endpoint, _: &CloseReason) {
        // It holds a handle of the session.
        *self.buffer.lock() = Buffer::default();
    }
}

#[cfg(test)]
mod tests {
    use super::{BULK_BYTES_MAX, Order};

    #[test]
    fn orders_come_back_and_others_do_not() {
        for order in [
            Order::Receive { id: 7, bytes: 9 },
            Order::Send { id: 1, bytes: 0 },
        ] {
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        let huge = Order::Send {
            id: 1,
            bytes: BULK_BYTES_MAX + 1,
        };
        assert_eq!(Order::decode(&huge.encode()), None);
        assert_eq!(Order::decode(&[7; 24]), None);
    }
}
