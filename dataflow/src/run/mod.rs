//! One rank's part in one run of a graph.
//!
//! # Records and what is said beside them
//!
//! What ranks say to one another beside records is heard soon, whatever records wait:
//!
//! * It is some bytes that travel in their descriptor. So it needs no loan, and the backpressure, which is loans alone, cannot hold it
//!   back.
//! * Before each turn of its tasks a rank takes in all that has come. Records wait in their tasks then, and what concerns the run
//!   (a cancellation, a failure, a pause) takes effect before a function of the program is called for any of them. What is before it
//!   on its way is no more than the windows of the channels.
//! * What a reader says (that it wants no more) goes against the records, and overtakes nothing.
//! * Ends and watermarks go behind the records that they follow, on the same channel: that is what they mean.
//!
//! So a rank heeds what concerns the run after one turn at the latest, in which each task gets through one batch: where a function
//! takes so long that this matters, [helpers](crate::operator::blocking) call it.

mod again;
mod align;
mod make;
mod number;
mod standstill;
pub(crate) mod tag;
mod tell;
mod totals;

use std::{cell::RefCell, collections::BTreeMap, fmt, rc::Rc, sync::Arc, time::Duration};

use collectives::AllGather;
use transport::{Buffer, Fabric, Ledger, Rank, Waker};

pub(crate) use self::{
    align::{Alignment, Step},
    number::{is_operators, is_to_come, of_operator, same_operator},
    tell::tell_end,
};
use self::{
    make::{check_size, plans},
    standstill::{Standstill, cancelled},
    tell::tell_senders,
    totals::{Counting, written_at},
};
pub use self::{
    number::{run_after, run_of},
    tell::tell_failure,
    totals::{TaskTotals, Totals},
};
use crate::{
    Error, Stop,
    blame::Culprit,
    demand::{Demand, Looking},
    graph::{EdgeId, Extent, Graph, Schedule, TaskGraph},
    operator::blocking::Helpers,
    reports::{Reports, part_at, put_part},
    spill,
    stage::{Counters, EVERY_SLOT, Handoff, Place, Progress, Slot, Task},
    time::{Clock, Watermark},
};

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
    /// Which of them is called, so that a panic can be told with its name.
    called: Option<usize>,
    /// Who reads each edge here, and who writes it.
    ends: Vec<Ends>,
    site: Site,
    /// What each instance here has done in all runs of the graph, by its task and its number.
    counted: BTreeMap<(usize, u32), Rc<Counting>>,
    /// Whether it is measured how long tasks are at work.
    is_timed: bool,
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
    /// Whether ranks tell the first of them what concerns all, and not each other.
    is_by_hub: bool,
    /// What each rank did, told when its tasks are done.
    reports: Reports,
    /// Whether this rank has told what it did, and whether its outputs are final.
    concluded: bool,
    committed: bool,
    standstill: Standstill,
    alignment: Rc<Alignment>,
    /// Whether this rank may be done before the others.
    is_ahead: bool,
    /// Graphs that are run at a time, and what tasks share with others on this rank.
    at_a_time: u64,
    handoff: Handoff,
}

struct Instance {
    task: Box<dyn Task>,
    vertex: usize,
    slot: Slot,
    place: Place,
    counting: Rc<Counting>,
    /// Whether it has to be made anew.
    is_gone: bool,
    /// Instances that have not ended, by port.
    open: Vec<u32>,
    /// Whether the senders were told that no more is wanted, if they had to be.
    told: bool,
    done: bool,
}

impl Instance {
    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        let received = self.task.receive(port, from, batch);
        received.map_err(|error| self.place.named(error))
    }
}

/// What is on this rank of an edge.
#[derive(Default)]
struct Ends {
    /// The instances that read it, each with which of their ports it is.
    readers: Vec<(usize, usize)>,
    /// The instances that write it.
    writers: Vec<usize>,
}

/// How long a record waits at most for others to travel with, while there is something else to do, in a graph whose
/// sources are unbounded or that has event time.
const FLUSH_INTERVAL: Duration = Duration::from_millis(1);

/// The most ranks that each tell all others what concerns all. That takes a connection between every two, and where there are
/// many, to make them takes longer than all else.
const EACH_MAX: u32 = 16;

/// What stands between a plan and what a rank has found of what is kept.
const BEHIND_PLAN: u8 = 0;

impl Run {
    /// Starts run `number` of a graph on this rank.
    ///
    /// # Errors
    ///
    /// What the tasks' sources and sinks say, [`Error::NoMemory`], [`Error::GraphTooLarge`],
    /// [`Error::ArenaTooSmall`], or [`Error::Unbounded`].
    pub fn new(graph: &TaskGraph, number: u32, site: &Site) -> Result<Self, Error> {
        let size = site.fabric.borrow().size();
        let is_by_hub = size > EACH_MAX;
        Self::with(graph, number, site, 1, Handoff::default(), is_by_hub)
    }

