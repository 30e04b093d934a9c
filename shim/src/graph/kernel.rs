//! Kernel nodes: launch records taken apart and put together.
#![forbid(unsafe_code)]

use farcall_marshal::record::{self, Head, Record};
use farcall_marshal::status::{CuResult, CuStatus};
use farcall_marshal::wire::{CuLaunchKernel, CuLaunchKernelEx};

/// An attribute as it travels: number, padding, value.
const ATTRIBUTE_BYTES: usize = 72;
/// Bytes of an attribute's value.
pub(crate) const VALUE_BYTES: usize = 64;

/// A launch.
#[derive(Clone)]
pub(crate) struct KernelParts {
    /// The context that the function's number is of.
    pub(crate) context: u32,
    /// The function's number on the server.
    pub(crate) function: u64,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    pub(crate) shared_bytes: u32,
    pub(crate) flags: u32,
    pub(crate) params: Vec<u8>,
    /// As they travel, one after the other.
    pub(crate) attributes: Vec<u8>,
}

impl KernelParts {
    /// Of a launch record.
    ///
    /// # Errors
    /// `INVALID_VALUE`: another record.
    pub(crate) fn of(bytes: &[u8]) -> CuResult<Self> {
        let invalid = |_| CuStatus::INVALID_VALUE;
        let (head, body, _) = record::split(bytes).map_err(invalid)?;
        match head.number {
            CuLaunchKernel::NUMBER => {
                let launch = CuLaunchKernel::decode_body(body).map_err(invalid)?;
                Ok(Self {
                    context: head.context,
                    function: launch.function,
                    grid: [launch.grid_x, launch.grid_y, launch.grid_z],
                    block: [launch.block_x, launch.block_y, launch.block_z],
                    shared_bytes: launch.shared_bytes,
                    flags: launch.flags,
                    params: launch.params.to_vec(),
                    attributes: Vec::new(),
                })
            }
            CuLaunchKernelEx::NUMBER => {
                let launch = CuLaunchKernelEx::decode_body(body).map_err(invalid)?;
                Ok(Self {
                    context: head.context,
                    function: launch.function,
                    grid: [launch.grid_x, launch.grid_y, launch.grid_z],
                    block: [launch.block_x, launch.block_y, launch.block_z],
                    shared_bytes: launch.shared_bytes,
                    flags: launch.flags,
                    params: launch.params.to_vec(),
                    attributes: launch.attributes.to_vec(),
                })
            }
            _ => Err(CuStatus::INVALID_VALUE),
        }
    }

    /// The record, for no stream yet.
    pub(crate) fn to_record(&self) -> Vec<u8> {
        let ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]) = (self.grid, self.block);
        let launch = CuLaunchKernelEx {
            function: self.function,
            stream: 0,
            grid_x,
            grid_y,
            grid_z,
            block_x,
            block_y,
            block_z,
            shared_bytes: self.shared_bytes,
            flags: self.flags,
            params: &self.params,
            attributes: &self.attributes,
        };
        let head = Head::request(CuLaunchKernelEx::NUMBER, self.context, 0);
        record::to_vec(head, &launch)
    }

    /// An attribute's value; zeros where it was not set.
    pub(crate) fn attribute(&self, id: u32) -> [u8; VALUE_BYTES] {
        let (entries, _) = self.attributes.as_chunks::<ATTRIBUTE_BYTES>();
        let entry = entries
            .iter()
            .find(|entry| entry.starts_with(&id.to_le_bytes()));
        entry
            .and_then(|entry| entry.last_chunk::<VALUE_BYTES>())
            .copied()
            .unwrap_or([0; VALUE_BYTES])
    }

    /// Sets an attribute.
    pub(crate) fn set_attribute(&mut self, id: u32, value: [u8; VALUE_BYTES]) {
        let (entries, _) = self.attributes.as_chunks::<ATTRIBUTE_BYTES>();
        let mut kept: Vec<u8> = entries
            .iter()
            .filter(|entry| !entry.starts_with(&id.to_le_bytes()))
            .flatten()
            .copied()
            .collect();
        kept.extend_from_slice(&u64::from(id).to_le_bytes());
        kept.extend_from_slice(&value);
        self.attributes = kept;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::KernelParts;

    #[test]
    fn a_launch_comes_apart_and_together() {
        let mut parts = KernelParts {
            context: 9,
            function: 7,
            grid: [1, 2, 3],
            block: [4, 5, 6],
            shared_bytes: 8,
            flags: 1,
            params: vec![1, 2, 3],
            attributes: Vec::new(),
        };
        parts.set_attribute(8, [3; 64]);
        parts.set_attribute(2, [1; 64]);
        parts.set_attribute(8, [4; 64]);
        let again = KernelParts::of(&parts.to_record()).unwrap();
        assert_eq!(again.context, 9);
        assert_eq!(
            (again.function, again.grid, again.block),
            (7, [1, 2, 3], [4, 5, 6])
        );
        assert_eq!((again.attribute(8), again.attribute(2)), ([4; 64], [1; 64]));
        assert_eq!((again.attribute(5), again.attributes.len()), ([0; 64], 144));
        assert_eq!(again.params, [1, 2, 3]);
    }
}
