//! Device memory: address ranges, physical pieces mapped there, plain allocations; fills.

use std::ffi::c_int;
use std::sync::Arc;

use cudarc::driver::sys;
use farcall_marshal::status::{CuResult, CuStatus};

use super::context::{Context, Stream};
use super::table::{Driver, check};

/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
const READ_WRITE: u32 = 3;

/// A piece of memory that device operations may name: device memory, or pinned memory made by [`super::HostBlock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(super) addr: u64,
    pub(super) bytes: usize,
    /// Host memory: copies must find out by the address.
    pub(super) is_host: bool,
}

impl Extent {
    pub(super) fn inside(
        base: u64,
        size: u64,
        addr: u64,
        bytes: u64,
        is_host: bool,
    ) -> Option<Self> {
        let offset = addr.checked_sub(base)?;
        let fits = bytes <= size.checked_sub(offset)?;
        fits.then_some(Self {
            addr,
            bytes: usize::try_from(bytes).ok()?,
            is_host,
        })
    }

    /// A part of it.
    pub(crate) fn part(&self, at: usize, bytes: usize) -> Option<Self> {
        Self::inside(
            self.addr,
            self.bytes as u64,
            self.addr.checked_add(at as u64)?,
            bytes as u64,
            self.is_host,
        )
    }

    /// Its size.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Where it begins.
    pub(crate) fn addr(&self) -> u64 {
        self.addr
    }
}

/// Addresses that the driver gives to nobody else. Nothing is there but where a [`Mapping`] is.
#[derive(Debug)]
pub(crate) struct VirtualRange {
    driver: &'static Driver,
    base: u64,
    bytes: usize,
}

impl VirtualRange {
    /// Reserves `bytes` bytes, at `hint` if the driver can.
    ///
    /// # Errors
    /// `NOT_SUPPORTED`: a driver without virtual memory management; else as the driver.
    pub(crate) fn reserve(driver: &'static Driver, hint: u64, bytes: u64) -> CuResult<Self> {
        let table = &driver.table;
        let all_there = table.cuMemAddressFree.is_some()
            && table.cuMemCreate.is_some()
            && table.cuMemMap.is_some();
        let all_there = all_there
            && table.cuMemSetAccess.is_some()
            && table.cuMemUnmap.is_some()
            && table.cuMemRelease.is_some();
        let reserve = table
            .cuMemAddressReserve
            .filter(|_| all_there)
            .ok_or(CuStatus::NOT_SUPPORTED)?;
        let (mut base, bytes) = (
            0,
            usize::try_from(bytes).map_err(|_| CuStatus::INVALID_VALUE)?,
        );
        // SAFETY: a place for one address; 0 = the default alignment.
        check(unsafe { (reserve.call())(&raw mut base, bytes, 0, hint, 0) })?;
        Ok(Self {
            driver,
            base,
            bytes,
        })
    }

    /// First address.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// The driver that it is of.
    pub(crate) fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// A piece of the range: on the device or nothing at all, never memory of this process.
    pub(crate) fn extent(&self, addr: u64, bytes: u64) -> Option<Extent> {
        Extent::inside(self.base, self.bytes as u64, addr, bytes, false)
    }
}

impl Drop for VirtualRange {
    fn drop(&mut self) {
        if let Some(free) = self.driver.table.cuMemAddressFree {
            // SAFETY: reserved by `reserve`; every mapping in it held the range and is gone.
            unsafe { (free.call())(self.base, self.bytes) };
        }
    }
}

/// Physical memory of one device, which may appear at several addresses.
#[derive(Debug)]
pub(crate) struct Physical {
    driver: &'static Driver,
    ordinal: u32,
    bytes: usize,
    handle: u64,
}

impl Physical {
    /// `bytes` bytes, a multiple of 2 MiB, of the device `ordinal`. Their contents are anything.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn create(driver: &'static Driver, ordinal: u32, bytes: u64) -> CuResult<Self> {
        let create = driver.table.cuMemCreate.ok_or(CuStatus::NOT_SUPPORTED)?;
        let bytes = usize::try_from(bytes).map_err(|_| CuStatus::OUT_OF_MEMORY)?;
        let properties = properties(location(driver.device(ordinal)?));
        let mut handle = 0;
        // SAFETY: valid properties, a place for one handle.
        check(unsafe { (create.call())(&raw mut handle, bytes, &raw const properties, 0) })?;
        Ok(Self {
            driver,
            ordinal,
            bytes,
            handle,
        })
    }
}

impl Drop for Physical {
    fn drop(&mut self) {
        if let Some(release) = self.driver.table.cuMemRelease {
            // SAFETY: made by `create`, released once; mappings hold this value.
            unsafe { (release.call())(self.handle) };
        }
    }
}

