//! The samples of one hour, in memory.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::{FIGURES, SLOTS, Sample, Samples, THINGS_MAX, Thing};

/// One hour of all things.
#[derive(Debug)]
pub(super) struct Hour {
    number: u64,
    things: BTreeMap<Thing, Vec<Sample>>,
}

impl Hour {
    pub(super) const fn new(number: u64) -> Self {
        Self {
            number,
            things: BTreeMap::new(),
        }
    }

    /// Hours since the epoch.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn add(&mut self, slot: u64, samples: Samples) {
        // Within the hour.
        #[allow(clippy::cast_possible_truncation)]
        let index = (slot % SLOTS as u64) as usize;
        for (thing, sample) in samples {
            if self.things.len() >= THINGS_MAX && !self.things.contains_key(&thing) {
                continue;
            }
            let slots = self
                .things
                .entry(thing)
                .or_insert_with(|| vec![Sample::default(); SLOTS]);
            slots[index] = sample;
        }
    }

    pub(super) fn things(&self) -> impl Iterator<Item = (&str, &[Sample])> {
        let things = self.things.iter();
        things.map(|(thing, samples)| (thing.as_str(), samples.as_slice()))
    }

    pub(super) fn of(&self, thing: &str) -> Option<&[Sample]> {
        self.things.get(thing).map(Vec::as_slice)
    }
}

/// One mean for each `count` samples.
pub(super) fn means(samples: &[Sample], count: usize) -> Vec<Sample> {
    samples.chunks(count).map(mean).collect()
}

/// Of those that are there.
pub(super) fn mean(samples: &[Sample]) -> Sample {
    let mut mean = Sample::default();
    for figure in 0..FIGURES {
        let values = samples.iter().map(|it| it.0[figure]);
        let (mut sum, mut count) = (0.0_f64, 0.0_f64);
        for value in values.filter(|value| !value.is_nan()) {
            sum += f64::from(value);
            count += 1.0;
        }
        if count > 0.0 {
            // As precise as the samples.
            #[allow(clippy::cast_possible_truncation)]
            let value = (sum / count) as f32;
            mean.0[figure] = value;
        }
    }
    mean
}
