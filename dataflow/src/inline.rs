//! Running a job on the calling thread.

use std::{cell::RefCell, rc::Rc};

use transport::{Arena, Event, Fabric, Ledger, Simulation};

use crate::{
    Error,
    graph::Job,
    run::{Run, Site},
    stage::{Counters, Progress},
};

/// Memory of a job that runs on the calling thread.
const INLINE_BYTES: u64 = 1 << 40;
const INLINE_ARENA_BYTES: u64 = 256 << 20;
const SIMULATED_ARENA_BYTES: u64 = 4 << 20;

/// Runs a job on the calling thread, as one rank: the reference that every distributed run has to
/// equal.
///
/// # Errors
///
/// What the job's sources, sinks and functions say.
pub fn inline<R>(job: &Job<R>) -> Result<R, Error> {
    let ledger = Ledger::new(INLINE_BYTES);
    let fabric = Fabric::alone(Arena::new(&ledger, INLINE_ARENA_BYTES)?);
    let mut rank = Simulated::new(fabric, ledger, 1, job)?;
    while !rank.turn()? {}
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
    let network = Simulation::new(seed, size);
    let mut ranks = Vec::new();
    for rank in 0..size {
        let ledger = Ledger::new(INLINE_BYTES);
        let fabric = network.fabric(rank, &Arena::new(&ledger, SIMULATED_ARENA_BYTES)?);
        ranks.push(Simulated::new(fabric, ledger, executors, job)?);
    }
    let mut done = vec![false; size as usize];
    let mut idle = 0;
    while done.iter().any(|done| !done) {
        let rank = network.draw(size.into()) as usize;
        if !done[rank] {
            done[rank] = ranks[rank].turn()?;
        }
        idle = if ranks[rank].made_progress || network.advance() {
            0
        } else {
            idle + 1
        };
        assert!(
            idle < 1_000 * size,
            "seed {seed}: no rank makes progress any more"
        );
    }
    drop(ranks);
    Ok(job.take_result())
}

/// One rank of a job on the calling thread.
struct Simulated {
    fabric: Rc<RefCell<Fabric>>,
    run: Run,
    made_progress: bool,
}

impl Simulated {
    fn new<R>(fabric: Fabric, ledger: Ledger, executors: u32, job: &Job<R>) -> Result<Self, Error> {
        let fabric = Rc::new(RefCell::new(fabric));
        let site = Site {
            fabric: fabric.clone(),
            executors,
            ledger,
            counters: Rc::new(Nobody),
            spill: Rc::default(),
        };
        let run = Run::new(&job.task_graph(), 0, &site)?;
        Ok(Self {
            fabric,
            run,
            made_progress: false,
        })
    }

    /// Takes in what has arrived and goes on; true when the run is done.
    fn turn(&mut self) -> Result<bool, Error> {
        self.made_progress = false;
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
struct Nobody;

impl Counters for Nobody {
    fn read(&self, _records: u64, _bytes: u64) {}

    fn received(&self, _records: u64) {}

    fn expect(&self, _bytes: u64) {}
}
