//! Matrix fragments: `mma.sync.m16n8kK` and `ldmatrix`. Products are summed in double precision.
#![forbid(unsafe_code)]

use super::access::{addresses, refused};
use super::block::Shared;
use super::code::{Inst, LdMatrix, Mma, MmaIn, SHARED_BASE};
use super::mem::Refused;
use super::num::{Bf16, F16};
use super::regs::{LANES, Lane, R};
use super::warp::{Trouble, Warp, first};

impl Warp {
    /// Element `part` of a fragment register as a double (integers are exact there).
    fn element(&self, regs: &[R], lane: usize, at: usize, input: MmaIn, second: bool) -> f64 {
        let word = |per: usize| self.regs.r32(regs[at / per])[lane] >> (32 / per * (at % per));
        match input {
            MmaIn::F16 => F16(word(2) as u16).f32().into(),
            MmaIn::Bf16 => Bf16(word(2) as u16).f32().into(),
            MmaIn::Tf32 => f32::from_bits(self.regs.r32(regs[at])[lane] & !0x1fff).into(),
            MmaIn::I8 { a_signed, b_signed } => {
                let byte = word(4) as u8;
                let signed = if second { b_signed } else { a_signed };
                if signed {
                    f64::from(byte.cast_signed())
                } else {
                    f64::from(byte)
                }
            }
        }
    }

    /// D = A x B + C on 16 x 8 results; fragments are laid out as the PTX ISA draws them.
    pub(super) fn mma(&mut self, mma: &Mma, active: u32) {
        let k_all = mma.k as usize;
        // Elements that sit side by side in one register.
        let per = match mma.input {
            MmaIn::Tf32 => 1,
            MmaIn::I8 { .. } => 4,
            _ => 2,
        };
        let mut a = vec![[0f64; 64]; 16];
        let mut b = vec![[0f64; 8]; k_all];
        for lane in 0..LANES {
            let (group, thread) = (lane / 4, lane % 4);
            for (r, _) in mma.a.iter().enumerate() {
                for i in 0..per {
                    let row = group + 8 * (r % 2);
                    let col = thread * per + i + 4 * per * (r / 2);
                    a[row][col] = self.element(&mma.a, lane, r * per + i, mma.input, false);
                }
            }
            for (r, _) in mma.b.iter().enumerate() {
                for i in 0..per {
                    let row = thread * per + i + 4 * per * r;
                    b[row][group] = self.element(&mma.b, lane, r * per + i, mma.input, true);
                }
            }
        }
        let mut out = vec![[0u32; LANES]; mma.d.len()];
        for lane in 0..LANES {
            let (group, thread) = (lane / 4, lane % 4);
            for i in 0..4 {
                let (row, col) = (group + 8 * (i / 2), thread * 2 + i % 2);
                let sum: f64 = (0..k_all).map(|k| a[row][k] * b[k][col]).sum();
                self.accumulate(mma, lane, i, sum, &mut out);
            }
        }
        for (r, values) in mma.d.iter().zip(&out) {
            u32::put(&mut self.regs, *r, values, active);
        }
    }

    fn accumulate(&self, mma: &Mma, lane: usize, i: usize, sum: f64, out: &mut [[u32; LANES]]) {
        if mma.half_out {
            let c = F16((self.regs.r32(mma.c[i / 2])[lane] >> (16 * (i % 2))) as u16);
            let d = F16::of_f64(sum + f64::from(c.f32()));
            out[i / 2][lane] |= u32::from(d.0) << (16 * (i % 2));
        } else if matches!(mma.input, MmaIn::I8 { .. }) {
            let c = self.regs.r32(mma.c[i])[lane].cast_signed();
            // 32 products of bytes are far below 2^53.
            out[i][lane] = c.wrapping_add(sum as i32).cast_unsigned();
        } else {
            let c = f32::from_bits(self.regs.r32(mma.c[i])[lane]);
            out[i][lane] = ((sum + f64::from(c)) as f32).to_bits();
        }
    }

    /// Lanes 8i..8i+8 hold the addresses of the rows of matrix i.
    pub(super) fn ldmatrix(
        &mut self,
        inst: &Inst,
        ld: &LdMatrix,
        active: u32,
        shared: &Shared,
    ) -> Result<(), Trouble> {
        let base = if ld.generic { SHARED_BASE } else { 0 };
        let addrs = addresses(&self.regs, inst.a, ld.wide, inst.imm).map(|a| a.wrapping_sub(base));
        for (matrix, r) in ld.d.iter().enumerate() {
            let mut rows = [[0u16; 8]; 8];
            for (row, values) in rows.iter_mut().enumerate() {
                let lane = matrix * 8 + row;
                let addr = addrs[lane];
                let bytes = usize::try_from(addr)
                    .ok()
                    .and_then(|at| shared.bytes.get(at..at.checked_add(16)?));
                let (misaligned, Some(bytes)) = (addr % 16 != 0, bytes) else {
                    return Err(refused(
                        Refused {
                            lane,
                            addr,
                            misaligned: false,
                        },
                        16,
                        false,
                    ));
                };
                if misaligned {
                    return Err(refused(
                        Refused {
                            lane: first(active),
                            addr,
                            misaligned,
                        },
                        16,
                        false,
                    ));
                }
                for (value, pair) in values.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = u16::from_le_bytes([pair[0], pair[1]]);
                }
            }
            let values = std::array::from_fn(|lane| {
                let (row, col) = (lane / 4, lane % 4 * 2);
                let (lo, hi) = if ld.transpose {
                    (rows[col][row], rows[col + 1][row])
                } else {
                    (rows[row][col], rows[row][col + 1])
                };
                u32::from(lo) | u32::from(hi) << 16
            });
            u32::put(&mut self.regs, *r, &values, active);
        }
        Ok(())
    }
}
