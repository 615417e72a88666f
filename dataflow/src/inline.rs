//! Running a job on the calling thread.

use std::{cell::RefCell, rc::Rc, thread, time::Duration};

use transport::{Arena, Event, Fabric, Ledger, Simulation};

use crate::{
    Error,
    graph::{Job, TaskGraph},
    run::{Run, Site},
    schedule::{Scheduler, Worker},
    stage::{Counters, Progress},
};

/// Memory of a job that runs on the calling thread.
const INLINE_BYTES: u64 = 1 << 40;
const INLINE_ARENA_BYTES: u64 = 256 << 20;
const SIMULATED_ARENA_BYTES: u64 = 4 << 20;

/// The time that a turn takes, on the clock of what is run here.
const TURN: Duration = Duration::from_micros(10);

/// Turns after which a message moves on that everybody is too busy to wait for.
const TURNS_A_STEP: u64 = 64;

/// Runs a job on the calling thread, as one rank: the reference that every distributed run has to
/// equal. Time in it does not depend on a clock: it passes with what is done, and jumps when there is nothing to do.
///
/// # Errors
///
/// What the job's sources, sinks and functions say.
pub fn inline<R>(job: &Job<R>) -> Result<R, Error> {
    let ledger = Ledger::new(INLINE_BYTES);
    let fabric = Fabric::alone(Arena::new(&ledger, INLINE_ARENA_BYTES)?);
    let mut rank = Simulated::new(fabric, ledger, 1, &job.task_graph())?;
    let mut now = Duration::ZERO;
    while !rank.turn(now)? {
        now += TURN;
        if !rank.made_progress {
            now = rank.run.due().map_or(now, |due| due.max(now));
            thread::yield_now(); // Another thread may have something for it.
        }
    }
    drop(rank);
    Ok(job.take_result())
}

/// Runs a job as `size` ranks, `executors` to a process, that take turns on the calling thread over a
/// network whose delays, and whose turn it is, follow from `seed`. It gives what the first process got.
///
/// # Errors
///
/// What the job says, or that it makes no more progress, as an unexpected message of rank 0.
pub fn simulate<R>(job: &Job<R>, seed: u64, size: u32, executors: u32) -> Result<R, Error> {
    take_turns(&job.task_graph(), seed, size, executors)?;
    Ok(job.take_result())
}

/// The same by the ranks of these workers, among which a scheduler distributes the instances of tasks.
///
/// # Errors
///
/// As [`simulate`], and what the scheduler says.
///
/// ```
/// use dataflow::{collection, schedule::{RoundRobin, Task, Worker}, simulate_on};
///
/// let workers = [0, 1].map(|rank| Worker { ranks: rank..rank + 1, ..Worker::default() });
/// let job = collection(vec![1u64, 2, 3]).as_task(Task::new("items", 3).per_worker_max(2)).collect();
/// assert_eq!(simulate_on(&job, 0, &workers, &RoundRobin)?, [1, 2, 3]);
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn simulate_on<R>(
    job: &Job<R>,
    seed: u64,
    workers: &[Worker],
    scheduler: &dyn Scheduler,
) -> Result<R, Error> {
    let graph = job.task_graph().placed(scheduler, workers)?;
    let size = workers.last().map_or(0, |worker| worker.ranks.end);
    let executors = workers.first().map_or(1, |worker| worker.ranks.end);
    take_turns(&graph, seed, size, executors)?;
    Ok(job.take_result())
}

fn take_turns(graph: &TaskGraph, seed: u64, size: u32, executors: u32) -> Result<(), Error> {
    let network = Simulation::new(seed, size);
    let mut ranks = Vec::new();
    for rank in 0..size {
        let ledger = Ledger::new(INLINE_BYTES);
        let fabric = network.fabric(rank, &Arena::new(&ledger, SIMULATED_ARENA_BYTES)?);
        ranks.push(Simulated::new(fabric, ledger, executors, graph)?);
    }
    let mut done = vec![false; size as usize];
    let mut idle = 0;
    let mut turns = 0u64;
    let mut now = Duration::ZERO;
    while done.iter().any(|done| !done) {
        let rank = network.draw(size.into()) as usize;
        if !done[rank] {
            done[rank] = ranks[rank].turn(now)?;
        }
        now += TURN;
        // Time goes on even where a source always has more.
        turns += 1;
        let goes_on = turns.is_multiple_of(TURNS_A_STEP) && network.advance();
        idle = if goes_on || ranks[rank].made_progress || network.advance() {
            0
        } else if let Some(due) = ranks.iter().filter_map(|rank| rank.run.due()).min()
            && due > now
        {
            now = due;
            0
        } else {
            idle + 1
        };
        assert!(
            idle < 1_000 * size,
            "seed {seed}: no rank makes progress any more"
        );
    }
    Ok(())
}

/// One rank of a job on the calling thread.
struct Simulated {
    fabric: Rc<RefCell<Fabric>>,
    run: Run,
    made_progress: bool,
}

impl Simulated {
    fn new(
        fabric: Fabric,
        ledger: Ledger,
        executors: u32,
        graph: &TaskGraph,
    ) -> Result<Self, Error> {
        let fabric = Rc::new(RefCell::new(fabric));
        let site = Site {
            fabric: fabric.clone(),
            executors,
            ledger,
            counters: Rc::new(Nobody),
            spill: Rc::default(),
            helpers: Rc::new(()),
        };
        let run = Run::new(graph, 0, &site)?;
        Ok(Self {
            fabric,
            run,
            made_progress: false,
        })
    }

    /// Takes in what has arrived and goes on; true when the run is done.
    fn turn(&mut self, now: Duration) -> Result<bool, Error> {
        self.made_progress = false;
        self.run.tick(now);
        loop {
            let event = self.fabric.borrow_mut().receive();
            let event = event.map_err(transport::Error::from)?;
            match event {
                Some(Event::Message { from, buffer }) => self.run.receive(from, buffer)?,
                Some(Event::Ended { peer, error }) => self.run.ended(peer, *error)?,
                Some(Event::Refused { .. } | Event::Completed { .. }) | None => break,
            }
            self.made_progress = true;
        }
        let progress = self.run.poll()?;
        self.made_progress |= progress != Progress::None;
        Ok(progress == Progress::Done)
    }
}

/// Wants to know nothing.
#[derive(Debug)]
pub(crate) struct Nobody;

impl Counters for Nobody {
    fn read(&self, _records: u64, _bytes: u64) {}

    fn received(&self, _records: u64, _bytes: u64) {}

    fn expect(&self, _bytes: u64) {}
}
