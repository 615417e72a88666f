//! Writing a graph as tasks with named inputs and outputs.

use std::{
    any::Any,
    collections::HashSet,
    fmt,
    marker::PhantomData,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use transport::{Buffer, Rank};

use super::{EdgeId, Extent, Graph, Job, Node, Outlet, Outside, Placement};
use crate::{
    Encode, Error, Key, Record,
    exchange::{
        ByFunction, ByHash, ByKey, Direct, Outbox, Rebalance, Receiver, RoundRobin, Route, Routed,
        ToFirst,
    },
    operator::narrow::Pass,
    schedule::{self, check_tasks},
    stage::{Input, Output, Place, Progress, Push, Sink, Task},
    time::{EventTime, Watermark},
    tset::{BETWEEN, Received, TSet},
};

/// What a function of the program may fail with.
type Cause = Box<dyn std::error::Error + Send + Sync>;

/// A graph in the making, as tasks that the program writes itself: each with a state in every instance, any number of
/// named inputs and outputs of different types, and a function for each input.
///
/// What comes into a task is a [`TSet`] behind an exchange, and what comes out of it becomes one: so operators
/// stand between tasks where there are any for the purpose. A stream has to be there before a task reads it. So no
/// cycle can be written, and what is of the wrong type does not compile.
///
/// Tasks without outputs are the sinks of the graph. What a task needs to know beside its records is in its state and
/// its functions, which hold what the program gives them.
///
/// ```
/// use dataflow::{GraphBuilder, generate, inline, schedule::Task};
///
/// let mut graph = GraphBuilder::new();
///
/// let mut split = graph.task(Task::new("split", 2), |_| ());
/// let (even, odd) = (split.output::<u64>("even"), split.output::<String>("odd"));
/// split.input("numbers", generate(10, |n| n).round_robin(), move |_, n, out| {
///     if n % 2 == 0 {
///         out.push(even, n);
///     } else {
///         out.push(odd, n.to_string());
///     }
/// });
/// let split = split.done();
///
/// // An output is a stream once it is said how its records travel.
/// let sum = split.output(even).gather().reduce(|a, b| a + b).collect();
/// let texts = split.output(odd).exchange_by_hash().collect();
/// let (sum, mut texts) = inline(&graph.job_with(sum.and(texts))?)?;
/// texts.sort();
/// assert_eq!((sum, texts), (vec![20], ["1", "3", "5", "7", "9"].map(String::from).to_vec()));
/// # Ok::<(), dataflow::Error>(())
/// ```
#[derive(Debug, Default)]
pub struct GraphBuilder {
    tasks: Vec<Declared>,
    sinks: Vec<Arc<Node>>,
    error: Option<Error>,
}

/// What is to be checked of a task.
#[derive(Debug)]
struct Declared {
    node: Arc<Node>,
    outputs: Vec<String>,
}

impl GraphBuilder {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins a task with the name, the instances and the demands of `task`. `state` makes the state of an instance,
    /// where it runs.
    pub fn task<S: 'static>(
        &mut self,
        task: schedule::Task,
        state: impl Fn(&Place) -> S + Send + Sync + 'static,
    ) -> TaskBuilder<'_, S> {
        let name = task.name.clone();
        TaskBuilder::new(self, name, Placement::Task(Arc::new(task)), state)
    }

    /// Begins a task with an instance on each rank.
    pub fn task_on_each_rank<S: 'static>(
        &mut self,
        name: impl Into<String>,
        state: impl Fn(&Place) -> S + Send + Sync + 'static,
    ) -> TaskBuilder<'_, S> {
        TaskBuilder::new(self, name.into(), Placement::Everywhere, state)
    }

    /// The job that does all tasks, each of which has to lead to one without outputs.
    ///
    /// # Errors
    ///
    /// [`Error::BadTask`], which names the task, and the input or output if it is one, or [`Error::Unbounded`].
    pub fn job(self) -> Result<Job<()>, Error> {
        let sinks = self.sinks.clone();
        self.checked(Job::of(sinks, Outside::default(), Arc::new(|| ())))
    }

    /// The same together with a job that reads outputs of tasks, and gives its result.
    ///
    /// # Errors
    ///
    /// As [`job`](Self::job).
    pub fn job_with<R: 'static>(self, job: Job<R>) -> Result<Job<R>, Error> {
        let sinks = self.sinks.iter().chain(&job.sinks).cloned().collect();
        let job = Job::of(sinks, job.graph.outside.clone(), job.result.clone());
        self.checked(job)
    }

    fn checked<R: 'static>(self, job: Job<R>) -> Result<Job<R>, Error> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let mut names = HashSet::new();
        for Declared { node, outputs } in &self.tasks {
            if !names.insert(&node.name) {
                return Err(bad(&node.name, "there is another task of this name"));
            }
            let read = ports_read(&job.graph, node);
            let unread = (0..outputs.len()).find(|port| !read.contains(port));
            if let Some(port) = unread {
                let reason = format!("its output \"{}\" leads to no sink", outputs[port]);
                return Err(bad(&node.name, reason));
            }
        }
        check_tasks(&job.graph.placements(1).1)?;
        job.graph.check_ends()?;
        Ok(job)
    }
}

