//! An exchange, a reduce by key and a join on timely dataflow, with two workers in one process.
//!
//! Keys are hashed as ours are; the tables are hashbrown's, with its own hasher.

use dataflow::Key;
use hashbrown::HashMap;
use std::cell::RefCell;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::time::{Duration, Instant};
use timely::Config;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::{Filter, Input, Map};
use timely::dataflow::operators::{Concat, ConnectLoop, Exchange as _, Feedback, Probe};
use timely::worker::Worker;

/// How many workers there are.
const WORKERS: usize = 2;
/// How many records a worker sends before it lets the dataflow run.
const RECORDS_PER_STEP: u64 = 16 << 10;

/// A number of records, and the sum of something of them.
pub type Sums = (u64, u64);

/// Does `work` in each worker, and adds up what they say.
fn in_workers(work: impl Fn(&mut Worker) -> Sums + Send + Sync + 'static) -> io::Result<Sums> {
    let workers = timely::execute(Config::process(WORKERS), work).map_err(io::Error::other)?;
    workers
        .join()
        .into_iter()
        .try_fold((0, 0u64), |(number, sum), part| {
            let (numbers, more) = part.map_err(io::Error::other)?;
            Ok((number + numbers, sum.wrapping_add(more)))
        })
}

/// A worker's share of the numbers up to `number`.
fn share(worker: &Worker, number: u64) -> Range<u64> {
    let (index, peers) = (worker.index() as u64, worker.peers() as u64);
    number * index / peers..number * (index + 1) / peers
}

/// The number a record is exchanged by: its hash, but for the bits that choose a place in a table.
fn place(key: u64) -> u64 {
    u64::hash(key) >> 32
}

/// Sends one record to and fro between the workers, `number` times in all, by a loop. Gives the time that takes.
pub fn rounds(number: u64) -> io::Result<Duration> {
    let workers = timely::execute(Config::process(WORKERS), move |worker| {
        let (mut input, probe) = worker.dataflow::<u64, _, _>(|scope| {
            let (input, start) = scope.new_input();
            let (handle, back) = scope.feedback(1);
            let step = start
                .concat(back)
                .exchange(|n: &u64| *n)
                .map(|n| n + 1)
                .filter(move |n| *n < number);
            let (probe, step) = step.probe();
            step.connect_loop(handle);
            (input, probe)
        });
        let started = Instant::now();
        if worker.index() == 0 {
            input.send(0);
        }
        input.close();
        while !probe.done() {
            worker.step();
        }
        started.elapsed()
    });
    let times = workers.map_err(io::Error::other)?.join();
    let times: Result<Vec<Duration>, _> = times.into_iter().collect();
    Ok(times
        .map_err(io::Error::other)?
        .into_iter()
        .max()
        .unwrap_or_default())
}

/// Exchanges numbers by their hash.
pub fn exchange(number: u64) -> io::Result<Sums> {
    in_workers(move |worker| {
        let sums = Rc::new(RefCell::new((0u64, 0u64)));
        let sink = sums.clone();
        let mut input = worker.dataflow::<(), _, _>(|scope| {
            let (input, numbers) = scope.new_input();
            let by_hash = Exchange::new(|&n: &u64| place(n));
            numbers.sink(by_hash, "Sum", move |(numbers, _frontier)| {
                let (count, sum) = &mut *sink.borrow_mut();
                numbers.for_each_stamp(|_, batches| {
                    for batch in batches {
                        *count += batch.len() as u64;
                        *sum = batch.iter().fold(*sum, |sum, &n| sum.wrapping_add(n));
                    }
                });
            });
            input
        });
        for n in share(worker, number) {
            input.send(n);
            if n % RECORDS_PER_STEP == 0 {
                worker.step();
            }
        }
        input.close();
        while worker.has_dataflows() {
            worker.step_or_park(None);
        }
        *sums.borrow()
    })
}

