//! Modules, functions, launches.

use std::ffi::{CString, c_void};
use std::sync::Arc;

use cudarc::driver::sys;
use farcall_marshal::image::{Extent as ImageExtent, extent};
use farcall_marshal::status::{CuResult, CuStatus};

use super::context::{Context, Stream};
use super::memory::PlainBlock;
use super::table::{Raw, check};

/// Longest parameter block of a kernel (CUDA 12.1 and later on sm_70 and later).
pub(crate) const PARAMS_MAX: usize = 32_764;
const LOG_BYTES: usize = 8 << 10;
/// `CU_JIT_INFO_LOG_BUFFER`, its size, `CU_JIT_ERROR_LOG_BUFFER`, its size.
const LOG_OPTIONS: [u32; 4] = [3, 4, 5, 6];
/// `CU_LAUNCH_PARAM_BUFFER_POINTER`, `CU_LAUNCH_PARAM_BUFFER_SIZE`, `CU_LAUNCH_PARAM_END`.
const PARAM_POINTER: usize = 1;
const PARAM_SIZE: usize = 2;
const PARAM_END: usize = 0;
const ATTRIBUTE_BYTES: usize = 72;
const ATTRIBUTE_COOPERATIVE: u32 = 2;
/// `CUlaunchAttributeID` whose values are plain numbers. The others hold handles or pointers of the program.
const ATTRIBUTES: [u32; 12] = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 14, 16];

/// A loaded module.
#[derive(Debug)]
pub(crate) struct Module {
    context: Arc<Context>,
    raw: Raw,
}

impl Module {
    /// Loads PTX (compiled now) or a cubin. Blocks for as long as the compiler takes.
    ///
    /// # Errors
    /// As the driver, with the compiler's log.
    pub(crate) fn load(
        context: &Arc<Context>,
        image: &[u8],
    ) -> Result<Arc<Self>, (CuStatus, String)> {
        let plain = |status| (status, String::new());
        let mut image = image.to_vec();
        match extent(&image) {
            Ok(ImageExtent::Total(bytes)) if bytes <= image.len() => {}
            Ok(ImageExtent::Text) => image.push(0),
            _ => {
                return Err((
                    CuStatus::INVALID_IMAGE,
                    "neither PTX nor a whole cubin".to_owned(),
                ));
            }
        }
        context.make_current().map_err(plain)?;
        let (mut info, mut errors) = (vec![0_u8; LOG_BYTES], vec![0_u8; LOG_BYTES]);
        let room = std::ptr::without_provenance_mut(LOG_BYTES);
        let values: [*mut c_void; 4] = [
            info.as_mut_ptr().cast(),
            room,
            errors.as_mut_ptr().cast(),
            room,
        ];
        let count = 4;
        let mut raw = 0;
        let (code, options, values) =
            (image.as_ptr().cast(), LOG_OPTIONS.as_ptr(), values.as_ptr());
        // SAFETY: four options with four values, whose buffers are as long as they say; text ends with a NUL, and
        // a binary is as long as its headers say.
        let status = unsafe {
            (context.driver.table.cuModuleLoadDataEx.call())(
                &raw mut raw,
                code,
                count,
                options,
                values,
            )
        };
        check(status).map_err(|status| (status, text(&errors)))?;
        Ok(Arc::new(Self {
            context: context.clone(),
            raw,
        }))
    }

    /// `cuModuleGetFunction`.
    ///
    /// # Errors
    /// `NOT_FOUND`; else as the driver.
    pub(crate) fn function(self: &Arc<Self>, name: &str) -> CuResult<Function> {
        self.context.make_current()?;
        let (name, mut raw) = (CString::new(name).map_err(|_| CuStatus::NOT_FOUND)?, 0);
        // SAFETY: a live module, a text that ends with a NUL.
        check(unsafe {
            (self.context.driver.table.cuModuleGetFunction.call())(
                &raw mut raw,
                self.raw,
                name.as_ptr(),
            )
        })?;
        Ok(Function {
            module: self.clone(),
            raw,
        })
    }

