//! Texture fetches and surface accesses. Every texel is global memory and is checked as such: what a handle leads to is the
//! program's to write.
#![forbid(unsafe_code)]
// Weights and coordinates are floats.
#![allow(clippy::cast_precision_loss)]

use super::access::refused;
use super::block::Cx;
use super::code::{Inst, Outside, Place, Surf, Tex, TexQuery};
use super::mem::{Cell, NOWHERE, lanes};
use super::regs::{LANES, Lane as _, R};
use super::warp::{Trouble, Warp};
use crate::api::Region;
use crate::error::FaultKind;
use crate::texture::{Coordinate, Taps, Texture, WORDS};

/// Global memory as one lane sees it.
struct Memory<'c, 'j> {
    cx: &'c Cx<'j>,
    lane: usize,
    cache: Region,
}

impl Memory<'_, '_> {
    fn check(
        &mut self,
        addr: u64,
        bytes: usize,
        write: bool,
        touch: impl FnOnce(super::mem::Checked<'_>),
    ) -> Result<(), Trouble> {
        let (addrs, bytes) = ([addr; LANES], bytes as u32);
        let found = (self.cx.job.mem).check(&mut self.cache, &addrs, 1 << self.lane, bytes, write);
        touch(found.map_err(|r| refused(r, bytes, write))?);
        Ok(())
    }

    fn read<T: Cell>(&mut self, addr: u64) -> Result<T, Trouble> {
        let (lane, mut values) = (self.lane, [T::default(); LANES]);
        self.check(addr, T::BYTES, false, |range| range.gather(0, &mut values))?;
        Ok(values[lane])
    }

    fn write<T: Cell>(&mut self, addr: u64, value: T) -> Result<(), Trouble> {
        self.check(addr, T::BYTES, true, |range| {
            range.scatter(0, &[value; LANES])
        })
    }

    /// What the handle stands for.
    fn texture(&mut self, handle: u64) -> Result<Texture, Trouble> {
        let mut words = [0; WORDS];
        for (at, word) in words.iter_mut().enumerate() {
            *word = self.read(handle.wrapping_add(4 * at as u64))?;
        }
        Texture::decode(&words).ok_or_else(|| Trouble {
            lane: self.lane,
            kind: FaultKind::IllegalInstruction(format!(
                "{handle:#x} is no texture or surface object"
            )),
        })
    }

    /// The channels of a texel as they are stored; those that it has not are zero.
    fn texel(&mut self, texture: &Texture, at: [u32; 3]) -> Result<[u32; 4], Trouble> {
        let address = texture.texel_address(at);
        let bytes = texture.format.bytes();
        let mut channels = [0; 4];
        for (number, channel) in (0..texture.channels).zip(&mut channels) {
            let address = address.wrapping_add(u64::from(number * bytes));
            *channel = match bytes {
                1 => u32::from(self.read::<u8>(address)?),
                2 => u32::from(self.read::<u16>(address)?),
                _ => self.read::<u32>(address)?,
            };
        }
        Ok(channels)
    }

    /// What a fetch of one texel gives; none is the border.
    fn value(&mut self, texture: &Texture, at: Option<[u32; 3]>) -> Result<[u32; 4], Trouble> {
        let stored = match at {
            Some(at) => Some(self.texel(texture, at)?),
            None => None,
        };
        Ok(std::array::from_fn(|channel| {
            if channel as u32 >= texture.channels {
                return 0;
            }
            match &stored {
                Some(stored) => texture.channel(stored[channel], channel < 3),
                None => texture.border_channel(channel),
            }
        }))
    }

    /// All channels at one place.
    fn sample(&mut self, texture: &Texture, taps: &[Taps; 3]) -> Result<[u32; 4], Trouble> {
        if !texture.filters() {
            return self.value(texture, place(taps.map(|tap| tap.indices[0])));
        }
        let mut sums = [0.0_f32; 4];
        for (z, z_weight) in taps[2].weighted() {
            for (y, y_weight) in taps[1].weighted() {
                for (x, x_weight) in taps[0].weighted() {
                    let weight = x_weight * y_weight * z_weight;
                    if weight == 0.0 {
                        continue;
                    }
                    let value = self.value(texture, place([x, y, z]))?;
                    for (sum, bits) in sums.iter_mut().zip(value) {
                        *sum += weight * f32::from_bits(bits);
                    }
                }
            }
        }
        Ok(sums.map(f32::to_bits))
    }

    /// One channel of the four texels around a place, in the order that `tld4` defines: the lower left, the lower right,
    /// the upper right, the upper left.
    fn gather(
        &mut self,
        texture: &Texture,
        taps: &[Taps; 3],
        channel: u8,
    ) -> Result<[u32; 4], Trouble> {
        let ([x0, x1], [y0, y1]) = (taps[0].indices, taps[1].indices);
        let z = taps[2].indices[0];
        let mut values = [0; 4];
        for (value, (x, y)) in values
            .iter_mut()
            .zip([(x0, y1), (x1, y1), (x1, y0), (x0, y0)])
        {
            *value = self.value(texture, place([x, y, z]))?[usize::from(channel)];
        }
        Ok(values)
    }
}

/// The texel at these indices; one that is outside makes it the border.
fn place([x, y, z]: [Option<u32>; 3]) -> Option<[u32; 3]> {
    Some([x?, y?, z?])
}

/// The only texel along a dimension that there is not.
const ONLY: Taps = Taps {
    indices: [Some(0); 2],
    weight: 0.0,
};

impl Warp {
    pub(super) fn texture(
        &mut self,
        inst: &Inst,
        tex: &Tex,
        mask: u32,
        cx: &Cx<'_>,
    ) -> Result<(), Trouble> {
        let handles = *self.regs.r64(inst.a);
        let mut results = [[0; LANES]; 4];
        let mut known: Option<(u64, Texture)> = None;
        let mut cache = NOWHERE;
        for lane in lanes(mask) {
            let mut memory = Memory { cx, lane, cache };
            let texture = match known {
                Some((handle, texture)) if handle == handles[lane] => texture,
                _ => memory.texture(handles[lane])?,
            };
            known = Some((handles[lane], texture));
            let taps = self.taps(&texture, tex, lane);
            let value = match tex.gathers {
                Some(channel) => memory.gather(&texture, &taps, channel)?,
                None => memory.sample(&texture, &taps)?,
            };
            for (result, value) in results.iter_mut().zip(value) {
                result[lane] = value;
            }
            cache = memory.cache;
        }
        for (d, result) in tex.d.iter().zip(&results) {
            u32::put(&mut self.regs, *d, result, mask);
        }
        Ok(())
    }

