//! Ending what runs, or having it stand still, from another thread.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicBool, Ordering},
};

use collectives::Engine;
use dataflow::Error;
use transport::Waker;

use crate::coordinator::Client;

/// Cancels what a job runs, or has it stand still, from any thread: see [`Env::controller`](crate::Env::controller). A clone
/// controls the same.
#[derive(Debug, Clone)]
pub struct Controller(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    worker: u32,
    /// Who tells the other workers, if there are any.
    client: Option<Weak<Client>>,
    /// Who has ended what runs, and why.
    cancelled: Mutex<Option<(String, String)>>,
    /// Whether somebody has, which is looked at often.
    is_cancelled: Arc<AtomicBool>,
    is_paused: AtomicBool,
    /// Those of the executors here.
    wakers: Mutex<Vec<Waker>>,
}

impl Controller {
    pub(crate) fn new(worker: u32, client: Option<&Arc<Client>>) -> Self {
        Self(Arc::new(Shared {
            worker,
            client: client.map(Arc::downgrade),
            cancelled: Mutex::default(),
            is_cancelled: Arc::default(),
            is_paused: AtomicBool::new(false),
            wakers: Mutex::default(),
        }))
    }

    /// Ends what runs, on all ranks of all workers, and what would run after it: graphs, loops by
    /// [`Env::iterate`](crate::Env::iterate), programs in the manner of MPI ([`Env::bsp`](crate::Env::bsp)) with the operators they
    /// drive. Wherever a rank is then, it fails with [`Cancelled`](Error::Cancelled), which names this worker and the
    /// reason. Where several workers cancel, the first counts for all.
    ///
    /// Returns at once: functions of the program that are under way are not interrupted, and none is called after them. A
    /// program in the manner of MPI learns of it in its next operation of a group, or in the one it waits for; one that
    /// works [on the links](crate::Env::on_executors) alone is not ended. What has ended before stays as it is.
    pub fn cancel(&self, reason: impl Into<String>) {
        let reason = reason.into();
        if let Some(client) = self.0.client.as_ref().and_then(Weak::upgrade)
            && client.cancel(&reason).is_ok()
        {
            return; // All workers are told, this one among them.
        }
        self.learn(&format!("worker {}", self.0.worker), &reason);
    }

    /// Has graphs stand still that run, and those that would begin, on all ranks of all workers, until
    /// [`resume`](Self::resume). It takes effect between two calls of functions of the program, or between two
    /// batches. Programs in the manner of MPI do not stand still.
    ///
    /// If several workers pause, all of them have to resume.
    ///
    /// ```
    /// use std::{sync::atomic::{AtomicU64, Ordering}, thread, time::Duration};
    /// use updraft::{dataflow::generate, prelude::*};
    ///
    /// static CALLS: AtomicU64 = AtomicU64::new(0);
    /// let count = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     let controller = env.controller();
    ///     controller.pause();
    ///     let resumer = thread::spawn(move || {
    ///         thread::sleep(Duration::from_millis(20));
    ///         assert!(controller.is_paused());
    ///         assert_eq!(CALLS.load(Ordering::Relaxed), 0);
    ///         controller.resume();
    ///     });
    ///     let called = generate(1000, |n| n).filter(|_| CALLS.fetch_add(1, Ordering::Relaxed) < 1000);
    ///     let count = env.run(&called.count().first())?;
    ///     resumer.join().expect("it was asked in time");
    ///     Ok(count)
    /// })?;
    /// assert_eq!(count, Some(1000));
    /// # Ok::<(), updraft::Error>(())
    /// ```
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

    /// Has it said, once for all workers, that messages to other nodes go over TCP, and why not over RDMA.
    pub(crate) fn tell_fall_back(&self, reason: &str) {
        if let Some(client) = self.0.client.as_ref().and_then(Weak::upgrade) {
            let _ = client.fell_back(reason); // A coordinator that is gone needs not be told.
        }
    }

    /// This worker has heard who cancelled, and why. The first counts.
    pub(crate) fn learn(&self, by: &str, reason: &str) {
        let told = || (by.to_owned(), reason.to_owned());
        self.told().get_or_insert_with(told);
        self.0.is_cancelled.store(true, Ordering::Release); // What is read after it is who did, and why.
        self.wake();
    }

    /// Who cancelled, and why, if so.
    pub(crate) fn cancelled(&self) -> Option<(String, String)> {
        if !self.0.is_cancelled.load(Ordering::Acquire) {
            return None;
        }
        self.told().clone()
    }

    /// The same as an error.
    pub(crate) fn error(&self) -> Option<Error> {
        let (by, reason) = self.cancelled()?;
        Some(Error::Cancelled { by, reason })
    }

    /// Has operations of groups end when somebody has cancelled.
    pub(crate) fn may_end(&self, engine: &Engine) {
        let controller = self.clone();
        engine.cancelled_by(self.0.is_cancelled.clone(), move || {
            controller.cancelled().unwrap_or_default()
        });
    }

    /// Has executors look at it when somebody has called it.
    pub(crate) fn wakes(&self, waker: Waker) {
        self.wakers().push(waker);
    }

    fn wake(&self) {
        self.wakers().iter().for_each(Waker::wake);
    }

    fn told(&self) -> MutexGuard<'_, Option<(String, String)>> {
        let cancelled = &self.0.cancelled;
        cancelled.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wakers(&self) -> MutexGuard<'_, Vec<Waker>> {
        let wakers = &self.0.wakers;
        wakers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
