//! Placing by where bytes are.

use std::collections::{BTreeMap, HashMap};

use transport::Rank;

use super::{Bundle, Scheduler, Seats, Task, Worker, round_robin::spread};
use crate::Error;

/// Puts instances where the [splits](super::Split) are that they read.
///
/// Each task that has splits is placed, one after the other, so that reading them takes the least time in all: a
/// split takes its bytes divided by the bandwidth from the nearest host that has it. No worker gets more than its
/// even share of a task, unless others cannot take theirs. The rest is spread evenly.
///
/// That is the optimum for each task by itself, if the instances that are to be with its own are as many for each.
/// (Successive shortest paths, as for any transportation problem: see Ahuja, Magnanti and Orlin, *Network Flows*,
/// 9.7.) Where they are not, or where there is no room for the largest everywhere, those with most bytes choose
/// first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locality {
    /// Bytes a second that come from the own host.
    pub local_bytes_per_second: u64,
    /// Bytes a second that come from another host, unless measured.
    pub remote_bytes_per_second: u64,
    /// Bytes a second that were measured, by the host that has the split and that of the worker.
    pub measured: BTreeMap<(String, String), u64>,
}

impl Default for Locality {
    /// What a disk and what a network of 10 Gbit/s carry.
    fn default() -> Self {
        Self {
            local_bytes_per_second: 4 << 30,
            remote_bytes_per_second: 1 << 30,
            measured: BTreeMap::new(),
        }
    }
}

impl Locality {
    /// Nanoseconds that the splits of one instance take to be read on a host. Those that are equally far from all do
    /// not count.
    pub fn nanoseconds(&self, task: &Task, instance: u32, host: &str) -> u128 {
        let splits = task
            .splits
            .iter()
            .filter(|split| split.instance == instance);
        splits
            .filter_map(|split| {
                let rates = split
                    .hosts
                    .iter()
                    .map(|from| self.bytes_per_second(from, host));
                let rate = rates.max()?.max(1);
                Some(u128::from(split.bytes) * 1_000_000_000 / u128::from(rate))
            })
            .sum()
    }

    fn bytes_per_second(&self, from: &str, to: &str) -> u64 {
        let measured = self.measured.get(&(from.to_owned(), to.to_owned()));
        measured.copied().unwrap_or(if from == to {
            self.local_bytes_per_second
        } else {
            self.remote_bytes_per_second
        })
    }

    /// The time of each bundle on each worker.
    fn costs(&self, bundles: &[Bundle], tasks: &[Task], workers: &[Worker]) -> Vec<Vec<i128>> {
        let cost = |bundle: &Bundle, worker: &Worker| {
            let members = bundle.members.iter();
            let times = members
                .map(|&(task, instance)| self.nanoseconds(&tasks[task], instance, &worker.host));
            times.sum::<u128>() as i128
        };
        let costs = |bundle| workers.iter().map(|worker| cost(bundle, worker)).collect();
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
            let costs = self.costs(&bundles, tasks, workers);
            let room = rooms(&seats, &bundles, workers.len());
            match room.and_then(|room| assign(&costs, &room)) {
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

/// How many of the bundles of a task each worker may get, if they are alike and there is room for all: the least that
/// is enough.
fn rooms(seats: &Seats<'_>, bundles: &[Bundle], workers: usize) -> Option<Vec<u32>> {
    let shape = |bundle: &Bundle| {
        let mut members: Vec<_> = bundle.members.iter().map(|(task, _)| *task).collect();
        members.sort_unstable();
        members
    };
    let first = bundles.first()?;
    if bundles.iter().any(|bundle| shape(bundle) != shape(first)) {
        return None;
    }
    let most: Vec<u32> = (0..workers)
        .map(|worker| seats.times(first, worker, bundles.len() as u32))
        .collect();
    let with_room = most.iter().filter(|&&most| most > 0).count().max(1);
    (bundles.len().div_ceil(with_room)..=bundles.len()).find_map(|share| {
        let room: Vec<u32> = most.iter().map(|&most| most.min(share as u32)).collect();
        let total: u64 = room.iter().copied().map(u64::from).sum();
        (total >= bundles.len() as u64).then_some(room)
    })
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
        let Some(worker) = fitting.min_by_key(|&worker| costs[bundle][worker]) else {
            return Err(seats.refusal(&bundles[bundle]));
        };
        seats.place(&bundles[bundle], worker, None);
    }
    Ok(())
}
