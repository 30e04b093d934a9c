//! What an executor says: replies, notices, pushes. Any thread may send.

use std::io::IoSlice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use farcall_marshal::record::{HEAD_BYTES, Head, Record, encode, encode_bare, record_bytes};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{ErrorNotice, HostFuncDue, KernelOutput, TraceStep};
use farcall_transport::{BulkError, Endpoint, SendError};

use super::peers::Peers;
use crate::ledger::{Ledger, Slot};
use crate::sys::raw;

/// Longest message of a notice.
const MESSAGE_BYTES_MAX: usize = 4 << 10;
/// Most printed text of one push.
const OUTPUT_BYTES_MAX: usize = 32 << 10;

/// To whom the outcome of a record goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// Number of the record.
    pub(crate) call: u16,
    /// Context that it was made in.
    pub(crate) context: u32,
    /// Whom to answer; 0 = nobody waits.
    pub(crate) ticket: u32,
}

impl Reply {
    /// The answer that a record asks for.
    pub(crate) fn to(head: &Head) -> Self {
        Self {
            call: head.number,
            context: head.context,
            ticket: head.ticket,
        }
    }
}

/// Where the session's messages go.
pub(crate) trait Outbox: Send + Sync + std::fmt::Debug {
    /// Appends one record of `bytes` bytes that `fill` writes.
    fn append(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8]));
    /// Sends what was appended.
    fn flush(&self);
    /// A ticket has been answered.
    fn answered(&self) {}
    /// Sends `data` over the bulk plane, to whom the client said. Blocks until it is on its way. False: it was for another server,
    /// and there is no way to that any more.
    fn bulk_send(&self, id: u64, data: &[u8]) -> bool;
    /// Receives the transfer `id` at `dest`; `done` is told how many bytes came, `None` if it will never
    /// come. Does not block; `done` may be called before this returns.
    ///
    /// # Safety
    /// `dest` may be written for `len` bytes until `done` is called or dropped.
    unsafe fn bulk_post(&self, id: u64, dest: *mut u8, len: usize, done: Posted);
    /// Receives the transfer `id` into a new buffer of at most `len` bytes. Blocks; `None` if the session ends.
    fn bulk_receive(&self, id: u64, len: usize) -> Option<Vec<u8>>;
}

/// Told when a posted transfer is over.
pub(crate) type Posted = Box<dyn FnOnce(Option<usize>) + Send>;

/// Memory for a transfer.
pub(crate) struct Post {
    /// Exposed address.
    dest: u64,
    len: usize,
    done: Posted,
}

impl Post {
    /// # Safety
    /// As for [`Outbox::bulk_post`].
    unsafe fn new(dest: *mut u8, len: usize, done: Posted) -> Self {
        let dest = dest.expose_provenance() as u64;
        Self { dest, len, done }
    }

    /// Receives the transfer `id` from a peer. Does not block.
    pub(crate) fn receive(self, from: &Endpoint, id: u64) {
        let Self { dest, len, done } = self;
        let done = Box::new(move |came: Result<usize, BulkError>| done(came.ok()));
        // SAFETY: who made this keeps the destination valid until `done` is called or dropped.
        if let Err(error) = unsafe { from.bulk_post(id, raw::pointer(dest), len, done) } {
            log::error!("bulk transfer {id} cannot be received: {error}");
        }
    }

    /// Nothing will come.
    pub(crate) fn give_up(self) {
        (self.done)(None);
    }
}

impl dyn Outbox + '_ {
    /// Ends a record: a status to who waits for it, a notice if it failed and nobody does.
    pub(crate) fn finish(&self, reply: Reply, outcome: Result<(), Failure>) {
        match outcome {
            Ok(()) => self.status(reply, CuStatus::SUCCESS),
            Err(failure) if reply.ticket != 0 => self.status(reply, failure.status),
            Err(failure) => self.notice(reply, &failure),
        }
    }

    /// Answers with a status alone, if somebody waits.
    pub(crate) fn status(&self, reply: Reply, status: CuStatus) {
        if reply.ticket != 0 {
            let head = Head::reply(reply.call, status.0, reply.ticket);
            self.append(HEAD_BYTES, &mut |out| encode_bare(head, out));
            self.answered();
        }
    }

    /// Answers with a record, if somebody waits.
    pub(crate) fn record<'a>(&self, reply: Reply, status: CuStatus, record: &impl Record<'a>) {
        if reply.ticket != 0 {
            let head = Head::reply(reply.call, status.0, reply.ticket);
            self.append(record_bytes(record), &mut |out| encode(head, record, out));
            self.answered();
        }
    }

    /// Tells of a failure that no ticket waits for.
    pub(crate) fn notice(&self, reply: Reply, failure: &Failure) {
        let notice = ErrorNotice {
            status: failure.status.0,
            call: u32::from(reply.call),
            sticky: u32::from(failure.status.is_sticky()),
            message: clipped(&failure.message),
        };
        self.push(reply.context, &notice);
        self.flush();
    }

    /// Tells the client to call a host function.
    pub(crate) fn host_func_due(&self, context: u32, due: HostFuncDue) {
        self.push(context, &due);
        self.flush();
    }

    /// Tells a step of a record's way.
    pub(crate) fn trace_step(&self, head: &Head, ns: u64, step: &str, detail: &str) {
        let number = u32::from(head.number);
        let detail = clipped(detail);
        self.push(
            head.context,
            &TraceStep {
                number,
                ns,
                step,
                detail,
            },
        );
    }

    /// Sends what kernels printed.
    pub(crate) fn kernel_output(&self, context: u32, text: &[u8]) {
        for text in text.chunks(OUTPUT_BYTES_MAX) {
            self.push(context, &KernelOutput { text });
        }
    }

    fn push<'a, R: Record<'a>>(&self, context: u32, record: &R) {
        let head = Head::request(R::NUMBER, context, 0);
        self.append(record_bytes(record), &mut |out| encode(head, record, out));
    }
}

