//! The `cuda` device's answer to every record.
#![forbid(unsafe_code)]

use std::sync::Arc;

use farcall_marshal::record::{Head, INLINE_BYTES_MAX};
use farcall_marshal::status::CuStatus;
use farcall_marshal::wire::*;

use super::CudaDevice;
use super::answer::{driver_context, is_answering};
use super::copies::{Transfer, discard};
use super::driver::{Context, Event, Stream};
use super::graphs::{self, GraphExec};
use super::issue::Later;
use super::memory::BlockKind;
use super::modules::{Load, Setting};
use super::op::{After, Op};
use super::state::{EventState, LaneKind};
use crate::device::Violation;
use crate::device::loading::Image;
use crate::executor::outbox::{Failure, Reply};
use crate::limits::GRAPH_BYTES_MAX;

type Answer = Result<(), Violation>;

const STREAM_NON_BLOCKING: u32 = 1;
/// Scheduling, host mapping, local memory: what does not make the driver block its caller.
const CONTEXT_FLAGS: u32 = 0x1f;

impl Dispatch for CudaDevice {
    type Output = Answer;

    fn cu_ctx_create_v4(&mut self, head: &Head, record: CuCtxCreateV4) -> Answer {
        let outcome = self.create_context(
            head,
            record.device,
            |driver, ordinal| Context::create(driver, ordinal, record.flags & CONTEXT_FLAGS),
            false,
        );
        self.finish(head, outcome.map_err(Failure::from))
    }

    fn cu_ctx_destroy_v2(&mut self, head: &Head, _record: CuCtxDestroyV2) -> Answer {
        match self.context(head) {
            Ok(key) => self.end_context(Reply::to(head), key),
            Err(status) => self.outbox.finish(Reply::to(head), Err(status.into())),
        }
        Ok(())
    }

    fn cu_ctx_set_limit(&mut self, head: &Head, record: CuCtxSetLimit) -> Answer {
        self.in_context(head, |state, key| {
            driver_context(state, key)?.set_limit(record.limit, record.value)
        })
    }

    fn cu_ctx_synchronize(&mut self, head: &Head, _record: CuCtxSynchronize) -> Answer {
        self.after_all(head, After::Answer)
    }

    fn cu_device_primary_ctx_reset_v2(
        &mut self,
        head: &Head,
        record: CuDevicePrimaryCtxResetV2,
    ) -> Answer {
        let found = self.shared.state().primary_of(record.device as usize);
        let Some(key) = found else {
            return self.finish(head, Ok(()));
        };
        let state = self.shared.state();
        let Some(context) = state.contexts.get(&key) else {
            return self.finish(head, Ok(()));
        };
        let (number, owner, error) = (context.number, context.owner.clone(), context.error);
        if let Some(error) = error {
            drop(state);
            // As CUDA says of such errors: the program must be started again.
            return self.finish(head, Err(error.into()));
        }
        drop(state);
        // Everything of the context goes; the name lives on, for a context without anything.
        self.end_context(Reply::to(head), key);
        let again = self.shared.state().add_context(
            number,
            owner.device,
            owner.ordinal,
            owner.context,
            true,
        );
        if let Err(status) = again {
            log::error!("a primary context is not there again: {status}");
        }
        Ok(())
    }

    fn cu_device_primary_ctx_retain(
        &mut self,
        head: &Head,
        record: CuDevicePrimaryCtxRetain,
    ) -> Answer {
        let outcome = self.create_context(
            head,
            record.device,
            |driver, ordinal| Context::primary(driver, ordinal, record.flags & CONTEXT_FLAGS),
            true,
        );
        self.finish(head, outcome.map_err(Failure::from))
    }

    fn cu_event_create(&mut self, head: &Head, record: CuEventCreate) -> Answer {
        self.in_context(head, |state, key| {
            let event = Arc::new(Event::create(driver_context(state, key)?, record.flags)?);
            state.events.insert(
                record.event,
                EventState {
                    key,
                    event,
                    recorded: None,
                },
            )
        })
    }

