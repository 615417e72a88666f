//! Records kept by key: what joins and groups look up.
//!
//! Records stay in the archives they came in. The table has one entry for each key, the first of its rows; each
//! row knows the next of the same key. So a row costs its own bytes and one link, and rows of one key, however
//! many, cost no more than others.

use std::mem;

use hashbrown::{HashTable, hash_table};
use transport::Reservation;

use crate::{
    Error, Key, Record,
    batch::{Batch, Kept},
    stage::Place,
};

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    batch: u32,
    index: u32,
}

impl Row {
    /// No record.
    pub(crate) const NONE: Self = Self {
        batch: u32::MAX,
        index: u32::MAX,
    };
}

/// Records in the archives they came in, in memory that is entered on the ledger.
pub(crate) struct Rows<T> {
    batches: Vec<Kept<T>>,
    pub(crate) reservation: Reservation,
}

impl<T: Record> Rows<T> {
    pub(crate) fn new(place: &Place, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            batches: Vec::new(),
            reservation: place.ledger.reserve(holder, 0)?,
        })
    }

    /// Keeps a batch.
    pub(crate) fn keep(&mut self, batch: &Batch<T>) -> Result<(), Error> {
        let bytes = batch.bytes() + size_of::<Kept<T>>();
        self.reservation.grow(bytes as u64)?;
        self.batches.push(batch.keep());
        Ok(())
    }

    #[inline]
    pub(crate) fn view(&self, row: Row) -> T::View<'_> {
        view(&self.batches, row)
    }

    pub(crate) fn batches(&self) -> &[Kept<T>] {
        &self.batches
    }
}

/// The rows of one key.
struct Chain<M> {
    hash: u64,
    first: Row,
    mark: M,
}

/// Records by their keys. `M` is what is noted of a key besides.
pub(crate) struct Index<K: Key, V: Record, M> {
    pub(crate) rows: Rows<(K, V)>,
    chains: HashTable<Chain<M>>,
    /// The chains on their way out.
    drain: Option<hash_table::IntoIter<Chain<M>>>,
    /// The row after each, by batch.
    next: Vec<Vec<Row>>,
    /// The first row whose key joins nothing.
    nulls: Row,
    /// Whether such rows are kept apart, or are rows of a key like any other.
    nulls_apart: bool,
}

impl<K: Key, V: Record, M: Default> Index<K, V, M> {
    pub(crate) fn new(
        place: &Place,
        holder: &'static str,
        nulls_apart: bool,
    ) -> Result<Self, Error> {
        Ok(Self {
            rows: Rows::new(place, holder)?,
            chains: HashTable::new(),
            drain: None,
            next: Vec::new(),
            nulls: Row::NONE,
            nulls_apart,
        })
    }

    /// Enters the rows of the next batch that was kept; false if all are.
    pub(crate) fn build(&mut self) -> Result<bool, Error> {
        let batch = self.next.len();
        let Some(kept) = self.rows.batches.get(batch) else {
            return Ok(false);
        };
        let bytes = kept.len() * size_of::<Row>() + size_of::<Vec<Row>>();
        self.rows.reservation.grow(bytes as u64)?;
        let mut links = Vec::with_capacity(kept.len());
        for (index, (key, _)) in self.rows.batches[batch].views(0).enumerate() {
            let row = Row {
                batch: batch as u32,
                index: index as u32,
            };
            if self.nulls_apart && K::is_null(key) {
                links.push(mem::replace(&mut self.nulls, row));
                continue;
            }
            let hash = K::hash(key);
            match self
                .chains
                .find_mut(hash, is_of(&self.rows.batches, hash, key))
            {
                Some(chain) => links.push(mem::replace(&mut chain.first, row)),
                None => {
                    if self.chains.len() == self.chains.capacity() {
                        make_room(&mut self.chains, &mut self.rows.reservation)?;
                    }
                    let chain = Chain {
                        hash,
                        first: row,
                        mark: M::default(),
                    };
                    self.chains.insert_unique(hash, chain, |chain| chain.hash);
                    links.push(Row::NONE);
                }
            }
        }
        self.next.push(links);
        Ok(true)
    }

    /// The first row of a key, and what is noted of it.
    #[inline]
    pub(crate) fn find(&mut self, key: K::View<'_>) -> Option<(Row, &mut M)> {
        let hash = K::hash(key);
        let chain = self
            .chains
            .find_mut(hash, is_of(&self.rows.batches, hash, key))?;
        Some((chain.first, &mut chain.mark))
    }

    /// The next row of the same key.
    #[inline]
    pub(crate) fn after(&self, row: Row) -> Row {
        self.next[row.batch as usize][row.index as usize]
    }

    /// The rows from `first` on that have the same key.
    pub(crate) fn rows_from(&self, first: Row) -> impl Iterator<Item = Row> {
        let some = |row: Row| (row != Row::NONE).then_some(row);
        std::iter::successors(some(first), move |&row| some(self.after(row)))
    }

    /// The first row of another key that is noted as `wanted`, or in the end of those that join nothing. The table
    /// is used up by that.
    pub(crate) fn next_key(&mut self, wanted: impl Fn(&M) -> bool) -> Option<Row> {
        let chains = &mut self.chains;
        let drain = self
            .drain
            .get_or_insert_with(|| mem::take(chains).into_iter());
        if let Some(chain) = drain.find(|chain| wanted(&chain.mark)) {
            return Some(chain.first);
        }
        let nulls = mem::replace(&mut self.nulls, Row::NONE);
        (nulls != Row::NONE).then_some(nulls)
    }
}

/// Whether a chain is of this key.
#[inline]
fn is_of<K: Key, V: Record, M>(
    batches: &[Kept<(K, V)>],
    hash: u64,
    key: K::View<'_>,
) -> impl Fn(&Chain<M>) -> bool {
    move |chain| chain.hash == hash && K::same(view(batches, chain.first).0, key)
}

#[inline]
fn view<T: Record>(batches: &[Kept<T>], row: Row) -> T::View<'_> {
    batches[row.batch as usize].view(row.index as usize)
}

/// Enters the doubled table on the ledger. While it grows, the old one is there too.
fn make_room<M>(
    chains: &mut HashTable<Chain<M>>,
    reservation: &mut Reservation,
) -> Result<(), Error> {
    let before = chains.allocation_size() as u64;
    let guess = 2 * before.max(8 * size_of::<Chain<M>>() as u64);
    reservation.grow(guess)?;
    chains.reserve(chains.capacity().max(1), |chain| chain.hash);
    let entered = reservation.bytes();
    let here = entered - guess - before + chains.allocation_size() as u64;
    if here > entered {
        reservation.grow(here - entered)?;
    }
    reservation.shrink_to(here);
    Ok(())
}
