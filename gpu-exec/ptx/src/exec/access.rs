//! Loads and stores in all spaces.
#![forbid(unsafe_code)]

use super::block::{Cx, Shared};
use super::code::{CpAsync, Inst, LOCAL_BASE, Mem, MemSpace, PARAM_BASE, SHARED_BASE};
use super::mem::{Cell, Refused, lanes};
use super::regs::{LANES, Lane, R, Regs};
use super::warp::{Trouble, Warp};
use crate::error::FaultKind;

/// Addresses of all lanes.
pub(super) type Addrs = [u64; LANES];

/// `[a + offset]` of each lane.
#[inline(always)]
pub(super) fn addresses(regs: &Regs, a: R, wide: bool, offset: u64) -> Addrs {
    if wide {
        regs.r64(a).map(|base| base.wrapping_add(offset))
    } else {
        // Addresses of windows have 32 bits; a negative offset wraps within them.
        regs.r32(a)
            .map(|base| u64::from(base).wrapping_add(offset) & 0xffff_ffff)
    }
}

/// The fault for a refused access.
pub(super) fn refused(r: Refused, bytes: u32, write: bool) -> Trouble {
    let kind = if r.misaligned {
        FaultKind::MisalignedAddress {
            addr: r.addr,
            bytes,
        }
    } else {
        FaultKind::IllegalAddress {
            addr: r.addr,
            bytes,
            write,
        }
    };
    Trouble { lane: r.lane, kind }
}

/// Lanes of each window among generic addresses: global, shared, local, parameters.
pub(super) fn windows(addrs: &Addrs, mask: u32) -> [(MemSpace, u32, u64); 4] {
    let mut windows = [
        (MemSpace::Global, 0, 0),
        (MemSpace::Shared, 0, SHARED_BASE),
        (MemSpace::Local, 0, LOCAL_BASE),
        (MemSpace::Param, 0, PARAM_BASE),
    ];
    for lane in lanes(mask) {
        // Addresses in no window are left to the global check, which refuses them.
        let window = match addrs[lane] >> 56 {
            1 => 1,
            2 => 2,
            3 => 3,
            _ => 0,
        };
        windows[window].1 |= 1 << lane;
    }
    windows
}

impl Warp {
    #[inline]
    pub(super) fn load(
        &mut self,
        inst: &Inst,
        mem: &Mem,
        mask: u32,
        cx: &mut Cx<'_>,
        shared: &Shared,
    ) -> Result<(), Trouble> {
        let addrs = addresses(&self.regs, inst.a, mem.wide, inst.imm);
        if mem.space != MemSpace::Generic {
            return self.load_space(mem, mem.space, &addrs, mask, cx, shared);
        }
        for (space, lanes, base) in windows(&addrs, mask) {
            if lanes != 0 {
                self.load_space(
                    mem,
                    space,
                    &addrs.map(|a| a.wrapping_sub(base)),
                    lanes,
                    cx,
                    shared,
                )?;
            }
        }
        Ok(())
    }

