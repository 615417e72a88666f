//! One pinned thread: an event loop that turns messages into progress.

use std::{
    any::Any,
    cell::{Cell, RefCell},
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError},
    },
    thread,
    time::{Duration, Instant},
};

use collectives::Engine;
use dataflow::{Operators, Progress, Run, Site, TaskGraph, TaskTotals, Totals, run_after, spill};
use transport::{Address, Arena, Buffer, Event, Fabric, Ledger, Rank, Waker};

use crate::{
    Error, affinity,
    control::Controller,
    counters::Counts,
    error::panicked_at,
    helpers::{Here, Pool},
    links::Links,
    repeat::Repeat,
};

/// How often an executor that works looks at the time and at the sockets.
const LOOK_INTERVAL: Duration = Duration::from_micros(100);
/// The longest an executor sleeps without looking at the time.
const SLEEP_MAX: Duration = Duration::from_millis(500);
/// Turns of a job between two looks at the time and for commands, which take as long as a short turn.
const TURNS_A_LOOK: u32 = 4;
/// How long an executor that ends tries to send what is left.
const FLUSH_MAX: Duration = Duration::from_secs(1);

/// What an executor is made of.
pub(crate) struct Seat {
    pub(crate) links: transport::Config,
    /// Ranks in each process.
    pub(crate) executors: u32,
    /// The number of its core, if it is to stay there.
    pub(crate) core: Option<usize>,
    pub(crate) arena_bytes: u64,
    pub(crate) ledger: Ledger,
    pub(crate) spill: spill::Config,
    pub(crate) counts: Counts,
    pub(crate) controller: Controller,
    pub(crate) pool: Pool,
    pub(crate) commands: Receiver<Command>,
    pub(crate) reports: Sender<Report>,
}

/// What an executor is told. Whoever tells it wakes it.
pub(crate) enum Command {
    /// Where all ranks are.
    Join(Vec<Address>),
    /// Take part in run `number` of a graph, and in those after it as long as `repeat` says so.
    Run {
        number: u32,
        graph: TaskGraph,
        repeat: Option<Arc<Repeat>>,
    },
    /// Do this with the links.
    Work(Work),
}

/// What a program does itself on every executor. It keeps its own result.
#[derive(Clone)]
pub(crate) enum Work {
    /// With the links alone.
    Links(Arc<OnLinks>),
    /// With what makes operations of groups go on.
    Groups(Arc<InGroups>),
}

type OnLinks = dyn Fn(&mut Fabric) -> Result<(), Error> + Send + Sync;
type InGroups = dyn Fn(&Engine, &Means) -> Result<(), Error> + Send + Sync;

/// What more ranks on the thread of an executor are made of.
pub(crate) struct Means {
    pub(crate) links: transport::Config,
    pub(crate) arena_bytes: u64,
    pub(crate) ledger: Ledger,
    pub(crate) controller: Controller,
}

/// What an executor has to say.
pub(crate) enum Report {
    /// It can be reached.
    Ready {
        rank: Rank,
        address: Address,
        waker: Waker,
    },
    /// Its run has ended.
    Ended { result: Result<Done, Error> },
    /// The coordinator told the worker to stop. (No executor says this.)
    Aborted { reason: String },
}

/// What was done.
#[derive(Default)]
pub(crate) struct Done {
    /// Runs of graphs.
    pub(crate) runs: u32,
    /// By each rank in these runs.
    pub(crate) totals: Vec<Totals>,
    /// By the instances of each task in these runs, if that is measured.
    pub(crate) by_task: Vec<TaskTotals>,
    /// On the links of this executor so far.
    pub(crate) links: Links,
}

/// The thread of an executor, from its start to its end.
pub(crate) fn main(seat: Seat) {
    if let Some(core) = seat.core {
        affinity::pin(core);
    }
    let (rank, reports) = (seat.links.rank, seat.reports.clone());
    match catching(rank, || Executor::new(seat)) {
        Ok(mut executor) => executor.serve(),
        Err(error) => tell(&reports, Report::Ended { result: Err(error) }),
    }
}

