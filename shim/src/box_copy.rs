//! Copies of boxes (2D and 3D): rows at a distance, between host memory, device memory and arrays.
//!
//! Between device memory it is one record. With host memory, rows without gaps travel as one plain copy; others are gathered
//! on the client, and scattered on the device out of memory that lives for the copy only.
#![forbid(unsafe_code)]

use farcall_marshal::record::{Head, Record, split, to_vec};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuMemcpy3DAsyncV2, CuMemcpyDtoDAsyncV2};

use crate::abi::CUDA_MEMCPY3D;
use crate::api::{self, check_source, check_target, is_seen, to_device, to_host};
use crate::capture::Capture;
use crate::coherent;
use crate::crossing;
use crate::graph::Node;
use crate::memory::AllocationKind;
use crate::process::process;
use crate::ptr::HostPtr;
use crate::stream::Stream;

/// `CUmemorytype`.
const HOST: u32 = 1;
const DEVICE: u32 = 2;
const ARRAY: u32 = 3;
const UNIFIED: u32 = 4;

/// One end of a copy: where its first byte is, and how far rows and slices are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) address: u64,
    pub(crate) is_host: bool,
    pub(crate) pitch: u64,
    pub(crate) slice: u64,
}

/// A copy of `depth` slices of `height` rows of `width` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BoxCopy {
    pub(crate) dst: End,
    pub(crate) src: End,
    pub(crate) width: u64,
    pub(crate) height: u64,
    pub(crate) depth: u64,
}

/// An end as the program describes it.
struct Described {
    kind: u32,
    host: u64,
    device: u64,
    array: u64,
    x: u64,
    y: u64,
    z: u64,
    pitch: u64,
    height: u64,
}

impl BoxCopy {
    /// What the program's description means.
    ///
    /// # Errors
    /// `INVALID_VALUE`: an unknown kind of memory, a pitch that is shorter than a row, a box that leaves its array.
    pub(crate) fn resolve(copy: &CUDA_MEMCPY3D) -> CuResult<Self> {
        let size = [copy.WidthInBytes, copy.Height, copy.Depth].map(|edge| edge as u64);
        let src = Described {
            kind: copy.srcMemoryType,
            host: copy.srcHost,
            device: copy.srcDevice,
            array: copy.srcArray,
            x: copy.srcXInBytes as u64,
            y: copy.srcY as u64,
            z: copy.srcZ as u64,
            pitch: copy.srcPitch as u64,
            height: copy.srcHeight as u64,
        };
        let dst = Described {
            kind: copy.dstMemoryType,
            host: copy.dstHost,
            device: copy.dstDevice,
            array: copy.dstArray,
            x: copy.dstXInBytes as u64,
            y: copy.dstY as u64,
            z: copy.dstZ as u64,
            pitch: copy.dstPitch as u64,
            height: copy.dstHeight as u64,
        };
        Ok(Self {
            dst: dst.resolve(size)?,
            src: src.resolve(size)?,
            width: size[0],
            height: size[1],
            depth: size[2],
        })
    }

    fn is_empty(&self) -> bool {
        self.width == 0 || self.height == 0 || self.depth == 0
    }

    /// The same to another place.
    pub(crate) fn with_dst(self, dst: End) -> Self {
        Self { dst, ..self }
    }

