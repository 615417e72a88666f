//! The columns of the table, each a function of the row's number.

use crate::random::Random;

/// A table that is never stored.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Table {
    pub(crate) rows: u64,
    /// Values of the columns that have few.
    groups: u64,
    seed: u64,
}

/// All of the columns to group by.
pub(crate) type Ids = ((String, String, String), (u64, u64, u64));

impl Table {
    pub(crate) fn new(rows: u64, groups: u64, seed: u64) -> Self {
        Self { rows, groups, seed }
    }

    /// A number from 1 to `bound` for a row and a column.
    fn draw(&self, row: u64, column: u64, bound: u64) -> u64 {
        1 + Random::at(self.seed, row * 9 + column).below(bound)
    }

    /// Values of the columns that have many.
    fn many(&self) -> u64 {
        (self.rows / self.groups).max(1)
    }

    pub(crate) fn id1(&self, row: u64) -> String {
        format!("id{:03}", self.draw(row, 0, self.groups))
    }

    pub(crate) fn id2(&self, row: u64) -> String {
        format!("id{:03}", self.draw(row, 1, self.groups))
    }

    pub(crate) fn id3(&self, row: u64) -> String {
        format!("id{:010}", self.draw(row, 2, self.many()))
    }

    pub(crate) fn id4(&self, row: u64) -> u64 {
        self.draw(row, 3, self.groups)
    }

    pub(crate) fn id5(&self, row: u64) -> u64 {
        self.draw(row, 4, self.groups)
    }

    pub(crate) fn id6(&self, row: u64) -> u64 {
        self.draw(row, 5, self.many())
    }

    pub(crate) fn v1(&self, row: u64) -> u64 {
        self.draw(row, 6, 5)
    }

    pub(crate) fn v2(&self, row: u64) -> u64 {
        self.draw(row, 7, 15)
    }

    pub(crate) fn v3(&self, row: u64) -> f64 {
        (self.draw(row, 8, 100_000_001) - 1) as f64 / 1e6
    }

    pub(crate) fn values(&self, row: u64) -> (u64, u64, f64) {
        (self.v1(row), self.v2(row), self.v3(row))
    }

    pub(crate) fn all_ids(&self, row: u64) -> Ids {
        let texts = (self.id1(row), self.id2(row), self.id3(row));
        (texts, (self.id4(row), self.id5(row), self.id6(row)))
    }
}
