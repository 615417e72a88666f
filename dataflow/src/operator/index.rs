//! Records kept by key: what joins and groups look up.
//!
//! Records stay in the archives they came in. When all have come, a table of words is made, with at most every
//! second one filled: one for each key, which says where its first row is and holds some bits of its hash. Each row
//! that another one follows knows the next of the same key. So rows of one key, however many, cost no more than
//! others, and a row whose key nobody shares costs its own bytes and two words.
//!
//! What is looked up is hardly ever in a cache. So keys are looked up in groups: first the words of all are asked for, then
//! the rows of all, so that the processor waits for many at a time and not for each in turn (as in Chen, Ailamaki,
//! Gibbons, Mowry: "Improving hash join performance through prefetching", 2004).

use transport::{prefetch_read, prefetch_write};

use crate::{
    Error, Key, Record,
    batch::{Batch, Page},
    operator::room::Room,
    stage::Place,
};

/// Where a record is: the number of its batch, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row(u64);

/// Bits of either number.
const NUMBER_BITS: u32 = 24;
const NUMBER_MASK: u64 = (1 << NUMBER_BITS) - 1;
const ROW_MASK: u64 = (1 << (2 * NUMBER_BITS)) - 1;

impl Row {
    /// No record.
    pub(crate) const NONE: Self = Self(ROW_MASK);

    fn new(batch: usize, index: usize) -> Self {
        Self((batch as u64) << NUMBER_BITS | index as u64)
    }

    fn batch(self) -> usize {
        (self.0 >> NUMBER_BITS) as usize
    }

    fn index(self) -> usize {
        (self.0 & NUMBER_MASK) as usize
    }
}

/// Records in the archives they came in, in memory that is entered on the ledger.
pub(crate) struct Rows<T> {
    batches: Vec<Page<T>>,
    number: usize,
    room: Room,
}

impl<T: Record> Rows<T> {
    pub(crate) fn new(place: &Place, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            batches: Vec::new(),
            number: 0,
            room: Room::new(place, holder)?,
        })
    }

    /// Keeps a batch, with so many bytes for what is made of its records later; false when there is no room.
    ///
    /// # Errors
    ///
    /// [`Error::GraphTooLarge`].
    pub(crate) fn keep(&mut self, batch: &Batch<T>, more: u64) -> Result<bool, Error> {
        for number in [self.batches.len() + 1, batch.len()] {
            if number as u64 >= NUMBER_MASK {
                return Err(Error::GraphTooLarge {
                    what: format!("{number} batches, or records in one, to be kept"),
                    limit: NUMBER_MASK as u32,
                });
            }
        }
        let bytes = batch.bytes() + size_of::<Page<T>>();
        if !self.room.take(bytes as u64 + more) {
            return Ok(false);
        }
        self.number += batch.len();
        self.batches.push(batch.keep());
        Ok(true)
    }

    /// What is said of a batch that was not kept, if there is no other place for it.
    pub(crate) fn refusal(&self, holder: &'static str, batch: &Batch<T>) -> Error {
        self.room.refusal(holder, batch.bytes() as u64)
    }

    /// Gives up the batch that was kept last.
    pub(crate) fn pop(&mut self) -> Option<Page<T>> {
        let batch = self.batches.pop()?;
        self.number -= batch.len();
        let bytes = batch.capacity() + size_of::<Page<T>>();
        self.room.give_back(bytes as u64);
        Some(batch)
    }

    #[inline]
    pub(crate) fn view(&self, row: Row) -> T::View<'_> {
        self.batches[row.batch()].view(row.index())
    }

    /// Has the processor fetch a record that is soon to be read.
    #[inline]
    fn prefetch(&self, row: Row) {
        self.batches[row.batch()].prefetch(row.index());
    }

    pub(crate) fn batches(&self) -> &[Page<T>] {
        &self.batches
    }
}

/// A word of the table: from the top, some bits of the hash of a key; whether its first row is followed by others;
/// whether the key was marked; and the row.
type Word = u64;

/// No key.
const EMPTY: Word = Word::MAX;
const MARKED: Word = 1 << 48;
const FOLLOWED: Word = 1 << 49;
const TAG_SHIFT: u32 = 50;

fn row_of(word: Word) -> Row {
    Row(word & ROW_MASK)
}

