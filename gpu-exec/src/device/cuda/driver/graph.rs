//! Graphs.

use std::sync::Arc;

use cudarc::driver::sys;
use farcall_marshal::status::{CuResult, CuStatus};

use super::code::{Function, Launch, PARAMS_MAX, with_extra};
use super::context::{Context, Stream};
use super::host::Region;
use super::memory::Extent;
use super::table::{Raw, check};

/// A graph being built.
#[derive(Debug)]
pub(crate) struct Graph {
    context: Arc<Context>,
    raw: Raw,
    nodes: Vec<Raw>,
}

impl Graph {
    /// An empty graph.
    ///
    /// # Errors
    /// `NOT_SUPPORTED`: a driver without graphs; else as the driver.
    pub(crate) fn new(context: &Arc<Context>) -> CuResult<Self> {
        context.make_current()?;
        let create = context
            .driver
            .table
            .cuGraphCreate
            .ok_or(CuStatus::NOT_SUPPORTED)?;
        let mut raw = 0;
        // SAFETY: a place for one handle; no flags.
        check(unsafe { (create.call())(&raw mut raw, 0) })?;
        Ok(Self {
            context: context.clone(),
            raw,
            nodes: Vec::new(),
        })
    }

    /// Adds a kernel behind the nodes `after`.
    ///
    /// # Errors
    /// As the driver; `INVALID_VALUE` for a node that is not there.
    pub(crate) fn add_kernel(
        &mut self,
        after: &[usize],
        function: &Function,
        launch: &Launch<'_>,
    ) -> CuResult {
        let table = &self.context.driver.table;
        let add = table
            .cuGraphAddKernelNode_v2
            .ok_or(CuStatus::NOT_SUPPORTED)?;
        if launch.params.len() > PARAMS_MAX {
            return Err(CuStatus::INVALID_VALUE);
        }
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        let (attributes, before) = (launch.entries()?, self.dependencies(after)?);
        let mut node = 0;
        with_extra(launch.params, |extra| {
            let params = sys::CUDA_KERNEL_NODE_PARAMS_v2_st {
                func: std::ptr::with_exposed_provenance_mut(function.raw),
                gridDimX: grid_x,
                gridDimY: grid_y,
                gridDimZ: grid_z,
                blockDimX: block_x,
                blockDimY: block_y,
                blockDimZ: block_z,
                sharedMemBytes: launch.shared_bytes,
                kernelParams: std::ptr::null_mut(),
                extra,
                kern: std::ptr::null_mut(),
                ctx: std::ptr::null_mut(),
            };
            // SAFETY: live handles; `extra` describes the parameter block, which the driver copies.
            check(unsafe {
                (add.call())(
                    &raw mut node,
                    self.raw,
                    before.as_ptr(),
                    before.len(),
                    &raw const params,
                )
            })
        })?;
        for attribute in attributes {
            let set = table
                .cuGraphKernelNodeSetAttribute
                .ok_or(CuStatus::NOT_SUPPORTED)?;
            // SAFETY: the node just made; the value has the size of the driver's union and is plain numbers.
            check(unsafe { (set.call())(node, attribute.id, &raw const attribute.value) })?;
        }
        self.nodes.push(node);
        Ok(())
    }

    /// Adds a copy inside device memory.
    ///
    /// # Errors
    /// As the driver; `INVALID_VALUE` for a node that is not there.
    pub(crate) fn add_copy(&mut self, after: &[usize], dst: Extent, src: Extent) -> CuResult {
        let mut params = copy_of(dst.bytes.min(src.bytes));
        (params.srcMemoryType, params.srcDevice) = (memory_type(src), src.addr);
        (params.dstMemoryType, params.dstDevice) = (memory_type(dst), dst.addr);
        self.add_memcpy(after, &params)
    }

    /// Adds a copy from pinned memory, which must be kept for as long as the graph.
    ///
    /// # Errors
    /// As the driver; `INVALID_VALUE` for a node that is not there, or a region that is too short.
    pub(crate) fn add_upload(
        &mut self,
        after: &[usize],
        dst: Extent,
        region: &mut Region,
    ) -> CuResult {
        if dst.bytes > region.bytes() {
            return Err(CuStatus::INVALID_VALUE);
        }
        let mut params = copy_of(dst.bytes);
        (params.srcMemoryType, params.srcHost) = (
            sys::CUmemorytype::CU_MEMORYTYPE_HOST,
            region.destination().cast_const().cast(),
        );
        (params.dstMemoryType, params.dstDevice) = (memory_type(dst), dst.addr);
        self.add_memcpy(after, &params)
    }

