//! Writing a graph as a chain of operators.

use std::{
    fmt,
    marker::PhantomData,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use crate::{
    Encode, Error, Key, Record,
    exchange::{ByKey, Outbox, Receiver, ToAll},
    graph::{EdgeId, Graph, Job, Placement, Vertex},
    operator::{
        narrow::{Filter, FlatMap, Map, Out, Pass, Then},
        reduce::{Combine, Reduce},
    },
    sink::{Collect, ForEach, WriteText},
    stage::{Input, Narrow, Output, Place, Stage, State},
};

/// Records on their way: where they come from, and the narrow operators since the last exchange.
///
/// Each method takes the stream and gives the one that follows; a sink ends it and gives the [`Job`].
/// Nothing is done before the job is run. Functions are cloned for each rank; those that are given
/// views get borrowed data (`&str` for a `String`). A clone is the same work, done again.
#[derive(Clone)]
#[must_use = "a stream does nothing until it ends in a sink and its job is run"]
pub struct Stream<S, N> {
    graph: Graph,
    source: S,
    narrow: N,
    /// The edge that the source receives from.
    input: Option<EdgeId>,
    /// The operators since the last exchange.
    name: String,
}

/// Makes the input of a stage for one rank.
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
}

impl<S: Source> Stream<S, Pass> {
    pub(crate) fn from_source(source: S, name: String) -> Self {
        Self {
            graph: Graph::default(),
            source,
            narrow: Pass,
            input: None,
            name,
        }
    }
}

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N> Stream<S, N>
where
    S: Source,
    N: Narrow<S::Out>,
{
    fn then<M>(self, operator: M, name: &str) -> Stream<S, Then<N, M, N::Out>>
    where
        M: Narrow<N::Out>,
    {
        let Self {
            graph,
            source,
            narrow,
            input,
            name: mut names,
        } = self;
        names.push_str(" > ");
        names.push_str(name);
        Stream {
            graph,
            source,
            narrow: Then::new(narrow, operator),
            input,
            name: names,
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
    pub fn map<E, F>(self, function: F) -> Stream<S, Then<N, Map<F>, N::Out>>
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
    pub fn filter<F>(self, function: F) -> Stream<S, Then<N, Filter<F>, N::Out>>
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
    pub fn flat_map<U, F>(self, function: F) -> Stream<S, Then<N, FlatMap<F, U>, N::Out>>
    where
        U: Record,
        F: FnMut(<N::Out as Record>::View<'_>, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
    {
        self.then(FlatMap::new(function), "flat_map")
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
    pub fn exchange_by_key<K, V>(self) -> Stream<Received<(K, V)>, Pass>
    where
        K: Key,
        V: Record,
        N: Narrow<S::Out, Out = (K, V)>,
    {
        let output = |place: &Place, edge| Ok(ByKey(Outbox::to_each(place, edge)?));
        self.exchange("exchange_by_key", output, Received(PhantomData))
    }

    /// Reduces the values of each key to one. `reduce` is given a value of its own and the view of
    /// another and has to be associative and commutative: values are combined on every rank before
    /// they meet on the rank of their key. (A default value stands in for the first argument while
    /// `reduce` runs.)
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec!["a", "b", "a"].into_iter().map(String::from).collect())
    ///     .flat_map(|word, out| out.push((word, 1u64)))
    ///     .reduce_by_key(|a, b| a + b)
    ///     .collect();
    /// let mut counts = inline(&job)?;
    /// counts.sort();
    /// assert_eq!(counts, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn reduce_by_key<K, V, F>(self, reduce: F) -> Stream<Reduced<K, V, F>, Pass>
    where
        K: Key,
        V: Record + Default,
        N: Narrow<S::Out, Out = (K, V)>,
        F: Fn(V, V::View<'_>) -> V + Clone + Send + Sync + 'static,
    {
        let combine = reduce.clone();
        let output = move |place: &Place, edge| {
            Combine::new(combine.clone(), place, Outbox::to_each(place, edge)?)
        };
        self.exchange(
            "reduce_by_key",
            output,
            Reduced {
                reduce,
                pair: PhantomData,
            },
        )
    }

    /// Gathers all records in one `Vec`, in the order of the ranks, on every process: for results that
    /// fit in memory.
    pub fn collect(mut self) -> Job<Vec<N::Out>> {
        let edge = self.graph.add_edge();
        let mut graph = self.end("collect", move |place: &Place| {
            let firsts = (0..place.size)
                .filter(|&rank| Placement::OnePerProcess.includes(rank, place.executors));
            Ok(ToAll(Outbox::to_all(place, edge, firsts.collect())?))
        });
        let result = Arc::<Mutex<Vec<N::Out>>>::default();
        let collected = result.clone();
        graph.vertices.push(Vertex {
            name: "collected".to_owned(),
            input: Some(edge),
            placement: Placement::OnePerProcess,
            build: Arc::new(move |place: &Place| {
                Ok(Box::new(Collect::new(place, collected.clone())))
            }),
        });
        Job {
            graph: Arc::new(graph),
            result,
        }
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
        let graph = self.end("for_each", move |_: &Place| Ok(ForEach(function.clone())));
        Job {
            graph: Arc::new(graph),
            result: Arc::default(),
        }
    }

    /// Writes each record as a line of text, each rank to a file of its own in `folder`:
    /// `part-00000` and so on. The files appear, by renaming, when every rank has finished.
    ///
    /// Running it fails with [`Error::OutputExists`] if the folder holds such files already.
    pub fn write_text(self, folder: impl AsRef<Path>) -> Job<()>
    where
        N: Narrow<S::Out, Out = String>,
    {
        let folder: PathBuf = folder.as_ref().to_owned();
        let graph = self.end("write_text", move |place: &Place| {
            WriteText::new(&folder, place)
        });
        Job {
            graph: Arc::new(graph),
            result: Arc::default(),
        }
    }

    /// Ends the stage in an output, and starts the next behind the exchange.
    fn exchange<O, T>(
        mut self,
        name: &str,
        output: impl Fn(&Place, EdgeId) -> Result<O, Error> + Send + Sync + 'static,
        source: T,
    ) -> Stream<T, Pass>
    where
        O: Output<N::Out> + 'static,
        T: Source,
    {
        let edge = self.graph.add_edge();
        let graph = self.end(name, move |place: &Place| output(place, edge));
        Stream {
            graph,
            source,
            narrow: Pass,
            input: Some(edge),
            name: format!("after {name}"),
        }
    }

    /// Ends the stage in an output: the graph has one more task.
    fn end<O>(
        self,
        name: &str,
        output: impl Fn(&Place) -> Result<O, Error> + Send + Sync + 'static,
    ) -> Graph
    where
        O: Output<N::Out> + 'static,
    {
        let Self {
            mut graph,
            source,
            narrow,
            input,
            name: names,
        } = self;
        graph.vertices.push(Vertex {
            name: format!("{names} > {name}"),
            input,
            placement: Placement::Everywhere,
            build: Arc::new(move |place: &Place| {
                let (input, output) = (source.build(place)?, output(place)?);
                Ok(Box::new(Stage {
                    input,
                    narrow: narrow.clone(),
                    output,
                    state: State::Running,
                }))
            }),
        });
        graph
    }
}

impl<S, N> fmt::Debug for Stream<S, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Records that come from an exchange.
#[derive(Debug)]
pub struct Received<T>(PhantomData<fn() -> T>);

impl<T: Record> Source for Received<T> {
    type Input = Receiver<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Receiver<T>, Error> {
        Ok(Receiver::new(place))
    }
}

/// One pair for each key.
pub struct Reduced<K, V, F> {
    reduce: F,
    pair: PhantomData<fn() -> (K, V)>,
}

impl<K, V, F> Source for Reduced<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V + Clone + Send + Sync + 'static,
{
    type Input = Reduce<K, V, F>;
    type Out = (K, V);

    fn build(&self, place: &Place) -> Result<Reduce<K, V, F>, Error> {
        Reduce::new(self.reduce.clone(), place, Receiver::new(place))
    }
}

impl<K, V, F> fmt::Debug for Reduced<K, V, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reduced")
    }
}
