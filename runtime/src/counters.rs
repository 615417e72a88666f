//! What executors have done, for those who watch.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam::utils::CachePadded;
use dataflow::Counters;

use crate::progress::Amount;

/// The counters of one executor, which it alone writes and others may read at any time.
#[derive(Debug, Clone)]
pub(crate) struct Counts {
    numbers: Arc<CachePadded<Numbers>>,
    /// What times are measured from, if they are.
    since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Numbers {
    records: AtomicU64,
    bytes: AtomicU64,
    bytes_total: AtomicU64,
}

impl Counts {
    /// Of nothing; with the times that tasks are at work, if they are to be measured.
    pub(crate) fn new(is_timed: bool) -> Self {
        Self {
            numbers: Arc::default(),
            since: is_timed.then(Instant::now),
        }
    }

    /// What was done up to this moment.
    pub(crate) fn amount(&self) -> Amount {
        let Numbers {
            records,
            bytes,
            bytes_total,
        } = &**self.numbers;
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
        add(&self.numbers.records, records);
        add(&self.numbers.bytes, bytes);
    }

    fn received(&self, _records: u64, _bytes: u64) {}

    fn expect(&self, bytes: u64) {
        add(&self.numbers.bytes_total, bytes);
    }

    fn now(&self) -> Option<Duration> {
        self.since.map(|since| since.elapsed())
    }
}
