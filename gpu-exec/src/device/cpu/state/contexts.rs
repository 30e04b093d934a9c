//! Contexts and streams come and go.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use farcall_marshal::status::{CuResult, CuStatus};

use super::{Context, ContextKey, State, Stream, StreamKey, StreamKind};
use crate::limits::CONTEXTS_MAX;

impl State {
    /// Makes a context with its hidden streams on one of the session's devices.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY`: too many.
    pub(crate) fn add_context(&mut self, device: usize) -> CuResult<ContextKey> {
        if self.contexts.len() >= CONTEXTS_MAX {
            return Err(CuStatus::OUT_OF_MEMORY);
        }
        let key = ContextKey(self.next_key());
        let legacy = self.add_stream(key, StreamKind::Legacy);
        let memory = self.add_stream(key, StreamKind::Memory);
        let streams = vec![legacy, memory];
        self.contexts.insert(
            key,
            Context {
                device,
                error: None,
                legacy,
                memory,
                streams,
            },
        );
        Ok(key)
    }

    /// Makes a context unusable.
    pub(crate) fn lose_context(&mut self, key: ContextKey, error: CuStatus) {
        if let Some(context) = self.contexts.get_mut(&key) {
            context.error.get_or_insert(error);
        }
    }

    /// Forgets a context's handles. Its streams go when they are empty.
    pub(crate) fn retire_context(&mut self, key: ContextKey) {
        self.handles
            .retain(|stream| self.streams.get(stream).is_some_and(|s| s.context != key));
        self.events.retain(|event| event.context != key);
        let Some(context) = self.contexts.get(&key) else {
            return;
        };
        for stream in context.streams.clone() {
            self.retire(stream);
        }
        self.drop_empty_context(key);
    }

    /// Makes a stream of the client.
    ///
    /// # Errors
    /// `INVALID_HANDLE`, `OUT_OF_MEMORY`: as the handle table says.
    pub(crate) fn create_stream(
        &mut self,
        context: ContextKey,
        handle: u64,
        blocking: bool,
    ) -> CuResult {
        let key = StreamKey(self.keys + 1);
        self.handles.insert(handle, key)?;
        let made = self.add_stream(
            context,
            if blocking {
                StreamKind::Blocking
            } else {
                StreamKind::NonBlocking
            },
        );
        debug_assert_eq!(made, key, "the key that the table holds");
        if let Some(context) = self.contexts.get_mut(&context) {
            context.streams.push(key);
        }
        Ok(())
    }

    /// Forgets a stream's handle; its work goes on.
    ///
    /// # Errors
    /// `INVALID_HANDLE`.
    pub(crate) fn destroy_stream(&mut self, handle: u64) -> CuResult {
        let key = self.handles.remove(handle)?;
        self.retire(key);
        Ok(())
    }

    fn retire(&mut self, key: StreamKey) {
        let Some(stream) = self.streams.get_mut(&key) else {
            return;
        };
        stream.retired = true;
        let (context, empty) = (stream.context, stream.completed == stream.issued);
        if empty {
            self.streams.remove(&key);
            self.drop_empty_context(context);
        }
    }

    /// A context whose hidden streams have gone is gone itself.
    pub(super) fn drop_empty_context(&mut self, key: ContextKey) {
        let Some(context) = self.contexts.get_mut(&key) else {
            return;
        };
        context
            .streams
            .retain(|stream| self.streams.contains_key(stream));
        if context.streams.is_empty() {
            self.contexts.remove(&key);
        }
    }

    fn add_stream(&mut self, context: ContextKey, kind: StreamKind) -> StreamKey {
        let key = StreamKey(self.next_key());
        let queue = VecDeque::new();
        let stream = Stream {
            context,
            kind,
            queue,
            issued: 0,
            completed: 0,
            in_flight: None,
            retired: false,
        };
        self.streams.insert(key, stream);
        key
    }

    fn next_key(&mut self) -> u64 {
        self.keys += 1;
        self.keys
    }
}
