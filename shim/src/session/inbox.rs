//! What arrives from a server: replies, notices, callbacks, and the end.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use farcall_marshal::record::{self, Record};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::text::printable;
use farcall_marshal::wire::{CuModuleLoadData, ErrorNotice, HostFuncDue, KernelOutput, TraceStep};
use farcall_transport::{CloseReason, Endpoint, Handler};
use parking_lot::{Mutex, RwLock};

use crate::context::Context;
use crate::crossing::Gate;
use crate::hooks::{Callback, Runner};
use crate::observe;
use crate::offers::Offers;
use crate::steps;
use crate::ticket::Tickets;

/// What arrives from a server. Shared with the transport, which calls it from whichever thread receives.
#[derive(Default)]
pub(crate) struct Inbox {
    pub(super) tickets: Tickets,
    /// Error of a one-way call that is to be returned from the next call that waits; 0 = none.
    deferred: AtomicU32,
    /// Why the session is over; 0 = it is not.
    lost: AtomicU32,
    is_end_told: AtomicBool,
    contexts: RwLock<HashMap<u32, &'static Context>>,
    callbacks: Mutex<HashMap<u64, Callback>>,
    /// Points of streams that others of other servers wait for.
    gates: Mutex<HashMap<u64, Gate>>,
    runner: Runner,
    /// Modules that the server has yet to say whether it has.
    pub(super) offers: Offers,
    /// As the configuration names it.
    server: String,
}

impl Inbox {
    pub(crate) fn of(server: &str) -> Self {
        Self {
            server: server.to_owned(),
            ..Self::default()
        }
    }

    pub(crate) fn add_context(&self, context: &'static Context) {
        self.contexts.write().insert(context.id, context);
    }

    pub(crate) fn remove_context(&self, id: u32) {
        self.contexts.write().remove(&id);
    }

    /// As the configuration names it.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// Remembers what to call when the server says that a stream has got there.
    pub(crate) fn add_callback(&self, id: u64, callback: Callback) {
        self.callbacks.lock().insert(id, callback);
    }

    /// Whether waiting for one context is waiting for all.
    pub(crate) fn has_one_context(&self) -> bool {
        self.contexts.read().len() == 1
    }

    /// Whether a context has not ended.
    pub(crate) fn has_context(&self, id: u32) -> bool {
        self.contexts.read().contains_key(&id)
    }

    /// Remembers what happens when the server says that a stream has got there. Fails once the session has ended.
    pub(crate) fn add_gate(&self, id: u64, gate: Gate) -> CuResult {
        let mut gates = self.gates.lock();
        match self.lost.load(Ordering::Acquire) {
            0 => {
                gates.insert(id, gate);
                Ok(())
            }
            status => Err(CuStatus(status)),
        }
    }

    pub(crate) fn remove_gate(&self, id: u64) {
        self.gates.lock().remove(&id);
    }

    /// An error of work that the program does not wait for: the next call that can returns it.
    pub(crate) fn defer(&self, status: CuStatus) {
        // The first error is the one that explains the others.
        let _ = self
            .deferred
            .compare_exchange(0, status.0, Ordering::AcqRel, Ordering::Relaxed);
    }

    /// Error of an earlier one-way call that is due now, given once.
    #[inline]
    pub(super) fn take_deferred(&self) -> CuResult {
        if self.deferred.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        match self.deferred.swap(0, Ordering::AcqRel) {
            0 => Ok(()),
            status => Err(CuStatus(status)),
        }
    }

    /// The session's own end, if it has ended.
    #[inline]
    pub(super) fn check(&self) -> CuResult {
        match self.lost.load(Ordering::Relaxed) {
            0 => Ok(()),
            status => Err(CuStatus(status)),
        }
    }

    /// What every call gets from now on, if the session has ended.
    pub(super) fn ended(&self) -> Option<CuStatus> {
        self.check().err()
    }

    /// Tells the user why the session is over: once, and not of a program that is about to exit.
    pub(super) fn tell_end(&self, why: &CloseReason) {
        if self.lost.load(Ordering::Relaxed) != 0 || crate::process::is_finishing() {
            return;
        }
        if !self.is_end_told.swap(true, Ordering::Relaxed) {
            let server = &self.server;
            log::error!(
                "the session with server {server} ended: {why}; every further CUDA call fails"
            );
        }
    }

