//! `CUdevice_attribute` values of the CPU devices.
//!
//! The devices stand for compute capability 9.0, because that is what PTX of current toolchains is built for, and
//! say no to everything that does not work on them: programs ask before they use it.
#![forbid(unsafe_code)]

use crate::device::cpu_limits::{BLOCK_THREADS_MAX, SHARED_BYTES_DEFAULT, SHARED_BYTES_OPTIN};

/// The device does not know the attribute.
pub(crate) const UNKNOWN: i32 = i32::MIN;
/// One past the last attribute of cuda.h 13.
const COUNT: usize = 162;
/// Compute capability times ten.
pub(crate) const SM: u32 = 90;

/// Values of the device that runs PTX, indexed by attribute.
pub(crate) fn table(cores: u32, pci_bus: u32) -> Vec<i32> {
    let mut values = vec![0; COUNT];
    // Numbers that no header up to 13.x defines.
    for hole in [0, 159, 160] {
        set(&mut values, hole, UNKNOWN);
    }
    for (attribute, value) in FIXED {
        set(&mut values, *attribute, *value);
    }
    let number = |value: u32| i32::try_from(value).unwrap_or(i32::MAX);
    for (attribute, value) in [
        (16, number(cores)),
        (33, number(pci_bus)),
        (1, i32::try_from(BLOCK_THREADS_MAX).unwrap_or(i32::MAX)),
        (8, number(SHARED_BYTES_DEFAULT)),
        (97, number(SHARED_BYTES_OPTIN)),
    ] {
        set(&mut values, attribute, value);
    }
    values
}

/// Values of the device that runs nothing: those of an H100, so that libraries choose the kernels that they would
/// choose there, but for what the server does not do.
pub(crate) fn null_table(pci_bus: u32) -> Vec<i32> {
    let mut values = table(132, pci_bus);
    for (attribute, value) in H100 {
        set(&mut values, *attribute, *value);
    }
    values
}

fn set(values: &mut [i32], attribute: usize, value: i32) {
    if let Some(entry) = values.get_mut(attribute) {
        *entry = value;
    }
}

/// Attributes that are not 0, apart from those that depend on the host.
#[rustfmt::skip]
const FIXED: &[(usize, i32)] = &[
    (2, 1024), (3, 1024), (4, 64),                 // block dimensions
    (5, i32::MAX), (6, 65_535), (7, 65_535),       // grid dimensions
    (9, 65_536),                                   // constant memory
    (10, 32),                                      // warp
    (11, i32::MAX),                                // pitch
    (12, 65_536), (82, 65_536),                    // registers of a block, of a multiprocessor
    (13, 2_000_000), (36, 3_200_000),              // clocks in kHz, as of a server CPU and its memory
    (14, 512), (30, 512), (51, 32),                // alignments
    (15, 1), (40, 1),                              // copies beside kernels
    (19, 1),                                       // mapped host memory
    (37, 64),                                      // memory bus width
    (38, 32 << 20),                                // last-level cache
    (39, 2048), (81, 228 << 10), (106, 32),        // threads, shared memory, blocks of a multiprocessor
    (41, 1),                                       // unified addressing
    (75, 9), (76, 0),                              // compute capability
    (79, 1), (80, 1),                              // globals and locals in the L1 cache
    (83, 1),                                       // managed memory
    (87, 2),                                       // single to double performance
    (95, 1),                                       // cooperative launch
    (102, 1),                                      // virtual memory management
    (111, 1 << 10),                                // reserved shared memory
    (115, 1),                                      // stream-ordered allocation
    (126, 1),                                      // memory synchronization domains
    (131, -1), (134, -1),                          // no NUMA node
];

/// What an H100 answers where the CPU devices answer otherwise (measured; no peers, arrays of the largest size).
#[rustfmt::skip]
const H100: &[(usize, i32)] = &[
    (13, 1_980_000), (36, 2_619_000), (37, 5120),  // clocks in kHz, memory bus width
    (38, 50 << 20), (108, 32_768_000), (109, 134_213_632), // L2 cache, its persisting part, its window
    (31, 1), (32, 1), (40, 3),                     // concurrent kernels, ECC, copy engines
    (21, 131_072), (22, 131_072), (23, 65_536), (24, 16_384), (25, 16_384), (26, 16_384), // textures
    (27, 32_768), (28, 32_768), (29, 2048), (42, 32_768), (43, 2048), (45, 32_768), (46, 32_768),
    (52, 32_768), (53, 32_768), (54, 2046), (69, 1 << 28), (70, 131_072), (71, 65_000), (72, 2_097_120),
    (73, 32_768), (74, 32_768), (77, 32_768),
    (55, 32_768), (56, 131_072), (57, 65_536), (58, 16_384), (59, 16_384), (60, 16_384), // surfaces
    (78, 1), (90, 1),                              // stream priorities, compute preemption
    (81, 233_472),                                 // shared memory of a multiprocessor
    (120, 1), (121, 1),                            // clusters, deferred mapping of arrays
    (126, 4),                                      // memory synchronization domains
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::{UNKNOWN, table};

    #[test]
    fn what_depends_on_the_host_is_filled_in_and_gaps_are_unknown() {
        let values = table(7, 33);
        assert_eq!(
            (values[16], values[33], values[75], values[97]),
            (7, 33, 9, 232_448)
        );
        assert_eq!((values[0], values[159]), (UNKNOWN, UNKNOWN));
        assert_eq!(
            (values[102], values[103]),
            (1, 0),
            "virtual memory, not to be exported"
        );
    }
}
