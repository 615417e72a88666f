//! Threads that call functions which would keep an executor too long.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use dataflow::Helpers;
use transport::Waker;

use crate::affinity::Allowed;

/// How long a thread waits for work before it ends.
const IDLE_MAX: Duration = Duration::from_secs(5);

type Work = Box<dyn FnOnce() + Send>;

/// The helpers of a worker: as many threads as there is work at a time, which is for operators to limit. They run where the
/// process may, and not where the executor is that calls them.
#[derive(Clone)]
pub(crate) struct Pool(Arc<Shared>);

struct Shared {
    queue: Mutex<Queue>,
    more: Condvar,
    allowed: Allowed,
}

#[derive(Default)]
struct Queue {
    work: VecDeque<Work>,
    /// Threads that wait for it.
    idle: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a thread does.
    fn serve(&self) {
        self.allowed.allow();
        let mut queue = self.lock();
        loop {
            if let Some(work) = queue.work.pop_front() {
                drop(queue);
                work();
                queue = self.lock();
                continue;
            }
            queue.idle += 1;
            let waited = self.more.wait_timeout(queue, IDLE_MAX);
            let timeout;
            (queue, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            queue.idle -= 1;
            if timeout.timed_out() && queue.work.is_empty() {
                return;
            }
        }
    }
}

impl Pool {
    /// A pool without threads, for a process that may run where the calling thread may.
    pub(crate) fn new() -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::default(),
            more: Condvar::new(),
            allowed: Allowed::here(),
        }))
    }

    fn give(&self, work: Work) {
        let mut queue = self.0.lock();
        queue.work.push_back(work);
        if queue.work.len() <= queue.idle {
            self.0.more.notify_one();
            return;
        }
        drop(queue);
        let shared = self.0.clone();
        let started = thread::Builder::new()
            .name("helper".to_owned())
            .spawn(move || shared.serve());
        // If the system has no thread to give, one that there is does it, or this one.
        if started.is_err() {
            let work = self.0.lock().work.pop_back();
            if let Some(work) = work {
                work();
            }
        }
    }
}

/// The helpers of an executor, which is woken when they have done something.
pub(crate) struct Here {
    pub(crate) pool: Pool,
    pub(crate) waker: Option<Waker>,
}

impl Helpers for Here {
    fn help(&self, work: Work) {
        let waker = self.waker.clone();
        self.pool.give(Box::new(move || {
            work();
            if let Some(waker) = waker {
                waker.wake();
            }
        }));
    }
}

impl fmt::Debug for Here {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Here")
    }
}
