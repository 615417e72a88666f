//! K-means in the manner of MPI: every rank has a part of the points, and the sums of all are reduced to all.

use updraft::collectives::{Error, Group, op::Sum};

/// Centroids whose distances are computed beside one another.
const LANES: usize = 8;

/// The centroids, and the memory in which a rank sums its points. No step allocates.
#[derive(Debug, Clone)]
pub(crate) struct Clustering {
    dimensions: usize,
    /// Coordinates of one centroid after another.
    centroids: Vec<f64>,
    /// The same by blocks of [`LANES`] centroids, and in a block by dimension; what is over is nobody's nearest.
    blocks: Vec<[f64; LANES]>,
    /// Of each centroid, the sum of its points, and their number, which is exact up to 2^53.
    sums: Vec<f64>,
}

impl Clustering {
    /// Begins with these centroids, one after another.
    pub(crate) fn new(centroids: Vec<f64>, dimensions: usize) -> Self {
        let k = centroids.len() / dimensions;
        Self {
            blocks: vec![[f64::INFINITY; LANES]; k.div_ceil(LANES) * dimensions],
            sums: vec![0.0; k * (dimensions + 1)],
            dimensions,
            centroids,
        }
    }

    /// The coordinates of one centroid after another.
    pub(crate) fn centroids(&self) -> &[f64] {
        &self.centroids
    }

    /// One of Lloyd's iterations, on all ranks: each gives its own `points`. A centroid without points stays where it is.
    pub(crate) fn step(&mut self, world: &Group, points: &[f64]) -> Result<(), Error> {
        self.sum(points);
        world.all_reduce(&mut self.sums, Sum).wait()?;
        self.move_centroids();
        Ok(())
    }

    /// Assigns each point to its nearest centroid, and sums them by centroid.
    fn sum(&mut self, points: &[f64]) {
        let dimensions = self.dimensions;
        for (number, centroid) in self.centroids.chunks_exact(dimensions).enumerate() {
            let block = &mut self.blocks[number / LANES * dimensions..][..dimensions];
            for (lanes, &x) in block.iter_mut().zip(centroid) {
                lanes[number % LANES] = x;
            }
        }
        self.sums.fill(0.0);
        for point in points.chunks_exact(dimensions) {
            let nearest = nearest(point, &self.blocks);
            let sum = &mut self.sums[nearest * (dimensions + 1)..][..dimensions + 1];
            for (sum, x) in sum.iter_mut().zip(point) {
                *sum += x;
            }
            sum[dimensions] += 1.0;
        }
    }

    fn move_centroids(&mut self) {
        let sums = self.sums.chunks_exact(self.dimensions + 1);
        for (centroid, sum) in self.centroids.chunks_exact_mut(self.dimensions).zip(sums) {
            let count = sum[self.dimensions];
            if count > 0.0 {
                for (x, sum) in centroid.iter_mut().zip(sum) {
                    *x = sum / count;
                }
            }
        }
    }
}

/// The number of the centroid that is nearest to a point; the first one, if several are.
#[inline]
fn nearest(point: &[f64], blocks: &[[f64; LANES]]) -> usize {
    let (mut nearest, mut least) = (0, f64::INFINITY);
    for (index, block) in blocks.chunks_exact(point.len()).enumerate() {
        let mut distances = [0.0; LANES];
        for (x, lanes) in point.iter().zip(block) {
            for (distance, c) in distances.iter_mut().zip(lanes) {
                *distance += (x - c) * (x - c);
            }
        }
        for (lane, distance) in distances.into_iter().enumerate() {
            if distance < least {
                (nearest, least) = (index * LANES + lane, distance);
            }
        }
    }
    nearest
}