/// Reports, to a worker that may have gone.
fn tell(reports: &Sender<Report>, report: Report) {
    // Without a worker, the closed command channel ends us next.
    let _ = reports.send(report);
}

/// A graph that runs, maybe again and again.
struct Repeated {
    repeat: Option<Arc<Repeat>>,
    /// Runs that this executor is done with.
    runs: u32,
    /// Whether it is in none: all its are done.
    is_between: bool,
    /// Whether it has learned then how to go on.
    is_decided: bool,
}

struct Executor {
    rank: Rank,
    site: Site,
    means: Means,
    controller: Controller,
    commands: Receiver<Command>,
    reports: Sender<Report>,
    run: Option<Run>,
    /// The graph that runs, and what has been done of it.
    job: Option<Repeated>,
    /// What makes operations of groups go on, once there has been one.
    engine: Option<Engine>,
    /// Messages of runs that this rank has not started.
    early: VecDeque<(Rank, Buffer)>,
    /// Turns until the next look for commands, and whether there was none since it last found something to do.
    until_asked: u32,
    has_asked: bool,
    /// Whether the last turn was spent on the run, so that the sockets have not been looked at since, and when they were.
    worked: bool,
    looked: Duration,
    /// How the first peer went that is gone. Runs that begin after that fail.
    gone: Option<transport::Error>,
    /// Whether it has been said why RDMA is not used.
    told_fall_back: Cell<bool>,
    started: Instant,
}

impl Executor {
    fn new(seat: Seat) -> Result<Self, Error> {
        let rank = seat.links.rank;
        let means = Means {
            links: seat.links.clone(),
            arena_bytes: seat.arena_bytes,
            ledger: seat.ledger.clone(),
            controller: seat.controller.clone(),
        };
        let arena = Arena::new(&seat.ledger, seat.arena_bytes)?;
        let fabric = Fabric::new(seat.links, arena)?;
        if let (Some(address), Some(waker)) = (fabric.address(), fabric.waker()?) {
            tell(
                &seat.reports,
                Report::Ready {
                    rank,
                    address,
                    waker,
                },
            );
        }
        let helpers = Here {
            pool: seat.pool,
            waker: fabric.waker()?,
        };
        let site = Site {
            helpers: Rc::new(helpers),
            fabric: Rc::new(RefCell::new(fabric)),
            executors: seat.executors,
            ledger: seat.ledger,
            counters: Rc::new(seat.counts),
            spill: Rc::new(seat.spill),
        };
        Ok(Self {
            rank,
            site,
            means,
            controller: seat.controller,
            commands: seat.commands,
            reports: seat.reports,
            run: None,
            job: None,
            engine: None,
            early: VecDeque::new(),
            until_asked: 0,
            has_asked: false,
            worked: false,
            looked: Duration::ZERO,
            gone: None,
            told_fall_back: Cell::new(false),
            started: Instant::now(),
        })
    }

    /// Serves until the worker lets go of the command channel.
    fn serve(&mut self) {
        loop {
            let done = match self.ask() {
                // One wake-up may stand for several commands.
                Ok(command) => catching(self.rank, || self.obey(command).map(|()| true)),
                Err(TryRecvError::Empty) => catching(self.rank, || self.turn()),
                Err(TryRecvError::Disconnected) => break,
            };
            match done {
                Ok(true) => {}
                Ok(false) => self.rest(),
                Err(error) => self.fail(error),
            }
        }
        self.flush();
    }

    /// The next command. While a job runs there is none but to end, and that can wait for a few turns.
    fn ask(&mut self) -> Result<Command, TryRecvError> {
        if self.job.is_some() && self.until_asked > 0 {
            self.until_asked -= 1;
            return Err(TryRecvError::Empty);
        }
        self.until_asked = TURNS_A_LOOK;
        self.has_asked = true;
        self.commands.try_recv()
    }