    /// `cuModuleGetGlobal`. The variable goes with the module.
    ///
    /// # Errors
    /// `NOT_FOUND`; else as the driver.
    pub(crate) fn global(&self, name: &str) -> CuResult<PlainBlock> {
        self.context.make_current()?;
        let name = CString::new(name).map_err(|_| CuStatus::NOT_FOUND)?;
        let (mut addr, mut bytes) = (0, 0);
        let entry = self.context.driver.table.cuModuleGetGlobal_v2;
        // SAFETY: a live module, a text that ends with a NUL.
        check(unsafe { (entry.call())(&raw mut addr, &raw mut bytes, self.raw, name.as_ptr()) })?;
        Ok(PlainBlock::global(&self.context, addr, bytes as u64))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.make_current().is_ok() {
            // SAFETY: loaded by `load`, unloaded once; every function held it and is gone.
            unsafe { (self.context.driver.table.cuModuleUnload.call())(self.raw) };
        }
    }
}

/// A kernel.
#[derive(Debug)]
pub(crate) struct Function {
    module: Arc<Module>,
    pub(super) raw: Raw,
}

impl Function {
    /// `cuFuncSetAttribute`.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn set_attribute(&self, attribute: i32, value: i32) -> CuResult {
        let context = &self.module.context;
        context.make_current()?;
        // SAFETY: a live function; the driver checks the numbers.
        check(unsafe {
            (context.driver.table.cuFuncSetAttribute.call())(self.raw, attribute, value)
        })
    }

    /// `cuFuncSetCacheConfig`.
    ///
    /// # Errors
    /// As the driver.
    pub(crate) fn set_cache_config(&self, config: u32) -> CuResult {
        let context = &self.module.context;
        context.make_current()?;
        // SAFETY: a live function; the driver checks the number.
        check(unsafe { (context.driver.table.cuFuncSetCacheConfig.call())(self.raw, config) })
    }
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) cooperative: bool,
    /// The parameter block as the device sees it.
    pub(crate) params: &'a [u8],
    /// Entries of 72 bytes.
    pub(crate) attributes: &'a [u8],
}

/// `CUlaunchAttribute` without cudarc's enum: the number comes from the client.
#[repr(C, align(8))]
#[derive(Clone, Copy)]
pub(super) struct Attribute {
    pub(super) id: u32,
    pad: u32,
    pub(super) value: [u8; 64],
}

const _: () = assert!(
    size_of::<Attribute>() == size_of::<sys::CUlaunchAttribute>()
        && size_of::<Attribute>() == ATTRIBUTE_BYTES
);
const _: () = assert!(
    align_of::<Attribute>() == align_of::<sys::CUlaunchAttribute>()
        && size_of::<sys::CUlaunchConfig>() == 56
);

impl Launch<'_> {
    /// The attributes, the cooperative flag among them.
    ///
    /// # Errors
    /// `INVALID_VALUE`: not entries of 72 bytes. `NOT_SUPPORTED`: one that means something only in the program's process.
    pub(super) fn entries(&self) -> CuResult<Vec<Attribute>> {
        let (raw, []) = self.attributes.as_chunks::<ATTRIBUTE_BYTES>() else {
            return Err(CuStatus::INVALID_VALUE);
        };
        let mut entries = Vec::with_capacity(raw.len() + 1);
        for entry in raw {
            let (Some(id), Some(value)) = (entry.first_chunk::<4>(), entry.last_chunk::<64>())
            else {
                continue;
            };
            let id = u32::from_le_bytes(*id);
            if !ATTRIBUTES.contains(&id) {
                return Err(CuStatus::NOT_SUPPORTED);
            }
            entries.push(Attribute {
                id,
                pad: 0,
                value: *value,
            });
        }
        if self.cooperative
            && !entries
                .iter()
                .any(|entry| entry.id == ATTRIBUTE_COOPERATIVE)
        {
            let mut value = [0; 64];
            value[0] = 1;
            entries.push(Attribute {
                id: ATTRIBUTE_COOPERATIVE,
                pad: 0,
                value,
            });
        }
        Ok(entries)
    }
}

