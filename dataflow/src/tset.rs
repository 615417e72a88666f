//! Writing a graph as a chain of operators.

use std::{
    fmt,
    marker::PhantomData,
    panic::Location,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use crate::{
    Encode, Error, Key, Record,
    blame::Culprit,
    exchange::{ByKey, Outbox, Receiver, Routed, ToFirst},
    graph::{Extent, Job, Node, Placement, Splits},
    operator::narrow::{Filter, FlatMap, Map, OnValues, Out, Pass, Then},
    schedule::{self, Split},
    sink::{Collect, ForEach, WriteFile},
    stage::{Input, Narrow, Output, Place, Stage},
};

/// A typed set of records, as Twister2 has it and Spark its RDD: a stream of records on their way, of which is written where they
/// come from, and the narrow operators since the last exchange.
///
/// Each method takes the stream and gives the one that follows; a sink ends it and gives the [`Job`].
/// Nothing is done before the job is run. Functions are cloned for each instance; those that are given
/// views get borrowed data (`&str` for a `String`).
///
/// A clone has the same records. Where clones meet again in a job, what comes before their last exchange is
/// done once for all of them, and what comes after it by each; [`direct`](Self::direct) is an exchange that
/// leaves records where they are.
#[must_use = "a set does nothing until it ends in a sink and its job is run"]
pub struct TSet<S, N> {
    pub(crate) source: Arc<S>,
    narrow: N,
    /// The tasks that the source receives from.
    inputs: Vec<Arc<Node>>,
    /// How many instances do what has been written since the last exchange.
    placement: Placement,
    /// Where the source gives pairs by key only if it is placed so: as those are placed that have them by key.
    by_key_at: Option<Placement>,
    /// The operators since the last exchange, and where those are written that work on single records.
    name: String,
    written_at: Vec<&'static Location<'static>>,
}

impl<S, N: Clone> Clone for TSet<S, N> {
    fn clone(&self) -> Self {
        Self {
            source: self.source.clone(),
            narrow: self.narrow.clone(),
            inputs: self.inputs.clone(),
            placement: self.placement.clone(),
            by_key_at: self.by_key_at.clone(),
            name: self.name.clone(),
            written_at: self.written_at.clone(),
        }
    }
}

/// What stands between the names of operators.
pub(crate) const BETWEEN: &str = " > ";

/// The records of a source of the program's own. Each instance makes its [`Input`], which gives its share of them.
///
/// ```
/// use dataflow::{Error, Input, Place, Progress, Sink, Source, inline, source};
///
/// /// The prime numbers below a limit.
/// struct Primes {
///     below: u64,
/// }
///
/// impl Source for Primes {
///     type Input = Share;
///     type Out = u64;
///
///     fn build(&self, place: &Place) -> Result<Share, Error> {
///         let (next, step) = (place.instance.into(), place.instances.into());
///         Ok(Share { next, step, below: self.below })
///     }
/// }
///
/// /// Those among every so many numbers.
/// struct Share {
///     next: u64,
///     step: u64,
///     below: u64,
/// }
///
/// impl Input for Share {
///     type Out = u64;
///
///     fn poll<D: Sink<u64>>(&mut self, down: &mut D) -> Result<Progress, Error> {
///         for _ in 0..1000 {
///             if self.next >= self.below {
///                 return Ok(Progress::Done);
///             }
///             if down.is_full() {
///                 break;
///             }
///             if self.next > 1 && (2..self.next).all(|n| !self.next.is_multiple_of(n)) {
///                 down.push(self.next);
///             }
///             self.next += self.step;
///         }
///         Ok(Progress::Made)
///     }
/// }
///
/// let primes = source(Primes { below: 20 }).named("primes").filter(|n| n > 10);
/// assert_eq!(inline(&primes.collect())?, [11, 13, 17, 19]);
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn source<S: Source>(source: S) -> TSet<S, Pass> {
    TSet::from_source(source, "source".to_owned())
}

/// Makes the input of a stage for one instance. [`source`] makes a set of it.
pub trait Source: Send + Sync + 'static {
    /// The input.
    type Input: Input<Out = Self::Out> + 'static;

    /// What it gives.
    type Out: Record;

    /// Makes it.
    ///
    /// # Errors
    ///
    /// What opening the source says.
    fn build(&self, place: &Place) -> Result<Self::Input, Error>;

    /// Whether it ends by itself, which it says if it does not say otherwise. What goes on until it is stopped is
    /// [`Extent::Unbounded`], and has to heed [`Input::stop`].
    fn extent(&self) -> Extent {
        Extent::AsInputs
    }

    /// Whether event time begins in it.
    fn gives_time(&self) -> bool {
        false
    }

    /// Whether it keeps step in event time with others that do.
    fn aligns(&self) -> bool {
        false
    }

    /// Whether it gives pairs, each on the instance that its key belongs to: where an exchange by key had it.
    fn is_by_key(&self) -> bool {
        false
    }

    /// What each of so many instances reads, and which hosts have it, so that schedulers put instances where that is: each
    /// [`Input`] has to be made for the part that was said of its instance. It says nothing if it does not say otherwise: what
    /// is equally far from all.
    ///
    /// All workers ask, and have to be told the same.
    ///
    /// ```
    /// use dataflow::{Error, Input, Place, Progress, Sink, Source, source};
    /// use dataflow::schedule::{Locality, Split, Worker};
    ///
    /// /// Blocks of a store that has each on one of its hosts.
    /// struct Blocks {
    ///     hosts: Vec<String>,
    /// }
    ///
    /// impl Source for Blocks {
    ///     type Input = Block;
    ///     type Out = u64;
    ///
    ///     fn build(&self, place: &Place) -> Result<Block, Error> {
    ///         Ok(Block(place.instance.into()))
    ///     }
    ///
    ///     fn splits(&self, instances: u32) -> Vec<Split> {
    ///         let blocks = (0..instances).zip(&self.hosts);
    ///         let split = |(instance, host): (u32, &String)| Split {
    ///             instance,
    ///             hosts: vec![host.clone()],
    ///             bytes: 64 << 20,
    ///             is_bound: false,
    ///         };
    ///         blocks.map(split).collect()
    ///     }
    /// }
    ///
    /// struct Block(u64);
    /// # impl Input for Block {
    /// #     type Out = u64;
    /// #     fn poll<D: Sink<u64>>(&mut self, down: &mut D) -> Result<Progress, Error> {
    /// #         down.push(self.0);
    /// #         Ok(Progress::Done)
    /// #     }
    /// # }
    ///
    /// let worker = |rank: u32, host: &str| Worker { ranks: rank..rank + 1, host: host.to_owned(), ..Worker::default() };
    /// let blocks = source(Blocks { hosts: ["b", "a"].map(String::from).into() });
    /// let graph = blocks.parallelism(2).collect().task_graph();
    /// let placed = graph.placed(&Locality::default(), &[worker(0, "a"), worker(1, "b")])?;
    /// assert!(placed.explain().contains("(2 instances, on ranks 1 0)"));
    /// assert!(placed.explain().contains("reads 134217728 bytes on the hosts that have them"));
    /// # Ok::<(), Error>(())
    /// ```
    fn splits(&self, _instances: u32) -> Vec<Split> {
        Vec::new()
    }
}

