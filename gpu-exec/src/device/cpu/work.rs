//! One operation of a stream.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::function::Function;
use super::graph::GraphExec;
use super::memory::{Block, BlockKind, Memory, Turn};
use super::upload::Upload;
use crate::device::box_copy::{BoxCopy as CopyBox, BoxEnd};

/// What a stream does next. Borrows from the record until it has to wait.
#[derive(Clone, Debug)]
pub(crate) enum Work<'a> {
    /// Only waits.
    Nothing,
    /// Takes the time of an event.
    Record { event: u64 },
    /// Host to device, the bytes at hand.
    Write { dst: u64, data: Cow<'a, [u8]> },
    /// Host to device over the bulk plane.
    Upload(Arc<Upload>),
    /// Device to host; `bulk` 0 = in the reply.
    Read { src: u64, count: u64, bulk: u64 },
    /// Device to device.
    Copy { dst: u64, src: u64, count: u64 },
    /// Device to device, rows and slices at a distance.
    CopyBox(CopyBox),
    /// Rows of `row_elements` elements, `pitch` bytes apart.
    Fill(Fill),
    /// A kernel.
    Launch(Launch<'a>),
    /// The nodes of a graph from this one on.
    Graph {
        exec: Arc<GraphExec>,
        stream: u64,
        from: usize,
    },
    /// A function of the client's host.
    HostFunc { callback: u64, stream: u64 },
    /// Fresh memory.
    Insert { addr: u64, block: Block },
    /// Freed memory; whether pinned or managed memory is meant.
    Remove { addr: u64, host: bool },
    /// Mappings that tile a range.
    Unmap { addr: u64, bytes: u64 },
    /// A module's variables.
    RemoveGlobals { addrs: Vec<u64> },
    /// What the handle of a texture or surface led to.
    RemoveTexture { addr: u64 },
    /// Frees all that a context has.
    EndContext { context: u64 },
}

/// A memset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) dst: u64,
    pub(crate) pitch: u64,
    pub(crate) row_count: u64,
    pub(crate) row_elements: u64,
    pub(crate) value: u32,
    pub(crate) width: u32,
}

/// A kernel launch that was found to be valid.
#[derive(Clone, Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) function: Arc<Function>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) cooperative: bool,
    pub(crate) params: Cow<'a, [u8]>,
}

/// Largest operation that the loop does itself when nothing is in its way.
const QUICK_BYTES_MAX: u64 = 64 << 10;

