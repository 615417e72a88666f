//! One rank's part in one run of a graph.

use std::{cell::RefCell, fmt, rc::Rc};

use collectives::AllGather;
use transport::{Buffer, Fabric, Ledger, Rank};

use crate::{
    Error,
    graph::TaskGraph,
    one_line,
    stage::{Counters, Place, Progress, Task},
};

/// The tags of the messages of a run: which run, what kind, which edge.
pub(crate) mod tag {
    use crate::graph::EdgeId;

    pub(crate) const BATCH: u8 = 1;
    pub(crate) const END: u8 = 2;
    pub(crate) const PLAN: u8 = 3;
    pub(crate) const TOTALS: u8 = 4;
    pub(crate) const FAILED: u8 = 5;

    pub(crate) fn new(run: u32, kind: u8, edge: EdgeId) -> u64 {
        u64::from(run) << 32 | u64::from(kind) << 16 | u64::from(edge)
    }

    pub(crate) fn batch(run: u32, edge: EdgeId) -> u64 {
        new(run, BATCH, edge)
    }

    pub(crate) fn end(run: u32, edge: EdgeId) -> u64 {
        new(run, END, edge)
    }

    /// The kind and the edge of a tag.
    pub(crate) fn parts(tag: u64) -> (u8, EdgeId) {
        ((tag >> 16) as u8, tag as EdgeId)
    }
}

/// The run that a message belongs to. Runs are numbered alike on all ranks.
pub fn run_of(tag: u64) -> u32 {
    (tag >> 32) as u32
}

/// What a rank did in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records that came from sources.
    pub records: u64,
    /// Bytes that came from sources.
    pub bytes: u64,
    /// Records that came from other tasks.
    pub received: u64,
}

impl Totals {
    fn to_bytes(self) -> [u8; 24] {
        let mut bytes = [0; 24];
        for (place, number) in
            bytes
                .chunks_exact_mut(8)
                .zip([self.records, self.bytes, self.received])
        {
            place.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let number = |index: usize| {
            let bytes = bytes.get(8 * index..8 * index + 8)?.try_into().ok()?;
            Some(u64::from_le_bytes(bytes))
        };
        Some(Self {
            records: number(0)?,
            bytes: number(1)?,
            received: number(2)?,
        })
    }
}

/// Counts what a rank does, and tells whoever else wants to know.
#[derive(Debug)]
struct Counting {
    totals: RefCell<Totals>,
    listener: Rc<dyn Counters>,
}

impl Counters for Counting {
    fn read(&self, records: u64, bytes: u64) {
        let mut totals = self.totals.borrow_mut();
        totals.records += records;
        totals.bytes += bytes;
        self.listener.read(records, bytes);
    }

    fn received(&self, records: u64) {
        self.totals.borrow_mut().received += records;
        self.listener.received(records);
    }

    fn expect(&self, bytes: u64) {
        self.listener.expect(bytes);
    }
}

/// Where a run takes place.
#[derive(Debug, Clone)]
pub struct Site {
    /// The links and the arena of this rank.
    pub fabric: Rc<RefCell<Fabric>>,
    /// Ranks in each process, which are neighbours in number.
    pub executors: u32,
    /// The account of the process.
    pub ledger: Ledger,
    /// Who wants to know what is done.
    pub counters: Rc<dyn Counters>,
}

/// One rank's part in one run of a graph, driven by its owner: it is given the messages of the run and
/// polled, and says when every rank has finished.
pub struct Run {
    number: u32,
    rank: Rank,
    fabric: Rc<RefCell<Fabric>>,
    /// The tasks that have an instance here, the last of the graph first: so what is nearly done goes on
    /// first, and makes room.
    tasks: Vec<Instance>,
    counting: Rc<Counting>,
    plan: String,
    plans: AllGather,
    /// What each rank did, told when its tasks are done.
    totals: AllGather,
    committed: bool,
}

struct Instance {
    task: Box<dyn Task>,
    input: Option<u16>,
    done: bool,
}

/// The most of its share of the arena that one channel's window takes, and the least.
const WINDOW_BYTES_MAX: u64 = 1 << 20;
const WINDOW_BYTES_MIN: u64 = 4 << 10;

impl Run {
    /// Starts run `number` of a graph on this rank.
    ///
    /// # Errors
    ///
    /// What the tasks' sources and sinks say, or [`transport::Error::LedgerLimit`].
    pub fn new(graph: &TaskGraph, number: u32, site: &Site) -> Result<Self, Error> {
        let graph = &graph.0;
        let (rank, size, capacity) = {
            let fabric = site.fabric.borrow();
            (fabric.rank(), fabric.size(), fabric.arena().capacity())
        };
        let counting = Rc::new(Counting {
            totals: RefCell::default(),
            listener: site.counters.clone(),
        });
        // Half of the arena for what we send, the other half for what comes from other nodes.
        let channels = u64::from(graph.edges().max(1)) * u64::from(size);
        let share = (capacity / 2 / channels).max(WINDOW_BYTES_MIN);
        let place = Place {
            fabric: site.fabric.clone(),
            rank,
            size,
            executors: site.executors,
            ledger: site.ledger.clone(),
            counters: counting.clone(),
            window_bytes: share.min(WINDOW_BYTES_MAX) as usize,
            batch_bytes_max: share as usize,
            run: number,
        };
        let here = |vertex: &&crate::graph::Vertex| vertex.placement.includes(rank, site.executors);
        let tasks = graph.vertices.iter().rev().filter(here).map(|vertex| {
            Ok(Instance {
                task: (vertex.build)(&place)?,
                input: vertex.input,
                done: false,
            })
        });
        let plan = graph.plan();
        let mut plans = AllGather::new(tag::new(number, tag::PLAN, 0), size);
        plans.contribute(plan.as_bytes());
        Ok(Self {
            number,
            rank,
            fabric: site.fabric.clone(),
            tasks: tasks.collect::<Result<_, Error>>()?,
            counting,
            plan,
            plans,
            totals: AllGather::new(tag::new(number, tag::TOTALS, 0), size),
            committed: false,
        })
    }

