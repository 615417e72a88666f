//! What a word count found, small enough to compare.

use std::fmt;

/// A word count in three numbers, which every correct program agrees on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// How many different words there are.
    pub distinct: u64,
    /// How many words there are.
    pub total: u64,
    /// How often the most frequent word occurs.
    pub top: u64,
}

impl Answer {
    /// The answer of two sets of words that have none in common.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self {
            distinct: self.distinct + other.distinct,
            total: self.total + other.total,
            top: self.top.max(other.top),
        }
    }
}

/// Summarizes the counts of different words.
impl FromIterator<u64> for Answer {
    fn from_iter<I: IntoIterator<Item = u64>>(counts: I) -> Self {
        counts
            .into_iter()
            .map(|count| Self {
                distinct: 1,
                total: count,
                top: count,
            })
            .fold(Self::default(), Self::and)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            distinct,
            total,
            top,
        } = self;
        write!(f, "distinct={distinct} total={total} top={top}")
    }
}
