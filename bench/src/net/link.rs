//! The client's side of a session with a [`super::service::Service`].
#![forbid(unsafe_code)]

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use farcall_transport::{ConnectError, ConnectOptions, Endpoint, Handler, connect};

use super::bulk::{Buffer, Memory};
use super::service::{BULK_RECORD_BYTES, Hello, Mode, Order, Welcome};
use super::tls;
use super::{Lost, Transport, Trip};
use crate::pin::Side;
use crate::rdma;

/// Only a hang takes as long.
const PATIENCE: Duration = Duration::from_secs(30);

/// A session.
#[derive(Debug)]
pub struct Link {
    endpoint: Endpoint,
    inbox: Arc<Inbox>,
    welcome: Welcome,
    /// Bytes that have been waited for.
    expected: u64,
}

/// Counts what arrives.
#[derive(Debug, Default)]
struct Inbox {
    bytes: AtomicU64,
}

impl Handler for Inbox {
    fn on_frame(&self, _: &Endpoint, frame: &[u8]) {
        // One thread at a time receives. SYNC: Release pairs with the Acquire in `Link::wait`.
        let bytes = self.bytes.load(Ordering::Relaxed) + frame.len() as u64;
        self.bytes.store(bytes, Ordering::Release);
    }
}

impl Link {
    /// Opens a session in which the service does what `mode` says.
    ///
    /// # Errors
    /// The transport's: the server cannot be reached, or the backend cannot be had (TLS: only with a service of this process).
    ///
    /// # Panics
    /// If the server is no [`super::service::Service`] of this version.
    pub fn open(server: &str, transport: Transport, mode: Mode) -> Result<Self, ConnectError> {
        let inbox = Arc::new(Inbox::default());
        let options = ConnectOptions {
            transport: transport.choice,
            tls: transport.tls.then(tls::client),
            rdma: Some(rdma::options(Side::Client)),
            connect_timeout: PATIENCE,
            payload: serde_json::to_vec(&Hello::new(mode)).expect("JSON"),
            ..ConnectOptions::new(server)
        };
        let (endpoint, welcome) = connect(&options, inbox.clone())?;
        let welcome = serde_json::from_slice(&welcome).expect("the welcome of a bench service");
        Ok(Self {
            endpoint,
            inbox,
            welcome,
            expected: 0,
        })
    }

    /// Which backend it became.
    #[must_use]
    pub fn transport_name(&self) -> &'static str {
        self.endpoint.transport_name()
    }

    /// The session itself, which ends with this link all the same.
    #[must_use]
    pub fn session(&self) -> Endpoint {
        self.endpoint.clone()
    }

    /// What the far host said about itself.
    #[must_use]
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// Waits for so many further bytes of records.
    fn wait(&mut self, bytes: usize) -> Result<(), Lost> {
        self.expected += bytes as u64;
        let done = || self.inbox.bytes.load(Ordering::Acquire) >= self.expected;
        let waited = self.endpoint.wait_until(&done, Some(PATIENCE));
        waited.map_err(Lost::new)
    }

    /// Memory for transfers of this session.
    fn buffer(&self, bytes: usize, memory: Memory) -> Buffer {
        let lent_to = (memory == Memory::Pinned).then_some(&self.endpoint);
        Buffer::new(bytes, lent_to)
    }

    fn order(&self, order: Order) -> Result<(), Lost> {
        let fill = |out: &mut [u8]| out.copy_from_slice(&order.encode());
        let sent = self.endpoint.append_now(BULK_RECORD_BYTES, fill);
        sent.map(drop).map_err(Lost::new)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.endpoint.close();
    }
}

/// A record there, the same back.
#[allow(missing_debug_implementations)]
pub struct Echo {
    link: Link,
    buffer: Vec<u8>,
}

impl Echo {
    /// Of `bytes` bytes; a multiple of 8 so that the peer's copy is as long.
    #[must_use]
    pub fn new(link: Link, bytes: usize) -> Self {
        Self {
            link,
            buffer: vec![1; bytes.max(8).next_multiple_of(8)],
        }
    }
}

impl Trip for Echo {
    fn trip(&mut self) -> Result<(), Lost> {
        let fill = |out: &mut [u8]| out.copy_from_slice(&self.buffer);
        let sent = self.link.endpoint.append_now(self.buffer.len(), fill);
        sent.map_err(Lost::new)?;
        self.link.wait(self.buffer.len())
    }
}

/// A run of records one way; the service answers when it has them all.
#[allow(missing_debug_implementations)]
pub struct Run {
    link: Link,
    records: u64,
    bytes: usize,
}

impl Run {
    /// Of `records` records, `bytes` bytes each. The link's mode says that the service answers after as many bytes.
    #[must_use]
    pub fn new(link: Link, records: u64, bytes: usize) -> Self {
        Self {
            link,
            records,
            bytes,
        }
    }
}

impl Trip for Run {
    fn trip(&mut self) -> Result<(), Lost> {
        for number in 0..self.records {
            let fill = |out: &mut [u8]| {
                if let Some(head) = out.first_chunk_mut() {
                    *head = number.to_le_bytes();
                }
            };
            let endpoint = &self.link.endpoint;
            endpoint.append(self.bytes, fill).map_err(Lost::new)?;
        }
        self.link.endpoint.flush().map_err(Lost::new)?;
        self.link.wait(8)
    }
}

/// A large buffer from the client's memory into the server's.
#[allow(missing_debug_implementations)]
pub struct Upload {
    source: Buffer,
    link: Link,
    id: u64,
}

impl Upload {
    /// Of `bytes` bytes.
    #[must_use]
    pub fn new(link: Link, bytes: usize, memory: Memory) -> Self {
        Self {
            source: link.buffer(bytes, memory),
            link,
            id: 0,
        }
    }
}

impl Trip for Upload {
    fn trip(&mut self) -> Result<(), Lost> {
        self.id += 1;
        let bytes = self.source.bytes().len() as u64;
        self.link.order(Order::Receive { id: self.id, bytes })?;
        let sent = self
            .link
            .endpoint
            .bulk_send(self.id, &[IoSlice::new(self.source.bytes())]);
        sent.map_err(Lost::new)?;
        self.link.wait(8)
    }
}

/// A large buffer from the server's memory into the client's.
#[allow(missing_debug_implementations)]
pub struct Download {
    dest: Buffer,
    link: Link,
    id: u64,
}

impl Download {
    /// Of `bytes` bytes.
    #[must_use]
    pub fn new(link: Link, bytes: usize, memory: Memory) -> Self {
        Self {
            dest: link.buffer(bytes, memory),
            link,
            id: 0,
        }
    }
}

impl Trip for Download {
    fn trip(&mut self) -> Result<(), Lost> {
        self.id += 1;
        let bytes = self.dest.bytes().len() as u64;
        self.link.order(Order::Send { id: self.id, bytes })?;
        let endpoint = &self.link.endpoint;
        let got = endpoint.bulk_recv(self.id, self.dest.room());
        match got.map_err(Lost::new)? as u64 {
            got if got == bytes => Ok(()),
            got => Err(Lost::new(format!("a transfer of {got} bytes, not {bytes}"))),
        }
    }
}
