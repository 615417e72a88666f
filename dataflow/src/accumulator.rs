//! Counts that functions of a graph make on the side.

use std::{
    cell::RefCell,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// A count that functions of a graph add to beside their work: lines that made no sense, say. A clone is the same count.
///
/// [`Job::with_total`](crate::Job::with_total) makes its sum over all ranks part of what a job gives.
///
/// ```
/// use dataflow::{Accumulator, collection, inline};
///
/// let bad = Accumulator::new();
/// let count = bad.clone();
/// let numbers = collection(vec!["1".to_owned(), "x".to_owned()])
///     .flat_map(move |text, out| match text.parse::<u64>() {
///         Ok(number) => out.push(number),
///         Err(_) => count.add(1),
///     })
///     .collect()
///     .with_total(&bad);
/// assert_eq!(inline(&numbers)?, (vec![1], 1));
/// # Ok::<(), dataflow::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Accumulator(Arc<AtomicU64>);

thread_local! {
    /// What has been added on this thread, and not been asked for since. There are few, so they are searched in turn.
    static ADDED: RefCell<Vec<(Accumulator, u64)>> = const { RefCell::new(Vec::new()) };
}

impl Accumulator {
    /// A count of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds to it. That takes no lock and touches no memory of other threads. What is added in a job that does not ask for the
    /// total counts with the next one that does.
    pub fn add(&self, more: u64) {
        ADDED.with_borrow_mut(|added| {
            match added.iter_mut().find(|(of, _)| Arc::ptr_eq(&of.0, &self.0)) {
                Some((_, count)) => *count += more,
                None => added.push((self.clone(), more)),
            }
        });
    }

    /// Takes what has been added on this thread.
    pub(crate) fn take_added(&self) -> u64 {
        ADDED.with_borrow_mut(|added| {
            let place = added.iter().position(|(of, _)| Arc::ptr_eq(&of.0, &self.0));
            place.map_or(0, |place| added.swap_remove(place).1)
        })
    }

    /// Takes note of the sum over all ranks, in one run.
    pub(crate) fn set_total(&self, total: u64) {
        self.0.store(total, Ordering::Release); // Read once the run has ended, which its end puts behind this.
    }

    /// The sum over all ranks in the last run that asked for it.
    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl fmt::Debug for Accumulator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Accumulator").field(&self.total()).finish()
    }
}
