//! The CPU devices' answer to every record.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::record::Head;
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::*;

use super::graph::GraphExec;
use super::memory::{Block, BlockKind};
use super::modules::Load;
use super::state::Event;
use super::upload::{Upload, discard};
use super::work::Work;
use super::{CpuDevice, nodes};
use crate::device::Violation;
use crate::device::loading::Image;
use crate::executor::outbox::{Failure, Reply};
use crate::limits::{ALLOCATION_GRAIN, GRAPH_BYTES_MAX};

mod helpers;
mod mapped;
mod tensor_map;
mod texture;

type Answer = Result<(), Violation>;

const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;

impl Dispatch for CpuDevice {
    type Output = Answer;

    fn cu_ctx_create_v4(&mut self, head: &Head, record: CuCtxCreateV4) -> Answer {
        let outcome = self.create_context(head, record.device, false);
        self.finish(head, outcome.map_err(Failure::from))
    }

    fn cu_ctx_destroy_v2(&mut self, head: &Head, _record: CuCtxDestroyV2) -> Answer {
        match self.contexts.remove(&head.context) {
            Some(entry) => self.end_context(Reply::to(head), entry),
            None => self
                .outbox
                .finish(Reply::to(head), Err(CuStatus::INVALID_CONTEXT.into())),
        }
        Ok(())
    }

    fn cu_ctx_set_limit(&mut self, head: &Head, _record: CuCtxSetLimit) -> Answer {
        // A hint: stacks and heaps of the CPU devices grow as they must.
        let outcome = self.context(head).map(|_| ());
        self.finish_healthy(head, outcome)
    }

    fn cu_ctx_synchronize(&mut self, head: &Head, _record: CuCtxSynchronize) -> Answer {
        let context = match self.context(head) {
            Ok(context) => context.key,
            Err(status) => return self.finish(head, Err(status.into())),
        };
        let mut state = self.streams.state();
        let waits = state.pending_of(context);
        let status = state.wait(context, waits, Reply::to(head));
        drop(state);
        self.answer(head, status)
    }

    fn cu_device_primary_ctx_reset_v2(
        &mut self,
        head: &Head,
        record: CuDevicePrimaryCtxResetV2,
    ) -> Answer {
        let found = self
            .contexts
            .iter()
            .find(|(_, entry)| entry.primary && entry.device == record.device as usize);
        let Some((number, entry)) = found.map(|(number, entry)| (*number, *entry)) else {
            return self.finish(head, Ok(()));
        };
        // The name lives on, for a context without anything.
        let key = match self.streams.state().add_context(entry.device) {
            Ok(key) => key,
            Err(status) => return self.finish(head, Err(status.into())),
        };
        self.contexts
            .insert(number, super::ContextEntry { key, ..entry });
        self.end_context(Reply::to(head), entry);
        Ok(())
    }

    fn cu_device_primary_ctx_retain(
        &mut self,
        head: &Head,
        record: CuDevicePrimaryCtxRetain,
    ) -> Answer {
        let outcome = self.create_context(head, record.device, true);
        self.finish(head, outcome.map_err(Failure::from))
    }

    fn cu_event_create(&mut self, head: &Head, record: CuEventCreate) -> Answer {
        let outcome = self.context(head).and_then(|context| {
            let timed = record.flags & EVENT_DISABLE_TIMING == 0;
            let event = Event {
                context: context.key,
                timed,
                recorded: None,
                reached_ns: None,
            };
            self.streams.state().events.insert(record.event, event)
        });
        self.finish_healthy(head, outcome)
    }

    fn cu_event_destroy_v2(&mut self, head: &Head, record: CuEventDestroyV2) -> Answer {
        let outcome = self.streams.state().events.remove(record.event).map(|_| ());
        self.finish_healthy(head, outcome)
    }

    fn cu_event_elapsed_time(&mut self, head: &Head, record: CuEventElapsedTime) -> Answer {
        let status = self.elapsed_ms(head, record.start, record.end);
        match status {
            Ok(ms) => self.outbox.record(
                Reply::to(head),
                CuStatus::SUCCESS,
                &CuEventElapsedTimeReply { ms },
            ),
            Err(CuStatus::NOT_READY) => {
                self.outbox.record(
                    Reply::to(head),
                    CuStatus::NOT_READY,
                    &CuEventElapsedTimeReply { ms: 0.0 },
                );
            }
            Err(status) => self.outbox.finish(Reply::to(head), Err(status.into())),
        }
        Ok(())
    }