impl Stream {
    /// Launches a kernel. Blocks only while the driver's launch queue is full.
    ///
    /// # Errors
    /// As the driver; `INVALID_VALUE` for a parameter block that no kernel can have.
    pub(crate) fn launch(&self, function: &Function, launch: &Launch<'_>) -> CuResult {
        if launch.params.len() > PARAMS_MAX {
            return Err(CuStatus::INVALID_VALUE);
        }
        self.context.make_current()?;
        let table = &self.context.driver.table;
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (launch.grid, launch.block);
        let (f, shared, stream) = (function.raw, launch.shared_bytes, self.raw);
        with_extra(launch.params, |extra| {
            let none = std::ptr::null_mut();
            if launch.attributes.is_empty() && !launch.cooperative {
                // SAFETY: live handles; `extra` describes the parameter block, which the driver copies.
                let status = unsafe {
                    (table.cuLaunchKernel.call())(
                        f, grid_x, grid_y, grid_z, block_x, block_y, block_z, shared, stream, none,
                        extra,
                    )
                };
                return check(status);
            }
            let mut attributes = launch.entries()?;
            let config = sys::CUlaunchConfig {
                gridDimX: grid_x,
                gridDimY: grid_y,
                gridDimZ: grid_z,
                blockDimX: block_x,
                blockDimY: block_y,
                blockDimZ: block_z,
                sharedMemBytes: shared,
                hStream: std::ptr::with_exposed_provenance_mut(stream),
                attrs: attributes.as_mut_ptr().cast(),
                numAttrs: u32::try_from(attributes.len()).map_err(|_| CuStatus::INVALID_VALUE)?,
            };
            // SAFETY: as above; the attributes have the driver's layout and plain values.
            check(unsafe { (table.cuLaunchKernelEx.call())(&raw const config, f, none, extra) })
        })
    }
}

/// Shows the `extra` array that hands over a parameter block.
pub(super) fn with_extra<R>(params: &[u8], call: impl FnOnce(*mut *mut c_void) -> R) -> R {
    if params.is_empty() {
        return call(std::ptr::null_mut());
    }
    let mut bytes = params.len();
    let tag = std::ptr::without_provenance_mut;
    let size: *mut usize = &raw mut bytes;
    let mut extra: [*mut c_void; 5] = [
        tag(PARAM_POINTER),
        params.as_ptr().cast_mut().cast(),
        tag(PARAM_SIZE),
        size.cast(),
        tag(PARAM_END),
    ];
    call(extra.as_mut_ptr())
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default())
        .trim()
        .to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use farcall_marshal::status::CuStatus;

    use super::Launch;

    fn launch(attributes: &[u8], cooperative: bool) -> Launch<'_> {
        Launch {
            grid: [1; 3],
            block: [1; 3],
            shared_bytes: 0,
            cooperative,
            params: &[],
            attributes,
        }
    }

    #[test]
    fn attributes_that_hold_handles_are_refused() {
        let mut entry = [0; 72];
        entry[0] = 4;
        entry[8] = 2;
        let entries = launch(&entry, true).entries().unwrap();
        assert_eq!(
            entries
                .iter()
                .map(|e| (e.id, e.value[0]))
                .collect::<Vec<_>>(),
            [(4, 2), (2, 1)]
        );
        for id in [0, 7, 12, 13, 200] {
            entry[0] = id;
            assert_eq!(
                launch(&entry, false).entries().err(),
                Some(CuStatus::NOT_SUPPORTED),
                "{id}"
            );
        }
        assert_eq!(
            launch(&entry[..71], false).entries().err(),
            Some(CuStatus::INVALID_VALUE)
        );
    }
}
