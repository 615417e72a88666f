//! Even spreading.

use transport::Rank;

use super::{Bundle, Scheduler, Seats, Task, Worker};
use crate::Error;

/// Spreads the instances of each task over the ranks in order, evenly. One that its worker cannot have goes to the next
/// worker that can.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RoundRobin;

impl Scheduler for RoundRobin {
    fn schedule(&self, tasks: &[Task], workers: &[Worker]) -> Result<Vec<Vec<Rank>>, Error> {
        let mut seats = Seats::new(tasks, workers, 0);
        for bundle in seats.bundles() {
            spread(&mut seats, &bundle, tasks, workers)?;
        }
        seats.ranks()
    }
}

/// The rank that even spreading gives one of so many instances.
pub(crate) fn even(instance: u32, instances: u32, size: u32) -> Rank {
    (u64::from(instance) * u64::from(size) / u64::from(instances)) as Rank
}

/// Puts a bundle where even spreading has it, or on the next worker.
pub(super) fn spread(
    seats: &mut Seats<'_>,
    bundle: &Bundle,
    tasks: &[Task],
    workers: &[Worker],
) -> Result<(), Error> {
    let Some(&(task, instance)) = bundle.members.first() else {
        return Ok(());
    };
    let size = workers.last().map_or(0, |worker| worker.ranks.end);
    let rank = even(instance, tasks[task].instances, size);
    let first = workers
        .iter()
        .position(|worker| worker.ranks.contains(&rank));
    let order = first
        .into_iter()
        .flat_map(|first| (first..workers.len()).chain(0..first));
    for worker in order {
        if seats.fits(bundle, worker).is_ok() {
            seats.place(bundle, worker, (Some(worker) == first).then_some(rank));
            return Ok(());
        }
    }
    Err(seats.refusal(bundle))
}