    /// Adds a memset of rows `pitch` bytes apart; one row: `pitch` is not looked at.
    ///
    /// # Errors
    /// As the driver; `INVALID_VALUE` for a node that is not there, or rows that leave `dst`.
    pub(crate) fn add_fill(
        &mut self,
        after: &[usize],
        dst: Extent,
        rows: Rows,
        value: u32,
    ) -> CuResult {
        let add = self
            .context
            .driver
            .table
            .cuGraphAddMemsetNode
            .ok_or(CuStatus::NOT_SUPPORTED)?;
        let row_bytes = rows.elements.checked_mul(rows.width as usize);
        let span = rows
            .count
            .checked_sub(1)
            .and_then(|n| n.checked_mul(rows.pitch))
            .zip(row_bytes)
            .and_then(|(a, b)| a.checked_add(b));
        if span.is_none_or(|span| span > dst.bytes) {
            return Err(CuStatus::INVALID_VALUE);
        }
        let params = sys::CUDA_MEMSET_NODE_PARAMS_st {
            dst: dst.addr,
            pitch: rows.pitch,
            value,
            elementSize: rows.width,
            width: rows.elements,
            height: rows.count,
        };
        let (before, mut node) = (self.dependencies(after)?, 0);
        let context = self.context.raw;
        // SAFETY: live handles; the extent was vouched for and holds all rows.
        check(unsafe {
            (add.call())(
                &raw mut node,
                self.raw,
                before.as_ptr(),
                before.len(),
                &raw const params,
                context,
            )
        })?;
        self.nodes.push(node);
        Ok(())
    }

    /// Makes it executable. What its nodes use must be kept for as long as the result.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn instantiate(self, flags: u64) -> CuResult<GraphExec> {
        let instantiate = self
            .context
            .driver
            .table
            .cuGraphInstantiateWithFlags
            .ok_or(CuStatus::NOT_SUPPORTED)?;
        let mut raw = 0;
        // SAFETY: a live graph; the driver checks the flags.
        check(unsafe { (instantiate.call())(&raw mut raw, self.raw, flags) })?;
        Ok(GraphExec {
            context: self.context.clone(),
            raw,
        })
    }

    fn add_memcpy(&mut self, after: &[usize], params: &sys::CUDA_MEMCPY3D) -> CuResult {
        let add = self
            .context
            .driver
            .table
            .cuGraphAddMemcpyNode
            .ok_or(CuStatus::NOT_SUPPORTED)?;
        let (before, mut node) = (self.dependencies(after)?, 0);
        let context = self.context.raw;
        // SAFETY: live handles; source and destination were vouched for.
        check(unsafe {
            (add.call())(
                &raw mut node,
                self.raw,
                before.as_ptr(),
                before.len(),
                params,
                context,
            )
        })?;
        self.nodes.push(node);
        Ok(())
    }

    fn dependencies(&self, after: &[usize]) -> CuResult<Vec<Raw>> {
        self.context.make_current()?;
        after
            .iter()
            .map(|at| self.nodes.get(*at).copied().ok_or(CuStatus::INVALID_VALUE))
            .collect()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if let Some(destroy) = self.context.driver.table.cuGraphDestroy {
            // SAFETY: made by `new`, destroyed once; executables do not need it any more.
            unsafe { (destroy.call())(self.raw) };
        }
    }
}

/// Rows of a memset.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rows {
    /// How many.
    pub(crate) count: usize,
    /// Elements of a row.
    pub(crate) elements: usize,
    /// Bytes from one row to the next.
    pub(crate) pitch: usize,
    /// Bytes of an element.
    pub(crate) width: u32,
}

/// An executable graph.
#[derive(Debug)]
pub(crate) struct GraphExec {
    context: Arc<Context>,
    raw: Raw,
}

impl Stream {
    /// Launches a graph.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn launch_graph(&self, exec: &GraphExec) -> CuResult {
        self.context.make_current()?;
        let launch = self
            .context
            .driver
            .table
            .cuGraphLaunch
            .ok_or(CuStatus::NOT_SUPPORTED)?;
        // SAFETY: live handles.
        check(unsafe { (launch.call())(exec.raw, self.raw) })
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        if let Some(destroy) = self.context.driver.table.cuGraphExecDestroy
            && self.context.make_current().is_ok()
        {
            // SAFETY: made by `instantiate`, destroyed once; the driver lets running launches end.
            unsafe { (destroy.call())(self.raw) };
        }
    }
}

fn memory_type(extent: Extent) -> sys::CUmemorytype {
    if extent.is_host {
        sys::CUmemorytype::CU_MEMORYTYPE_UNIFIED
    } else {
        sys::CUmemorytype::CU_MEMORYTYPE_DEVICE
    }
}

fn copy_of(bytes: usize) -> sys::CUDA_MEMCPY3D {
    sys::CUDA_MEMCPY3D {
        srcXInBytes: 0,
        srcY: 0,
        srcZ: 0,
        srcLOD: 0,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        reserved0: std::ptr::null_mut(),
        srcPitch: bytes,
        srcHeight: 1,
        dstXInBytes: 0,
        dstY: 0,
        dstZ: 0,
        dstLOD: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        reserved1: std::ptr::null_mut(),
        dstPitch: bytes,
        dstHeight: 1,
        WidthInBytes: bytes,
        Height: 1,
        Depth: 1,
    }
}