    fn obey(&mut self, command: Command) -> Result<(), Error> {
        match command {
            Command::Join(book) => {
                self.site.fabric.borrow_mut().join(&book)?;
                self.tell_fall_back();
                Ok(())
            }
            Command::Run {
                number,
                graph,
                repeat,
            } => {
                let is_repeated = repeat.is_some();
                self.job = Some(Repeated {
                    repeat,
                    runs: 0,
                    is_between: false,
                    is_decided: false,
                });
                self.start(number, &graph, is_repeated)
            }
            Command::Work(work) => self.work(&work),
        }
    }

    fn start(&mut self, number: u32, graph: &TaskGraph, is_repeated: bool) -> Result<(), Error> {
        let mut run = match Run::new(graph, number, &self.site) {
            Ok(run) => run,
            Err(error) => {
                dataflow::tell_failure(&mut self.site.fabric.borrow_mut(), number, &error);
                return Err(error.into());
            }
        };
        if is_repeated {
            run.go_ahead();
        }
        self.run = Some(run);
        self.take_early()
    }

    /// Gives a run that begins what came for it before.
    fn take_early(&mut self) -> Result<(), Error> {
        let Some(run) = &mut self.run else {
            return Ok(());
        };
        if let Some(error) = &self.gone {
            return Err(run.tell_of_loss(copy_of(error).into()).into());
        }
        for _ in 0..self.early.len() {
            match self.early.pop_front() {
                Some((from, message)) if run.wants(message.tag()) => run.receive(from, message)?,
                other => self.early.extend(other),
            }
        }
        Ok(())
    }

    fn work(&mut self, work: &Work) -> Result<(), Error> {
        match work {
            Work::Links(work) => work(&mut self.site.fabric.borrow_mut())?,
            Work::Groups(work) => {
                if let Some(error) = &self.gone {
                    return Err(copy_of(error).into());
                }
                let engine = self.engine().clone();
                work(&engine, &self.means)?;
                while let Some(message) = engine.take_foreign() {
                    self.early.push_back(message);
                }
            }
        }
        let result = Ok(Done {
            links: self.links(),
            ..Done::default()
        });
        tell(&self.reports, Report::Ended { result });
        Ok(())
    }

    /// What the links have carried. A job that has had no rest has said nothing yet of how.
    fn links(&self) -> Links {
        self.tell_fall_back();
        Links::of(&self.site.fabric.borrow(), self.site.executors)
    }

    /// Says, if it is so and has not been said, that RDMA would carry messages and does not.
    fn tell_fall_back(&self) {
        if !self.told_fall_back.get()
            && let Some(why) = self.site.fabric.borrow().why_not_rdma()
        {
            self.told_fall_back.set(true);
            self.controller.tell_fall_back(&why.to_string());
        }
    }

    fn engine(&mut self) -> &Engine {
        let (site, spin, started) = (&self.site, self.means.links.spin, self.started);
        let controller = &self.controller;
        let fabric = &site.fabric;
        let early = &mut self.early;
        self.engine.get_or_insert_with(|| {
            let engine = Engine::new(fabric.clone(), spin, move || started.elapsed());
            engine.attend(Rc::new(Operators::new(site.clone())));
            controller.may_end(&engine);
            let messages = std::mem::take(early).into_iter();
            let others = messages.filter_map(|(from, message)| {
                let message = engine.offer(from, message)?;
                Some((from, message))
            });
            early.extend(others);
            engine
        })
    }

    /// Takes in what has happened and goes on; whether anything was done.
    fn turn(&mut self) -> Result<bool, Error> {
        let mut busy = false;
        if let Some(engine) = &self.engine {
            engine.flush();
        }
        if self.until_asked == TURNS_A_LOOK && std::mem::take(&mut self.worked) {
            let now = self.started.elapsed();
            if now - self.looked >= LOOK_INTERVAL {
                self.looked = now;
                let mut fabric = self.site.fabric.borrow_mut();
                fabric.tick(now);
                fabric.refresh()?;
            }
        }
        loop {
            let event = self.site.fabric.borrow_mut().receive();
            let event = event.map_err(transport::Error::from)?;
            let Some(event) = event else { break };
            busy = true;
            self.take(event)?;
        }
        if let (Some(run), Some((by, reason))) = (&mut self.run, self.controller.cancelled()) {
            return Err(run.cancel(&by, &reason).into());
        }
        if self.job.as_ref().is_some_and(|job| job.is_between) {
            return Ok(self.go_on()? || busy);
        }
        let Some(run) = &mut self.run else {
            return Ok(busy);
        };
        if run.is_live() {
            run.tick(self.started.elapsed());
        }
        run.pause(self.controller.is_paused());
        let progress = run.poll()?;
        self.worked |= progress == Progress::Made;
        match progress {
            Progress::Made => Ok(true),
            Progress::None => Ok(busy),
            Progress::Done => {
                self.end_run()?;
                self.go_on()?;
                Ok(true)
            }
        }
    }

