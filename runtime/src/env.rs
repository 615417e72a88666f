//! A worker: its executors, and the program that gives them work.

use std::{
    collections::BTreeMap,
    process,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use collectives::{Engine, Group};
use dataflow::{
    Collection, Job, Lines, Pass, Record, TSet, Tail, TaskGraph, TaskTotals, Totals,
    schedule::{Scheduler, Worker},
};
use transport::{Address, Fabric, Interface, Ledger, Rank, Secret, Waker};

use crate::{
    Config, Error,
    config::Decided,
    control::Controller,
    coordinator::{Client, Entry, Membership},
    counters::Counts,
    executor::{self, Command, Done, Means, Report, Seat, Work},
    helpers::Pool,
    hosts,
    progress::{Amount, Progress, Rounds},
    repeat::Repeat,
    signals,
    summary::Summary,
};

/// Time between two looks at how far a run is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// How long the other executors may take to notice that one has failed.
const FAILURE_SPREADS: Duration = Duration::from_secs(1);
/// How long a program that was told to stop may take to do so by itself.
const ABORT_GRACE: Duration = Duration::from_millis(300);

/// Runs a job: `program` is given the workers' executors and returns what it makes of their results.
///
/// By itself, a process is one worker, with an executor for each core. Started by a launcher, it joins
/// the other workers of its job; all of them run the same `program`, and have to build the same graphs.
///
/// # Errors
///
/// What `program` returns, and whatever keeps the executors from starting.
pub fn run<R>(
    config: Config,
    program: impl FnOnce(&mut Env) -> Result<R, Error>,
) -> Result<R, Error> {
    let mut env = Env::new(&config)?;
    let result = program(&mut env);
    env.close(result.as_ref().err());
    result
}

/// Runs a program in the manner of MPI, in which all ranks do the same steps: on an executor for each core of this
/// machine if the process is started by itself, and on those of all workers if it is started by a launcher. Gives
/// what the ranks of this process returned.
///
/// ```
/// use updraft::prelude::*;
/// use updraft::collectives::op::Sum;
///
/// let sums = updraft::bsp(Config { executors: Some(2), ..Config::default() }, |world| {
///     let mut sum = [world.rank() as u64 + 1];
///     world.all_reduce(&mut sum, Sum).wait()?;
///     Ok(sum[0])
/// })?;
/// assert_eq!(sums, [3, 3]);
/// # Ok::<(), updraft::Error>(())
/// ```
///
/// # Errors
///
/// What went wrong first, as far as can be told.
pub fn bsp<R: Send + 'static>(
    config: Config,
    program: impl Fn(&Group) -> Result<R, Error> + Send + Sync + 'static,
) -> Result<Vec<R>, Error> {
    run(config, |env| env.bsp(program))
}

/// The executors of a job, as its program sees them.
#[derive(Debug)]
pub struct Env {
    decided: Decided,
    worker: u32,
    workers: u32,
    /// What schedulers know of all workers.
    schedulable: Vec<Worker>,
    client: Option<Arc<Client>>,
    seats: Vec<SeatHandle>,
    reports: Receiver<Report>,
    runs: u32,
    summary: Summary,
    progress: Progress,
    rounds: Rounds,
    started: Instant,
    ledger: Ledger,
    controller: Controller,
    failed: bool,
    /// Whether the coordinator knows of an error that is this worker's own.
    ending: Arc<AtomicBool>,
}

/// What the worker holds of an executor.
#[derive(Debug)]
struct SeatHandle {
    commands: Sender<Command>,
    waker: Option<Waker>,
    counts: Counts,
    thread: JoinHandle<()>,
}

impl SeatHandle {
    fn tell(&self, command: Command) {
        // An executor that is gone has said why.
        let _ = self.commands.send(command);
        if let Some(waker) = &self.waker {
            waker.wake();
        }
    }
}

