//! `malloc` and `free`: the caller's map has the memory.
#![forbid(unsafe_code)]

use super::block::Cx;
use super::code::Inst;
use super::mem::lanes;
use super::regs::{LANES, Lane};
use super::warp::{Trouble, Warp};
use crate::error::FaultKind;

impl Warp {
    /// Each thread gets memory of its own, or null where there is none.
    pub(super) fn malloc(&mut self, inst: &Inst, active: u32, cx: &Cx<'_>) {
        let bytes = *self.regs.r64(inst.a);
        let mut found = [0_u64; LANES];
        for lane in lanes(active) {
            found[lane] = cx.job.mem.allocate(bytes[lane]).unwrap_or(0);
        }
        u64::put(&mut self.regs, inst.d, &found, active);
    }

    /// Freeing null does nothing.
    pub(super) fn free(&mut self, inst: &Inst, active: u32, cx: &Cx<'_>) -> Result<(), Trouble> {
        let addrs = *self.regs.r64(inst.a);
        for lane in lanes(active) {
            let addr = addrs[lane];
            if addr != 0 && !cx.job.mem.release(addr) {
                let kind = FaultKind::IllegalAddress {
                    addr,
                    bytes: 0,
                    write: true,
                };
                return Err(Trouble { lane, kind });
            }
        }
        Ok(())
    }
}