    fn take(&self, endpoint: &Endpoint, mut frame: &[u8]) -> Result<(), record::DecodeError> {
        while !frame.is_empty() {
            let (head, body, rest) = record::split(frame)?;
            frame = rest;
            if head.is_reply() {
                let cancel = |transfer| {
                    endpoint.bulk_cancel(transfer);
                };
                if !self.tickets.reply(head.ticket, head.context, body, cancel) {
                    log::warn!(
                        "the server answered ticket {}, which nobody waits for",
                        head.ticket
                    );
                }
                if head.number == CuModuleLoadData::NUMBER {
                    self.offer_answered(head, body);
                }
                continue;
            }
            match head.number {
                ErrorNotice::NUMBER => self.notice(head.context, &ErrorNotice::decode_body(body)?),
                HostFuncDue::NUMBER => {
                    self.due(endpoint, head.context, HostFuncDue::decode_body(body)?)
                }
                KernelOutput::NUMBER => observe::print(KernelOutput::decode_body(body)?.text),
                TraceStep::NUMBER => steps::told(&TraceStep::decode_body(body)?),
                number => return Err(record::DecodeError::UnknownRecord { number }),
            }
        }
        Ok(())
    }

    #[cold]
    fn offer_answered(&self, head: record::Head, body: &[u8]) {
        let status = CuStatus(head.context);
        if let Some(status) = self.offers.answered(head.ticket, status, body) {
            self.defer(status);
        }
    }

    fn notice(&self, context: u32, notice: &ErrorNotice<'_>) {
        let name = farcall_marshal::catalogue::call(u16::try_from(notice.call).unwrap_or(0))
            .map_or("?", |c| c.symbol);
        log::warn!(
            "{name}: {}{}{}",
            CuStatus(notice.status),
            if notice.message.is_empty() { "" } else { ": " },
            // Of a server that may be anybody's: not to reach the terminal as commands.
            printable(notice.message)
        );
        let known = self.contexts.read().get(&context).copied();
        match known {
            Some(context) if notice.sticky != 0 => context.break_with(CuStatus(notice.status)),
            _ => self.defer(CuStatus(notice.status)),
        }
    }

    fn due(&self, endpoint: &Endpoint, context: u32, due: HostFuncDue) {
        let gate = self.gates.lock().remove(&due.callback);
        if let Some(gate) = gate {
            return gate.reached(endpoint.clone(), context, &due);
        }
        let callback = self.callbacks.lock().remove(&due.callback);
        self.runner
            .run_later(endpoint.clone(), context, due, callback);
    }

    /// Every further call gets `status`, or what came first, which is returned.
    pub(super) fn lose(&self, status: CuStatus) -> CuStatus {
        let lost = &self.lost;
        match lost.compare_exchange(0, status.0, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => status,
            Err(first) => CuStatus(first),
        }
    }

    /// Ends all waiting, once nothing is written to the program's memory any more.
    fn end(&self, status: CuStatus) {
        let status = self.lose(status);
        self.tickets.end(status);
        self.offers.end();
        // Streams of other servers do not wait for this one any more.
        let gates: Vec<Gate> = self.gates.lock().drain().map(|(_, gate)| gate).collect();
        for gate in gates {
            gate.lost(status);
        }
    }
}

impl Handler for Inbox {
    fn on_frame(&self, endpoint: &Endpoint, frame: &[u8]) {
        if let Err(error) = self.take(endpoint, frame) {
            log::error!("the server sent what no server sends ({error}); the session ends");
            self.lose(CuStatus::UNKNOWN);
            // Those who wait hear of it from `on_closed`: until then transfers may fill what they wait for.
            endpoint.close();
        }
    }