    /// Where a lane's fetch looks, along each dimension.
    fn taps(&self, texture: &Texture, tex: &Tex, lane: usize) -> [Taps; 3] {
        let mut taps = [ONLY; 3];
        let filtered = texture.filters() || tex.gathers.is_some();
        for (axis, (tap, r)) in taps.iter_mut().zip(&tex.place.coordinates).enumerate() {
            let bits = self.regs.r32(*r)[lane];
            let at = if tex.is_indexed {
                Coordinate::Index(i64::from(bits.cast_signed()))
            } else {
                Coordinate::Real(f32::from_bits(bits))
            };
            *tap = texture.taps(axis, at, filtered);
        }
        if let Some(layer) = self.layer(&tex.place, texture, lane) {
            taps[2].indices = [Some(layer); 2];
        }
        taps
    }

    /// A layer beyond the last one is the last one.
    fn layer(&self, place: &Place, texture: &Texture, lane: usize) -> Option<u32> {
        let layer = self.regs.r32(place.layer?)[lane];
        Some(layer.min(texture.depth - 1))
    }

    pub(super) fn surface(
        &mut self,
        inst: &Inst,
        surf: &Surf,
        mask: u32,
        cx: &Cx<'_>,
    ) -> Result<(), Trouble> {
        let handles = *self.regs.r64(inst.a);
        let mut loaded = vec![[0_u64; LANES]; surf.regs.len()];
        let mut cache = NOWHERE;
        for lane in lanes(mask) {
            let mut memory = Memory { cx, lane, cache };
            let surface = memory.texture(handles[lane])?;
            let Some(address) = self.surface_address(surf, &surface, lane)? else {
                continue;
            };
            for (number, (values, r)) in loaded.iter_mut().zip(&surf.regs).enumerate() {
                let address = address.wrapping_add(u64::from(surf.bytes) * number as u64);
                if surf.stores {
                    memory.put(address, surf.bytes, self.lane_bits(*r, surf.bytes, lane))?;
                } else {
                    values[lane] = memory.get(address, surf.bytes)?;
                }
            }
            cache = memory.cache;
        }
        if surf.stores {
            return Ok(());
        }
        for (r, values) in surf.regs.iter().zip(&loaded) {
            match surf.bytes {
                8 => u64::put(&mut self.regs, *r, values, mask),
                _ => u32::put(&mut self.regs, *r, &values.map(|v| v as u32), mask),
            }
        }
        Ok(())
    }

