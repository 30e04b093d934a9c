//! Textures and surfaces: what a handle stands for, and what a texel is.
//!
//! Addressing and filtering follow the CUDA C++ Programming Guide, "Texture Fetching": coordinates become indices by the
//! texture's address modes, and linear filtering weighs neighbours with fractions of 8 bits.
#![forbid(unsafe_code)]
// Coordinates are floats and indices are not; sizes are far below what either holds exactly, and weights are bits.
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss
)]

use crate::exec::regs::F16;

/// What a texture or surface object stands for. On this device the object's handle is the address of the encoded form, in
/// device memory of the session that made it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Texture {
    /// First texel.
    pub address: u64,
    /// Texels of a row; 1 or more.
    pub width: u32,
    /// Rows; 1 for one dimension.
    pub height: u32,
    /// Slices, or layers; 1 for less than three dimensions.
    pub depth: u32,
    /// From one row to the next.
    pub row_bytes: u32,
    /// Kind of each channel.
    pub format: Format,
    /// Channels of a texel: 1, 2 or 4.
    pub channels: u32,
    /// What coordinates outside mean, per dimension.
    pub modes: [AddressMode; 3],
    /// Weighs neighbours; otherwise the nearest texel is taken.
    pub is_linear: bool,
    /// Coordinates go from 0 to 1.
    pub is_normalized: bool,
    /// Channels of 8 or 16 bits are read as the integers that they are, and not as fractions.
    pub reads_integers: bool,
    /// Colours are stored in sRGB.
    pub is_srgb: bool,
    /// Plain memory, of which everything outside reads as zero.
    pub is_plain: bool,
    /// What lies outside, for [`AddressMode::Border`].
    pub border: [f32; 4],
}

/// Kind of a channel: `CUarray_format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Unsigned, 8 bits.
    U8,
    /// Unsigned, 16 bits.
    U16,
    /// Unsigned, 32 bits.
    U32,
    /// Signed, 8 bits.
    S8,
    /// Signed, 16 bits.
    S16,
    /// Signed, 32 bits.
    S32,
    /// Floating point, 16 bits.
    F16,
    /// Floating point, 32 bits.
    F32,
}

/// What a coordinate outside of a texture means: `CUaddress_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressMode {
    /// The texture repeats.
    Wrap,
    /// The last texel goes on.
    Clamp,
    /// The texture repeats, every other time mirrored.
    Mirror,
    /// The border colour.
    Border,
}

impl Format {
    const CODES: [(u32, Self); 8] = [
        (0x01, Self::U8),
        (0x02, Self::U16),
        (0x03, Self::U32),
        (0x08, Self::S8),
        (0x09, Self::S16),
        (0x0a, Self::S32),
        (0x10, Self::F16),
        (0x20, Self::F32),
    ];

    /// Of its number in `CUarray_format`.
    #[must_use]
    pub fn of_code(code: u32) -> Option<Self> {
        let found = Self::CODES.iter().find(|(known, _)| *known == code);
        found.map(|(_, format)| *format)
    }

    fn code(self) -> u32 {
        let found = Self::CODES.iter().find(|(_, format)| *format == self);
        found.map_or(0, |(code, _)| *code)
    }

    /// Bytes of a channel.
    #[must_use]
    pub fn bytes(self) -> u32 {
        match self {
            Self::U8 | Self::S8 => 1,
            Self::U16 | Self::S16 | Self::F16 => 2,
            Self::U32 | Self::S32 | Self::F32 => 4,
        }
    }
}

impl AddressMode {
    /// Of its number in `CUaddress_mode`.
    #[must_use]
    pub fn of_code(code: u32) -> Option<Self> {
        [Self::Wrap, Self::Clamp, Self::Mirror, Self::Border]
            .get(code as usize)
            .copied()
    }

    /// The index of `at` among `size` texels; none is the border.
    fn index(self, at: i64, size: u32) -> Option<u32> {
        let size = i64::from(size);
        let index = match self {
            Self::Wrap => at.rem_euclid(size),
            Self::Clamp => at.clamp(0, size - 1),
            Self::Mirror => {
                let at = at.rem_euclid(2 * size);
                at.min(2 * size - 1 - at)
            }
            Self::Border if at < 0 || at >= size => return None,
            Self::Border => at,
        };
        u32::try_from(index).ok()
    }
}

/// Tells an encoded texture from other memory.
const MAGIC: u32 = 0x5458_4346;
/// Words of the encoded form.
pub(crate) const WORDS: usize = 20;

impl Texture {
    /// Bytes of the encoded form.
    pub const ENCODED_BYTES: usize = 4 * WORDS;

