//! The distribution of a set of samples.
#![forbid(unsafe_code)]

use serde::Serialize;

/// Percentiles, in the unit of the samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// The 10th percentile: what it costs when nothing gets in the way.
    pub p10: f64,
    /// The median.
    pub p50: f64,
    /// The 90th percentile.
    pub p90: f64,
    /// The 99th percentile.
    pub p99: f64,
}

impl Spread {
    /// Of these samples, which are sorted.
    ///
    /// # Panics
    /// If there are none.
    pub fn of(samples: &mut [f64]) -> Self {
        assert!(!samples.is_empty(), "samples");
        samples.sort_by(f64::total_cmp);
        let at = |per_mille: usize| samples[(samples.len() - 1) * per_mille / 1000];
        // Of an even number the middle of the two in the middle: neither the better nor the worse one.
        let half = samples.len() / 2;
        Self {
            p10: at(100),
            p50: f64::midpoint(at(500), samples[half]),
            p90: at(900),
            p99: at(990),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn percentiles_of_a_ramp() {
        let mut ramp: Vec<f64> = (0..=1000).rev().map(f64::from).collect();
        let spread = Spread::of(&mut ramp);
        assert_eq!(
            (spread.p10, spread.p50, spread.p90, spread.p99),
            (100.0, 500.0, 900.0, 990.0)
        );
        let p50 = |mut samples: Vec<f64>| Spread::of(&mut samples).p50;
        assert_eq!((p50(vec![4.0, 1.0]), p50(vec![7.0])), (2.5, 7.0));
        assert_eq!(
            (p50(vec![4.0, 1.0, 2.0, 3.0]), p50(vec![9.0, 1.0, 2.0])),
            (2.5, 2.0)
        );
    }
}
