//! What executors have done, for those who watch.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use crossbeam::utils::CachePadded;
use dataflow::Counters;

use crate::progress::Amount;

/// The counters of one executor, which it alone writes and others may read at any time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(Arc<CachePadded<Numbers>>);

#[derive(Debug, Default)]
struct Numbers {
    records: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
}

impl Counts {
    /// What was done up to this moment.
    pub(crate) fn amount(&self) -> Amount {
        let Numbers {
            records,
            bytes,
            bytes_total,
        } = &**self.0;
        let [records, bytes, bytes_total] =
            [records, bytes, bytes_total].map(|number| number.load(Ordering::Relaxed));
        Amount {
            records,
            bytes,
            bytes_total,
            ..Amount::default()
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
