//! One rank's part in one run of a graph.

use std::{
    cell::RefCell,
    collections::{BTreeSet, VecDeque},
    fmt,
    ops::AddAssign,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use collectives::AllGather;
use transport::{Buffer, Fabric, Ledger, Rank, Waker};

use crate::{
    Error, Stop,
    demand::{Demand, Looking},
    graph::{EdgeId, Extent, Graph, Schedule, TaskGraph, Vertex},
    one_line,
    operator::blocking::Helpers,
    reports::Reports,
    spill,
    stage::{Counters, EVERY_SLOT, Handoff, Place, Progress, Slot, Task, Wiring},
    time::{Clock, Watermark},
};

/// The tags of the messages of a run: which run, for which instance on the rank, what kind, which edge.
pub(crate) mod tag {
    use crate::{graph::EdgeId, stage::Slot, time::Watermark};

    pub(crate) const BATCH: u8 = 1;
    pub(crate) const END: u8 = 2;
    pub(crate) const PLAN: u8 = 3;
    pub(crate) const TOTALS: u8 = 4;
    pub(crate) const FAILED: u8 = 5;
    /// A reader of an edge wants no more; the slot is the reader's.
    pub(crate) const STOP: u8 = 6;
    /// How far event time is on a channel. It travels in order with the batches, as a marker of a checkpoint would.
    pub(crate) const WATERMARK: u8 = 7;
    /// Sources that would go on are to end, on all ranks.
    pub(crate) const ENOUGH: u8 = 8;
    /// Somebody ends the run: who, and why.
    pub(crate) const CANCEL: u8 = 9;
    /// The run stands still, as far as the sender is concerned, and goes on.
    pub(crate) const PAUSE: u8 = 10;
    pub(crate) const RESUME: u8 = 11;
    /// What counts also if it is of the run before of the same graph.
    pub(crate) const EVER: [u8; 5] = [TOTALS, FAILED, CANCEL, PAUSE, RESUME];

    pub(crate) fn new(run: u32, slot: Slot, kind: u8, edge: EdgeId) -> u64 {
        u64::from(run) << 32 | u64::from(slot) << 24 | u64::from(kind) << 16 | u64::from(edge)
    }

    /// The tag of what concerns the whole run.
    pub(crate) fn of_run(run: u32, kind: u8) -> u64 {
        new(run, 0, kind, 0)
    }

    /// A message about event time: the instance that sends it, and how far it is.
    pub(crate) fn time_of(instance: u32, watermark: Watermark) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&instance.to_le_bytes());
        bytes[4..].copy_from_slice(&watermark.to_time().to_le_bytes());
        bytes
    }

    /// What such a message says, if it is one.
    pub(crate) fn parse_time(message: &[u8]) -> Option<(u32, Watermark)> {
        let (instance, time) = message.split_at_checked(4)?;
        let instance = u32::from_le_bytes(instance.try_into().ok()?);
        let time = i64::from_le_bytes(time.try_into().ok()?);
        Some((instance, Watermark::from_time(time)))
    }

    /// The slot, the kind and the edge of a tag.
    pub(crate) fn parts(tag: u64) -> (Slot, u8, EdgeId) {
        ((tag >> 24) as Slot, (tag >> 16) as u8, tag as EdgeId)
    }
}

/// The run that a message belongs to. Runs are numbered alike on all ranks.
pub fn run_of(tag: u64) -> u32 {
    (tag >> 32) as u32
}

/// The number of the run that is so many after that of this number. The highest bits are left to messages that are no
/// run's.
pub fn run_after(number: u32, runs: u32) -> u32 {
    let counted = if is_operators(number) { ROUNDS } else { RUNS };
    number & !counted | number.wrapping_add(runs) & counted
}

/// The numbers of runs of jobs.
const RUNS: u32 = u32::MAX >> 2;
/// Tells the runs of operators that a program drives from those of jobs.
const OPERATORS: u32 = RUNS + 1;
/// Rounds of an operator that can be told apart; what is above them says which operator.
const ROUNDS: u32 = 0xff;

/// The first run of an operator that a program drives, by its number.
pub(crate) fn of_operator(number: u32) -> u32 {
    OPERATORS | number.wrapping_mul(ROUNDS + 1) & RUNS
}

/// Whether a run is of an operator that a program drives.
pub(crate) fn is_operators(run: u32) -> bool {
    run & OPERATORS != 0
}

/// Whether two runs are of the same operator.
pub(crate) fn same_operator(one: u32, other: u32) -> bool {
    (one ^ other) & !ROUNDS == 0
}

/// Whether the operator of a run comes after the first `made`.
pub(crate) fn is_to_come(run: u32, made: u32) -> bool {
    run.wrapping_sub(of_operator(made)) & RUNS <= RUNS / 2
}