impl Work<'_> {
    /// The same, holding its bytes itself.
    pub(crate) fn into_owned(self) -> Work<'static> {
        match self {
            Self::Write { dst, data } => Work::Write {
                dst,
                data: Cow::Owned(data.into_owned()),
            },
            Self::Launch(launch) => Work::Launch(Launch {
                params: Cow::Owned(launch.params.into_owned()),
                ..launch
            }),
            Self::Nothing => Work::Nothing,
            Self::Record { event } => Work::Record { event },
            Self::Upload(upload) => Work::Upload(upload),
            Self::Read { src, count, bulk } => Work::Read { src, count, bulk },
            Self::Copy { dst, src, count } => Work::Copy { dst, src, count },
            Self::CopyBox(copy) => Work::CopyBox(copy),
            Self::Fill(fill) => Work::Fill(fill),
            Self::Graph { exec, stream, from } => Work::Graph { exec, stream, from },
            Self::HostFunc { callback, stream } => Work::HostFunc { callback, stream },
            Self::Insert { addr, block } => Work::Insert { addr, block },
            Self::Remove { addr, host } => Work::Remove { addr, host },
            Self::Unmap { addr, bytes } => Work::Unmap { addr, bytes },
            Self::RemoveGlobals { addrs } => Work::RemoveGlobals { addrs },
            Self::RemoveTexture { addr } => Work::RemoveTexture { addr },
            Self::EndContext { context } => Work::EndContext { context },
        }
    }

    /// The same without its bytes copied.
    pub(crate) fn borrowed(&self) -> Work<'_> {
        match self {
            Self::Write { dst, data } => Work::Write {
                dst: *dst,
                data: Cow::Borrowed(data),
            },
            Self::Launch(launch) => {
                let params = Cow::Borrowed(&*launch.params);
                Work::Launch(Launch {
                    function: launch.function.clone(),
                    params,
                    ..*launch
                })
            }
            other => other.clone().into_owned(),
        }
    }

    /// Bytes that it keeps while it waits.
    pub(crate) fn held_bytes(&self) -> usize {
        match self {
            Self::Write { data, .. } => data.len(),
            Self::Launch(launch) => launch.params.len(),
            _ => 0,
        }
    }

    /// Whether it takes no longer than handing it to another thread would.
    pub(crate) fn is_quick(&self) -> bool {
        match self {
            Self::Nothing
            | Self::Record { .. }
            | Self::HostFunc { .. }
            | Self::Insert { .. }
            | Self::Remove { .. }
            | Self::Unmap { .. } => true,
            Self::Write { data, .. } => data.len() as u64 <= QUICK_BYTES_MAX,
            Self::Read { count, bulk, .. } => *bulk == 0 && *count <= QUICK_BYTES_MAX,
            Self::Copy { count, .. } => *count <= QUICK_BYTES_MAX,
            Self::CopyBox(copy) => copy.bytes().is_ok_and(|bytes| bytes <= QUICK_BYTES_MAX),
            Self::Fill(fill) => fill.bytes().is_ok_and(|bytes| bytes <= QUICK_BYTES_MAX),
            Self::Launch(launch) => launch.function.is_quick(),
            Self::EndContext { .. } | Self::RemoveGlobals { .. } | Self::RemoveTexture { .. } => {
                true
            }
            Self::Graph { exec, .. } => exec.is_quick(),
            Self::Upload(_) => false,
        }
    }

    /// Whether it runs kernels, which sessions of a device take turns with.
    pub(crate) fn takes_turns(&self) -> bool {
        match self {
            Self::Launch(launch) => !launch.function.is_quick(),
            Self::Graph { exec, .. } => exec.nodes().iter().any(Work::takes_turns),
            _ => false,
        }
    }

    /// Whether there is nothing to do once its turn has come.
    pub(crate) fn is_nothing(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Launch(launch) => launch.function.is_quick(),
            _ => false,
        }
    }

    /// Whether the bytes that it works with have come.
    pub(crate) fn has_come(&self) -> bool {
        match self {
            Self::Upload(upload) => upload.is_ready(),
            Self::Graph { exec, .. } => exec.has_come(),
            _ => true,
        }
    }

    /// Whether it must wait for an upload that goes to `start..end`.
    pub(crate) fn is_held_by(&self, start: u64, end: u64) -> bool {
        let meets = |at: u64, bytes: u64| at < end && at.saturating_add(bytes) > start;
        match self {
            Self::Write { dst, data } => meets(*dst, data.len() as u64),
            Self::Upload(upload) => meets(upload.dst, upload.count),
            Self::Read { src, count, .. } => meets(*src, *count),
            Self::Copy { dst, src, count } => meets(*dst, *count) || meets(*src, *count),
            Self::CopyBox(copy) => {
                let span = |end: &BoxEnd| copy.span(end).unwrap_or(u64::MAX);
                [&copy.dst, &copy.src]
                    .iter()
                    .any(|end| meets(end.addr, span(end)))
            }
            Self::Fill(fill) => meets(
                fill.dst,
                fill.pitch.saturating_mul(fill.row_count).max(1 << 20),
            ),
            Self::Remove { addr, .. } => *addr <= start,
            Self::EndContext { .. } | Self::RemoveGlobals { .. } | Self::Unmap { .. } => true,
            Self::Graph { exec, .. } => exec.nodes().iter().any(|node| node.is_held_by(start, end)),
            Self::Nothing
            | Self::Record { .. }
            | Self::Launch(_)
            | Self::HostFunc { .. }
            | Self::RemoveTexture { .. }
            | Self::Insert { .. } => false,
        }
    }
}

impl Fill {
    /// Does it.
    ///
    /// # Errors
    /// `INVALID_VALUE`: rows that overlap, or memory that is not there.
    pub(crate) fn run(&self, memory: &Memory, turn: &mut Turn) -> CuResult {
        let row_bytes = self
            .row_elements
            .checked_mul(u64::from(self.width))
            .ok_or(CuStatus::INVALID_VALUE)?;
        if self.row_count > 1 && self.pitch < row_bytes {
            return Err(CuStatus::INVALID_VALUE);
        }
        if row_bytes == 0 || self.row_count == 0 {
            return Ok(());
        }
        // One check of the whole, so that a large row count over nothing costs nothing.
        let span = self
            .pitch
            .checked_mul(self.row_count - 1)
            .and_then(|bytes| bytes.checked_add(row_bytes));
        memory.check(self.dst, span.ok_or(CuStatus::INVALID_VALUE)?)?;
        if self.pitch == row_bytes || self.row_count == 1 {
            return memory.fill(
                turn,
                self.dst,
                self.row_elements * self.row_count,
                self.value,
                self.width,
            );
        }
        for row in 0..self.row_count {
            memory.fill(
                turn,
                self.dst + row * self.pitch,
                self.row_elements,
                self.value,
                self.width,
            )?;
        }
        Ok(())
    }

    fn bytes(&self) -> CuResult<u64> {
        let row = self
            .row_elements
            .checked_mul(u64::from(self.width))
            .ok_or(CuStatus::INVALID_VALUE)?;
        row.checked_mul(self.row_count)
            .ok_or(CuStatus::INVALID_VALUE)
    }
}

/// Which blocks `cuMemFree` and `cuMemFreeHost` may free.
pub(crate) fn may_free(block: &Block, host: bool) -> bool {
    match block.kind {
        BlockKind::Device => !host,
        BlockKind::Host => host,
        // cuMemFree takes managed memory too.
        BlockKind::Managed => true,
        BlockKind::Global | BlockKind::Texture | BlockKind::Mapped { .. } => false,
    }
}