    fn load_space(
        &mut self,
        mem: &Mem,
        space: MemSpace,
        addrs: &Addrs,
        mask: u32,
        cx: &mut Cx<'_>,
        shared: &Shared,
    ) -> Result<(), Trouble> {
        match (mem.bytes, mem.signed) {
            (4, _) => self.load_as::<u32, u32>(mem, space, addrs, mask, cx, shared, |x| x),
            (8 | 16, _) => self.load_as::<u64, u64>(mem, space, addrs, mask, cx, shared, |x| x),
            (1, false) => self.load_as::<u8, u32>(mem, space, addrs, mask, cx, shared, u32::from),
            (1, true) => self.load_as::<u8, u32>(mem, space, addrs, mask, cx, shared, |x| {
                i32::from(x.cast_signed()).cast_unsigned()
            }),
            (_, false) => self.load_as::<u16, u32>(mem, space, addrs, mask, cx, shared, u32::from),
            (_, true) => self.load_as::<u16, u32>(mem, space, addrs, mask, cx, shared, |x| {
                i32::from(x.cast_signed()).cast_unsigned()
            }),
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn load_as<T: Cell, O: Lane + Default>(
        &mut self,
        mem: &Mem,
        space: MemSpace,
        addrs: &Addrs,
        mask: u32,
        cx: &mut Cx<'_>,
        shared: &Shared,
        widen: impl Fn(T) -> O,
    ) -> Result<(), Trouble> {
        let total = mem.bytes * mem.regs.len() as u32;
        let steps = elements(mem);
        if space == MemSpace::Global {
            let cache = &mut cx.caches[mem.cache as usize];
            let found = cx.job.mem.check(cache, addrs, mask, total, false);
            let checked = found.map_err(|r| refused(r, total, false))?;
            for (i, r) in steps {
                let mut raw = [T::default(); LANES];
                checked.gather(i * T::BYTES, &mut raw);
                O::put(&mut self.regs, r, &raw.map(&widen), mask);
            }
            return Ok(());
        }
        let (bytes, stride) = match space {
            MemSpace::Shared => (shared.bytes.as_slice(), 0),
            MemSpace::Local => (self.local.as_slice(), cx.code.local_bytes as usize),
            _ => (cx.job.params.as_slice(), 0),
        };
        let limit = if stride == 0 { bytes.len() } else { stride };
        bounds(addrs, mask, total, limit).map_err(|r| refused(r, total, false))?;
        for (i, r) in steps {
            let mut raw = [T::default(); LANES];
            for lane in lanes(mask) {
                let at = addrs[lane] as usize + lane * stride + i * T::BYTES;
                raw[lane] = T::from_le(bytes.get(at..).unwrap_or(&[]));
            }
            O::put(&mut self.regs, r, &raw.map(&widen), mask);
        }
        Ok(())
    }

    #[inline]
    pub(super) fn store(
        &mut self,
        inst: &Inst,
        mem: &Mem,
        mask: u32,
        cx: &mut Cx<'_>,
        shared: &mut Shared,
    ) -> Result<(), Trouble> {
        let addrs = addresses(&self.regs, inst.a, mem.wide, inst.imm);
        if mem.space != MemSpace::Generic {
            return self.store_space(mem, mem.space, &addrs, mask, cx, shared);
        }
        for (space, lanes, base) in windows(&addrs, mask) {
            if lanes != 0 {
                self.store_space(
                    mem,
                    space,
                    &addrs.map(|a| a.wrapping_sub(base)),
                    lanes,
                    cx,
                    shared,
                )?;
            }
        }
        Ok(())
    }

    fn store_space(
        &mut self,
        mem: &Mem,
        space: MemSpace,
        addrs: &Addrs,
        mask: u32,
        cx: &mut Cx<'_>,
        shared: &mut Shared,
    ) -> Result<(), Trouble> {
        // Narrowing keeps the low bits, which is what a narrow store writes.
        match mem.bytes {
            1 => self.store_as::<u8, u32>(mem, space, addrs, mask, cx, shared, |x| x as u8),
            2 => self.store_as::<u16, u32>(mem, space, addrs, mask, cx, shared, |x| x as u16),
            4 => self.store_as::<u32, u32>(mem, space, addrs, mask, cx, shared, |x| x),
            _ => self.store_as::<u64, u64>(mem, space, addrs, mask, cx, shared, |x| x),
        }
    }

    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn store_as<T: Cell, I: Lane>(
        &mut self,
        mem: &Mem,
        space: MemSpace,
        addrs: &Addrs,
        mask: u32,
        cx: &mut Cx<'_>,
        shared: &mut Shared,
        narrow: impl Fn(I) -> T,
    ) -> Result<(), Trouble> {
        let total = mem.bytes * mem.regs.len() as u32;
        let steps = elements(mem);
        if space == MemSpace::Global {
            let cache = &mut cx.caches[mem.cache as usize];
            let found = cx.job.mem.check(cache, addrs, mask, total, true);
            let checked = found.map_err(|r| refused(r, total, true))?;
            for (i, r) in steps {
                checked.scatter(i * T::BYTES, &I::get(&self.regs, r).map(&narrow));
            }
            return Ok(());
        }
        let (bytes, stride) = match space {
            MemSpace::Shared => (shared.bytes.as_mut_slice(), 0),
            MemSpace::Local => (self.local.as_mut_slice(), cx.code.local_bytes as usize),
            // Parameters are read-only.
            _ => (&mut [][..], 0),
        };
        let limit = if stride == 0 { bytes.len() } else { stride };
        bounds(addrs, mask, total, limit).map_err(|r| refused(r, total, true))?;
        for (i, r) in steps {
            let values = I::get(&self.regs, r).map(&narrow);
            for lane in lanes(mask) {
                let at = addrs[lane] as usize + lane * stride + i * T::BYTES;
                values[lane].put_le(bytes.get_mut(at..).unwrap_or(&mut []));
            }
        }
        Ok(())
    }

    pub(super) fn copy_local(&mut self, to: u32, from: u32, bytes: usize, mask: u32) {
        let stride = self.local.len() / LANES;
        for lane in lanes(mask) {
            let (to, from) = (lane * stride + to as usize, lane * stride + from as usize);
            // The compiler places both ranges inside the frame.
            if to + bytes <= self.local.len() && from + bytes <= self.local.len() {
                self.local.copy_within(from..from + bytes, to);
            }
        }
    }

    pub(super) fn cp_async(
        &mut self,
        inst: &Inst,
        copy: &CpAsync,
        mask: u32,
        cx: &mut Cx<'_>,
        shared: &mut Shared,
    ) -> Result<(), Trouble> {
        let bytes = inst.imm as u32;
        let to = addresses(
            &self.regs,
            inst.a,
            copy.a_wide,
            copy.a_offset.cast_unsigned(),
        );
        let from = addresses(&self.regs, inst.b, true, copy.b_offset.cast_unsigned());
        let sizes = copy.size.map_or([bytes; LANES], |r| *self.regs.r32(r));
        bounds(&to, mask, bytes, shared.bytes.len()).map_err(|r| refused(r, bytes, true))?;
        // Nothing is read where no byte is asked for: such addresses may be anything.
        let reading = lanes(mask)
            .filter(|&l| sizes[l] > 0)
            .fold(0, |m, l| m | 1u32 << l);
        let cache = &mut cx.caches[copy.cache as usize];
        let found = cx.job.mem.check(cache, &from, reading, bytes, false);
        let checked = found.map_err(|r| refused(r, bytes, false))?;
        for word in 0..bytes as usize / 4 {
            let mut raw = [0u32; LANES];
            checked.gather(word * 4, &mut raw);
            for lane in lanes(mask) {
                let kept = (sizes[lane] as usize).saturating_sub(word * 4).min(4);
                let value = if kept == 4 {
                    raw[lane]
                } else {
                    raw[lane] & !(u32::MAX << (8 * kept))
                };
                let at = to[lane] as usize + word * 4;
                value.put_le(shared.bytes.get_mut(at..).unwrap_or(&mut []));
            }
        }
        Ok(())
    }
}

/// Index and register of each element; an element of 16 bytes is two of 8.
fn elements(mem: &Mem) -> impl Iterator<Item = (usize, R)> {
    let parts = if mem.bytes == 16 { 2 } else { 1 };
    mem.regs
        .iter()
        .enumerate()
        .filter_map(|(i, r)| Some((i, (*r)?)))
        .flat_map(move |(i, r)| (0..parts).map(move |part| (i * parts + part, r + 2 * part as u32)))
}

/// Checks offsets into a window of `limit` bytes.
#[inline(always)]
pub(super) fn bounds(addrs: &Addrs, mask: u32, bytes: u32, limit: usize) -> Result<(), Refused> {
    let size = u64::from(bytes);
    let Some(span) = (limit as u64).checked_sub(size) else {
        let lane = super::warp::first(mask);
        return if mask == 0 {
            Ok(())
        } else {
            Err(Refused {
                lane,
                addr: addrs[lane],
                misaligned: false,
            })
        };
    };
    let mut bad = 0u64;
    for (l, addr) in addrs.iter().enumerate() {
        bad |= (u64::from(*addr > span) | addr & (size - 1))
            & 0u64.wrapping_sub(u64::from(mask >> l & 1));
    }
    if bad == 0 {
        return Ok(());
    }
    let lane = lanes(mask)
        .find(|&l| addrs[l] > span || addrs[l] & (size - 1) != 0)
        .unwrap_or(0);
    Err(Refused {
        lane,
        addr: addrs[lane],
        misaligned: addrs[lane] & (size - 1) != 0,
    })
}