/// What a rank did in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Records that came from sources.
    pub records: u64,
    /// Bytes that came from sources.
    pub bytes: u64,
    /// Records that came from other tasks.
    pub received: u64,
    /// Bytes that were written to disk because memory had no room for them.
    pub spilled: u64,
}

impl Totals {
    /// How many numbers they are.
    const NUMBERS: usize = 4;

    fn to_numbers(self) -> [u64; Self::NUMBERS] {
        [self.records, self.bytes, self.received, self.spilled]
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            records: number(bytes, 0)?,
            bytes: number(bytes, 1)?,
            received: number(bytes, 2)?,
            spilled: number(bytes, 3)?,
        })
    }
}

impl AddAssign for Totals {
    fn add_assign(&mut self, more: Self) {
        self.records += more.records;
        self.bytes += more.bytes;
        self.received += more.received;
        self.spilled += more.spilled;
    }
}

/// The number at a place among those in `bytes`.
fn number(bytes: &[u8], place: usize) -> Option<u64> {
    let bytes = bytes.get(8 * place..8 * place + 8)?.try_into().ok()?;
    Some(u64::from_le_bytes(bytes))
}

/// Counts what a rank does, and tells whoever else wants to know.
#[derive(Debug)]
struct Counting {
    totals: RefCell<Totals>,
    listener: Rc<dyn Counters>,
}

impl Counters for Counting {
    fn read(&self, records: u64, bytes: u64) {
        let mut totals = self.totals.borrow_mut();
        totals.records += records;
        totals.bytes += bytes;
        self.listener.read(records, bytes);
    }

    fn received(&self, records: u64) {
        self.totals.borrow_mut().received += records;
        self.listener.received(records);
    }

    fn expect(&self, bytes: u64) {
        self.listener.expect(bytes);
    }

    fn spilled(&self, bytes: u64) {
        self.totals.borrow_mut().spilled += bytes;
        self.listener.spilled(bytes);
    }
}

/// Where a run takes place.
#[derive(Debug, Clone)]
pub struct Site {
    /// The links and the arena of this rank.
    pub fabric: Rc<RefCell<Fabric>>,
    /// Ranks in each process, which are neighbours in number.
    pub executors: u32,
    /// The account of the process.
    pub ledger: Ledger,
    /// Who wants to know what is done.
    pub counters: Rc<dyn Counters>,
    /// Where records are kept that memory has no room for.
    pub spill: Rc<spill::Config>,
    /// Who does what would keep this rank too long; nobody else, if it is `Rc::new(())`.
    pub helpers: Rc<dyn Helpers>,
}

/// One rank's part in one run of a graph, driven by its owner: it is given the messages of the run and
/// polled, and says when every rank has finished.
///
/// The same graph can be run [again](Self::again): what was made for it stays.
pub struct Run {
    number: u32,
    rank: Rank,
    fabric: Rc<RefCell<Fabric>>,
    graph: Arc<Graph>,
    schedule: Arc<Schedule>,
    /// The instances of tasks here, those of the last task first: so what is nearly done goes on first, and
    /// makes room.
    tasks: Vec<Instance>,
    /// Who reads each edge here, and who writes it.
    ends: Vec<Ends>,
    site: Site,
    counting: Rc<Counting>,
    clock: Rc<Clock>,
    /// Whether what waits is flushed, and when that is to be done next if others are busy.
    is_live: bool,
    flush_at: Duration,
    /// Whether sources that would go on were told to end.
    is_ending: bool,
    /// Keeps other threads able to wake us.
    _waker: Option<Arc<Waker>>,
    /// What is to be known before there are tasks.
    demand: Option<Demand>,
    /// What was found then, which has to stay.
    found: Vec<Looking>,
    plan: String,
    plans: AllGather,
    /// What each rank did, told when its tasks are done.
    reports: Reports,
    /// Whether this rank has told what it did, and whether its outputs are final.
    concluded: bool,
    committed: bool,
    standstill: Standstill,
    /// Whether this rank may be done before the others.
    is_ahead: bool,
    /// Graphs that are run at a time, and what tasks share with others on this rank.
    at_a_time: u64,
    handoff: Handoff,
}

/// Who wants a run to stand still.
#[derive(Default)]
struct Standstill {
    /// Whether this rank does.
    here: bool,
    others: BTreeSet<Rank>,
    /// What is still to be told.
    untold: VecDeque<(Rank, u8)>,
}

struct Instance {
    task: Box<dyn Task>,
    vertex: usize,
    slot: Slot,
    place: Place,
    /// Whether it has to be made anew.
    is_gone: bool,
    /// Instances that have not ended, by port.
    open: Vec<u32>,
    /// Whether the senders were told that no more is wanted, if they had to be.
    told: bool,
    done: bool,
}

