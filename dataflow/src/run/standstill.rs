//! Runs that stand still for a while, or are ended.

use std::collections::{BTreeSet, VecDeque};

use transport::Rank;

use super::{Run, tag};
use crate::Error;

/// Who wants a run to stand still.
#[derive(Default)]
pub(super) struct Standstill {
    /// Whether this rank does.
    pub(super) here: bool,
    pub(super) others: BTreeSet<Rank>,
    /// What is still to be told.
    pub(super) untold: VecDeque<(Rank, u8)>,
}

impl Run {
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
    pub(super) fn stands_still(&mut self) -> Result<bool, Error> {
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
}

pub(super) fn cancelled(by: &str, reason: &str) -> Error {
    Error::Cancelled {
        by: by.to_owned(),
        reason: reason.to_owned(),
    }
}
