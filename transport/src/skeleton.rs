//! Signatures only, until the implementation lands.
#![allow(clippy::todo, clippy::missing_errors_doc, clippy::missing_safety_doc, unused_variables, missing_docs)]
use crate::*;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

/// Receives frames. Called by whichever thread receives, one call at a time per endpoint.
pub trait Handler: Send + Sync {
    /// One frame, 8-byte aligned, length a multiple of 8, borrowed until return. May append,
    /// flush and bulk_send on `endpoint` (also when that has to wait for room), but not wait.
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]);
    /// The session is over; called once.
    fn on_closed(&self, endpoint: &Endpoint, why: &CloseReason);
}
/// Position in the stream just after a record; compare with [`Endpoint::acked`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seq(pub u64);
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SessionId(pub [u8; 16]);
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Stats {
    pub frames_out: u64, pub frames_in: u64, pub bytes_out: u64, pub bytes_in: u64,
    pub acks_out: u64, pub acks_in: u64,
    pub bulk_out: u64, pub bulk_in: u64, pub bulk_bytes_out: u64, pub bulk_bytes_in: u64,
    pub flush_idle: u64, pub flush_ack: u64, pub flush_full: u64, pub flush_forced: u64, pub flush_timer: u64,
    pub sleeps: u64, pub rtt_ns: u64,
}
/// Clones share one session. The session closes when the last clone goes, or at close().
#[derive(Clone)]
pub struct Endpoint {}
pub fn connect(options: &ConnectOptions, handler: Arc<dyn Handler>) -> Result<(Endpoint, Vec<u8>), ConnectError> { todo!() }
impl Endpoint {
    /// Server side, in the executor: `fd` and `state` come from Incoming::into_parts of a New client.
    pub fn adopt(fd: OwnedFd, state: &[u8], welcome: &[u8], tuning: &Tuning, handler: Arc<dyn Handler>) -> Result<Self, AdoptError> { todo!() }
    pub fn append(&self, len: usize, fill: impl FnOnce(&mut [u8])) -> Result<Seq, SendError> { todo!() }
    pub fn append_with(&self, max_len: usize, fill: impl FnOnce(&mut [u8]) -> usize) -> Result<Seq, SendError> { todo!() }
    pub fn flush(&self) -> Result<(), SendError> { todo!() }
    pub fn wait_until(&self, done: &dyn Fn() -> bool, timeout: Option<Duration>) -> Result<(), WaitError> { todo!() }
    pub fn poll(&self) -> Result<bool, CloseReason> { todo!() }
    /// Server loop: receives until the session is over.
    pub fn run(&self) -> CloseReason { todo!() }
    /// Makes every wait_until look at its condition again (when something else than a frame made it true).
    pub fn notify(&self) { todo!() }
    pub fn bulk_send(&self, id: u64, parts: &[IoSlice<'_>]) -> Result<(), SendError> { todo!() }
    /// dest stays valid until `done` is called or bulk_cancel returns true.
    pub unsafe fn bulk_post(&self, id: u64, dest: *mut u8, len: usize, done: Box<dyn FnOnce(Result<usize, BulkError>) + Send>) -> Result<(), BulkError> { todo!() }
    pub fn bulk_cancel(&self, id: u64) -> bool { todo!() }
    pub fn bulk_recv(&self, id: u64, dest: &mut [MaybeUninit<u8>]) -> Result<usize, BulkError> { todo!() }
    /// Server side: the second connection of this session (Incoming of kind Bulk).
    pub fn attach_bulk(&self, fd: OwnedFd, state: &[u8]) -> Result<(), AdoptError> { todo!() }
    pub fn acked(&self) -> Seq { todo!() }
    pub fn stats(&self) -> Stats { todo!() }
    pub fn close(&self) { todo!() }
    pub fn closed(&self) -> Option<CloseReason> { todo!() }
    pub fn transport_name(&self) -> &'static str { todo!() }
    pub fn peer(&self) -> Option<SocketAddr> { todo!() }
    pub fn session(&self) -> SessionId { todo!() }
    /// Optional: the endpoint notices a fork by itself.
    pub fn after_fork_child(&self) { todo!() }
}
pub enum IncomingKind { New, Bulk { session: SessionId }, Resume { session: SessionId } }
pub struct Incoming {}
impl Incoming {
    pub fn kind(&self) -> IncomingKind { todo!() }
    /// Of a New client: the id its session will have.
    pub fn session(&self) -> SessionId { todo!() }
    pub fn token(&self) -> Option<&[u8]> { todo!() }
    pub fn payload(&self) -> &[u8] { todo!() }
    pub fn peer(&self) -> Option<SocketAddr> { todo!() }
    pub fn refuse(self, code: RefuseCode, message: &str) { todo!() }
    pub fn into_parts(self) -> (OwnedFd, Vec<u8>) { todo!() }
}
pub struct Listener {}
impl Listener {
    pub fn bind(address: impl ToSocketAddrs, options: ListenOptions) -> io::Result<Self> { todo!() }
    pub fn local_addr(&self) -> SocketAddr { todo!() }
    /// Next client whose hello is complete; never blocked by a slow one.
    pub fn accept(&self) -> Result<Incoming, AcceptError> { todo!() }
    /// Makes accept return Closed, from any thread.
    pub fn close(&self) { todo!() }
}
/// Compares without telling by its time where the difference is.
pub fn constant_time_eq(a: &[u8], b: &[u8]) -> bool { todo!() }
