//! Placing by where bytes are.

use std::collections::{BTreeMap, HashMap};

use transport::Rank;

use super::{Bundle, Scheduler, Seats, Task, Worker, round_robin::spread};
use crate::Error;

/// Puts instances where the [splits](super::Split) are that they read.
///
/// Each task that has splits is placed, one after the other, so that bytes take the least time in all to come from other
/// hosts: those of a split divided by the bandwidth from the nearest host that has it, as far as that was
/// [measured](Worker::bytes_per_second). What is on the own host takes none. No worker gets more than its
/// even share of a task, unless others cannot take theirs. The rest is spread evenly.
///
/// That is the optimum for each task by itself, if the instances that are to be with its own are as many for each.
/// (Successive shortest paths, as for any transportation problem: see Ahuja, Magnanti and Orlin, *Network Flows*,
/// 9.7.) Where they are not, or where there is no room for the largest everywhere, those with most bytes choose
/// first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locality {
    /// Bytes a second that come from another host, unless measured.
    pub bytes_per_second: u64,
}

impl Default for Locality {
    /// What a network of 10 Gbit/s carries.
    fn default() -> Self {
        Self {
            bytes_per_second: 1 << 30,
        }
    }
}

impl Locality {
    /// Nanoseconds that the splits of one instance take to come to a worker. Those that are equally far from all do not
    /// count.
    pub fn nanoseconds(&self, task: &Task, instance: u32, worker: &Worker) -> u128 {
        let splits = task
            .splits
            .iter()
            .filter(|split| split.instance == instance && !split.hosts.contains(&worker.host));
        splits
            .filter_map(|split| {
                let rate = |host| worker.bytes_per_second.get(host).copied();
                let rates = split.hosts.iter().map(rate);
                let rates = rates.map(|rate| rate.unwrap_or(self.bytes_per_second));
                Some(u128::from(split.bytes) * 1_000_000_000 / u128::from(rates.max()?.max(1)))
            })
            .sum()
    }

    /// The time of each bundle on each worker.
    fn costs(
        &self,
        bundles: &[Bundle],
        seats: &Seats<'_>,
        tasks: &[Task],
        workers: &[Worker],
    ) -> Vec<Vec<i128>> {
        let cost = |bundle: &Bundle, number: usize, worker: &Worker| {
            if seats.can_read(bundle, number).is_err() {
                return UNREADABLE;
            }
            let members = bundle.members.iter();
            let times =
                members.map(|&(task, instance)| self.nanoseconds(&tasks[task], instance, worker));
            times.sum::<u128>() as i128
        };
        let costs = |bundle| {
            let workers = workers.iter().enumerate();
            workers
                .map(|(number, worker)| cost(bundle, number, worker))
                .collect()
        };
        bundles.iter().map(costs).collect()
    }
}

impl Scheduler for Locality {
    fn schedule(&self, tasks: &[Task], workers: &[Worker]) -> Result<Vec<Vec<Rank>>, Error> {
        let mut seats = Seats::new(tasks, workers, 0);
        let mut of_task = BTreeMap::<usize, Vec<Bundle>>::new();
        for bundle in seats.bundles() {
            if let Some(&(first, _)) = bundle.members.first() {
                of_task.entry(first).or_default().push(bundle);
            }
        }
        let reads = |bundle: &Bundle| {
            let mut members = bundle.members.iter();
            members.any(|(task, _)| !tasks[*task].splits.is_empty())
        };
        let (reading, others): (Vec<_>, Vec<_>) = of_task
            .into_values()
            .partition(|bundles| bundles.iter().any(reads));
        for bundles in reading {
            let costs = self.costs(&bundles, &seats, tasks, workers);
            match assign_evenly(&seats, &bundles, &costs) {
                Some(assigned) => {
                    for (bundle, worker) in bundles.iter().zip(assigned) {
                        seats.place(bundle, worker, None);
                    }
                }
                None => choose(&mut seats, &bundles, &costs)?,
            }
        }
        for bundle in others.iter().flatten() {
            spread(&mut seats, bundle, tasks, workers)?;
        }
        seats.ranks()
    }
}

/// The cost of what cannot be read at all: more than all else together.
const UNREADABLE: i128 = 1 << 110;

