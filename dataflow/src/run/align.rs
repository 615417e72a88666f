//! How far streams are that keep step, on this rank and on others.

use std::{
    cell::{Cell, RefCell},
    rc::{Rc, Weak},
    time::Duration,
};

use transport::Rank;

use super::{Run, tag};
use crate::{
    Error,
    graph::{Graph, Schedule},
    time::{EventTime, Watermark},
};

/// How often others are told.
const TELL_INTERVAL: Duration = Duration::from_millis(2);

/// How far the streams of a run are that keep step.
#[derive(Debug, Default)]
pub(crate) struct Alignment {
    /// The streams of this rank. Those that have ended are gone.
    steps: RefCell<Vec<Weak<Cell<EventTime>>>>,
    /// How far other ranks are that have such streams, as they have told.
    others: RefCell<Vec<(Rank, EventTime)>>,
    told: Cell<EventTime>,
    tell_at: Cell<Duration>,
}

/// A time behind which nobody waits.
const NOBODY: EventTime = EventTime::MAX;

/// How far one stream is, for as long as it is there.
#[derive(Debug)]
pub(crate) struct Step(Rc<Cell<EventTime>>);

impl Step {
    /// Takes note of how far it is.
    pub(crate) fn is_at(&self, watermark: Watermark) {
        self.0.set(match watermark {
            Watermark::At(time) => time,
            Watermark::Idle => NOBODY,
        });
    }
}

impl Alignment {
    /// Begins a run, in which these ranks have such streams.
    fn begin(&self, others: impl Iterator<Item = Rank>) {
        self.steps.borrow_mut().clear();
        *self.others.borrow_mut() = others.map(|rank| (rank, EventTime::MIN)).collect();
        self.told.set(EventTime::MIN);
    }

    /// A stream of this rank.
    pub(crate) fn enter(&self) -> Step {
        let step = Rc::new(Cell::new(EventTime::MIN));
        self.steps.borrow_mut().push(Rc::downgrade(&step));
        Step(step)
    }

    /// How far the slowest is of this rank.
    fn here(&self) -> EventTime {
        let steps = self.steps.borrow();
        let times = steps
            .iter()
            .filter_map(Weak::upgrade)
            .map(|step| step.get());
        times.min().unwrap_or(NOBODY)
    }

    /// How far the slowest is of all.
    pub(crate) fn least(&self) -> EventTime {
        let others = self.others.borrow();
        let others = others.iter().map(|&(_, time)| time);
        others.min().unwrap_or(NOBODY).min(self.here())
    }

    fn hear(&self, from: Rank, time: EventTime) {
        let mut others = self.others.borrow_mut();
        if let Some((_, told)) = others.iter_mut().find(|(rank, _)| *rank == from) {
            *told = time;
        }
    }
}

impl Run {
    /// Looks which ranks have streams that keep step.
    pub(super) fn begin_alignment(&self, graph: &Graph, schedule: &Schedule, needed: &[bool]) {
        let aligned = graph.vertices.iter().zip(needed);
        let aligned = aligned.filter(|(vertex, needed)| vertex.node.aligns && **needed);
        let aligned: Vec<_> = aligned
            .map(|(vertex, _)| schedule.instances(&vertex.node.placement))
            .collect();
        let others = (0..schedule.size()).filter(|&rank| {
            let is_there = aligned
                .iter()
                .any(|instances| instances.number_on(rank) > 0);
            rank != self.rank && is_there
        });
        self.alignment.begin(others);
    }

    /// Tells those who may wait how far this rank is.
    pub(super) fn align(&mut self) -> Result<(), Error> {
        let alignment = &self.alignment;
        let here = alignment.here();
        if here == alignment.told.get() || alignment.others.borrow().is_empty() {
            return Ok(());
        }
        if self.clock.now() < alignment.tell_at.get() {
            self.clock.wake_at(alignment.tell_at.get());
            return Ok(());
        }
        alignment.tell_at.set(self.clock.now() + TELL_INTERVAL);
        let tag = tag::of_run(self.number, tag::ALIGN);
        let mut fabric = self.fabric.borrow_mut();
        let mut is_told = true;
        for &(rank, _) in &*alignment.others.borrow() {
            is_told &= fabric.send_copy(rank, tag, &here.to_le_bytes())?;
        }
        if is_told {
            alignment.told.set(here);
        }
        Ok(())
    }

    /// Takes in how far another rank is; false if that is not what it says.
    pub(super) fn hear_of_alignment(&self, from: Rank, message: &[u8]) -> bool {
        let time = message.try_into().map(EventTime::from_le_bytes);
        time.is_ok_and(|time| {
            self.alignment.hear(from, time);
            true
        })
    }
}
