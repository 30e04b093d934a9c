//! Counts and sizes as criterion benches: what a run gives instead of the time that it takes.
#![forbid(unsafe_code)]

use criterion::Throughput;
use criterion::measurement::{Measurement, ValueFormatter};

/// A criterion measurement whose benches say what they measured: use it with `iter_custom`, and return the sum over
/// the iterations.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    unit: &'static str,
}

impl Count {
    /// Values in this unit, printed behind them.
    #[must_use]
    pub(crate) fn new(unit: &'static str) -> Self {
        Self { unit }
    }
}

impl Measurement for Count {
    type Intermediate = ();
    type Value = f64;

    /// # Panics
    /// Always: nothing is counted between two instants.
    fn start(&self) {
        panic!("a count is measured with iter_custom");
    }

    fn end(&self, (): ()) -> f64 {
        0.0
    }

    fn add(&self, first: &f64, second: &f64) -> f64 {
        first + second
    }

    fn zero(&self) -> f64 {
        0.0
    }

    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }

    fn formatter(&self) -> &dyn ValueFormatter {
        self
    }
}

impl ValueFormatter for Count {
    fn scale_values(&self, _typical: f64, _values: &mut [f64]) -> &'static str {
        self.unit
    }

    fn scale_throughputs(
        &self,
        _typical: f64,
        _throughput: &Throughput,
        _values: &mut [f64],
    ) -> &'static str {
        self.unit
    }

    fn scale_for_machines(&self, _values: &mut [f64]) -> &'static str {
        self.unit
    }
}