/// What is on this rank of an edge.
#[derive(Default)]
struct Ends {
    /// The instances that read it, each with which of their ports it is.
    readers: Vec<(usize, usize)>,
    /// The instances that write it.
    writers: Vec<usize>,
}

/// The most of its share of the arena that one channel's window takes, and the least.
const WINDOW_BYTES_MAX: u64 = 1 << 20;
const WINDOW_BYTES_MIN: u64 = 4 << 10;

/// How long a record waits at most for others to travel with, while there is something else to do, in a graph whose
/// sources are unbounded or that has event time.
const FLUSH_INTERVAL: Duration = Duration::from_millis(1);

/// What stands between a plan and what a rank has found of what is kept.
const BEHIND_PLAN: u8 = 0;

impl Run {
    /// Starts run `number` of a graph on this rank.
    ///
    /// # Errors
    ///
    /// What the tasks' sources and sinks say, [`transport::Error::LedgerLimit`], [`Error::GraphTooLarge`],
    /// [`Error::ArenaTooSmall`], or [`Error::Unbounded`].
    pub fn new(graph: &TaskGraph, number: u32, site: &Site) -> Result<Self, Error> {
        Self::with(graph, number, site, 1, Handoff::default())
    }

    /// The same as one of so many graphs that are run at a time, and with something that its tasks share with others on this
    /// rank.
    pub(crate) fn with(
        graph: &TaskGraph,
        number: u32,
        site: &Site,
        at_a_time: u64,
        handoff: Handoff,
    ) -> Result<Self, Error> {
        let (rank, size) = {
            let fabric = site.fabric.borrow();
            (fabric.rank(), fabric.size())
        };
        let schedule = match &graph.schedule {
            Some(schedule) if schedule.size() == size => schedule.clone(),
            Some(schedule) => {
                let placed = schedule.size();
                return Err(Error::PlacedElsewhere { placed, size });
            }
            None => Arc::new(Schedule::even(size, site.executors)),
        };
        let graph = graph.graph.clone();
        check_size(&graph, &schedule)?;
        graph.check_ends()?;
        let counting = Rc::new(Counting {
            totals: RefCell::default(),
            listener: site.counters.clone(),
        });
        let plan = graph.plan_on(&schedule);
        let mut run = Self {
            number,
            rank,
            fabric: site.fabric.clone(),
            demand: Demand::new(&graph, &schedule, rank),
            found: Vec::new(),
            graph,
            schedule,
            tasks: Vec::new(),
            ends: Vec::new(),
            site: site.clone(),
            counting,
            clock: Rc::default(),
            is_live: false,
            flush_at: Duration::ZERO,
            is_ending: false,
            _waker: None,
            plan,
            plans: AllGather::new(tag::of_run(number, tag::PLAN), size),
            reports: Reports::new(rank, size),
            concluded: false,
            committed: false,
            standstill: Standstill::default(),
            is_ahead: false,
            at_a_time,
            handoff,
        };
        if run.demand.is_none() {
            run.make_tasks(&vec![true; run.graph.vertices.len()])?;
            run.plans.contribute(run.plan.as_bytes());
        } else {
            run.look()?;
        }
        Ok(run)
    }

    /// Looks for what is kept, and tells the others when all that is here was looked at; whether it has.
    fn look(&mut self) -> Result<bool, Error> {
        let Some(demand) = &mut self.demand else {
            return Ok(true);
        };
        if !demand.told
            && let Some(found) = demand.poll()?
        {
            demand.told = true;
            let told = [self.plan.as_bytes(), &[BEHIND_PLAN], &found].concat();
            self.plans.contribute(&told);
        }
        Ok(demand.told)
    }

    /// Makes the tasks that are needed, once all ranks have told what is kept, and hands them what has come for them.
    fn begin(&mut self) -> Result<Progress, Error> {
        if !self.look()? {
            return Ok(Progress::Made);
        }
        self.plans.poll(&mut self.fabric.borrow_mut())?;
        let Some(told) = self.plans.result() else {
            return Ok(Progress::None);
        };
        let behind = |told: &[u8]| told.get(self.plan.len() + 1..).map(<[u8]>::to_vec);
        let told: Vec<Vec<u8>> = told.into_iter().filter_map(behind).collect();
        let Some(demand) = self.demand.take() else {
            return Ok(Progress::None);
        };
        let tag = tag::of_run(self.number, tag::PLAN);
        let needed = demand.needed(&self.graph, &told, tag)?;
        self.make_tasks(&needed)?;
        for (from, message) in demand.early {
            self.receive(from, message)?;
        }
        self.found = demand.looks;
        Ok(Progress::Made)
    }

