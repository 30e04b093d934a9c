//! `vprintf` and `__assertfail`: strings and arguments come from the kernel's memory.
#![forbid(unsafe_code)]

use super::access::refused;
use super::block::{Cx, Shared};
use super::code::{Inst, LOCAL_BASE, WINDOW_BYTES};
use super::mem::Refused;
use super::mem::lanes;
use super::regs::LANES;
use super::warp::{Trouble, Warp, first, set};
use crate::error::FaultKind;

/// Longest string that is read.
const STRING_BYTES_MAX: u64 = 8192;

impl Warp {
    pub(super) fn vprintf(
        &mut self,
        inst: &Inst,
        active: u32,
        cx: &mut Cx<'_>,
        shared: &Shared,
    ) -> Result<(), Trouble> {
        let (formats, values) = (*self.regs.r64(inst.a), *self.regs.r64(inst.b));
        for lane in lanes(active) {
            let format = self.string(formats[lane], lane, cx, shared)?;
            let mut at = values[lane];
            let mut out = Vec::new();
            let mut rest = format.as_slice();
            while let Some((spec, before, after)) = next_spec(rest) {
                out.extend_from_slice(before);
                rest = after;
                self.conversion(&spec, &mut at, lane, cx, shared, &mut out)?;
            }
            out.extend_from_slice(rest);
            cx.printf.extend_from_slice(&out);
        }
        set(&mut self.regs, inst.d, active, 0);
        Ok(())
    }

    fn conversion(
        &self,
        spec: &Spec,
        at: &mut u64,
        lane: usize,
        cx: &mut Cx<'_>,
        shared: &Shared,
        out: &mut Vec<u8>,
    ) -> Result<(), Trouble> {
        if spec.conversion == b'%' {
            out.push(b'%');
            return Ok(());
        }
        let mut spec = *spec;
        for (star, slot) in [
            (spec.width_star, &mut spec.width),
            (spec.precision_star, &mut spec.precision),
        ] {
            if star {
                *slot = Some(self.word(at, 4, lane, cx, shared)? as usize & 0xfff);
            }
        }
        let text = match spec.conversion {
            b'd' | b'i' if spec.wide => {
                (self.word(at, 8, lane, cx, shared)?.cast_signed()).to_string()
            }
            b'd' | b'i' => (self.word(at, 4, lane, cx, shared)? as u32)
                .cast_signed()
                .to_string(),
            b'u' | b'x' | b'X' | b'o' => {
                let value = self.word(at, if spec.wide { 8 } else { 4 }, lane, cx, shared)?;
                spec.unsigned(value)
            }
            b'c' => char::from(self.word(at, 4, lane, cx, shared)? as u8).to_string(),
            b'p' => format!("{:#x}", self.word(at, 8, lane, cx, shared)?),
            b's' => {
                let addr = self.word(at, 8, lane, cx, shared)?;
                let mut bytes = self.string(addr, lane, cx, shared)?;
                bytes.truncate(spec.precision.unwrap_or(usize::MAX));
                String::from_utf8_lossy(&bytes).into_owned()
            }
            _ => spec.float(f64::from_bits(self.word(at, 8, lane, cx, shared)?)),
        };
        spec.pad(&text, out);
        Ok(())
    }

    /// The next argument: aligned to its size in the buffer.
    fn word(
        &self,
        at: &mut u64,
        bytes: u64,
        lane: usize,
        cx: &mut Cx<'_>,
        shared: &Shared,
    ) -> Result<u64, Trouble> {
        *at = at.next_multiple_of(bytes);
        let mut value = 0;
        for i in 0..bytes {
            value |= u64::from(self.byte(*at + i, lane, cx, shared)?) << (8 * i);
        }
        *at += bytes;
        Ok(value)
    }

