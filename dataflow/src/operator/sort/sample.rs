//! How keys are distributed, and where one rank's part of them ends.

use std::cmp::Ordering;

use transport::{Rank, Reservation};

use super::OrderBy;
use crate::{
    Error, Ordered, Record,
    batch::{Builder, Memory, Page, Shape},
    stage::Place,
};

/// The most keys in the sample of a rank.
const KEYS_MAX: usize = 2048;
/// The most and the least bytes of a rank's sample.
const BYTES_MAX: u64 = 256 << 10;
const BYTES_MIN: u64 = 4 << 10;
/// The part of a rank's memory that the samples of all may take.
const PART: u64 = 8;
/// Memory that the samples of others take, for each byte of our own: keys are kept apart there.
const APART: u64 = 4;
/// A page that is full of fewer keys than this takes no more, rather than making room for others as large.
const KEYS_MIN: usize = 8;

/// A sample of the keys of one rank: of every so many records, in the order of the sorted runs, one, which chance
/// chooses. When there are too many, every other one goes.
pub(crate) struct Samples<K: Record> {
    keys: Builder<K>,
    bytes: usize,
    /// Records that each key stands for.
    every: usize,
    /// Records before the next one that is taken, and from there on those that it stands for.
    before: usize,
    behind: usize,
    /// What chance comes from.
    random: u64,
    reservation: Reservation,
}

/// The most bytes of the sample of a rank that has `share` bytes of memory.
fn bytes(place: &Place, share: u64) -> usize {
    let fair = share / PART / APART / u64::from(place.size);
    fair.clamp(BYTES_MIN, BYTES_MAX) as usize
}

/// Bytes that the samples of all ranks take where they are put together.
pub(crate) fn bytes_of_all(place: &Place, share: u64) -> u64 {
    APART * u64::from(place.size) * bytes(place, share) as u64
}

impl<K: Record> Samples<K> {
    /// An empty sample for a rank that has `share` bytes of memory.
    pub(crate) fn new(place: &Place, share: u64, holder: &'static str) -> Result<Self, Error> {
        let bytes = bytes(place, share);
        Ok(Self {
            keys: Builder::new(Memory::own(bytes), Shape::UNKNOWN),
            bytes,
            every: 1,
            before: 0,
            behind: 1,
            random: place.rank.into(),
            // The other page is for thinning.
            reservation: place.ledger.reserve(holder, 2 * bytes as u64)?,
        })
    }

    /// Adds a sample of a sorted run of `len` records: `take` is to hand the keys of some of them to
    /// [`push`](Self::push).
    pub(crate) fn add(&mut self, len: usize, take: impl Fn(&mut Self, usize)) {
        while len / self.every > KEYS_MAX / 2 {
            self.thin();
        }
        while self.before < len {
            take(self, self.before);
            let skipped = self.draw(self.every);
            self.before += self.behind + skipped;
            self.behind = self.every - skipped;
        }
        self.before -= len;
    }

    /// A number below `bound`, by the generator of Lehmer with Knuth's constants ("The Art of Computer
    /// Programming" 2, 3.3.4), of which the high bits are good.
    fn draw(&mut self, bound: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(0x5851_f42d_4c95_7f2d)
            .wrapping_add(0x1405_7b7e_f767_814f);
        ((u128::from(self.random) * bound as u128) >> 64) as usize
    }

    /// Takes a key into the sample.
    pub(crate) fn push(&mut self, key: K::View<'_>) {
        if self.keys.len() == KEYS_MAX {
            self.thin();
        }
        if self.keys.push(&key).is_err() && self.keys.len() >= KEYS_MIN {
            self.thin();
            // A key that still has no room is not worth the others.
            let _ = self.keys.push(&key);
        }
    }

    /// Has each key stand for twice as many records.
    fn thin(&mut self) {
        self.every *= 2;
        if self.keys.is_empty() {
            return;
        }
        let shape = self.keys.shape();
        let fewer = Builder::new(Memory::own(self.bytes), shape);
        let keys = std::mem::replace(&mut self.keys, fewer).into_page();
        for pair in 0..keys.len() / 2 {
            // Chance chooses here too: the first ones would be the smaller ones. What had room has room again.
            let index = 2 * pair + self.draw(2);
            let _ = self.keys.push(&keys.view(index));
        }
    }

    /// The keys, to be told one after the other.
    pub(crate) fn into_told(self) -> Told<K> {
        Told {
            keys: self.keys.into_page(),
            every: self.every as u64,
            next: 0,
            _reservation: self.reservation,
        }
    }
}

/// A sample on its way to all ranks.
pub(crate) struct Told<K> {
    keys: Page<K>,
    every: u64,
    next: usize,
    _reservation: Reservation,
}

impl<K: Record> Told<K> {
    /// The first key that was not told yet, and for how many records it stands.
    pub(crate) fn first(&self) -> Option<(u64, K::View<'_>)> {
        (self.next < self.keys.len()).then(|| (self.every, self.keys.view(self.next)))
    }

    pub(crate) fn advance(&mut self) {
        self.next += 1;
    }
}

