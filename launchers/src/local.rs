//! A job whose workers are all processes of this machine.

use std::{
    ffi::OsString,
    io::{self, IsTerminal, PipeWriter},
    process::{Child, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use clap::ValueEnum;
use nix::{
    sys::{
        signal::{Signal, killpg},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::Pid,
};
use updraft::{
    coordinator::{Coordinator, Event},
    progress::{Amount, Progress},
};

use crate::{
    Error, input,
    output::{Console, Pump, Tail, Target},
    program, signals,
    verdict::{End, Failure, Outcome},
    watchdog::Watchdog,
    worker::Recipe,
};

/// From the first failure until the others are asked to end, which they may have done by then.
const TERMINATE_AFTER: Duration = Duration::from_millis(500);

/// From the first failure until they are killed.
const KILL_AFTER: Duration = Duration::from_millis(1200);

/// How long what the workers left behind may go on printing.
const LEFTOVER_TIME_MAX: Duration = Duration::from_millis(300);

/// How long to wait for what the workers said just before they ended.
const SETTLE_TIME_MAX: Duration = Duration::from_millis(300);

/// Runs a job and waits for its end, with this process's streams and signals. Returns the code to
/// exit with: 0, or that of the worker that failed first.
///
/// The thread that calls this must be the main one, and no other may have been started before.
///
/// # Errors
///
/// What kept the job from being started. Workers that were started by then are killed.
pub fn run(options: &Options) -> Result<u8, Error> {
    let [name, ..] = &options.job[..] else {
        return Err(Error::NotRunnable {
            program: "nothing".into(),
            found: "there is no program given".to_owned(),
        });
    };
    let program = program::find(name)?;
    let mut job = Job::new(options)?;
    job.start(&Recipe::new(program, options, &job.coordinator)?)?;
    job.wait();
    if options.quiet {
        job.summary.clear();
    }
    Ok(job.conclude())
}

/// What to run, and on how much of this machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many processes to start.
    pub workers: u32,
    /// How many executors each of them has, if not one a core.
    pub executors: Option<u32>,
    /// What carries their messages, if not what the environment says.
    pub transport: Option<Transport>,
    /// Where workers of other machines reach them, if not where they find right.
    pub interface: Option<String>,
    /// How long the machine of a worker may be silent, if not as long as the program says.
    pub silence_ms_max: Option<u64>,
    /// Whether what goes over TCP is encrypted, whatever the program says.
    pub tls: bool,
    /// How much memory each may use for messages and state, if not what it finds right.
    pub memory_bytes: Option<u64>,
    /// The directories for what that has no room for, if not where the program says.
    pub spill: Vec<String>,
    /// What decides where the instances of tasks run, if not what the program says.
    pub scheduler: Option<Scheduler>,
    /// What sets workers apart for it.
    pub attributes: Vec<Attributes>,
    /// Whether worker 0 says what each run does and where.
    pub explain: bool,
    /// Whether workers measure what tasks do.
    pub metrics: bool,
    /// Whether what the job did is left untold.
    pub quiet: bool,
    /// The program, and its arguments.
    pub job: Vec<OsString>,
}

/// A scheduler that there is in every job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Scheduler {
    /// Evenly, over the ranks in order.
    RoundRobin,
    /// On the first worker that has room.
    FirstFit,
    /// Where the bytes are.
    Locality,
}

/// What sets workers apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// The worker, if it is not all of them.
    pub worker: Option<u32>,
    /// Attributes, with commas between them.
    pub list: String,
}

impl Scheduler {
    /// The name by which workers know it.
    fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::FirstFit => "first-fit",
            Self::Locality => "locality",
        }
    }
}

impl Options {
    /// What every worker finds in its environment because of them.
    pub(crate) fn variables(&self) -> Vec<(&'static str, String)> {
        let optional = [
            ("UPDRAFT_EXECUTORS", self.executors.map(|n| n.to_string())),
            ("UPDRAFT_MEMORY", self.memory_bytes.map(|n| n.to_string())),
            ("UPDRAFT_INTERFACE", self.interface.clone()),
            (
                "UPDRAFT_SILENCE_MS",
                self.silence_ms_max.map(|n| n.to_string()),
            ),
            (
                "UPDRAFT_SPILL_DIRS",
                (!self.spill.is_empty()).then(|| self.spill.join(":")),
            ),
            ("UPDRAFT_TLS", self.tls.then(|| "1".to_owned())),
            ("UPDRAFT_EXPLAIN", self.explain.then(|| "1".to_owned())),
            ("UPDRAFT_METRICS", self.metrics.then(|| "1".to_owned())),
            (
                "UPDRAFT_SCHEDULER",
                self.scheduler.map(|scheduler| scheduler.name().to_owned()),
            ),
            (
                "UPDRAFT_TRANSPORT",
                self.transport.map(|transport| transport.name().to_owned()),
            ),
        ];
        let given = optional
            .into_iter()
            .filter_map(|(name, value)| Some((name, value?)));
        [("UPDRAFT_WORKERS", self.workers.to_string())]
            .into_iter()
            .chain(given)
            .collect()
    }