/// The outputs of a task that something in a graph reads.
fn ports_read(graph: &Graph, task: &Arc<Node>) -> HashSet<usize> {
    let outlets = graph.vertices.iter().filter_map(|vertex| {
        let outlet = vertex.node.outlet.as_ref()?;
        Arc::ptr_eq(vertex.node.inputs.first()?, task).then_some(outlet.port)
    });
    outlets.collect()
}

fn bad(task: &str, reason: impl Into<String>) -> Error {
    Error::BadTask {
        task: task.to_owned(),
        reason: reason.into(),
    }
}

/// A task in the making.
///
/// Functions are cloned for each instance. They are given the state of the instance, and the outputs.
#[must_use = "a task is none before it is done"]
pub struct TaskBuilder<'g, S> {
    graph: &'g mut GraphBuilder,
    name: String,
    placement: Placement,
    number: u64,
    state: Arc<dyn Fn(&Place) -> S + Send + Sync>,
    inputs: Vec<Declaration<S>>,
    nodes: Vec<Arc<Node>>,
    outputs: Vec<(String, NewFan)>,
    produce: Option<Arc<NewStep<S, Progress>>>,
    at_end: Option<Arc<NewStep<S, bool>>>,
    extent: Extent,
    error: Option<Error>,
}

type NewFan = fn() -> Box<dyn AnyFan>;
type NewStep<S, R> = dyn Fn() -> Box<Step<S, R>> + Send + Sync;
type Step<S, R> = dyn FnMut(&mut S, &mut Outputs) -> R;

/// An input of a task.
struct Declaration<S> {
    name: String,
    open: Box<Open<S>>,
}

type Open<S> = dyn Fn(&Place, usize) -> Box<dyn InPort<S>> + Send + Sync;

/// An output of a task, as its functions name it.
pub struct Port<T> {
    /// Which task it is of, of all in the process.
    task: u64,
    index: usize,
    record: PhantomData<fn() -> T>,
}

impl<T> Clone for Port<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Port<T> {}

impl<T> fmt::Debug for Port<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Port").field(&self.index).finish()
    }
}

/// Numbers tasks, so that a port of one is not taken for that of another.
static TASKS: AtomicU64 = AtomicU64::new(0);

