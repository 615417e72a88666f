//! Where the instances of tasks run: schedulers, and what they go by.
//!
//! A [`Scheduler`] is a pure function of tasks and workers. Every worker of a job calls it with the same, and so knows
//! where all instances are without asking anyone; that all of them have found the same is compared when a run
//! starts.
//!
//! | scheduler | puts an instance |
//! |---|---|
//! | [`RoundRobin`] | where even spreading wants it, or on the next worker that can have it; the default |
//! | [`FirstFit`] | on the first worker that has room for it, the most demanding first |
//! | [`Locality`] | where the bytes are that it reads |
//!
//! A program has its own by implementing the trait. What any scheduler gives is checked against the
//! demands of the tasks.
//!
//! ```
//! use dataflow::schedule::{FirstFit, Scheduler, Task, Worker};
//!
//! let worker = |first, memory_bytes| Worker { ranks: first..first + 1, memory_bytes, ..Worker::default() };
//! let workers = [worker(0, 1 << 30), worker(1, 8 << 30)];
//! let tasks = [Task::new("index", 2).memory_bytes(2 << 30)];
//! let ranks = FirstFit::default().schedule(&tasks, &workers)?;
//! assert_eq!(ranks, [[1, 1]]);
//! # Ok::<(), dataflow::Error>(())
//! ```

mod check;
mod first_fit;
mod locality;
mod round_robin;
mod seats;

use std::{collections::BTreeMap, fmt, ops::Range};

use transport::Rank;

pub(crate) use self::round_robin::even;
pub use self::{
    check::{check, check_tasks},
    first_fit::FirstFit,
    locality::Locality,
    round_robin::RoundRobin,
    seats::{Bundle, Seats},
};
use crate::Error;

/// Says where the instances of tasks run.
///
/// ```
/// use dataflow::{Error, schedule::{Scheduler, Seats, Task, Worker}};
///
/// /// Puts what goes together on the worker that is last in the order of the hosts' names, or else on the one before it.
/// #[derive(Debug)]
/// struct LastHost;
///
/// impl Scheduler for LastHost {
///     fn schedule(&self, tasks: &[Task], workers: &[Worker]) -> Result<Vec<Vec<u32>>, Error> {
///         let mut seats = Seats::new(tasks, workers, 0);
///         let mut order: Vec<usize> = (0..workers.len()).collect();
///         order.sort_by_key(|&worker| std::cmp::Reverse(&workers[worker].host));
///         for bundle in seats.bundles() {
///             let first = order.iter().find(|&&worker| seats.fits(&bundle, worker).is_ok());
///             let &worker = first.ok_or_else(|| seats.refusal(&bundle))?;
///             seats.place(&bundle, worker, None);
///         }
///         seats.ranks()
///     }
/// }
///
/// let worker = |rank: u32, host: &str| Worker { ranks: rank..rank + 1, host: host.to_owned(), ..Worker::default() };
/// let workers = [worker(0, "a"), worker(1, "c"), worker(2, "b")];
/// let tasks = [Task::new("pairs", 3).per_worker_max(2)];
/// assert_eq!(LastHost.schedule(&tasks, &workers)?, [[1, 1, 2]]);
/// # Ok::<(), Error>(())
/// ```
pub trait Scheduler: fmt::Debug + Send + Sync {
    /// The rank of each instance of each task, in the order of `tasks`. It has to follow from what is given and
    /// from nothing else, neither chance nor time: all workers have to find the same. [`Seats`] keeps the
    /// account of what is placed where.
    ///
    /// # Errors
    ///
    /// [`Error::Unplaceable`], with the task and the constraint that cannot be kept.
    fn schedule(&self, tasks: &[Task], workers: &[Worker]) -> Result<Vec<Vec<Rank>>, Error>;
}

/// What a scheduler knows of a task: a name that no other task has, how many instances, and what each of them
/// needs. Without demands an instance can be anywhere.
///
/// Memory and cores are what an account is kept of. Nobody measures whether an instance takes more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Task {
    /// The name, by which other tasks and errors refer to it.
    pub name: String,
    /// How many instances there are.
    pub instances: u32,
    /// Thousandths of a core that an instance keeps busy.
    pub millicores: u32,
    /// Bytes of memory that an instance needs.
    pub memory_bytes: u64,
    /// What a worker has to have: each is one of [`Worker::attributes`].
    pub attributes: Vec<String>,
    /// The most instances that a worker may have of it.
    pub per_worker_max: Option<u32>,
    /// The task whose instances are on the same worker as these: instance `i` of `n` is with instance `i * m / n`
    /// of the `m` of the other.
    pub with: Option<String>,
    /// The tasks that no worker may have an instance of which has one of this.
    pub apart_from: Vec<String>,
    /// What its instances read, and where that is.
    pub splits: Vec<Split>,
}

