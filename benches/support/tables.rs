//! Two tables of numbers as CSV files, to be joined and grouped.

use dataflow::Key;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

/// Rows on the left side, to one on the right.
const LEFT_ROWS: u64 = 10;
/// Groups on the left side, if there are rows for them.
const GROUPS: u64 = 100_000;
/// One more than the largest value.
const VALUES: u64 = 1000;

/// Writes `left`, with an id, a group and a value in each of `rows` rows, and `right`, with an id and a value in a tenth
/// as many. Nine of ten rows on the left find one on the right.
pub fn write(left: &Path, right: &Path, rows: u64) -> io::Result<()> {
    let others = (rows / LEFT_ROWS).max(1);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(left)?);
    for row in 0..rows {
        let hash = u64::hash(row);
        let (id, group) = (hash % (others * 10 / 9), u64::hash(hash) % GROUPS);
        writeln!(file, "{id},{group},{}", hash % VALUES)?;
    }
    file.into_inner()?.sync_all()?;
    let mut file = BufWriter::with_capacity(1 << 20, File::create(right)?);
    for id in 0..others {
        writeln!(file, "{id},{}", u64::hash(!id) % VALUES)?;
    }
    file.into_inner()?.sync_all()
}
