//! The loop's part of a session: frames to records to the device.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use farcall_marshal::record::{Head, Record, split};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{HostFuncDone, describe, dispatch};
use farcall_transport::{CloseReason, Endpoint, Handler};
use parking_lot::Mutex;

use super::outbox::{Connection, Failure, Outbox, Reply};
use super::peers::Peers;
use crate::device::{Device, Violation};
use crate::ledger::{Ledger, Slot};

/// A session that receives.
#[derive(Debug)]
pub(crate) struct Session<D> {
    device: Mutex<D>,
    outbox: Arc<Connection>,
    violation: Mutex<Option<String>>,
    /// Records that the device took.
    records: AtomicU64,
    ledger: Arc<Ledger>,
    slot: Slot,
    peers: Arc<Peers>,
}

/// A session, whatever its devices are.
pub(crate) trait Live: Send + Sync {
    /// What the client did wrong, if that ended the session.
    fn violation(&self) -> Option<String>;
    /// How many records the device took.
    fn records(&self) -> u64;
    /// Ends what runs.
    fn close(&self);
    /// Tells the client why the session is about to end.
    fn farewell(&self, reason: &str);
}

impl<D: Device> Session<D> {
    /// A session on these devices.
    pub(crate) fn new(device: D, outbox: Arc<Connection>, ledger: Arc<Ledger>, slot: Slot) -> Self {
        let peers = outbox.peers().clone();
        Self {
            device: Mutex::new(device),
            outbox,
            violation: Mutex::new(None),
            records: AtomicU64::new(0),
            ledger,
            slot,
            peers,
        }
    }
}

impl<D: Device> Live for Session<D> {
    fn violation(&self) -> Option<String> {
        self.violation.lock().clone()
    }

    fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }

    fn close(&self) {
        self.device.lock().close();
    }

    fn farewell(&self, reason: &str) {
        let nobody = Reply {
            call: 0,
            context: 0,
            ticket: 0,
        };
        let outbox: &dyn Outbox = &*self.outbox;
        outbox.notice(nobody, &Failure::new(CuStatus::DEVICE_UNAVAILABLE, reason));
    }
}

impl<D: Device> Handler for Session<D> {
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]) {
        if self.violation.lock().is_some() {
            return;
        }
        let tickets = look_ahead(&*self.outbox, frame);
        self.ledger.received(self.slot, tickets);
        let mut taken = 0;
        let outbox: Arc<dyn Outbox> = self.outbox.clone();
        let mut aside = |head: &Head, body: &[u8]| self.peers.take(head, body, &outbox);
        let outcome = take(&mut *self.device.lock(), &mut aside, frame, &mut taken);
        self.records.fetch_add(taken, Ordering::Relaxed);
        if let Err(violation) = outcome {
            let mut first = self.violation.lock();
            if first.is_none() {
                *first = Some(format!("protocol violation: {violation}"));
            }
            drop(first);
            endpoint.close();
            return;
        }
        self.outbox.flush();
    }

    fn on_closed(&self, _endpoint: &Endpoint, _why: &CloseReason) {}
}

/// Tells the client of records whose way it wants to see, before they are handed on; how many records
/// want an answer.
fn look_ahead(outbox: &dyn Outbox, frame: &[u8]) -> u64 {
    let mut tickets = 0;
    let mut rest = frame;
    while let Ok((head, body, after)) = split(rest) {
        if head.is_traced() {
            let began = Instant::now();
            let fields =
                describe(head.number, false, body).unwrap_or_else(|error| error.to_string());
            let ns = u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let detail = format!(
                "by executor process {}, context {}: {fields}",
                std::process::id(),
                head.context
            );
            outbox.trace_step(&head, ns, "decoded", &detail);
        }
        tickets += u64::from(head.ticket != 0);
        rest = after;
    }
    tickets
}

/// Takes records that are not the device's.
pub(crate) type Aside<'a> = &'a mut dyn FnMut(&Head, &[u8]) -> Option<Result<(), Violation>>;

/// Hands the records of a frame to a device, in order, and counts them.
///
/// # Errors
/// The first record that no correct client sends; those before it have been taken.
pub(crate) fn take<D: Device>(
    device: &mut D,
    aside: Aside<'_>,
    frame: &[u8],
    taken: &mut u64,
) -> Result<(), Violation> {
    let mut rest = frame;
    while !rest.is_empty() {
        let (head, body, after) = split(rest)?;
        if head.is_reply() {
            return Err(Violation::Direction(head.number));
        }
        if let Some(outcome) = aside(&head, body) {
            outcome?;
        } else if head.number == HostFuncDone::NUMBER {
            device.host_func_done(HostFuncDone::decode_body(body)?)?;
        } else {
            dispatch(device, &head, body)??;
        }
        *taken += 1;
        rest = after;
    }
    Ok(())
}
