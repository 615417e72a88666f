//! Partitions of several ranks, worked on by whichever of them is free.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
};

use transport::Rank;

use super::{Combiner, Table};
use crate::{Error, Group, Operation};

/// Harp's dynamic scheduler among the ranks of a process: each works on the partitions of its own table first, and then takes
/// over partitions of others that have more to do.
///
/// One is made for each process, outside of the program of its ranks, and each rank takes a [`Seat`]. Which rank works
/// on a partition depends on timing; what becomes of the partition does not, as long as the work is a function
/// of the partition alone.
///
/// ```
/// use collectives::{Engine, harp::{Elementwise, Scheduler, Table}, op::Sum};
/// use transport::{Arena, Fabric, Ledger};
///
/// let scheduler = Scheduler::new();
/// // What each rank of the process does; here it has one.
/// let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
/// let engine = Engine::simulated(fabric);
/// let table = engine.block_on(async {
///     let world = engine.world().await?;
///     let seat = scheduler.sit_down(&world).await?;
///     let mut table = Table::new(Elementwise(Sum));
///     table.add(0, vec![4.0f64, 9.0])?;
///     seat.for_each(&mut table, |_id, roots| roots.iter_mut().for_each(|x| *x = x.sqrt())).await?;
///     Ok(table)
/// })?;
/// assert_eq!(table.get(0), Some(&vec![2.0, 3.0]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Scheduler<P> {
    /// The first rank of this process that took a seat, by which processes are told apart.
    first: OnceLock<Rank>,
    desks: Mutex<Vec<Arc<Desk<P>>>>,
}

/// What a rank has to do, and what was done for it.
struct Desk<P> {
    to_do: Mutex<VecDeque<(u64, P)>>,
    done: Mutex<Vec<(u64, P)>>,
}

/// A lock's contents; a rank that panicked with it has ended the job anyway.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<P> Default for Scheduler<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P> Scheduler<P> {
    /// One without seats.
    pub fn new() -> Self {
        Self {
            first: OnceLock::new(),
            desks: Mutex::default(),
        }
    }

    /// Gives this rank a seat. All members of `group` have to take one, each with the scheduler of its process.
    ///
    /// # Errors
    ///
    /// As [`Group::split`].
    pub fn sit_down<'g>(
        &'g self,
        group: &'g Group,
    ) -> Operation<'g, impl Future<Output = Result<Seat<'g, P>, Error>>> {
        group.operation(async move {
            let first = *self.first.get_or_init(|| group.engine().rank());
            let colleagues = group.split(Some(first.into()), group.rank() as i64).await?;
            let Some(colleagues) = colleagues else {
                return Err(group.argument("sit_down", "the rank is in no group"));
            };
            let desk = Arc::new(Desk {
                to_do: Mutex::default(),
                done: Mutex::default(),
            });
            lock(&self.desks).push(desk.clone());
            Ok(Seat {
                scheduler: self,
                colleagues,
                desk,
            })
        })
    }
}

impl<P> fmt::Debug for Scheduler<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scheduler")
            .field("first", &self.first)
            .field("seats", &lock(&self.desks).len())
            .finish_non_exhaustive()
    }
}

/// A rank's place at a [`Scheduler`].
pub struct Seat<'s, P> {
    scheduler: &'s Scheduler<P>,
    colleagues: Group,
    desk: Arc<Desk<P>>,
}

impl<P> Seat<'_, P> {
    /// The ranks of this process.
    pub fn colleagues(&self) -> &Group {
        &self.colleagues
    }

    /// Does `work` on each partition of the tables of all ranks of this process, which all call this. Afterwards each has its
    /// partitions back. Gives the number of partitions that this rank worked on.
    ///
    /// # Errors
    ///
    /// See [`Error`].
    pub fn for_each<'g, C: Combiner<P>>(
        &'g self,
        table: &'g mut Table<P, C>,
        mut work: impl FnMut(u64, &mut P) + 'g,
    ) -> Operation<'g, impl Future<Output = Result<usize, Error>>> {
        self.colleagues.operation(async move {
            lock(&self.desk.to_do).extend(table.drain());
            // Nobody looks for work before all have said what there is.
            self.colleagues.barrier().await?;
            let mut count = 0;
            while let Some((owner, id, mut partition)) = self.next() {
                work(id, &mut partition);
                lock(&owner.done).push((id, partition));
                count += 1;
                self.colleagues.engine().turn()?;
            }
            // Who gets here has done all it took over.
            self.colleagues.barrier().await?;
            for (id, partition) in lock(&self.desk.done).drain(..) {
                table.add(id, partition)?;
            }
            Ok(count)
        })
    }

    /// The next of the own partitions, or one of those who have most left.
    fn next(&self) -> Option<(Arc<Desk<P>>, u64, P)> {
        if let Some((id, partition)) = lock(&self.desk.to_do).pop_front() {
            return Some((self.desk.clone(), id, partition));
        }
        loop {
            let desks = lock(&self.scheduler.desks);
            let fullest = desks
                .iter()
                .max_by_key(|desk| lock(&desk.to_do).len())?
                .clone();
            drop(desks);
            let mut to_do = lock(&fullest.to_do);
            if let Some((id, partition)) = to_do.pop_back() {
                drop(to_do);
                return Some((fullest, id, partition));
            }
            drop(to_do);
            let desks = lock(&self.scheduler.desks);
            if desks.iter().all(|desk| lock(&desk.to_do).is_empty()) {
                return None;
            }
        }
    }
}

impl<P> Drop for Seat<'_, P> {
    fn drop(&mut self) {
        lock(&self.scheduler.desks).retain(|desk| !Arc::ptr_eq(desk, &self.desk));
    }
}

impl<P> fmt::Debug for Seat<'_, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seat")
            .field("colleagues", &self.colleagues)
            .finish_non_exhaustive()
    }
}