    /// The same from another place.
    pub(crate) fn with_src(self, src: End) -> Self {
        Self { src, ..self }
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> CuResult<u64> {
        let rows = self.height.checked_mul(self.depth);
        rows.and_then(|rows| rows.checked_mul(self.width))
            .ok_or(CuStatus::INVALID_VALUE)
    }

    /// From the first byte of an end to its last one.
    fn span(&self, end: &End) -> CuResult<u64> {
        let slices = (self.depth - 1).checked_mul(end.slice);
        let rows = (self.height - 1).checked_mul(end.pitch);
        slices
            .zip(rows)
            .and_then(|(slices, rows)| slices.checked_add(rows)?.checked_add(self.width))
            .ok_or(CuStatus::INVALID_VALUE)
    }

    /// Whether the rows of an end follow each other without a gap.
    pub(crate) fn is_plain(&self, end: &End) -> bool {
        let rows_join = self.height == 1 || end.pitch == self.width;
        rows_join && (self.depth == 1 || end.slice == self.width * self.height)
    }

    /// Where each row begins at an end, relative to its first byte.
    fn rows(self, end: End) -> impl Iterator<Item = u64> {
        (0..self.depth)
            .flat_map(move |z| (0..self.height).map(move |y| z * end.slice + y * end.pitch))
    }

    /// The record of a copy between device memory, for no stream yet; `None` if an end is on the host.
    ///
    /// # Errors
    /// `INVALID_VALUE`: an end is not memory.
    pub(crate) fn to_record(self, context: u32) -> CuResult<Option<Vec<u8>>> {
        if self.dst.is_host || self.src.is_host || self.is_empty() {
            return Ok(None);
        }
        let memory = &process()?.memory;
        for end in [&self.dst, &self.src] {
            let known = memory.covering(end.address, self.span(end)?);
            known.ok_or(CuStatus::INVALID_VALUE)?;
        }
        let head = Head::request(CuMemcpy3DAsyncV2::NUMBER, context, 0);
        Ok(Some(to_vec(head, &self.record(0))))
    }

    fn record(&self, stream: u64) -> CuMemcpy3DAsyncV2 {
        CuMemcpy3DAsyncV2 {
            dst: self.dst.address,
            dst_pitch: self.dst.pitch,
            dst_slice: self.dst.slice,
            src: self.src.address,
            src_pitch: self.src.pitch,
            src_slice: self.src.slice,
            width: self.width,
            height: self.height,
            depth: self.depth,
            stream,
        }
    }

    /// Adds the copy to a capture.
    pub(crate) fn capture(
        &self,
        stream: &Stream,
        capture: &Capture,
        copy: CUDA_MEMCPY3D,
    ) -> CuResult {
        match self.to_record(stream.context.id)? {
            Some(bytes) => capture.add(stream.id, Node::Record(bytes)),
            None => capture.add(stream.id, Node::Copy(Box::new(copy))),
        }
    }

    /// Does it in the order of a stream. Waits where it reads to host memory that is not pinned, or with gaps, and unless
    /// `is_async` until the program can see what was copied.
    pub(crate) fn run(&self, stream: &Stream, is_async: bool) -> CuResult {
        if self.is_empty() {
            return Ok(());
        }
        let [dst, src] = [&self.dst, &self.src].map(|end| self.where_newest(end, stream));
        let there = Self {
            dst: dst?,
            src: src?,
            ..*self
        };
        there.run_there(stream, is_async)?;
        let is_seen = |end: &End| Ok(!end.is_host && is_seen(end.address)?);
        if !is_async && (is_seen(&there.dst)? || is_seen(&there.src)?) {
            return stream.synchronize();
        }
        Ok(())
    }

    /// An end in host memory that the device may be changing is where the device has it.
    fn where_newest(&self, end: &End, stream: &Stream) -> CuResult<End> {
        if !end.is_host {
            return Ok(*end);
        }
        let on_device = coherent::on_device(stream.session(), end.address, self.span(end)?);
        Ok(on_device.map_or(*end, |address| End {
            address,
            is_host: false,
            ..*end
        }))
    }

    fn run_there(&self, stream: &Stream, is_async: bool) -> CuResult {
        match (self.dst.is_host, self.src.is_host) {
            (false, false) => self.on_device(stream),
            (false, true) => self.upload(stream),
            (true, false) => self.download(stream, is_async),
            (true, true) => {
                stream.synchronize()?;
                let rows = self.rows(self.dst).zip(self.rows(self.src));
                for (to, from) in rows {
                    let to = HostPtr::from_address(self.dst.address + to);
                    to.copy_from(
                        HostPtr::from_address(self.src.address + from),
                        self.row_bytes()?,
                    )?;
                }
                Ok(())
            }
        }
    }

    fn row_bytes(&self) -> CuResult<usize> {
        usize::try_from(self.width).map_err(|_| CuStatus::INVALID_VALUE)
    }

    fn on_device(&self, stream: &Stream) -> CuResult {
        let _target = check_target(stream, self.dst.address, self.span(&self.dst)?)?;
        check_source(stream, self.src.address, self.span(&self.src)?)?;
        let ends = [self.dst.address, self.src.address];
        crossing::run_between(ends, stream, || stream.issue(&self.record(stream.id)))
    }

    fn upload(&self, stream: &Stream) -> CuResult {
        let len = usize::try_from(self.bytes()?).map_err(|_| CuStatus::OUT_OF_MEMORY)?;
        let _target = check_target(stream, self.dst.address, self.span(&self.dst)?)?;
        let gathered;
        let bytes = if self.is_plain(&self.src) {
            HostPtr::from_address(self.src.address)
        } else {
            let span = self.span(&self.src)?;
            process()?.await_writers(self.src.address, span)?;
            gathered = self.gather(len)?;
            HostPtr::from_address(gathered.as_ptr().addr() as u64)
        };
        if self.is_plain(&self.dst) {
            return to_device(stream, self.dst.address, bytes, len);
        }
        let passage = api::passage(stream, len)?;
        to_device(stream, passage.start, bytes, len)?;
        let scattered = Self {
            src: self.plain_end(passage.start),
            ..*self
        };
        scattered.on_device(stream)?;
        api::end_passage(stream, &passage)
    }

    fn download(&self, stream: &Stream, is_async: bool) -> CuResult {
        let len = usize::try_from(self.bytes()?).map_err(|_| CuStatus::OUT_OF_MEMORY)?;
        if self.is_plain(&self.src) {
            check_source(stream, self.src.address, self.span(&self.src)?)?;
            return self.land(stream, self.src.address, len, is_async);
        }
        let passage = api::passage(stream, len)?;
        let gathered = Self {
            dst: self.plain_end(passage.start),
            ..*self
        };
        gathered.on_device(stream)?;
        self.land(stream, passage.start, len, is_async)?;
        api::end_passage(stream, &passage)
    }

    /// Brings bytes without gaps to the host end. Unless `is_async` they are there when it returns.
    fn land(&self, stream: &Stream, from: u64, len: usize, is_async: bool) -> CuResult {
        let to = HostPtr::from_address(self.dst.address);
        if self.is_plain(&self.dst) {
            let is_pinned = process()?.memory.find(self.dst.address).is_some();
            return to_host(stream, to, from, len, is_async && is_pinned);
        }
        let mut bytes = vec![0_u8; len];
        let place = HostPtr::from_address(bytes.as_mut_ptr().addr() as u64);
        to_host(stream, place, from, len, false)?;
        let width = self.row_bytes()?;
        for (row, offset) in bytes.chunks(width).zip(self.rows(self.dst)) {
            HostPtr::from_address(self.dst.address + offset).write(row)?;
        }
        Ok(())
    }

    fn gather(&self, len: usize) -> CuResult<Vec<u8>> {
        let mut bytes = Vec::with_capacity(len);
        let width = self.row_bytes()?;
        for offset in self.rows(self.src) {
            let row = HostPtr::from_address(self.src.address + offset);
            bytes.extend_from_slice(row.bytes(width)?);
        }
        Ok(bytes)
    }

    pub(crate) fn plain_end(&self, address: u64) -> End {
        End {
            address,
            is_host: false,
            pitch: self.width,
            slice: self.width * self.height,
        }
    }
}

impl Described {
    fn resolve(&self, [width, height, depth]: [u64; 3]) -> CuResult<End> {
        let invalid = CuStatus::INVALID_VALUE;
        if self.kind == ARRAY {
            return self.resolve_array([width, height, depth]);
        }
        let base = match self.kind {
            HOST => self.host,
            DEVICE | UNIFIED => self.device,
            _ => return Err(invalid),
        };
        let is_host = match self.kind {
            HOST => true,
            DEVICE => false,
            _ => is_host(base)?,
        };
        // A single row needs no pitch, a single slice no height (cuda.h).
        let is_row = height <= 1 && depth <= 1 && self.pitch == 0;
        let pitch = if is_row { width + self.x } else { self.pitch };
        if base == 0 || width.checked_add(self.x).is_none_or(|end| end > pitch) {
            return Err(invalid);
        }
        let rows = if self.height == 0 {
            height + self.y
        } else {
            self.height
        };
        if depth > 1 && height.checked_add(self.y).is_none_or(|end| end > rows) {
            return Err(invalid);
        }
        let slice = pitch.checked_mul(rows).ok_or(invalid)?;
        let offset = || {
            let slices = self.z.checked_mul(slice)?;
            let rows = self.y.checked_mul(pitch)?;
            slices.checked_add(rows)?.checked_add(self.x)
        };
        let address = offset().and_then(|offset| base.checked_add(offset));
        Ok(End {
            address: address.ok_or(invalid)?,
            is_host,
            pitch,
            slice,
        })
    }