    /// The attributes of a worker, with commas between them.
    pub(crate) fn attributes_of(&self, worker: u32) -> String {
        let of_worker = self.attributes.iter().filter(|attributes| {
            let only = attributes.worker;
            only.is_none_or(|only| only == worker)
        });
        let lists: Vec<_> = of_worker.map(|attributes| &*attributes.list).collect();
        lists.join(",")
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workers: 1,
            executors: None,
            transport: None,
            interface: None,
            silence_ms_max: None,
            tls: false,
            memory_bytes: None,
            spill: Vec::new(),
            scheduler: None,
            attributes: Vec::new(),
            explain: false,
            metrics: false,
            quiet: false,
            job: Vec::new(),
        }
    }
}

/// What carries the messages between workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Transport {
    /// The fastest that both ends share
    Auto,
    /// Shared memory
    Shm,
    /// TCP sockets
    Tcp,
    /// RDMA devices
    Rdma,
}

impl Transport {
    fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }
}

/// What a launcher waits for.
#[derive(Debug)]
enum Happening {
    /// The coordinator heard something.
    Heard(Event),
    /// A worker's process ended; `None` if by a signal without a name.
    Ended { worker: u32, end: Option<End> },
    /// This process got a signal.
    Signalled(Signal),
    /// All that the workers printed is printed; these are their last lines.
    Printed(Vec<Tail>),
}

/// A job under way.
#[derive(Debug)]
struct Job {
    coordinator: Coordinator,
    workers: Vec<Worker>,
    /// Workers there should be.
    size: u32,
    happenings: Receiver<Happening>,
    sender: Sender<Happening>,
    progress: Arc<Progress>,
    watchdog: Option<Watchdog>,
    stage: Stage,
    /// The last signal by which the user asked the job to stop, and how many there were.
    demands: (Option<Signal>, u32),
    summary: String,
    /// What is said if the job ends because a worker has cancelled it.
    cancelled: Option<String>,
    tails: Option<Vec<Tail>>,
    /// Dropped when the workers have ended, which tells the pump.
    drain: Option<PipeWriter>,
}

/// How far the stopping of a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nothing has failed.
    Running,
    /// The coordinator told the workers to stop.
    Aborted(Instant),
    /// They were asked to end.
    Terminated(Instant),
    /// They were killed.
    Killed,
}

impl Stage {
    /// When the next step is due.
    fn deadline(self) -> Option<Instant> {
        match self {
            Self::Running | Self::Killed => None,
            Self::Aborted(since) => Some(since + TERMINATE_AFTER),
            Self::Terminated(since) => Some(since + KILL_AFTER),
        }
    }
}

/// One worker's process, the leader of its group.
#[derive(Debug)]
struct Worker {
    process: Child,
    registered: bool,
    failed: Option<Instant>,
    message: Option<String>,
    ended: bool,
    /// Whether it succeeded while the job ran.
    done: bool,
    /// Whether we sent a signal to end it.
    stopped: bool,
}

impl Worker {
    fn new(process: Child) -> Self {
        Self {
            process,
            registered: false,
            failed: None,
            message: None,
            ended: false,
            done: false,
            stopped: false,
        }
    }

    /// The process group. It stays ours until the process is reaped, which comes last.
    fn group(&self) -> Pid {
        Pid::from_raw(self.process.id().cast_signed())
    }

    fn signal(&self, signal: Signal) {
        // A group that has ended needs no signal.
        let _ = killpg(self.group(), signal);
    }

    /// Reaps the process, which has ended.
    fn outcome(&mut self) -> io::Result<Outcome> {
        Ok(Outcome {
            failed: self.failed,
            message: self.message.take(),
            end: self.process.wait()?.into(),
            stopped: self.stopped,
            done: self.done,
        })
    }
}

