//! The graph: what is to be done, as a value.
//!
//! A stream holds the tasks it comes from, so two streams can come from the same one: what is written is a
//! graph without cycles, which a job numbers when its last task is known. A task has any number of inputs and
//! one output, which any number of tasks may read; a batch travels to each rank once and is read there by all
//! of them.
//!
//! # Why no job waits for itself
//!
//! A task waits for room in its output, or for records on the inputs that it reads. Inputs that it does not
//! read for the time being fill their windows, and whoever fills them waits. That can never come round to
//! where it began
//!
//! * as long as every task reads all its inputs all the time: then a chain of waits that has turned towards
//!   the sinks never turns back, and sinks wait for nobody;
//! * or where a task reads its inputs one after the other, the next when the one before has ended on this rank, and
//!   these inputs have nothing in common but this task. Then the waits that leave through the input it reads
//!   can come back only through the task, which they do not pass against the order of its inputs: what was
//!   read to its end has no sender that still waits.
//!
//! Where inputs do have something in common, say two branches of one stream that are joined, one that is not
//! read would stop the other. There a task has to take in what it cannot use yet, into memory on the ledger:
//! [`Graph::may_wait`] tells which is the case.

mod builder;
mod export;

use std::{
    any::Any,
    collections::{BTreeMap, HashMap, HashSet, hash_map},
    fmt,
    hash::{Hash, Hasher},
    ops::Range,
    panic::Location,
    sync::Arc,
};

use transport::Rank;

pub use self::builder::{GraphBuilder, Outputs, Port, TaskBuilder, TaskOutput, TaskOutputs};
use crate::{
    Accumulator, Error, Record, Stop,
    accumulator::Gathered,
    demand::Kept,
    schedule::{self, Scheduler, Split, Worker, check_tasks, even},
    stage::{Place, Task},
};

/// The number of an edge of a graph, which is that of the task it comes from.
pub(crate) type EdgeId = u16;

/// A task as it is written.
pub(crate) struct Node {
    /// The operators in it, as people read them.
    pub(crate) name: String,
    /// Where in the program those of them are written that work on single records.
    pub(crate) written_at: Vec<&'static Location<'static>>,
    /// The tasks it receives from.
    pub(crate) inputs: Vec<Arc<Node>>,
    /// The names of these inputs, if the program gave them some.
    pub(crate) input_names: Vec<String>,
    /// How many instances there are, and where.
    pub(crate) placement: Placement,
    pub(crate) build: Box<Build>,
    /// What it is if it is no task but an edge that begins at an output of its only input, which is a task with
    /// several.
    pub(crate) outlet: Option<Outlet>,
    /// Whether what it gives ends by itself.
    pub(crate) extent: Extent,
    /// Whether event time begins in it.
    pub(crate) gives_time: bool,
    /// Whether it keeps step with others that do.
    pub(crate) aligns: bool,
    /// Whether its output is by key, and each pair is on the instance that its key belongs to already.
    pub(crate) in_place: bool,
    /// What its readers keep of its output, if they do: then it is not needed in every run.
    pub(crate) kept: Option<Arc<dyn Kept>>,
}

/// Whether a stream ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Extent {
    /// It does if all inputs of its task do. So that of a source does.
    #[default]
    AsInputs,
    /// It does, whatever the inputs do.
    Bounded,
    /// It is what there is when all inputs have ended. So they have to.
    AtEnd,
    /// It does if the input of this port does, which passes by. All others have to end before that.
    As(usize),
    /// It goes on until it is stopped.
    Unbounded,
}

/// An edge of a task with several outputs. It is there once for each way that its readers are placed, while the task
/// is there once.
pub(crate) struct Outlet {
    /// The number of the output.
    pub(crate) port: usize,
    /// Makes the sending end, a boxed `Output` of the type of the records, in an instance of the task.
    pub(crate) open: Box<OpenOutlet>,
}

pub(crate) type OpenOutlet = dyn Fn(&Place) -> Result<Box<dyn Any>, Error> + Send + Sync;

/// Makes an instance of a task.
pub(crate) type Build = dyn Fn(&Place) -> Result<Box<dyn Task>, Error> + Send + Sync;

/// How many instances a task has, and on which ranks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Placement {
    /// One on every rank.
    Everywhere,
    /// One on the first rank of each process.
    OnePerProcess,
    /// So many, wherever the scheduler has them.
    Instances(u32),
    /// Those of a source that is on some hosts, wherever the scheduler has them.
    Located(Located),
    /// Those of a task with a name, wherever the scheduler has them.
    Task(Arc<schedule::Task>),
}

