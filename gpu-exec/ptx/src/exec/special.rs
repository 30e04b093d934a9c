//! Special registers.
#![forbid(unsafe_code)]

use super::block::{Cx, Shared};
use super::code::{Inst, Special};
use super::regs::{LANES, Lane};
use super::warp::Warp;

impl Warp {
    pub(super) fn special(
        &mut self,
        inst: &Inst,
        special: Special,
        mask: u32,
        cx: &Cx<'_>,
        shared: &Shared,
    ) {
        let lanes: [u32; LANES] = std::array::from_fn(|l| l as u32);
        let one = |value: u32| [value; LANES];
        let job = cx.job;
        let nanos = || job.start.elapsed().as_nanos() as u64;
        let wide = match special {
            Special::Clock64 | Special::GlobalTimer => Some(nanos()),
            Special::GridId => Some(job.number),
            _ => None,
        };
        if let Some(value) = wide {
            u64::put(&mut self.regs, inst.d, &[value; LANES], mask);
            return;
        }
        // Halves of 64-bit values are what some of these are.
        let values = match special {
            Special::Tid(axis) => {
                lanes.map(|l| job.thread(self.index, l as usize)[usize::from(axis)])
            }
            Special::Ntid(axis) => one(job.block[usize::from(axis)]),
            Special::Ctaid(axis) => one(shared.ctaid[usize::from(axis)]),
            Special::Nctaid(axis) => one(job.grid[usize::from(axis)]),
            Special::LaneId => lanes,
            Special::WarpId => one(self.index),
            Special::NWarpId => one(job.threads().div_ceil(LANES as u32)),
            Special::SmId => one(cx.worker),
            Special::NSmId => one(job.workers),
            Special::Clock | Special::GlobalTimerLo => one(nanos() as u32),
            Special::ClockHi | Special::GlobalTimerHi => one((nanos() >> 32) as u32),
            Special::LaneMaskEq => lanes.map(|l| 1 << l),
            Special::LaneMaskLt => lanes.map(|l| (1 << l) - 1),
            Special::LaneMaskLe => lanes.map(|l| u32::MAX >> (31 - l)),
            Special::LaneMaskGt => lanes.map(|l| !(u32::MAX >> (31 - l))),
            Special::LaneMaskGe => lanes.map(|l| u32::MAX << l),
            Special::DynamicSmem => one(job.dynamic_shared_bytes),
            Special::TotalSmem => one(job.shared_bytes() as u32),
            Special::EnvReg(1) => one((job.mem.workspace() >> 32) as u32),
            Special::EnvReg(2) => one(job.mem.workspace() as u32),
            Special::One => one(1),
            _ => one(0),
        };
        u32::put(&mut self.regs, inst.d, &values, mask);
    }
}
