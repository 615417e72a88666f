//! The account of what is placed where.

use std::collections::HashMap;

use transport::Rank;

use super::{Constraint, Task, Worker};
use crate::Error;

/// What has to be on the same worker: an instance of a task that goes with no other, and the instances that go
/// with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Tasks by their numbers, each with an instance. The first is the one that the others go with.
    pub members: Vec<(usize, u32)>,
}

/// What workers have room for, and what is on them.
#[derive(Debug, Clone)]
pub struct Seats<'a> {
    tasks: &'a [Task],
    workers: &'a [Worker],
    free: Vec<Room>,
    /// Instances of each task on each worker.
    counts: Vec<Vec<u32>>,
    /// Instances on each rank: of each task, and of all.
    on_rank: Vec<HashMap<usize, u32>>,
    all_on_rank: Vec<u32>,
    placed: Vec<Vec<Option<Rank>>>,
    /// The tasks that each is to be apart from, whichever of the two says so.
    apart: Vec<Vec<usize>>,
    /// The hosts that alone have what an instance reads, of those that are bound to some.
    bound: HashMap<(usize, u32), Vec<&'a [String]>>,
}

/// What there is only so much of.
#[derive(Debug, Clone, Copy, Default)]
struct Room {
    millicores: u64,
    memory_bytes: u64,
}

impl<'a> Seats<'a> {
    /// Empty workers, of whose memory and cores so many percent are left free.
    pub fn new(tasks: &'a [Task], workers: &'a [Worker], padding_percent: u32) -> Self {
        let used = u64::from(100 - padding_percent.min(100));
        let share = |whole: u64| (u128::from(whole) * u128::from(used) / 100) as u64;
        let free = |worker: &Worker| Room {
            millicores: share(1000 * u64::from(worker.cores)),
            memory_bytes: share(worker.memory_bytes),
        };
        let ranks = workers.last().map_or(0, |worker| worker.ranks.end as usize);
        let apart = |(number, task): (usize, &Task)| {
            let others = tasks.iter().enumerate();
            let apart = others.filter(|(other, its)| {
                *other != number
                    && (task.apart_from.contains(&its.name) || its.apart_from.contains(&task.name))
            });
            apart.map(|(other, _)| other).collect()
        };
        let mut bound: HashMap<_, Vec<&[String]>> = HashMap::new();
        for (number, task) in tasks.iter().enumerate() {
            for split in task.splits.iter().filter(|split| split.is_bound) {
                let hosts = bound.entry((number, split.instance)).or_default();
                if !hosts.contains(&&split.hosts[..]) {
                    hosts.push(&split.hosts);
                }
            }
        }
        Self {
            bound,
            free: workers.iter().map(free).collect(),
            counts: vec![vec![0; tasks.len()]; workers.len()],
            on_rank: vec![HashMap::new(); ranks],
            all_on_rank: vec![0; ranks],
            placed: tasks
                .iter()
                .map(|task| vec![None; task.instances as usize])
                .collect(),
            apart: tasks.iter().enumerate().map(apart).collect(),
            tasks,
            workers,
        }
    }

    /// All instances as bundles, in the order of the tasks that go with no other, and of their instances.
    pub fn bundles(&self) -> Vec<Bundle> {
        let numbers: HashMap<_, _> = self.tasks.iter().map(|task| &task.name).zip(0..).collect();
        let other = |task: usize| {
            let with = self.tasks[task].with.as_ref()?;
            numbers.get(with).copied()
        };
        let mut places: HashMap<(usize, u32), Bundle> = HashMap::new();
        for first_of_bundles in [true, false] {
            for (number, task) in self.tasks.iter().enumerate() {
                if other(number).is_none() != first_of_bundles {
                    continue;
                }
                for instance in 0..task.instances {
                    let mut at = (number, instance);
                    for _ in 0..self.tasks.len() {
                        let Some(next) = other(at.0) else { break };
                        let (of, its) = (self.tasks[at.0].instances, self.tasks[next].instances);
                        let instance = u64::from(at.1) * u64::from(its) / u64::from(of);
                        at = (next, instance as u32);
                    }
                    let bundle = places.entry(at).or_insert_with(|| Bundle {
                        members: Vec::new(),
                    });
                    bundle.members.push((number, instance));
                }
            }
        }
        let mut bundles: Vec<_> = places.into_iter().collect();
        bundles.sort_by_key(|(at, _)| *at);
        bundles.into_iter().map(|(_, bundle)| bundle).collect()
    }