    /// The number of the run.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Takes in a message of this run.
    ///
    /// # Errors
    ///
    /// [`Error::PlansDiffer`], [`Error::Remote`], or [`Error::Malformed`].
    pub fn receive(&mut self, from: Rank, message: Buffer) -> Result<(), Error> {
        let tag = message.tag();
        let (kind, edge) = tag::parts(tag);
        match kind {
            tag::BATCH => self.task_of(edge, from, tag)?.receive(from, message),
            tag::END => {
                self.task_of(edge, from, tag)?.ended(from);
                Ok(())
            }
            tag::PLAN => self.compare_plans(from, message),
            tag::TOTALS => {
                self.totals.receive(from, message);
                Ok(())
            }
            tag::FAILED => Err(Error::Remote {
                rank: from,
                message: String::from_utf8_lossy(&message).into_owned(),
            }),
            _ => Err(Error::Unexpected { peer: from, tag }),
        }
    }

    fn task_of(&mut self, edge: u16, peer: Rank, tag: u64) -> Result<&mut Box<dyn Task>, Error> {
        let instance = self
            .tasks
            .iter_mut()
            .find(|instance| instance.input == Some(edge));
        instance
            .map(|instance| &mut instance.task)
            .ok_or(Error::Unexpected { peer, tag })
    }

    fn compare_plans(&mut self, peer: Rank, plan: Buffer) -> Result<(), Error> {
        if plan.as_slice() != self.plan.as_bytes() {
            return Err(Error::PlansDiffer {
                here: self.rank,
                ours: self.plan.clone(),
                peer,
                theirs: String::from_utf8_lossy(&plan).into_owned(),
            });
        }
        self.plans.receive(peer, plan);
        Ok(())
    }

    /// Takes note that a peer is gone. That is fine once it has told its totals.
    ///
    /// # Errors
    ///
    /// The loss, if the run still needs the peer.
    pub fn ended(&mut self, peer: Rank, error: transport::Error) -> Result<(), Error> {
        if self.totals.has(peer) {
            Ok(())
        } else {
            Err(error.into())
        }
    }

    /// Goes on; [`Progress::Done`] when every rank has finished and the outputs are final.
    ///
    /// # Errors
    ///
    /// What the tasks say, or the loss of a rank.
    pub fn poll(&mut self) -> Result<Progress, Error> {
        self.plans.poll(&mut self.fabric.borrow_mut())?;
        let mut progress = Progress::None;
        for instance in &mut self.tasks {
            if !instance.done {
                let made = instance.task.poll()?;
                instance.done = made == Progress::Done;
                if made != Progress::None {
                    progress = Progress::Made;
                }
            }
        }
        if progress == Progress::None && self.tasks.iter().all(|instance| instance.done) {
            return self.conclude();
        }
        Ok(progress)
    }

    /// Tells the others that this rank is done, and waits for them to say so.
    fn conclude(&mut self) -> Result<Progress, Error> {
        self.totals
            .contribute(&self.counting.totals.borrow().to_bytes());
        self.totals.poll(&mut self.fabric.borrow_mut())?;
        if self.totals.result().is_none() || self.plans.result().is_none() {
            return Ok(Progress::None);
        }
        if !std::mem::replace(&mut self.committed, true) {
            for instance in &mut self.tasks {
                instance.task.commit()?;
            }
        }
        Ok(Progress::Done)
    }

    /// What each rank did, once the run is done.
    pub fn totals(&self) -> Vec<Totals> {
        let parts = self.totals.result().unwrap_or_default();
        parts.into_iter().filter_map(Totals::from_bytes).collect()
    }

    /// Tells the other ranks that this one failed, as far as they can still be told.
    pub fn fail(&self, error: &Error) {
        tell_failure(&mut self.fabric.borrow_mut(), self.number, error);
    }
}

/// Tells the other ranks that this one failed in run `number`, as far as they can still be told.
pub fn tell_failure(fabric: &mut Fabric, number: u32, error: &Error) {
    let line = one_line(error);
    for rank in (0..fabric.size())
        .filter(|&rank| rank != fabric.rank())
        .collect::<Vec<_>>()
    {
        // Who is gone needs not be told, and without room the end of our process tells it.
        let _ = fabric.send_copy(rank, tag::new(number, tag::FAILED, 0), line.as_bytes());
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("number", &self.number)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}