    fn resolve_array(&self, size: [u64; 3]) -> CuResult<End> {
        let array = process()?.arrays.get(self.array);
        let array = array.map_err(|_| CuStatus::INVALID_HANDLE)?;
        let [columns, rows, slices] = array.extent_bytes();
        let at = [self.x, self.y, self.z];
        let edges = [columns, rows, slices];
        let fits = at
            .iter()
            .zip(&size)
            .zip(&edges)
            .all(|((at, size), edge)| at.checked_add(*size).is_some_and(|end| end <= *edge));
        if !fits {
            return Err(CuStatus::INVALID_VALUE);
        }
        let pitch = array.row_bytes();
        let slice = pitch * rows;
        Ok(End {
            address: array.address + self.z * slice + self.y * pitch + self.x,
            is_host: false,
            pitch,
            slice,
        })
    }
}

/// A copy node as the program would have described it.
///
/// # Errors
/// `INVALID_VALUE`: no copy.
pub(crate) fn describe(node: &Node) -> CuResult<CUDA_MEMCPY3D> {
    let size = |value: u64| usize::try_from(value).map_err(|_| CuStatus::INVALID_VALUE);
    let line = |to: (u32, u64), from: (u32, u64), bytes: u64| -> CuResult<CUDA_MEMCPY3D> {
        let pick = |(kind, at): (u32, u64), wanted| if kind == wanted { at } else { 0 };
        Ok(CUDA_MEMCPY3D {
            srcMemoryType: from.0,
            srcHost: pick(from, HOST),
            srcDevice: pick(from, DEVICE),
            dstMemoryType: to.0,
            dstHost: pick(to, HOST),
            dstDevice: pick(to, DEVICE),
            WidthInBytes: size(bytes)?,
            Height: 1,
            Depth: 1,
            ..CUDA_MEMCPY3D::default()
        })
    };
    match node {
        Node::Copy(described) => Ok(**described),
        Node::FromHost { to, from, len } => {
            line((DEVICE, *to), (HOST, from.address()), *len as u64)
        }
        Node::ToHost { to, from, len } => line((HOST, to.address()), (DEVICE, *from), *len as u64),
        Node::Record(bytes) => {
            let invalid = |_| CuStatus::INVALID_VALUE;
            let (head, body, _) = split(bytes).map_err(invalid)?;
            if head.number == CuMemcpy3DAsyncV2::NUMBER {
                let copy = CuMemcpy3DAsyncV2::decode_body(body).map_err(invalid)?;
                let mut described = line((DEVICE, copy.dst), (DEVICE, copy.src), copy.width)?;
                (described.Height, described.Depth) = (size(copy.height)?, size(copy.depth)?);
                (described.srcPitch, described.dstPitch) =
                    (size(copy.src_pitch)?, size(copy.dst_pitch)?);
                let rows = |slice: u64, pitch: u64| size(slice.checked_div(pitch).unwrap_or(0));
                described.srcHeight = rows(copy.src_slice, copy.src_pitch)?;
                described.dstHeight = rows(copy.dst_slice, copy.dst_pitch)?;
                return Ok(described);
            }
            if head.number != CuMemcpyDtoDAsyncV2::NUMBER {
                return Err(CuStatus::INVALID_VALUE);
            }
            let copy = CuMemcpyDtoDAsyncV2::decode_body(body).map_err(invalid)?;
            line((DEVICE, copy.dst), (DEVICE, copy.src), copy.count)
        }
        _ => Err(CuStatus::INVALID_VALUE),
    }
}

/// What an address of unknown kind is.
fn is_host(address: u64) -> CuResult<bool> {
    Ok(match process()?.memory.find(address) {
        Some(allocation) => {
            !allocation.is_on_device() && allocation.kind != AllocationKind::Managed
        }
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use super::{BoxCopy, Described, End, HOST};

    fn described(pitch: u64, height: u64) -> Described {
        Described {
            kind: HOST,
            host: 0x1000,
            device: 0,
            array: 0,
            x: 4,
            y: 1,
            z: 1,
            pitch,
            height,
        }
    }

    #[test]
    fn the_first_byte_is_where_the_origin_says() {
        let end = described(64, 10).resolve([16, 2, 2]).ok();
        let address = 0x1000 + 640 + 64 + 4;
        let expected = End {
            address,
            is_host: true,
            pitch: 64,
            slice: 640,
        };
        assert_eq!(end, Some(expected));
        assert!(described(16, 10).resolve([16, 2, 2]).is_err(), "short rows");
        assert!(described(64, 2).resolve([16, 2, 2]).is_err(), "low slices");
    }

    #[test]
    fn rows_without_gaps_are_plain() {
        let end = |pitch, slice| End {
            address: 0,
            is_host: true,
            pitch,
            slice,
        };
        let mut copy = BoxCopy {
            dst: end(8, 16),
            src: end(10, 20),
            width: 8,
            height: 2,
            depth: 3,
        };
        assert!(copy.is_plain(&copy.dst) && !copy.is_plain(&copy.src));
        assert!(copy.rows(copy.src).eq([0, 10, 20, 30, 40, 50]));
        assert_eq!(copy.span(&copy.src), Ok(58));
        copy.height = 1;
        assert!(!copy.is_plain(&copy.dst), "rows of other slices are far");
        copy.depth = 1;
        assert!(copy.is_plain(&copy.src));
    }
}