    /// The form in device memory.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::ENCODED_BYTES] {
        let flags = [
            self.is_linear,
            self.is_normalized,
            self.reads_integers,
            self.is_srgb,
            self.is_plain,
        ];
        let flags = (0..)
            .zip(flags)
            .fold(0, |bits, (bit, flag)| bits | u32::from(flag) << bit);
        let words: [u32; WORDS] = [
            MAGIC,
            self.address as u32,
            (self.address >> 32) as u32,
            self.width,
            self.height,
            self.depth,
            self.row_bytes,
            self.format.code(),
            self.channels,
            self.modes[0] as u32,
            self.modes[1] as u32,
            self.modes[2] as u32,
            flags,
            self.border[0].to_bits(),
            self.border[1].to_bits(),
            self.border[2].to_bits(),
            self.border[3].to_bits(),
            0,
            0,
            0,
        ];
        let mut bytes = [0; Self::ENCODED_BYTES];
        for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads the encoded form; none if it is something else. A program may have written to it, so nothing follows for
    /// the addresses that it leads to.
    pub(crate) fn decode(words: &[u32; WORDS]) -> Option<Self> {
        let flag = |bit: u32| words[12] >> bit & 1 != 0;
        let is_texture = words[0] == MAGIC
            && words[3..6].iter().all(|edge| *edge > 0)
            && matches!(words[8], 1 | 2 | 4);
        if !is_texture {
            return None;
        }
        Some(Self {
            address: u64::from(words[2]) << 32 | u64::from(words[1]),
            width: words[3],
            height: words[4],
            depth: words[5],
            row_bytes: words[6],
            format: Format::of_code(words[7])?,
            channels: words[8],
            modes: [
                AddressMode::of_code(words[9])?,
                AddressMode::of_code(words[10])?,
                AddressMode::of_code(words[11])?,
            ],
            is_linear: flag(0),
            is_normalized: flag(1),
            reads_integers: flag(2),
            is_srgb: flag(3),
            is_plain: flag(4),
            border: [13, 14, 15, 16].map(|word: usize| f32::from_bits(words[word])),
        })
    }

    /// Address of a texel.
    pub(crate) fn texel_address(&self, [x, y, z]: [u32; 3]) -> u64 {
        let texel = u64::from(self.format.bytes() * self.channels);
        let row = u64::from(z) * u64::from(self.height) + u64::from(y);
        let offset = row * u64::from(self.row_bytes) + u64::from(x) * texel;
        self.address.wrapping_add(offset)
    }

    /// Whether fetches give floating-point numbers.
    fn gives_floats(&self) -> bool {
        match self.format {
            Format::F16 | Format::F32 => true,
            Format::U32 | Format::S32 => false,
            _ => !self.reads_integers,
        }
    }

    /// Bits of a stored channel as a fetch gives them; `is_colour` is false for the fourth, which is never sRGB.
    pub(crate) fn channel(&self, bits: u32, is_colour: bool) -> u32 {
        let as_float = self.gives_floats();
        match self.format {
            Format::F32 | Format::U32 | Format::S32 => bits,
            Format::F16 => F16(bits as u16).f32().to_bits(),
            Format::U8 if as_float && self.is_srgb && is_colour => {
                of_srgb(bits as f32 / 255.0).to_bits()
            }
            Format::U8 if as_float => (bits as f32 / 255.0).to_bits(),
            Format::U16 if as_float => (bits as f32 / 65535.0).to_bits(),
            Format::S8 if as_float => (f32::from(bits as i8) / 127.0).max(-1.0).to_bits(),
            Format::S16 if as_float => (f32::from(bits as i16) / 32767.0).max(-1.0).to_bits(),
            Format::U8 | Format::U16 => bits,
            Format::S8 => i32::from(bits as i8) as u32,
            Format::S16 => i32::from(bits as i16) as u32,
        }
    }

    /// What a fetch of the border gives for a channel.
    pub(crate) fn border_channel(&self, channel: usize) -> u32 {
        let value = if self.is_plain {
            0.0
        } else {
            self.border[channel]
        };
        if self.gives_floats() {
            value.to_bits()
        } else {
            value as i32 as u32
        }
    }

    /// Where a fetch at this coordinate of dimension `axis` looks.
    pub(crate) fn taps(&self, axis: usize, at: Coordinate, filtered: bool) -> Taps {
        let size = [self.width, self.height, self.depth][axis];
        let mode = self.modes[axis];
        let (at, mode) = match at {
            Coordinate::Index(at) => return Taps::one(self.outside(mode, at, size)),
            Coordinate::Real(at) if self.is_normalized => (at * size as f32, mode),
            // These two need coordinates that are normalized.
            Coordinate::Real(at) => match mode {
                AddressMode::Wrap | AddressMode::Mirror => (at, AddressMode::Clamp),
                _ => (at, mode),
            },
        };
        if !filtered {
            return Taps::one(self.outside(mode, at.floor() as i64, size));
        }
        let at = at - 0.5;
        let first = at.floor();
        // A fraction of 8 bits.
        let weight = ((at - first) * 256.0).round() / 256.0;
        let first = first as i64;
        Taps {
            indices: [
                self.outside(mode, first, size),
                self.outside(mode, first.saturating_add(1), size),
            ],
            weight: if weight.is_nan() { 0.0 } else { weight },
        }
    }