    fn cu_event_destroy_v2(&mut self, head: &Head, record: CuEventDestroyV2) -> Answer {
        self.in_context(head, |state, _| state.events.remove(record.event).map(drop))
    }

    fn cu_event_elapsed_time(&mut self, head: &Head, record: CuEventElapsedTime) -> Answer {
        let reply = Reply::to(head);
        match self.elapsed_ms(head, record.start, record.end) {
            Ok(ms) => self
                .outbox
                .record(reply, CuStatus::SUCCESS, &CuEventElapsedTimeReply { ms }),
            Err(CuStatus::NOT_READY) => self.outbox.record(
                reply,
                CuStatus::NOT_READY,
                &CuEventElapsedTimeReply { ms: 0.0 },
            ),
            Err(status) => self.outbox.finish(reply, Err(status.into())),
        }
        Ok(())
    }

    fn cu_event_query(&mut self, head: &Head, record: CuEventQuery) -> Answer {
        self.query(head, |state, _| {
            let event = state.events.get(record.event)?;
            match event.recorded {
                None => Ok(()),
                Some(wait) if !state.has_passed(wait) => Err(CuStatus::NOT_READY),
                Some(wait) if is_answering(state, wait.lane) => Err(CuStatus::NOT_READY),
                Some(_) => event.event.query(),
            }
        })
    }

    fn cu_event_record_with_flags(
        &mut self,
        head: &Head,
        record: CuEventRecordWithFlags,
    ) -> Answer {
        let event = self
            .shared
            .state()
            .events
            .get(record.event)
            .map(|event| event.event.clone());
        let op = event.map(|event| Op::Record {
            handle: record.event,
            event,
        });
        self.submit(head, record.stream, op.map_err(Failure::from))
    }

    fn cu_event_synchronize(&mut self, head: &Head, record: CuEventSynchronize) -> Answer {
        self.wait_for_event(head, record.event)
    }

    fn cu_func_set_attribute(&mut self, head: &Head, record: CuFuncSetAttribute) -> Answer {
        let function = self.modules.function(record.function);
        self.in_context(head, |_, _| {
            function?.set(Setting::Attribute(record.attribute, record.value))
        })
    }

    fn cu_func_set_cache_config(&mut self, head: &Head, record: CuFuncSetCacheConfig) -> Answer {
        let function = self.modules.function(record.function);
        self.in_context(head, |_, _| {
            function?.set(Setting::CacheConfig(record.config))
        })
    }

    fn cu_graph_exec_destroy(&mut self, head: &Head, record: CuGraphExecDestroy) -> Answer {
        match self.graphs.remove(record.exec) {
            // Launches that are queued hold it; the driver lets those that run end.
            Ok(exec) => self.after_all(head, After::Drop(super::op::DropLater::new(exec))),
            Err(status) => self.finish(head, Err(status.into())),
        }
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
        let outcome = self
            .context(head)
            .and_then(|_| self.graphs.insert(record.exec, exec.clone()))
            .map_err(Failure::from);
        let outcome = outcome.and_then(|()| {
            bytes.ok_or_else(|| Failure::new(CuStatus::OUT_OF_MEMORY, "the graph is too large"))
        });
        match outcome {
            Ok(bytes) => self.define_graph(head, &record, &exec, bytes),
            Err(failure) => {
                if record.bulk != 0 {
                    discard(&*self.outbox, record.bulk, u64::MAX);
                }
                self.outbox.finish(Reply::to(head), Err(failure));
            }
        }
        Ok(())
    }

    fn cu_graph_launch(&mut self, head: &Head, record: CuGraphLaunch) -> Answer {
        let exec = self.graphs.get(record.exec).cloned();
        self.submit(
            head,
            record.stream,
            exec.map(|exec| Op::Graph { exec, from: 0 })
                .map_err(Failure::from),
        )
    }

    fn cu_launch_host_func(&mut self, head: &Head, record: CuLaunchHostFunc) -> Answer {
        self.submit(
            head,
            record.stream,
            Ok(Op::HostFunc {
                callback: record.callback,
            }),
        )
    }

