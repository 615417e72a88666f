//! Points to cluster.

use std::ops::Range;

#[path = "../random/mod.rs"]
mod random;

use random::Random;

/// Steps of the grid that coordinates are on: their sums are exact, so they do not depend on the order in which they
/// are added.
const GRID: u64 = 1024;

/// Points around `k` places that follow from a seed; every rank can generate any of them.
#[derive(Debug, Clone)]
pub(crate) struct Generated {
    pub(crate) k: usize,
    pub(crate) dimensions: usize,
    pub(crate) seed: u64,
}

impl Generated {
    /// The places, one after another.
    pub(crate) fn places(&self) -> Vec<f64> {
        let mut random = Random::new(self.seed);
        (0..self.k * self.dimensions)
            .map(|_| coordinate(&mut random, 1000))
            .collect()
    }

    /// One of the points.
    pub(crate) fn point(&self, places: &[f64], number: usize) -> Vec<f64> {
        let first = (self.k + number) * self.dimensions;
        let mut random = Random::at(self.seed, first as u64);
        let place = &places[number % self.k * self.dimensions..][..self.dimensions];
        let point = place.iter().map(|x| x + coordinate(&mut random, 100));
        point.collect()
    }

    /// The coordinates of some of the points, one after another.
    pub(crate) fn coordinates(&self, points: Range<usize>) -> Vec<f64> {
        let places = self.places();
        points
            .flat_map(|number| self.point(&places, number))
            .collect()
    }
}

fn coordinate(random: &mut Random, spread: u64) -> f64 {
    (random.draw() % (spread * GRID)) as f64 / GRID as f64
}