impl Env {
    fn new(config: &Config) -> Result<Self, Error> {
        let membership = Membership::from_env()?;
        let (worker, workers) = membership
            .as_ref()
            .map_or((0, 1), |member| (member.worker, member.workers));
        let decided = config.decide(workers)?;
        if let Some(stop) = &config.stop {
            signals::stop_at_first(stop)?;
        }
        let client = membership
            .as_ref()
            .map(Client::connect)
            .transpose()?
            .map(Arc::new);
        let controller = Controller::new(worker, client.as_ref());
        let secret = membership.map_or_else(Secret::random, |member| Ok(member.secret))?;
        let ledger = Ledger::new(decided.memory_bytes);
        let (reporter, reports) = mpsc::channel();
        let mut env = Self {
            worker,
            workers,
            schedulable: Vec::new(),
            client,
            seats: Vec::new(),
            reports,
            runs: 0,
            summary: Summary::default(),
            progress: Progress::new(),
            rounds: Rounds::default(),
            started: Instant::now(),
            ledger,
            controller,
            failed: false,
            ending: Arc::default(),
            decided,
        };
        let pool = Pool::new();
        for index in 0..env.decided.executors {
            let seat = env.start_executor(index, &secret, &pool, &reporter)?;
            env.seats.push(seat);
        }
        env.join(reporter)?;
        Ok(env)
    }

    fn start_executor(
        &self,
        index: u32,
        secret: &Secret,
        pool: &Pool,
        reports: &Sender<Report>,
    ) -> Result<SeatHandle, Error> {
        let executors = self.decided.executors;
        let rank = self.worker * executors + index;
        let (commands, obeyed) = mpsc::channel();
        let counts = Counts::new(self.decided.metrics);
        let seat = Seat {
            links: transport::Config {
                rank,
                size: self.workers * executors,
                transport: self.decided.transport,
                interface: self.interface(),
                silence_max: self.decided.silence_max,
                rdma: self.decided.rdma.clone(),
                tls: self.decided.tls,
                secret: secret.clone(),
                spin: self.decided.spin,
            },
            executors,
            core: self.decided.pin.then_some(rank as usize),
            arena_bytes: self.decided.arena_bytes,
            ledger: self.ledger.clone(),
            spill: self.decided.spill.clone(),
            counts: counts.clone(),
            controller: self.controller.clone(),
            pool: pool.clone(),
            commands: obeyed,
            reports: reports.clone(),
        };
        let thread = thread::Builder::new()
            .name(format!("executor-{rank}"))
            .spawn(move || executor::main(seat))
            .map_err(Error::Thread)?;
        Ok(SeatHandle {
            commands,
            waker: None,
            counts,
            thread,
        })
    }

    /// Where other machines reach this one. What reached the coordinator reaches the other workers,
    /// unless somebody knows better.
    fn interface(&self) -> Interface {
        let towards = || Some(self.client.as_ref()?.local_address()?.into());
        let chosen = self.decided.interface.or_else(towards);
        chosen.unwrap_or_default()
    }

    /// Has every executor learn where all ranks are.
    fn join(&mut self, reporter: Sender<Report>) -> Result<(), Error> {
        let mut addresses: Vec<Option<Address>> = vec![None; self.seats.len()];
        let first = self.worker * self.decided.executors;
        while addresses.iter().any(Option::is_none) {
            match self.reports.recv() {
                Ok(Report::Ready {
                    rank,
                    address,
                    waker,
                }) => {
                    let index = (rank - first) as usize;
                    addresses[index] = Some(address);
                    self.controller.wakes(waker.clone());
                    self.seats[index].waker = Some(waker);
                }
                Ok(Report::Ended {
                    result: Err(error), ..
                }) => return Err(error),
                _ => {}
            }
        }
        let ours: Vec<Address> = addresses.into_iter().flatten().collect();
        let entry = Entry {
            host: self.decided.host.clone(),
            cores: self.decided.cores,
            memory_bytes: self.decided.memory_bytes,
            attributes: self.decided.attributes.clone(),
            ..Entry::at(ours.iter().map(Address::to_string))
        };
        let (book, entries) = match &self.client {
            None => (ours, vec![entry]),
            Some(client) => {
                let entries = client.register(&entry)?;
                watch(
                    client,
                    reporter,
                    self.controller.clone(),
                    Arc::clone(&self.ending),
                )?;
                (self.read_book(&entries)?, entries)
            }
        };
        self.schedulable = schedulable(&entries);
        for seat in &self.seats {
            seat.tell(Command::Join(book.clone()));
        }
        Ok(())
    }