    /// One byte at a generic address, as one lane sees it.
    fn byte(
        &self,
        addr: u64,
        lane: usize,
        cx: &mut Cx<'_>,
        shared: &Shared,
    ) -> Result<u8, Trouble> {
        let bad = || {
            refused(
                Refused {
                    lane,
                    addr,
                    misaligned: false,
                },
                1,
                false,
            )
        };
        let offset = addr % WINDOW_BYTES;
        match addr / WINDOW_BYTES {
            0 => {
                let mut cache = super::mem::NOWHERE;
                let addrs = [addr; LANES];
                let checked = cx.job.mem.check(&mut cache, &addrs, 1 << lane, 1, false);
                let mut out = [0u8; LANES];
                checked
                    .map_err(|r| refused(r, 1, false))?
                    .gather(0, &mut out);
                Ok(out[lane])
            }
            1 => usize::try_from(offset)
                .ok()
                .and_then(|at| shared.bytes.get(at))
                .copied()
                .ok_or_else(bad),
            2 => {
                let stride = self.local.len() / LANES;
                let at = usize::try_from(addr - LOCAL_BASE).map_err(|_| bad())?;
                if at >= stride {
                    return Err(bad());
                }
                Ok(self.local[lane * stride + at])
            }
            _ => Err(bad()),
        }
    }

    fn string(
        &self,
        addr: u64,
        lane: usize,
        cx: &mut Cx<'_>,
        shared: &Shared,
    ) -> Result<Vec<u8>, Trouble> {
        let mut bytes = Vec::new();
        for i in 0..STRING_BYTES_MAX {
            match self.byte(addr.wrapping_add(i), lane, cx, shared)? {
                0 => break,
                byte => bytes.push(byte),
            }
        }
        Ok(bytes)
    }

    pub(super) fn assert_fail(
        &self,
        inst: &Inst,
        active: u32,
        cx: &mut Cx<'_>,
        shared: &Shared,
    ) -> Trouble {
        let lane = first(active);
        let mut text = |r: u32| {
            let bytes = self
                .string(self.regs.r64(r)[lane], lane, cx, shared)
                .unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let kind = FaultKind::Assert {
            message: text(inst.a),
            file: text(inst.b),
            function: text(inst.d),
            line: self.regs.r32(inst.c)[lane],
        };
        Trouble { lane, kind }
    }
}

/// A conversion of a format string.
#[derive(Debug, Clone, Copy, Default)]
struct Spec {
    left: bool,
    zero: bool,
    plus: bool,
    space: bool,
    alternate: bool,
    width: Option<usize>,
    width_star: bool,
    precision: Option<usize>,
    precision_star: bool,
    wide: bool,
    conversion: u8,
}

/// The first conversion, what is before it and what follows.
fn next_spec(format: &[u8]) -> Option<(Spec, &[u8], &[u8])> {
    let percent = format.iter().position(|&b| b == b'%')?;
    let mut rest = &format[percent + 1..];
    let mut spec = Spec::default();
    loop {
        match rest.first()? {
            b'-' => spec.left = true,
            b'0' => spec.zero = true,
            b'+' => spec.plus = true,
            b' ' => spec.space = true,
            b'#' => spec.alternate = true,
            _ => break,
        }
        rest = &rest[1..];
    }
    (spec.width, spec.width_star, rest) = number(rest);
    if let [b'.', after @ ..] = rest {
        (spec.precision, spec.precision_star, rest) = number(after);
        spec.precision = spec.precision.or(Some(0));
    }
    let mut longs = 0;
    while let [b'l' | b'h' | b'z' | b'j' | b't' | b'L', after @ ..] = rest {
        longs += u32::from(rest[0] != b'h');
        rest = after;
    }
    spec.wide = longs > 0;
    spec.conversion = *rest.first()?;
    Some((spec, &format[..percent], &rest[1..]))
}

fn number(mut text: &[u8]) -> (Option<usize>, bool, &[u8]) {
    if let [b'*', after @ ..] = text {
        return (None, true, after);
    }
    let mut value = None;
    while let [digit @ b'0'..=b'9', after @ ..] = text {
        let next: usize = value.unwrap_or(0) * 10 + usize::from(digit - b'0');
        value = Some(next.min(4095));
        text = after;
    }
    (value, false, text)
}

impl Spec {
    fn unsigned(&self, value: u64) -> String {
        match (self.conversion, self.alternate) {
            (b'x', false) => format!("{value:x}"),
            (b'x', true) => format!("{value:#x}"),
            (b'X', false) => format!("{value:X}"),
            (b'X', true) => format!("0X{value:X}"),
            (b'o', _) => format!("{value:o}"),
            _ => value.to_string(),
        }
    }

