//! Running one operation, and what follows from its end.
#![forbid(unsafe_code)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use farcall_marshal::record::{Head, encode, record_bytes};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::{CuMemcpyDtoHAsyncV2Reply, HostFuncDue};
use parking_lot::MutexGuard;

use super::Streams;
use crate::device::cpu::graph::GraphExec;
use crate::device::cpu::memory::{BlockKind, Turn};
use crate::device::cpu::state::{InFlight, State, StreamKey, Wait};
use crate::device::cpu::upload::{Upload, discard};
use crate::device::cpu::work::{Work, may_free};
use crate::executor::outbox::{Failure, Reply};

/// How an operation went on.
enum Progress {
    Done(Result<(), Failure>),
    /// Answered, too.
    Answered,
    /// Somebody else completes it.
    Parked,
}

impl Streams {
    /// Runs an issued operation on this thread.
    pub(super) fn run_here(
        &self,
        mut state: MutexGuard<'_, State>,
        reply: Reply,
        key: StreamKey,
        work: Work<'_>,
    ) {
        let Some(turn) = state.turn.take() else {
            return;
        };
        state.begin(
            key,
            if matches!(work, Work::Read { .. }) {
                InFlight::Answering
            } else {
                InFlight::Running
            },
        );
        drop(state);
        self.run(turn, reply, key, work);
    }

    /// Completes an issued operation that there is nothing to do for. Nobody can wait for its position yet, so
    /// nobody is woken; what is answered leaves at the end of the frame.
    pub(super) fn pass_over(&self, mut state: MutexGuard<'_, State>, reply: Reply, key: StreamKey) {
        let released = state.complete(key);
        drop(state);
        self.outbox.finish(reply, Ok(()));
        for (reply, status) in released {
            self.outbox.status(reply, status);
        }
    }

    /// Runs an operation that has begun, completes it, gives the turn back.
    pub(super) fn run(&self, mut turn: Turn, reply: Reply, key: StreamKey, work: Work<'_>) {
        let takes_turns = work.takes_turns();
        let progress = self.perform(&mut turn, reply, key, work);
        if takes_turns {
            self.yield_device(key);
        }
        match progress {
            Progress::Done(outcome) => self.complete(key, Some(reply), outcome, Some(turn)),
            Progress::Answered => self.complete(key, None, Ok(()), Some(turn)),
            Progress::Parked => {
                let mut state = self.state.lock();
                state.turn = Some(turn);
                self.wake(state);
            }
        }
    }

    fn perform(&self, turn: &mut Turn, reply: Reply, key: StreamKey, work: Work<'_>) -> Progress {
        let memory = &self.memory;
        let done = |outcome: Result<(), CuStatus>| Progress::Done(outcome.map_err(Failure::from));
        match work {
            Work::Nothing => Progress::Done(Ok(())),
            Work::Record { event } => {
                self.reach(key, event);
                Progress::Done(Ok(()))
            }
            Work::Write { dst, data } => done(memory.write(turn, dst, &data)),
            Work::Upload(upload) => self.perform_upload(turn, reply, key, &upload),
            Work::Read { src, count, bulk } => self.read(turn, reply, src, count, bulk),
            Work::Copy { dst, src, count } => done(memory.copy(turn, dst, src, count)),
            Work::CopyBox(copy) => done(memory.copy_box(turn, &copy)),
            Work::Fill(fill) => done(fill.run(memory, turn)),
            Work::Launch(launch) => {
                let context = reply.context;
                let began = Instant::now();
                let outcome = self.kernels.run(turn, memory, &launch, &|text| {
                    self.outbox.kernel_output(context, text)
                });
                if !launch.function.is_quick() {
                    let time = outcome.as_ref().copied();
                    self.charge(key, time.unwrap_or_else(|_| began.elapsed()));
                }
                Progress::Done(outcome.map(drop))
            }
            Work::Graph { exec, stream, from } => {
                self.perform_graph(turn, reply, key, &exec, stream, from)
            }
            Work::HostFunc { callback, stream } => self.call_host(
                reply,
                key,
                HostFuncDue {
                    callback,
                    stream,
                    status: 0,
                },
                None,
            ),
            Work::Insert { addr, block } => Progress::Done(
                memory
                    .insert(addr, block)
                    .map_err(|status| refused_block(status, addr, block.bytes)),
            ),
            Work::Remove { addr, host } => {
                done(memory.remove(turn, addr, |block| may_free(block, host)))
            }
            Work::Unmap { addr, bytes } => done(memory.unmap(turn, addr, bytes)),
            Work::RemoveGlobals { addrs } => {
                for addr in addrs {
                    let _ = memory.remove(turn, addr, |block| block.kind == BlockKind::Global);
                }
                Progress::Done(Ok(()))
            }
            Work::RemoveTexture { addr } => {
                done(memory.remove(turn, addr, |block| block.kind == BlockKind::Texture))
            }
            Work::EndContext { context } => {
                memory.remove_all(turn, |block| block.context == context);
                Progress::Done(Ok(()))
            }
        }
    }

    /// A kernel of this stream ran for so long.
    fn charge(&self, key: StreamKey, time: Duration) {
        let device = self.state.lock().device_of(key);
        if let Some(device) = device {
            self.gate.charge(device, time, 1);
        }
    }

    /// Lets another session go on, if it is its turn: nothing of ours runs now.
    fn yield_device(&self, key: StreamKey) {
        let device = self.state.lock().device_of(key);
        if let Some(device) = device.filter(|device| self.gate.must_yield(*device)) {
            self.gate.hand_on(device);
        }
    }