impl<'g, S: 'static> TaskBuilder<'g, S> {
    fn new(
        graph: &'g mut GraphBuilder,
        name: String,
        placement: Placement,
        state: impl Fn(&Place) -> S + Send + Sync + 'static,
    ) -> Self {
        Self {
            graph,
            name,
            placement,
            number: TASKS.fetch_add(1, Ordering::Relaxed),
            state: Arc::new(state),
            inputs: Vec::new(),
            nodes: Vec::new(),
            outputs: Vec::new(),
            produce: None,
            at_end: None,
            extent: Extent::AsInputs,
            error: None,
        }
    }

    /// Gives the task an output.
    pub fn output<T: Record>(&mut self, name: &str) -> Port<T> {
        if self.outputs.iter().any(|(other, _)| other == name) {
            self.refuse(format!("it has two outputs \"{name}\""));
        }
        self.outputs.push((name.to_owned(), Fan::<T>::boxed));
        Port {
            task: self.number,
            index: self.outputs.len() - 1,
            record: PhantomData,
        }
    }

    /// Gives the task an input: `function` is called with each record of `stream`, which comes from an
    /// exchange. How many instances the stream has does not matter: they are those of the task.
    pub fn input<T, F>(&mut self, name: &str, stream: TSet<Received<T>, Pass>, function: F)
    where
        T: Record,
        F: FnMut(&mut S, T::View<'_>, &mut Outputs) + Clone + Send + Sync + 'static,
    {
        if self.inputs.iter().any(|other| other.name == name) {
            self.refuse(format!("it has two inputs \"{name}\""));
        }
        self.nodes.extend(stream.into_inputs());
        self.inputs.push(Declaration {
            name: name.to_owned(),
            open: Box::new(move |place, port| {
                Box::new(Reading {
                    receiver: Receiver::new(place, port),
                    function: function.clone(),
                })
            }),
        });
    }

    /// Makes the task a source: `function` is called again and again while there is room in the outputs. It pushes
    /// some records at a time and says [`Progress::Made`], or [`Progress::None`] if it has none at the moment, or
    /// [`Progress::Done`] when it will have no more. If it never says so the task is [unbounded](Self::unbounded).
    ///
    /// ```
    /// use dataflow::{GraphBuilder, Progress, inline, schedule::Task};
    ///
    /// let mut graph = GraphBuilder::new();
    /// // Each of two instances counts down.
    /// let mut task = graph.task(Task::new("countdown", 2), |_| 3u64);
    /// let numbers = task.output::<u64>("numbers");
    /// task.produce(move |left, out| {
    ///     if *left == 0 {
    ///         return Progress::Done;
    ///     }
    ///     out.push(numbers, *left);
    ///     *left -= 1;
    ///     Progress::Made
    /// });
    /// let countdown = task.done();
    /// let job = graph.job_with(countdown.output(numbers).gather().collect())?;
    /// let mut numbers = inline(&job)?;
    /// numbers.sort();
    /// assert_eq!(numbers, [1, 1, 2, 2, 3, 3]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn produce<F>(&mut self, function: F)
    where
        F: FnMut(&mut S, &mut Outputs) -> Progress + Clone + Send + Sync + 'static,
    {
        self.produce = Some(Arc::new(move || Box::new(function.clone())));
    }

    /// Says that what the task [produces](Self::produce) has no end: it goes on until the job is
    /// [stopped](Job::stopped_by), or nobody wants more.
    ///
    /// ```
    /// use dataflow::{Error, GraphBuilder, Progress, inline, schedule::Task};
    ///
    /// let squares = |sorted: bool| {
    ///     let mut graph = GraphBuilder::new();
    ///     let mut task = graph.task(Task::new("squares", 1), |_| 0u64);
    ///     let squares = task.output::<u64>("squares");
    ///     task.unbounded();
    ///     task.produce(move |next, out| {
    ///         out.push(squares, *next * *next);
    ///         *next += 1;
    ///         Progress::Made
    ///     });
    ///     let squares = task.done().output(squares).gather();
    ///     graph.job_with(if sorted { squares.sort().collect() } else { squares.take(4).collect() })
    /// };
    /// assert_eq!(inline(&squares(false)?)?, [0, 1, 4, 9]);
    /// // What has no end cannot be sorted.
    /// assert!(matches!(squares(true), Err(Error::Unbounded { .. })));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn unbounded(&mut self) {
        self.extent = Extent::Unbounded;
    }

    /// Has `function` called when all inputs have ended, as often as it says `false`, each time when there is room in
    /// the outputs: so that it can push much in several turns.
    ///
    /// ```
    /// use dataflow::{GraphBuilder, collection, inline, schedule::Task};
    ///
    /// let mut graph = GraphBuilder::new();
    /// // Gives what came in, the last first.
    /// let mut task = graph.task(Task::new("reverse", 1), |_| Vec::new());
    /// let reversed = task.output::<String>("reversed");
    /// task.input("words", collection(["to", "be"].map(String::from).into()).gather(), |kept: &mut Vec<String>, word, _| {
    ///     kept.push(word.to_owned());
    /// });
    /// task.at_end(move |kept, out| {
    ///     while !out.is_full() && let Some(word) = kept.pop() {
    ///         out.push(reversed, word);
    ///     }
    ///     kept.is_empty()
    /// });
    /// let task = task.done();
    /// let job = graph.job_with(task.output(reversed).gather().collect())?;
    /// assert_eq!(inline(&job)?, ["be", "to"]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn at_end<F>(&mut self, function: F)
    where
        F: FnMut(&mut S, &mut Outputs) -> bool + Clone + Send + Sync + 'static,
    {
        self.at_end = Some(Arc::new(move || Box::new(function.clone())));
    }

    fn refuse(&mut self, reason: impl Into<String>) {
        let name = &self.name;
        self.error.get_or_insert_with(|| bad(name, reason));
    }

    /// Ends the task. What is wrong with it is told when the job is made.
    pub fn done(mut self) -> TaskOutputs {
        if self.inputs.is_empty() && self.produce.is_none() {
            self.refuse("it has no input, and produces nothing");
        }
        if self.produce.is_none() && self.extent == Extent::Unbounded {
            self.refuse("it is unbounded, and yet it produces nothing");
        }
        if self.produce.is_some()
            && let Some(input) = self.inputs.first()
        {
            let reason = format!("it has the input \"{}\", and yet it produces", input.name);
            self.refuse(reason);
        }
        let Self {
            graph,
            name,
            placement,
            number,
            state,
            inputs,
            nodes,
            outputs,
            produce,
            at_end,
            extent,
            error,
        } = self;
        if let Some(error) = error {
            graph.error.get_or_insert(error);
        }
        let names: Vec<_> = outputs.iter().map(|(name, _)| name.clone()).collect();
        let fans: Vec<_> = outputs.iter().map(|(_, fan)| *fan).collect();
        let input_names = inputs.iter().map(|input| input.name.clone()).collect();
        let node = Arc::new(Node {
            name,
            written_at: Vec::new(),
            inputs: nodes,
            input_names,
            placement,
            outlet: None,
            extent,
            gives_time: produce.is_some(),
            aligns: false,
            in_place: false,
            kept: None,
            build: Box::new(move |place: &Place| {
                let open = |(port, input): (usize, &Declaration<S>)| {
                    (input.name.clone(), (input.open)(place, port))
                };
                Ok(Box::new(Instance {
                    state: state(place),
                    inputs: inputs.iter().enumerate().map(open).collect(),
                    outputs: Outputs::new(number, &fans, place)?,
                    produce: produce.as_ref().map(|new| new()),
                    at_end: at_end.as_ref().map(|new| new()),
                    first: 0,
                    ended: false,
                    done: false,
                    place: place.clone(),
                }))
            }),
        });
        if names.is_empty() {
            graph.sinks.push(node.clone());
        }
        graph.tasks.push(Declared {
            node: node.clone(),
            outputs: names.clone(),
        });
        TaskOutputs {
            node,
            number,
            names,
        }
    }
}

