//! Sparse matrices whose rows the ranks share.

use std::ops::Range;

use updraft::collectives::{Error, Group, Neighbours};

/// A rank's rows of a square matrix, and what it needs to multiply them by a vector whose elements the ranks share as they
/// share the rows.
#[derive(Debug)]
pub(crate) struct Matrix {
    /// The rows of this rank.
    pub(crate) own: Range<usize>,
    /// Where the entries of each row begin, and where the last ones end.
    starts: Vec<usize>,
    /// The column of each entry: that of an own element of the vector, counted from the first one, or, after those, that of
    /// one of another rank.
    columns: Vec<u32>,
    values: Vec<f64>,
    /// Elements of other ranks that are needed.
    foreign: usize,
    /// The ranks that have those, and those that need elements of this one.
    neighbours: Neighbours,
    /// The own elements that each of the latter needs.
    wanted: Vec<Vec<u32>>,
    /// The same elements of a vector, to be sent.
    outgoing: Vec<Vec<f64>>,
}

impl Matrix {
    /// The rows of this rank of a matrix with so many. `row` gives the entries of a row, with their columns.
    pub(crate) fn new<R: IntoIterator<Item = (usize, f64)>>(
        world: &Group,
        rows: usize,
        row: impl Fn(usize) -> R,
    ) -> Result<Self, Error> {
        let size = world.size();
        let edge = |rank: usize| rows * rank / size;
        let own = edge(world.rank())..edge(world.rank() + 1);
        let (mut starts, mut places, mut values) = (vec![0], Vec::new(), Vec::new());
        for index in own.clone() {
            for (column, value) in row(index) {
                places.push(column);
                values.push(value);
            }
            starts.push(places.len());
        }

        let is_own = |column: &usize| own.contains(column);
        let mut needed: Vec<usize> = places.iter().copied().filter(|c| !is_own(c)).collect();
        needed.sort_unstable();
        needed.dedup();
        let columns = places
            .iter()
            .map(|column| match needed.binary_search(column) {
                Ok(place) => (own.len() + place) as u32,
                Err(_) => (column - own.start) as u32,
            })
            .collect();
        let lists: Vec<Vec<u64>> = (0..size)
            .map(|rank| {
                let theirs = edge(rank)..edge(rank + 1);
                let columns = needed.iter().filter(|column| theirs.contains(column));
                columns.map(|&column| column as u64).collect()
            })
            .collect();
        let slices: Vec<&[u64]> = lists.iter().map(Vec::as_slice).collect();
        let asked = world.all_to_all_v(&slices).wait()?;
        let of = |parts: &mut dyn Iterator<Item = usize>| -> Vec<usize> {
            let ranks = parts.enumerate().filter(|(_, len)| *len > 0);
            ranks.map(|(rank, _)| rank).collect()
        };
        let sources = of(&mut lists.iter().map(Vec::len));
        let targets = of(&mut asked.iter().map(<[u64]>::len));
        let wanted: Vec<Vec<u32>> = targets
            .iter()
            .map(|&rank| &asked[rank])
            .map(|columns| {
                let place = |&column: &u64| (column as usize - own.start) as u32;
                columns.iter().map(place).collect()
            })
            .collect();
        Ok(Self {
            outgoing: wanted
                .iter()
                .map(|wanted| vec![0.0; wanted.len()])
                .collect(),
            foreign: needed.len(),
            neighbours: world.adjacent(&sources, &targets).wait()?,
            own,
            starts,
            columns,
            values,
            wanted,
        })
    }

    /// A vector of zeros, with room for what is needed of other ranks after the own elements.
    pub(crate) fn vector(&self) -> Vec<f64> {
        vec![0.0; self.own.len() + self.foreign]
    }

    /// Writes the product with `vector` to `product`, on all ranks. What `vector` holds of other ranks is learnt from them.
    pub(crate) fn multiply(
        &mut self,
        world: &Group,
        vector: &mut [f64],
        product: &mut [f64],
    ) -> Result<(), Error> {
        let (own, foreign) = vector.split_at_mut(self.own.len());
        if world.size() > 1 {
            for (outgoing, wanted) in self.outgoing.iter_mut().zip(&self.wanted) {
                for (out, &place) in outgoing.iter_mut().zip(wanted) {
                    *out = own[place as usize];
                }
            }
            let parts: Vec<&[f64]> = self.outgoing.iter().map(Vec::as_slice).collect();
            let theirs = world
                .neighbour_all_to_all_v(&self.neighbours, &parts)
                .wait()?;
            // In the order of the ranks, which is that of the columns.
            foreign.copy_from_slice(theirs.elements());
        }
        for (product, ends) in product.iter_mut().zip(self.starts.windows(2)) {
            let entries = ends[0]..ends[1];
            let terms = self.columns[entries.clone()]
                .iter()
                .zip(&self.values[entries]);
            *product = terms
                .map(|(&column, value)| value * vector[column as usize])
                .sum();
        }
        Ok(())
    }
}