impl Job {
    /// Everything but the workers. The signals come first, so that all threads block them.
    fn new(options: &Options) -> Result<Self, Error> {
        let (sender, happenings) = mpsc::channel();
        signals::forward(teller(sender.clone(), Happening::Signalled))?;
        let progress = Arc::new(Progress::new());
        let coordinator = Coordinator::start(
            options.workers,
            listener(sender.clone(), Arc::clone(&progress), options.workers),
        )
        .map_err(Error::io("start the coordinator"))?;
        Ok(Self {
            coordinator,
            workers: Vec::new(),
            size: options.workers,
            happenings,
            sender,
            progress,
            watchdog: Some(Watchdog::start()?),
            stage: Stage::Running,
            demands: (None, 0),
            summary: String::new(),
            cancelled: None,
            tails: None,
            drain: None,
        })
    }

    /// Starts all workers, and what carries their output.
    fn start(&mut self, recipe: &Recipe) -> Result<(), Error> {
        let (ended, drain) = io::pipe().map_err(Error::io("make a pipe"))?;
        self.drain = Some(drain);
        let mut pump = Pump::new(self.size, Arc::clone(&self.progress), ended);
        for worker in 0..self.size {
            self.start_worker(worker, recipe, &mut pump)?;
        }
        let printed = teller(self.sender.clone(), Happening::Printed);
        spawn("output", move || printed(pump.run()))
    }

    fn start_worker(&mut self, worker: u32, recipe: &Recipe, pump: &mut Pump) -> Result<(), Error> {
        let mut process = recipe.start(worker, input_of(worker))?;
        if let Some(pipe) = process.stdin.take() {
            spawn("input", move || input::relay(pipe))?;
        }
        if let Some(pipe) = process.stdout.take() {
            pump.add(worker, pipe, Target::Out);
        }
        if let Some(pipe) = process.stderr.take() {
            pump.add(worker, pipe, Target::Err);
        }
        let started = Worker::new(process);
        let group = started.group();
        self.workers.push(started);
        if let Some(watchdog) = &mut self.watchdog {
            watchdog.guard(group);
        }
        let ended = teller(self.sender.clone(), move |end| Happening::Ended {
            worker,
            end,
        });
        spawn("worker", move || ended(wait_for(group)))
    }

    /// Waits until all workers have ended and all that they printed is printed.
    fn wait(&mut self) {
        while self.workers.iter().any(|worker| !worker.ended) {
            match self.next(self.stage.deadline()) {
                Some(happening) => self.handle(happening),
                None => self.stop_harder(),
            }
        }
        self.wait_for_leftovers();
        self.kill_all();
        self.drain = None;
        self.coordinator.settle(SETTLE_TIME_MAX);
        while self.tails.is_none() && self.demands.1 < 2 {
            if let Some(happening) = self.next(None) {
                self.handle(happening);
            }
        }
        while let Ok(happening) = self.happenings.try_recv() {
            self.handle(happening);
        }
        self.progress.finish();
    }

    /// Lets what the workers left behind print for a moment.
    fn wait_for_leftovers(&mut self) {
        let deadline = Instant::now() + LEFTOVER_TIME_MAX;
        while self.tails.is_none() && self.stage != Stage::Killed {
            match self.next(Some(deadline)) {
                Some(happening) => self.handle(happening),
                None => break,
            }
        }
    }

    /// The next thing that happens, or `None` once the deadline has passed.
    fn next(&self, deadline: Option<Instant>) -> Option<Happening> {
        let Some(deadline) = deadline else {
            return self.happenings.recv().ok();
        };
        let left = deadline.saturating_duration_since(Instant::now());
        match self.happenings.recv_timeout(left) {
            Ok(happening) => Some(happening),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => unreachable!("we hold a sender"),
        }
    }

    fn handle(&mut self, happening: Happening) {
        match happening {
            Happening::Heard(event) => self.hear(event),
            Happening::Ended { worker, end } => self.note_end(worker, end),
            Happening::Signalled(signal) => self.pass_on(signal),
            Happening::Printed(tails) => self.tails = Some(tails),
        }
    }