impl<S: Source> Splits for S {
    fn splits(&self, instances: u32) -> Vec<Split> {
        Source::splits(self, instances)
    }
}

impl<S: Source> TSet<S, Pass> {
    pub(crate) fn from_source(source: S, name: String) -> Self {
        let mut set = Self::after(Vec::new(), source, name);
        set.placement = Placement::reading(&set.source, None);
        set
    }

    /// The stream of what `source` makes of the outputs of other tasks, which are its ports in this order.
    pub(crate) fn after(inputs: Vec<Node>, source: S, name: impl Into<String>) -> Self {
        Self::behind(inputs.into_iter().map(Arc::new).collect(), source, name)
    }

    /// The same where others may read the tasks too.
    pub(crate) fn behind(inputs: Vec<Arc<Node>>, source: S, name: impl Into<String>) -> Self {
        Self {
            source: Arc::new(source),
            narrow: Pass,
            inputs,
            placement: Placement::Everywhere,
            by_key_at: None,
            name: name.into(),
            written_at: Vec::new(),
        }
    }

    /// The same from another source that reads the same inputs, and a name with `suffix`.
    pub(crate) fn with_source<S2: Source>(
        self,
        source: impl FnOnce(&S) -> S2,
        suffix: &str,
    ) -> TSet<S2, Pass> {
        TSet {
            source: Arc::new(source(&self.source)),
            narrow: Pass,
            inputs: self.inputs,
            placement: self.placement,
            by_key_at: None,
            name: self.name + suffix,
            written_at: self.written_at,
        }
    }