    /// A run has ended. The last executor of the worker to get here decides whether there is another.
    fn end_run(&mut self) -> Result<(), Error> {
        let Some(job) = &mut self.job else {
            return Ok(());
        };
        job.runs = job.runs.wrapping_add(1);
        job.is_between = true;
        let Some(repeat) = &job.repeat else {
            self.end_job();
            return Ok(());
        };
        match repeat.end(job.runs) {
            Ok(true) => {
                let fabric = self.site.fabric.borrow();
                let first = self.rank - self.rank % self.site.executors;
                for other in (first..first + self.site.executors).filter(|&rank| rank != self.rank)
                {
                    fabric.ring(other);
                }
                Ok(())
            }
            Ok(false) => Ok(()),
            Err(error) => {
                let number = self
                    .run
                    .as_ref()
                    .map_or(0, |run| run_after(run.number(), 1));
                if !error.is_consequence() {
                    let cause = dataflow::Error::Remote {
                        rank: self.rank,
                        message: dataflow::one_line(&error),
                    };
                    dataflow::tell_failure(&mut self.site.fabric.borrow_mut(), number, &cause);
                }
                Err(error)
            }
        }
    }

    /// Starts the next run if that has been decided, or says what all were; whether anything was done.
    fn go_on(&mut self) -> Result<bool, Error> {
        let (Some(job), Some(run)) = (&mut self.job, &mut self.run) else {
            return Ok(false);
        };
        let Some(repeat) = job
            .repeat
            .as_ref()
            .filter(|repeat| repeat.is_decided(job.runs))
        else {
            return Ok(false);
        };
        job.is_decided = true;
        run.poll()?;
        if !repeat.goes_on() && run.is_over() {
            self.end_job();
            return Ok(true);
        }
        if !repeat.goes_on() || !run.may_go_on() {
            return Ok(false);
        }
        (job.is_between, job.is_decided) = (false, false);
        run.again()?;
        self.take_early()?;
        Ok(true)
    }

    /// Reports what the runs of a graph have done.
    fn end_job(&mut self) {
        let (Some(Repeated { runs, .. }), Some(run)) = (self.job.take(), self.run.take()) else {
            return;
        };
        let (totals, by_task) = (run.totals(), run.by_task());
        // Before the program learns of it: then nothing of the run is in use any more.
        drop(run);
        let links = self.links();
        let done = Done {
            runs,
            totals,
            by_task,
            links,
        };
        tell(&self.reports, Report::Ended { result: Ok(done) });
    }

    fn take(&mut self, event: Event) -> Result<(), Error> {
        if let (Event::Ended { peer, error }, Some(engine)) = (&event, &self.engine) {
            engine.note_loss(*peer, copy_of(error).into());
        }
        match (event, &mut self.run) {
            (Event::Message { from, buffer }, Some(run)) if run.wants(buffer.tag()) => {
                Ok(run.receive(from, buffer)?)
            }
            (Event::Message { from, buffer }, _) => {
                let message = match &self.engine {
                    Some(engine) => engine.offer(from, buffer),
                    None => Some(buffer),
                };
                self.early.extend(message.map(|message| (from, message)));
                Ok(())
            }
            (Event::Ended { peer, error }, Some(run)) => {
                let needed = run.ended(peer, copy_of(&error));
                self.gone.get_or_insert(*error);
                Ok(needed?)
            }
            (Event::Ended { error, .. }, None) => {
                self.gone.get_or_insert(*error);
                Ok(())
            }
            // Strangers at the door are no concern of the job.
            (Event::Refused { .. } | Event::Completed { .. }, _) => Ok(()),
        }
    }