    /// The addresses of all ranks. Every worker has to have as many executors as this one.
    fn read_book(&self, book: &[Entry]) -> Result<Vec<Address>, Error> {
        for (worker, Entry { addresses, .. }) in book.iter().enumerate() {
            if addresses.len() != self.seats.len() {
                let reason = format!(
                    "worker {} has {} executors, but worker {worker} has {}: all need the same number",
                    self.worker,
                    self.seats.len(),
                    addresses.len()
                );
                return Err(Error::Config { reason });
            }
        }
        let addresses = book
            .iter()
            .flat_map(|entry| &entry.addresses)
            .map(|text| text.parse().map_err(Error::from));
        addresses.collect()
    }

    /// The number of this worker, from 0. The programs of all workers get the same results; what is to
    /// be done once, such as printing them, is for worker 0.
    pub fn worker(&self) -> u32 {
        self.worker
    }

    /// Workers in the job.
    pub fn workers(&self) -> u32 {
        self.workers
    }

    /// Executors in the job: the number of ranks.
    pub fn ranks(&self) -> u32 {
        self.workers * self.decided.executors
    }

    /// The account of this worker's data memory.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What each rank of the job did in all runs so far, in the order of the ranks; nothing before the first run.
    ///
    /// ```
    /// use updraft::prelude::*;
    ///
    /// let records = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     env.run(&env.collection(vec![1u64, 2, 3]).count().first())?;
    ///     Ok(env.totals().iter().map(|rank| rank.records).sum::<u64>())
    /// })?;
    /// assert_eq!(records, 3);
    /// # Ok::<(), updraft::Error>(())
    /// ```
    pub fn totals(&self) -> &[Totals] {
        self.summary.by_rank()
    }

    /// What the instances of each task did in all runs so far, on all ranks: nothing unless that
    /// [is measured](Config::metrics). Runs of the same graph are taken together.
    ///
    /// ```
    /// use updraft::prelude::*;
    ///
    /// let config = Config { executors: Some(2), metrics: true, ..Config::default() };
    /// let tasks = updraft::run(config, |env| {
    ///     env.run(&env.collection(vec![1u64, 2, 3]).map(|n| n + 1).named("next").round_robin().for_each(|_| ()))?;
    ///     Ok(env.by_task().to_vec())
    /// })?;
    /// assert!(tasks[0].task.starts_with("collection of 3 > next > round_robin ("), "{}", tasks[0].task);
    /// let received: u64 = tasks[1].instances.iter().map(|instance| instance.received).sum();
    /// assert_eq!((tasks[1].instances.len(), received), (2, 3));
    /// # Ok::<(), updraft::Error>(())
    /// ```
    pub fn by_task(&self) -> &[TaskTotals] {
        self.summary.by_task()
    }

    /// What cancels and pauses runs of this job, from any thread of any worker.
    ///
    /// ```
    /// use std::{thread, time::Duration};
    /// use updraft::{dataflow::{Error, generate}, prelude::*};
    ///
    /// let result = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     let controller = env.controller();
    ///     thread::spawn(move || {
    ///         thread::sleep(Duration::from_millis(20));
    ///         controller.cancel("it takes too long");
    ///     });
    ///     env.run(&generate(u64::MAX, |n| n).for_each(|_| ()))
    /// });
    /// let Err(updraft::Error::Dataflow(Error::Cancelled { by, reason })) = result else { panic!("{result:?}") };
    /// assert_eq!((by.as_str(), reason.as_str()), ("worker 0", "it takes too long"));
    /// ```
    pub fn controller(&self) -> Controller {
        self.controller.clone()
    }