/// Physical memory at some addresses.
#[derive(Debug)]
pub(crate) struct Mapping {
    range: Arc<VirtualRange>,
    addr: u64,
    bytes: usize,
    physical: Arc<Physical>,
}

impl Mapping {
    /// Makes `bytes` bytes of memory of the device `ordinal` appear at `addr`, both multiples of 2 MiB.
    /// Its contents are anything.
    ///
    /// # Errors
    /// `INVALID_VALUE`: outside of the range, or something is there; else as the driver.
    pub(crate) fn new(
        range: &Arc<VirtualRange>,
        ordinal: u32,
        addr: u64,
        bytes: u64,
    ) -> CuResult<Self> {
        let outside = range.extent(addr, bytes).is_none();
        if outside {
            return Err(CuStatus::INVALID_VALUE);
        }
        let physical = Arc::new(Physical::create(range.driver, ordinal, bytes)?);
        let mapping = Self::of(range, &physical, addr, 0, bytes)?;
        mapping.allow(ordinal, READ_WRITE)?;
        Ok(mapping)
    }

    /// Makes a part of `physical` appear at `addr`, for no device yet.
    ///
    /// # Errors
    /// `INVALID_VALUE`: outside of the range or of the memory, or something is there; else as the driver.
    pub(crate) fn of(
        range: &Arc<VirtualRange>,
        physical: &Arc<Physical>,
        addr: u64,
        offset: u64,
        bytes: u64,
    ) -> CuResult<Self> {
        let extent = range.extent(addr, bytes).ok_or(CuStatus::INVALID_VALUE)?;
        let offset = usize::try_from(offset).map_err(|_| CuStatus::INVALID_VALUE)?;
        let end = offset.checked_add(extent.bytes);
        if end.is_none_or(|end| end > physical.bytes) {
            return Err(CuStatus::INVALID_VALUE);
        }
        let map = range.driver.table.cuMemMap.ok_or(CuStatus::NOT_SUPPORTED)?;
        // SAFETY: the addresses are of our range, the handle has these bytes. If something is mapped there the driver
        // refuses.
        check(unsafe { (map.call())(addr, extent.bytes, offset, physical.handle, 0) })?;
        Ok(Self {
            range: range.clone(),
            addr,
            bytes: extent.bytes,
            physical: physical.clone(),
        })
    }

    /// Sets what the device `ordinal` may do there, as `CUmemAccess_flags`.
    ///
    /// # Errors
    /// `INVALID_VALUE`: no such access; else as the driver.
    pub(crate) fn allow(&self, ordinal: u32, access: u32) -> CuResult {
        use sys::CUmemAccess_flags as Flags;
        let driver = self.range.driver;
        let set = driver.table.cuMemSetAccess.ok_or(CuStatus::NOT_SUPPORTED)?;
        let flags = match access {
            0 => Flags::CU_MEM_ACCESS_FLAGS_PROT_NONE,
            1 => Flags::CU_MEM_ACCESS_FLAGS_PROT_READ,
            READ_WRITE => Flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE,
            _ => return Err(CuStatus::INVALID_VALUE),
        };
        let access = sys::CUmemAccessDesc {
            location: location(driver.device(ordinal)?),
            flags,
        };
        // SAFETY: one valid description for addresses that this value has mapped.
        check(unsafe { (set.call())(self.addr, self.bytes, &raw const access, 1) })
    }

    /// The device whose memory it is.
    pub(crate) fn ordinal(&self) -> u32 {
        self.physical.ordinal
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let table = &self.range.driver.table;
        if let Some(unmap) = table.cuMemUnmap {
            // SAFETY: mapped as a whole by `of`. A device that still uses it gets a fault, nothing else.
            unsafe { (unmap.call())(self.addr, self.bytes) };
        }
    }
}

/// Device memory at an address of the driver's choice.
#[derive(Debug)]
pub(crate) struct PlainBlock {
    context: Arc<Context>,
    base: u64,
    bytes: u64,
    /// Whether drop frees it; a module's variables go with their module.
    is_owned: bool,
}