impl Placement {
    /// Of so many instances that read a source, or one on each rank.
    pub(crate) fn reading<S: Splits + 'static>(source: &Arc<S>, instances: Option<u32>) -> Self {
        if source.splits(1).is_empty() {
            return instances.map_or(Self::Everywhere, Self::Instances);
        }
        let source = source.clone();
        Self::Located(Located { instances, source })
    }

    /// What a scheduler is told of it in a job of so many ranks; nothing if there is nothing to decide. Without a name of its own
    /// it goes by that of the first task that is placed like this, which has this number.
    fn task(&self, number: usize, name: &str, size: u32) -> Option<schedule::Task> {
        match self {
            Self::Everywhere | Self::OnePerProcess => None,
            Self::Instances(instances) => {
                let name = format!("{name} ({instances} instances)");
                Some(schedule::Task::new(name, *instances))
            }
            Self::Located(Located { instances, source }) => {
                let instances = instances.unwrap_or(size);
                let task = schedule::Task::new(format!("{name} (task {number})"), instances);
                Some(task.splits(source.splits(instances)))
            }
            Self::Task(task) => Some((**task).clone()),
        }
    }
}

/// What is read by instances, and on which hosts it is: see [`Source::splits`](crate::Source::splits).
pub(crate) trait Splits: Send + Sync {
    fn splits(&self, instances: u32) -> Vec<Split>;
}

/// The instances that read a source which is on some hosts.
#[derive(Clone)]
pub(crate) struct Located {
    /// How many; as many as there are ranks if it was not said.
    instances: Option<u32>,
    source: Arc<dyn Splits>,
}

impl Located {
    /// The source, by which it can be told from others, and how many instances read it.
    fn identity(&self) -> (*const (), Option<u32>) {
        (Arc::as_ptr(&self.source).cast(), self.instances)
    }
}

impl PartialEq for Located {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for Located {}

impl Hash for Located {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

impl fmt::Debug for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Located")
            .field("instances", &self.instances)
            .finish_non_exhaustive()
    }
}

/// Where the instances of all tasks of a graph are, in a job of a certain size.
#[derive(Debug)]
pub(crate) struct Schedule {
    size: u32,
    executors: u32,
    /// Those that are not spread evenly.
    listed: HashMap<Placement, Instances>,
    /// What those read of which it is known where it is.
    read: HashMap<Placement, Read>,
}

/// Bytes that instances read where they are, and from other hosts: by those that have them and the one that reads them.
#[derive(Debug, Default)]
pub(crate) struct Read {
    pub(crate) here: u64,
    pub(crate) from_others: BTreeMap<(String, String), u64>,
}

impl Read {
    fn of(splits: &[Split], ranks: &[Rank], workers: &[Worker]) -> Self {
        let mut read = Self::default();
        for split in splits {
            let rank = ranks[split.instance as usize];
            let worker = workers.iter().find(|worker| worker.ranks.contains(&rank));
            match worker.map(|worker| &worker.host) {
                Some(host) if !split.hosts.is_empty() && !split.hosts.contains(host) => {
                    let between = (split.hosts.join(" or "), host.clone());
                    *read.from_others.entry(between).or_default() += split.bytes;
                }
                _ => read.here += split.bytes,
            }
        }
        read
    }
}

impl Schedule {
    /// Everything is spread evenly, whatever tasks demand.
    pub(crate) fn even(size: u32, executors: u32) -> Self {
        Self {
            size,
            executors,
            listed: HashMap::new(),
            read: HashMap::new(),
        }
    }

    /// Whether a rank is the first of its process.
    pub(crate) fn is_first_of_process(&self, rank: Rank) -> bool {
        rank.is_multiple_of(self.executors)
    }

    /// What a scheduler says, once it is checked.
    fn of(graph: &Graph, scheduler: &dyn Scheduler, workers: &[Worker]) -> Result<Self, Error> {
        let size = workers.last().map_or(0, |worker| worker.ranks.end);
        let executors = workers.first().map_or(1, |worker| worker.ranks.end);
        let mut schedule = Self::even(size, executors);
        let (placements, tasks) = graph.placements(size);
        check_tasks(&tasks)?;
        let placed = scheduler.schedule(&tasks, workers)?;
        schedule::check(&tasks, workers, &placed)?;
        for ((placement, task), ranks) in placements.into_iter().zip(&tasks).zip(placed) {
            if !task.splits.is_empty() {
                let read = Read::of(&task.splits, &ranks, workers);
                schedule.read.insert(placement.clone(), read);
            }
            let even = schedule.instances(&placement);
            if (0..)
                .zip(&ranks)
                .any(|(instance, &rank)| even.rank_of(instance) != rank)
            {
                let listed = Instances::listed(ranks, size);
                schedule.listed.insert(placement, listed);
            }
        }
        Ok(schedule)
    }

    pub(crate) fn size(&self) -> u32 {
        self.size
    }

    /// What instances read, if it is known where that is.
    pub(crate) fn read(&self, placement: &Placement) -> Option<&Read> {
        self.read.get(placement)
    }

