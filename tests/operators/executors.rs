//! What executors do for those who use them: each stays on its core, nobody is kept waiting by who is busy, and who is
//! told to end does, whatever stands in its way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use dataflow::{
    Error, Output, Place, Push, Sink, Stop, channel, collection, generate, generate_unbounded,
};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};
use updraft::Config;

use crate::control::{executors, settled};

/// The cores that the calling thread may run on.
fn cores() -> Vec<u64> {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cores = 0..CpuSet::count();
    let cores = cores.filter(|&core| allowed.is_set(core).unwrap());
    cores.map(|core| core as u64).collect()
}

/// The cores are those that this process may use, in turns.
#[test]
fn the_thread_of_a_rank_stays_on_one_core() {
    let allowed = cores();
    for number in 1..=4u32 {
        let expected: Vec<_> = (0..number)
            .map(|rank| (rank, vec![allowed[rank as usize % allowed.len()]]))
            .collect();
        let found = updraft::run(executors(number), |env| {
            let one_each = collection((0..number).collect()).map(|rank| (rank, cores()));
            let by_operators = env.run(&one_each.collect())?;
            let by_steps = env.bsp(|world| Ok((world.rank() as u32, cores())))?;
            Ok((by_operators, by_steps))
        });
        assert_eq!(found.unwrap(), (expected.clone(), expected));

        let loose = Config {
            pin: false,
            ..executors(number)
        };
        let found = updraft::bsp(loose, |_| Ok(cores())).unwrap();
        assert_eq!(found, vec![allowed.clone(); number as usize]);
    }
}

/// Does nothing of use for a while.
fn toil(n: u64) -> u64 {
    (0..50).fold(n, |n, _| {
        std::hint::black_box(n.rotate_left(7) ^ 0x5bd1_e995)
    })
}

/// A source that always has more, and an operator that toils, beside records that come now and then.
#[test]
fn what_is_light_goes_on_beside_what_is_greedy() {
    for number in [1, 2] {
        let (sender, light) = channel::<u64>(4);
        let (done, arrived) = mpsc::channel();
        let (stop, toiled) = (Stop::new(), Arc::new(AtomicU64::new(0)));
        let counted = toiled.clone();
        let greedy = generate_unbounded(|n| n)
            .map(toil)
            .exchange_by_hash()
            .map(toil)
            .for_each(move |_| {
                counted.fetch_add(1, Ordering::Relaxed);
            });
        let light = light
            .exchange_by_hash()
            .for_each(move |n| done.send(n).unwrap());
        let job = greedy.and(light).stopped_by(&stop);
        let program =
            thread::spawn(move || updraft::run(executors(number), |env| env.run(&job)).map(drop));
        while toiled.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        let begun = toiled.load(Ordering::Relaxed);
        // The greedy one never ends: who waited for it would wait for good.
        for n in 0..20 {
            sender.send(n).unwrap();
            assert_eq!(arrived.recv_timeout(Duration::from_secs(10)), Ok(n));
        }
        let meanwhile = toiled.load(Ordering::Relaxed) - begun;
        drop(sender);
        stop.stop();
        program.join().unwrap().unwrap();
        assert!(meanwhile > 0, "it was not busy meanwhile");
    }
}

/// Takes nothing more once it has one record.
struct Stuck {
    is_full: bool,
    taken: Arc<AtomicU64>,
}

impl Push<u64> for Stuck {
    fn push(&mut self, _number: u64) {
        self.is_full = true;
        self.taken.fetch_add(1, Ordering::Relaxed);
    }
}

impl Sink<u64> for Stuck {
    fn is_full(&self) -> bool {
        self.is_full
    }
}

impl Output<u64> for Stuck {
    fn poll(&mut self) -> Result<bool, Error> {
        Ok(false)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        Ok(!self.is_full)
    }
}

/// All senders wait for room that never comes.
#[test]
fn a_run_is_cancelled_in_time_where_all_channels_are_full() {
    for number in [1, 2, 4] {
        let (made, taken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (counted, counting) = (made.clone(), taken.clone());
        let numbers = generate(u64::MAX, move |n| {
            counted.fetch_add(1, Ordering::Relaxed);
            n
        });
        let job = numbers.exchange_by_hash().write_to(move |_: &Place| {
            Ok(Stuck {
                is_full: false,
                taken: counting.clone(),
            })
        });
        let (tell, told) = mpsc::channel();
        let canceller = thread::spawn(move || {
            let controller: updraft::Controller = told.recv().unwrap();
            while made.load(Ordering::Relaxed) == 0 {
                thread::yield_now();
            }
            let made = settled(&made);
            controller.cancel("it is stuck");
            (made, Instant::now())
        });
        let error = updraft::run(executors(number), |env| {
            tell.send(env.controller()).unwrap();
            env.run(&job)
        })
        .unwrap_err();
        let (made, cancelled) = canceller.join().unwrap();
        let elapsed = cancelled.elapsed();
        assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
        assert!(error.to_string().ends_with("it is stuck"), "{error}");
        assert_eq!(taken.load(Ordering::Relaxed), u64::from(number));
        assert!(made > 10_000, "the channels have room for more than {made}");
    }
}
