//! One operation of a stream.
#![forbid(unsafe_code)]

use std::any::Any;
use std::borrow::Cow;
use std::sync::Arc;

use farcall_marshal::status::{CuResult, CuStatus};

use super::copies::{Gathering, Transfer};
use super::driver::{self, Event, Extent, Rows};
use super::graphs::GraphExec;
use super::memory::{BlockKind, Memory};
use super::modules::Function;
use crate::device::box_copy::BoxCopy;

/// What a stream does next. Borrows from the record until it has to wait.
#[derive(Clone, Debug)]
pub(crate) enum Op<'a> {
    /// Only waits.
    Nothing,
    /// `cuEventRecord`: the handle says whether it is still the event's last record.
    Record { handle: u64, event: Arc<Event> },
    /// `cuStreamWaitEvent`.
    Wait { event: Arc<Event> },
    /// Host to device, the bytes at hand.
    Write { dst: u64, data: Cow<'a, [u8]> },
    /// Host to device over the bulk plane, of which `at` bytes have been copied.
    Upload {
        dst: u64,
        transfer: Arc<Transfer>,
        at: usize,
    },
    /// Device to host; `bulk` 0 = in the reply. Of a long one `at` bytes have been given to the driver.
    Read {
        src: u64,
        count: u64,
        bulk: u64,
        at: usize,
        gathering: Option<Arc<Gathering>>,
    },
    /// Device to device.
    Copy { dst: u64, src: u64, count: u64 },
    /// Device to device, rows and slices at a distance.
    CopyBox(BoxCopy),
    /// A memset.
    Fill(Fill),
    /// A kernel.
    Launch(Launch<'a>),
    /// The segments of a graph from this one on.
    Graph { exec: Arc<GraphExec>, from: usize },
    /// A function of the client's host.
    HostFunc { callback: u64 },
    /// Fresh memory.
    Alloc {
        addr: u64,
        bytes: u64,
        kind: BlockKind,
    },
    /// Memory freed in the order of the stream.
    Free { addr: u64 },
}

/// What waits for everything in a context.
#[derive(Debug)]
pub(crate) enum After {
    /// An answer.
    Answer,
    /// An answer when an event is reached that was not recorded yet; waits for nothing else.
    Event(Arc<Event>),
    /// Freed memory; whether pinned or managed memory is meant.
    Free { addr: u64, host: bool },
    /// Mappings that tile a range, and where they begin once they were marked.
    Unmap {
        addr: u64,
        bytes: u64,
        marked: Vec<u64>,
    },
    /// Something that the driver may still use.
    Drop(DropLater),
    /// A context: its memory, streams and events.
    EndContext,
}

/// Anything that is to be dropped.
pub(crate) struct DropLater {
    _value: Box<dyn Any + Send>,
}

impl DropLater {
    /// Holds `value` until it is dropped itself.
    pub(crate) fn new(value: impl Any + Send) -> Self {
        Self {
            _value: Box::new(value),
        }
    }
}

impl std::fmt::Debug for DropLater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("DropLater")
    }
}

/// A memset: rows of `row_elements` elements, `pitch` bytes apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fill {
    pub(crate) dst: u64,
    pub(crate) pitch: u64,
    pub(crate) row_count: u64,
    pub(crate) row_elements: u64,
    pub(crate) value: u32,
    pub(crate) width: u32,
}

/// A kernel launch.
#[derive(Clone, Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) function: Arc<Function>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) cooperative: bool,
    pub(crate) params: Cow<'a, [u8]>,
    pub(crate) attributes: Cow<'a, [u8]>,
}

impl Op<'_> {
    /// The same, holding its bytes itself.
    pub(crate) fn into_owned(self) -> Op<'static> {
        match self {
            Self::Write { dst, data } => Op::Write {
                dst,
                data: Cow::Owned(data.into_owned()),
            },
            Self::Launch(launch) => Op::Launch(launch.into_owned()),
            Self::Nothing => Op::Nothing,
            Self::Record { handle, event } => Op::Record { handle, event },
            Self::Wait { event } => Op::Wait { event },
            Self::Upload { dst, transfer, at } => Op::Upload { dst, transfer, at },
            Self::Read {
                src,
                count,
                bulk,
                at,
                gathering,
            } => Op::Read {
                src,
                count,
                bulk,
                at,
                gathering,
            },
            Self::Copy { dst, src, count } => Op::Copy { dst, src, count },
            Self::CopyBox(copy) => Op::CopyBox(copy),
            Self::Fill(fill) => Op::Fill(fill),
            Self::Graph { exec, from } => Op::Graph { exec, from },
            Self::HostFunc { callback } => Op::HostFunc { callback },
            Self::Alloc { addr, bytes, kind } => Op::Alloc { addr, bytes, kind },
            Self::Free { addr } => Op::Free { addr },
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
}

impl<'a> Launch<'a> {
    fn into_owned(self) -> Launch<'static> {
        let Launch {
            function,
            grid,
            block,
            shared_bytes,
            cooperative,
            params,
            attributes,
        } = self;
        let (params, attributes) = (
            Cow::Owned(params.into_owned()),
            Cow::Owned(attributes.into_owned()),
        );
        Launch {
            function,
            grid,
            block,
            shared_bytes,
            cooperative,
            params,
            attributes,
        }
    }

    /// As the driver takes it.
    pub(crate) fn as_driver(&self) -> driver::Launch<'_> {
        driver::Launch {
            grid: self.grid,
            block: self.block,
            shared_bytes: self.shared_bytes,
            cooperative: self.cooperative,
            params: &self.params,
            attributes: &self.attributes,
        }
    }
}

impl Fill {
    /// Where it writes, and in which rows; `None`: nowhere.
    ///
    /// # Errors
    /// `INVALID_VALUE`: rows that overlap, a width other than 1, 2, 4, or memory that is not there.
    pub(crate) fn resolve(&self, memory: &Memory) -> CuResult<Option<(Extent, Rows)>> {
        let invalid = CuStatus::INVALID_VALUE;
        let row_bytes = self
            .row_elements
            .checked_mul(u64::from(self.width))
            .ok_or(invalid)?;
        let is_aligned =
            matches!(self.width, 1 | 2 | 4) && self.dst.is_multiple_of(u64::from(self.width));
        if !is_aligned || (self.row_count > 1 && self.pitch < row_bytes) {
            return Err(invalid);
        }
        if row_bytes == 0 || self.row_count == 0 {
            return Ok(None);
        }
        let span = self
            .pitch
            .checked_mul(self.row_count - 1)
            .and_then(|bytes| bytes.checked_add(row_bytes));
        let extent = memory.extent(self.dst, span.ok_or(invalid)?)?;
        let size = |value: u64| usize::try_from(value).map_err(|_| invalid);
        let mut rows = Rows {
            count: size(self.row_count)?,
            elements: size(self.row_elements)?,
            pitch: size(self.pitch)?,
            width: self.width,
        };
        // Rows without gaps are one row.
        if rows.count == 1 || self.pitch == row_bytes {
            rows = Rows {
                count: 1,
                elements: rows.elements * rows.count,
                pitch: extent.bytes(),
                ..rows
            };
        }
        Ok(Some((extent, rows)))
    }
}
