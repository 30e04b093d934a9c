//! Texture fetches and surface accesses. Layers of cubes, multisampled textures and formatted surface stores are not
//! lowered; a level of detail is taken and not looked at, because textures have one level here.
#![forbid(unsafe_code)]

use super::func::{Lower, Result};
use super::mods::{Mods, cache_hint};
use crate::exec::code::{Op, Outside, Place, Surf, Tex, TexQuery};
use crate::exec::regs::R;
use crate::parse::ast::{Operand, Ty};

/// Shape of a texture as the instruction names it.
#[derive(Clone, Copy)]
struct Geometry {
    dimensions: usize,
    is_layered: bool,
}

impl Geometry {
    fn take(mods: &mut Mods<'_>) -> Result<Self> {
        let found = mods.pick(|part| {
            let (dimensions, is_layered) = match part {
                "1d" => (1, false),
                "2d" => (2, false),
                "3d" => (3, false),
                "a1d" => (1, true),
                "a2d" => (2, true),
                _ => return None,
            };
            Some(Self {
                dimensions,
                is_layered,
            })
        });
        found.ok_or_else(|| "only 1d, 2d, 3d, a1d and a2d are supported".to_owned())
    }
}

impl<'t> Lower<'_, '_, 't> {
    pub(super) fn texture(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        match mods.name() {
            "tex" => self.fetch(mods, ops),
            "tld4" => self.gather(mods, ops),
            "suld" => self.surface(mods, ops, false),
            "sust" => self.surface(mods, ops, true),
            _ => self.texture_query(mods, ops),
        }
    }

    fn fetch(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let has_level = mods.flag("level") || mods.flag("grad");
        mods.flag("base");
        let geometry = Geometry::take(mods)?;
        if !mods.flag("v4") {
            return Err("only v4 is supported".to_owned());
        }
        let (result, coordinate) = (mods.ty()?, mods.ty()?);
        let [d, texel, levels @ ..] = ops else {
            return Err("a destination and a place are needed".to_owned());
        };
        if !levels.is_empty() && !has_level {
            return Err("offsets and comparisons are not supported".to_owned());
        }
        self.emit_fetch(d, texel, geometry, (result, coordinate), None)
    }

    fn gather(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let channel = mods.pick(|part| "rgba".find(part).filter(|_| part.len() == 1));
        let channel = channel.ok_or("no channel")?;
        let geometry = Geometry::take(mods)?;
        if geometry.dimensions != 2 || !mods.flag("v4") {
            return Err("only 2d and a2d with v4 are supported".to_owned());
        }
        let (result, coordinate) = (mods.ty()?, mods.ty()?);
        let [d, texel] = ops else {
            return Err("a destination and a place are needed".to_owned());
        };
        let channel = u8::try_from(channel).ok();
        self.emit_fetch(d, texel, geometry, (result, coordinate), channel)
    }

    fn emit_fetch(
        &mut self,
        d: &Operand<'t>,
        texel: &Operand<'t>,
        geometry: Geometry,
        (result, coordinate): (Ty, Ty),
        gathers: Option<u8>,
    ) -> Result<()> {
        if !matches!(result, Ty::U32 | Ty::S32 | Ty::F32) {
            return Err("results have 32 bits".to_owned());
        }
        let is_indexed = match coordinate {
            Ty::S32 => true,
            Ty::F32 => false,
            _ => return Err("coordinates are s32 or f32".to_owned()),
        };
        let (handle, place) = self.place(texel, geometry, coordinate)?;
        let Operand::Vector(list) = d else {
            return Err("a vector of four registers is needed".to_owned());
        };
        let d: Vec<R> = list
            .iter()
            .map(|operand| self.dst(operand, result))
            .collect::<Result<_>>()?;
        let tex = Tex {
            place,
            is_indexed,
            gathers,
            d: d.try_into()
                .map_err(|_| "a vector of four registers is needed".to_owned())?,
        };
        self.emit(Op::Tex(Box::new(tex))).a = handle;
        Ok(())
    }

    /// Handle and place of `[texture, {coordinates}]`; coordinates that fill the vector up are left.
    fn place(
        &mut self,
        operand: &Operand<'t>,
        geometry: Geometry,
        coordinate: Ty,
    ) -> Result<(R, Place)> {
        let Operand::Texel(handle, given) = operand else {
            return Err("a texture and coordinates in brackets are needed".to_owned());
        };
        let handle = self.src(handle, Ty::U64)?;
        let mut given = given.iter();
        let layer = match geometry.is_layered {
            true => Some(self.src(given.next().ok_or("no layer")?, Ty::U32)?),
            false => None,
        };
        let coordinates: Vec<R> = given
            .take(geometry.dimensions)
            .map(|operand| self.src(operand, coordinate))
            .collect::<Result<_>>()?;
        if coordinates.len() != geometry.dimensions {
            return Err(format!("{} coordinates are needed", geometry.dimensions));
        }
        Ok((handle, Place { layer, coordinates }))
    }

    fn surface(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>], stores: bool) -> Result<()> {
        if !mods.flag("b") {
            return Err("only unformatted accesses are supported".to_owned());
        }
        let geometry = Geometry::take(mods)?;
        mods.ignore(cache_hint);
        let count = mods.pick(|part| match part {
            "v2" => Some(2),
            "v4" => Some(4),
            _ => None,
        });
        let ty = mods.ty()?;
        if !matches!(ty, Ty::B8 | Ty::B16 | Ty::B32 | Ty::B64) {
            return Err("elements are b8, b16, b32 or b64".to_owned());
        }
        let outside = mods.pick(|part| match part {
            "trap" => Some(Outside::Trap),
            "clamp" => Some(Outside::Clamp),
            "zero" => Some(Outside::Zero),
            _ => None,
        });
        let [first, second] = ops else {
            return Err("a place and registers are needed".to_owned());
        };
        let (texel, values) = if stores {
            (first, second)
        } else {
            (second, first)
        };
        let (handle, place) = self.place(texel, geometry, Ty::S32)?;
        let surf = Surf {
            place,
            bytes: ty.bytes(),
            stores,
            outside: outside.unwrap_or(Outside::Trap),
            regs: self.surface_registers(values, ty, count.unwrap_or(1), stores)?,
        };
        self.emit(Op::Surf(Box::new(surf))).a = handle;
        Ok(())
    }

    fn surface_registers(
        &mut self,
        operand: &Operand<'t>,
        ty: Ty,
        count: usize,
        stores: bool,
    ) -> Result<Vec<R>> {
        let list = match operand {
            Operand::Vector(list) => list.as_slice(),
            single => std::slice::from_ref(single),
        };
        if list.len() != count {
            return Err(format!("{count} registers are needed"));
        }
        let register = |operand| match stores {
            true => self.src(operand, ty),
            false => self.dst(operand, ty),
        };
        list.iter().map(register).collect()
    }

    fn texture_query(&mut self, mods: &mut Mods<'t>, ops: &[Operand<'t>]) -> Result<()> {
        let query = mods.pick(|part| match part {
            "width" => Some(TexQuery::Width),
            "height" => Some(TexQuery::Height),
            "depth" => Some(TexQuery::Depth),
            _ => None,
        });
        let query = query.ok_or("only width, height and depth are supported")?;
        let ty = mods.ty()?;
        let [d, Operand::Address(handle, 0)] = ops else {
            return Err("a destination and a texture in brackets are needed".to_owned());
        };
        let (d, handle) = (self.dst(d, ty)?, self.src(handle, Ty::U64)?);
        let inst = self.emit(Op::TexQuery(query));
        (inst.d, inst.a) = (d, handle);
        Ok(())
    }
}
