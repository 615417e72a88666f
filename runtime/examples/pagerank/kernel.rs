//! PageRank in the manner of MPI, on a graph whose vertices the ranks share.

use updraft::collectives::{Error, Group, op::Sum};

use super::graph::{By, Part};

/// PageRank's iterations, and the memory they need. No iteration allocates.
#[derive(Debug)]
pub(crate) struct PageRank<'p> {
    graph: &'p Part,
    by: By,
    damping: f64,
    /// The rank of each own vertex.
    ranks: Vec<f64>,
    /// Its share: what each of its out-edges carries.
    shares: Vec<f64>,
    /// One over its out-edges; 0 without any.
    inverse_degrees: Vec<f64>,
    /// By target: the shares of all vertices. By source: what the own ones give to each vertex.
    all: Vec<f64>,
    /// What each own vertex got from the sources of its edges.
    sums: Vec<f64>,
    /// The ranks of all vertices without out-edges, which is given to all alike.
    dangling: f64,
}

impl<'p> PageRank<'p> {
    /// Begins with equal ranks, on the edges of the own vertices as targets or as sources.
    pub(crate) fn new(world: &Group, graph: &'p Part, by: By, damping: f64) -> Result<Self, Error> {
        let own = graph.own.len();
        let ranks = vec![1.0 / graph.vertices as f64; own];
        let inverse = |&degree: &u32| match degree {
            0 => 0.0,
            degree => 1.0 / f64::from(degree),
        };
        let mut new = Self {
            inverse_degrees: graph.out_degrees[..own].iter().map(inverse).collect(),
            shares: vec![0.0; graph.block],
            all: vec![0.0; graph.block * world.size()],
            sums: vec![0.0; graph.block],
            dangling: 0.0,
            graph,
            by,
            damping,
            ranks,
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

    /// One iteration, on all ranks. Gives the sum of the changes.
    pub(crate) fn step(&mut self, world: &Group) -> Result<f64, Error> {
        let ranks = self.ranks.iter().zip(&self.inverse_degrees);
        for (share, (rank, inverse)) in self.shares.iter_mut().zip(ranks) {
            *share = rank * inverse;
        }
        match self.by {
            By::Target => self.pull(world)?,
            By::Source => self.push(world)?,
        }
        let vertices = self.graph.vertices as f64;
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

    /// Learns the shares of all vertices, and adds up those of the sources of each own one.
    fn pull(&mut self, world: &Group) -> Result<(), Error> {
        world.all_gather(&self.shares, &mut self.all).wait()?;
        let all = &self.all[..];
        for (sum, sources) in self.sums.iter_mut().zip(self.graph.rows()) {
            *sum = sources.iter().map(|&source| all[source as usize]).sum();
        }
        Ok(())
    }

    /// Adds the share of each own vertex to what its targets get, and has that added up for the ranks that own them.
    fn push(&mut self, world: &Group) -> Result<(), Error> {
        self.all.fill(0.0);
        for (&share, targets) in self.shares.iter().zip(self.graph.rows()) {
            for &target in targets {
                self.all[target as usize] += share;
            }
        }
        world.reduce_scatter(&self.all, &mut self.sums, Sum).wait()
    }
}
