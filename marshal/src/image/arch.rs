//! GPU architectures, and what runs on which.

use std::fmt;

/// An architecture that code was made for, such as `sm_90a`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Arch {
    /// Compute capability, major * 10 + minor.
    pub sm: u32,
    /// How far beyond that capability the code may run.
    pub variant: Variant,
}

/// The suffix of an architecture's name; greater is more specialized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Variant {
    /// No suffix.
    Portable,
    /// `f`: uses features that only the same family has.
    Family,
    /// `a`: uses features that only this exact capability has.
    Specific,
}

impl Arch {
    /// An architecture without a suffix.
    #[must_use]
    pub const fn portable(sm: u32) -> Self {
        Self {
            sm,
            variant: Variant::Portable,
        }
    }

    /// Reads `sm_90a`, `compute_100f` and the like.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        let number = name
            .strip_prefix("sm_")
            .or_else(|| name.strip_prefix("compute_"))?;
        let (digits, variant) = if let Some(digits) = number.strip_suffix('a') {
            (digits, Variant::Specific)
        } else if let Some(digits) = number.strip_suffix('f') {
            (digits, Variant::Family)
        } else {
            (number, Variant::Portable)
        };
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let sm = digits.parse().ok()?;
        Some(Self { sm, variant })
    }

    /// Whether machine code for this architecture runs on a device of `device_sm`.
    ///
    /// Machine code runs within a major version, on equal or higher minors; not between
    /// desktop chips and Tegra; with suffix `a` on its own capability only.
    #[must_use]
    pub fn runs_on(self, device_sm: u32) -> bool {
        if self.sm == device_sm {
            return true;
        }
        self.variant != Variant::Specific
            && same_family(self.sm, device_sm)
            && self.sm < device_sm
            && !is_tegra(self.sm)
            && !is_tegra(device_sm)
    }

    /// Whether PTX for this architecture can be compiled for a device of `device_sm`.
    #[must_use]
    pub fn compiles_for(self, device_sm: u32) -> bool {
        match self.variant {
            Variant::Portable => self.sm <= device_sm,
            Variant::Family => same_family(self.sm, device_sm) && self.sm <= device_sm,
            Variant::Specific => self.sm == device_sm,
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let suffix = match self.variant {
            Variant::Portable => "",
            Variant::Family => "f",
            Variant::Specific => "a",
        };
        write!(formatter, "sm_{}{suffix}", self.sm)
    }
}

fn same_family(left: u32, right: u32) -> bool {
    left / 10 == right / 10
}

/// Chips whose machine code is not interchangeable with desktop chips of the same major.
fn is_tegra(sm: u32) -> bool {
    matches!(sm, 53 | 62 | 72 | 87 | 88 | 101 | 110)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn arch(name: &str) -> Arch {
        Arch::parse(name).unwrap()
    }

    #[test]
    fn names_survive_a_round_trip() {
        for name in ["sm_75", "sm_90a", "sm_100f", "sm_120"] {
            assert_eq!(arch(name).to_string(), name);
        }
        for name in ["", "sm_", "sm_a", "sm_9x", "sm_-9", "sm_99999999999"] {
            assert_eq!(Arch::parse(name), None, "{name}");
        }
    }

    #[test]
    fn machine_code_stays_within_its_major() {
        assert!(arch("sm_80").runs_on(86));
        assert!(!arch("sm_86").runs_on(80));
        assert!(!arch("sm_80").runs_on(90));
        assert!(!arch("sm_90").runs_on(100));
        assert!(arch("sm_100f").runs_on(103));
        assert!(arch("sm_90a").runs_on(90));
        assert!(!arch("sm_100a").runs_on(103));
    }

    #[test]
    fn tegra_code_runs_on_its_own_chip_only() {
        assert!(arch("sm_87").runs_on(87));
        assert!(!arch("sm_87").runs_on(89));
        assert!(!arch("sm_80").runs_on(87));
    }

    #[test]
    fn ptx_goes_forward() {
        assert!(arch("compute_50").compiles_for(120));
        assert!(!arch("compute_90").compiles_for(89));
        assert!(!arch("compute_90a").compiles_for(100));
        assert!(arch("compute_100f").compiles_for(103));
        assert!(!arch("compute_100f").compiles_for(120));
    }
}