    fn on_closed(&self, endpoint: &Endpoint, why: &CloseReason) {
        self.tell_end(why);
        self.end(CuStatus::DEVICE_UNAVAILABLE);
        // Threads that wait for a reply which now never comes look again.
        endpoint.notify();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::IoSlice;
    use std::sync::Arc;
    use std::time::Duration;

    use farcall_marshal::record::{Head, Record, to_vec};
    use farcall_marshal::status::CuStatus;
    use farcall_marshal::wire::{CuMemcpyDtoHAsyncV2, CuMemcpyDtoHAsyncV2Reply};
    use farcall_transport::sim::{Faults, pair};
    use farcall_transport::{Endpoint, Handler, Limits, Tuning, WaitError};

    use super::Inbox;
    use crate::landing;
    use crate::ptr::HostPtr;
    use crate::ticket::Sink;

    struct Nobody;

    impl Handler for Nobody {
        fn on_frame(&self, _: &Endpoint, _: &[u8]) {}
        fn on_closed(&self, _: &Endpoint, _: &farcall_transport::CloseReason) {}
    }

    /// A client's end with its inbox, and the server's.
    fn connected() -> (Arc<Inbox>, Endpoint, Endpoint) {
        let inbox = Arc::new(Inbox::default());
        let (tuning, limits) = (Tuning::default(), Limits::default());
        let handlers: (Arc<dyn Handler>, Arc<dyn Handler>) = (inbox.clone(), Arc::new(Nobody));
        let (client, server) = pair(
            1,
            Faults::default(),
            limits,
            &tuning,
            handlers.0,
            handlers.1,
        )
        .unwrap();
        (inbox, client, server)
    }

    fn answer(server: &Endpoint, ticket: u32, status: CuStatus) {
        let head = Head::reply(CuMemcpyDtoHAsyncV2::NUMBER, status.0, ticket);
        let record = to_vec(head, &CuMemcpyDtoHAsyncV2Reply { data: &[] });
        let append = server.append(record.len(), |out| out.copy_from_slice(&record));
        append.unwrap();
        server.flush().unwrap();
    }

    #[test]
    fn nothing_is_written_behind_a_copy_that_was_refused() {
        const TRANSFER: u64 = 7;
        let (inbox, client, server) = connected();
        let mut buffer = vec![1_u8; 4096];
        let to = HostPtr::from_address(buffer.as_mut_ptr() as u64);
        let sink = Sink::Copy {
            to,
            len: buffer.len(),
            bulk: TRANSFER,
            later: false,
        };
        let (ticket, pending) = inbox.tickets.issue(sink).unwrap();
        landing::expect(&client, TRANSFER, to, buffer.len(), pending.clone()).unwrap();
        answer(&server, ticket, CuStatus::INVALID_VALUE);
        client.wait_until(&|| pending.is_done(), None).unwrap();
        assert_eq!(pending.take().0, CuStatus::INVALID_VALUE);
        // The program's buffer is the program's again, whatever the server still sends.
        server
            .bulk_send(TRANSFER, &[IoSlice::new(&[2; 4096])])
            .unwrap();
        let patience = Some(Duration::from_millis(100));
        let written = client.wait_until(&|| to.bytes(1).unwrap() != [1], patience);
        assert!(matches!(written, Err(WaitError::TimedOut)), "{written:?}");
        assert!(!client.bulk_cancel(TRANSFER));
    }

    #[test]
    fn a_session_that_ends_has_let_go_of_all_destinations() {
        for _ in 0..100 {
            let (_inbox, client, server) = connected();
            let mut buffer = [0_u8; 64];
            let to = HostPtr::from_address(buffer.as_mut_ptr() as u64);
            let inbox = Inbox::default();
            let sink = Sink::Copy {
                to,
                len: buffer.len(),
                bulk: 1,
                later: false,
            };
            let (_, pending) = inbox.tickets.issue(sink).unwrap();
            landing::expect(&client, 1, to, buffer.len(), pending).unwrap();
            std::thread::scope(|threads| {
                // One of them leads and closes; the others only see that it is over.
                for _ in 0..2 {
                    threads.spawn(|| {
                        let ended = client.wait_until(&|| false, None);
                        assert!(matches!(ended, Err(WaitError::Closed(_))), "{ended:?}");
                        assert!(!client.bulk_cancel(1), "it could still be written to");
                    });
                }
                server.close();
            });
        }
    }
}
