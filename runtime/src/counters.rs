//! What executors have done, for those who watch.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crossbeam::utils::CachePadded;
use dataflow::Counters;

/// The counters of one executor, which it alone writes and others may read at any time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(Arc<CachePadded<Numbers>>);

#[derive(Debug, Default)]
struct Numbers {
    records: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
}

/// What was done up to some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Snapshot {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_total: u64,
}

impl Counts {
    pub(crate) fn snapshot(&self) -> Snapshot {
        let Numbers {
            records,
            bytes,
            bytes_total,
        } = &**self.0;
        let [records, bytes, bytes_total] =
            [records, bytes, bytes_total].map(|number| number.load(Ordering::Relaxed));
        Snapshot {
            records,
            bytes,
            bytes_total,
        }
    }
}

/// Adds to a number that only this thread writes.
fn add(number: &AtomicU64, more: u64) {
    number.store(number.load(Ordering::Relaxed) + more, Ordering::Relaxed);
}

impl Counters for Counts {
    fn read(&self, records: u64, bytes: u64) {
        add(&self.0.records, records);
        add(&self.0.bytes, bytes);
    }

    fn received(&self, _records: u64) {}

    fn expect(&self, bytes: u64) {
        add(&self.0.bytes_total, bytes);
    }
}

impl std::iter::Sum for Snapshot {
    fn sum<I: Iterator<Item = Self>>(snapshots: I) -> Self {
        snapshots.fold(Self::default(), |sum, one| Self {
            records: sum.records + one.records,
            bytes: sum.bytes + one.bytes,
            bytes_total: sum.bytes_total + one.bytes_total,
        })
    }
}