    /// Makes the instances here of the tasks that are needed.
    fn make_tasks(&mut self, needed: &[bool]) -> Result<(), Error> {
        let (graph, schedule) = (self.graph.clone(), self.schedule.clone());
        let place = Place {
            handoff: self.handoff.clone(),
            ..place(
                &graph,
                &schedule,
                needed,
                self.number,
                &self.site,
                self.at_a_time,
                &self.counting,
            )?
        };
        let mut ends: Vec<_> = graph.vertices.iter().map(|_| Ends::default()).collect();
        let mut tasks = Vec::new();
        for (vertex, Vertex { node, inputs, .. }) in graph.vertices.iter().enumerate().rev() {
            if node.outlet.is_some() || !needed[vertex] {
                continue;
            }
            let instances = schedule.instances(&node.placement);
            let wiring = Rc::new(wiring(&graph, vertex, &schedule, needed));
            for (slot, instance) in instances.on(self.rank).enumerate() {
                for (port, &edge) in inputs.iter().enumerate() {
                    ends[edge].readers.push((tasks.len(), port));
                }
                ends[vertex].writers.push(tasks.len());
                for (_, outlet) in &wiring.outlets {
                    ends[usize::from(outlet.edge)].writers.push(tasks.len());
                }
                let place = Place {
                    instance,
                    instances: instances.number(),
                    wiring: wiring.clone(),
                    ..place.clone()
                };
                tasks.push(Instance {
                    task: (node.build)(&place)?,
                    vertex,
                    slot: slot as Slot,
                    place,
                    is_gone: false,
                    open: wiring.senders.clone(),
                    told: false,
                    done: false,
                });
            }
        }
        (self.tasks, self.ends) = (tasks, ends);
        (self.clock, self.is_live, self._waker) = (place.clock, place.is_live, place.waker);
        if self.is_ending {
            self.end_sources();
        }
        Ok(())
    }

    /// Has [`poll`](Self::poll) say that it is done when this rank is, and not only when all are: for those who go on to
    /// [another run](Self::again), and whose outputs are worth nothing before the [end](Self::is_over). Where that is not so,
    /// or where something is summed up over all ranks, all are waited for nevertheless.
    pub fn go_ahead(&mut self) {
        let is_lasting = |instance: &Instance| instance.task.is_lasting();
        self.is_ahead = self.demand.is_none()
            && self.graph.outside.accumulators.is_empty()
            && !self.tasks.iter().any(is_lasting);
    }

    /// Whether all ranks are done with this run.
    pub fn is_over(&self) -> bool {
        self.reports.is_complete()
    }

    /// Whether the next run may begin, once this rank is done with this one: no rank is more than one ahead of another.
    pub fn may_go_on(&self) -> bool {
        self.committed && self.reports.may_go_on()
    }

    /// Begins another run of the same graph, which has the [next number](run_after), when it
    /// [may](Self::may_go_on). All ranks have to do so. Tasks begin where they began, for next to nothing if they can; others
    /// are made anew.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new).
    pub fn again(&mut self) -> Result<(), Error> {
        self.number = run_after(self.number, 1);
        self.reports.again();
        (self.concluded, self.committed, self.is_ending) = (false, false, false);
        if !self.found.is_empty() {
            return self.demand_again();
        }
        for instance in &mut self.tasks {
            // What is live knows of times that have passed.
            instance.is_gone = self.is_live || !instance.task.again(self.number);
            if instance.is_gone {
                // Before others are made, with which it may share something.
                instance.task = Box::new(Gone);
            }
        }
        for instance in &mut self.tasks {
            if instance.is_gone {
                instance.place.run = self.number;
                let node = &self.graph.vertices[instance.vertex].node;
                instance.task = (node.build)(&instance.place)?;
            }
            (instance.open).clone_from(&instance.place.wiring.senders);
            (instance.told, instance.done) = (false, false);
        }
        Ok(())
    }

    /// Begins another run of a graph of which something is kept: what is needed now may be something else.
    fn demand_again(&mut self) -> Result<(), Error> {
        (self.tasks, self.ends) = (Vec::new(), Vec::new());
        self.found.clear();
        self.demand = Demand::new(&self.graph, &self.schedule, self.rank);
        let size = self.schedule.size();
        self.plans = AllGather::new(tag::of_run(self.number, tag::PLAN), size);
        self.look()?;
        Ok(())
    }

    pub(crate) fn rank(&self) -> Rank {
        self.rank
    }

    /// Whether a rank is done with this run, as it has said.
    pub(crate) fn has_told(&self, rank: Rank) -> bool {
        self.reports.has(rank)
    }

