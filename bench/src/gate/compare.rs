//! Two programs in turns, and whether they differ: for times, which instruction counts do not show.
//!
//! Each pair of runs gives the ratio of B to A; what disturbs the machine meets both runs of a pair. The pairs'
//! signs are then exchanged in every way (a permutation test on the mean logarithm of the ratio): if A and B were
//! the same program, each exchange would have been as likely as what was seen.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// Exchanges that are tried when there are too many to try all.
const EXCHANGES_MAX: u64 = 1 << 16;

/// How B compares with A in one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Pairs of runs.
    pub pairs: usize,
    /// Geometric mean of B's value as a multiple of A's.
    pub ratio: f64,
    /// The chance to see at least such a difference from two programs that are the same.
    pub p: f64,
}

/// Compares runs that were made in pairs: `a[i]` beside `b[i]`, by name of the figure. Figures that are not in
/// every run are left out.
#[must_use]
pub fn compare(
    a: &[BTreeMap<String, f64>],
    b: &[BTreeMap<String, f64>],
) -> BTreeMap<String, Comparison> {
    let names = a.first().into_iter().flat_map(BTreeMap::keys);
    names
        .filter_map(|name| {
            let pairs: Option<Vec<f64>> = a
                .iter()
                .zip(b)
                .map(|(a, b)| Some((b.get(name)? / a.get(name)?).ln()))
                .collect();
            let logs =
                pairs.filter(|logs| logs.iter().all(|log| log.is_finite()) && !logs.is_empty())?;
            Some((name.clone(), of_logs(&logs)))
        })
        .collect()
}

fn of_logs(logs: &[f64]) -> Comparison {
    let mean = logs.iter().sum::<f64>() / logs.len() as f64;
    let extreme = mean.abs() * (1.0 - 1e-9);
    let exchanges = 1_u64
        .checked_shl(u32::try_from(logs.len()).unwrap_or(64))
        .unwrap_or(0);
    let is_exact = (1..=EXCHANGES_MAX).contains(&exchanges);
    let tried = if is_exact { exchanges } else { EXCHANGES_MAX };
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let as_extreme = (0..tried).filter(|number| {
        let mut signs = *number;
        let mut sum = 0.0;
        for (index, log) in logs.iter().enumerate() {
            if !is_exact && index.is_multiple_of(64) {
                signs = random(&mut seed);
            }
            sum += if signs & 1 == 0 { *log } else { -log };
            signs >>= 1;
        }
        (sum / logs.len() as f64).abs() >= extreme
    });
    Comparison {
        pairs: logs.len(),
        ratio: mean.exp(),
        p: as_extreme.count() as f64 / tried as f64,
    }
}

/// SplitMix64.
fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*seed ^ (*seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{compare, of_logs};

    #[test]
    fn a_difference_that_every_pair_shows_is_significant() {
        let slower = of_logs(&[0.05, 0.04, 0.06, 0.05, 0.03, 0.05, 0.04, 0.05, 0.06, 0.05]);
        assert!(
            slower.p < 0.01 && (slower.ratio - 1.049).abs() < 0.01,
            "{slower:?}"
        );
        let noise = of_logs(&[0.3, -0.2, 0.1, -0.4, 0.25, -0.1, 0.05, -0.02, 0.2, -0.2]);
        assert!(noise.p > 0.3, "{noise:?}");
        let many: Vec<f64> = (0..40).map(|n| 0.02 + f64::from(n % 5) * 0.001).collect();
        assert!(of_logs(&many).p < 0.001);
    }

    #[test]
    fn figures_are_matched_by_name() {
        let run =
            |value: f64| BTreeMap::from([("rtt".to_owned(), value), ("zero".to_owned(), 0.0)]);
        let compared = compare(&[run(1.0), run(2.0)], &[run(2.0), run(4.0)]);
        assert_eq!(compared.len(), 1);
        assert!((compared["rtt"].ratio - 2.0).abs() < 1e-9);
    }
}