impl<S> fmt::Debug for TaskBuilder<'_, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The outputs of a task that is done, for those who read them.
#[derive(Debug, Clone)]
pub struct TaskOutputs {
    node: Arc<Node>,
    number: u64,
    names: Vec<String>,
}

impl TaskOutputs {
    /// An output of the task. It may be read by many, each by an exchange of its own. A port of another task
    /// is an error when the job is run.
    pub fn output<T: Record>(&self, port: Port<T>) -> TaskOutput<T> {
        let ours = port.task == self.number;
        let name = self.names.get(port.index).filter(|_| ours);
        TaskOutput {
            node: self.node.clone(),
            name: name
                .cloned()
                .unwrap_or_else(|| "of another task".to_owned()),
            // None has this number.
            port: if ours { port.index } else { usize::MAX },
            record: PhantomData,
        }
    }
}

/// An output of a task, until it is said how its records travel. Each way gives a stream, as the exchanges of the same
/// names do for [`TSet`]s.
#[derive(Debug)]
#[must_use = "an output is read as a stream"]
pub struct TaskOutput<T> {
    node: Arc<Node>,
    name: String,
    port: usize,
    record: PhantomData<fn() -> T>,
}

impl<T: Record> TaskOutput<T> {
    /// To the instance of the same number: see [`TSet::direct`].
    pub fn direct(self) -> TSet<Received<T>, Pass> {
        self.route("direct", Direct::new)
    }