impl Task {
    /// A task without demands.
    pub fn new(name: impl Into<String>, instances: u32) -> Self {
        Self {
            name: name.into(),
            instances,
            ..Self::default()
        }
    }

    /// Has each instance need so many thousandths of a core.
    pub fn millicores(mut self, millicores: u32) -> Self {
        self.millicores = millicores;
        self
    }

    /// Has each instance need so much memory.
    pub fn memory_bytes(mut self, bytes: u64) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// Has it run on workers with this attribute only, such as `gpu` or `rack=3`. It may be called for several,
    /// all of which are needed.
    pub fn attribute(mut self, attribute: impl Into<String>) -> Self {
        self.attributes.push(attribute.into());
        self
    }

    /// Has no worker get more instances of it: with 1, they are all apart.
    pub fn per_worker_max(mut self, instances: u32) -> Self {
        self.per_worker_max = Some(instances);
        self
    }

    /// Has its instances be on the workers of those of another task.
    pub fn with(mut self, task: impl Into<String>) -> Self {
        self.with = Some(task.into());
        self
    }

    /// Keeps it off the workers that another task is on. It may be called for several.
    pub fn apart_from(mut self, task: impl Into<String>) -> Self {
        self.apart_from.push(task.into());
        self
    }

    /// Tells what its instances read.
    pub fn splits(mut self, splits: Vec<Split>) -> Self {
        self.splits = splits;
        self
    }

    /// Whether an instance takes of what a worker has only so much of.
    pub(crate) fn takes_room(&self) -> bool {
        self.millicores > 0 || self.memory_bytes > 0
    }
}

/// Something that an instance reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Split {
    /// The number of the instance.
    pub instance: u32,
    /// The hosts that have it, by the names that workers call theirs; none if it is equally far from all.
    pub hosts: Vec<String>,
    /// Its size.
    pub bytes: u64,
    /// Whether no other host can read it: then the instance has to be on one of these.
    pub is_bound: bool,
}

/// A worker, as schedulers see it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Worker {
    /// Its ranks. Those of the first worker begin at 0, and those of each other where the one before ends.
    pub ranks: Range<Rank>,
    /// The name of the machine it is on.
    pub host: String,
    /// Cores that it may use.
    pub cores: u32,
    /// Bytes of memory that it may use.
    pub memory_bytes: u64,
    /// What sets it apart, such as `gpu` or `rack=3`.
    pub attributes: Vec<String>,
    /// Bytes a second that reach it from other hosts, by their names, as far as that was measured.
    pub bytes_per_second: BTreeMap<String, u64>,
}

/// What a task demands of where its instances are.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Constraint {
    /// An attribute that a worker has to have.
    Attribute(String),
    /// The hosts that alone have what an instance reads: it has to be on one of them.
    Hosts(Vec<String>),
    /// Thousandths of a core that have to be free.
    Millicores(u64),
    /// Bytes that have to be free.
    MemoryBytes(u64),
    /// The most instances on one worker.
    PerWorkerMax(u32),
    /// Another task that has to be on the worker.
    With(String),
    /// Another task that must not be on the worker.
    ApartFrom(String),
    /// Every instance is on one of the ranks of the job: how it is not.
    Placed(String),
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attribute(attribute) => write!(f, "it needs the attribute \"{attribute}\""),
            Self::Hosts(hosts) => {
                write!(f, "only {} can read what it reads", hosts.join(" and "))
            }
            Self::Millicores(millicores) => write!(f, "it needs {millicores} millicores"),
            Self::MemoryBytes(bytes) => write!(f, "it needs {bytes} bytes of memory"),
            Self::PerWorkerMax(1) => f.write_str("a worker may have only one instance of it"),
            Self::PerWorkerMax(most) => write!(f, "a worker may have only {most} instances of it"),
            Self::With(task) => write!(f, "it has to be with task \"{task}\""),
            Self::ApartFrom(task) => write!(f, "it has to be apart from task \"{task}\""),
            Self::Placed(reason) => f.write_str(reason),
        }
    }
}

#[cfg(test)]
mod tests;
