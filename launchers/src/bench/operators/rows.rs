//! The records that operators are given: each follows from its number, so that any rank can make its share.

use std::{fmt, str::FromStr};

use updraft::dataflow::{Key, Ordered};

/// Sets the keys of the right side of a join apart.
const RIGHT: u64 = 0x5851_f42d_4c95_7f2d;
/// Of so many keys of a join, one is on the left side alone, and one on the right.
const UNMATCHED: u64 = 10;

/// A key.
pub(crate) trait Keyed: Key + Ordered + Default + Clone + Eq + Ord + Sync {
    /// Bytes that it has where it is written.
    const BYTES: u64;

    /// The key of that number. Keys have the order of their numbers.
    fn of(number: u64) -> Self;

    /// Its number.
    fn number(view: Self::View<'_>) -> u64;
}

impl Keyed for u64 {
    const BYTES: u64 = 8;

    #[inline]
    fn of(number: u64) -> Self {
        number
    }

    #[inline]
    fn number(view: u64) -> u64 {
        view
    }
}

impl Keyed for String {
    const BYTES: u64 = 16;

    fn of(number: u64) -> Self {
        let digit = |place: u32| char::from_digit((number >> (4 * place)) as u32 & 15, 16);
        (0..16).rev().filter_map(digit).collect()
    }

    fn number(view: &str) -> u64 {
        u64::from_str_radix(view, 16).unwrap_or(0)
    }
}

/// A record.
pub(crate) trait Row: Key + Ordered + Default + Clone + Eq + Ord + Sync {
    /// Bytes that it has where it is written.
    const BYTES: u64;

    /// The record of that number, which has a key of that one.
    fn of(key: u64, number: u64) -> Self;

    /// The number of its key.
    fn key(view: Self::View<'_>) -> u64;

    /// What is made of two records, in any order.
    fn merge(self, other: Self::View<'_>) -> Self;

    /// The record of that number among those of the left side, or of the only one, with one of so many keys.
    #[inline]
    fn row(number: u64, keys: u64) -> Self {
        Self::of(u64::hash(number) % keys, number)
    }

    /// The same of the right side.
    #[inline]
    fn right_row(number: u64, keys: u64) -> Self {
        Self::of(u64::hash(number ^ RIGHT) % keys + keys / UNMATCHED, number)
    }

    /// What tells it from others.
    fn hash_of(&self) -> u64 {
        self.with_view(Self::hash)
    }
}

impl Row for u64 {
    const BYTES: u64 = 8;

    #[inline]
    fn of(key: u64, _number: u64) -> Self {
        key
    }

    #[inline]
    fn key(view: u64) -> u64 {
        view
    }

    #[inline]
    fn merge(self, other: u64) -> u64 {
        self.wrapping_add(other)
    }
}

impl<K: Keyed> Row for (K, u64) {
    const BYTES: u64 = K::BYTES + 8;

    #[inline]
    fn of(key: u64, number: u64) -> Self {
        (K::of(key), number)
    }

    #[inline]
    fn key(view: (K::View<'_>, u64)) -> u64 {
        K::number(view.0)
    }

    fn merge(self, (key, number): (K::View<'_>, u64)) -> Self {
        (self.0.max(K::own(key)), self.1.wrapping_add(number))
    }
}

/// Several records in three words, whatever their order: how many they are, the sum of their hashes, and whether
/// they came in the order they should have come in, if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Digest {
    pub(crate) records: u64,
    pub(crate) sum: u64,
    pub(crate) in_order: bool,
}

impl Default for Digest {
    fn default() -> Self {
        Self {
            records: 0,
            sum: 0,
            in_order: true,
        }
    }
}

impl Digest {
    /// Of records with such hashes, in order.
    pub(crate) fn of(hashes: impl IntoIterator<Item = u64>) -> Self {
        hashes.into_iter().fold(Self::default(), |mut all, hash| {
            all.records += 1;
            all.sum = all.sum.wrapping_add(hash);
            all
        })
    }

    /// Of records that are there so many times.
    pub(crate) fn times(self, times: u64) -> Self {
        Self {
            records: self.records * times,
            sum: self.sum.wrapping_mul(times),
            ..self
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            records,
            sum,
            in_order,
        } = self;
        let order = if *in_order { "" } else { " out-of-order" };
        write!(f, "{records} {sum:016x}{order}")
    }
}

impl FromStr for Digest {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut words = text.split_whitespace();
        let mut next = || words.next().ok_or(());
        Ok(Self {
            records: next()?.parse().map_err(drop)?,
            sum: u64::from_str_radix(next()?, 16).map_err(drop)?,
            in_order: next().is_err(),
        })
    }
}

/// What tells a key with two lists of values from others, in which only the order of `places` counts.
pub(crate) fn hash_of_group<K: Key>(key: K::View<'_>, sides: [(u64, u64); 2]) -> u64 {
    let [(left, left_sum), (right, right_sum)] = sides;
    u64::hash(K::hash(key) ^ u64::hash(left ^ u64::hash(left_sum)))
        .wrapping_add(u64::hash(right ^ u64::hash(right_sum)))
}

/// How many values there are, and what they are, in any order.
pub(crate) fn unordered(values: impl Iterator<Item = u64>) -> (u64, u64) {
    let found = Digest::of(values.map(u64::hash));
    (found.records, found.sum)
}

/// How many values there are, what they are, and in which order.
pub(crate) fn ordered(values: impl Iterator<Item = u64>) -> (u64, u64) {
    let hashes = (1..).zip(values);
    unordered(
        hashes.map(|(place, value): (u64, u64)| u64::hash(place).wrapping_mul(value | 1) ^ value),
    )
}