    fn hear(&mut self, event: Event) {
        match event {
            Event::Registered { worker } => {
                self.workers[worker as usize].registered = true;
                self.miss_the_unregistered();
            }
            Event::Failed { worker, message } => {
                let reason = format!("worker {worker} failed: {message}");
                self.fail(worker, &reason, Some(message));
            }
            Event::Finished { worker: 0, summary } => self.summary = summary,
            Event::Cancelled { worker, reason } => {
                let text = format!("updraft: worker {worker} cancelled the job: {reason}\n");
                self.cancelled = Some(text);
            }
            Event::FellBack { worker, reason } => self.say(&format!(
                "updraft: between nodes, messages go over TCP and not RDMA: worker {worker}: {reason}\n"
            )),
            Event::Refused { reason } => self.say(&format!("updraft: {reason}\n")),
            // A process that is lost is about to end, and its end tells more.
            Event::Lost { .. } | Event::Finished { .. } | Event::Progress { .. } => {}
        }
    }

    fn note_end(&mut self, worker: u32, end: Option<End>) {
        self.workers[worker as usize].ended = true;
        match end {
            Some(end) if end.is_success() => {
                self.workers[worker as usize].done = self.stage == Stage::Running;
                self.miss_the_unregistered();
            }
            Some(end) => self.fail(worker, &format!("worker {worker} {end}"), None),
            None => self.fail(worker, &format!("worker {worker} was killed"), None),
        }
    }

    /// A worker that ended before it registered would leave those that did waiting for ever.
    fn miss_the_unregistered(&mut self) {
        if self.stage != Stage::Running || !self.workers.iter().any(|worker| worker.registered) {
            return;
        }
        let missing = |worker: &Worker| worker.ended && !worker.registered;
        if let Some(worker) = self.workers.iter().position(missing) {
            let worker = u32::try_from(worker).expect("workers are counted by u32");
            let message = "it ended before it joined the job".to_owned();
            self.fail(
                worker,
                &format!("worker {worker} never came"),
                Some(message),
            );
        }
    }

    /// Notes a failure, and if it is the first has the others stopped.
    fn fail(&mut self, worker: u32, reason: &str, message: Option<String>) {
        let now = Instant::now();
        let failed = &mut self.workers[worker as usize];
        failed.failed.get_or_insert(now);
        if message.is_some() {
            failed.message = message;
        }
        if self.stage == Stage::Running {
            self.stage = Stage::Aborted(now);
            self.coordinator.abort(reason);
        }
    }

    /// Takes the next step of stopping the job.
    fn stop_harder(&mut self) {
        match self.stage {
            Stage::Aborted(since) => {
                self.stage = Stage::Terminated(since);
                self.stop_all(Signal::SIGTERM);
            }
            Stage::Terminated(_) => self.kill_all(),
            Stage::Running | Stage::Killed => {}
        }
    }

    fn pass_on(&mut self, signal: Signal) {
        if matches!(signal, Signal::SIGHUP) {
            self.demands.0.get_or_insert(signal);
        }
        if signals::is_demand(signal) {
            self.demands.0.get_or_insert(signal);
            self.demands.1 += 1;
        }
        if self.demands.1 > 1 {
            self.kill_all();
        } else {
            self.signal_all(signal);
        }
    }

    /// Kills every group, and with it what workers that have ended left behind.
    fn kill_all(&mut self) {
        self.stage = Stage::Killed;
        self.stop_all(Signal::SIGKILL);
    }

    /// Sends a signal that ends the workers, and holds none of them responsible for it.
    fn stop_all(&mut self, signal: Signal) {
        for worker in &mut self.workers {
            worker.stopped |= !worker.ended;
        }
        self.signal_all(signal);
    }

    fn signal_all(&self, signal: Signal) {
        for worker in &self.workers {
            worker.signal(signal);
        }
    }

    /// Reaps the workers, tells the user how the job ended, and says what to exit with.
    fn conclude(mut self) -> u8 {
        // It goes before the processes are reaped: from then on their numbers are anyone's.
        self.watchdog = None;
        let outcomes: io::Result<Vec<Outcome>> = self
            .workers
            .drain(..)
            .map(|mut worker| worker.outcome())
            .collect();
        let outcomes = outcomes.expect("our children are ours to wait for");
        let tails = self.tails.take().unwrap_or_default();
        match (Failure::of(&outcomes), self.demands.0) {
            (None, _) => self.conclude_well(),
            (Some(failure), _) if failure.is_cancelled() && self.cancelled.is_some() => {
                self.say(self.cancelled.as_deref().unwrap_or_default());
                failure.exit_code()
            }
            (Some(failure), None) => {
                self.print(&failure.report(&tails));
                failure.exit_code()
            }
            (Some(failure), Some(signal)) => {
                self.print(&failure.report_after(signal));
                failure.exit_code()
            }
        }
    }

    fn conclude_well(&self) -> u8 {
        if !self.summary.is_empty() {
            self.say(&format!("{}\n", self.summary.trim_end()));
        }
        0
    }