    /// By what a loop of the program's own tells how far it is, to who watches the job.
    pub fn rounds(&self) -> Rounds {
        self.rounds.clone()
    }

    /// The lines of the files that `pattern` matches: see [`dataflow::lines`].
    ///
    /// ```
    /// use updraft::prelude::*;
    ///
    /// let modules = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     let modules = env.lines("src/l*.rs")?.filter(|line| line.starts_with("mod "));
    ///     env.run(&modules.collect())
    /// })?;
    /// assert!(modules.contains(&"mod env;".to_owned()));
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When no file matches, or one cannot be looked at.
    pub fn lines(&self, pattern: &str) -> Result<TSet<Lines, Pass>, Error> {
        Ok(dataflow::lines(pattern)?)
    }

    /// The lines that are appended to the files that `pattern` matches, until the job is stopped: see [`dataflow::tail`].
    ///
    /// ```
    /// use std::{fs, io::Write, thread};
    /// use updraft::prelude::*;
    ///
    /// let path = std::env::temp_dir().join(format!("env-tail-{}.log", std::process::id()));
    /// fs::write(&path, "started\n").expect("it can be written");
    /// let log = path.to_string_lossy().into_owned();
    /// let appending = path.clone();
    /// let lines = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     thread::spawn(move || {
    ///         let mut log = fs::OpenOptions::new().append(true).open(appending)?;
    ///         log.write_all(b"ready\n")
    ///     });
    ///     env.run(&env.tail(&log)?.take(2).collect())
    /// })?;
    /// # fs::remove_file(&path).expect("it is there");
    /// assert_eq!(lines, ["started", "ready"]);
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When it is not a pattern.
    pub fn tail(&self, pattern: &str) -> Result<TSet<Tail, Pass>, Error> {
        Ok(dataflow::tail(pattern)?)
    }

    /// The records of `items`: see [`dataflow::collection`].
    pub fn collection<T: Record + Sync>(&self, items: Vec<T>) -> TSet<Collection<T>, Pass> {
        dataflow::collection(items)
    }

    /// Runs a job on all executors of all workers, waits for its end, and gives its result, which is the
    /// same on every worker.
    ///
    /// ```
    /// use updraft::prelude::*;
    ///
    /// let sum = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     let sum = env.collection((1..=10u64).collect()).reduce(|a, b| a + b).first();
    ///     env.run(&sum)
    /// })?;
    /// assert_eq!(sum, Some(55));
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What went wrong first, as far as can be told. After an error the executors run nothing more.
    pub fn run<R>(&mut self, job: &Job<R>) -> Result<R, Error> {
        self.run_graph(job.task_graph(), None)?;
        Ok(job.take_result())
    }

    /// Runs a graph, once or as long as `repeat` says so.
    pub(crate) fn run_graph(
        &mut self,
        graph: TaskGraph,
        repeat: Option<Arc<Repeat>>,
    ) -> Result<(), Error> {
        let number = self.runs;
        if graph.has_splits() {
            self.measure_bandwidths()?;
        }
        let graph = self.place(graph)?;
        if self.decided.explain && self.worker == 0 {
            eprint!("run {number}:\n{}", graph.explain());
        }
        let done = self.have_done(|| Command::Run {
            number,
            graph: graph.clone(),
            repeat: repeat.clone(),
        })?;
        self.runs = dataflow::run_after(number, done.runs);
        self.summary.add(done);
        Ok(())
    }

    /// Executors of each worker.
    pub(crate) fn executors(&self) -> u32 {
        self.decided.executors
    }

    /// Has another scheduler decide where the instances of tasks are, from the next run on. All workers have to do so.
    ///
    /// ```
    /// use updraft::{dataflow::{Error, collection, schedule::{FirstFit, Task}}, prelude::*};
    ///
    /// let result = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     env.set_scheduler(FirstFit::default());
    ///     let indexed = collection(vec![1u64, 2]).exchange_by_hash();
    ///     env.run(&indexed.clone().as_task(Task::new("index", 3)).collect())?;
    ///     // No worker has as much memory as that.
    ///     env.run(&indexed.as_task(Task::new("index", 3).memory_bytes(u64::MAX)).collect())
    /// });
    /// let Err(updraft::Error::Dataflow(Error::Unplaceable { task, .. })) = result else { panic!("{result:?}") };
    /// assert_eq!(task, "index");
    /// ```
    pub fn set_scheduler(&mut self, scheduler: impl Scheduler + 'static) {
        self.decided.scheduler = Arc::new(scheduler);
    }