    /// The same with one instance: for what is the same for all.
    pub(crate) fn on_one(self) -> Self {
        self.placed(Placement::Instances(1))
    }

    /// The same with other instances.
    pub(crate) fn placed(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }
}

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N> TSet<S, N>
where
    S: Source,
    N: Narrow<S::Out>,
{
    /// Has `instances` instances do what is written since the last exchange, spread over the ranks in order; it
    /// may be more or fewer than there are ranks. Otherwise every rank has one.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let squares = collection((0..10u64).collect())
    ///     .parallelism(3)
    ///     .exchange_by_hash()
    ///     .parallelism(5)
    ///     .map(|n| n * n)
    ///     .collect();
    /// assert_eq!(inline(&squares)?.len(), 10);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn parallelism(mut self, instances: u32) -> Self {
        self.placement = Placement::reading(&self.source, Some(instances.max(1)));
        self
    }

    /// How many instances do what is written since the last exchange.
    pub(crate) fn placement(&self) -> Placement {
        self.placement.clone()
    }

    /// Gives the operator written last a name of the program's own, for errors and plans.
    ///
    /// ```
    /// use dataflow::collection;
    ///
    /// let job = collection(vec![1u64, 2]).map(|n| n + 1).named("next").for_each(|_| ());
    /// assert_eq!(job.plan(), "collection of 2 > next > for_each");
    /// ```
    pub fn named(mut self, name: &str) -> Self {
        let last = self.name.rfind(BETWEEN).map_or(0, |at| at + BETWEEN.len());
        self.name.replace_range(last.., name);
        self
    }

    /// Has the instances of `task` do what is written since the last exchange, where the job's
    /// [scheduler](crate::schedule) puts them. The name must be that of no other task of the job. What a source says of its
    /// [splits](Source::splits) goes with it, unless the task says otherwise.
    ///
    /// ```
    /// use dataflow::{collection, inline, schedule::Task};
    ///
    /// let squares = collection((0..10u64).collect())
    ///     .exchange_by_hash()
    ///     .as_task(Task::new("squares", 4).memory_bytes(64 << 20).per_worker_max(2))
    ///     .map(|n| n * n)
    ///     .collect();
    /// assert_eq!(inline(&squares)?.len(), 10);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn as_task(mut self, mut task: schedule::Task) -> Self {
        if task.splits.is_empty() {
            task.splits = Source::splits(&*self.source, task.instances);
        }
        self.placement = Placement::Task(Arc::new(task));
        self
    }

    /// The same, with its source and the operators since then as one source of another kind, and a name with `suffix`.
    pub(crate) fn fused<S2>(
        self,
        suffix: &str,
        fuse: impl FnOnce(Arc<S>, N) -> S2,
    ) -> TSet<S2, Pass>
    where
        S2: Source,
    {
        TSet {
            source: Arc::new(fuse(self.source, self.narrow)),
            narrow: Pass,
            inputs: self.inputs,
            placement: self.placement,
            by_key_at: None,
            name: self.name + suffix,
            written_at: self.written_at,
        }
    }

    #[track_caller]
    pub(crate) fn then<M>(self, operator: M, name: &str) -> TSet<S, Then<N, M, N::Out>>
    where
        M: Narrow<N::Out>,
    {
        let Self {
            source,
            narrow,
            inputs,
            placement,
            by_key_at,
            name: mut names,
            mut written_at,
        } = self;
        let culprit = Culprit::Operator {
            place: 1 + names.matches(BETWEEN).count(),
            written_at: Location::caller(),
        };
        written_at.push(Location::caller());
        names.push_str(BETWEEN);
        names.push_str(name);
        TSet {
            source,
            narrow: Then::new(narrow, operator, culprit),
            inputs,
            placement,
            by_key_at,
            name: names,
            written_at,
        }
    }

    /// Turns each record into another. `function` is given the view and returns a value of its own;
    /// to pass on what it borrows, use [`flat_map`](Self::flat_map).
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![1u64, 2, 3]).map(|n| (n, format!("{n}{n}"))).collect();
    /// assert_eq!(inline(&job)?, [(1, "11".into()), (2, "22".into()), (3, "33".into())]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn map<E, F>(self, function: F) -> TSet<S, Then<N, Map<F>, N::Out>>
    where
        E: Encode,
        F: FnMut(<N::Out as Record>::View<'_>) -> E + Clone + Send + Sync + 'static,
    {
        self.then(Map(function), "map")
    }

    /// Keeps the records that `function` says yes to.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![1u64, 2, 3]).filter(|n| n % 2 == 1).collect();
    /// assert_eq!(inline(&job)?, [1, 3]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn filter<F>(self, function: F) -> TSet<S, Then<N, Filter<F>, N::Out>>
    where
        F: FnMut(<N::Out as Record>::View<'_>) -> bool + Clone + Send + Sync + 'static,
    {
        self.then(Filter(function), "filter")
    }

    /// Turns each record into any number of others, which `function` pushes; they may borrow from it.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec!["to be".to_owned(), "or not".to_owned()])
    ///     .flat_map(|line, out| for word in line.split(' ') { out.push((word, word.len() as u64)) })
    ///     .collect();
    /// assert_eq!(inline(&job)?.len(), 4);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn flat_map<U, F>(self, function: F) -> TSet<S, Then<N, FlatMap<F, U>, N::Out>>
    where
        U: Record,
        F: FnMut(<N::Out as Record>::View<'_>, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
    {
        self.then(FlatMap::new(function), "flat_map")
    }

    /// Turns the value of each pair into another, as [`map`](Self::map) does with records. Its key stays, and so the pair stays
    /// where the key belongs: what comes from an exchange by key needs no other for the same key.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let sums = collection(vec![(1u64, 2u64), (1, 3)]).reduce_by_key(|a, b| a + b);
    /// assert_eq!(inline(&sums.map_values(|sum| sum as f64 / 2.0).collect())?, [(1, 2.5)]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn map_values<K, V, E, F>(self, function: F) -> TSet<S, Then<N, OnValues<Map<F>>, (K, V)>>
    where
        K: Record,
        V: Record,
        N: Narrow<S::Out, Out = (K, V)>,
        E: Encode,
        F: FnMut(V::View<'_>) -> E + Clone + Send + Sync + 'static,
    {
        self.then(OnValues(Map(function)), "map_values")
    }

    /// Turns the value of each pair into any number of others, as [`flat_map`](Self::flat_map) does with records. Its key stays
    /// with each of them.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let lines = collection(vec![(1u64, "to be".to_owned())]);
    /// let words = lines.flat_map_values(|line, out| for word in line.split(' ') { out.push(word) });
    /// assert_eq!(inline(&words.collect())?, [(1, "to".to_owned()), (1, "be".to_owned())]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn flat_map_values<K, V, U, F>(
        self,
        function: F,
    ) -> TSet<S, Then<N, OnValues<FlatMap<F, U>>, (K, V)>>
    where
        K: Record,
        V: Record,
        N: Narrow<S::Out, Out = (K, V)>,
        U: Record,
        F: FnMut(V::View<'_>, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
    {
        self.then(OnValues(FlatMap::new(function)), "flat_map_values")
    }

    /// Sends the pairs of equal keys to the same rank.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![(1u64, 'a'), (2, 'b')]).exchange_by_key().collect();
    /// assert_eq!(inline(&job)?.len(), 2);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn exchange_by_key<K, V>(self) -> TSet<Received<(K, V)>, Pass>
    where
        K: Key,
        V: Record,
        N: Narrow<S::Out, Out = (K, V)>,
    {
        let output = |place: &Place| Ok(Routed::new(Outbox::to_each(place)?, ByKey::new(place)));
        self.exchange_keys("exchange_by_key", output, Received::by_key())
    }

    /// Gathers all records in one `Vec`, in the order of the ranks, on every process: for results that
    /// fit in memory.
    ///
    /// ```
    /// use dataflow::{collection, inline, simulate};
    ///
    /// let words = collection(["to", "be"].map(String::from).into()).collect();
    /// assert_eq!(inline(&words)?, ["to", "be"]);
    /// // The same of three ranks.
    /// assert_eq!(simulate(&words, 1, 3, 1)?, ["to", "be"]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn collect(self) -> Job<Vec<N::Out>> {
        let records = self.end("collect", |place: &Place| {
            Ok(Routed::new(Outbox::to_all(place)?, ToFirst))
        });
        let result = Arc::<Mutex<Vec<N::Out>>>::default();
        let collected = result.clone();
        let sink = Node {
            name: "collected".to_owned(),
            written_at: Vec::new(),
            inputs: vec![Arc::new(records)],
            placement: Placement::OnePerProcess,
            outlet: None,
            extent: Extent::AsInputs,
            gives_time: false,
            aligns: false,
            in_place: false,
            input_names: Vec::new(),
            kept: None,
            build: Box::new(move |place: &Place| {
                Ok(Box::new(Collect::new(place, collected.clone())))
            }),
        };
        Job::new(sink, move || {
            std::mem::take(&mut *result.lock().unwrap_or_else(PoisonError::into_inner))
        })
    }

    /// Hands each record to `function`, on the rank where it is.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    /// use std::sync::{Arc, atomic::{AtomicU64, Ordering}};
    ///
    /// let sum = Arc::new(AtomicU64::new(0));
    /// let add = sum.clone();
    /// let job = collection(vec![1u64, 2, 3]).for_each(move |n| { add.fetch_add(n, Ordering::Relaxed); });
    /// inline(&job)?;
    /// assert_eq!(sum.load(Ordering::Relaxed), 6);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn for_each<F>(self, function: F) -> Job<()>
    where
        F: FnMut(<N::Out as Record>::View<'_>) + Clone + Send + Sync + 'static,
    {
        let sink = self.end("for_each", move |_: &Place| Ok(ForEach(function.clone())));
        Job::new(sink, || ())
    }

    /// Writes each record as a line of text, each instance to a file of its own in `folder`:
    /// `part-00000` and so on. The files appear, by renaming, when every rank has finished.
    ///
    /// Running it fails with [`Error::OutputExists`] if the folder holds such files already.
    ///
    /// ```
    /// use dataflow::{Error, collection, inline};
    ///
    /// let folder = std::env::temp_dir().join(format!("write-text-{}", std::process::id()));
    /// let job = collection(vec![1u64, 2, 3]).parallelism(1).map(|n| format!("{n} times")).write_text(&folder);
    /// inline(&job)?;
    /// assert_eq!(std::fs::read_to_string(folder.join("part-00000"))?, "1 times\n2 times\n3 times\n");
    /// assert!(matches!(inline(&job), Err(Error::OutputExists { .. })));
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_text(self, folder: impl AsRef<Path>) -> Job<()>
    where
        N: Narrow<S::Out, Out = String>,
    {
        let folder: PathBuf = folder.as_ref().to_owned();
        let sink = self.end("write_text", move |place: &Place| {
            WriteFile::new(&folder, place)
        });
        Job::new(sink, || ())
    }

    /// Writes the bytes of each record, one behind the other, to files as [`write_text`](Self::write_text) does.
    ///
    /// ```
    /// use dataflow::{collection, inline, records_of};
    ///
    /// let folder = std::env::temp_dir().join(format!("write-records-{}", std::process::id()));
    /// inline(&collection(vec![1u32, 2]).parallelism(1).map(u32::to_le_bytes).write_records(&folder))?;
    /// let part = folder.join("part-00000");
    /// assert_eq!(std::fs::read(&part)?, [1, 0, 0, 0, 2, 0, 0, 0]);
    /// let read = records_of::<4>(vec![part])?.map(|bytes| u32::from_le_bytes(*bytes));
    /// assert_eq!(inline(&read.collect())?, [1, 2]);
    /// # std::fs::remove_dir_all(&folder)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write_records<const BYTES: usize>(self, folder: impl AsRef<Path>) -> Job<()>
    where
        N: Narrow<S::Out, Out = [u8; BYTES]>,
    {
        let folder: PathBuf = folder.as_ref().to_owned();
        let sink = self.end("write_records", move |place: &Place| {
            WriteFile::new(&folder, place)
        });
        Job::new(sink, || ())
    }

    /// Hands the records to an output of the program's own, which `output` makes for each instance, on the rank where
    /// they are.
    ///
    /// What it does before [`commit`](Output::commit) is done even if the job fails later.
    ///
    /// ```
    /// use dataflow::{Error, Output, Place, Push, Sink, collection, inline};
    /// use std::{collections::BTreeMap, sync::{Arc, Mutex}};
    ///
    /// type Sums = Arc<Mutex<BTreeMap<u32, u64>>>;
    ///
    /// /// Adds numbers up, and tells the sum when every rank has finished.
    /// struct Adding {
    ///     sum: u64,
    ///     instance: u32,
    ///     sums: Sums,
    /// }
    ///
    /// impl Push<u64> for Adding {
    ///     fn push(&mut self, number: u64) {
    ///         self.sum += number;
    ///     }
    /// }
    ///
    /// impl Sink<u64> for Adding {
    ///     fn is_full(&self) -> bool {
    ///         false
    ///     }
    /// }
    ///
    /// impl Output<u64> for Adding {
    ///     fn poll(&mut self) -> Result<bool, Error> {
    ///         Ok(false)
    ///     }
    ///
    ///     fn finish(&mut self) -> Result<bool, Error> {
    ///         Ok(true)
    ///     }
    ///
    ///     fn commit(&mut self) -> Result<(), Error> {
    ///         self.sums.lock().expect("nobody panics").insert(self.instance, self.sum);
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let sums = Sums::default();
    /// let told = sums.clone();
    /// let job = collection((0..10u64).collect())
    ///     .round_robin()
    ///     .parallelism(2)
    ///     .write_to(move |place: &Place| {
    ///         Ok(Adding { sum: 0, instance: place.instance, sums: told.clone() })
    ///     });
    /// inline(&job)?;
    /// let sums = sums.lock().expect("nobody panics");
    /// assert_eq!((sums.len(), sums.values().sum::<u64>()), (2, 45));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn write_to<O>(
        self,
        output: impl Fn(&Place) -> Result<O, Error> + Send + Sync + 'static,
    ) -> Job<()>
    where
        O: Output<N::Out> + 'static,
    {
        Job::new(self.end("write_to", output), || ())
    }

    /// Ends the stage in an output, and starts the next behind the exchange.
    pub(crate) fn exchange<O, T>(
        self,
        name: &str,
        output: impl Fn(&Place) -> Result<O, Error> + Send + Sync + 'static,
        source: T,
    ) -> TSet<T, Pass>
    where
        O: Output<N::Out> + 'static,
        T: Source,
    {
        let sender = self.end(name, output);
        TSet::after(vec![sender], source, format!("after {name}"))
    }

    /// The same where the exchange is by key. Who is by key already, and keeps the keys, need not be exchanged.
    pub(crate) fn exchange_keys<O, T, K, V>(
        self,
        name: &str,
        output: impl Fn(&Place) -> Result<O, Error> + Send + Sync + 'static,
        source: T,
    ) -> TSet<T, Pass>
    where
        K: Key,
        V: Record,
        N: Narrow<S::Out, Out = (K, V)>,
        O: Output<(K, V)> + 'static,
        T: Source,
    {
        let sender = self.end_by_key(name, output);
        TSet::after(vec![sender], source, format!("after {name}"))
    }

    /// Whether it has pairs, each on the instance that its key belongs to.
    pub(crate) fn is_by_key(&self) -> bool {
        let is_placed_so = self
            .by_key_at
            .as_ref()
            .is_none_or(|at| *at == self.placement);
        self.source.is_by_key() && is_placed_so && self.narrow.keeps_keys()
    }

    /// Ends the stage in an output by key.
    pub(crate) fn end_by_key<O, K, V>(
        self,
        name: &str,
        output: impl Fn(&Place) -> Result<O, Error> + Send + Sync + 'static,
    ) -> Node
    where
        K: Key,
        V: Record,
        N: Narrow<S::Out, Out = (K, V)>,
        O: Output<(K, V)> + 'static,
    {
        let in_place = self.is_by_key();
        Node {
            in_place,
            ..self.end(name, output)
        }
    }

    /// Ends the stage in an output: a task that another stage may receive from.
    pub(crate) fn end<O>(
        self,
        name: &str,
        output: impl Fn(&Place) -> Result<O, Error> + Send + Sync + 'static,
    ) -> Node
    where
        O: Output<N::Out> + 'static,
    {
        let Self {
            source,
            narrow,
            inputs,
            placement,
            by_key_at: _,
            name: names,
            written_at,
        } = self;
        Node {
            name: format!("{names}{BETWEEN}{name}"),
            written_at,
            inputs,
            placement,
            outlet: None,
            extent: source.extent(),
            gives_time: source.gives_time() || narrow.gives_time(),
            aligns: source.aligns(),
            in_place: false,
            input_names: Vec::new(),
            kept: None,
            build: Box::new(move |place: &Place| {
                let (input, output) = (source.build(place)?, output(place)?);
                Ok(Box::new(Stage::new(input, narrow.clone(), output, place)))
            }),
        }
    }
}

impl<S, N, M, T> TSet<S, Then<N, M, T>> {
    /// The operator that was written last.
    pub(crate) fn last_mut(&mut self) -> &mut M {
        self.narrow.last_mut()
    }
}

impl<S, N> fmt::Debug for TSet<S, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TSet")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Records that come from an exchange.
#[derive(Debug)]
pub struct Received<T> {
    is_by_key: bool,
    record: PhantomData<fn() -> T>,
}

impl<T: Record> TSet<Received<T>, Pass> {
    /// The same, by key where it is placed so.
    pub(crate) fn by_key_at(self, at: Option<Placement>) -> Self {
        let Some(at) = at else {
            return self;
        };
        Self {
            source: Arc::new(Received::by_key()),
            by_key_at: Some(at),
            ..self
        }
    }
}

impl<T> TSet<Received<T>, Pass> {
    /// The tasks that it receives from, for a task that does so in its place.
    pub(crate) fn into_inputs(self) -> Vec<Arc<Node>> {
        self.inputs
    }
}

impl<T> Received<T> {
    pub(crate) fn new() -> Self {
        Self {
            is_by_key: false,
            record: PhantomData,
        }
    }

    /// Of an exchange by key.
    pub(crate) fn by_key() -> Self {
        Self {
            is_by_key: true,
            ..Self::new()
        }
    }
}

impl<T: Record> Source for Received<T> {
    type Input = Receiver<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Receiver<T>, Error> {
        Ok(Receiver::new(place, 0))
    }

    fn is_by_key(&self) -> bool {
        self.is_by_key
    }
}