    fn cu_launch_kernel(&mut self, head: &Head, record: CuLaunchKernel<'_>) -> Answer {
        self.submit(head, record.stream, graphs::launch(&self.modules, &record))
    }

    fn cu_launch_kernel_ex(&mut self, head: &Head, record: CuLaunchKernelEx<'_>) -> Answer {
        self.submit(
            head,
            record.stream,
            graphs::launch_ex(&self.modules, &record),
        )
    }

    fn cu_mem_alloc_async(&mut self, head: &Head, record: CuMemAllocAsync) -> Answer {
        if record.addr == 0 {
            let why = "this server places device memory: cuMemAlloc_v2 answers where";
            return self.finish(head, Err(Failure::new(CuStatus::NOT_SUPPORTED, why)));
        }
        self.allocate(
            head,
            Some(record.stream),
            record.addr,
            record.bytes,
            BlockKind::Device,
        )
    }

    fn cu_mem_alloc_managed(&mut self, head: &Head, record: CuMemAllocManaged) -> Answer {
        self.allocate(head, None, record.addr, record.bytes, BlockKind::Managed)
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
        self.submit(head, record.stream, Ok(Op::Free { addr: record.addr }))
    }

    fn cu_mem_free_host(&mut self, head: &Head, record: CuMemFreeHost) -> Answer {
        self.after_all(
            head,
            After::Free {
                addr: record.addr,
                host: true,
            },
        )
    }

    fn cu_mem_free_v2(&mut self, head: &Head, record: CuMemFreeV2) -> Answer {
        self.after_all(
            head,
            After::Free {
                addr: record.addr,
                host: false,
            },
        )
    }

    fn cu_mem_host_alloc(&mut self, head: &Head, record: CuMemHostAlloc) -> Answer {
        self.allocate(head, None, record.addr, record.bytes, BlockKind::Host)
    }

    fn cu_memcpy3d_async_v2(&mut self, head: &Head, record: CuMemcpy3DAsyncV2) -> Answer {
        self.submit(head, record.stream, Ok(graphs::copy_box(&record)))
    }

    fn cu_memcpy_dto_d_async_v2(&mut self, head: &Head, record: CuMemcpyDtoDAsyncV2) -> Answer {
        self.submit(head, record.stream, Ok(graphs::copy(&record)))
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
        if bulk == 0 && count > INLINE_BYTES_MAX as u64 {
            return Err(Violation::Rule(
                "a device-to-host copy that is too long for its reply",
            ));
        }
        self.submit(
            head,
            stream,
            Ok(Op::Read {
                src,
                count,
                bulk,
                at: 0,
                gathering: None,
            }),
        )
    }

    fn cu_memcpy_hto_d_async_v2(&mut self, head: &Head, record: CuMemcpyHtoDAsyncV2<'_>) -> Answer {
        if record.bulk == 0 {
            return self.submit(head, record.stream, graphs::write(&record));
        }
        if !record.data.is_empty() || record.count == 0 {
            return Err(Violation::Rule(
                "a copy with both inline bytes and a bulk transfer, or with neither",
            ));
        }
        let (reply, transfer) = (Reply::to(head), Transfer::new(record.bulk, record.count));
        match self.context(head) {
            Ok(key) => {
                let mut later = Later::default();
                let mut state = self.shared.state();
                // A lost context, or a stream that is not there, refuses it before it is announced.
                if state.health(key) == CuStatus::SUCCESS
                    && state.resolve(key, record.stream).is_ok()
                {
                    self.shared.announce(&mut state, &mut later, key, &transfer);
                }
                drop(state);
                self.shared.settle(later);
                self.shared.submit(
                    reply,
                    key,
                    record.stream,
                    Op::Upload {
                        dst: record.dst,
                        transfer,
                        at: 0,
                    },
                );
            }
            Err(status) => {
                discard(&*self.outbox, record.bulk, record.count);
                self.outbox.finish(reply, Err(status.into()));
            }
        }
        Ok(())
    }