    /// What schedulers know of the workers, in the order of their numbers. How quickly bytes come to them from other hosts is
    /// measured before the first run of a graph in which it is known where what it reads is.
    pub fn schedulable_workers(&self) -> &[Worker] {
        &self.schedulable
    }

    /// Has schedulers know how quickly bytes come from one host to another, unless they do already.
    fn measure_bandwidths(&mut self) -> Result<(), Error> {
        let firsts = hosts::first_ranks(&self.schedulable);
        let is_known = |worker: &Worker| !worker.bytes_per_second.is_empty();
        if firsts.len() < 2 || self.schedulable.iter().any(is_known) {
            return Ok(());
        }
        let ranks: Vec<usize> = firsts.values().copied().collect();
        let measured = self.bsp(move |world| hosts::bandwidths(world, &ranks))?;
        let Some(measured) = measured.into_iter().next() else {
            return Ok(());
        };
        let rates = |rates: Vec<u64>| firsts.keys().cloned().zip(rates);
        let to: BTreeMap<_, _> = firsts.keys().zip(measured).collect();
        for worker in &mut self.schedulable {
            let from_all = to.get(&worker.host).cloned().unwrap_or_default();
            let from_others = rates(from_all).filter(|(from, _)| *from != worker.host);
            worker.bytes_per_second = from_others.collect();
        }
        Ok(())
    }

    /// Has the scheduler decide where the instances of tasks are.
    fn place(&self, graph: TaskGraph) -> Result<TaskGraph, Error> {
        Ok(graph.placed(&*self.decided.scheduler, &self.schedulable)?)
    }

    /// Calls `work` on every executor of this worker at the same time, with the executor's links, and waits
    /// until all calls have returned: for programs that send their messages themselves, as with MPI.
    ///
    /// Each rank of the job should be doing so. A rank that is not there yet does not keep what arrives
    /// for it: begin by greeting one another, again until you are answered.
    ///
    /// # Errors
    ///
    /// What went wrong first, as far as can be told. After an error the executors do nothing more.
    ///
    /// ```
    /// use std::sync::atomic::{AtomicU32, Ordering};
    /// use updraft::prelude::*;
    ///
    /// static CALLS: AtomicU32 = AtomicU32::new(0);
    /// updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     env.on_executors(|fabric| {
    ///         assert!(fabric.rank() < 2 && fabric.size() == 2);
    ///         CALLS.fetch_add(1, Ordering::Relaxed);
    ///         Ok(())
    ///     })
    /// })?;
    /// assert_eq!(CALLS.load(Ordering::Relaxed), 2);
    /// # Ok::<(), updraft::Error>(())
    /// ```
    pub fn on_executors(
        &mut self,
        work: impl Fn(&mut Fabric) -> Result<(), Error> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        let work = Work::Links(Arc::new(work));
        self.have_done(|| Command::Work(work.clone())).map(drop)
    }