    pub(crate) fn instances(&self, placement: &Placement) -> Instances {
        let (size, executors) = (self.size, self.executors);
        match placement {
            Placement::Everywhere => Instances::Each { step: 1, size },
            Placement::OnePerProcess => Instances::Each {
                step: executors,
                size,
            },
            _ if self.listed.contains_key(placement) => self.listed[placement].clone(),
            Placement::Located(Located { instances, .. }) => Instances::Even {
                number: instances.unwrap_or(size),
                size,
            },
            Placement::Instances(number) => Instances::Even {
                number: *number,
                size,
            },
            Placement::Task(task) => Instances::Even {
                number: task.instances,
                size,
            },
        }
    }
}

/// The instances of a task in a job of a certain size. Those on a rank have numbers there, their slots, in their order.
#[derive(Debug, Clone)]
pub(crate) enum Instances {
    /// One on each rank that is a multiple of `step`.
    Each { step: u32, size: u32 },
    /// So many, spread evenly.
    Even { number: u32, size: u32 },
    /// Those of a list.
    Listed(Arc<Listed>),
}

/// A list of where instances are.
#[derive(Debug)]
pub(crate) struct Listed {
    /// The rank of each, and its slot there.
    of: Vec<(Rank, u32)>,
    /// The instances on each rank.
    on: Vec<Vec<u32>>,
}

impl Instances {
    fn listed(ranks: Vec<Rank>, size: u32) -> Self {
        let mut on: Vec<Vec<u32>> = vec![Vec::new(); size as usize];
        let place = |(instance, rank): (u32, Rank)| {
            let on_rank = &mut on[rank as usize];
            on_rank.push(instance);
            (rank, on_rank.len() as u32 - 1)
        };
        let of = (0..).zip(ranks).map(place).collect();
        Self::Listed(Arc::new(Listed { of, on }))
    }

    /// How many there are.
    pub(crate) fn number(&self) -> u32 {
        match self {
            Self::Each { step, size } => size.div_ceil(*step),
            Self::Even { number, .. } => *number,
            Self::Listed(listed) => listed.of.len() as u32,
        }
    }

    /// The rank that an instance is on.
    pub(crate) fn rank_of(&self, instance: u32) -> Rank {
        match self {
            Self::Each { step, .. } => instance * step,
            Self::Even { number, size } => even(instance, *number, *size),
            Self::Listed(listed) => listed.of[instance as usize].0,
        }
    }

    /// Its slot there.
    pub(crate) fn slot_of(&self, instance: u32) -> u32 {
        match self {
            Self::Each { .. } => 0,
            Self::Even { .. } => instance - self.evenly_on(self.rank_of(instance)).start,
            Self::Listed(listed) => listed.of[instance as usize].1,
        }
    }

    /// How many are on a rank.
    pub(crate) fn number_on(&self, rank: Rank) -> u32 {
        match self {
            Self::Listed(listed) => listed.on[rank as usize].len() as u32,
            _ => self.evenly_on(rank).len() as u32,
        }
    }

    /// The one in a slot of a rank, if there is one.
    pub(crate) fn at(&self, rank: Rank, slot: u32) -> Option<u32> {
        match self {
            Self::Listed(listed) => listed.on.get(rank as usize)?.get(slot as usize).copied(),
            _ => self.evenly_on(rank).nth(slot as usize),
        }
    }

    /// The instances on a rank, in the order of their slots.
    pub(crate) fn on(&self, rank: Rank) -> impl Iterator<Item = u32> {
        (0..self.number_on(rank)).filter_map(move |slot| self.at(rank, slot))
    }

    /// Those on a rank if none are listed.
    fn evenly_on(&self, rank: Rank) -> Range<u32> {
        match self {
            Self::Each { step, size } if rank.is_multiple_of(*step) && rank < *size => {
                rank / step..rank / step + 1
            }
            Self::Even { number, size } => {
                let first = |rank: Rank| {
                    let before = u64::from(rank) * u64::from(*number);
                    before.div_ceil(u64::from(*size)) as u32
                };
                first(rank)..first(rank + 1)
            }
            _ => 0..0,
        }
    }

    /// The most that are on one rank.
    pub(crate) fn on_one_rank(&self) -> u32 {
        match self {
            Self::Each { .. } => 1,
            Self::Even { number, size } => number.div_ceil(*size),
            Self::Listed(listed) => {
                let most = listed.on.iter().map(Vec::len).max();
                most.unwrap_or(0) as u32
            }
        }
    }
}

/// A task of a graph that is complete.
#[derive(Clone)]
pub(crate) struct Vertex {
    pub(crate) node: Arc<Node>,
    /// The edges it receives from; one may be there twice.
    pub(crate) inputs: Vec<usize>,
    /// Where the tasks are that read its output; `None` for a sink.
    pub(crate) readers: Option<Placement>,
}

/// What is to be done: tasks, each after those it receives from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    pub(crate) vertices: Vec<Vertex>,
    pub(crate) outside: Outside,
}

