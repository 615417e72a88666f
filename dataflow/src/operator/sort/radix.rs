//! Sorting by numbers first.

use std::cmp::Ordering;

/// A record that is to be sorted: its number, and where it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Entry {
    pub(crate) prefix: u64,
    pub(crate) page: u32,
    pub(crate) record: u32,
}

/// Stretches up to this length are sorted by comparing.
const COMPARED: usize = 64;

/// Sorts by prefix, and entries with the same prefix by `compare_ties`. `scratch` has to be as long.
///
/// It is a radix sort from the most significant digit (Knuth, "The Art of Computer Programming" 3, 5.2.5). Bits
/// that all prefixes of a stretch share are skipped, and a digit has as many of the others as give some dozens of
/// entries to a bucket.
pub(crate) fn sort(
    entries: &mut [Entry],
    scratch: &mut [Entry],
    compare_ties: &impl Fn(&Entry, &Entry) -> Ordering,
) {
    if let Some(digit) = Digit::of(entries, compare_ties) {
        let ends = digit.scatter(entries, scratch);
        for_each_bucket(&ends, |bucket| {
            sort_into(
                &mut scratch[bucket.clone()],
                &mut entries[bucket],
                compare_ties,
            );
        });
    }
}

/// The same from one place to another.
fn sort_into(
    from: &mut [Entry],
    to: &mut [Entry],
    compare_ties: &impl Fn(&Entry, &Entry) -> Ordering,
) {
    match Digit::of(from, compare_ties) {
        None => to.copy_from_slice(from),
        Some(digit) => {
            let ends = digit.scatter(from, to);
            for_each_bucket(&ends, |bucket| {
                sort(&mut to[bucket.clone()], &mut from[bucket], compare_ties);
            });
        }
    }
}

fn for_each_bucket(ends: &[usize], mut function: impl FnMut(std::ops::Range<usize>)) {
    let mut start = 0;
    for &end in ends {
        if start < end {
            function(start..end);
        }
        start = end;
    }
}

/// The bits of a prefix that entries are distributed by.
struct Digit {
    shift: u32,
    /// The least value of the digit, with the bits above it.
    base: u64,
    buckets: usize,
}

impl Digit {
    /// The digit to distribute by; none when the entries are sorted now.
    fn of(
        entries: &mut [Entry],
        compare_ties: &impl Fn(&Entry, &Entry) -> Ordering,
    ) -> Option<Self> {
        if entries.len() <= COMPARED {
            entries
                .sort_unstable_by(|a, b| a.prefix.cmp(&b.prefix).then_with(|| compare_ties(a, b)));
            return None;
        }
        let (mut least, mut greatest, mut sorted) = (u64::MAX, 0, true);
        let mut last = 0;
        for entry in entries.iter() {
            least = least.min(entry.prefix);
            greatest = greatest.max(entry.prefix);
            sorted &= last <= entry.prefix;
            last = entry.prefix;
        }
        if least == greatest {
            entries.sort_unstable_by(compare_ties);
            return None;
        }
        if sorted && entries.is_sorted_by(|a, b| a.prefix < b.prefix || compare_ties(a, b).is_le())
        {
            return None;
        }
        let differing = u64::BITS - (least ^ greatest).leading_zeros();
        let digits = (entries.len().ilog2().saturating_sub(4)).clamp(4, 10);
        let shift = differing.saturating_sub(digits);
        let base = least >> shift;
        Some(Self {
            shift,
            base,
            buckets: ((greatest >> shift) - base) as usize + 1,
        })
    }

    /// Distributes entries in the order of the digit, and tells where each bucket ends.
    fn scatter(&self, from: &[Entry], to: &mut [Entry]) -> Vec<usize> {
        let bucket = |entry: &Entry| ((entry.prefix >> self.shift) - self.base) as usize;
        let mut places = vec![0; self.buckets];
        for entry in from {
            places[bucket(entry)] += 1;
        }
        let mut start = 0;
        for place in &mut places {
            (*place, start) = (start, start + *place);
        }
        for entry in from {
            let place = &mut places[bucket(entry)];
            to[*place] = *entry;
            *place += 1;
        }
        places
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Prefixes as they come: from all over, few, close together, in order.
    fn prefixes() -> impl Strategy<Value = Vec<u64>> {
        let many = |prefix| prop::collection::vec(prefix, 0..3_000);
        prop_oneof![
            many(any::<u64>().boxed()),
            many((0u64..4).boxed()),
            many((1u64 << 40..(1 << 40) + 1_000).boxed()),
            many(
                any::<u64>()
                    .prop_map(|bits| bits.trailing_zeros().into())
                    .boxed()
            ),
            many(prop_oneof![9 => Just(7u64), 1 => any::<u64>()].boxed()),
            (0u64..2_000).prop_map(|len| (0..len).collect()),
            (0u64..2_000).prop_map(|len| (0..len).rev().collect()),
        ]
    }

    proptest! {
        #[test]
        fn it_sorts_as_the_standard_library_does(prefixes in prefixes()) {
            let mut entries: Vec<Entry> = (0u32..)
                .zip(&prefixes)
                .map(|(index, &prefix)| Entry { prefix, page: index % 7, record: index })
                .collect();
            let key = |entry: &Entry| (entry.prefix, entry.page, entry.record);
            let mut expected: Vec<_> = entries.iter().map(key).collect();
            expected.sort();
            let mut scratch = vec![Entry::default(); entries.len()];
            sort(&mut entries, &mut scratch, &|a, b| key(a).cmp(&key(b)));
            prop_assert_eq!(entries.iter().map(key).collect::<Vec<_>>(), expected);
        }
    }
}