impl PlainBlock {
    /// `cuMemAlloc`. Its contents are anything.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn new(context: &Arc<Context>, bytes: u64) -> CuResult<Self> {
        context.make_current()?;
        let mut base = 0;
        let size = usize::try_from(bytes).map_err(|_| CuStatus::OUT_OF_MEMORY)?;
        // SAFETY: a place for one address.
        check(unsafe { (context.driver.table.cuMemAlloc_v2.call())(&raw mut base, size) })?;
        Ok(Self {
            context: context.clone(),
            base,
            bytes,
            is_owned: true,
        })
    }

    /// A module's variable, which `cuModuleGetGlobal` told.
    pub(super) fn global(context: &Arc<Context>, base: u64, bytes: u64) -> Self {
        Self {
            context: context.clone(),
            base,
            bytes,
            is_owned: false,
        }
    }

    /// First address.
    pub(crate) fn base(&self) -> u64 {
        self.base
    }

    /// Size.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A piece of it.
    pub(crate) fn extent(&self, addr: u64, bytes: u64) -> Option<Extent> {
        Extent::inside(self.base, self.bytes, addr, bytes, false)
    }
}

impl Drop for PlainBlock {
    fn drop(&mut self) {
        if self.is_owned && self.context.make_current().is_ok() {
            // SAFETY: allocated by `new`, freed once. The driver waits for work that uses it.
            unsafe { (self.context.driver.table.cuMemFree_v2.call())(self.base) };
        }
    }
}

impl Stream {
    /// Writes elements of `width` bytes all over `dst`.
    ///
    /// # Errors
    /// `INVALID_VALUE`: a width other than 1, 2, 4, or not a whole number of elements; else as the driver.
    pub(crate) fn fill(&self, dst: Extent, value: u32, width: u32) -> CuResult {
        let count = dst.bytes / (width.max(1) as usize);
        if count * width as usize != dst.bytes {
            return Err(CuStatus::INVALID_VALUE);
        }
        self.context.make_current()?;
        let table = &self.context.driver.table;
        let [low, second, ..] = value.to_le_bytes();
        let status = match width {
            // SAFETY: the extent was vouched for and holds `count` elements.
            1 => unsafe { (table.cuMemsetD8Async.call())(dst.addr, low, count, self.raw) },
            // SAFETY: as above.
            2 => unsafe {
                (table.cuMemsetD16Async.call())(
                    dst.addr,
                    u16::from_le_bytes([low, second]),
                    count,
                    self.raw,
                )
            },
            // SAFETY: as above.
            4 => unsafe { (table.cuMemsetD32Async.call())(dst.addr, value, count, self.raw) },
            _ => return Err(CuStatus::INVALID_VALUE),
        };
        check(status)
    }

    /// Writes rows of `row_elements` elements, `pitch` bytes apart, from the start of `dst`.
    ///
    /// # Errors
    /// `INVALID_VALUE`: a width other than 1, 2, 4, or rows that leave `dst`; else as the driver.
    pub(crate) fn fill_rows(
        &self,
        dst: Extent,
        pitch: usize,
        rows: usize,
        row_elements: usize,
        value: u32,
        width: u32,
    ) -> CuResult {
        let row_bytes = row_elements
            .checked_mul(width as usize)
            .ok_or(CuStatus::INVALID_VALUE)?;
        let span = rows
            .checked_sub(1)
            .and_then(|rows| pitch.checked_mul(rows))
            .and_then(|bytes| bytes.checked_add(row_bytes));
        if pitch < row_bytes || span.is_none_or(|span| span > dst.bytes) {
            return Err(CuStatus::INVALID_VALUE);
        }
        self.context.make_current()?;
        let table = &self.context.driver.table;
        let [low, second, ..] = value.to_le_bytes();
        let (addr, raw) = (dst.addr, self.raw);
        let status = match width {
            // SAFETY: the extent was vouched for and holds all rows.
            1 => unsafe {
                (table.cuMemsetD2D8Async.call())(addr, pitch, low, row_elements, rows, raw)
            },
            // SAFETY: as above.
            2 => unsafe {
                (table.cuMemsetD2D16Async.call())(
                    addr,
                    pitch,
                    u16::from_le_bytes([low, second]),
                    row_elements,
                    rows,
                    raw,
                )
            },
            // SAFETY: as above.
            4 => unsafe {
                (table.cuMemsetD2D32Async.call())(addr, pitch, value, row_elements, rows, raw)
            },
            _ => return Err(CuStatus::INVALID_VALUE),
        };
        check(status)
    }
}

fn location(device: c_int) -> sys::CUmemLocation {
    sys::CUmemLocation {
        type_: sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE,
        id: device,
    }
}

fn properties(location: sys::CUmemLocation) -> sys::CUmemAllocationProp {
    sys::CUmemAllocationProp {
        type_: sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: sys::CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location,
        win32HandleMetaData: std::ptr::null_mut(),
        allocFlags: sys::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

// The layouts of cuda.h.
const _: () =
    assert!(size_of::<sys::CUmemAllocationProp>() == 32 && size_of::<sys::CUmemAccessDesc>() == 12);