impl Graph {
    /// All that `sinks` need. A task whose readers differ in number is there once for each number, since its
    /// output is shared out among them.
    pub(crate) fn of(sinks: &[Arc<Node>]) -> Self {
        type Seen = (*const Node, Option<Placement>);
        let key = |node: &Arc<Node>, readers| -> Seen { (Arc::as_ptr(node), readers) };
        let mut graph = Self::default();
        let mut numbers = HashMap::<Seen, usize>::new();
        let mut open: Vec<_> = sinks
            .iter()
            .rev()
            .map(|sink| (sink.clone(), None))
            .collect();
        while let Some((node, readers)) = open.last().cloned() {
            // An outlet reads nothing: it is a part of its task.
            let this = node.outlet.is_none().then(|| node.placement.clone());
            let missing = node.inputs.iter().rev();
            let missing: Vec<_> = missing
                .filter(|input| !numbers.contains_key(&key(input, this.clone())))
                .map(|input| (input.clone(), this.clone()))
                .collect();
            if !missing.is_empty() {
                open.extend(missing);
                continue;
            }
            open.pop();
            if let hash_map::Entry::Vacant(new) = numbers.entry(key(&node, readers.clone())) {
                new.insert(graph.vertices.len());
                let inputs = node
                    .inputs
                    .iter()
                    .map(|input| numbers[&key(input, this.clone())]);
                let inputs = inputs.collect();
                graph.vertices.push(Vertex {
                    inputs,
                    readers,
                    node,
                });
            }
        }
        graph
    }

    /// The tasks that read an edge, each with which of its inputs that is.
    pub(crate) fn readers(&self, edge: usize) -> impl Iterator<Item = (usize, usize)> {
        self.vertices
            .iter()
            .enumerate()
            .flat_map(move |(number, vertex)| {
                let ports = vertex.inputs.iter().enumerate();
                ports.filter_map(move |(port, &input)| (input == edge).then_some((number, port)))
            })
    }

    /// Whether nothing has to be exchanged on an edge that is by key: each instance sends all to that of the same number.
    /// That is so if pairs are where their keys belong, and there are as many instances behind the edge as before it,
    /// since their number says where keys belong. Without a schedule, only tasks that are placed alike are known to
    /// have as many.
    pub(crate) fn is_in_place(&self, edge: usize, schedule: Option<&Schedule>) -> bool {
        let Vertex { node, readers, .. } = &self.vertices[edge];
        let Some(readers) = readers.as_ref().filter(|_| node.in_place) else {
            return false;
        };
        match schedule {
            Some(schedule) => {
                let number = |of| schedule.instances(of).number();
                number(&node.placement) == number(readers)
            }
            None => node.placement == *readers,
        }
    }

    /// The edges that begin at the outputs of a task, if it has several.
    pub(crate) fn outlets(&self, task: usize) -> impl Iterator<Item = usize> {
        let vertices = self.vertices.iter().enumerate();
        vertices.filter_map(move |(number, vertex)| {
            let of_task = vertex.node.outlet.is_some() && vertex.inputs.first() == Some(&task);
            of_task.then_some(number)
        })
    }

    /// The tasks whose output is kept by their readers.
    pub(crate) fn kept(&self) -> impl Iterator<Item = (usize, &Arc<dyn Kept>)> {
        let vertices = self.vertices.iter().enumerate();
        vertices.filter_map(|(number, vertex)| Some((number, vertex.node.kept.as_ref()?)))
    }

    /// Which tasks are needed, if of those whose output is kept only those are that `is_missing` says.
    pub(crate) fn needed(&self, is_missing: impl Fn(usize) -> bool) -> Vec<bool> {
        let mut needed: Vec<bool> = self
            .vertices
            .iter()
            .map(|vertex| vertex.readers.is_none() && vertex.node.outlet.is_none())
            .collect();
        // Tasks come behind those they read.
        for (number, vertex) in self.vertices.iter().enumerate().rev() {
            if vertex.node.kept.is_some() && !is_missing(number) {
                needed[number] = false;
            }
            if needed[number] {
                for &input in &vertex.inputs {
                    needed[input] = true;
                }
            }
        }
        needed
    }

    /// Whether a task may leave an input unread until another has ended: if the two have nothing in common
    /// but this task.
    pub(crate) fn may_wait(&self, task: usize) -> bool {
        // Sets of tasks that are connected without this one, each named by one of its own.
        let mut sets: Vec<usize> = (0..self.vertices.len()).collect();
        fn name(sets: &[usize], mut task: usize) -> usize {
            while sets[task] != task {
                task = sets[task];
            }
            task
        }
        for (number, vertex) in self.vertices.iter().enumerate() {
            for &input in vertex.inputs.iter().filter(|_| number != task) {
                if input != task {
                    let (one, other) = (name(&sets, number), name(&sets, input));
                    sets[one] = other;
                }
            }
        }
        let inputs = &self.vertices[task].inputs;
        let mut sides: Vec<usize> = inputs.iter().map(|&input| name(&sets, input)).collect();
        sides.sort_unstable();
        sides.windows(2).all(|pair| pair[0] != pair[1])
    }