    /// Whether a worker can have a bundle, or the first constraint that it would not keep.
    ///
    /// # Errors
    ///
    /// The task, the instance, and the constraint.
    pub fn fits(&self, bundle: &Bundle, worker: usize) -> Result<(), (usize, u32, Constraint)> {
        self.can_read(bundle, worker)?;
        self.has_room(bundle, worker)
    }

    /// Whether the host of a worker has all that a bundle reads and that no other host can read.
    pub(super) fn can_read(
        &self,
        bundle: &Bundle,
        worker: usize,
    ) -> Result<(), (usize, u32, Constraint)> {
        for &(task, instance) in &bundle.members {
            self.can_read_one(task, instance, worker)
                .map_err(|constraint| (task, instance, constraint))?;
        }
        Ok(())
    }

    fn can_read_one(&self, task: usize, instance: u32, worker: usize) -> Result<(), Constraint> {
        let mut bound = self.bound.get(&(task, instance)).into_iter().flatten();
        match bound.find(|hosts| !hosts.contains(&self.workers[worker].host)) {
            Some(hosts) => Err(Constraint::Hosts(hosts.to_vec())),
            None => Ok(()),
        }
    }

    /// Whether a worker can have a bundle like this one, whatever it reads.
    fn has_room(&self, bundle: &Bundle, worker: usize) -> Result<(), (usize, u32, Constraint)> {
        let mut room = Room::default();
        for (position, &(task, instance)) in bundle.members.iter().enumerate() {
            let before = &bundle.members[..position];
            let same = before.iter().filter(|(other, _)| *other == task).count() as u32;
            self.fits_with(task, worker, room, same)
                .map_err(|constraint| (task, instance, constraint))?;
            let apart = before
                .iter()
                .find(|(other, _)| self.apart[task].contains(other));
            if let Some((other, _)) = apart {
                let constraint = Constraint::ApartFrom(self.tasks[*other].name.clone());
                return Err((task, instance, constraint));
            }
            room.millicores += u64::from(self.tasks[task].millicores);
            room.memory_bytes = room
                .memory_bytes
                .saturating_add(self.tasks[task].memory_bytes);
        }
        Ok(())
    }

    /// The same for one instance of a task.
    pub(super) fn fits_one(
        &self,
        task: usize,
        instance: u32,
        worker: usize,
    ) -> Result<(), Constraint> {
        self.can_read_one(task, instance, worker)?;
        self.fits_with(task, worker, Room::default(), 0)
    }

    /// The same, when so much is to be on the worker besides, and so many instances of the same task.
    fn fits_with(
        &self,
        number: usize,
        worker: usize,
        besides: Room,
        same: u32,
    ) -> Result<(), Constraint> {
        let (task, free) = (&self.tasks[number], self.free[worker]);
        let has = |attribute: &&String| self.workers[worker].attributes.contains(*attribute);
        if let Some(missing) = task.attributes.iter().find(|attribute| !has(attribute)) {
            return Err(Constraint::Attribute(missing.clone()));
        }
        let counts = &self.counts[worker];
        if let Some(most) = task.per_worker_max
            && counts[number] + same >= most
        {
            return Err(Constraint::PerWorkerMax(most));
        }
        if let Some(&other) = self.apart[number].iter().find(|&&other| counts[other] > 0) {
            return Err(Constraint::ApartFrom(self.tasks[other].name.clone()));
        }
        let millicores = u64::from(task.millicores);
        if millicores > 0 && besides.millicores + millicores > free.millicores {
            return Err(Constraint::Millicores(millicores));
        }
        let bytes = task.memory_bytes;
        if bytes > 0 && besides.memory_bytes.saturating_add(bytes) > free.memory_bytes {
            return Err(Constraint::MemoryBytes(bytes));
        }
        Ok(())
    }

