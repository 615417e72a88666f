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
    pub(crate) points: usize,
    pub(crate) dimensions: usize,
    pub(crate) seed: u64,
}

impl Generated {
    /// The coordinates of some of the points, one after another.
    pub(crate) fn coordinates(&self, points: Range<usize>) -> Vec<f64> {
        let (k, dimensions) = (self.k, self.dimensions);
        let mut random = Random::new(self.seed);
        let places: Vec<f64> = (0..k * dimensions)
            .map(|_| coordinate(&mut random, 1000))
            .collect();
        let first = (k + points.start) * dimensions;
        let mut random = Random::at(self.seed, first as u64);
        points
            .flat_map(|point| (0..dimensions).map(move |dimension| (point % k, dimension)))
            .map(|(place, dimension)| {
                places[place * dimensions + dimension] + coordinate(&mut random, 100)
            })
            .collect()
    }
}

fn coordinate(random: &mut Random, spread: u64) -> f64 {
    (random.draw() % (spread * GRID)) as f64 / GRID as f64
}
