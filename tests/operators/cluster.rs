//! Where the jobs of these tests run.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    fmt::Debug,
    rc::Rc,
    time::Duration,
};

use dataflow::{Counters, Error, Job, Progress, Run, Site, inline, spill};
use proptest::prelude::*;
use transport::{Arena, Event, Fabric, Ledger, Simulation};
use updraft::Config;

/// A job of so many ranks on a simulated network.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cluster {
    pub(crate) seed: u64,
    pub(crate) size: u32,
    pub(crate) executors: u32,
    pub(crate) arena_bytes: u64,
    /// The limit of the ledger that the ranks of a process share.
    pub(crate) memory_bytes: u64,
}

/// Any cluster, and some instances for a task.
pub(crate) fn cluster() -> impl Strategy<Value = Cluster> {
    (any::<u64>(), 1u32..=5, 1u32..=3).prop_map(|(seed, size, executors)| Cluster {
        seed,
        size,
        executors,
        arena_bytes: 4 << 20,
        memory_bytes: 1 << 40,
    })
}

/// As many instances as ranks, fewer, or more.
pub(crate) fn instances() -> impl Strategy<Value = u32> {
    1u32..12
}

/// Turns after which a message moves on that everybody is too busy to wait for.
const TURNS_A_STEP: u64 = 64;

impl Cluster {
    /// What a job gives.
    pub(crate) fn run<R>(self, job: &Job<R>) -> Result<R, Error> {
        Ok(self.run_on(job, &spill::Config::default())?.0)
    }

    /// The same, with what was written to disk for it.
    pub(crate) fn run_on<R>(self, job: &Job<R>, spill: &spill::Config) -> Result<(R, u64), Error> {
        let (result, spilled, _) = self.run_watched(job, spill)?;
        Ok((result, spilled))
    }

    /// The same, with how many batches went from rank to rank, by the edge.
    pub(crate) fn run_watched<R>(
        self,
        job: &Job<R>,
        spill: &spill::Config,
    ) -> Result<(R, u64, BTreeMap<u16, u64>), Error> {
        let network = Simulation::new(self.seed, self.size);
        let processes = 0..self.size.div_ceil(self.executors);
        let ledgers: Vec<_> = processes.map(|_| Ledger::new(self.memory_bytes)).collect();
        let spilled = Rc::new(Spilled::default());
        let mut ranks = Vec::new();
        for rank in 0..self.size {
            let ledger = &ledgers[(rank / self.executors) as usize];
            let fabric = network.fabric(rank, &Arena::new(ledger, self.arena_bytes)?);
            let counters = spilled.clone();
            ranks.push(Driven::new(
                fabric,
                self.executors,
                ledger,
                counters,
                spill,
                job,
            )?);
        }
        let ended = self.drive(&network, &mut ranks);
        let mut crossed = BTreeMap::new();
        for rank in ranks {
            for (edge, batches) in rank.crossed {
                *crossed.entry(edge).or_default() += batches;
            }
        }
        for ledger in &ledgers {
            assert_eq!(ledger.used(), 0, "{self:?}: memory is given back");
        }
        ended?;
        Ok((job.take_result(), spilled.0.take(), crossed))
    }

    fn drive(self, network: &Simulation, ranks: &mut [Driven]) -> Result<(), Error> {
        let mut done = vec![false; self.size as usize];
        let mut idle = 0;
        let mut now = Duration::ZERO;
        let mut turns = 0u64;
        while done.iter().any(|done| !done) {
            let rank = network.draw(self.size.into()) as usize;
            let mut moved = false;
            if !done[rank] {
                ranks[rank].run.tick(now);
                let progress = ranks[rank].turn()?;
                done[rank] = progress == Progress::Done;
                moved = progress != Progress::None || ranks[rank].received;
            }
            // Time passes now slowly, now quickly, so that what waits is flushed at any moment.
            now += Duration::from_micros(1 << network.draw(12));
            // So does the network, even where a source always has more.
            turns += 1;
            let goes_on = turns.is_multiple_of(TURNS_A_STEP) && network.advance();
            idle = if goes_on || moved || network.advance() {
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
                idle < 1_000 * self.size,
                "{self:?}: no rank makes progress any more"
            );
        }
        Ok(())
    }