    /// Equal records to the same instance: see [`TSet::exchange_by_hash`].
    pub fn exchange_by_hash(self) -> TSet<Received<T>, Pass>
    where
        T: Key,
    {
        self.route("exchange_by_hash", |_| ByHash)
    }

    /// To the instance whose number a function gives: see [`TSet::partition`].
    pub fn partition<F>(self, function: F) -> TSet<Received<T>, Pass>
    where
        F: FnMut(T::View<'_>) -> u64 + Clone + Send + Sync + 'static,
    {
        self.route("partition", move |_| ByFunction(function.clone()))
    }

    /// To one instance after the other: see [`TSet::round_robin`].
    pub fn round_robin(self) -> TSet<Received<T>, Pass> {
        self.route("round_robin", RoundRobin::new)
    }

    /// To the instances that are the furthest in reading: see [`TSet::rebalance`].
    pub fn rebalance(self) -> TSet<Received<T>, Pass> {
        self.route("rebalance", Rebalance::new)
    }

    /// To all instances: see [`TSet::broadcast`].
    pub fn broadcast(self) -> TSet<Received<T>, Pass> {
        self.outlet("broadcast", |place| {
            Ok(Box::new(Routed::new(Outbox::to_all(place)?, ToFirst)))
        })
    }

    /// To one instance: see [`TSet::gather`].
    pub fn gather(self) -> TSet<Received<T>, Pass> {
        self.route("gather", |_| ToFirst).on_one()
    }

    fn route<R: Route<T> + 'static>(
        self,
        name: &str,
        route: impl Fn(&Place) -> R + Send + Sync + 'static,
    ) -> TSet<Received<T>, Pass> {
        self.outlet(name, move |place| {
            Ok(Box::new(Routed::new(Outbox::to_each(place)?, route(place))))
        })
    }

    fn outlet(
        self,
        exchange: &str,
        open: impl Fn(&Place) -> Result<Box<dyn Output<T>>, Error> + Send + Sync + 'static,
    ) -> TSet<Received<T>, Pass> {
        let after = format!("after {}.{} {exchange}", self.node.name, self.name);
        let name = format!("{}{BETWEEN}{exchange}", self.name);
        let task = self.node.name.clone();
        let outlet = Node {
            name,
            written_at: Vec::new(),
            placement: self.node.placement.clone(),
            inputs: vec![self.node],
            input_names: Vec::new(),
            outlet: Some(Outlet {
                port: self.port,
                open: Box::new(move |place| Ok(Box::new(open(place)?))),
            }),
            kept: None,
            build: Box::new(move |_| Err(bad(&task, "an output is no task"))),
            extent: Extent::AsInputs,
            gives_time: false,
            aligns: false,
            in_place: false,
        };
        TSet::after(vec![outlet], Received::new(), after)
    }
}

impl<K: Key, V: Record> TaskOutput<(K, V)> {
    /// Equal keys to the same instance: see [`TSet::exchange_by_key`].
    pub fn exchange_by_key(self) -> TSet<Received<(K, V)>, Pass> {
        self.route("exchange_by_key", ByKey::new)
    }
}

/// What a task writes to.
///
/// ```
/// use dataflow::{GraphBuilder, collection, inline, one_line, schedule::Task};
///
/// let parsed = |texts: [&str; 3]| {
///     let mut graph = GraphBuilder::new();
///     let mut task = graph.task(Task::new("parse", 2), |_| ());
///     let (numbers, words) = (task.output::<u64>("numbers"), task.output::<String>("words"));
///     let texts = collection(texts.map(String::from).into()).round_robin();
///     task.input("texts", texts, move |_, text, out| match text.parse::<u64>() {
///         Ok(number) => out.push(numbers, number),
///         Err(_) if text.is_empty() => out.fail("nothing is no word"),
///         Err(_) => out.push(words, text),
///     });
///     let task = task.done();
///     let sum = task.output(numbers).gather().reduce(|a, b| a + b).first();
///     let number = task.output(words).gather().count().first();
///     inline(&graph.job_with(sum.and(number))?)
/// };
/// assert_eq!(parsed(["1", "two", "3"])?, (Some(4), Some(1)));
/// let error = one_line(&parsed(["1", "", "3"]).unwrap_err());
/// assert!(error.starts_with("input \"texts\" failed in instance "), "{error}");
/// assert!(error.ends_with(": nothing is no word"), "{error}");
/// # Ok::<(), dataflow::Error>(())
/// ```
pub struct Outputs {
    task: u64,
    fans: Vec<Box<dyn AnyFan>>,
    /// Whether an edge was full when it was last looked at.
    is_full: bool,
    /// How far event time is in what the task produces.
    watermark: Watermark,
    failure: Option<Cause>,
}