    /// Refuses a task that waits for the end of an input that has none.
    pub(crate) fn check_ends(&self) -> Result<(), Error> {
        let goes_on = self.going_on();
        for Vertex { node, inputs, .. } in &self.vertices {
            let needs_end = |port| match node.extent {
                Extent::AtEnd => true,
                Extent::As(passing) => port != passing,
                Extent::AsInputs | Extent::Bounded | Extent::Unbounded => false,
            };
            let mut inputs = inputs.iter().enumerate();
            let waits = inputs.find(|&(port, &input)| goes_on[input] && needs_end(port));
            if let Some((_, &input)) = waits {
                return Err(Error::Unbounded {
                    task: node.name.clone(),
                    input: self.vertices[input].node.name.clone(),
                });
            }
        }
        Ok(())
    }

    /// Which tasks go on until they are stopped.
    pub(crate) fn going_on(&self) -> Vec<bool> {
        let mut goes_on: Vec<bool> = Vec::with_capacity(self.vertices.len());
        for Vertex { node, inputs, .. } in &self.vertices {
            goes_on.push(match node.extent {
                Extent::AsInputs => inputs.iter().any(|&input| goes_on[input]),
                Extent::As(passing) => inputs.get(passing).is_some_and(|&input| goes_on[input]),
                Extent::Bounded | Extent::AtEnd => false,
                Extent::Unbounded => true,
            });
        }
        goes_on
    }

    /// Whether records should not wait for others to travel with, or event time flows with them.
    pub(crate) fn is_live(&self) -> bool {
        let mut nodes = self.vertices.iter().map(|vertex| &vertex.node);
        nodes.any(|node| node.extent == Extent::Unbounded || node.gives_time)
    }

    /// How tasks are placed, each way once, and what a scheduler is told of it.
    fn placements(&self, size: u32) -> (Vec<Placement>, Vec<schedule::Task>) {
        let (mut placements, mut tasks) = (Vec::new(), Vec::new());
        let mut seen = HashSet::new();
        for (number, Vertex { node, .. }) in self.vertices.iter().enumerate() {
            if let Some(task) = node.placement.task(number, &node.name, size)
                && seen.insert(&node.placement)
            {
                placements.push(node.placement.clone());
                tasks.push(task);
            }
        }
        (placements, tasks)
    }

    /// The channels that any rank sends or receives by, so that no more share its arena.
    pub(crate) fn channels(&self, schedule: &Schedule, needed: &[bool]) -> u64 {
        let of = |vertex: &Vertex| {
            let from = schedule.instances(&vertex.node.placement);
            let to = schedule.instances(vertex.readers.as_ref()?);
            let out = u64::from(from.on_one_rank()) * u64::from(to.number());
            let into = u64::from(from.number()) * u64::from(to.on_one_rank());
            Some(out.max(into))
        };
        let vertices = self.vertices.iter().zip(needed);
        let vertices = vertices.filter_map(|(vertex, needed)| needed.then_some(vertex));
        vertices.filter_map(of).sum::<u64>().max(1)
    }

    /// The tasks and edges of the graph in order.
    pub(crate) fn plan(&self) -> String {
        let tasks = self.vertices.iter().enumerate();
        let tasks: Vec<_> = tasks
            .map(|(number, vertex)| task_text(number, vertex, None))
            .collect();
        tasks.join(" | ")
    }

    /// The same with where instances are, which ranks compare before they run it.
    pub(crate) fn plan_on(&self, schedule: &Schedule) -> String {
        let tasks = self.vertices.iter().enumerate();
        let tasks: Vec<_> = tasks
            .map(|(number, vertex)| {
                let instances = schedule.instances(&vertex.node.placement);
                task_text(number, vertex, Some(&instances))
            })
            .collect();
        tasks.join(" | ")
    }
}

/// A task in one line: `0 1 -> join > map -> 2` reads edges 0 and 1 and writes edge 2.
fn task_text(number: usize, vertex: &Vertex, placed: Option<&Instances>) -> String {
    let mut text = String::new();
    for input in &vertex.inputs {
        text.push_str(&format!("{input} "));
    }
    if !vertex.inputs.is_empty() {
        text.push_str("-> ");
    }
    text.push_str(&vertex.node.name);
    let where_to = match placed {
        Some(Instances::Listed(listed)) => format!(" on {}", listed.text()),
        _ => " in all".to_owned(),
    };
    match &vertex.node.placement {
        Placement::Everywhere => {}
        Placement::OnePerProcess => text.push_str(" (one a process)"),
        Placement::Instances(number) => text.push_str(&format!(" ({number}{where_to})")),
        Placement::Located(Located { instances, .. }) => {
            let number = instances.map_or("as many as ranks".to_owned(), |n| n.to_string());
            text.push_str(&format!(" ({number}{where_to})"));
        }
        Placement::Task(task) => {
            text.push_str(&format!(" ({}: {}{where_to})", task.name, task.instances));
        }
    }
    if vertex.readers.is_some() {
        text.push_str(&format!(" -> {number}"));
    }
    text
}

