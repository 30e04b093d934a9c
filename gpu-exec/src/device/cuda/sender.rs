//! Long answers: bytes over the bulk plane, then the reply.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use farcall_marshal::record::{Head, encode, record_bytes};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::CuMemcpyDtoHAsyncV2Reply;
use parking_lot::Mutex;

use super::driver::Landing;
use crate::executor::outbox::{Outbox, Reply};
use crate::limits::STACK_BYTES;

/// Sends transfers to the client, one after another: sending blocks for as long as the client does not receive.
pub(crate) struct Sender {
    outbox: Arc<dyn Outbox>,
    jobs: Mutex<Option<mpsc::Sender<Job>>>,
}

/// A long answer.
pub(crate) struct Job {
    pub(crate) id: u64,
    pub(crate) payload: Payload,
    pub(crate) reply: Reply,
    pub(crate) unanswered: Arc<AtomicUsize>,
}

/// The bytes of an answer.
pub(crate) enum Payload {
    Landing(Landing),
    Bytes(Vec<u8>),
}

impl std::fmt::Debug for Sender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

impl Sender {
    /// Starts no thread.
    pub(crate) fn new(outbox: Arc<dyn Outbox>) -> Self {
        Self {
            outbox,
            jobs: Mutex::new(None),
        }
    }

    /// Ends the thread behind what it has.
    pub(crate) fn stop(&self) {
        *self.jobs.lock() = None;
    }

    /// Hands an answer over. Does not block.
    pub(crate) fn send(&self, job: Job) {
        let mut jobs = self.jobs.lock();
        let sender = jobs.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel::<Job>();
            let outbox = self.outbox.clone();
            let builder = std::thread::Builder::new()
                .name("sender".to_owned())
                .stack_size(STACK_BYTES);
            if let Err(error) =
                builder.spawn(move || receiver.into_iter().for_each(|job| job.run(&*outbox)))
            {
                // Without it no long answer is ever given.
                log::error!("the sender thread cannot be started: {error}");
                std::process::abort();
            }
            sender
        });
        // Fails only when the session is over.
        let _ = sender.send(job);
    }
}

impl Job {
    fn run(self, outbox: &dyn Outbox) {
        let bytes = match &self.payload {
            Payload::Landing(landing) => landing.bytes().unwrap_or_default(),
            Payload::Bytes(bytes) => bytes,
        };
        if outbox.bulk_send(self.id, bytes) {
            answer_read(outbox, self.reply, &[]);
        } else {
            outbox.status(self.reply, CuStatus::UNKNOWN);
        }
        self.unanswered.fetch_sub(1, Ordering::Release);
        outbox.flush();
    }
}

/// Answers a read; the bytes are empty where they went over the bulk plane.
pub(crate) fn answer_read(outbox: &dyn Outbox, reply: Reply, data: &[u8]) {
    let record = CuMemcpyDtoHAsyncV2Reply { data };
    let head = Head::reply(reply.call, 0, reply.ticket);
    outbox.append(record_bytes(&record), &mut |out| encode(head, &record, out));
}
