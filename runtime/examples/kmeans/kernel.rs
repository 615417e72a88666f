//! What a rank does in an iteration of k-means: it has a part of the points, and the sums of all are reduced to all.

use std::mem;

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
    /// Of each centroid, the sum of its points, and their number, which is exact up to 2^53; at last the sum of the squares
    /// of all distances.
    sums: Vec<f64>,
}

impl Clustering {
    /// Begins with these centroids, one after another.
    pub(crate) fn new(centroids: Vec<f64>, dimensions: usize) -> Self {
        let k = centroids.len() / dimensions;
        let mut clustering = Self {
            blocks: vec![[f64::INFINITY; LANES]; k.div_ceil(LANES) * dimensions],
            sums: vec![0.0; k * (dimensions + 1) + 1],
            dimensions,
            centroids,
        };
        clustering.lay_out();
        clustering
    }

    pub(crate) fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The centroids.
    pub(crate) fn points(&self) -> Vec<Vec<f64>> {
        let centroids = self.centroids.chunks(self.dimensions);
        centroids.map(<[f64]>::to_vec).collect()
    }

    /// One of Lloyd's iterations, on all ranks: each gives its own points. A centroid without points stays where it is.
    /// Gives the sum of the squares of the distances to the centroids that were.
    ///
    /// A coordinate is an `f64`, or what stands for one in a batch of records.
    pub(crate) fn step<'p, X: Copy + Into<f64> + 'p>(
        &mut self,
        world: &Group,
        points: impl Iterator<Item = &'p [X]>,
    ) -> Result<f64, Error> {
        let mut sums = mem::take(&mut self.sums);
        sums.fill(0.0);
        for point in points {
            add(&mut sums, self.nearest(point), point);
        }
        world.all_reduce(&mut sums, Sum).wait()?;
        let squares = self.move_by(&sums);
        self.sums = sums;
        Ok(squares)
    }

    /// What [`add`] adds to first.
    pub(crate) fn zeros(&self) -> Vec<f64> {
        vec![0.0; self.centroids.len() / self.dimensions * (self.dimensions + 1) + 1]
    }

    /// The number of the centroid that is nearest to a point, and the square of its distance.
    #[inline]
    pub(crate) fn nearest<X: Copy + Into<f64>>(&self, point: &[X]) -> (usize, f64) {
        nearest(point, &self.blocks)
    }

    /// Moves each centroid to the middle of its points, by the sums of all. Gives the sum of the squares of their distances to
    /// the centroids that were.
    pub(crate) fn move_by(&mut self, sums: &[f64]) -> f64 {
        let of_each = sums.chunks_exact(self.dimensions + 1);
        for (centroid, sum) in (self.centroids.chunks_exact_mut(self.dimensions)).zip(of_each) {
            let count = sum[self.dimensions];
            if count > 0.0 {
                for (x, sum) in centroid.iter_mut().zip(sum) {
                    *x = sum / count;
                }
            }
        }
        self.lay_out();
        sums.last().copied().unwrap_or_default()
    }

    fn lay_out(&mut self) {
        let dimensions = self.dimensions;
        for (number, centroid) in self.centroids.chunks_exact(dimensions).enumerate() {
            let block = &mut self.blocks[number / LANES * dimensions..][..dimensions];
            for (lanes, &x) in block.iter_mut().zip(centroid) {
                lanes[number % LANES] = x;
            }
        }
    }
}

/// Adds a point to the sums of its nearest centroid.
#[inline]
pub(crate) fn add<X: Copy + Into<f64>>(
    sums: &mut [f64],
    (nearest, square): (usize, f64),
    point: &[X],
) {
    let sum = &mut sums[nearest * (point.len() + 1)..][..point.len() + 1];
    for (sum, &x) in sum.iter_mut().zip(point) {
        *sum += x.into();
    }
    sum[point.len()] += 1.0;
    if let Some(squares) = sums.last_mut() {
        *squares += square;
    }
}

/// The number of the centroid that is nearest to a point, the first one if several are, and the square of its distance.
#[inline]
fn nearest<X: Copy + Into<f64>>(point: &[X], blocks: &[[f64; LANES]]) -> (usize, f64) {
    let (mut nearest, mut least) = (0, f64::INFINITY);
    for (index, block) in blocks.chunks_exact(point.len()).enumerate() {
        let mut distances = [0.0; LANES];
        for (&x, lanes) in point.iter().zip(block) {
            let x: f64 = x.into();
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
    (nearest, least)
}
