//! Sizes as people write them: `8GiB`, `512M`, `1.5G`, `1073741824`.
#![forbid(unsafe_code)]

use thiserror::Error;

/// Why a text is no size.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum SizeError {
    /// Not a number with a unit.
    #[error(
        "{0:?} is not a size; write a number of bytes, or a number with K, M, G or T (times 1024), KB, MB, GB or TB (times 1000): 8G, 512MiB, 1.5G"
    )]
    Syntax(String),
    /// Zero bytes.
    #[error("a size of 0 gives no memory; leave it out for no limit")]
    Zero,
    /// More than 2^64 - 1 bytes.
    #[error("{0:?} is more than 16 EiB")]
    TooLarge(String),
}

/// Bytes meant by `text`. `K`, `M`, `G`, `T` (also `Ki`, `KiB`, and so on) are powers of 1024, `KB`, `MB`,
/// `GB`, `TB` powers of 1000; case does not matter; a fraction is allowed before a unit and rounds down.
///
/// # Errors
/// Says what is allowed; zero is refused.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let syntax = || SizeError::Syntax(text.to_owned());
    let trimmed = text.trim();
    let digits_end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let unit_bytes = unit_bytes(unit.trim_start()).ok_or_else(syntax)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if unit_bytes > 1 && is_digits(fraction) => (whole, fraction),
        Some(_) => return Err(syntax()),
        None => (number, ""),
    };
    if !is_digits(whole) {
        return Err(syntax());
    }
    let bytes =
        scaled(whole, fraction, unit_bytes).ok_or_else(|| SizeError::TooLarge(text.to_owned()))?;
    if bytes == 0 {
        Err(SizeError::Zero)
    } else {
        Ok(bytes)
    }
}

/// `bytes` for people, with at most one decimal: `512 B`, `1.5 GiB`. Rounds down, so that what is
/// called free is free.
#[must_use]
#[expect(
    clippy::arithmetic_side_effects,
    reason = "u128 holds ten times any u64; the divisor is a power of two"
)]
pub fn format_size(bytes: u64) -> String {
    let exponent = bytes.checked_ilog2().unwrap_or(0) / 10;
    let unit = match exponent {
        0 => return format!("{bytes} B"),
        1 => "KiB",
        2 => "MiB",
        3 => "GiB",
        4 => "TiB",
        5 => "PiB",
        _ => "EiB",
    };
    let unit_bytes = 1_u128 << (10 * exponent.min(6));
    let tenths = (u128::from(bytes) * 10) / unit_bytes;
    match tenths % 10 {
        0 => format!("{} {unit}", tenths / 10),
        tenth => format!("{}.{tenth} {unit}", tenths / 10),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())
}

fn unit_bytes(unit: &str) -> Option<u64> {
    let unit = unit.to_ascii_lowercase();
    let (prefix, base) = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('i')) {
        Some(prefix) => (prefix, 1024_u64),
        None => match unit.strip_suffix('b') {
            Some(prefix) => (prefix, 1000),
            None => (unit.as_str(), 1024),
        },
    };
    let power = match prefix {
        "" if unit.is_empty() || unit == "b" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return None,
    };
    base.checked_pow(power)
}

/// `whole.fraction * unit_bytes` without floating point; `None` where it does not fit.
fn scaled(whole: &str, fraction: &str, unit_bytes: u64) -> Option<u64> {
    let unit = u128::from(unit_bytes);
    let whole_bytes = whole.parse::<u128>().ok()?.checked_mul(unit)?;
    // Twelve decimals are finer than one byte of any unit that a size here can have.
    let decimals = fraction.get(..12).unwrap_or(fraction);
    let scale = 10_u128.checked_pow(u32::try_from(decimals.len()).ok()?)?;
    let numerator = if decimals.is_empty() {
        0
    } else {
        decimals.parse::<u128>().ok()?
    };
    let fraction_bytes = numerator.checked_mul(unit)?.checked_div(scale)?;
    u64::try_from(whole_bytes.checked_add(fraction_bytes)?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )]
    use super::{SizeError, format_size, parse_size};
    use proptest::prelude::*;

    #[test]
    fn units() {
        for (text, bytes) in [
            ("1", 1),
            ("512", 512),
            ("512b", 512),
            ("4k", 4096),
            ("4K", 4096),
            ("4KiB", 4096),
            ("4kb", 4000),
            ("512M", 512 << 20),
            ("512 MiB", 512 << 20),
            ("8GiB", 8 << 30),
            ("8Gi", 8 << 30),
            ("8GB", 8_000_000_000),
            ("1.5G", 3 << 29),
            ("0.1GB", 100_000_000),
            ("2T", 2 << 40),
            (" 7 ", 7),
            ("1.99999999999999999999K", 2047),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn refused() {
        for text in [
            "", "G", "x", "1.5", "1.G", ".5G", "-1", "1e9", "8 G i", "1Q", "8GGB", "ib", "i", "1i",
            "+3", "1_000",
        ] {
            assert_eq!(
                parse_size(text),
                Err(SizeError::Syntax(text.to_owned())),
                "{text}"
            );
        }
        assert_eq!(parse_size("0"), Err(SizeError::Zero));
        assert_eq!(parse_size("0.0G"), Err(SizeError::Zero));
        for text in [
            "18446744073709551616",
            "16777216T",
            "99999999999999999999999999999999999999999999",
        ] {
            assert_eq!(
                parse_size(text),
                Err(SizeError::TooLarge(text.to_owned())),
                "{text}"
            );
        }
        assert_eq!(parse_size("18446744073709551615"), Ok(u64::MAX));
    }

    #[test]
    fn formatted() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (3 << 29, "1.5 GiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (80 << 30, "80 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(format_size(bytes), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_parses_or_is_refused(text in "\\PC*") {
            let _ = parse_size(&text);
        }

        #[test]
        fn number_and_unit_multiply(number in 1_u64..1 << 20, unit in 0_usize..5) {
            let (suffix, shift) = [("", 0), ("K", 10), ("M", 20), ("GiB", 30), ("T", 40)][unit];
            prop_assert_eq!(parse_size(&format!("{number}{suffix}")), Ok(number << shift));
        }
    }
}