    /// The number of the run.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whether a message of this tag is for this run, or for one before it of the same graph.
    pub fn wants(&self, tag: u64) -> bool {
        let run = run_of(tag);
        run == self.number || (run_after(run, 1) == self.number && self.reports.is_again())
    }

    /// Takes in a message of this run.
    ///
    /// # Errors
    ///
    /// [`Error::PlansDiffer`], [`Error::Remote`], or [`Error::Malformed`].
    pub fn receive(&mut self, from: Rank, message: Buffer) -> Result<(), Error> {
        let tag = message.tag();
        let (slot, kind, edge) = tag::parts(tag);
        if run_of(tag) != self.number && !tag::EVER.contains(&kind) {
            return Ok(()); // Of the run before: it came to nothing there, or it would not be over here.
        }
        if let (Some(demand), tag::BATCH | tag::END | tag::STOP | tag::WATERMARK) =
            (&mut self.demand, kind)
        {
            demand.early.push((from, message));
            return Ok(());
        }
        match kind {
            tag::BATCH | tag::END | tag::STOP | tag::WATERMARK
                if usize::from(edge) >= self.ends.len() =>
            {
                Err(Error::Unexpected { peer: from, tag })
            }
            tag::BATCH => self.take_batch(edge.into(), slot, from, message),
            tag::END => {
                self.take_end(edge.into(), slot, from);
                Ok(())
            }
            tag::STOP => {
                self.take_stop(edge.into(), slot, from);
                Ok(())
            }
            tag::WATERMARK => {
                let (sender, watermark) =
                    tag::parse_time(&message).ok_or(Error::Unexpected { peer: from, tag })?;
                self.take_watermark(edge.into(), slot, sender, watermark);
                Ok(())
            }
            tag::ENOUGH => {
                self.end_sources();
                Ok(())
            }
            tag::PLAN => self.compare_plans(from, message),
            tag::TOTALS => {
                self.reports.receive(from, message);
                Ok(())
            }
            tag::CANCEL => {
                let text = String::from_utf8_lossy(&message);
                let (by, reason) = text.split_once('\0').unwrap_or((&text, ""));
                Err(cancelled(by, reason))
            }
            tag::PAUSE => {
                self.standstill.others.insert(from);
                Ok(())
            }
            tag::RESUME => {
                self.standstill.others.remove(&from);
                Ok(())
            }
            tag::FAILED => Err(Error::Remote {
                rank: from,
                message: String::from_utf8_lossy(&message).into_owned(),
            }),
            _ => Err(Error::Unexpected { peer: from, tag }),
        }
    }

    /// Hands a batch to all that read it here. The last of them gets our handle on it.
    fn take_batch(
        &mut self,
        edge: usize,
        slot: Slot,
        from: Rank,
        batch: Buffer,
    ) -> Result<(), Error> {
        let (peer, tag) = (from, batch.tag());
        let (ends, tasks) = (&self.ends, &mut self.tasks);
        let reads =
            |&&(index, _): &&(usize, usize)| slot == EVERY_SLOT || slot == tasks[index].slot;
        let mut readers = ends[edge].readers.iter();
        let Some(mut next) = readers.find(reads).copied() else {
            return Err(Error::Unexpected { peer, tag });
        };
        for &(index, port) in readers {
            if slot == EVERY_SLOT || slot == tasks[index].slot {
                let (index, port) = std::mem::replace(&mut next, (index, port));
                tasks[index].task.receive(port, from, batch.clone())?;
            }
        }
        let (index, port) = next;
        tasks[index].task.receive(port, from, batch)
    }

    fn take_end(&mut self, edge: usize, slot: Slot, from: Rank) {
        for &(index, port) in &self.ends[edge].readers {
            let reader = &mut self.tasks[index];
            if slot == EVERY_SLOT || slot == reader.slot {
                reader.open[port] = reader.open[port].saturating_sub(1);
                reader.task.ended(port, from);
            }
        }
    }

    fn take_watermark(&mut self, edge: usize, slot: Slot, sender: u32, watermark: Watermark) {
        for &(index, port) in &self.ends[edge].readers {
            let reader = &mut self.tasks[index];
            if slot == EVERY_SLOT || slot == reader.slot {
                reader.task.advance(port, sender, watermark);
            }
        }
    }

    /// Ends the sources here that would go on.
    fn end_sources(&mut self) {
        self.is_ending = true;
        for instance in &mut self.tasks {
            if self.graph.vertices[instance.vertex].node.extent == Extent::Unbounded {
                instance.task.stop();
            }
        }
    }