    /// Runs nodes in order; a host function interrupts them.
    fn perform_graph(
        &self,
        turn: &mut Turn,
        reply: Reply,
        key: StreamKey,
        exec: &Arc<GraphExec>,
        stream: u64,
        from: usize,
    ) -> Progress {
        for (at, node) in exec.nodes().iter().enumerate().skip(from) {
            if let Work::HostFunc { callback, .. } = *node {
                let due = HostFuncDue {
                    callback,
                    stream,
                    status: 0,
                };
                return self.call_host(
                    reply,
                    key,
                    due,
                    Some(Work::Graph {
                        exec: exec.clone(),
                        stream,
                        from: at + 1,
                    }),
                );
            }
            if let Progress::Done(Err(failure)) = self.perform(turn, reply, key, node.borrowed()) {
                return Progress::Done(Err(failure));
            }
        }
        Progress::Done(exec.outcome())
    }

    fn call_host(
        &self,
        reply: Reply,
        key: StreamKey,
        due: HostFuncDue,
        rest: Option<Work<'static>>,
    ) -> Progress {
        self.state.lock().begin(
            key,
            InFlight::HostFunc {
                callback: due.callback,
                reply,
                rest,
            },
        );
        self.outbox.host_func_due(reply.context, due);
        Progress::Parked
    }

    fn perform_upload(
        &self,
        turn: &mut Turn,
        reply: Reply,
        key: StreamKey,
        upload: &Arc<Upload>,
    ) -> Progress {
        let Some(staging) = &upload.staging else {
            let mut state = self.state.lock();
            state.begin(key, InFlight::Upload);
            self.receive_in_place(state, reply, key, upload);
            return Progress::Parked;
        };
        self.state.lock().staged_bytes -= usize::try_from(upload.count).unwrap_or(0);
        let data = staging.contents().unwrap_or_default();
        let outcome = upload.outcome(Some(data.len()));
        Progress::Done(outcome.and_then(|()| Ok(self.memory.write(turn, upload.dst, data)?)))
    }

    /// Device to host: the answer is written straight from device memory.
    fn read(&self, turn: &mut Turn, reply: Reply, src: u64, count: u64, bulk: u64) -> Progress {
        let sent = self.memory.with_bytes(turn, src, count, |bytes| {
            let inline = if bulk == 0 { bytes } else { &[] };
            if bulk != 0 && !self.outbox.bulk_send(bulk, bytes) {
                return self.outbox.status(reply, CuStatus::UNKNOWN);
            }
            let record = CuMemcpyDtoHAsyncV2Reply { data: inline };
            let head = Head::reply(reply.call, 0, reply.ticket);
            self.outbox
                .append(record_bytes(&record), &mut |out| encode(head, &record, out));
        });
        match sent {
            Ok(()) => Progress::Answered,
            Err(status) => Progress::Done(Err(Failure::new(
                status,
                format!("no {count} bytes at {src:#x}"),
            ))),
        }
    }

    /// An event's record is reached.
    fn reach(&self, key: StreamKey, event: u64) {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        let here = Wait {
            stream: key,
            position: state.running_position(key),
        };
        if let Ok(event) = state.events.get_mut(event)
            && event.recorded == Some(here)
        {
            event.reached_ns = Some(now);
        }
    }

    /// Completes the begun operation of a stream, then answers it and those who waited for it.
    pub(super) fn complete(
        &self,
        key: StreamKey,
        reply: Option<Reply>,
        outcome: Result<(), Failure>,
        turn: Option<Turn>,
    ) {
        let mut state = self.state.lock();
        let context = state.context_of(key);
        let mut lost_before = false;
        let outcome = match self.device_loss(&mut state, key) {
            Some(failure) => {
                if let Some(reply) = reply {
                    self.outbox.notice(Reply { ticket: 0, ..reply }, &failure);
                }
                outcome.and(Err(failure))
            }
            None => outcome,
        };
        if let (Some(context), Err(failure)) = (context, &outcome) {
            lost_before = state.health(context) != CuStatus::SUCCESS;
            if failure.status.is_sticky() {
                state.lose_context(context, failure.status);
            }
        }
        let released = state.complete(key);
        if turn.is_some() {
            state.turn = turn;
        }
        self.wake(state);
        if let Some(reply) = reply {
            self.finish_in(reply, lost_before, outcome);
        }
        for (reply, status) in released {
            self.outbox.status(reply, status);
        }
        self.outbox.flush();
    }

    /// Ends a record; a lost context has told so once, so it gives no more notices. A sticky failure is told even
    /// where a ticket is answered.
    pub(super) fn finish_in(&self, reply: Reply, lost_before: bool, outcome: Result<(), Failure>) {
        match outcome {
            Err(failure) if lost_before => self.outbox.status(reply, failure.status),
            Err(failure) => {
                if failure.status.is_sticky() && reply.ticket != 0 {
                    self.outbox.notice(reply, &failure);
                }
                self.outbox.finish(reply, Err(failure));
            }
            Ok(()) => self.outbox.finish(reply, Ok(())),
        }
    }

    pub(super) fn refuse(&self, reply: Reply, work: &Work<'_>, failure: Failure) {
        if let Work::Upload(upload) = work {
            discard(&*self.outbox, upload.id, upload.count);
        }
        self.outbox.finish(reply, Err(failure));
    }

    pub(super) fn refuse_lost(&self, reply: Reply, work: &Work<'_>, health: CuStatus) {
        if let Work::Upload(upload) = work {
            discard(&*self.outbox, upload.id, upload.count);
        }
        self.outbox.status(reply, health);
    }
}

/// Says why a block was not made.
pub(super) fn refused_block(status: CuStatus, addr: u64, bytes: u64) -> Failure {
    let why = if status == CuStatus::OUT_OF_MEMORY {
        "over the limit of the session or the device"
    } else {
        "not free or not in the range"
    };
    Failure::new(status, format!("{bytes} bytes at {addr:#x}: {why}"))
}