    fn cu_event_query(&mut self, head: &Head, record: CuEventQuery) -> Answer {
        let context = match self.context(head) {
            Ok(context) => context.key,
            Err(status) => return self.finish(head, Err(status.into())),
        };
        let mut state = self.streams.state();
        let status = match state.events.get(record.event).map(|event| event.recorded) {
            Ok(Some(wait)) => state.query(context, wait, Reply::to(head)),
            Ok(None) => Some(state.health(context)),
            Err(status) => Some(status),
        };
        drop(state);
        self.answer(head, status)
    }

    fn cu_event_record_with_flags(
        &mut self,
        head: &Head,
        record: CuEventRecordWithFlags,
    ) -> Answer {
        let known = self.streams.state().events.get(record.event).map(|_| ());
        let work = known
            .map(|()| Work::Record {
                event: record.event,
            })
            .map_err(Failure::from);
        self.submit(head, record.stream, work)
    }

    fn cu_event_synchronize(&mut self, head: &Head, record: CuEventSynchronize) -> Answer {
        let context = match self.context(head) {
            Ok(context) => context.key,
            Err(status) => return self.finish(head, Err(status.into())),
        };
        let mut state = self.streams.state();
        let status = match state.events.get(record.event).map(|event| event.recorded) {
            Ok(wait) => {
                let waits = Vec::from_iter(wait);
                state.wait(context, waits, Reply::to(head))
            }
            Err(status) => Some(status),
        };
        drop(state);
        self.answer(head, status)
    }

    fn cu_func_set_attribute(&mut self, head: &Head, record: CuFuncSetAttribute) -> Answer {
        let outcome = self
            .modules
            .set_attribute(record.function, record.attribute, record.value);
        self.finish_healthy(head, outcome)
    }

    fn cu_func_set_cache_config(&mut self, head: &Head, record: CuFuncSetCacheConfig) -> Answer {
        let outcome = self.modules.function(record.function).map(|_| ());
        self.finish_healthy(head, outcome)
    }

    fn cu_graph_exec_destroy(&mut self, head: &Head, record: CuGraphExecDestroy) -> Answer {
        let outcome = self.graphs.remove(record.exec).map(|_| ());
        self.finish_healthy(head, outcome)
    }

    fn cu_graph_instantiate_with_flags(
        &mut self,
        head: &Head,
        record: CuGraphInstantiateWithFlags<'_>,
    ) -> Answer {
        let exec = Arc::new(GraphExec::default());
        let bytes = record
            .edge_count
            .checked_mul(8)
            .and_then(|edges| edges.checked_add(record.node_bytes));
        let bytes = bytes
            .and_then(|bytes| usize::try_from(bytes).ok())
            .filter(|bytes| *bytes <= GRAPH_BYTES_MAX);
        let context = self.context(head);
        let outcome = context
            .and_then(|_| self.graphs.insert(record.exec, exec.clone()))
            .map_err(Failure::from);
        let outcome = outcome.and_then(|()| {
            bytes.ok_or_else(|| Failure::new(CuStatus::OUT_OF_MEMORY, "the graph is too large"))
        });
        match (outcome, context) {
            (Ok(bytes), Ok(context)) => {
                let owner = Block {
                    bytes: 0,
                    kind: BlockKind::Device,
                    context: context.key.0,
                    device: context.device,
                    readable: true,
                    writable: true,
                };
                self.define_graph(head, &record, &exec, bytes, owner);
            }
            (Err(failure), _) => {
                if record.bulk != 0 {
                    discard(&*self.outbox, record.bulk, u64::MAX);
                }
                self.outbox.finish(Reply::to(head), Err(failure));
            }
            (Ok(_), Err(status)) => self.outbox.finish(Reply::to(head), Err(status.into())),
        }
        Ok(())
    }

    fn cu_graph_launch(&mut self, head: &Head, record: CuGraphLaunch) -> Answer {
        let exec = self.graphs.get(record.exec).cloned();
        let work = exec
            .map(|exec| Work::Graph {
                exec,
                stream: record.stream,
                from: 0,
            })
            .map_err(Failure::from);
        self.submit(head, record.stream, work)
    }

    fn cu_launch_host_func(&mut self, head: &Head, record: CuLaunchHostFunc) -> Answer {
        self.submit(
            head,
            record.stream,
            Ok(Work::HostFunc {
                callback: record.callback,
                stream: record.stream,
            }),
        )
    }

    fn cu_launch_kernel(&mut self, head: &Head, record: CuLaunchKernel<'_>) -> Answer {
        if self.passes(head, &record) {
            return Ok(());
        }
        self.submit(head, record.stream, nodes::launch(&self.modules, &record))
    }

