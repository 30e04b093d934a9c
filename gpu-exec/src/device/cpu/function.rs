//! A kernel that a client has named, and whether it can be launched as asked.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicU32, Ordering};

use farcall_marshal::status::CuStatus;
use farcall_ptx::Kernel;

use super::state::ContextKey;
use crate::device::cpu_limits::{BLOCK_THREADS_MAX, SHARED_BYTES_DEFAULT};
use crate::executor::outbox::Failure;

/// What a function runs.
#[derive(Debug)]
pub(crate) enum Code {
    /// PTX.
    Kernel(Kernel),
    /// Nothing, whatever its name.
    Nothing,
}

/// A kernel that a client has named.
#[derive(Debug)]
pub(crate) struct Function {
    pub(crate) context: ContextKey,
    pub(crate) module: u64,
    pub(crate) code: Code,
    pub(crate) dynamic_shared_max: AtomicU32,
}

impl Function {
    /// What it runs.
    pub(crate) fn code(&self) -> &Code {
        &self.code
    }

    /// Whether running it takes no time.
    pub(crate) fn is_quick(&self) -> bool {
        matches!(self.code, Code::Nothing)
    }

    /// Whether it can be launched like this.
    ///
    /// # Errors
    /// `INVALID_VALUE`, with what is wrong.
    pub(crate) fn check(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        params: &[u8],
    ) -> Result<(), Failure> {
        let invalid = |message: String| Err(Failure::new(CuStatus::INVALID_VALUE, message));
        let [grid_x, grid_y, grid_z] = grid;
        if grid_x == 0
            || grid_y == 0
            || grid_z == 0
            || grid_x > i32::MAX.unsigned_abs()
            || grid_y > 65_535
            || grid_z > 65_535
        {
            return invalid(format!("a grid of {grid:?} blocks cannot be"));
        }
        let threads = block
            .iter()
            .map(|edge| u64::from(*edge))
            .fold(1, u64::saturating_mul);
        let [.., block_z] = block;
        if threads == 0 || threads > BLOCK_THREADS_MAX || block_z > 64 {
            return invalid(format!("a block of {block:?} threads cannot be"));
        }
        let allowed = self.dynamic_shared_max.load(Ordering::Relaxed);
        let Code::Kernel(kernel) = &self.code else {
            return Ok(());
        };
        let info = kernel.info();
        if threads > u64::from(info.max_threads_per_block) {
            return invalid(format!(
                "{}: a block of {threads} threads, at most {}",
                info.name, info.max_threads_per_block
            ));
        }
        let room = allowed.max(SHARED_BYTES_DEFAULT.saturating_sub(info.shared_static_bytes));
        if shared_bytes > room {
            return invalid(format!(
                "{}: {shared_bytes} bytes of dynamic shared memory, at most {room}",
                info.name
            ));
        }
        if params.len() < info.param_bytes as usize {
            return invalid(format!(
                "{}: {} bytes of parameters, needs {}",
                info.name,
                params.len(),
                info.param_bytes
            ));
        }
        Ok(())
    }
}
