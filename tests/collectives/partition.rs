//! What becomes of operations when a cable is cut and nobody is told. Each machine is a network namespace; where those may
//! not be made, the test says so and proves nothing.

use std::{
    cell::RefCell,
    rc::Rc,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use collectives::{Algorithm, Engine, Error, Group, Operator};
use transport::{Address, Arena, Config, Fabric, Interface, Ledger, Secret};

use crate::{
    machines::{CABLE, Machines},
    processes::one,
};

/// R4: within which all know.
const TOLD_MAX: Duration = Duration::from_secs(2);
/// Longer than it takes until all have begun.
const PATIENCE: Duration = Duration::from_secs(60);
/// Ranks 0 and 1 are on the first machine, rank 2 on the second.
const SIZE: u32 = 3;
const ARENA: u64 = 8 << 20;

fn machine_of(rank: u32) -> usize {
    usize::from(rank == SIZE - 1)
}

/// What all ranks of a job know together.
struct Job {
    operator: Operator,
    algorithm: Algorithm,
    secret: Secret,
    addresses: Mutex<Vec<Option<Address>>>,
    met: Barrier,
}

impl Job {
    /// What rank `rank` is told when the cable is cut in the midst of its operations, and when.
    fn run(&self, rank: u32, machines: &Machines, busy: &AtomicU32) -> (Error, Instant) {
        machines.enter(machine_of(rank));
        let config = Config {
            interface: Interface::find(CABLE).unwrap(),
            spin: false,
            ..Config::new(rank, SIZE, &self.secret)
        };
        let arena = Arena::new(&Ledger::new(ARENA), ARENA).unwrap();
        let mut fabric = Fabric::new(config, arena).unwrap();
        self.addresses.lock().unwrap()[rank as usize] = fabric.address();
        self.met.wait();
        let book: Vec<_> = (self.addresses.lock().unwrap().iter().flatten())
            .cloned()
            .collect();
        fabric.join(&book).unwrap();
        let start = Instant::now();
        let fabric = Rc::new(RefCell::new(fabric));
        let engine = Engine::new(fabric, false, move || start.elapsed());
        let result = engine.block_on(async {
            let world = engine.world().await?;
            self.repeat(&world, busy).await
        });
        let told = (result.unwrap_err(), Instant::now());
        engine.flush();
        // Nobody closes its end before all have been told by the cut itself, or by those on their machine.
        let _ = engine.fabric().borrow_mut().flush();
        self.met.wait();
        told
    }

    /// One operation after another, from what fits into a line to several segments, until one fails.
    async fn repeat(&self, group: &Group, busy: &AtomicU32) -> Result<(), Error> {
        let mut has_begun = false;
        for len in [8, 400, 30_000].into_iter().cycle() {
            if group.can(self.operator, self.algorithm, 8 * len, true) {
                group.force(Some(self.algorithm));
                one(group, self.operator, len).await?;
            } else {
                group.barrier().await?;
            }
            if !std::mem::replace(&mut has_begun, true) {
                busy.fetch_add(1, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Every operation by every algorithm that can cross a cable.
fn jobs() -> Vec<Arc<Job>> {
    let mut jobs = Vec::new();
    for operator in Operator::ALL {
        for algorithm in Algorithm::ALL {
            if algorithm.serves(operator, true) && algorithm != Algorithm::Board {
                jobs.push(Arc::new(Job {
                    operator,
                    algorithm,
                    secret: Secret::random().unwrap(),
                    addresses: Mutex::new(vec![None; SIZE as usize]),
                    met: Barrier::new(SIZE as usize),
                }));
            }
        }
    }
    jobs
}

#[test]
fn a_silent_partition_in_any_operation_by_any_algorithm_is_told_to_all_in_two_seconds() {
    let Some(machines) = Machines::new() else {
        return;
    };
    let (jobs, busy) = (jobs(), AtomicU32::new(0));
    let ranks = jobs.len() as u32 * SIZE;
    let mut times = Vec::new();
    thread::scope(|scope| {
        let (machines, busy) = (&machines, &busy);
        let mut threads = Vec::new();
        for job in &jobs {
            for rank in 0..SIZE {
                let run = move || job.run(rank, machines, busy);
                threads.push((job, rank, scope.spawn(run)));
            }
        }
        let begun = Instant::now();
        while busy.load(Ordering::Relaxed) < ranks && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(busy.load(Ordering::Relaxed), ranks, "some have not begun");
        let cutting = Instant::now();
        machines.cut();
        for (job, rank, thread) in threads {
            let (error, at) = thread.join().unwrap();
            let said = format!("{} by {}, rank {rank}", job.operator, job.algorithm);
            let Error::PeerLost { peer, .. } = error else {
                panic!("{said}: {error}");
            };
            assert_ne!(
                machine_of(peer),
                machine_of(rank),
                "{said}: {peer} was not cut off"
            );
            times.push((at - cutting, said));
        }
    });
    times.sort();
    let at = |index: usize| times[index].0;
    println!(
        "{} survivors: median {:?}, p99 {:?}, longest {:?}",
        times.len(),
        at(times.len() / 2),
        at(times.len() * 99 / 100),
        at(times.len() - 1)
    );
    let (longest, said) = &times[times.len() - 1];
    assert!(*longest <= TOLD_MAX, "{said}: {longest:?}");
}