    fn cu_memset_d2d8async(&mut self, head: &Head, record: CuMemsetD2D8Async) -> Answer {
        self.submit(head, record.stream, Ok(graphs::fill_rows(&record)))
    }

    fn cu_memset_d8async(&mut self, head: &Head, record: CuMemsetD8Async) -> Answer {
        self.submit(head, record.stream, Ok(graphs::fill(&record)))
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
        let owner = self.context(head).and_then(|key| {
            let state = self.shared.state();
            state
                .contexts
                .get(&key)
                .map(|context| context.owner.clone())
                .ok_or(CuStatus::INVALID_CONTEXT)
        });
        match owner {
            Ok(owner) => self.modules.load(Load {
                reply: Reply::to(head),
                module: record.module,
                owner,
                image: Image {
                    total_bytes: record.total_bytes,
                    bulk: record.bulk,
                    hash,
                    packed: record.image.to_vec(),
                },
            }),
            Err(status) => {
                if record.bulk != 0 {
                    discard(&*self.outbox, record.bulk, record.total_bytes);
                }
                self.outbox.record(
                    Reply::to(head),
                    status,
                    &CuModuleLoadDataReply { message: "" },
                );
            }
        }
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
        self.in_context(head, |state, key| {
            let stream = Stream::create(
                driver_context(state, key)?,
                record.flags & STREAM_NON_BLOCKING,
                record.priority,
            )?;
            let blocking = record.flags & STREAM_NON_BLOCKING == 0;
            let kind = if blocking {
                LaneKind::Blocking
            } else {
                LaneKind::NonBlocking
            };
            state.add_stream(key, record.stream, stream, kind)
        })
    }

    fn cu_stream_destroy_v2(&mut self, head: &Head, record: CuStreamDestroyV2) -> Answer {
        let mut later = Later::default();
        let mut state = self.shared.state();
        let outcome = state
            .retire_stream(record.stream)
            .map(|lane| self.shared.end_spent(&mut state, &mut later, lane));
        drop(state);
        self.shared.settle(later);
        self.finish(head, outcome.map_err(Failure::from))
    }

    fn cu_stream_query(&mut self, head: &Head, record: CuStreamQuery) -> Answer {
        self.query(head, |state, key| {
            let lane = state.resolve(key, record.stream)?;
            if !state.is_free(lane, &[]) || is_answering(state, lane) {
                return Err(CuStatus::NOT_READY);
            }
            state
                .lanes
                .get(&lane)
                .map_or(Err(CuStatus::INVALID_HANDLE), |lane| lane.stream.query())
        })
    }

    fn cu_stream_synchronize(&mut self, head: &Head, record: CuStreamSynchronize) -> Answer {
        self.submit(head, record.stream, Ok(Op::Nothing))
    }

    fn cu_stream_wait_event(&mut self, head: &Head, record: CuStreamWaitEvent) -> Answer {
        let reply = Reply::to(head);
        let key = match self.context(head) {
            Ok(key) => key,
            Err(status) => return self.finish(head, Err(status.into())),
        };
        let mut later = Later::default();
        let mut state = self.shared.state();
        let found = state
            .events
            .get(record.event)
            .map(|event| (event.event.clone(), event.recorded));
        let found = found.and_then(|found| Ok((found, state.resolve(key, record.stream)?)));
        match found {
            Ok(((_, None), lane)) => {
                self.shared
                    .submit_to(&mut state, &mut later, reply, lane, Vec::new(), Op::Nothing)
            }
            Ok(((event, Some(wait)), lane)) => {
                let waits = if wait.lane == lane {
                    Vec::new()
                } else {
                    vec![wait]
                };
                self.shared.submit_to(
                    &mut state,
                    &mut later,
                    reply,
                    lane,
                    waits,
                    Op::Wait { event },
                );
            }
            Err(status) => later.outcomes.push((reply, Err(status.into()))),
        }
        drop(state);
        self.shared.settle(later);
        Ok(())
    }
}