    /// The same as one of so many graphs that are run at a time, and with something that its tasks share with others on this
    /// rank. What concerns all ranks goes by the first of them if `is_by_hub`; then it tells the others of a rank that is lost.
    pub(crate) fn with(
        graph: &TaskGraph,
        number: u32,
        site: &Site,
        at_a_time: u64,
        handoff: Handoff,
        is_by_hub: bool,
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
            called: None,
            ends: Vec::new(),
            site: site.clone(),
            counted: BTreeMap::new(),
            is_timed: site.counters.now().is_some(),
            clock: Rc::default(),
            is_live: false,
            flush_at: Duration::ZERO,
            is_ending: false,
            _waker: None,
            plan,
            plans: plans(number, rank, size, is_by_hub),
            reports: Reports::new(rank, size, is_by_hub),
            is_by_hub,
            concluded: false,
            committed: false,
            standstill: Standstill::default(),
            alignment: Rc::default(),
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
        if let (
            Some(demand),
            tag::BATCH | tag::LAST | tag::END | tag::STOP | tag::WATERMARK | tag::ALIGN,
        ) = (&mut self.demand, kind)
        {
            demand.early.push((from, message));
            return Ok(());
        }
        match kind {
            tag::BATCH | tag::LAST | tag::END | tag::STOP | tag::WATERMARK
                if usize::from(edge) >= self.ends.len() =>
            {
                Err(Error::Unexpected { peer: from, tag })
            }
            tag::BATCH => self.take_batch(edge.into(), slot, from, message),
            tag::LAST => {
                self.take_batch(edge.into(), slot, from, message)?;
                self.take_end(edge.into(), slot, from);
                Ok(())
            }
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
            tag::TOTALS => match self.reports.receive(from, message) {
                true => Ok(()),
                false => Err(Error::Unexpected { peer: from, tag }),
            },
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
            tag::ALIGN if self.hear_of_alignment(from, &message) => Ok(()),
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
        let before = self.now();
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
                tasks[index].receive(port, from, batch.clone())?;
            }
        }
        let (index, port) = next;
        tasks[index].receive(port, from, batch)?;
        // Of several that read it, the last looks at it after it was checked.
        self.count_work(index, before);
        Ok(())
    }

    /// What time it is, if it is measured how long tasks are at work.
    fn now(&self) -> Option<Duration> {
        if !self.is_timed {
            return None;
        }
        self.site.counters.now()
    }

    /// Counts the time since then as work of an instance, and gives the time that it is now.
    fn count_work(&self, index: usize, before: Option<Duration>) -> Option<Duration> {
        let before = before?;
        let now = self.now()?;
        let counting = &self.tasks[index].counting;
        counting.worked(now.saturating_sub(before));
        Some(now)
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

    /// Takes in the plans of one rank, or of all, and compares them with that of this one.
    fn compare_plans(&mut self, peer: Rank, plans: Buffer) -> Result<(), Error> {
        let tag = plans.tag();
        let size = self.schedule.size();
        let known: Vec<bool> = (0..size).map(|rank| self.plans.has(rank)).collect();
        if !self.plans.receive(peer, plans) {
            return Err(Error::Unexpected { peer, tag });
        }
        let new = (0..size).zip(known).filter(|(_, known)| !known);
        for (peer, plan) in new.filter_map(|(rank, _)| Some((rank, self.plans.part(rank)?))) {
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
        }
        Ok(())
    }

    /// Takes note that a peer is gone. That is fine once it has told its totals; otherwise the hub, if there is one, tells the others.
    ///
    /// # Errors
    ///
    /// The loss, if the run still needs the peer.
    pub fn ended(&mut self, peer: Rank, error: transport::Error) -> Result<(), Error> {
        if self.reports.has(peer) || self.reports.leaves_to_hub(peer) {
            return Ok(());
        }
        Err(self.tell_of_loss(error.into()))
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
            let flushed = instance.task.flush();
            if flushed.map_err(|error| instance.place.named(error))? {
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
        self.turn().map_err(|error| self.tell_of_loss(error))
    }

    /// Tells the others of a rank that is lost, if that is what the error says and they leave it to this rank: where there are many,
    /// they do to the first. Gives the error back.
    pub fn tell_of_loss(&self, error: Error) -> Error {
        use transport::Error as Lost;
        if let Error::Transport(Lost::PeerLost { .. } | Lost::Closed { .. }) = error
            && self.reports.is_hub()
        {
            self.fail(&error);
        }
        error
    }

    fn turn(&mut self) -> Result<Progress, Error> {
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
        let mut before = self.now();
        for index in 0..self.tasks.len() {
            let instance = &mut self.tasks[index];
            if !instance.done {
                self.called = Some(index);
                let made = instance.task.poll();
                let made = made.map_err(|error| instance.place.named(error))?;
                instance.done = made == Progress::Done;
                if made != Progress::None {
                    progress = Progress::Made;
                    before = self.count_work(index, before);
                }
                let instance = &mut self.tasks[index];
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
        self.called = None;
        if self.is_live {
            self.align()?;
            progress = self.flush(progress)?;
        }
        if self.tasks.iter().all(|instance| instance.done) {
            return self.conclude();
        }
        Ok(progress)
    }

    /// Tells the others that this rank is done, and waits for them to say so.
    fn conclude(&mut self) -> Result<Progress, Error> {
        if !self.concluded {
            self.concluded = true;
            let mut totals = Totals::default();
            for counting in self.counted.values() {
                totals += *counting.totals.borrow();
            }
            let accumulators = &self.graph.outside.accumulators;
            let of_instances = self.counted.iter().filter(|_| self.is_timed);
            self.reports.tell(|report| {
                totals.put(report);
                for accumulator in accumulators {
                    let mut added = Vec::new();
                    accumulator.take_added(&mut added)?;
                    put_part(report, &added);
                }
                for (&(vertex, instance), counting) in of_instances {
                    report.extend((vertex as u64).to_le_bytes());
                    report.extend(u64::from(instance).to_le_bytes());
                    counting.totals.borrow().put(report);
                }
                Ok(())
            })?;
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
            self.sum_accumulators()?;
            for (index, instance) in self.tasks.iter_mut().enumerate() {
                self.called = Some(index);
                let committed = instance.task.commit();
                committed.map_err(|error| instance.place.named(error))?;
            }
            self.called = None;
        }
        Ok(Progress::Done)
    }

    /// Merges what all ranks have added, once in each process.
    fn sum_accumulators(&self) -> Result<(), Error> {
        if !self.schedule.is_first_of_process(self.rank) {
            return Ok(());
        }
        let mut parts: Vec<(Rank, &[u8], usize)> = (0..)
            .zip(self.reports.last())
            .map(|(rank, report)| (rank, report, Totals::BYTES))
            .collect();
        let tag = tag::of_run(self.number, tag::TOTALS);
        for accumulator in &self.graph.outside.accumulators {
            let mut added = Vec::new();
            for (peer, report, at) in &mut parts {
                let unexpected = Error::Unexpected { peer: *peer, tag };
                let bytes = part_at(report, *at).ok_or(unexpected)?;
                *at = bytes.end;
                added.push((*peer, &report[bytes]));
            }
            accumulator.set_total(&mut added.into_iter())?;
        }
        Ok(())
    }

    /// What each rank did in all runs of the graph so far, once the last of them [is over](Self::is_over).
    pub fn totals(&self) -> Vec<Totals> {
        let parts = self.reports.last();
        parts.filter_map(Totals::from_bytes).collect()
    }

    /// What the instances of each task did in all runs of the graph so far, on all ranks, once the last of them
    /// [is over](Self::is_over); nothing if it was not [measured](Counters::now).
    pub fn by_task(&self) -> Vec<TaskTotals> {
        let mut of: BTreeMap<u64, BTreeMap<u64, Totals>> = BTreeMap::new();
        for report in self.reports.last().filter(|_| self.is_timed) {
            let accumulators = self.graph.outside.accumulators.iter();
            let behind = accumulators.fold(Totals::BYTES, |at, _| {
                part_at(report, at).map_or(report.len(), |bytes| bytes.end)
            });
            let rows = report.get(behind..).unwrap_or_default();
            for row in rows.chunks_exact(2 * size_of::<u64>() + Totals::BYTES) {
                let Some((vertex, row)) = row.split_first_chunk() else {
                    continue;
                };
                let Some((instance, row)) = row.split_first_chunk() else {
                    continue;
                };
                let of_task = of.entry(u64::from_le_bytes(*vertex)).or_default();
                let totals = Totals::from_bytes(row).unwrap_or_default();
                of_task.insert(u64::from_le_bytes(*instance), totals);
            }
        }
        let task = |(vertex, instances): (u64, BTreeMap<u64, Totals>)| {
            let node = &self.graph.vertices.get(vertex as usize)?.node;
            Some(TaskTotals {
                task: format!("{}{}", node.name, written_at(&node.written_at)),
                instances: instances.into_values().collect(),
            })
        };
        of.into_iter().filter_map(task).collect()
    }

    /// Where a function of the program panicked that was called by this run, for who caught that: the operator, as far as
    /// it is known, with the line that it is written in, the instance, and the task.
    pub fn panicked_in(&self) -> Option<String> {
        let culprit = Culprit::take();
        let instance = self.tasks.get(self.called?)?;
        let (task, number) = (&instance.place.wiring.name, instance.place.instance);
        let whole = format!("instance {number} of task \"{task}\"");
        Some(match culprit {
            Some(culprit) => format!("{} in {whole}", culprit.name(task)),
            None => whole,
        })
    }

    /// Tells the other ranks that this one failed, as far as they can still be told.
    pub fn fail(&self, error: &Error) {
        tell_failure(&mut self.fabric.borrow_mut(), self.number, error);
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