    /// Calls `program` on every executor of this worker at the same time, with the group of all ranks of the job, and
    /// waits until all calls have returned: for programs in the manner of MPI, in which all ranks do the same steps
    /// (bulk-synchronous, BSP). Gives what this worker's ranks returned, in their order.
    ///
    /// All workers have to call this, as they have to run the same graphs.
    ///
    /// ```
    /// use updraft::prelude::*;
    ///
    /// let names = updraft::run(Config { executors: Some(2), ..Config::default() }, |env| {
    ///     env.bsp(|world| Ok(format!("{} of {}", world.rank(), world.size())))
    /// })?;
    /// assert_eq!(names, ["0 of 2", "1 of 2"]);
    /// # Ok::<(), updraft::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// What went wrong first, as far as can be told. After an error the executors do nothing more.
    pub fn bsp<R: Send + 'static>(
        &mut self,
        program: impl Fn(&Group) -> Result<R, Error> + Send + Sync + 'static,
    ) -> Result<Vec<R>, Error> {
        self.in_groups(move |engine, _| {
            let result = taking_part(engine, || {
                let world = engine.block_on(engine.world())?;
                program(&world)
            })?;
            Ok(vec![(engine.rank(), result)])
        })
    }

    /// Has every executor do `work`, and gives what it made of its ranks, in their order.
    pub(crate) fn in_groups<R: Send + 'static>(
        &mut self,
        work: impl Fn(&Engine, &Means) -> Result<Vec<(Rank, R)>, Error> + Send + Sync + 'static,
    ) -> Result<Vec<R>, Error> {
        let results: Arc<Mutex<BTreeMap<Rank, R>>> = Arc::default();
        let work = {
            let results = results.clone();
            Work::Groups(Arc::new(move |engine: &Engine, means: &Means| {
                let of_it = work(engine, means)?;
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                results.extend(of_it);
                Ok(())
            }))
        };
        self.have_done(|| Command::Work(work.clone()))?;
        let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(std::mem::take(&mut *results).into_values().collect())
    }

    /// Tells all executors of this worker the same, and waits until they have done it.
    fn have_done(&mut self, command: impl Fn() -> Command) -> Result<Done, Error> {
        if let Some(cancelled) = self.controller.error() {
            self.failed = true;
            return Err(cancelled.into());
        }
        if self.failed {
            let reason = "an earlier run of this program failed".to_owned();
            return Err(Error::Config { reason });
        }
        self.rounds.reset();
        for seat in &self.seats {
            seat.tell(command());
        }
        let done = self.wait_for_executors();
        self.failed = done.is_err();
        done
    }

    fn wait_for_executors(&self) -> Result<Done, Error> {
        let mut ended = 0;
        let mut done = Done::default();
        while ended < self.seats.len() {
            match self.reports.recv_timeout(PROGRESS_INTERVAL) {
                Ok(Report::Ended {
                    result: Ok(of_one), ..
                }) => {
                    ended += 1;
                    done.runs = of_one.runs;
                    done.totals = of_one.totals;
                    done.by_task = of_one.by_task;
                    done.links += of_one.links;
                }
                Ok(Report::Ended {
                    result: Err(error), ..
                }) => return Err(self.first_cause(error)),
                Ok(Report::Aborted { reason }) => {
                    let aborted = Error::Aborted { reason };
                    return Err(self.controller.error().map_or(aborted, Error::from));
                }
                Ok(Report::Ready { .. }) => {}
                Err(RecvTimeoutError::Timeout) => self.show_progress(),
                Err(RecvTimeoutError::Disconnected) => {
                    let message = "its thread ended".to_owned();
                    return Err(Error::Panicked {
                        rank: self.first_rank(),
                        operator: None,
                        message,
                    });
                }
            }
        }
        Ok(done)
    }

    fn first_rank(&self) -> Rank {
        self.worker * self.decided.executors
    }

    /// An executor failed. If that is the consequence of a failure elsewhere in this worker, that is
    /// about to be told.
    fn first_cause(&self, mut error: Error) -> Error {
        let deadline = Instant::now() + FAILURE_SPREADS;
        while error.is_consequence() && self.seats.len() > 1 {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left.min(ABORT_GRACE)) {
                Ok(Report::Ended {
                    result: Err(other), ..
                }) if !other.is_consequence() => error = other,
                Ok(_) => {}
                Err(_) => break,
            }
        }
        self.controller.error().map_or(error, Error::from)
    }

    fn show_progress(&self) {
        let amount = self.amount();
        if amount == Amount::default() {
            return;
        }
        match &self.client {
            // Progress that cannot be told is not worth failing for.
            Some(client) => drop(client.progress(&amount)),
            None if self.decided.progress => self.progress.update(&amount),
            None => {}
        }
    }

    /// What the executors of this worker have done.
    fn amount(&self) -> Amount {
        let (rounds, measure) = self.rounds.told();
        let read: Amount = self.seats.iter().map(|seat| seat.counts.amount()).sum();
        Amount {
            rounds,
            measure,
            ..read
        }
    }

    /// Ends the executors, and tells how it went.
    fn close(&mut self, error: Option<&Error>) {
        self.progress.finish();
        let text = self.summary.text(self.started.elapsed(), self.workers);
        match (&self.client, error) {
            // A coordinator that is gone needs not be told.
            (Some(client), None) => drop(client.finished(&text)),
            (Some(client), Some(error)) if !error.is_consequence() => {
                self.ending.store(true, Ordering::Relaxed);
                drop(client.failed(&dataflow::one_line(error)));
            }
            (None, None) if self.decided.progress => {
                for line in text.lines() {
                    eprintln!("updraft: {line}");
                }
            }
            _ => {}
        }
    }
}