    fn take_stop(&mut self, edge: usize, slot: Slot, from: Rank) {
        let Some(readers) = &self.graph.vertices[edge].readers else {
            return;
        };
        let Some(reader) = self.schedule.instances(readers).at(from, slot.into()) else {
            return;
        };
        for &index in &self.ends[edge].writers {
            self.tasks[index].task.stopped(edge as EdgeId, reader);
        }
    }

    fn compare_plans(&mut self, peer: Rank, plan: Buffer) -> Result<(), Error> {
        let rest = plan.strip_prefix(self.plan.as_bytes());
        if !rest.is_some_and(|rest| matches!(rest.first(), None | Some(&BEHIND_PLAN))) {
            let theirs = plan.split(|&byte| byte == BEHIND_PLAN).next();
            return Err(Error::PlansDiffer {
                here: self.rank,
                ours: self.plan.clone(),
                peer,
                theirs: String::from_utf8_lossy(theirs.unwrap_or_default()).into_owned(),
            });
        }
        self.plans.receive(peer, plan);
        Ok(())
    }

    /// Takes note that a peer is gone. That is fine once it has told its totals.
    ///
    /// # Errors
    ///
    /// The loss, if the run still needs the peer.
    pub fn ended(&mut self, peer: Rank, error: transport::Error) -> Result<(), Error> {
        if self.reports.has(peer) {
            Ok(())
        } else {
            Err(error.into())
        }
    }

    /// Whether time matters to the run: if so, it has to be [told](Self::tick) before each poll.
    pub fn is_live(&self) -> bool {
        self.is_live
    }

    /// Tells the run what time it is, since any fixed moment. It does not go back.
    pub fn tick(&mut self, now: Duration) {
        self.clock.set(now);
    }

    /// When the run wants to be polled again if nothing happens before that, after a poll that made no progress.
    pub fn due(&self) -> Option<Duration> {
        self.clock.due()
    }

    /// Ends sources that would go on, on all ranks, if the job was stopped here.
    fn look_for_stop(&mut self) -> Result<(), Error> {
        if self.is_ending || !self.graph.outside.stops.iter().any(Stop::is_stopped) {
            return Ok(());
        }
        self.end_sources();
        let mut fabric = self.fabric.borrow_mut();
        for rank in (0..fabric.size()).filter(|&rank| rank != self.rank) {
            fabric.send_copy(rank, tag::of_run(self.number, tag::ENOUGH), &[])?;
        }
        Ok(())
    }

    /// Sends on what waits to be more, if it has waited long enough or nothing else is to be done.
    fn flush(&mut self, progress: Progress) -> Result<Progress, Error> {
        let now = self.clock.now();
        if progress == Progress::Made && now < self.flush_at {
            return Ok(progress);
        }
        self.flush_at = now + FLUSH_INTERVAL;
        let mut progress = progress;
        for instance in self.tasks.iter_mut().filter(|instance| !instance.done) {
            if instance.task.flush()? {
                progress = Progress::Made;
            }
        }
        Ok(progress)
    }

    /// Goes on; [`Progress::Done`] when every rank has finished, or this one that [goes ahead](Self::go_ahead), and the
    /// outputs are final.
    ///
    /// # Errors
    ///
    /// What the tasks say, or the loss of a rank.
    pub fn poll(&mut self) -> Result<Progress, Error> {
        if self.stands_still()? {
            return Ok(Progress::None);
        }
        if self.demand.is_some() {
            return self.begin();
        }
        if self.concluded {
            return self.conclude();
        }
        if !self.plans.is_complete() {
            self.plans.poll(&mut self.fabric.borrow_mut())?;
        }
        self.clock.begin_turn();
        self.look_for_stop()?;
        let mut progress = Progress::None;
        for instance in &mut self.tasks {
            if !instance.done {
                let made = instance.task.poll()?;
                instance.done = made == Progress::Done;
                if made != Progress::None {
                    progress = Progress::Made;
                }
                if !instance.told && !instance.task.is_reading() {
                    instance.told = true;
                    tell_senders(
                        instance,
                        &self.graph,
                        &self.schedule,
                        self.number,
                        &self.fabric,
                    )?;
                }
            }
        }
        if self.is_live {
            progress = self.flush(progress)?;
        }
        if progress == Progress::None && self.tasks.iter().all(|instance| instance.done) {
            return self.conclude();
        }
        Ok(progress)
    }

