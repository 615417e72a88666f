//! Ending a run, or having it stand still, from another thread.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use transport::Waker;

/// Cancels what a job runs, or has it stand still, from any thread: see [`Env::controller`](crate::Env::controller). A clone
/// controls the same.
#[derive(Debug, Clone)]
pub struct Controller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    worker: u32,
    /// Why what runs is to end.
    cancelled: Mutex<Option<String>>,
    /// Whether there is a reason, which is looked at often.
    is_cancelled: AtomicBool,
    is_paused: AtomicBool,
    /// Those of the executors here.
    wakers: Mutex<Vec<Waker>>,
}

impl Controller {
    pub(crate) fn new(worker: u32) -> Self {
        Self(Arc::new(Shared {
            worker,
            cancelled: Mutex::default(),
            is_cancelled: AtomicBool::new(false),
            is_paused: AtomicBool::new(false),
            wakers: Mutex::default(),
        }))
    }

    /// Ends what runs, on all ranks of all workers, and what would run after it. It fails with
    /// [`Cancelled`](dataflow::Error::Cancelled), which names this worker and the reason. Returns at once: functions of the
    /// program that are under way are not interrupted, and none is called after them.
    ///
    /// A loop by [`Env::iterate`](crate::Env::iterate) ends before its next round. Other programs in the manner of MPI
    /// ([`Env::bsp`](crate::Env::bsp)) are not ended: they go through their own steps.
    pub fn cancel(&self, reason: impl Into<String>) {
        self.reason().get_or_insert(reason.into());
        self.0.is_cancelled.store(true, Ordering::Release); // What is read after it is the reason.
        self.wake();
    }

    /// Has graphs stand still that run, and those that would begin, on all ranks of all workers, until
    /// [`resume`](Self::resume). It takes effect between two calls of functions of the program, or between two
    /// batches.
    ///
    /// If several workers pause, all of them have to resume.
    pub fn pause(&self) {
        self.0.is_paused.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// Has what stands still go on.
    pub fn resume(&self) {
        self.0.is_paused.store(false, Ordering::Relaxed);
        self.wake();
    }

    /// Whether this worker wants its graphs to stand still.
    pub fn is_paused(&self) -> bool {
        self.0.is_paused.load(Ordering::Relaxed)
    }

    /// Who cancelled, and why, if so.
    pub(crate) fn cancelled(&self) -> Option<(String, String)> {
        if !self.0.is_cancelled.load(Ordering::Acquire) {
            return None;
        }
        let reason = self.reason().clone()?;
        Some((format!("worker {}", self.0.worker), reason))
    }

    /// Has executors look at it when somebody has called it.
    pub(crate) fn wakes(&self, waker: Waker) {
        self.wakers().push(waker);
    }

    fn wake(&self) {
        self.wakers().iter().for_each(Waker::wake);
    }

    fn reason(&self) -> MutexGuard<'_, Option<String>> {
        let cancelled = &self.0.cancelled;
        cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        let wakers = &self.0.wakers;
        wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