impl Drop for Env {
    fn drop(&mut self) {
        for SeatHandle {
            commands,
            waker,
            thread,
            ..
        } in self.seats.drain(..)
        {
            drop(commands);
            if let Some(waker) = waker {
                waker.wake();
            }
            // An executor that panicked has said so.
            let _ = thread.join();
        }
    }
}

/// What schedulers know of the workers: each has a share of the cores of its host.
fn schedulable(entries: &[Entry]) -> Vec<Worker> {
    let mut first = 0;
    let worker = |entry: &Entry| {
        let ranks = first..first + entry.addresses.len() as Rank;
        first = ranks.end;
        let there = entries.iter().filter(|other| other.host == entry.host);
        Worker {
            ranks,
            host: entry.host.clone(),
            cores: (entry.cores / there.count() as u32).max(1),
            memory_bytes: entry.memory_bytes,
            attributes: entry.attributes.clone(),
            ..Worker::default()
        }
    };
    entries.iter().map(worker).collect()
}

/// Tells the other ranks, so that they do not wait for this one, unless it ends well.
pub(crate) struct Part<'e>(pub(crate) &'e Engine);

impl Part<'_> {
    /// The program of this rank has ended. Gives what came of it.
    pub(crate) fn end<R>(self, result: Result<R, Error>) -> Result<R, Error> {
        let engine = self.0;
        std::mem::forget(self);
        if let (Err(_), Some(cancelled)) = (&result, engine.cancelled()) {
            return Err(cancelled.into()); // Whatever the program has made of it.
        }
        if let Err(error) = &result
            && !error.is_consequence()
        {
            engine.give_up(&dataflow::one_line(error));
        }
        result
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        self.0.give_up("it panicked");
    }
}

/// What `program` gives. If that is nothing, the other ranks are told.
pub(crate) fn taking_part<R>(
    engine: &Engine,
    program: impl FnOnce() -> Result<R, Error>,
) -> Result<R, Error> {
    let part = Part(engine);
    part.end(program())
}

/// Has the coordinator's word to stop told to the program, which is ended if it does not end by itself.
/// One that is `ending` because of an error of its own gets to say so.
fn watch(
    client: &Client,
    reporter: Sender<Report>,
    controller: Controller,
    ending: Arc<AtomicBool>,
) -> Result<(), Error> {
    let cancelled = controller.clone();
    let on_cancel =
        move |worker, reason: &str| cancelled.learn(&format!("worker {worker}"), reason);
    client.watch(on_cancel, move |reason| {
        // Without a worker to hear it, the program is at its end.
        let _ = reporter.send(Report::Aborted {
            reason: reason.clone(),
        });
        thread::sleep(ABORT_GRACE);
        if !ending.load(Ordering::Relaxed) {
            let aborted = Error::Aborted { reason };
            let error = controller.error().map_or(aborted, Error::from);
            eprintln!("error: {error}");
            process::exit(error.exit_code().into());
        }
    })?;
    Ok(())
}
