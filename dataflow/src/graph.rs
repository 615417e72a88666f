//! The graph: what is to be done, as a value.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use transport::Rank;

use crate::{
    Error,
    stage::{Place, Task},
};

/// The number of an edge of a graph.
pub(crate) type EdgeId = u16;

/// What is to be done: tasks, and the edges along which their records are exchanged. Building one has
/// no effect; every rank that runs it builds its own instance of each task.
#[derive(Debug, Clone, Default)]
pub(crate) struct Graph {
    pub(crate) vertices: Vec<Vertex>,
    edges: EdgeId,
}

/// One task of a graph.
#[derive(Clone)]
pub(crate) struct Vertex {
    /// The operators in it, as people read them.
    pub(crate) name: String,
    /// The edge it receives from.
    pub(crate) input: Option<EdgeId>,
    /// Which ranks have an instance.
    pub(crate) placement: Placement,
    pub(crate) build: Arc<Build>,
}

/// Makes the instance of a task for one rank.
pub(crate) type Build = dyn Fn(&Place) -> Result<Box<dyn Task>, Error> + Send + Sync;

/// Which ranks have an instance of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Every rank.
    Everywhere,
    /// The first rank of each process.
    OnePerProcess,
}

impl Placement {
    pub(crate) fn includes(self, rank: Rank, executors: u32) -> bool {
        match self {
            Self::Everywhere => true,
            Self::OnePerProcess => rank.is_multiple_of(executors),
        }
    }
}

impl Graph {
    pub(crate) fn add_edge(&mut self) -> EdgeId {
        self.edges += 1;
        self.edges - 1
    }

    pub(crate) fn edges(&self) -> EdgeId {
        self.edges
    }

    /// The operators of the graph in order, which ranks compare before they run it.
    pub(crate) fn plan(&self) -> String {
        let names: Vec<_> = self
            .vertices
            .iter()
            .map(|vertex| vertex.name.as_str())
            .collect();
        names.join(" | ")
    }
}

impl fmt::Debug for Vertex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vertex")
            .field("name", &self.name)
            .field("input", &self.input)
            .finish_non_exhaustive()
    }
}

/// A graph that is complete: it ends in sinks, and running it gives an `R`. Clones are the same job.
pub struct Job<R> {
    pub(crate) graph: Arc<Graph>,
    pub(crate) result: Arc<Mutex<R>>,
}

impl<R: Default> Job<R> {
    /// The operators in order, as people read them.
    pub fn plan(&self) -> String {
        self.graph.plan()
    }

    /// The part of it that does not depend on the type of the result.
    pub fn task_graph(&self) -> TaskGraph {
        TaskGraph(self.graph.clone())
    }

    /// Takes what the last run of the job in this process gave.
    pub fn take_result(&self) -> R {
        std::mem::take(&mut *self.result.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl<R> Clone for Job<R> {
    fn clone(&self) -> Self {
        Self {
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
pub struct TaskGraph(pub(crate) Arc<Graph>);