/// Whether a word may be of a key with this hash.
#[inline]
fn has_tag(word: Word, hash: u64) -> bool {
    word >> TAG_SHIFT == hash >> TAG_SHIFT
}

/// Keys looked up together: as many as a core waits for at a time, and some.
pub(crate) const GROUP: usize = 32;

/// The place of a key in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found(usize);

impl Found {
    /// It is not there.
    pub(crate) const NOTHING: Self = Self(usize::MAX);
}

/// Records by their keys.
pub(crate) struct Index<K: Key, V: Record> {
    pub(crate) rows: Rows<(K, V)>,
    words: Vec<Word>,
    /// Batches whose rows are entered.
    entered: usize,
    /// The row after each, by batch, for batches that have such rows.
    next: Vec<Vec<Row>>,
    /// The first row whose key joins nothing.
    nulls: Row,
    /// Whether such rows are kept apart, or are rows of a key like any other.
    nulls_apart: bool,
    /// Words that were given as keys.
    given: usize,
}

impl<K: Key, V: Record> Index<K, V> {
    pub(crate) fn new(
        place: &Place,
        holder: &'static str,
        nulls_apart: bool,
    ) -> Result<Self, Error> {
        Ok(Self {
            rows: Rows::new(place, holder)?,
            words: Vec::new(),
            entered: 0,
            next: Vec::new(),
            nulls: Row::NONE,
            nulls_apart,
            given: 0,
        })
    }

    /// Keeps a batch, and has room for the table of all; false when there is none.
    ///
    /// # Errors
    ///
    /// [`Error::GraphTooLarge`].
    pub(crate) fn keep(&mut self, batch: &Batch<(K, V)>) -> Result<bool, Error> {
        let before = Self::table_bytes(self.rows.batches.len(), self.rows.number);
        let after = Self::table_bytes(self.rows.batches.len() + 1, self.rows.number + batch.len());
        self.rows.keep(batch, after - before)
    }

    /// Gives up a batch, after those that came behind it, and the table.
    pub(crate) fn pop(&mut self) -> Option<Page<(K, V)>> {
        (self.words, self.next) = (Vec::new(), Vec::new());
        let before = Self::table_bytes(self.rows.batches.len(), self.rows.number);
        let batch = self.rows.pop()?;
        let after = Self::table_bytes(self.rows.batches.len(), self.rows.number);
        self.rows.room.give_back(before - after);
        Some(batch)
    }

    /// The most that the table of so many rows takes: words, of which half may be filled, and what follows each row.
    fn table_bytes(batches: usize, rows: usize) -> u64 {
        let words = Self::words_of(rows) * size_of::<Word>();
        let links = batches * size_of::<Vec<Row>>() + rows * size_of::<Row>();
        (words + links) as u64
    }

    fn words_of(rows: usize) -> usize {
        (2 * rows).next_power_of_two()
    }

    /// Enters the rows of the next batch that was kept, when all are kept; false if all are entered.
    pub(crate) fn build(&mut self) -> bool {
        if self.words.is_empty() {
            self.words = vec![EMPTY; Self::words_of(self.rows.number)];
            self.next.resize_with(self.rows.batches.len(), Vec::new);
        }
        let batch = self.entered;
        let Some(kept) = self.rows.batches.get(batch) else {
            return false;
        };
        self.entered += 1;
        let len = kept.len();
        for start in (0..len).step_by(GROUP) {
            let group = start..len.min(start + GROUP);
            let elements = &self.rows.batches[batch].elements()[group.clone()];
            let mut hashes = [0; GROUP];
            for (element, hash) in elements.iter().zip(&mut hashes) {
                *hash = K::hash(<(K, V)>::view(element).0);
                prefetch_write((&raw const self.words[self.place_of(*hash)]).cast());
            }
            for (index, hash) in group.zip(hashes) {
                self.enter(Row::new(batch, index), hash);
            }
        }
        true
    }

    fn place_of(&self, hash: u64) -> usize {
        hash as usize & (self.words.len() - 1)
    }

