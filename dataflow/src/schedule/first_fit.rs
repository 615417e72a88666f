//! Packing by what instances need.

use std::cmp::Reverse;

use transport::Rank;

use super::{Bundle, Scheduler, Seats, Task, Worker, round_robin::spread};
use crate::Error;

/// Puts instances on the first worker that has room for them, those that need most memory first, then those that need
/// most cores: few workers are used, and those that are free stay free for what is large. What needs neither is
/// spread evenly.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstFit {
    /// The part of each worker's memory and cores that is left free, in percent.
    pub padding_percent: u32,
}

impl Default for FirstFit {
    /// A tenth is left free.
    fn default() -> Self {
        Self {
            padding_percent: 10,
        }
    }
}

impl Scheduler for FirstFit {
    fn schedule(&self, tasks: &[Task], workers: &[Worker]) -> Result<Vec<Vec<Rank>>, Error> {
        let mut seats = Seats::new(tasks, workers, self.padding_percent);
        let (mut packed, others): (Vec<_>, Vec<_>) =
            seats.bundles().into_iter().partition(|bundle| {
                let mut members = bundle.members.iter();
                members.any(|(task, _)| tasks[*task].takes_room())
            });
        let needs = |bundle: &Bundle| {
            let members = bundle.members.iter().map(|(task, _)| &tasks[*task]);
            members.fold((0u64, 0u64), |(bytes, millicores), task| {
                let bytes = bytes.saturating_add(task.memory_bytes);
                (bytes, millicores + u64::from(task.millicores))
            })
        };
        packed.sort_by_key(|bundle| Reverse(needs(bundle)));
        for bundle in &packed {
            let first = (0..workers.len()).find(|&worker| seats.fits(bundle, worker).is_ok());
            let Some(worker) = first else {
                return Err(seats.refusal(bundle));
            };
            seats.place(bundle, worker, None);
        }
        for bundle in &others {
            spread(&mut seats, bundle, tasks, workers)?;
        }
        seats.ranks()
    }
}
