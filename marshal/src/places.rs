//! Where client and server look for addresses that both of them have free.

/// Beginnings of ranges that are usually free in a process, in the order in which they are tried: far from heap, stack, libraries and
/// the usual sanitizer shadows.
pub const USUAL: [u64; 6] = [
    0x2000_0000_0000,
    0x3000_0000_0000,
    0x1800_0000_0000,
    0x3800_0000_0000,
    0x2800_0000_0000,
    0x0800_0000_0000,
];