    /// Enters a row, before those of the same key.
    #[inline]
    fn enter(&mut self, row: Row, hash: u64) {
        let (key, _) = self.rows.view(row);
        if self.nulls_apart && K::is_null(key) {
            let after = std::mem::replace(&mut self.nulls, row);
            if after != Row::NONE {
                self.link(row, after);
            }
            return;
        }
        let tag = hash >> TAG_SHIFT << TAG_SHIFT;
        let mut at = self.place_of(hash);
        loop {
            let word = self.words[at];
            if word == EMPTY {
                self.words[at] = tag | row.0;
                return;
            }
            if has_tag(word, hash) && K::same(self.rows.view(row_of(word)).0, key) {
                self.words[at] = tag | FOLLOWED | row.0;
                self.link(row, row_of(word));
                return;
            }
            at = (at + 1) & (self.words.len() - 1);
        }
    }

    /// Notes that a row is followed by another.
    fn link(&mut self, row: Row, after: Row) {
        let links = &mut self.next[row.batch()];
        if links.is_empty() {
            *links = vec![Row::NONE; self.rows.batches[row.batch()].len()];
        }
        links[row.index()] = after;
    }

    /// Where the keys of some records are, be they null, which are nowhere if they are kept apart.
    #[inline]
    pub(crate) fn find_all<L: Record>(
        &self,
        elements: &[<(K, L) as rkyv::Archive>::Archived],
        found: &mut [Found; GROUP],
    ) {
        let mut looked_at = [(0, 0); GROUP];
        for (element, looked_at) in elements.iter().zip(&mut looked_at) {
            let hash = K::hash(<(K, L)>::view(element).0);
            let at = self.place_of(hash);
            prefetch_read((&raw const self.words[at]).cast());
            *looked_at = (hash, at);
        }
        for (_, (hash, at)) in elements.iter().zip(&mut looked_at) {
            // Past words of other keys, which come without a wait.
            while self.words[*at] != EMPTY && !has_tag(self.words[*at], *hash) {
                *at = (*at + 1) & (self.words.len() - 1);
            }
            if self.words[*at] != EMPTY {
                self.rows.prefetch(row_of(self.words[*at]));
            }
        }
        let looked_at = elements.iter().zip(looked_at);
        for ((element, (hash, at)), found) in looked_at.zip(found) {
            let (key, _) = <(K, L)>::view(element);
            *found = if self.nulls_apart && K::is_null(key) {
                Found::NOTHING
            } else {
                self.find_from(key, hash, at)
            };
        }
    }

    /// Where a key is.
    pub(crate) fn find(&self, key: K::View<'_>) -> Found {
        let hash = K::hash(key);
        let at = self.place_of(hash);
        self.find_from(key, hash, at)
    }

    /// Where a key is, from the place on where it could be first.
    #[inline]
    fn find_from(&self, key: K::View<'_>, hash: u64, mut at: usize) -> Found {
        loop {
            let word = self.words[at];
            if word == EMPTY {
                return Found::NOTHING;
            }
            if has_tag(word, hash) && K::same(self.rows.view(row_of(word)).0, key) {
                return Found(at);
            }
            at = (at + 1) & (self.words.len() - 1);
        }
    }

    /// The first row of a key that was found, and whether others follow.
    #[inline]
    pub(crate) fn first(&self, found: Found) -> (Row, bool) {
        let word = self.words[found.0];
        (row_of(word), word & FOLLOWED != 0)
    }

    /// Notes of a key that it was found.
    #[inline]
    pub(crate) fn mark(&mut self, found: Found) {
        self.words[found.0] |= MARKED;
    }

    /// The next row of the same key.
    #[inline]
    pub(crate) fn after(&self, row: Row) -> Row {
        let links = &self.next[row.batch()];
        links.get(row.index()).copied().unwrap_or(Row::NONE)
    }

    /// The rows from `first` on that have the same key.
    pub(crate) fn rows_from(&self, first: Row) -> impl Iterator<Item = Row> {
        let some = |row: Row| (row != Row::NONE).then_some(row);
        std::iter::successors(some(first), move |&row| some(self.after(row)))
    }

    /// The first row of another key that was not marked, or in the end of those that join nothing.
    pub(crate) fn next_unmarked(&mut self) -> Option<Row> {
        let left = &self.words[self.given..];
        let wanted = |&word: &Word| word != EMPTY && word & MARKED == 0;
        if let Some(ahead) = left.iter().position(wanted) {
            self.given += ahead + 1;
            return Some(row_of(left[ahead]));
        }
        self.given = self.words.len();
        let nulls = std::mem::replace(&mut self.nulls, Row::NONE);
        (nulls != Row::NONE).then_some(nulls)
    }
}
