//! Loops inside the workers, over records that stay there.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use collectives::Group;
use dataflow::{Cached, Partition, Record};

use crate::{Env, Error};

/// One round of a loop, as a rank sees it.
pub struct Round<'a, T> {
    /// Which one, from 0.
    pub number: usize,
    /// All ranks of the job.
    pub world: &'a Group,
    partitions: &'a [Arc<Partition<T>>],
}

impl<T: Record> Round<'_, T> {
    /// The views of this rank's records.
    pub fn records(&self) -> impl Iterator<Item = T::View<'_>> {
        self.partitions
            .iter()
            .flat_map(|partition| partition.views())
    }
}

impl<T> fmt::Debug for Round<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Round")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// What a loop has come to.
#[derive(Debug, Clone, PartialEq)]
pub struct Iterated<S> {
    /// The state after the last round, or what was made of it.
    pub state: S,
    /// What each round measured.
    pub history: Vec<f64>,
    /// How long each round took on the first rank of this worker.
    pub times: Vec<Duration>,
}

impl Env {
    /// Repeats `step` on all ranks of the job, until `until` says yes to what the rounds so far have measured (which is
    /// nothing before the first one). Each rank begins with a clone of `state`.
    ///
    /// A step is given the state of its rank and the [`Round`]: the rank's part of `records`, which stays where it is,
    /// and the group of all ranks, by which the states are kept the same, or exchanged. What it returns, such as an
    /// error or a change that should become small, is taken from rank 0 for all. Gives the state of the first rank of this worker.
    ///
    /// ```
    /// use updraft::{collectives::op::Sum, prelude::*};
    ///
    /// // The mean of many numbers, by steps towards it.
    /// let mean = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     let numbers = env.collection((0..=100).map(f64::from).collect());
    ///     let numbers = env.run(&numbers.cache())?;
    ///     let done = |steps: &[f64]| steps.len() == 100 || steps.last().is_some_and(|step| step.abs() < 1e-9);
    ///     env.iterate(&numbers, 0.0, done, |guess, round| {
    ///         let far = round.records().map(|number| number - *guess).sum();
    ///         let mut sums = [far, round.records().count() as f64];
    ///         round.world.all_reduce(&mut sums, Sum).wait()?;
    ///         let step = sums[0] / sums[1] / 2.0;
    ///         *guess += step;
    ///         Ok(step)
    ///     })
    /// })?;
    /// assert!((mean.state - 50.0).abs() < 1e-6 && mean.history.len() < 100);
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`bsp`](Self::bsp).
    pub fn iterate<T, S>(
        &mut self,
        records: &Cached<T>,
        state: S,
        until: impl Fn(&[f64]) -> bool + Send + Sync + 'static,
        step: impl Fn(&mut S, &Round<'_, T>) -> Result<f64, Error> + Send + Sync + 'static,
    ) -> Result<Iterated<S>, Error>
    where
        T: Record,
        S: Clone + Send + 'static,
    {
        self.iterate_then(records, state, until, step, |state, _| Ok(state))
    }

    /// As [`iterate`](Self::iterate), with a last step: when the rounds are over, `close` is called on all ranks with what has
    /// become of their states, and makes something of them, by the group if it takes those of others. Its [`Round`] has the
    /// number of rounds that were done. Gives what it returned on the first rank of this worker.
    ///
    /// ```
    /// use updraft::{collectives::op::Sum, prelude::*};
    ///
    /// // How many numbers all ranks have seen, each of its own.
    /// let seen = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     let numbers = env.collection((0..10u64).collect());
    ///     let numbers = env.run(&numbers.cache())?;
    ///     let twice = |rounds: &[f64]| rounds.len() == 2;
    ///     let count = |seen: &mut u64, round: &Round<'_, u64>| {
    ///         *seen += round.records().count() as u64;
    ///         Ok(0.0)
    ///     };
    ///     env.iterate_then(&numbers, 0, twice, count, |seen, round| {
    ///         let mut sum = [seen];
    ///         round.world.all_reduce(&mut sum, Sum).wait()?;
    ///         Ok(sum[0])
    ///     })
    /// })?;
    /// assert_eq!(seen.state, 20);
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`bsp`](Self::bsp).
    pub fn iterate_then<T, S, R>(
        &mut self,
        records: &Cached<T>,
        state: S,
        until: impl Fn(&[f64]) -> bool + Send + Sync + 'static,
        step: impl Fn(&mut S, &Round<'_, T>) -> Result<f64, Error> + Send + Sync + 'static,
        close: impl Fn(S, &Round<'_, T>) -> Result<R, Error> + Send + Sync + 'static,
    ) -> Result<Iterated<R>, Error>
    where
        T: Record,
        S: Clone + Send + 'static,
        R: Send + 'static,
    {
        // Ranks begin with clones of their own, so that a state needs not be shared among threads.
        let start = Mutex::new(state);
        let (records, rounds, executors) = (records.clone(), self.rounds(), self.executors());
        let ended = self.bsp(move |world| {
            let is_first_here = (world.rank() as u32).is_multiple_of(executors);
            let partitions: Vec<_> = records.on(world.rank() as u32).cloned().collect();
            let mut state = start.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let (mut history, mut times) = (Vec::new(), Vec::new());
            let round = |number| Round {
                number,
                world,
                partitions: &partitions,
            };
            while !until(&history) {
                let began = Instant::now();
                let mut measured = [step(&mut state, &round(history.len()))?];
                world.broadcast(0, &mut measured).wait()?;
                history.extend(measured);
                times.push(began.elapsed());
                if is_first_here {
                    rounds.tell(history.len() as u64, measured[0]);
                }
            }
            Ok(Iterated {
                state: close(state, &round(history.len()))?,
                history,
                times,
            })
        })?;
        // A worker has at least one executor, and each has returned something.
        let first = ended.into_iter().next();
        first.ok_or_else(|| Error::Config {
            reason: "a worker without executors cannot iterate".to_owned(),
        })
    }
}