    fn float(&self, value: f64) -> String {
        let precision = self.precision.unwrap_or(6);
        if !value.is_finite() {
            let text = if value.is_nan() {
                "nan"
            } else if value > 0.0 {
                "inf"
            } else {
                "-inf"
            };
            return text.to_owned();
        }
        match self.conversion {
            b'e' | b'E' => exponential(value, precision, self.conversion),
            b'g' | b'G' => self.general(value, precision.max(1)),
            _ => format!("{value:.precision$}"),
        }
    }

    /// `%g`: the shorter of `%e` and `%f`, zeros at the end dropped.
    fn general(&self, value: f64, precision: usize) -> String {
        let scientific = format!("{value:.*e}", precision - 1);
        let exponent: i64 = scientific
            .split_once('e')
            .and_then(|(_, e)| e.parse().ok())
            .unwrap_or(0);
        let in_range = exponent >= -4 && exponent < precision as i64;
        let text = if in_range {
            format!(
                "{value:.*}",
                usize::try_from(precision as i64 - 1 - exponent).unwrap_or(0)
            )
        } else {
            exponential(
                value,
                precision - 1,
                if self.conversion == b'g' { b'e' } else { b'E' },
            )
        };
        if self.alternate || !text.contains('.') {
            return text;
        }
        let (digits, tail) = text.split_at(text.find(['e', 'E']).unwrap_or(text.len()));
        format!(
            "{}{tail}",
            digits.trim_end_matches('0').trim_end_matches('.')
        )
    }

    fn pad(&self, text: &str, out: &mut Vec<u8>) {
        let integer = matches!(self.conversion, b'd' | b'i' | b'u' | b'x' | b'X' | b'o');
        let (mut sign, mut digits) = match text.strip_prefix('-') {
            Some(digits) if !matches!(self.conversion, b's' | b'c') => ("-", digits.to_owned()),
            _ => ("", text.to_owned()),
        };
        if sign.is_empty()
            && matches!(
                self.conversion,
                b'd' | b'i' | b'f' | b'F' | b'e' | b'E' | b'g' | b'G'
            )
        {
            sign = if self.plus {
                "+"
            } else if self.space {
                " "
            } else {
                ""
            };
        }
        if integer && let Some(precision) = self.precision {
            digits = format!(
                "{}{digits}",
                "0".repeat(precision.saturating_sub(digits.len()))
            );
        }
        let fill = self
            .width
            .unwrap_or(0)
            .saturating_sub(sign.len() + digits.len());
        let zeros = self.zero
            && !self.left
            && !(integer && self.precision.is_some())
            && self.conversion != b's';
        let text = match (self.left, zeros) {
            (true, _) => format!("{sign}{digits}{}", " ".repeat(fill)),
            (false, true) => format!("{sign}{}{digits}", "0".repeat(fill)),
            (false, false) => format!("{}{sign}{digits}", " ".repeat(fill)),
        };
        out.extend_from_slice(text.as_bytes());
    }
}

/// `1.5e+03`: C writes a sign and at least two digits.
fn exponential(value: f64, precision: usize, letter: u8) -> String {
    let text = format!("{value:.precision$e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i64 = exponent.parse().unwrap_or(0);
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}{}{sign}{:02}", char::from(letter), exponent.abs())
}