    /// The job gives `expected`, in some order, here and on one thread; for some seeds also in threads.
    pub(crate) fn gives<T: Ord + Debug + Send>(self, job: &Job<Vec<T>>, expected: Vec<T>) {
        let expected = sorted(expected);
        assert_eq!(
            sorted(inline(job).unwrap()),
            expected,
            "on one thread: {}",
            job.plan()
        );
        assert_eq!(
            sorted(self.run(job).unwrap()),
            expected,
            "{self:?}: {}",
            job.plan()
        );
        if self.seed.is_multiple_of(8) {
            let config = Config {
                executors: Some(self.size),
                progress: false,
                ..Config::default()
            };
            let given = updraft::run(config, |env| env.run(job)).unwrap();
            assert_eq!(
                sorted(given),
                expected,
                "{} threads: {}",
                self.size,
                job.plan()
            );
        }
    }
}

pub(crate) fn sorted<T: Ord>(mut records: Vec<T>) -> Vec<T> {
    records.sort();
    records
}

/// One rank of a job, driven by the test.
pub(crate) struct Driven {
    fabric: Rc<RefCell<Fabric>>,
    pub(crate) run: Run,
    received: bool,
    /// Batches that came from other ranks, by the edge.
    pub(crate) crossed: BTreeMap<u16, u64>,
}

/// Of the tag of a message, what says that it is a batch, or the last one.
const BATCHES: [u8; 2] = [1, 13];

impl Driven {
    pub(crate) fn new<R>(
        fabric: Fabric,
        executors: u32,
        ledger: &Ledger,
        counters: Rc<dyn Counters>,
        spill: &spill::Config,
        job: &Job<R>,
    ) -> Result<Self, Error> {
        let fabric = Rc::new(RefCell::new(fabric));
        let site = Site {
            fabric: fabric.clone(),
            executors,
            ledger: ledger.clone(),
            counters,
            spill: Rc::new(spill.clone()),
            helpers: Rc::new(()),
        };
        let run = Run::new(&job.task_graph(), 0, &site)?;
        Ok(Self {
            fabric,
            run,
            received: false,
            crossed: BTreeMap::new(),
        })
    }

    pub(crate) fn turn(&mut self) -> Result<Progress, Error> {
        self.received = false;
        loop {
            let event = self.fabric.borrow_mut().receive();
            let event = event.map_err(transport::Error::from)?;
            match event {
                Some(Event::Message { from, buffer }) => {
                    let tag = buffer.tag();
                    if from != self.fabric.borrow().rank() && BATCHES.contains(&((tag >> 16) as u8))
                    {
                        *self.crossed.entry(tag as u16).or_default() += 1;
                    }
                    self.run.receive(from, buffer)?;
                }
                Some(Event::Ended { peer, error }) => self.run.ended(peer, *error)?,
                Some(Event::Refused { .. } | Event::Completed { .. }) | None => {
                    return self.run.poll();
                }
            }
            self.received = true;
        }
    }
}

/// Who asked for memory that there was not, by the error that says so.
pub(crate) fn holder(error: &Error) -> &'static str {
    match error {
        Error::NoMemory {
            source: transport::Error::LedgerLimit { holder, .. },
            ..
        } => holder,
        _ => "",
    }
}

/// Adds up what goes to disk.
#[derive(Debug, Default)]
pub(crate) struct Spilled(Cell<u64>);

impl Counters for Spilled {
    fn read(&self, _records: u64, _bytes: u64) {}

    fn received(&self, _records: u64, _bytes: u64) {}

    fn expect(&self, _bytes: u64) {}

    fn spilled(&self, bytes: u64) {
        self.0.set(self.0.get() + bytes);
    }
}