    fn cu_launch_kernel_ex(&mut self, head: &Head, record: CuLaunchKernelEx<'_>) -> Answer {
        self.submit(
            head,
            record.stream,
            nodes::launch_ex(&self.modules, &record),
        )
    }

    fn cu_mem_alloc_async(&mut self, head: &Head, record: CuMemAllocAsync) -> Answer {
        self.allocate(
            head,
            Some(record.stream),
            record.addr,
            record.bytes,
            BlockKind::Device,
        )
    }

    fn cu_mem_alloc_managed(&mut self, head: &Head, record: CuMemAllocManaged) -> Answer {
        self.allocate(
            head,
            None,
            record.addr,
            rounded(record.bytes),
            BlockKind::Managed,
        )
    }

    fn cu_mem_alloc_v2(&mut self, head: &Head, record: CuMemAllocV2) -> Answer {
        self.allocate(head, None, record.addr, record.bytes, BlockKind::Device)
    }

    fn cu_mem_create(&mut self, head: &Head, record: CuMemCreate) -> Answer {
        self.create_physical(head, &record)
    }

    fn cu_mem_release(&mut self, head: &Head, record: CuMemRelease) -> Answer {
        self.release_physical(head, &record)
    }

    fn cu_mem_map(&mut self, head: &Head, record: CuMemMap) -> Answer {
        self.map_physical(head, &record)
    }

    fn cu_mem_unmap(&mut self, head: &Head, record: CuMemUnmap) -> Answer {
        self.unmap_physical(head, &record)
    }

    fn cu_mem_set_access(&mut self, head: &Head, record: CuMemSetAccess) -> Answer {
        self.set_access(head, &record)
    }