/// The worker of each bundle of a task, if they are alike and there is a place for all: the optimum among those in which no
/// worker gets more than a share, for the least share of which there is any.
fn assign_evenly(seats: &Seats<'_>, bundles: &[Bundle], costs: &[Vec<i128>]) -> Option<Vec<usize>> {
    let shape = |bundle: &Bundle| {
        let mut members: Vec<_> = bundle.members.iter().map(|(task, _)| *task).collect();
        members.sort_unstable();
        members
    };
    let first = bundles.first()?;
    if bundles.iter().any(|bundle| shape(bundle) != shape(first)) {
        return None;
    }
    let most: Vec<u32> = (0..costs.first()?.len())
        .map(|worker| seats.times(first, worker, bundles.len() as u32))
        .collect();
    let assign_by = |share: usize| {
        let room: Vec<u32> = most.iter().map(|&most| most.min(share as u32)).collect();
        let total: u64 = room.iter().copied().map(u64::from).sum();
        let assigned = (total >= bundles.len() as u64).then(|| assign(costs, &room))??;
        let mut workers = costs.iter().zip(&assigned);
        let can_read = workers.all(|(costs, &worker)| costs[worker] < UNREADABLE);
        can_read.then_some(assigned)
    };
    // What a share has room for, a larger one has.
    let (mut least, mut enough) = (1, bundles.len());
    let mut assigned = assign_by(enough)?;
    while least < enough {
        let share = least.midpoint(enough);
        match assign_by(share) {
            Some(better) => (enough, assigned) = (share, better),
            None => least = share + 1,
        }
    }
    Some(assigned)
}

/// The worker of each bundle such that the sum of the costs is the least, with so much room on each worker.
///
/// The bundles are assigned one after the other, each along the cheapest path: to a worker, from there another to the
/// next, and so on to one that has room. What is assigned is optimal at every step, so no cycle of moves gains
/// anything.
fn assign(costs: &[Vec<i128>], room: &[u32]) -> Option<Vec<usize>> {
    let workers = room.len();
    let mut held: Vec<Vec<usize>> = vec![Vec::new(); workers];
    for (bundle, cost) in costs.iter().enumerate() {
        // What it costs to have a worker get one more, and who moves on from the worker before for that.
        let mut reached = cost.clone();
        let mut came: Vec<Option<(usize, usize)>> = vec![None; workers];
        let mut moves = HashMap::new();
        for from in 0..workers {
            for to in (0..workers).filter(|&to| to != from) {
                let gain = |&held: &usize| costs[held][to] - costs[held][from];
                if let Some(&best) = held[from].iter().min_by_key(|held| gain(held)) {
                    moves.insert((from, to), (gain(&best), best));
                }
            }
        }
        for _ in 0..workers {
            let mut changed = false;
            for from in 0..workers {
                for to in 0..workers {
                    if room[from] == 0 || room[to] == 0 {
                        continue;
                    }
                    if let Some(&(gain, moved)) = moves.get(&(from, to))
                        && reached[from] + gain < reached[to]
                    {
                        reached[to] = reached[from] + gain;
                        came[to] = Some((from, moved));
                        changed = true;
                    }
                }
            }
            if !changed {
                break;
            }
        }
        let free = (0..workers).filter(|&worker| held[worker].len() < room[worker] as usize);
        let mut at = free.min_by_key(|&worker| reached[worker])?;
        while let Some((from, moved)) = came[at] {
            held[from].retain(|&held| held != moved);
            held[at].push(moved);
            at = from;
        }
        held[at].push(bundle);
    }
    let mut assigned = vec![0; costs.len()];
    for (worker, bundles) in held.iter().enumerate() {
        for &bundle in bundles {
            assigned[bundle] = worker;
        }
    }
    Some(assigned)
}

/// Has bundles choose their worker one after the other, those first for which most is at stake.
fn choose(seats: &mut Seats<'_>, bundles: &[Bundle], costs: &[Vec<i128>]) -> Result<(), Error> {
    let mut order: Vec<usize> = (0..bundles.len()).collect();
    let stake = |bundle: &usize| {
        let costs = &costs[*bundle];
        let (least, most) = (costs.iter().min(), costs.iter().max());
        most.copied().unwrap_or(0) - least.copied().unwrap_or(0)
    };
    order.sort_by_key(|bundle| (std::cmp::Reverse(stake(bundle)), *bundle));
    for bundle in order {
        let workers = 0..costs[bundle].len();
        let fitting = workers.filter(|&worker| seats.fits(&bundles[bundle], worker).is_ok());
        let cost = |&worker: &usize| (costs[bundle][worker], seats.instances_on(worker));
        let Some(worker) = fitting.min_by_key(cost) else {
            return Err(seats.refusal(&bundles[bundle]));
        };
        seats.place(&bundles[bundle], worker, None);
    }
    Ok(())
}