    /// Tells the others that this rank is done, and waits for them to say so.
    fn conclude(&mut self) -> Result<Progress, Error> {
        if !self.concluded {
            self.concluded = true;
            let added = self.graph.outside.accumulators.iter();
            let added = added.map(|accumulator| accumulator.take_added());
            let totals = self.counting.totals.borrow().to_numbers();
            self.reports.tell(totals.into_iter().chain(added));
        }
        let told = {
            let mut fabric = self.fabric.borrow_mut();
            if !self.plans.is_complete() {
                self.plans.poll(&mut fabric)?;
            }
            self.reports.poll(self.number, &mut fabric)?
        };
        let all = if self.is_ahead { told } else { self.is_over() };
        if !all || !self.plans.is_complete() {
            return Ok(Progress::None);
        }
        if !std::mem::replace(&mut self.committed, true) {
            self.sum_accumulators();
            for instance in &mut self.tasks {
                instance.task.commit()?;
            }
        }
        Ok(Progress::Done)
    }

    /// Sums up what all ranks have added, once in each process.
    fn sum_accumulators(&self) {
        if !self.schedule.is_first_of_process(self.rank) {
            return;
        }
        for (index, accumulator) in self.graph.outside.accumulators.iter().enumerate() {
            let parts = self.reports.last();
            let added = parts.filter_map(|part| number(part, Totals::NUMBERS + index));
            accumulator.set_total(added.sum());
        }
    }

    /// What each rank did in all runs of the graph so far, once the last of them [is over](Self::is_over).
    pub fn totals(&self) -> Vec<Totals> {
        let parts = self.reports.last();
        parts.filter_map(Totals::from_bytes).collect()
    }

    /// Has the run stand still, on all ranks, until this rank and all others that wanted so want it to go on. Messages that
    /// are on their way are taken in meanwhile; functions of the program are not called.
    pub fn pause(&mut self, is_paused: bool) {
        if std::mem::replace(&mut self.standstill.here, is_paused) != is_paused {
            let kind = if is_paused { tag::PAUSE } else { tag::RESUME };
            let size = self.fabric.borrow().size();
            let others = (0..size).filter(|&rank| rank != self.rank);
            let untold = others.map(|rank| (rank, kind));
            self.standstill.untold.extend(untold);
        }
    }

    /// Whether the run stands still; tells others what is to be told of that.
    fn stands_still(&mut self) -> Result<bool, Error> {
        let mut fabric = self.fabric.borrow_mut();
        while let Some(&(rank, kind)) = self.standstill.untold.front() {
            if !fabric.send_copy(rank, tag::of_run(self.number, kind), &[])? {
                break;
            }
            self.standstill.untold.pop_front();
        }
        Ok(self.standstill.here || !self.standstill.others.is_empty())
    }

    /// Ends the run, on all ranks: each fails with the error that this gives.
    pub fn cancel(&mut self, by: &str, reason: &str) -> Error {
        let text = format!("{by}\0{reason}");
        let mut fabric = self.fabric.borrow_mut();
        for rank in (0..fabric.size())
            .filter(|&rank| rank != self.rank)
            .collect::<Vec<_>>()
        {
            // Who is gone needs not be told, and who has no room learns it from others, or by our end.
            let _ = fabric.send_copy(rank, tag::of_run(self.number, tag::CANCEL), text.as_bytes());
        }
        cancelled(by, reason)
    }

    /// Tells the other ranks that this one failed, as far as they can still be told.
    pub fn fail(&self, error: &Error) {
        tell_failure(&mut self.fabric.borrow_mut(), self.number, error);
    }
}

fn cancelled(by: &str, reason: &str) -> Error {
    Error::Cancelled {
        by: by.to_owned(),
        reason: reason.to_owned(),
    }
}

/// In the place of a task that is to be made anew.
struct Gone;

impl Task for Gone {
    fn receive(&mut self, _port: usize, _from: Rank, _batch: Buffer) -> Result<(), Error> {
        Ok(())
    }

    fn ended(&mut self, _port: usize, _from: Rank) {}

    fn is_reading(&self) -> bool {
        false
    }

    fn poll(&mut self) -> Result<Progress, Error> {
        Ok(Progress::None)
    }

    fn commit(&mut self) -> Result<(), Error> {
        Ok(())
    }
}

/// Tells those who still send to an instance that it wants no more.
fn tell_senders(
    reader: &Instance,
    graph: &Graph,
    schedule: &Schedule,
    run: u32,
    fabric: &RefCell<Fabric>,
) -> Result<(), Error> {
    let mut fabric = fabric.borrow_mut();
    let size = fabric.size();
    for (&edge, &open) in graph.vertices[reader.vertex]
        .inputs
        .iter()
        .zip(&reader.open)
    {
        if open == 0 {
            continue;
        }
        let senders = schedule.instances(&graph.vertices[edge].node.placement);
        let stop = tag::new(run, reader.slot, tag::STOP, edge as EdgeId);
        for rank in (0..size).filter(|&rank| senders.number_on(rank) > 0) {
            fabric.send_copy(rank, stop, &[])?;
        }
    }
    Ok(())
}