/// Ranks that a plan shows; of more it has a checksum, because it goes to every rank.
const RANKS_SHOWN_MAX: usize = 64;

impl Listed {
    /// The ranks of the instances in their order, as people read them.
    fn text(&self) -> String {
        if self.of.len() > RANKS_SHOWN_MAX {
            let bytes: Vec<u8> = self
                .of
                .iter()
                .flat_map(|(rank, _)| rank.to_le_bytes())
                .collect();
            return format!("ranks of checksum {:08x}", crc32fast::hash(&bytes));
        }
        let ranks: Vec<_> = self.of.iter().map(|(rank, _)| rank.to_string()).collect();
        format!("ranks {}", ranks.join(" "))
    }
}

/// What a graph has to do with the world outside of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outside {
    /// What is asked for of what functions gather on all ranks.
    pub(crate) accumulators: Vec<Arc<dyn Gathered>>,
    /// What ends its unbounded sources.
    pub(crate) stops: Vec<Stop>,
}

impl Outside {
    fn and(mut self, other: &Self) -> Self {
        self.accumulators.extend_from_slice(&other.accumulators);
        self.stops.extend_from_slice(&other.stops);
        self
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("name", &self.name)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Vertex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vertex")
            .field("name", &self.node.name)
            .field("inputs", &self.inputs)
            .finish_non_exhaustive()
    }
}

/// A graph that is complete: it ends in sinks, and running it gives an `R`. Clones are the same job.
pub struct Job<R> {
    sinks: Vec<Arc<Node>>,
    graph: Arc<Graph>,
    /// Takes what the sinks have left.
    result: Arc<dyn Fn() -> R + Send + Sync>,
}

impl<R: 'static> Job<R> {
    /// The job that ends in `sink`, whose result is what `result` takes after a run.
    pub(crate) fn new(sink: Node, result: impl Fn() -> R + Send + Sync + 'static) -> Self {
        Self::of(vec![Arc::new(sink)], Outside::default(), Arc::new(result))
    }

    fn of(
        sinks: Vec<Arc<Node>>,
        outside: Outside,
        result: Arc<dyn Fn() -> R + Send + Sync>,
    ) -> Self {
        let graph = Graph {
            outside,
            ..Graph::of(&sinks)
        };
        Self {
            graph: Arc::new(graph),
            sinks,
            result,
        }
    }

    /// This job and another at the same time, as one: what both need is done once.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let squares = collection(vec![1u64, 2, 3]).map(|n| n * n).direct();
    /// let both = squares.clone().count().collect().and(squares.top_n(1, |n| n).collect());
    /// assert_eq!(inline(&both)?, (vec![3], vec![9]));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn and<Q: 'static>(self, other: Job<Q>) -> Job<(R, Q)> {
        let sinks = self.sinks.into_iter().chain(other.sinks).collect();
        let outside = self.graph.outside.clone().and(&other.graph.outside);
        let (ours, theirs) = (self.result, other.result);
        Job::of(sinks, outside, Arc::new(move || (ours(), theirs())))
    }

    /// The job with a second result: what its functions have added to an accumulator, on all ranks.
    ///
    /// ```
    /// use dataflow::{Accumulator, collection, inline};
    ///
    /// let (short, long) = (Accumulator::new(), Accumulator::new());
    /// let (of_short, of_long) = (short.clone(), long.clone());
    /// let words = collection(["to", "be", "question"].map(String::from).into());
    /// let job = words
    ///     .for_each(move |word| if word.len() < 4 { of_short.add(1) } else { of_long.add(1) })
    ///     .with_total(&short)
    ///     .with_total(&long);
    /// assert_eq!(inline(&job)?, (((), 2), 1));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn with_total<T>(self, accumulator: &Accumulator<T>) -> Job<(R, T)>
    where
        T: Record + Clone + Sync,
    {
        let mut outside = self.graph.outside.clone();
        outside.accumulators.push(accumulator.gathered());
        let (result, accumulator) = (self.result, accumulator.clone());
        let both = move || (result(), accumulator.total());
        Job::of(self.sinks, outside, Arc::new(both))
    }

    /// The job, whose unbounded sources `stop` ends: they have no more then, and all that they gave is done to its end.
    ///
    /// ```
    /// use dataflow::{Stop, generate_unbounded, inline};
    ///
    /// let stop = Stop::new();
    /// let enough = stop.clone();
    /// let job = generate_unbounded(|n| n)
    ///     .map(move |n| {
    ///         if n == 1000 {
    ///             enough.stop();
    ///         }
    ///         n
    ///     })
    ///     .collect()
    ///     .stopped_by(&stop);
    /// let numbers = inline(&job)?;
    /// assert!(numbers.len() > 1000 && (0..).zip(&numbers).all(|(at, &n)| at == n));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn stopped_by(self, stop: &Stop) -> Self {
        let mut outside = self.graph.outside.clone();
        outside.stops.push(stop.clone());
        Self::of(self.sinks, outside, self.result)
    }

    /// The job with a result that `function` makes of its own, in each process.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let longest = collection(vec!["to".to_owned(), "not".to_owned()])
    ///     .map(|word| word.len() as u64)
    ///     .collect()
    ///     .then(|lengths| lengths.into_iter().max());
    /// assert_eq!(inline(&longest)?, Some(3));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn then<Q: 'static>(self, function: impl Fn(R) -> Q + Send + Sync + 'static) -> Job<Q> {
        let result = self.result;
        Job {
            sinks: self.sinks,
            graph: self.graph,
            result: Arc::new(move || function(result())),
        }
    }
}

