//! A graph that runs again and again, by what its results say, without leaving the executors.

use std::{
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use dataflow::Job;

use crate::{Env, Error};

impl Env {
    /// Runs a job again and again, as long as `next` says so: it is given `state` and what the run gave, may set
    /// [`Variable`](dataflow::Variable)s that the job reads, and says whether to run again. Gives the state in the end. A variable may
    /// be [what the run has cached](dataflow::Variable::tset), so that records stay partitioned from one run to the next.
    ///
    /// The executors go from one run to the next by themselves: `next` is called on one of them in each worker, while the others
    /// of the worker wait for it. It has to decide alike on all workers, which it does if it looks only at what it is given. All workers have to call this, with
    /// the same graph. Who watches the job sees the number of the runs, and what `next` tells of each by
    /// [`rounds`](Self::rounds).
    ///
    /// ```
    /// use updraft::{dataflow::generate, prelude::*};
    ///
    /// // The least power of two of which no more than ten numbers are multiples.
    /// let power = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     let power = Variable::new(1u64);
    ///     let multiples = generate(1000, |n| n + 1)
    ///         .filter_with(&power, |n, power| n % power == 0)
    ///         .count()
    ///         .first();
    ///     env.repeat(&multiples, 1, move |tried, count| {
    ///         if count <= Some(10) {
    ///             return Ok(false);
    ///         }
    ///         *tried *= 2;
    ///         power.set(*tried);
    ///         Ok(true)
    ///     })
    /// })?;
    /// assert_eq!(power, 128);
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What went wrong first, in a run or in `next`, as far as can be told. After an error the executors run nothing more.
    pub fn repeat<R, S>(
        &mut self,
        job: &Job<R>,
        state: S,
        mut next: impl FnMut(&mut S, R) -> Result<bool, Error> + Send + 'static,
    ) -> Result<S, Error>
    where
        R: 'static,
        S: Send + 'static,
    {
        let state = Arc::new(Mutex::new(Some(state)));
        let repeat = {
            let (job, state, rounds) = (job.clone(), state.clone(), self.rounds());
            let mut runs = 0;
            Repeat::new(self.executors(), move || {
                let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
                let state = state.as_mut().ok_or_else(lost)?;
                runs += 1;
                rounds.count(runs);
                next(state, job.take_result())
            })
        };
        self.run_graph(job.task_graph(), Some(Arc::new(repeat)))?;
        let state = state.lock().unwrap_or_else(PoisonError::into_inner).take();
        state.ok_or_else(lost)
    }
}

/// The state is taken once, when all is over.
fn lost() -> Error {
    Error::Config {
        reason: "the state of a repeated job is gone".to_owned(),
    }
}

/// What the executors of a worker share that run a graph again and again: the last of them to end a run decides
/// whether there is another.
pub(crate) struct Repeat {
    executors: u32,
    /// Ends of runs, on all executors.
    ended: AtomicU32,
    /// Runs after which it has been decided how to go on.
    decided: AtomicU32,
    /// Whether there is another run after the last one decided on.
    goes_on: AtomicBool,
    next: Mutex<Next>,
}

/// Looks at the result of a run, and says whether to run again.
type Next = Box<dyn FnMut() -> Result<bool, Error> + Send>;

impl Repeat {
    fn new(executors: u32, next: impl FnMut() -> Result<bool, Error> + Send + 'static) -> Self {
        Self {
            executors,
            ended: AtomicU32::new(0),
            decided: AtomicU32::new(0),
            goes_on: AtomicBool::new(false),
            next: Mutex::new(Box::new(next)),
        }
    }

    /// Takes note that an executor has ended its run of this number, from 1; true if it was the last to do so, and has
    /// decided.
    pub(crate) fn end(&self, run: u32) -> Result<bool, Error> {
        // Pairs with those of the other executors: what their runs left is there for who comes last.
        let ended = self.ended.fetch_add(1, Ordering::AcqRel) + 1;
        if ended != run.wrapping_mul(self.executors) {
            return Ok(false);
        }
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = next()?;
        self.goes_on.store(goes_on, Ordering::Relaxed);
        self.decided.store(run, Ordering::Release); // Hands over what was decided, and what `next` has set.
        Ok(true)
    }

    /// Whether it has been decided how to go on after the run of this number.
    pub(crate) fn is_decided(&self, run: u32) -> bool {
        self.decided.load(Ordering::Acquire) == run // Pairs with the Release in `end`.
    }

    /// Whether there is another run, once that is decided. It stays so until all executors have ended that one.
    pub(crate) fn goes_on(&self) -> bool {
        self.goes_on.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Repeat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Repeat")
            .field("decided", &self.decided)
            .finish_non_exhaustive()
    }
}