    /// Ends the run that failed, and tells everyone.
    fn fail(&mut self, mut error: Error) {
        if let (Some(run), Error::Panicked { operator, .. }) = (&self.run, &mut error) {
            *operator = run.panicked_in();
        }
        if let Error::Dataflow(dataflow::Error::Cancelled { by, reason }) = &error {
            self.controller.learn(by, reason);
        }
        // What was cancelled was so on all ranks, whatever comes of it.
        let cancelled = self.controller.error();
        let is_told = cancelled.is_some();
        let error = cancelled.map_or(error, Error::from);
        if let (Some(run), Error::Dataflow(cause)) = (&self.run, &error)
            && !error.is_consequence()
            && !is_told
        {
            run.fail(cause);
        }
        if let Error::Panicked {
            message, operator, ..
        } = &error
            && let Some(run) = &self.run
        {
            let message = format!("it panicked{}: {message}", panicked_at(operator.as_deref()));
            run.fail(&dataflow::Error::Remote {
                rank: self.rank,
                message,
            });
        }
        // Before the run's state is given up, which takes time: a peer's end must not be told first.
        tell(&self.reports, Report::Ended { result: Err(error) });
        self.run = None;
        self.job = None;
    }

    /// Waits for something to do.
    fn rest(&mut self) {
        let mut fabric = self.site.fabric.borrow_mut();
        // Between two runs of a repeated graph there is something to do as soon as the others of the worker are there too.
        let between = self.job.as_ref();
        let between = between.filter(|job| job.is_between && !job.is_decided);
        let next = between.and_then(|job| Some((job.repeat.as_ref()?, job.runs)));
        let is_decided = || next.is_some_and(|(repeat, runs)| repeat.is_decided(runs));
        let rested = match fabric.spin(is_decided) {
            Ok(true) => {
                // What was not looked at before a sleep is after a while.
                (self.worked, self.has_asked) = (true, false);
                return;
            }
            // Whoever gave it a command may have woken it when it looked for something else.
            Ok(false) if !self.has_asked => {
                self.until_asked = 0;
                return;
            }
            Ok(false) => {
                drop(fabric);
                self.tell_fall_back();
                fabric = self.site.fabric.borrow_mut();
                let now = self.started.elapsed();
                fabric.tick(now);
                let due = self.run.as_ref().and_then(Run::due);
                let timeout = due.map_or(SLEEP_MAX, |due| due.saturating_sub(now).min(SLEEP_MAX));
                self.has_asked = false;
                fabric.sleep(Some(timeout), is_decided)
            }
            Err(error) => Err(error),
        };
        if let Err(error) = rested {
            drop(fabric);
            self.fail(error.into());
        }
    }

    /// Sends what is left, so that peers do not miss it.
    fn flush(&mut self) {
        let deadline = Instant::now() + FLUSH_MAX;
        let is_flushed =
            |fabric: &RefCell<Fabric>| matches!(fabric.borrow_mut().flush(), Ok(true) | Err(_));
        let told = || self.engine.as_ref().is_none_or(Engine::flush);
        while !(told() && is_flushed(&self.site.fabric)) && Instant::now() < deadline {
            thread::yield_now();
        }
    }
}

/// The same loss, told twice.
fn copy_of(error: &transport::Error) -> transport::Error {
    match error {
        transport::Error::PeerLost { peer, cause } => transport::Error::PeerLost {
            peer: *peer,
            cause: cause.clone(),
        },
        transport::Error::Closed { peer } => transport::Error::Closed { peer: *peer },
        _ => unreachable!("a peer ends closed or lost"),
    }
}

/// What `call` gives; a panic in it is an error of `rank`.
pub(crate) fn catching<T>(rank: Rank, call: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        Err(Error::Panicked {
            rank,
            operator: None,
            message: panic_message(&*panic),
        })
    })
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}