    /// Whether neighbours are weighed; only numbers that are floating-point can be.
    pub(crate) fn filters(&self) -> bool {
        self.is_linear && self.gives_floats()
    }

    fn outside(&self, mode: AddressMode, at: i64, size: u32) -> Option<u32> {
        let mode = if self.is_plain {
            AddressMode::Border
        } else {
            mode
        };
        mode.index(at, size)
    }
}

/// A coordinate of a fetch.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Coordinate {
    /// A texel by its number.
    Index(i64),
    /// A place among texels.
    Real(f32),
}

/// The two texels along one dimension that a fetch weighs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taps {
    /// None is the border.
    pub(crate) indices: [Option<u32>; 2],
    /// Of the second; the first has the rest.
    pub(crate) weight: f32,
}

impl Taps {
    fn one(index: Option<u32>) -> Self {
        Self {
            indices: [index; 2],
            weight: 0.0,
        }
    }

    /// Both with their weights.
    pub(crate) fn weighted(&self) -> [(Option<u32>, f32); 2] {
        [
            (self.indices[0], 1.0 - self.weight),
            (self.indices[1], self.weight),
        ]
    }
}

/// sRGB to linear: IEC 61966-2-1.
fn of_srgb(value: f32) -> f32 {
    if value <= 0.04045 {
        value / 12.92
    } else {
        ((value + 0.055) / 1.055).powf(2.4)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{AddressMode, Coordinate, Format, Texture, WORDS};

    fn texture() -> Texture {
        Texture {
            address: 0x1234_5678_9abc,
            width: 4,
            height: 3,
            depth: 2,
            row_bytes: 32,
            format: Format::S16,
            channels: 2,
            modes: [AddressMode::Wrap, AddressMode::Mirror, AddressMode::Border],
            is_linear: true,
            is_normalized: true,
            reads_integers: false,
            is_srgb: false,
            is_plain: false,
            border: [1.0, 2.0, 3.0, 4.0],
        }
    }

    fn words(texture: &Texture) -> [u32; WORDS] {
        let bytes = texture.encode();
        std::array::from_fn(|i| u32::from_le_bytes(*bytes[4 * i..].first_chunk().unwrap()))
    }

    #[test]
    fn what_is_encoded_is_decoded_and_nothing_else() {
        let encoded = words(&texture());
        assert_eq!(Texture::decode(&encoded), Some(texture()));
        for (word, value) in [(0, 1), (3, 0), (7, 4), (8, 3), (9, 4)] {
            let mut other = encoded;
            other[word] = value;
            assert_eq!(Texture::decode(&other), None, "word {word}");
        }
    }

    #[test]
    fn addresses_count_rows_of_all_slices() {
        assert_eq!(
            texture().texel_address([1, 2, 1]),
            0x1234_5678_9abc + 5 * 32 + 4
        );
    }

    #[test]
    fn outside_is_what_the_mode_says() {
        let indices = |mode: AddressMode| [-5, -1, 0, 3, 4, 9].map(|at| mode.index(at, 4));
        assert_eq!(indices(AddressMode::Wrap), [3, 3, 0, 3, 0, 1].map(Some));
        assert_eq!(indices(AddressMode::Clamp), [0, 0, 0, 3, 3, 3].map(Some));
        assert_eq!(indices(AddressMode::Mirror), [3, 0, 0, 3, 3, 1].map(Some));
        assert_eq!(
            indices(AddressMode::Border),
            [None, None, Some(0), Some(3), None, None]
        );
    }

    #[test]
    fn linear_weights_are_between_the_middles_of_texels() {
        let taps = texture().taps(0, Coordinate::Real(0.5), true);
        assert_eq!((taps.indices, taps.weight), ([Some(1), Some(2)], 0.5));
        let taps = texture().taps(0, Coordinate::Real(0.0), true);
        assert_eq!((taps.indices, taps.weight), ([Some(3), Some(0)], 0.5));
        let far = texture().taps(0, Coordinate::Real(f32::NAN), true);
        assert!(far.weight.abs() < f32::EPSILON);
    }

    #[test]
    fn small_integers_are_fractions() {
        let channel = |bits: u32| f32::from_bits(texture().channel(bits, true));
        assert_eq!(channel(0x8000), -1.0);
        assert_eq!(channel(0x7fff), 1.0);
        let whole = Texture {
            reads_integers: true,
            ..texture()
        };
        assert_eq!(whole.channel(0xffff, true).cast_signed(), -1);
    }
}