impl Outputs {
    fn new(task: u64, fans: &[NewFan], place: &Place) -> Result<Self, Error> {
        let mut fans: Vec<_> = fans.iter().map(|new| new()).collect();
        for (node, wiring) in &place.wiring.outlets {
            let Some(outlet) = &node.outlet else { continue };
            let there = Place {
                wiring: wiring.clone(),
                ..place.clone()
            };
            let output = (outlet.open)(&there)?;
            let fan = fans.get_mut(outlet.port);
            if !fan.is_some_and(|fan| fan.add(wiring.edge, output)) {
                let reason = "what reads its output by a port of another task can read nothing";
                return Err(bad(&place.wiring.name, reason));
            }
        }
        Ok(Self {
            task,
            fans,
            is_full: false,
            watermark: Watermark::UNKNOWN,
            failure: None,
        })
    }

    /// Moves on what waits; true if something moved.
    fn poll(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        for fan in &mut self.fans {
            moved |= fan.poll()?;
        }
        self.is_full = self.fans.iter().any(|fan| fan.is_full());
        Ok(moved)
    }

    /// Writes a record to an output. It is taken even if there is no room, and kept in memory then: who writes many at
    /// a time looks whether the outputs are [full](Self::is_full).
    #[inline]
    pub fn push<T: Record, E: Encode<Record = T>>(&mut self, port: Port<T>, record: E) {
        let fan = self
            .fans
            .get_mut(port.index)
            .filter(|_| port.task == self.task);
        let fan = fan.map(|fan| &mut **fan as &mut dyn Any);
        match fan.and_then(<dyn Any>::downcast_mut::<Fan<T>>) {
            Some(fan) => record.with_view(|view| {
                for (_, output) in &mut fan.outputs {
                    self.is_full |= output.take(view);
                }
            }),
            None => self.fail("it writes to an output of another task"),
        }
    }

    /// Whether the next record should wait.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.is_full
    }

    /// Says how far event time is in what a task [produces](TaskBuilder::produce): no record of an earlier time follows on
    /// any output, but such as are late. A task that reads inputs is as far as they are.
    pub fn watermark(&mut self, time: EventTime) {
        if Watermark::At(time).is_news(self.watermark) {
            self.watermark = Watermark::At(time);
        }
    }

    /// Ends the job, with the reason. What is pushed after that is lost.
    #[cold]
    pub fn fail(&mut self, reason: impl Into<Cause>) {
        self.failure.get_or_insert(reason.into());
    }

    /// Whether nobody wants more of any output, if there is one.
    fn is_closed(&self) -> bool {
        !self.fans.is_empty() && self.fans.iter().all(|fan| fan.is_closed())
    }
}

impl fmt::Debug for Outputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outputs")
            .field("number", &self.fans.len())
            .finish_non_exhaustive()
    }
}

/// An output, and all that leads away from it.
struct Fan<T: Record> {
    outputs: Vec<(EdgeId, Box<dyn Output<T>>)>,
}

impl<T: Record> Fan<T> {
    fn boxed() -> Box<dyn AnyFan> {
        Box::new(Self {
            outputs: Vec::new(),
        })
    }
}

/// A [`Fan`] of any type.
trait AnyFan: Any {
    /// Adds an edge that begins here; false if its records are of another type.
    fn add(&mut self, edge: EdgeId, output: Box<dyn Any>) -> bool;

    fn is_full(&self) -> bool;

