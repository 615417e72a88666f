//! Ending what would go on: how the world outside of a run reaches it.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use transport::Waker;

/// Ends jobs [gracefully](crate::Job::stopped_by): their unbounded sources end, as if they had no more, and all that
/// they gave is done to its end. A clone is the same. It can be used from any thread, also from a function of the job.
///
/// It is enough that one process of a job stops it. What was stopped once stays so.
///
/// ```
/// use dataflow::{Stop, generate_unbounded, inline};
///
/// let stop = Stop::new();
/// let enough = stop.clone();
/// let job = generate_unbounded(|n| n).map(move |n| {
///     if n == 1_000 {
///         enough.stop();
///     }
///     n
/// });
/// let numbers = inline(&job.collect().stopped_by(&stop))?;
/// assert!(numbers.len() > 1_000);
/// # Ok::<(), dataflow::Error>(())
/// ```
#[derive(Clone, Default)]
pub struct Stop(Arc<Stopped>);

#[derive(Default)]
struct Stopped {
    is_stopped: AtomicBool,
    sleepers: Sleepers,
}

impl Stop {
    /// Stops nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops the jobs that are stopped by this, now and in future.
    pub fn stop(&self) {
        self.0.is_stopped.store(true, Ordering::Release); // What came before it is seen by who is stopped.
        self.0.sleepers.wake();
    }

    /// Whether it was used.
    pub fn is_stopped(&self) -> bool {
        self.0.is_stopped.load(Ordering::Acquire) // Pairs with the Release in `stop`.
    }

    pub(crate) fn wakes(&self, waker: &Arc<Waker>) {
        self.0.sleepers.add(waker);
    }
}

impl fmt::Debug for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stop").field(&self.is_stopped()).finish()
    }
}

/// The ranks to wake when something happens outside of a run, for as long as they hold their wakers.
#[derive(Default)]
pub(crate) struct Sleepers(Mutex<Vec<Weak<Waker>>>);

impl Sleepers {
    pub(crate) fn add(&self, waker: &Arc<Waker>) {
        let mut wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.retain(|waker| waker.strong_count() > 0);
        wakers.push(Arc::downgrade(waker));
    }

    pub(crate) fn wake(&self) {
        let wakers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for waker in wakers.iter().filter_map(Weak::upgrade) {
            waker.wake();
        }
    }
}