    /// How often a worker could have a bundle like this one, up to `most` times, whatever those would read.
    pub fn times(&self, bundle: &Bundle, worker: usize, most: u32) -> u32 {
        let mut seats = self.clone();
        let fits = |_: &u32| {
            let fits = seats.has_room(bundle, worker).is_ok();
            if fits {
                seats.place(bundle, worker, None);
            }
            fits
        };
        (0..most).take_while(fits).count() as u32
    }

    /// Instances on a worker.
    pub(super) fn instances_on(&self, worker: usize) -> u32 {
        self.counts[worker].iter().sum()
    }

    /// Puts a bundle on a worker: each of its instances on the rank there that has the fewest of its task, except
    /// the first, if it is known where that is to be.
    pub fn place(&mut self, bundle: &Bundle, worker: usize, first: Option<Rank>) {
        for (position, &(task, instance)) in bundle.members.iter().enumerate() {
            let of_task = |rank: &Rank| {
                let on_rank = self.on_rank[*rank as usize].get(&task).copied();
                (on_rank.unwrap_or(0), self.all_on_rank[*rank as usize])
            };
            let best = self.workers[worker].ranks.clone().min_by_key(of_task);
            let Some(rank) = first.filter(|_| position == 0).or(best) else {
                continue;
            };
            self.take(task, instance, rank, worker);
        }
    }

    /// Puts an instance on a rank of a worker.
    pub(super) fn take(&mut self, task: usize, instance: u32, rank: Rank, worker: usize) {
        let free = &mut self.free[worker];
        let needs = &self.tasks[task];
        free.millicores = free.millicores.saturating_sub(needs.millicores.into());
        free.memory_bytes = free.memory_bytes.saturating_sub(needs.memory_bytes);
        self.counts[worker][task] += 1;
        *self.on_rank[rank as usize].entry(task).or_default() += 1;
        self.all_on_rank[rank as usize] += 1;
        self.placed[task][instance as usize] = Some(rank);
    }

    /// Why no worker can have a bundle: the constraint that rules out those that all others leave.
    pub fn refusal(&self, bundle: &Bundle) -> Error {
        let order = |constraint: &Constraint| match constraint {
            Constraint::Attribute(_) | Constraint::Hosts(_) => 0,
            Constraint::ApartFrom(_) => 1,
            Constraint::PerWorkerMax(_) => 2,
            Constraint::Millicores(_) => 3,
            _ => 4,
        };
        let refusals = (0..self.workers.len()).filter_map(|worker| self.fits(bundle, worker).err());
        let last = refusals.max_by_key(|(.., constraint)| order(constraint));
        let (task, instance) = bundle.members.first().copied().unwrap_or_default();
        let none = Constraint::Placed("the job has no workers".to_owned());
        let (task, instance, constraint) = last.unwrap_or((task, instance, none));
        Error::Unplaceable {
            task: self.tasks[task].name.clone(),
            instance,
            constraint,
        }
    }

    /// The rank of every instance. Where it makes no difference which instance is which, they are numbered in the
    /// order of their ranks, so that results are in order too.
    ///
    /// # Errors
    ///
    /// [`Error::Unplaceable`] if one has none.
    pub fn ranks(self) -> Result<Vec<Vec<Rank>>, Error> {
        let mut all = Vec::with_capacity(self.tasks.len());
        for (task, placed) in self.tasks.iter().zip(&self.placed) {
            let mut ranks = Vec::with_capacity(placed.len());
            for (instance, rank) in placed.iter().enumerate() {
                ranks.push(rank.ok_or_else(|| Error::Unplaceable {
                    task: task.name.clone(),
                    instance: instance as u32,
                    constraint: Constraint::Placed("it was given no place".to_owned()),
                })?);
            }
            let tied = |other: &Task| other.with.as_ref() == Some(&task.name);
            if task.splits.is_empty() && task.with.is_none() && !self.tasks.iter().any(tied) {
                ranks.sort_unstable();
            }
            all.push(ranks);
        }
        Ok(all)
    }
}