/// Why a record was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// What the program sees.
    pub(crate) status: CuStatus,
    /// What the log says; may be empty.
    pub(crate) message: String,
}

impl Failure {
    /// With words.
    pub(crate) fn new(status: CuStatus, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }
}

impl From<CuStatus> for Failure {
    fn from(status: CuStatus) -> Self {
        Self {
            status,
            message: String::new(),
        }
    }
}

/// The connection to the client.
pub(crate) struct Connection {
    endpoint: OnceLock<Endpoint>,
    ledger: Arc<Ledger>,
    slot: Slot,
    pending: AtomicBool,
    peers: Arc<Peers>,
}

impl Connection {
    /// Of the session in `slot`, not attached yet.
    pub(crate) fn new(ledger: Arc<Ledger>, slot: Slot, peers: Arc<Peers>) -> Self {
        Self {
            peers,
            endpoint: OnceLock::new(),
            ledger,
            slot,
            pending: AtomicBool::new(false),
        }
    }

    /// From now on messages go to `endpoint`.
    pub(crate) fn attach(&self, endpoint: Endpoint) {
        let _ = self.endpoint.set(endpoint);
    }

    /// The session's links to other servers.
    pub(crate) fn peers(&self) -> &Arc<Peers> {
        &self.peers
    }

    fn sent<T>(what: Result<T, SendError>) {
        match what {
            // The loop sees the same and ends the session.
            Ok(_) | Err(SendError::Closed(_)) => {}
            Err(error) => log::error!("a message to the client is lost: {error}"),
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").finish_non_exhaustive()
    }
}

impl Outbox for Connection {
    fn append(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) {
        if let Some(endpoint) = self.endpoint.get() {
            Self::sent(endpoint.append(bytes, |out| fill(out)));
            self.pending.store(true, Ordering::Release);
        }
    }

    fn flush(&self) {
        if let Some(endpoint) = self.endpoint.get()
            && self.pending.swap(false, Ordering::AcqRel)
        {
            Self::sent(endpoint.flush());
        }
    }

    fn answered(&self) {
        self.ledger.answered(self.slot);
    }

    fn bulk_send(&self, id: u64, data: &[u8]) -> bool {
        if let Some(is_sent) = self.peers.send(id, data) {
            return is_sent;
        }
        if let Some(endpoint) = self.endpoint.get() {
            Self::sent(endpoint.bulk_send(id, &[IoSlice::new(data)]));
        }
        true
    }

    unsafe fn bulk_post(&self, id: u64, dest: *mut u8, len: usize, done: Posted) {
        let Some(endpoint) = self.endpoint.get() else {
            return done(None);
        };
        // SAFETY: the caller promises what this one needs.
        let post = unsafe { Post::new(dest, len, done) };
        if let Some(post) = self.peers.offer(id, post) {
            post.receive(endpoint, id);
        }
    }