    fn cu_mem_free_async(&mut self, head: &Head, record: CuMemFreeAsync) -> Answer {
        let reply = Reply::to(head);
        match self.context(head) {
            Ok(context) => {
                self.streams.submit_free(
                    reply,
                    context.key,
                    record.stream,
                    Work::Remove {
                        addr: record.addr,
                        host: false,
                    },
                );
            }
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
        Ok(())
    }

    fn cu_mem_free_host(&mut self, head: &Head, record: CuMemFreeHost) -> Answer {
        self.free(head, record.addr, true)
    }

    fn cu_mem_free_v2(&mut self, head: &Head, record: CuMemFreeV2) -> Answer {
        self.free(head, record.addr, false)
    }

    fn cu_mem_host_alloc(&mut self, head: &Head, record: CuMemHostAlloc) -> Answer {
        self.allocate(
            head,
            None,
            record.addr,
            rounded(record.bytes),
            BlockKind::Host,
        )
    }

    fn cu_memcpy3d_async_v2(&mut self, head: &Head, record: CuMemcpy3DAsyncV2) -> Answer {
        self.submit(head, record.stream, Ok(nodes::copy_box(&record)))
    }

    fn cu_memcpy_dto_d_async_v2(&mut self, head: &Head, record: CuMemcpyDtoDAsyncV2) -> Answer {
        self.submit(head, record.stream, Ok(nodes::copy(&record)))
    }

    fn cu_memcpy_dto_h_async_v2(&mut self, head: &Head, record: CuMemcpyDtoHAsyncV2) -> Answer {
        if head.ticket == 0 {
            return Err(Violation::Rule(
                "a device-to-host copy that nobody waits for",
            ));
        }
        let CuMemcpyDtoHAsyncV2 {
            src,
            count,
            stream,
            bulk,
        } = record;
        if bulk == 0 && !nodes::fits_inline(count) {
            return Err(Violation::Rule(
                "a device-to-host copy that is too long for its reply",
            ));
        }
        self.submit(head, stream, Ok(Work::Read { src, count, bulk }))
    }

    fn cu_memcpy_hto_d_async_v2(&mut self, head: &Head, record: CuMemcpyHtoDAsyncV2<'_>) -> Answer {
        if record.bulk == 0 {
            return self.submit(head, record.stream, nodes::write(&record));
        }
        if !record.data.is_empty() || record.count == 0 {
            return Err(Violation::Rule(
                "a copy with both inline bytes and a bulk transfer, or with neither",
            ));
        }
        let upload = Upload {
            dst: record.dst,
            count: record.count,
            id: record.bulk,
            staging: None,
        };
        match self.context(head) {
            Ok(context) => self.streams.submit(
                Reply::to(head),
                context.key,
                record.stream,
                Work::Upload(Arc::new(upload)),
            ),
            Err(status) => {
                discard(&*self.outbox, record.bulk, record.count);
                self.outbox.finish(Reply::to(head), Err(status.into()));
            }
        }
        Ok(())
    }

    fn cu_memset_d2d8async(&mut self, head: &Head, record: CuMemsetD2D8Async) -> Answer {
        self.submit(head, record.stream, Ok(nodes::fill_rows(&record)))
    }

    fn cu_memset_d8async(&mut self, head: &Head, record: CuMemsetD8Async) -> Answer {
        self.submit(head, record.stream, Ok(nodes::fill(&record)))
    }

    fn cu_module_get_function(&mut self, head: &Head, record: CuModuleGetFunction<'_>) -> Answer {
        self.modules
            .name_function(Reply::to(head), record.module, record.function, record.name);
        Ok(())
    }

    fn cu_module_get_global_v2(&mut self, head: &Head, record: CuModuleGetGlobalV2<'_>) -> Answer {
        self.modules
            .find_global(Reply::to(head), record.module, record.name);
        Ok(())
    }

    fn cu_module_load_data(&mut self, head: &Head, record: CuModuleLoadData<'_>) -> Answer {
        let Ok(hash) = record.hash.try_into() else {
            return Err(Violation::Rule("a module's hash has 32 bytes"));
        };
        let context = self.context(head);
        if context.is_err() && record.bulk != 0 {
            discard(&*self.outbox, record.bulk, record.total_bytes);
        }
        let context = match context {
            Ok(context) => context,
            Err(status) => {
                self.outbox.record(
                    Reply::to(head),
                    status,
                    &CuModuleLoadDataReply { message: "" },
                );
                return Ok(());
            }
        };
        self.modules.load(Load {
            reply: Reply::to(head),
            module: record.module,
            context: context.key,
            device: context.device,
            kind: record.kind,
            image: Image {
                total_bytes: record.total_bytes,
                bulk: record.bulk,
                hash,
                packed: record.image.to_vec(),
            },
        });
        Ok(())
    }

    fn cu_module_unload(&mut self, head: &Head, record: CuModuleUnload) -> Answer {
        self.modules.unload(Reply::to(head), record.module);
        Ok(())
    }

    fn cu_tensor_map_encode_tiled(
        &mut self,
        head: &Head,
        record: CuTensorMapEncodeTiled<'_>,
    ) -> Answer {
        self.tensor_map(head, &record)
    }

    fn cu_tex_object_create(&mut self, head: &Head, record: CuTexObjectCreate) -> Answer {
        self.create_texture(head, &record)
    }

    fn cu_tex_object_destroy(&mut self, head: &Head, record: CuTexObjectDestroy) -> Answer {
        self.destroy_texture(head, record.object)
    }

    fn cu_stream_create_with_priority(
        &mut self,
        head: &Head,
        record: CuStreamCreateWithPriority,
    ) -> Answer {
        let outcome = self.context(head).and_then(|context| {
            let blocking = record.flags & STREAM_NON_BLOCKING == 0;
            self.streams
                .state()
                .create_stream(context.key, record.stream, blocking)
        });
        self.finish_healthy(head, outcome)
    }

    fn cu_stream_destroy_v2(&mut self, head: &Head, record: CuStreamDestroyV2) -> Answer {
        let outcome = self.streams.state().destroy_stream(record.stream);
        self.finish_healthy(head, outcome)
    }

    fn cu_stream_query(&mut self, head: &Head, record: CuStreamQuery) -> Answer {
        let status = self.with_stream(head, record.stream, |state, context, wait| {
            state.query(context, wait, Reply::to(head))
        });
        self.answer(head, status)
    }

    fn cu_stream_synchronize(&mut self, head: &Head, record: CuStreamSynchronize) -> Answer {
        let status = self.with_stream(head, record.stream, |state, context, wait| {
            let mut waits = vec![wait];
            if record.stream == 0 {
                state.implicit_waits(wait.stream, &mut waits);
            }
            state.wait(context, waits, Reply::to(head))
        });
        self.answer(head, status)
    }

    fn cu_stream_wait_event(&mut self, head: &Head, record: CuStreamWaitEvent) -> Answer {
        let reply = Reply::to(head);
        let context = self.context(head);
        let recorded = self
            .streams
            .state()
            .events
            .get(record.event)
            .map(|event| event.recorded);
        match (context, recorded) {
            (Ok(context), Ok(recorded)) => {
                self.streams
                    .submit_waiting(reply, context.key, record.stream, recorded)
            }
            (Err(status), _) | (_, Err(status)) => self.outbox.finish(reply, Err(status.into())),
        }
        Ok(())
    }
}

/// Host allocations need not be multiples of the grain.
fn rounded(bytes: u64) -> u64 {
    bytes
        .checked_next_multiple_of(ALLOCATION_GRAIN)
        .unwrap_or(0)
}
