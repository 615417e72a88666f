//! PageRank's iterations on a graph whose vertices the ranks share.

use updraft::collectives::{Error, Group, op::Sum};

/// PageRank's iterations, and the memory they need. No iteration allocates.
#[derive(Debug, Clone)]
pub(crate) struct PageRank {
    /// Vertices in the graph.
    vertices: usize,
    damping: f64,
    /// The rank of each own vertex.
    ranks: Vec<f64>,
    /// Its share: what each of its out-edges carries.
    shares: Vec<f64>,
    /// One over its out-edges; 0 without any.
    inverse_degrees: Vec<f64>,
    /// Pulling: the shares of all vertices. Pushing: what the own ones give to each vertex.
    all: Vec<f64>,
    /// What each own vertex got from the sources of its edges.
    sums: Vec<f64>,
    /// The ranks of all vertices without out-edges, which is given to all alike.
    dangling: f64,
}

impl PageRank {
    /// Begins with equal ranks; `out_degrees` are those of the own vertices, of which every rank has as many, up to the last
    /// vertex.
    pub(crate) fn new(
        world: &Group,
        vertices: usize,
        out_degrees: &[u32],
        damping: f64,
    ) -> Result<Self, Error> {
        let block = vertices.div_ceil(world.size()).max(1);
        let inverse = |&degree: &u32| match degree {
            0 => 0.0,
            degree => 1.0 / f64::from(degree),
        };
        let mut new = Self {
            vertices,
            damping,
            ranks: vec![1.0 / vertices as f64; out_degrees.len()],
            inverse_degrees: out_degrees.iter().map(inverse).collect(),
            shares: vec![0.0; block],
            all: vec![0.0; block * world.size()],
            sums: vec![0.0; block],
            dangling: 0.0,
        };
        let mut dangling = [new.own_dangling()];
        world.all_reduce(&mut dangling, Sum).wait()?;
        new.dangling = dangling[0];
        Ok(new)
    }

    /// The rank of each own vertex.
    pub(crate) fn ranks(&self) -> &[f64] {
        &self.ranks
    }

    fn own_dangling(&self) -> f64 {
        let ranks = self.ranks.iter().zip(&self.inverse_degrees);
        let dangling = ranks.filter(|&(_, &inverse)| inverse == 0.0);
        dangling.map(|(rank, _)| rank).sum()
    }

    /// One iteration, on all ranks, in which each learns the shares of all vertices, and adds up those of the sources of each
    /// own one: `rows` gives these by the place of the vertex among the own ones. Gives the sum of the changes.
    ///
    /// A source is a `u32`, or what stands for one in a batch of records.
    pub(crate) fn pull<'r, X: Copy + Into<u32> + 'r>(
        &mut self,
        world: &Group,
        rows: impl Iterator<Item = (usize, &'r [X])>,
    ) -> Result<f64, Error> {
        self.share();
        world.all_gather(&self.shares, &mut self.all).wait()?;
        let all = &self.all[..];
        self.sums.fill(0.0);
        for (place, sources) in rows {
            let shares = sources.iter().map(|&source| all[source.into() as usize]);
            self.sums[place] = shares.sum();
        }
        self.rank(world)
    }

    /// One iteration, on all ranks, in which each adds the share of each own vertex to what its targets get, and has that
    /// added up for the ranks that own them. Gives the sum of the changes.
    pub(crate) fn push<'r>(
        &mut self,
        world: &Group,
        rows: impl Iterator<Item = &'r [u32]>,
    ) -> Result<f64, Error> {
        self.share();
        self.all.fill(0.0);
        for (&share, targets) in self.shares.iter().zip(rows) {
            for &target in targets {
                self.all[target as usize] += share;
            }
        }
        world
            .reduce_scatter(&self.all, &mut self.sums, Sum)
            .wait()?;
        self.rank(world)
    }

    fn share(&mut self) {
        let ranks = self.ranks.iter().zip(&self.inverse_degrees);
        for (share, (rank, inverse)) in self.shares.iter_mut().zip(ranks) {
            *share = rank * inverse;
        }
    }

    /// Makes ranks of what each own vertex got.
    fn rank(&mut self, world: &Group) -> Result<f64, Error> {
        let vertices = self.vertices as f64;
        let base = (1.0 - self.damping + self.damping * self.dangling) / vertices;
        let mut change = 0.0;
        for (rank, sum) in self.ranks.iter_mut().zip(&self.sums) {
            let new = base + self.damping * sum;
            change += (new - *rank).abs();
            *rank = new;
        }
        let mut totals = [self.own_dangling(), change];
        world.all_reduce(&mut totals, Sum).wait()?;
        self.dangling = totals[0];
        Ok(totals[1])
    }
}
