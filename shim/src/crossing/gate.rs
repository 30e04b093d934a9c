//! Points of streams of several servers that meet: who waits goes on when all are there.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, OnceLock};

use farcall_marshal::record::{Head, Record, encode, record_bytes};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuLaunchHostFunc, HostFuncDone, HostFuncDue};
use farcall_transport::Endpoint;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::ferry::Passage;
use crate::global;
use crate::stream::Stream;

/// What a process has of this module.
#[derive(Default)]
pub(crate) struct Crossings {
    order: Mutex<()>,
    courier: OnceLock<Sender<Reached>>,
    /// Addresses of both ends of copies that are not over: start, length.
    pub(super) under_way: Mutex<Vec<[(u64, u64); 2]>>,
    pub(super) ended: Condvar,
}

impl Crossings {
    /// Held while streams are made to wait for each other.
    pub(super) fn order(&self) -> MutexGuard<'_, ()> {
        self.order.lock()
    }

    /// Has a point that was reached looked after by the thread for that, which starts with the first.
    fn tell(&self, reached: Reached) {
        let courier = self.courier.get_or_init(|| {
            let (sender, receiver) = channel::<Reached>();
            let spawned = std::thread::Builder::new()
                .name("farcall-courier".into())
                .spawn(move || receiver.into_iter().for_each(Reached::arrive));
            if let Err(error) = spawned {
                log::error!("no thread for streams of several servers: {error}");
            }
            sender
        });
        if courier.send(reached).is_err() {
            log::error!("a stream of one server waits for another's in vain");
        }
    }
}

/// Points that meet, and what happens when all of them are reached.
pub(super) struct Meeting {
    missing: AtomicUsize,
    held: Mutex<Vec<Held>>,
    /// What is done before those that are held go on.
    then: Mutex<Option<Passage>>,
}

impl Meeting {
    pub(super) fn of(points: usize, then: Option<Passage>) -> Arc<Self> {
        Arc::new(Self {
            missing: AtomicUsize::new(points),
            held: Mutex::default(),
            then: Mutex::new(then),
        })
    }

    /// Lets all go on that wait.
    pub(super) fn open(&self) {
        for held in self.held.lock().drain(..) {
            held.release();
        }
    }
}

/// A point of a stream.
pub(crate) struct Gate {
    meeting: Arc<Meeting>,
    is_held: bool,
}

impl Gate {
    /// The stream goes on at once.
    pub(super) fn passing(meeting: &Arc<Meeting>) -> Self {
        Self {
            meeting: Arc::clone(meeting),
            is_held: false,
        }
    }

    /// The stream goes on when all points of the meeting are reached.
    pub(super) fn holding(meeting: &Arc<Meeting>) -> Self {
        Self {
            meeting: Arc::clone(meeting),
            is_held: true,
        }
    }

    /// The stream has got here. Does not block: the thread that receives calls it.
    pub(crate) fn reached(self, endpoint: Endpoint, context: u32, due: &HostFuncDue) {
        let held = Held {
            endpoint,
            context,
            done: HostFuncDone {
                callback: due.callback,
                stream: due.stream,
            },
        };
        self.tell(Some(held), CuStatus(due.status));
    }

    /// The stream never gets here: its session has ended. Whoever waits for it goes on.
    pub(crate) fn lost(self, status: CuStatus) {
        self.tell(None, status);
    }

    fn tell(self, held: Option<Held>, status: CuStatus) {
        let gate = self;
        if let Some(process) = global::process() {
            process.crossings.tell(Reached { gate, held, status });
        }
    }
}

/// Puts a point behind all that was sent on a stream.
pub(super) fn put(stream: &Stream, gate: Gate) -> CuResult {
    let session = stream.session();
    let callback = session.new_id();
    session.inbox.add_gate(callback, gate)?;
    let record = CuLaunchHostFunc {
        stream: stream.id,
        callback,
    };
    stream
        .issue(&record)
        .inspect_err(|_| session.inbox.remove_gate(callback))
}

/// A stream that stands still until its server hears from here.
struct Held {
    endpoint: Endpoint,
    context: u32,
    done: HostFuncDone,
}

impl Held {
    fn release(&self) {
        let head = Head::request(HostFuncDone::NUMBER, self.context, 0);
        let sent = self.endpoint.append(record_bytes(&self.done), |out| {
            encode(head, &self.done, out);
        });
        // A session that has ended holds nothing.
        if sent.is_ok() {
            let _ = self.endpoint.flush();
        }
    }
}

/// A point that was reached, or never will be.
struct Reached {
    gate: Gate,
    held: Option<Held>,
    status: CuStatus,
}

impl Reached {
    fn arrive(self) {
        let Self { gate, held, status } = self;
        let meeting = gate.meeting;
        match held {
            Some(held) if gate.is_held => meeting.held.lock().push(held),
            Some(held) => held.release(),
            None => {}
        }
        if !status.is_success()
            && let Some(passage) = &mut *meeting.then.lock()
        {
            passage.spoil(status);
        }
        if meeting.missing.fetch_sub(1, Ordering::AcqRel) != 1 {
            return;
        }
        let then = meeting.then.lock().take();
        match then {
            Some(passage) => passage.depart(meeting),
            None => meeting.open(),
        }
    }
}
