//! Records that stay in the workers between runs.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use transport::Rank;

use crate::{
    Error, Record, Variable,
    graph::{Job, Placement},
    operator::narrow::Pass,
    pages::{At, PageWriter, Pages},
    stage::{Input, Narrow, Output, Place, Progress, Push, Sink},
    tset::{Source, TSet},
};

/// Who keeps them, on the ledger.
const HOLDER: &str = "cache";

impl<S, N> TSet<S, N>
where
    S: Source,
    N: Narrow<S::Out>,
{
    /// Keeps the records where they are, in the memory of the workers, for later runs: what a loop reads in every
    /// round is read, computed and partitioned once.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let squares = inline(&collection((1..=4u64).collect()).map(|n| n * n).cache())?;
    /// assert_eq!(squares.here(), 4);
    /// assert_eq!(inline(&squares.tset().filter(|n| n % 2 == 0).collect())?, [4, 16]);
    /// assert_eq!(inline(&squares.tset().reduce(|a, b| a + b).collect())?, [30]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    ///
    /// Pairs stay known to be where their keys belong: what an exchange by key, a reduction or a join gave is joined, reduced
    /// or grouped by the same key again without another exchange.
    ///
    /// The memory is on the ledger, which says so when it is full, until the last clone of what the job gives is dropped.
    pub fn cache(self) -> Job<Cached<N::Out>> {
        let (placement, is_by_key) = (self.placement(), self.is_by_key());
        let parts: Arc<Mutex<Parts<N::Out>>> = Arc::default();
        let kept = parts.clone();
        let sink = self.end("cache", move |place: &Place| Keep::new(place, kept.clone()));
        Job::new(sink, move || {
            let parts = std::mem::take(&mut *parts.lock().unwrap_or_else(PoisonError::into_inner));
            Cached {
                placement: placement.clone(),
                is_by_key,
                parts: Arc::new(parts),
            }
        })
    }
}

/// Records that a run has left in the workers: each instance's where it was. What a process has of it is the part of its
/// own instances. A clone is the same.
pub struct Cached<T> {
    placement: Placement,
    /// Whether pairs are on the instances that their keys belong to.
    is_by_key: bool,
    parts: Arc<Parts<T>>,
}

/// The partitions in this process, by instance.
struct Parts<T> {
    by_instance: BTreeMap<u32, Arc<Partition<T>>>,
    /// How many instances there are in all.
    instances: u32,
}

impl<T> Default for Parts<T> {
    fn default() -> Self {
        Self {
            by_instance: BTreeMap::new(),
            instances: 0,
        }
    }
}

impl<T: Record> Cached<T> {
    /// The records, where they are. The stream has as many instances as the one that was cached, and cannot have others
    /// before its first exchange.
    pub fn tset(&self) -> TSet<Self, Pass> {
        TSet::from_source(self.clone(), "cached".to_owned()).placed(self.placement.clone())
    }

    /// Records in this process.
    pub fn here(&self) -> u64 {
        let partitions = self.parts.by_instance.values();
        partitions.map(|partition| partition.records()).sum()
    }

    /// The partitions on a rank of this process, in the order of their instances. Streams that have said nothing of
    /// their parallelism have one instance on each rank.
    pub fn on(&self, rank: Rank) -> impl Iterator<Item = &Arc<Partition<T>>> {
        let partitions = self.parts.by_instance.values();
        partitions.filter(move |partition| partition.rank == rank)
    }

    /// The partition of an instance.
    fn part(&self, place: &Place) -> Result<Arc<Partition<T>>, Error> {
        let partition = (place.instances == self.parts.instances)
            .then(|| self.parts.by_instance.get(&place.instance))
            .flatten();
        partition.cloned().ok_or_else(|| Error::NotCachedHere {
            instance: place.instance,
            instances: place.instances,
            cached: self.parts.instances,
        })
    }
}

impl<T: Record> Variable<Cached<T>> {
    /// The records that it has in each run, where they are: an input that changes between runs of a graph and stays partitioned.
    /// What a run has [cached](TSet::cache) is [set](Self::set) for the next one, and nothing moves but the handle. In each
    /// process that changes the partitions there, so it has to be done in all of them.
    ///
    /// The stream has as many instances as what the variable has now; what it is set to later has to have as many too, in the
    /// same processes, or the run fails with [`Error::NotCachedHere`]. Where it has pairs that are [by key](TSet::cache) now, it
    /// has to have such in all runs, or they fail with [`Error::NotCachedByKey`].
    ///
    /// ```
    /// use dataflow::{Variable, generate, inline};
    ///
    /// // Each number halved if it is even, until all are odd.
    /// let numbers = Variable::new(inline(&generate(10, |n| n + 1).cache())?);
    /// let halves = numbers.tset().named("numbers").map(|n| if n % 2 == 0 { n / 2 } else { n }).direct();
    /// let even = halves.clone().filter(|n| n % 2 == 0).count().first();
    /// let job = halves.cache().and(even);
    /// loop {
    ///     let (halves, even) = inline(&job)?;
    ///     numbers.set(halves);
    ///     if even == Some(0) {
    ///         break;
    ///     }
    /// }
    /// assert_eq!(inline(&numbers.tset().collect())?, [1, 1, 3, 1, 5, 3, 7, 1, 9, 5]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn tset(&self) -> TSet<CachedVariable<T>, Pass> {
        let first = self.get();
        let source = CachedVariable {
            variable: self.clone(),
            is_by_key: first.is_by_key,
        };
        TSet::from_source(source, "variable".to_owned()).placed(first.placement.clone())
    }
}