impl<R> Job<R> {
    /// The tasks in order, as people read them: `0 1 -> join > map -> 2` reads the outputs of the tasks 0 and
    /// 1, joins and maps, and is task 2.
    pub fn plan(&self) -> String {
        self.graph.plan()
    }

    /// The tasks, what is fused in each, and the exchanges between them, in lines for people.
    ///
    /// ```
    /// use dataflow::{collection};
    ///
    /// let job = collection(vec![1u64, 2]).map(|n| n + 1).round_robin().collect();
    /// assert!(job.explain().contains("round_robin"));
    /// assert!(job.to_dot().starts_with("digraph"));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn explain(&self) -> String {
        self.task_graph().explain()
    }

    /// The graph in the language of Graphviz.
    pub fn to_dot(&self) -> String {
        self.task_graph().to_dot()
    }

    /// The graph in the language of Mermaid.
    pub fn to_mermaid(&self) -> String {
        self.task_graph().to_mermaid()
    }

    /// The graph as JSON: see [`TaskGraph::to_json`].
    ///
    /// ```
    /// use dataflow::collection;
    ///
    /// let job = collection(vec![1u64, 2]).map(|n| n + 1).round_robin().for_each(|_| ());
    /// let json = job.to_json();
    /// assert!(json.contains(r#""operators":["collection of 2","map"]"#));
    /// assert!(json.contains(r#""from":0,"to":1,"input":0,"input_name":null,"output":null,"exchange":"round_robin""#));
    /// ```
    pub fn to_json(&self) -> String {
        self.task_graph().to_json()
    }

    /// The part of it that does not depend on the type of the result.
    pub fn task_graph(&self) -> TaskGraph {
        TaskGraph {
            graph: self.graph.clone(),
            schedule: None,
        }
    }

    /// Takes what the last run of the job in this process gave.
    pub fn take_result(&self) -> R {
        (self.result)()
    }
}

impl<R> Clone for Job<R> {
    fn clone(&self) -> Self {
        Self {
            sinks: self.sinks.clone(),
            graph: self.graph.clone(),
            result: self.result.clone(),
        }
    }
}

impl<R> fmt::Debug for Job<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Job")
            .field("plan", &self.graph.plan())
            .finish_non_exhaustive()
    }
}

/// The tasks and edges of a [`Job`], for those who run it. It can be sent to threads.
#[derive(Debug, Clone)]
pub struct TaskGraph {
    pub(crate) graph: Arc<Graph>,
    /// Where instances are, if that was decided.
    pub(crate) schedule: Option<Arc<Schedule>>,
}

impl TaskGraph {
    /// Has a scheduler decide where the instances of tasks are, among these workers. Without it they are spread
    /// evenly, whatever their tasks demand.
    ///
    /// # Errors
    ///
    /// [`Error::BadTask`], [`Error::Unbounded`], or [`Error::Unplaceable`]: by the scheduler, or because it has not kept
    /// what a task demands.
    pub fn placed(self, scheduler: &dyn Scheduler, workers: &[Worker]) -> Result<Self, Error> {
        self.graph.check_ends()?;
        let schedule = Schedule::of(&self.graph, scheduler, workers)?;
        Ok(Self {
            schedule: Some(Arc::new(schedule)),
            ..self
        })
    }

    /// Whether it is known of anything that it reads on which hosts that is.
    pub fn has_splits(&self) -> bool {
        let (_, tasks) = self.graph.placements(1);
        tasks.iter().any(|task| !task.splits.is_empty())
    }