/// A key that some records stand for.
pub(crate) struct Sample<K> {
    pub(crate) key: K,
    pub(crate) prefix: u64,
    pub(crate) rank: Rank,
    pub(crate) records: u64,
}

/// The end of one rank's part and the start of the next one's: a key, and how far into the records with that key
/// it is, of which those of lower ranks come first.
#[derive(Debug)]
pub(crate) struct Splitter<K> {
    pub(crate) key: K,
    pub(crate) prefix: u64,
    /// The rank whose records with that key it divides.
    rank: Rank,
    /// Of so many of them ...
    of: usize,
    /// ... so many are before it.
    before: usize,
}

/// Where the records of a rank are divided that have the key of a splitter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Division {
    /// All are behind the splitter.
    Behind,
    /// All are before it.
    Before,
    /// Some are.
    At,
}

impl<K: Ordered> Splitter<K> {
    pub(crate) fn division(&self, rank: Rank) -> Division {
        match rank.cmp(&self.rank) {
            Ordering::Less => Division::Before,
            Ordering::Equal => Division::At,
            Ordering::Greater => Division::Behind,
        }
    }

    /// How many of `len` records that it divides are before it.
    pub(crate) fn share_of(&self, len: usize) -> usize {
        (len as u128 * self.before as u128 / self.of as u128) as usize
    }

    /// How a record compares with the splitter's key.
    pub(crate) fn compare<T: Record, O>(&self, order: &O, view: T::View<'_>) -> Ordering
    where
        O: OrderBy<T, Key = K>,
    {
        order.with_key(view, |found| {
            self.key.with_view(|key| K::compare(found, key))
        })
    }
}

/// Divides the records that samples stand for among `ranks`: the same samples give the same splitters, one less
/// than there are ranks, or none if there are no samples.
pub(crate) fn split<K: Ordered>(mut samples: Vec<Sample<K>>, ranks: u32) -> Vec<Splitter<K>> {
    let compare_keys = |a: &Sample<K>, b: &Sample<K>| {
        let compare = || a.key.with_view(|a| b.key.with_view(|b| K::compare(a, b)));
        a.prefix.cmp(&b.prefix).then_with(compare)
    };
    samples.sort_by(|a, b| compare_keys(a, b).then(a.rank.cmp(&b.rank)));
    let total: u128 = samples
        .iter()
        .map(|sample| u128::from(sample.records))
        .sum();
    let mut splitters = Vec::new();
    let (mut index, mut before) = (0, 0);
    for part in 1..u128::from(ranks) {
        while let Some(sample) = samples.get(index)
            && index + 1 < samples.len()
            && before * u128::from(ranks) < total * part
        {
            before += u128::from(sample.records);
            index += 1;
        }
        let Some(sample) = samples.get(index) else {
            break;
        };
        let same =
            |other: &&Sample<K>| other.rank == sample.rank && compare_keys(other, sample).is_eq();
        let lower = samples[..index].iter().rev().take_while(same).count();
        let others = samples[index..].iter().take_while(same).count();
        splitters.push((index, lower, lower + others));
    }
    let splitter = |(index, before, of): (usize, usize, usize)| {
        let sample: &Sample<K> = &samples[index];
        Splitter {
            key: sample.key.with_view(K::own),
            prefix: sample.prefix,
            rank: sample.rank,
            of,
            before,
        }
    };
    splitters.into_iter().map(splitter).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::operator::sort::Itself;

    /// How many records of each rank get to each part.
    fn divide(by_rank: &[Vec<u8>], splitters: &[Splitter<u8>]) -> Vec<usize> {
        let mut parts = vec![0; by_rank.len()];
        for (rank, keys) in by_rank.iter().enumerate() {
            let mut start = 0;
            let ends = splitters.iter().map(|splitter| {
                let below = |key: &u8| splitter.compare::<u8, _>(&Itself, *key);
                let lower = keys.partition_point(|key| below(key).is_lt());
                let upper = keys.partition_point(|key| below(key).is_le());
                match splitter.division(rank as Rank) {
                    Division::Behind => lower,
                    Division::Before => upper,
                    Division::At => lower + splitter.share_of(upper - lower),
                }
            });
            for (part, end) in ends.chain([keys.len()]).enumerate() {
                assert!(start <= end, "parts follow each other");
                parts[part] += end - start;
                start = end;
            }
        }
        parts
    }

    proptest! {
        #[test]
        fn parts_are_of_one_size_however_keys_are_distributed(
            mut by_rank in prop::collection::vec(prop::collection::vec(0u8..6, 0..300), 1..6),
        ) {
            let mut samples = Vec::new();
            for (rank, keys) in by_rank.iter_mut().enumerate() {
                keys.sort();
                let sample = |&key: &u8| Sample { key, prefix: key.into(), rank: rank as Rank, records: 1 };
                samples.extend(keys.iter().map(sample));
            }
            let records = samples.len();
            let splitters = split(samples, by_rank.len() as u32);
            let parts = divide(&by_rank, &splitters);
            let fair = records / by_rank.len();
            prop_assert!(parts.iter().all(|part| part.abs_diff(fair) <= 2), "{parts:?}");
        }
    }
}