impl<T> Clone for Cached<T> {
    fn clone(&self) -> Self {
        Self {
            placement: self.placement.clone(),
            is_by_key: self.is_by_key,
            parts: self.parts.clone(),
        }
    }
}

impl<T> fmt::Debug for Cached<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached")
            .field("instances", &self.parts.instances)
            .field("here", &self.parts.by_instance.keys())
            .finish_non_exhaustive()
    }
}

/// The records of one instance.
pub struct Partition<T> {
    rank: Rank,
    pages: Pages<T>,
}

impl<T: Record> Partition<T> {
    /// How many there are.
    pub fn records(&self) -> u64 {
        self.pages.len()
    }

    /// Their views, in the order in which they came.
    pub fn views(&self) -> impl Iterator<Item = T::View<'_>> {
        let pages = self.pages.iter();
        pages.flat_map(|page| page.views(0))
    }
}

impl<T> fmt::Debug for Partition<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Partition")
            .field("pages", &self.pages)
            .finish_non_exhaustive()
    }
}

/// The end of a stage whose records stay.
struct Keep<T> {
    place: Place,
    writer: Option<PageWriter<T>>,
    error: Option<Error>,
    parts: Arc<Mutex<Parts<T>>>,
}

impl<T: Record> Keep<T> {
    fn new(place: &Place, parts: Arc<Mutex<Parts<T>>>) -> Result<Self, Error> {
        Ok(Self {
            writer: Some(PageWriter::new(place, HOLDER, false)?),
            error: None,
            parts,
            place: place.clone(),
        })
    }
}

impl<T: Record> Push<T> for Keep<T> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        if let Some(writer) = &mut self.writer
            && self.error.is_none()
            && let Err(error) = writer.push(view)
        {
            self.error = Some(error);
        }
    }
}

impl<T: Record> Sink<T> for Keep<T> {
    #[inline]
    fn is_full(&self) -> bool {
        self.error.is_some()
    }
}

impl<T: Record> Output<T> for Keep<T> {
    fn poll(&mut self) -> Result<bool, Error> {
        self.error.take().map_or(Ok(false), Err)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        Ok(true)
    }

    fn commit(&mut self) -> Result<(), Error> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let partition = Partition {
            rank: self.place.rank,
            pages: writer.finish(),
        };
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.instances = self.place.instances;
        let instance = self.place.instance;
        parts.by_instance.insert(instance, Arc::new(partition));
        Ok(())
    }

    fn again(&mut self, _run: u32) -> bool {
        self.writer = PageWriter::new(&self.place, HOLDER, false).ok();
        self.writer.is_some()
    }
}

impl<T: Record> Source for Cached<T> {
    type Input = Replay<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Replay<T>, Error> {
        Ok(Replay {
            partition: Some(self.part(place)?),
            variable: None,
            at: At::default(),
            place: place.clone(),
        })
    }

    fn is_by_key(&self) -> bool {
        self.is_by_key
    }
}

/// What a variable has cached in each run.
pub struct CachedVariable<T> {
    variable: Variable<Cached<T>>,
    /// Whether what it has is by key, which plans go by.
    is_by_key: bool,
}

impl<T: Record> CachedVariable<T> {
    /// The partition of an instance that it has now.
    fn part(&self, place: &Place) -> Result<Arc<Partition<T>>, Error> {
        let now = self.variable.get();
        if self.is_by_key && !now.is_by_key {
            return Err(Error::NotCachedByKey {
                task: place.wiring.name.clone(),
            });
        }
        now.part(place)
    }
}

impl<T> Clone for CachedVariable<T> {
    fn clone(&self) -> Self {
        Self {
            variable: self.variable.clone(),
            is_by_key: self.is_by_key,
        }
    }
}

impl<T> fmt::Debug for CachedVariable<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.variable.fmt(f)
    }
}

impl<T: Record> Source for CachedVariable<T> {
    type Input = Replay<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Replay<T>, Error> {
        Ok(Replay {
            partition: Some(self.part(place)?),
            variable: Some(self.clone()),
            at: At::default(),
            place: place.clone(),
        })
    }

    fn is_by_key(&self) -> bool {
        self.is_by_key
    }
}

/// Reads the partition of an instance.
#[derive(Debug)]
pub struct Replay<T> {
    /// None between the runs of a variable, which is set there, and may hold the last clone of what it was.
    partition: Option<Arc<Partition<T>>>,
    variable: Option<CachedVariable<T>>,
    /// The record that is next.
    at: At,
    place: Place,
}

impl<T: Record> Input for Replay<T> {
    type Out = T;

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if let (None, Some(variable)) = (&self.partition, &self.variable) {
            self.partition = Some(variable.part(&self.place)?);
        }
        let Some(Partition { pages, .. }) = self.partition.as_deref() else {
            return Ok(Progress::Done);
        };
        let Some(pushed) = pages.push_on(&mut self.at, down) else {
            return Ok(Progress::Done);
        };
        self.place.counters.read(pushed, 0);
        Ok(match pages.is_end(&self.at) {
            true => Progress::Done,
            false => Progress::Made,
        })
    }

    fn again(&mut self) -> bool {
        self.at = At::default();
        if self.variable.is_some() {
            self.partition = None;
        }
        true
    }

    fn last(&self) -> String {
        let partition = self.partition.as_ref();
        partition.map_or_else(
            || "no record of the cache".to_owned(),
            |partition| partition.pages.name(&self.at, "the cache"),
        )
    }
}