    /// The tasks, what is fused in each, the exchanges between them, and where instances are once that is decided, in
    /// lines for people.
    pub fn explain(&self) -> String {
        export::explain(&self.graph, self.schedule.as_deref())
    }

    /// The graph in the language of Graphviz.
    pub fn to_dot(&self) -> String {
        export::dot(&self.graph, self.schedule.as_deref())
    }

    /// The graph in the language of Mermaid.
    pub fn to_mermaid(&self) -> String {
        export::mermaid(&self.graph, self.schedule.as_deref())
    }

    /// The graph as JSON: `tasks` with `number`, `name` if they were given one, the `operators` that are fused in them,
    /// `placement` (`each rank`, `each process` or `scheduled`), `instances` if scheduled, and `ranks`, by instance,
    /// once that is decided; `edges` with the numbers of the tasks they are `from` and `to`, which `input` of the
    /// latter, by its number and by the `input_name` that the program gave it, which `output` of the former, if that has several, and the `exchange`.
    pub fn to_json(&self) -> String {
        export::json(&self.graph, self.schedule.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A task that is never built.
    fn node(name: &str, inputs: &[&Arc<Node>]) -> Arc<Node> {
        Arc::new(Node {
            name: name.to_owned(),
            written_at: Vec::new(),
            inputs: inputs.iter().map(|&input| input.clone()).collect(),
            placement: Placement::Everywhere,
            outlet: None,
            input_names: Vec::new(),
            kept: None,
            build: Box::new(|_| unreachable!("nobody builds it")),
            extent: Extent::AsInputs,
            gives_time: false,
            aligns: false,
            in_place: false,
        })
    }

    fn number_of(graph: &Graph, name: &str) -> usize {
        let mut tasks = graph.vertices.iter();
        tasks.position(|vertex| vertex.node.name == name).unwrap()
    }

    #[test]
    fn a_task_that_two_others_read_is_there_once() {
        let source = node("source", &[]);
        let (left, right) = (node("left", &[&source]), node("right", &[&source]));
        let graph = Graph::of(&[node("join", &[&left, &right])]);
        assert_eq!(
            graph.plan(),
            "source -> 0 | 0 -> left -> 1 | 0 -> right -> 2 | 1 2 -> join"
        );
        assert_eq!(graph.readers(0).collect::<Vec<_>>(), [(1, 0), (2, 0)]);
    }

    #[test]
    fn inputs_may_wait_for_each_other_unless_something_connects_them_elsewhere() {
        let [a, b, c] = ["a", "b", "c"].map(|name| node(name, &[]));
        let inner = node("inner", &[&a, &b]);
        let tree = Graph::of(&[node("outer", &[&inner, &c])]);
        assert!(tree.may_wait(number_of(&tree, "inner")));
        assert!(tree.may_wait(number_of(&tree, "outer")));

        let twice = Graph::of(&[node("with itself", &[&a, &a])]);
        assert!(!twice.may_wait(1));

        // Neither join has inputs of one origin, and yet they would wait for each other.
        let (first, second) = (node("first", &[&a, &b]), node("second", &[&b, &a]));
        let crossed = Graph::of(&[node("last", &[&first, &second])]);
        for join in ["first", "second", "last"] {
            assert!(!crossed.may_wait(number_of(&crossed, join)), "{join}");
        }

        // A branch that meets its stem behind a join, seen from that join.
        let side = node("side", &[&b]);
        let joined = node("joined", &[&a, &b]);
        let met = Graph::of(&[node("meeting", &[&joined, &side])]);
        assert!(met.may_wait(number_of(&met, "joined")));
        assert!(!met.may_wait(number_of(&met, "meeting")));
    }

    proptest! {
        #[test]
        fn every_instance_is_on_the_rank_that_says_so(
            size in 1u32..20,
            executors in 1u32..5,
            ranks in prop::collection::vec(0u32..20, 1..60),
        ) {
            let number = ranks.len() as u32;
            let schedule = Schedule::even(size, executors);
            let placements = [Placement::Everywhere, Placement::OnePerProcess, Placement::Instances(number)];
            let evenly = placements.map(|placement| schedule.instances(&placement));
            let listed = Instances::listed(ranks.iter().map(|rank| rank % size).collect(), size);
            for instances in evenly.into_iter().chain([listed]) {
                let mut seen = vec![false; instances.number() as usize];
                for rank in 0..size {
                    prop_assert!(instances.number_on(rank) <= instances.on_one_rank());
                    for (slot, instance) in (0..).zip(instances.on(rank)) {
                        prop_assert!(!std::mem::replace(&mut seen[instance as usize], true));
                        prop_assert_eq!(instances.rank_of(instance), rank);
                        prop_assert_eq!(instances.slot_of(instance), slot);
                        prop_assert_eq!(instances.at(rank, slot), Some(instance));
                    }
                }
                prop_assert!(seen.iter().all(|&seen| seen));
            }
        }
    }
}
