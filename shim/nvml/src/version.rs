//! Version texts, from the CUDA version that the server stands for.
#![forbid(unsafe_code)]

/// CUDA version (12040 = 12.4) and the driver branch that brought it.
const BRANCHES: [(u32, u32); 13] = [
    (11040, 470),
    (11060, 510),
    (11080, 520),
    (12000, 525),
    (12010, 530),
    (12020, 535),
    (12030, 545),
    (12040, 550),
    (12050, 555),
    (12060, 560),
    (12080, 570),
    (13000, 580),
    (13010, 590),
];

/// Text for `nvmlSystemGetDriverVersion`. The protocol does not carry the driver's own version, so this is
/// the first branch that has the CUDA version, with a minor number of 0.
pub(crate) fn driver(cuda: u32) -> String {
    let branch = BRANCHES
        .iter()
        .rev()
        .find(|(first, _)| *first <= cuda)
        .map_or(450, |(_, branch)| *branch);
    format!("{branch}.00")
}

/// Text for `nvmlSystemGetNVMLVersion`: the CUDA version's major number, then the driver's version.
pub(crate) fn nvml(cuda: u32) -> String {
    format!("{}.{}", cuda / 1000, driver(cuda))
}

#[cfg(test)]
mod tests {
    use super::{driver, nvml};

    #[test]
    fn newest_branch_not_newer_than_the_cuda_version() {
        for (cuda, text) in [
            (13000, "580.00"),
            (12090, "570.00"),
            (12040, "550.00"),
            (13050, "590.00"),
            (10000, "450.00"),
        ] {
            assert_eq!(driver(cuda), text);
        }
        assert_eq!(nvml(13000), "13.580.00");
    }
}
