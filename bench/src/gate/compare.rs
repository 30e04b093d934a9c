//! Two programs in turns, and whether they differ: for times, which instruction counts do not show.
//!
//! Each pair of runs gives the ratio of B to A; what disturbs the machine meets both runs of a pair. The pairs'
//! signs are then exchanged in every way (a permutation test on the mean logarithm of the ratio): if A and B were
//! the same program, each exchange would have been as likely as what was seen.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

/// Exchanges that are tried when there are too many to try all.
const EXCHANGES_MAX: u64 = 1 << 16;

/// The chance of being wrong about any figure of a comparison that is accepted.
const P_MAX: f64 = 0.01;

/// A figure of one run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// In its unit.
    pub value: f64,
    /// Whether more of that unit is better.
    pub is_more_better: bool,
}

/// How B compares with A in one figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Pairs of runs.
    pub pairs: usize,
    /// Geometric mean of B's value as a multiple of A's.
    pub ratio: f64,
    /// How many times as long B takes: the ratio, or its inverse where more is better.
    pub slowdown: f64,
    /// The chance to see at least such a difference from two programs that are the same; with the correction of Holm, as
    /// one of many figures differs sooner than a certain one.
    pub p: f64,
}

impl Comparison {
    /// Whether B is shown to be slower by more than so many percent.
    #[must_use]
    pub fn is_slower_by(&self, percent: f64) -> bool {
        self.p < P_MAX && self.slowdown > 1.0 + percent / 100.0
    }

    /// In words.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match self.p < P_MAX {
            true if self.slowdown > 1.0 => "B is SLOWER",
            true => "B is faster",
            false => "no difference shown",
        }
    }
}

/// The least number of pairs that can show a difference, among so many figures.
#[must_use]
pub fn pairs_needed(figures: usize) -> usize {
    let p_least = |pairs: i32| figures.max(1) as f64 * 2.0 / 2_f64.powi(pairs);
    (1..=64)
        .find(|pairs| p_least(*pairs) < P_MAX)
        .and_then(|pairs| usize::try_from(pairs).ok())
        .unwrap_or(64)
}

/// Compares runs that were made in pairs: `a[i]` beside `b[i]`, by name of the figure. Figures that are not in
/// every run are left out.
#[must_use]
pub fn compare(
    a: &[BTreeMap<String, Measured>],
    b: &[BTreeMap<String, Measured>],
) -> BTreeMap<String, Comparison> {
    let names = a.first().into_iter().flat_map(BTreeMap::iter);
    let mut found: BTreeMap<String, Comparison> = names
        .filter_map(|(name, first)| {
            let pairs: Option<Vec<f64>> = a
                .iter()
                .zip(b)
                .map(|(a, b)| Some((b.get(name)?.value / a.get(name)?.value).ln()))
                .collect();
            let logs =
                pairs.filter(|logs| logs.iter().all(|log| log.is_finite()) && !logs.is_empty())?;
            Some((name.clone(), of_logs(&logs, first.is_more_better)))
        })
        .collect();
    correct(found.values_mut().map(|found| &mut found.p).collect());
    found
}

/// Holm's correction: the least counts as many times as there are figures, the next once less.
fn correct(mut chances: Vec<&mut f64>) {
    chances.sort_by(|a, b| a.total_cmp(b));
    let (figures, mut least) = (chances.len(), 0.0);
    for (index, p) in chances.into_iter().enumerate() {
        least = (*p * (figures - index) as f64).clamp(least, 1.0);
        *p = least;
    }
}

fn of_logs(logs: &[f64], is_more_better: bool) -> Comparison {
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
    // Of random exchanges, what was seen is one as well: no chance is nought.
    let seen = u64::from(!is_exact);
    let slower = if is_more_better { -mean } else { mean };
    Comparison {
        pairs: logs.len(),
        ratio: mean.exp(),
        slowdown: slower.exp(),
        p: (as_extreme.count() as u64 + seen) as f64 / (tried + seen) as f64,
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

    use super::{Measured, compare, correct, of_logs, pairs_needed};

    #[test]
    fn a_difference_that_every_pair_shows_is_significant() {
        let logs = [0.05, 0.04, 0.06, 0.05, 0.03, 0.05, 0.04, 0.05, 0.06, 0.05];
        let slower = of_logs(&logs, false);
        assert!(
            slower.p < 0.01 && (slower.ratio - 1.049).abs() < 0.01,
            "{slower:?}"
        );
        let noise = of_logs(
            &[0.3, -0.2, 0.1, -0.4, 0.25, -0.1, 0.05, -0.02, 0.2, -0.2],
            false,
        );
        assert!(noise.p > 0.3, "{noise:?}");
        let many: Vec<f64> = (0..40).map(|n| 0.02 + f64::from(n % 5) * 0.001).collect();
        let many = of_logs(&many, false);
        assert!(many.p < 0.001 && many.p > 0.0, "{many:?}");
    }

    #[test]
    fn the_unit_says_which_is_slower() {
        let logs = [0.05; 10];
        let (time, rate) = (of_logs(&logs, false), of_logs(&logs, true));
        assert_eq!(
            (time.verdict(), rate.verdict()),
            ("B is SLOWER", "B is faster")
        );
        assert!(time.is_slower_by(3.0) && !time.is_slower_by(6.0) && !rate.is_slower_by(3.0));
        let few = of_logs(&logs[..4], false);
        assert!(!few.is_slower_by(0.0) && few.verdict() == "no difference shown");
    }

    #[test]
    fn one_of_many_figures_has_to_differ_more() {
        let mut chances = [0.01, 0.04, 0.03, 0.005];
        correct(chances.iter_mut().collect());
        let want = [0.03, 0.06, 0.06, 0.02];
        let near = |(got, want): (&f64, f64)| (got - want).abs() < 1e-9;
        assert!(chances.iter().zip(want).all(near), "{chances:?}");
        assert_eq!((pairs_needed(1), pairs_needed(14)), (8, 12));
    }

    #[test]
    fn figures_are_matched_by_name() {
        let run = |value: f64| {
            let measured = |value| Measured {
                value,
                is_more_better: false,
            };
            BTreeMap::from([
                ("rtt".to_owned(), measured(value)),
                ("zero".to_owned(), measured(0.0)),
            ])
        };
        let compared = compare(&[run(1.0), run(2.0)], &[run(2.0), run(4.0)]);
        assert_eq!(compared.len(), 1);
        assert!((compared["rtt"].ratio - 2.0).abs() < 1e-9);
    }
}
