//! The heat equation on a rectangle that the ranks share, by explicit steps.

use std::{mem, ops::Range};

use updraft::collectives::{Cartesian, Error, Group, Neighbours, op::Max};

/// The part of `len` that is number `part` of `parts`; parts differ by one at most, and those that are longer come first.
pub(crate) fn share(len: usize, part: usize, parts: usize) -> Range<usize> {
    let (least, longer) = (len / parts, len % parts);
    let start = part * least + part.min(longer);
    start..start + least + usize::from(part < longer)
}

/// How the blocks of so many ranks lie, below one another and beside one another.
pub(crate) fn arrangement(ranks: usize) -> Result<Cartesian, Error> {
    Cartesian::balanced(ranks, &[false, false])
}

/// The rows and columns of a rank's block.
pub(crate) fn place(
    grid: &Cartesian,
    rank: usize,
    [height, width]: [usize; 2],
) -> [Range<usize>; 2] {
    let at = grid.coordinates(rank).unwrap_or_default();
    let lens = grid.dimensions();
    [
        share(height, at[0], lens[0].len),
        share(width, at[1], lens[1].len),
    ]
}

/// A rank's block of the rectangle, with a border of one cell that holds what its neighbours have, or what is fixed.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) rows: Range<usize>,
    pub(crate) columns: Range<usize>,
    /// Cells of a row, with its borders.
    width: usize,
    cells: Vec<f64>,
    next: Vec<f64>,
    neighbours: Neighbours,
    /// What those above, below, on the left and on the right are sent.
    edges: [Vec<f64>; 4],
}

impl Block {
    /// The block of this rank. `temperature` gives that of each cell at the beginning; row and column numbers begin with 1,
    /// and what lies around is fixed.
    pub(crate) fn new(
        world: &Group,
        extent: [usize; 2],
        temperature: impl Fn(usize, usize) -> f64,
    ) -> Result<Self, Error> {
        let grid = arrangement(world.size())?;
        let neighbours = world.cartesian(&grid).wait()?;
        let [rows, columns] = place(&grid, world.rank(), extent);
        let cells: Vec<f64> = (rows.start..rows.end + 2)
            .flat_map(|row| (columns.start..columns.end + 2).map(move |column| (row, column)))
            .map(|(row, column)| temperature(row, column))
            .collect();
        Ok(Self {
            width: columns.len() + 2,
            next: cells.clone(),
            cells,
            neighbours,
            edges: [columns.len(), columns.len(), rows.len(), rows.len()].map(|len| vec![0.0; len]),
            rows,
            columns,
        })
    }

    /// Learns what the neighbours have along the edges.
    fn exchange(&mut self, world: &Group) -> Result<(), Error> {
        let (height, width) = (self.rows.len(), self.columns.len());
        let line = self.width;
        let cells = &self.cells;
        self.edges[0].copy_from_slice(&cells[line + 1..][..width]);
        self.edges[1].copy_from_slice(&cells[height * line + 1..][..width]);
        for row in 0..height {
            self.edges[2][row] = cells[(row + 1) * line + 1];
            self.edges[3][row] = cells[(row + 1) * line + width];
        }
        let parts = self.edges.each_ref().map(Vec::as_slice);
        let theirs = world
            .neighbour_all_to_all_v(&self.neighbours, &parts)
            .wait()?;
        // A neighbour off the rectangle, or without cells, has sent nothing: what is fixed stays.
        let cells = &mut self.cells;
        cells[1..][..theirs[0].len()].copy_from_slice(&theirs[0]);
        cells[(height + 1) * line + 1..][..theirs[1].len()].copy_from_slice(&theirs[1]);
        for (side, column) in [(2, 0), (3, width + 1)] {
            for (row, &cell) in theirs[side].iter().enumerate() {
                cells[(row + 1) * line + column] = cell;
            }
        }
        Ok(())
    }

    /// One step, on all ranks: each cell approaches the mean of its four neighbours, by `rate` times the difference of their
    /// sum. Stable up to a rate of 1/4.
    pub(crate) fn step(&mut self, world: &Group, rate: f64) -> Result<(), Error> {
        if world.size() > 1 {
            self.exchange(world)?;
        }
        let (line, width) = (self.width, self.columns.len());
        for row in 1..=self.rows.len() {
            let above = &self.cells[(row - 1) * line..][..line];
            let here = &self.cells[row * line..][..line];
            let below = &self.cells[(row + 1) * line..][..line];
            let next = &mut self.next[row * line + 1..][..width];
            for (column, next) in next.iter_mut().enumerate() {
                let around =
                    above[column + 1] + below[column + 1] + here[column] + here[column + 2];
                *next = here[column + 1] + rate * (around - 4.0 * here[column + 1]);
            }
        }
        mem::swap(&mut self.cells, &mut self.next);
        Ok(())
    }

    /// The largest change that the last step made to a cell of any rank.
    pub(crate) fn change(&self, world: &Group) -> Result<f64, Error> {
        let changes = self.own().zip(self.own_of(&self.next));
        let change = changes.map(|(new, old)| (new - old).abs());
        let mut largest = [change.fold(0.0, f64::max)];
        world.all_reduce(&mut largest, Max).wait()?;
        Ok(largest[0])
    }

    /// The cells of this rank, row by row.
    pub(crate) fn own(&self) -> impl Iterator<Item = f64> {
        self.own_of(&self.cells)
    }

    fn own_of<'c>(&self, cells: &'c [f64]) -> impl Iterator<Item = f64> + use<'c> {
        let width = self.columns.len();
        let rows = cells.chunks_exact(self.width).skip(1).take(self.rows.len());
        rows.flat_map(move |row| row[1..=width].iter().copied())
    }
}
