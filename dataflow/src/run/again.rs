//! How a run of a graph is followed by another.

use transport::{Buffer, Rank};

use super::{Instance, Run, make::plans, run_after};
use crate::{
    Error,
    demand::Demand,
    stage::{Progress, Task},
};

impl Run {
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
        if self.is_live {
            let needed = vec![true; self.graph.vertices.len()];
            self.begin_alignment(&self.graph, &self.schedule, &needed);
        }
        for instance in &mut self.tasks {
            if instance.is_gone {
                instance.place.run = self.number;
                let node = &self.graph.vertices[instance.vertex].node;
                let task = (node.build)(&instance.place);
                instance.task = task.map_err(|error| instance.place.named(error))?;
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
        self.plans = plans(self.number, self.rank, self.schedule.size(), self.is_by_hub);
        self.look()?;
        Ok(())
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