/// Adds up the values of each key.
pub fn reduce(number: u64, pair: fn(u64) -> (u64, u64)) -> io::Result<Sums> {
    in_workers(move |worker| {
        let table = Rc::new(RefCell::new(HashMap::<u64, u64>::new()));
        let sink = table.clone();
        let mut input = worker.dataflow::<(), _, _>(|scope| {
            let (input, pairs) = scope.new_input();
            let by_key = Exchange::new(|&(key, _): &(u64, u64)| place(key));
            pairs.sink(by_key, "Reduce", move |(pairs, _frontier)| {
                let mut table = sink.borrow_mut();
                pairs.for_each_stamp(|_, batches| {
                    for (key, value) in batches.flat_map(|batch| batch.drain(..)) {
                        let sum = table.entry(key).or_default();
                        *sum = sum.wrapping_add(value);
                    }
                });
            });
            input
        });
        for n in share(worker, number) {
            input.send(pair(n));
            if n % RECORDS_PER_STEP == 0 {
                worker.step();
            }
        }
        input.close();
        while worker.has_dataflows() {
            worker.step_or_park(None);
        }
        let table = table.borrow();
        let sum = table
            .values()
            .fold(0, |sum: u64, value| sum.wrapping_add(*value));
        (table.len() as u64, sum)
    })
}

/// The right side of a join: it all comes first, and every worker knows when.
#[derive(Default)]
struct Right {
    values: HashMap<u64, u64>,
    is_complete: bool,
}

/// Joins pairs whose right side has each key once, and adds up the products of their values.
pub fn join(
    left: u64,
    left_pair: fn(u64) -> (u64, u64),
    right: u64,
    right_pair: fn(u64) -> (u64, u64),
) -> io::Result<Sums> {
    in_workers(move |worker| {
        let table = Rc::new(RefCell::new(Right::default()));
        let sums = Rc::new(RefCell::new((0u64, 0u64)));
        let (build, probe, sink) = (table.clone(), table.clone(), sums.clone());
        let (mut lefts, mut rights) = worker.dataflow::<(), _, _>(|scope| {
            let by_key = || Exchange::new(|&(key, _): &(u64, u64)| place(key));
            let (rights, pairs) = scope.new_input();
            pairs.sink(by_key(), "Build", move |(pairs, frontier)| {
                let mut right = build.borrow_mut();
                pairs.for_each_stamp(|_, batches| {
                    right
                        .values
                        .extend(batches.flat_map(|batch| batch.drain(..)));
                });
                right.is_complete = frontier.is_empty();
            });
            let (lefts, pairs) = scope.new_input();
            let mut early = Vec::new();
            pairs.sink(by_key(), "Probe", move |(pairs, _frontier)| {
                let right = probe.borrow();
                let (count, sum) = &mut *sink.borrow_mut();
                let mut join = |batch: &mut Vec<(u64, u64)>| {
                    for (key, value) in batch.drain(..) {
                        if let Some(other) = right.values.get(&key) {
                            *count += 1;
                            *sum = sum.wrapping_add(value.wrapping_mul(*other));
                        }
                    }
                };
                if right.is_complete {
                    early.iter_mut().for_each(&mut join);
                    early.clear();
                }
                pairs.for_each_stamp(|_, batches| {
                    for batch in batches {
                        if right.is_complete {
                            join(batch);
                        } else {
                            early.push(std::mem::take(batch));
                        }
                    }
                });
            });
            (lefts, rights)
        });
        for n in share(worker, right) {
            rights.send(right_pair(n));
            if n % RECORDS_PER_STEP == 0 {
                worker.step();
            }
        }
        rights.close();
        while !table.borrow().is_complete {
            worker.step_or_park(None);
        }
        for n in share(worker, left) {
            lefts.send(left_pair(n));
            if n % RECORDS_PER_STEP == 0 {
                worker.step();
            }
        }
        lefts.close();
        while worker.has_dataflows() {
            worker.step_or_park(None);
        }
        *sums.borrow()
    })
}