    fn lane_bits(&self, r: R, bytes: u32, lane: usize) -> u64 {
        match bytes {
            8 => self.regs.r64(r)[lane],
            _ => u64::from(self.regs.r32(r)[lane]),
        }
    }

    /// First byte of a surface access; none if it is outside and that is to be ignored.
    fn surface_address(
        &self,
        surf: &Surf,
        surface: &Texture,
        lane: usize,
    ) -> Result<Option<u64>, Trouble> {
        let bytes = surf.bytes * surf.regs.len() as u32;
        let texel = surface.format.bytes() * surface.channels;
        let row = surface.width.saturating_mul(texel);
        let mut at = [0_u32; 3];
        for (axis, (at, r)) in at.iter_mut().zip(&surf.place.coordinates).enumerate() {
            let given = i64::from(self.regs.r32(*r)[lane].cast_signed());
            // The last place of an access that is inside.
            let last = match axis {
                0 => i64::from(row) - i64::from(bytes),
                1 => i64::from(surface.height) - 1,
                _ => i64::from(surface.depth) - 1,
            };
            let inside = (0..=last).contains(&given);
            *at = match surf.outside {
                _ if inside => given as u32,
                Outside::Clamp if last >= 0 => given.clamp(0, last) as u32,
                Outside::Zero | Outside::Clamp => return Ok(None),
                Outside::Trap => {
                    return Err(Trouble {
                        lane,
                        kind: FaultKind::IllegalAddress {
                            addr: surface.address,
                            bytes,
                            write: surf.stores,
                        },
                    });
                }
            };
        }
        if let Some(layer) = self.layer(&surf.place, surface, lane) {
            at[2] = layer;
        }
        let start = surface.texel_address([0, at[1], at[2]]);
        Ok(Some(start.wrapping_add(u64::from(at[0]))))
    }

    pub(super) fn texture_query(
        &mut self,
        inst: &Inst,
        query: TexQuery,
        mask: u32,
        cx: &Cx<'_>,
    ) -> Result<(), Trouble> {
        let handles = *self.regs.r64(inst.a);
        let mut results = [0_u32; LANES];
        for lane in lanes(mask) {
            let cache = NOWHERE;
            let texture = Memory { cx, lane, cache }.texture(handles[lane])?;
            results[lane] = match query {
                TexQuery::Width => texture.width,
                TexQuery::Height => texture.height,
                TexQuery::Depth => texture.depth,
            };
        }
        u32::put(&mut self.regs, inst.d, &results, mask);
        Ok(())
    }
}

impl Memory<'_, '_> {
    fn get(&mut self, addr: u64, bytes: u32) -> Result<u64, Trouble> {
        Ok(match bytes {
            1 => u64::from(self.read::<u8>(addr)?),
            2 => u64::from(self.read::<u16>(addr)?),
            4 => u64::from(self.read::<u32>(addr)?),
            _ => self.read(addr)?,
        })
    }

    fn put(&mut self, addr: u64, bytes: u32, bits: u64) -> Result<(), Trouble> {
        match bytes {
            1 => self.write(addr, bits as u8),
            2 => self.write(addr, bits as u16),
            4 => self.write(addr, bits as u32),
            _ => self.write(addr, bits),
        }
    }
}