    fn is_closed(&self) -> bool;

    fn poll(&mut self) -> Result<bool, Error>;

    fn flush(&mut self, watermark: Watermark) -> Result<bool, Error>;

    fn finish(&mut self) -> Result<bool, Error>;

    fn stopped(&mut self, edge: EdgeId, reader: u32);
}

impl<T: Record> AnyFan for Fan<T> {
    fn add(&mut self, edge: EdgeId, output: Box<dyn Any>) -> bool {
        let output = output.downcast::<Box<dyn Output<T>>>();
        output.is_ok_and(|output| {
            self.outputs.push((edge, *output));
            true
        })
    }

    fn is_full(&self) -> bool {
        self.outputs.iter().any(|(_, output)| output.is_full())
    }

    fn is_closed(&self) -> bool {
        self.outputs.iter().all(|(_, output)| output.is_closed())
    }

    fn poll(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        for (_, output) in &mut self.outputs {
            moved |= output.poll()?;
        }
        Ok(moved)
    }

    fn flush(&mut self, watermark: Watermark) -> Result<bool, Error> {
        let mut sent = false;
        for (_, output) in &mut self.outputs {
            sent |= output.flush(watermark)?;
        }
        Ok(sent)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        let mut finished = true;
        for (_, output) in &mut self.outputs {
            finished &= output.finish()?;
        }
        Ok(finished)
    }

    fn stopped(&mut self, stopped: EdgeId, reader: u32) {
        for (edge, output) in &mut self.outputs {
            if *edge == stopped {
                output.stopped(reader);
            }
        }
    }
}

/// An input of an instance.
trait InPort<S> {
    fn receive(&mut self, from: Rank, batch: Buffer) -> Result<(), Error>;

    fn ended(&mut self, from: Rank);

    fn advance(&mut self, sender: u32, watermark: Watermark);

    fn watermark(&mut self) -> Watermark;

    fn poll(&mut self, state: &mut S, outputs: &mut Outputs) -> Result<Progress, Error>;

    fn last(&self) -> String;
}

/// An input with the function that its records are handed to.
struct Reading<T, F> {
    receiver: Receiver<T>,
    function: F,
}

/// The function, as what records are pushed to.
struct Handing<'a, S, F> {
    state: &'a mut S,
    outputs: &'a mut Outputs,
    function: &'a mut F,
}

impl<S, T, F> Push<T> for Handing<'_, S, F>
where
    T: Record,
    F: FnMut(&mut S, T::View<'_>, &mut Outputs),
{
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        (self.function)(self.state, view, self.outputs);
    }
}