/// Whether the numbers of tasks and of their instances fit in a tag.
fn check_size(graph: &Graph, schedule: &Schedule) -> Result<(), Error> {
    if graph.vertices.len() > usize::from(EdgeId::MAX) {
        return Err(Error::GraphTooLarge {
            what: format!("{} tasks", graph.vertices.len()),
            limit: EdgeId::MAX.into(),
        });
    }
    for vertex in &graph.vertices {
        let instances = schedule.instances(&vertex.node.placement);
        if instances.on_one_rank() > u32::from(EVERY_SLOT) {
            return Err(Error::GraphTooLarge {
                what: format!(
                    "{} instances of {} on a rank",
                    instances.on_one_rank(),
                    vertex.node.name
                ),
                limit: EVERY_SLOT.into(),
            });
        }
    }
    Ok(())
}

/// What all tasks of a run have in common on a rank.
fn place(
    graph: &Graph,
    schedule: &Schedule,
    needed: &[bool],
    run: u32,
    site: &Site,
    at_a_time: u64,
    counters: &Rc<Counting>,
) -> Result<Place, Error> {
    let (rank, size, capacity) = {
        let fabric = site.fabric.borrow();
        (fabric.rank(), fabric.size(), fabric.arena().capacity())
    };
    // Half of the arena for what we send, the other half for what comes from other nodes.
    let channels = graph.channels(schedule, needed) * at_a_time;
    let share = capacity / 2 / channels;
    if share < WINDOW_BYTES_MIN {
        return Err(Error::ArenaTooSmall {
            bytes: capacity,
            channels,
            needed: 2 * channels * WINDOW_BYTES_MIN,
        });
    }
    let can_be_woken = graph.is_live() || !graph.outside.stops.is_empty();
    let waker = if can_be_woken {
        site.fabric.borrow().waker()?.map(Arc::new)
    } else {
        None
    };
    if let Some(waker) = &waker {
        graph
            .outside
            .stops
            .iter()
            .for_each(|stop| stop.wakes(waker));
    }
    Ok(Place {
        fabric: site.fabric.clone(),
        rank,
        size,
        executors: site.executors,
        ledger: site.ledger.clone(),
        counters: counters.clone(),
        window_bytes: share.min(WINDOW_BYTES_MAX) as usize,
        batch_bytes_max: share as usize,
        run,
        instance: 0,
        instances: 0,
        wiring: Rc::default(),
        spill: site.spill.clone(),
        handoff: Handoff::default(),
        clock: Rc::default(),
        is_live: graph.is_live(),
        waker,
        helpers: site.helpers.clone(),
    })
}

/// What a task of the graph is connected with.
fn wiring(graph: &Graph, number: usize, schedule: &Schedule, needed: &[bool]) -> Wiring {
    let vertex = &graph.vertices[number];
    let senders = |&edge: &usize| {
        if !needed[edge] {
            return 0;
        }
        let senders = schedule.instances(&graph.vertices[edge].node.placement);
        senders.number()
    };
    let readers = vertex.readers.as_ref().map_or(Vec::new(), |placement| {
        let readers = schedule.instances(placement);
        let place = |instance| (readers.rank_of(instance), readers.slot_of(instance) as Slot);
        (0..readers.number()).map(place).collect()
    });
    Wiring {
        name: vertex.node.name.clone(),
        senders: vertex.inputs.iter().map(senders).collect(),
        may_wait: graph.may_wait(number),
        edge: number as EdgeId,
        readers,
        reading: graph
            .readers(number)
            .filter(|&(reader, _)| needed[reader])
            .count() as u32,
        outlets: graph
            .outlets(number)
            .filter(|&outlet| needed[outlet])
            .map(|outlet| {
                let wiring = wiring(graph, outlet, schedule, needed);
                (graph.vertices[outlet].node.clone(), Rc::new(wiring))
            })
            .collect(),
    }
}

/// Tells the other ranks that this one failed in run `number`, as far as they can still be told.
pub fn tell_failure(fabric: &mut Fabric, number: u32, error: &Error) {
    tell_end(fabric, number, &one_line(error));
}

/// Tells the other ranks why this one takes no part in a run any more, as far as they can still be told.
pub(crate) fn tell_end(fabric: &mut Fabric, number: u32, reason: &str) {
    for rank in (0..fabric.size())
        .filter(|&rank| rank != fabric.rank())
        .collect::<Vec<_>>()
    {
        // Who is gone needs not be told, and without room the end of our process tells it.
        let _ = fabric.send_copy(rank, tag::of_run(number, tag::FAILED), reason.as_bytes());
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("number", &self.number)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}