    fn bulk_receive(&self, id: u64, len: usize) -> Option<Vec<u8>> {
        let mut buffer = Vec::with_capacity(len);
        let room = buffer.spare_capacity_mut().get_mut(..len)?;
        let came = self.endpoint.get()?.bulk_recv(id, room).ok()?;
        // SAFETY: the transport has initialized the first `came` of `len` reserved bytes.
        unsafe { buffer.set_len(came.min(len)) };
        Some(buffer)
    }
}

/// The first part of a text that is not longer than a message may be.
pub(crate) fn clipped(text: &str) -> &str {
    let mut end = text.len().min(MESSAGE_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default()
}

/// Sends nothing to nobody.
#[cfg(feature = "fuzzing")]
#[derive(Debug)]
pub(crate) struct Discard;

#[cfg(feature = "fuzzing")]
impl Outbox for Discard {
    fn append(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) {
        fill(&mut vec![0; bytes]);
    }

    fn flush(&self) {}

    fn bulk_send(&self, _id: u64, _data: &[u8]) -> bool {
        true
    }

    unsafe fn bulk_post(&self, _id: u64, _dest: *mut u8, _len: usize, done: Posted) {
        done(None);
    }

    fn bulk_receive(&self, _id: u64, _len: usize) -> Option<Vec<u8>> {
        None
    }
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use farcall_marshal::record::{Head, Record, split};
    use farcall_marshal::wire::ErrorNotice;
    use parking_lot::{Condvar, Mutex};

    use super::{Outbox, Posted, clipped};

    /// Keeps what was sent.
    #[derive(Default)]
    pub(crate) struct Recorder {
        posted: Mutex<Vec<(u64, usize, usize, Posted)>>,
        pub(crate) records: Mutex<Vec<Vec<u8>>>,
        pub(crate) bulk: Mutex<Vec<(u64, Vec<u8>)>>,
        pub(crate) arrived: Condvar,
    }

    impl Outbox for Recorder {
        fn append(&self, bytes: usize, fill: &mut dyn FnMut(&mut [u8])) {
            let mut record = vec![0; bytes];
            fill(&mut record);
            self.records.lock().push(record);
            self.arrived.notify_all();
        }

        fn flush(&self) {}

        fn bulk_send(&self, id: u64, data: &[u8]) -> bool {
            self.bulk.lock().push((id, data.to_vec()));
            true
        }

        unsafe fn bulk_post(&self, id: u64, dest: *mut u8, len: usize, done: Posted) {
            self.posted
                .lock()
                .push((id, dest.expose_provenance(), len, done));
            self.arrived.notify_all();
        }

        fn bulk_receive(&self, _id: u64, _len: usize) -> Option<Vec<u8>> {
            None
        }
    }

    impl std::fmt::Debug for Recorder {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("Recorder")
        }
    }

    impl Recorder {
        /// Waits for the reply with this ticket: status and body.
        pub(crate) fn reply(&self, ticket: u32) -> (u32, Vec<u8>) {
            self.find(|head| head.is_reply() && head.ticket == ticket)
                .map(|(head, body)| (head.context, body))
                .unwrap()
        }

        /// Waits for a message with this number.
        pub(crate) fn message(&self, number: u16) -> Vec<u8> {
            self.find(|head| !head.is_reply() && head.number == number)
                .unwrap()
                .1
        }

        /// Whether somebody receives this transfer.
        pub(crate) fn is_posted(&self, id: u64) -> bool {
            self.posted.lock().iter().any(|entry| entry.0 == id)
        }

        /// Plays the peer that sends a transfer; it must be posted.
        pub(crate) fn deliver(&self, id: u64, data: &[u8]) {
            let mut posted = self.posted.lock();
            let at = posted.iter().position(|entry| entry.0 == id).unwrap();
            let (_, dest, len, done) = posted.remove(at);
            drop(posted);
            assert!(data.len() <= len);
            // SAFETY: `bulk_post` was promised that the destination is valid until `done` is called.
            unsafe { crate::sys::raw::write(dest as u64, data) };
            done(Some(data.len()));
        }

        /// Whether a reply with this ticket has been sent.
        pub(crate) fn has_reply(&self, ticket: u32) -> bool {
            self.records.lock().iter().any(|record| {
                let (head, ..) = split(record).unwrap();
                head.is_reply() && head.ticket == ticket
            })
        }

        /// Notices so far: status and call.
        pub(crate) fn notices(&self) -> Vec<(u32, u32, bool)> {
            let records = self.records.lock();
            let heads = records.iter().map(|record| split(record).unwrap());
            let notices = heads.filter(|(head, ..)| head.number == ErrorNotice::NUMBER);
            notices
                .map(|(_, body, _)| ErrorNotice::decode_body(body).unwrap())
                .map(|n| (n.status, n.call, n.sticky != 0))
                .collect()
        }

        fn find(&self, wanted: impl Fn(&Head) -> bool) -> Option<(Head, Vec<u8>)> {
            let mut records = self.records.lock();
            loop {
                for record in records.iter() {
                    let (head, body, _) = split(record).unwrap();
                    if wanted(&head) {
                        return Some((head, body.to_vec()));
                    }
                }
                if self
                    .arrived
                    .wait_for(&mut records, Duration::from_secs(20))
                    .timed_out()
                {
                    return None;
                }
            }
        }
    }

    #[test]
    fn messages_are_cut_between_characters() {
        let long = "ä".repeat(4000);
        let cut = clipped(&long);
        assert!(cut.len() <= 4096 && cut.len() >= 4095 && long.starts_with(cut));
    }
}