    fn say(&self, text: &str) {
        self.print(text.as_bytes());
    }

    fn print(&self, text: &[u8]) {
        let mut console = Console::new(Arc::clone(&self.progress));
        console.page(Target::Err).extend_from_slice(text);
        console.print();
    }
}

/// Kills what is left, when the launcher itself failed.
impl Drop for Job {
    fn drop(&mut self) {
        self.signal_all(Signal::SIGKILL);
        for worker in &mut self.workers {
            // If it cannot be waited for, the end of this process will do.
            let _ = worker.process.wait();
        }
    }
}

/// How far each worker is.
#[derive(Debug)]
struct Board {
    of_worker: Mutex<Vec<Amount>>,
}

impl Board {
    fn new(workers: u32) -> Self {
        Self {
            of_worker: Mutex::new(vec![Amount::default(); workers as usize]),
        }
    }

    /// Notes how far one worker is. Returns how far all are together.
    fn note(&self, worker: u32, amount: Amount) -> Amount {
        let mut of_worker = self
            .of_worker
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        of_worker[worker as usize] = amount;
        of_worker.iter().copied().sum()
    }
}

/// Draws the progress on the spot, and passes on all else that the coordinator hears.
fn listener(
    sender: Sender<Happening>,
    progress: Arc<Progress>,
    workers: u32,
) -> impl Fn(Event) + Send + Sync + 'static {
    let board = Board::new(workers);
    let heard = teller(sender, Happening::Heard);
    move |event| match event {
        Event::Progress { worker, amount } => progress.update(&board.note(worker, amount)),
        event => heard(event),
    }
}

/// A function that reports what happened. Once the job is over nobody listens, and that is fine.
fn teller<T>(sender: Sender<Happening>, happening: impl Fn(T) -> Happening) -> impl Fn(T) {
    move |detail| {
        let _ = sender.send(happening(detail));
    }
}

/// Worker 0 reads what the launcher would. A terminal goes through us, since it lets the group in
/// its foreground read, which is ours.
fn input_of(worker: u32) -> Stdio {
    match worker {
        0 if io::stdin().is_terminal() => Stdio::piped(),
        0 => Stdio::inherit(),
        _ => Stdio::null(),
    }
}

/// Waits for the end of a process, and leaves it to be reaped.
fn wait_for(process: Pid) -> Option<End> {
    loop {
        match waitid(
            Id::Pid(process),
            WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT,
        ) {
            Ok(WaitStatus::Exited(_, code)) => return Some(End::Exited(code)),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Some(End::Killed(signal as i32)),
            Err(nix::errno::Errno::EINTR) => {}
            Ok(_) | Err(_) => return None,
        }
    }
}

fn spawn(name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), Error> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(run)
        .map(drop)
        .map_err(Error::io("start a thread"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_progress_of_a_job_is_the_sum_over_its_workers() {
        let board = Board::new(2);
        let read = |records| Amount {
            records,
            ..Amount::default()
        };
        assert_eq!(board.note(0, read(1)), read(1));
        assert_eq!(board.note(1, read(10)), read(11));
        assert_eq!(board.note(0, read(2)), read(12));
        assert_eq!(board.note(0, read(u64::MAX)), read(u64::MAX));
    }

    #[test]
    fn only_what_was_asked_for_is_put_in_the_environment() {
        let plain = Options::default().variables();
        assert_eq!(plain, [("UPDRAFT_WORKERS", "1".to_owned())]);
        let full = Options {
            workers: 2,
            executors: Some(3),
            transport: Some(Transport::Tcp),
            interface: Some("::1".into()),
            silence_ms_max: Some(700),
            tls: true,
            memory_bytes: Some(4096),
            spill: vec!["/a".into(), "/b".into()],
            ..Options::default()
        };
        let expected = [
            ("UPDRAFT_WORKERS", "2"),
            ("UPDRAFT_EXECUTORS", "3"),
            ("UPDRAFT_MEMORY", "4096"),
            ("UPDRAFT_INTERFACE", "::1"),
            ("UPDRAFT_SILENCE_MS", "700"),
            ("UPDRAFT_SPILL_DIRS", "/a:/b"),
            ("UPDRAFT_TLS", "1"),
            ("UPDRAFT_TRANSPORT", "tcp"),
        ];
        let expected = expected.map(|(name, value)| (name, value.to_owned()));
        assert_eq!(full.variables(), expected);
    }
}
