//! An exchange, a reduce by key, a join, a loop and a row of dataflows on timely dataflow, with two workers in one process or in two.
//!
//! Keys are hashed as ours are; the tables are hashbrown's, with its own hasher.

use dataflow::Key;
use hashbrown::HashMap;
use std::cell::RefCell;
use std::net::TcpListener;
use std::ops::Range;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::{Duration, Instant};
use std::{env, io};
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::generic::Operator;
use timely::dataflow::operators::vec::{Filter, Input, Map};
use timely::dataflow::operators::{Concat, ConnectLoop, Exchange as _, Feedback, Probe};
use timely::worker::Worker;
use timely::{CommunicationConfig, Config, WorkerConfig};

/// How many workers there are.
const WORKERS: usize = 2;
/// How many records a worker sends before it lets the dataflow run.
const RECORDS_PER_STEP: u64 = 16 << 10;

/// Where the workers are.
#[derive(Debug, Clone)]
pub enum Place {
    /// In this process.
    Threads,
    /// One is in this process, which is one of several that talk by TCP.
    Process {
        /// Which of them.
        index: usize,
        /// Where all of them listen.
        addresses: Vec<String>,
    },
}

impl Place {
    fn config(self) -> Config {
        match self {
            Self::Threads => Config::process(WORKERS),
            Self::Process { index, addresses } => Config {
                communication: CommunicationConfig::Cluster {
                    threads: 1,
                    process: index,
                    addresses,
                    report: false,
                    zerocopy: false,
                },
                worker: WorkerConfig::default(),
            },
        }
    }

    /// Starts this program in two processes with such arguments behind the place, and gives what both said.
    pub fn of_processes(arguments: &[&str]) -> io::Result<Vec<String>> {
        // Free when they are looked for.
        let listeners = [
            TcpListener::bind("127.0.0.1:0")?,
            TcpListener::bind("127.0.0.1:0")?,
        ];
        let addresses = listeners
            .iter()
            .map(|one| Ok(one.local_addr()?.to_string()));
        let addresses = addresses.collect::<io::Result<Vec<_>>>()?.join(",");
        drop(listeners);
        let start = |index: &str| {
            let mut command = Command::new(env::current_exe()?);
            command
                .args(["timely-process", index, &addresses])
                .args(arguments);
            command.stdout(Stdio::piped()).spawn()
        };
        let children = [start("0")?, start("1")?];
        let outputs = children.map(|child| child.wait_with_output());
        let mut lines = Vec::new();
        for output in outputs {
            let output = output?;
            if !output.status.success() {
                return Err(io::Error::other(format!(
                    "timely failed: {}",
                    output.status
                )));
            }
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            lines.extend(text.lines().map(str::to_owned));
        }
        Ok(lines)
    }

    /// The place that a process was told.
    pub fn of_words(index: &str, addresses: &str) -> io::Result<Self> {
        Ok(Self::Process {
            index: index.parse().map_err(io::Error::other)?,
            addresses: addresses.split(',').map(str::to_owned).collect(),
        })
    }
}

/// A number of records, and the sum of something of them.
pub type Sums = (u64, u64);

/// Does `work` in each worker of this process, and adds up what they say. Gives the time of the slower one as well, without
/// what comes before: processes take a second to find one another.
fn in_workers(
    place: Place,
    work: impl Fn(&mut Worker) -> Sums + Send + Sync + 'static,
) -> io::Result<(Sums, Duration)> {
    let timed = move |worker: &mut Worker| {
        let started = Instant::now();
        (work(worker), started.elapsed())
    };
    let workers = timely::execute(place.config(), timed).map_err(io::Error::other)?;
    let mut all = ((0, 0u64), Duration::ZERO);
    for part in workers.join() {
        let ((number, sum), time) = part.map_err(io::Error::other)?;
        all = (
            (all.0.0 + number, all.0.1.wrapping_add(sum)),
            all.1.max(time),
        );
    }
    Ok(all)
}

/// A worker's share of the numbers up to `number`.
fn share(worker: &Worker, number: u64) -> Range<u64> {
    let (index, peers) = (worker.index() as u64, worker.peers() as u64);
    number * index / peers..number * (index + 1) / peers
}

/// The number a record is exchanged by: its hash, but for the bits that choose a place in a table.
fn route(key: u64) -> u64 {
    u64::hash(key) >> 32
}

/// Sends one record to and fro between the workers, `number` times in all, by a loop. Gives the time that takes.
pub fn rounds(place: Place, number: u64) -> io::Result<Duration> {
    slowest(place, move |worker| {
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
    })
}

/// What the slowest worker takes for some work.
fn slowest(
    place: Place,
    work: impl Fn(&mut Worker) -> Duration + Send + Sync + 'static,
) -> io::Result<Duration> {
    let workers = timely::execute(place.config(), work);
    let times = workers.map_err(io::Error::other)?.join();
    let times: Result<Vec<Duration>, _> = times.into_iter().collect();
    let slowest = times.map_err(io::Error::other)?.into_iter().max();
    Ok(slowest.unwrap_or_default())
}

/// Builds a dataflow that exchanges a record of each worker, and runs it to its end, so many times in the same workers. How long
/// that takes.
pub fn again(place: Place, runs: u64) -> io::Result<Duration> {
    slowest(place, move |worker| {
        let started = Instant::now();
        for _ in 0..runs {
            let (mut input, probe) = worker.dataflow::<u64, _, _>(|scope| {
                let (input, start) = scope.new_input();
                let (probe, _) = start.exchange(|n: &u64| *n).probe();
                (input, probe)
            });
            input.send(worker.index() as u64 + 1);
            input.close();
            while !probe.done() {
                worker.step();
            }
        }
        started.elapsed()
    })
}

/// Exchanges numbers by their hash.
pub fn exchange(place: Place, number: u64) -> io::Result<(Sums, Duration)> {
    in_workers(place, move |worker| {
        let sums = Rc::new(RefCell::new((0u64, 0u64)));
        let sink = sums.clone();
        let mut input = worker.dataflow::<(), _, _>(|scope| {
            let (input, numbers) = scope.new_input();
            let by_hash = Exchange::new(|&n: &u64| route(n));
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
pub fn reduce(
    place: Place,
    number: u64,
    pair: fn(u64) -> (u64, u64),
) -> io::Result<(Sums, Duration)> {
    in_workers(place, move |worker| {
        let table = Rc::new(RefCell::new(HashMap::<u64, u64>::new()));
        let sink = table.clone();
        let mut input = worker.dataflow::<(), _, _>(|scope| {
            let (input, pairs) = scope.new_input();
            let by_key = Exchange::new(|&(key, _): &(u64, u64)| route(key));
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
    place: Place,
    left: u64,
    left_pair: fn(u64) -> (u64, u64),
    right: u64,
    right_pair: fn(u64) -> (u64, u64),
) -> io::Result<(Sums, Duration)> {
    in_workers(place, move |worker| {
        let table = Rc::new(RefCell::new(Right::default()));
        let sums = Rc::new(RefCell::new((0u64, 0u64)));
        let (build, probe, sink) = (table.clone(), table.clone(), sums.clone());
        let (mut lefts, mut rights) = worker.dataflow::<(), _, _>(|scope| {
            let by_key = || Exchange::new(|&(key, _): &(u64, u64)| route(key));
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
