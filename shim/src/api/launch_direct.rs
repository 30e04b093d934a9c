//! The way of nearly every launch: its parameters are copied from the program's memory straight into the transport's
//! ring. Whatever needs more than that is refused here before anything was sent, and takes the way of `launch`.
#![forbid(unsafe_code)]

use std::ffi::c_void;

use farcall_marshal::status::CuResult;
use farcall_marshal::wire::CuLaunchKernel;

use super::launch::{Shape, check_shape};
use crate::module::{Function, Parameters};
use crate::ptr::Out;
use crate::reserve::Reserved;
use crate::session::Refused;
use crate::stream::Stream;
use crate::{capture, coherent, observe};

/// The most parameters that are copied under the lock of the ring (every GPU's limit up to CUDA 12).
const DIRECT_BYTES_MAX: usize = 4096;

/// Launches if nothing needs more than a look at the parameters; whether it did.
///
/// Not direct are: a stream that captures, a program that is observed, kernels that use host memory, parameters of
/// which only the size is known, and whatever is an error of the program's.
// Into the exported function: a call would pass most of its arguments over the stack.
#[allow(clippy::inline_always)]
#[inline(always)]
pub(super) fn launch_direct(
    function: &Function,
    stream: &Stream,
    shape: &Shape,
    params: Out<*mut c_void>,
) -> CuResult<bool> {
    let parameters = &function.parameters;
    let session = stream.session();
    if !parameters.is_known
        || parameters.bytes > DIRECT_BYTES_MAX
        || capture::any()
        || observe::is_on()
        || coherent::is_used(session)
    {
        return Ok(false);
    }
    check_shape(function, stream.context.device, shape)?;
    let id = function.id_in(stream.context)?;
    let [grid_x, grid_y, grid_z] = shape.grid;
    let [block_x, block_y, block_z] = shape.block;
    let record = CuLaunchKernel {
        function: id,
        stream: stream.id,
        grid_x,
        grid_y,
        grid_z,
        block_x,
        block_y,
        block_z,
        shared_bytes: shape.shared_bytes,
        flags: shape.flags,
        params: &[],
    };
    // A stamp that no operation gets does no harm if this is refused.
    stream.mark()?;
    session.send_filled(stream.context.id, &record, parameters.bytes, |block| {
        copy(parameters, &session.host_range, block, params)
    })
}

/// Copies the program's parameters to where the kernel looks for them, unless one may be the address of host memory.
#[allow(clippy::inline_always)]
#[inline(always)]
fn copy(
    parameters: &Parameters,
    host: &Reserved,
    block: &mut [u8],
    params: Out<*mut c_void>,
) -> Result<(), Refused> {
    if parameters.has_gaps {
        block.fill(0);
    }
    for (index, spec) in parameters.list.iter().enumerate() {
        let from = params.pointer_at(index).map_err(|_| Refused)?;
        let to = block.get_mut(spec.offset_bytes as usize..).ok_or(Refused)?;
        // Nearly all are pointers, integers or floats, for which a call of `memcpy` costs more than the copy.
        match spec.size_bytes as usize {
            8 => {
                let value = from.input::<[u8; 8]>().get().map_err(|_| Refused)?;
                if host.contains(u64::from_le_bytes(value)) {
                    return Err(Refused);
                }
                *to.first_chunk_mut().ok_or(Refused)? = value;
            }
            4 => {
                let value = from.input::<[u8; 4]>().get().map_err(|_| Refused)?;
                *to.first_chunk_mut().ok_or(Refused)? = value;
            }
            len => to
                .get_mut(..len)
                .ok_or(Refused)?
                .copy_from_slice(from.bytes(len).map_err(|_| Refused)?),
        }
    }
    let is_host = |word: &[u8; 8]| host.contains(u64::from_le_bytes(*word));
    if parameters.has_structs && block.as_chunks().0.iter().any(is_host) {
        return Err(Refused);
    }
    Ok(())
}