impl<S, T, F> Sink<T> for Handing<'_, S, F>
where
    T: Record,
    F: FnMut(&mut S, T::View<'_>, &mut Outputs),
{
    #[inline]
    fn is_full(&self) -> bool {
        self.outputs.failure.is_some() || self.outputs.is_full()
    }
}

impl<S, T, F> InPort<S> for Reading<T, F>
where
    T: Record,
    F: FnMut(&mut S, T::View<'_>, &mut Outputs),
{
    fn receive(&mut self, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.receiver.receive(0, from, batch)
    }

    fn ended(&mut self, from: Rank) {
        self.receiver.ended(0, from);
    }

    fn advance(&mut self, sender: u32, watermark: Watermark) {
        self.receiver.advance(0, sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        self.receiver.watermark()
    }

    fn poll(&mut self, state: &mut S, outputs: &mut Outputs) -> Result<Progress, Error> {
        self.receiver.poll(&mut Handing {
            state,
            outputs,
            function: &mut self.function,
        })
    }

    fn last(&self) -> String {
        self.receiver.last()
    }
}

/// How long a task that has nothing to produce is left alone.
const NEXT_LOOK: Duration = Duration::from_millis(5);

/// An instance of a task that the program has written. It reads all its inputs all the time, in turns.
struct Instance<S> {
    state: S,
    inputs: Vec<(String, Box<dyn InPort<S>>)>,
    outputs: Outputs,
    produce: Option<Box<Step<S, Progress>>>,
    at_end: Option<Box<Step<S, bool>>>,
    /// The input whose turn it is first.
    first: usize,
    /// Whether all that comes in has come.
    ended: bool,
    done: bool,
    place: Place,
}

impl<S> Instance<S> {
    /// Takes in what there is; [`Progress::Done`] when there will be no more.
    fn take_in(&mut self) -> Result<Progress, Error> {
        let Self {
            state,
            inputs,
            outputs,
            produce,
            first,
            ..
        } = self;
        if let Some(produce) = produce {
            let progress = produce(state, outputs);
            return match outputs.failure.take() {
                Some(cause) => Err(self.place.failure("what it produces", "no record", cause)),
                None => {
                    if progress == Progress::None {
                        let clock = &self.place.clock;
                        clock.wake_at(clock.now() + NEXT_LOOK);
                    }
                    Ok(progress)
                }
            };
        }
        let mut all = Progress::Done;
        for turn in 0..inputs.len() {
            let index = (*first + turn) % inputs.len();
            let (name, input) = &mut inputs[index];
            let progress = input.poll(state, outputs)?;
            if let Some(cause) = outputs.failure.take() {
                let (name, last) = (format!("input \"{name}\""), input.last());
                return Err(self.place.failure(name, last, cause));
            }
            match progress {
                Progress::Made => {
                    // Whatever follows gets its turn before this one gets another.
                    *first = index + 1;
                    return Ok(Progress::Made);
                }
                Progress::None => all = Progress::None,
                Progress::Done => {}
            }
        }
        Ok(all)
    }
}

impl<S: 'static> Task for Instance<S> {
    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        match self.inputs.get_mut(port) {
            Some((_, input)) => input.receive(from, batch),
            None => Ok(()), // It was sent before its sender could know.
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        if let Some((_, input)) = self.inputs.get_mut(port) {
            input.ended(from);
        }
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        if let Some((_, input)) = self.inputs.get_mut(port) {
            input.advance(sender, watermark);
        }
    }

    fn flush(&mut self) -> Result<bool, Error> {
        if self.ended {
            return Ok(false); // What is left to say is said at its end.
        }
        let watermark = if self.produce.is_some() {
            self.outputs.watermark
        } else {
            Watermark::least(self.inputs.iter_mut().map(|(_, input)| input.watermark()))
        };
        let mut sent = false;
        for fan in &mut self.outputs.fans {
            sent |= fan.flush(watermark)?;
        }
        Ok(sent)
    }

    fn stop(&mut self) {
        self.end();
    }

    fn stopped(&mut self, edge: EdgeId, reader: u32) {
        for fan in &mut self.outputs.fans {
            fan.stopped(edge, reader);
        }
    }

    fn is_reading(&self) -> bool {
        !self.ended
    }

    fn poll(&mut self) -> Result<Progress, Error> {
        if self.done {
            return Ok(Progress::Done);
        }
        let moved = self.outputs.poll()?;
        if !self.ended && self.outputs.is_closed() {
            // Nobody wants what it would say at its end either.
            self.at_end = None;
            self.end();
            return Ok(Progress::Made);
        }
        if self.outputs.is_full() {
            return Ok(if moved {
                Progress::Made
            } else {
                Progress::None
            });
        }
        if !self.ended {
            return Ok(match self.take_in()? {
                Progress::Done => {
                    self.end();
                    Progress::Made
                }
                Progress::None if moved => Progress::Made,
                progress => progress,
            });
        }
        if let Some(at_end) = &mut self.at_end {
            let all = at_end(&mut self.state, &mut self.outputs);
            if let Some(cause) = self.outputs.failure.take() {
                return Err(self.place.failure("its end", "no record", cause));
            }
            if all {
                self.at_end = None;
            }
            return Ok(Progress::Made);
        }
        let mut finished = true;
        for fan in &mut self.outputs.fans {
            finished &= fan.finish()?;
        }
        self.done = finished;
        Ok(match (finished, moved) {
            (true, _) => Progress::Done,
            (false, true) => Progress::Made,
            (false, false) => Progress::None,
        })
    }

    fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

impl<S> Instance<S> {
    /// All has come in, or no more is wanted: what was not read is given up.
    fn end(&mut self) {
        self.ended = true;
        self.inputs.clear();
        self.produce = None;
    }
}
