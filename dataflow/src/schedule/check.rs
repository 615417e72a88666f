//! Whether demands make sense, and whether a placement keeps them.

use std::collections::HashMap;

use transport::Rank;

use super::{Constraint, Seats, Task, Worker};
use crate::Error;

/// Checks that demands can be told apart and do not contradict themselves.
///
/// # Errors
///
/// [`Error::BadTask`], which names the task and what is wrong.
pub fn check_tasks(tasks: &[Task]) -> Result<(), Error> {
    let mut numbers = HashMap::new();
    for (number, task) in tasks.iter().enumerate() {
        if numbers.insert(task.name.as_str(), number).is_some() {
            return Err(bad(task, "there is another task of this name"));
        }
    }
    for task in tasks {
        if task.instances == 0 {
            return Err(bad(task, "it has no instances"));
        }
        if task.per_worker_max == Some(0) {
            return Err(bad(task, "no worker may have an instance of it"));
        }
        if let Some(split) = task
            .splits
            .iter()
            .find(|split| split.instance >= task.instances)
        {
            let reason = format!(
                "a split is for instance {}, of {}",
                split.instance, task.instances
            );
            return Err(bad(task, reason));
        }
        for other in task.with.iter().chain(&task.apart_from) {
            if !numbers.contains_key(other.as_str()) {
                return Err(bad(
                    task,
                    format!("there is no task \"{other}\" to be with or apart from"),
                ));
            }
        }
        if task.apart_from.contains(&task.name) {
            let reason = "it cannot be apart from itself: have a worker get one instance at most";
            return Err(bad(task, reason));
        }
        let others = std::iter::successors(task.with.as_ref(), |other| {
            let number = numbers.get(other.as_str())?;
            tasks[*number].with.as_ref()
        });
        for other in others.take(tasks.len()) {
            if *other == task.name {
                return Err(bad(task, "it is to be with itself, by way of others"));
            }
            let number = numbers.get(other.as_str());
            let apart = number.is_some_and(|&number| tasks[number].apart_from.contains(&task.name));
            if apart || task.apart_from.contains(other) {
                return Err(bad(
                    task,
                    format!("it is to be both with task \"{other}\" and apart from it"),
                ));
            }
        }
    }
    Ok(())
}

fn bad(task: &Task, reason: impl Into<String>) -> Error {
    Error::BadTask {
        task: task.name.clone(),
        reason: reason.into(),
    }
}

/// Checks that a placement has every instance on a rank, and keeps what the tasks demand.
///
/// # Errors
///
/// [`Error::Unplaceable`], with the first constraint that is not kept.
pub fn check(tasks: &[Task], workers: &[Worker], placed: &[Vec<Rank>]) -> Result<(), Error> {
    if placed.len() != tasks.len() {
        let reason = format!("{} tasks have a place, of {}", placed.len(), tasks.len());
        let name = tasks.get(placed.len()).map(|task| task.name.clone());
        return Err(Error::Unplaceable {
            task: name.unwrap_or_default(),
            instance: 0,
            constraint: Constraint::Placed(reason),
        });
    }
    let worker_of = |rank: Rank| {
        workers
            .iter()
            .position(|worker| worker.ranks.contains(&rank))
    };
    let mut seats = Seats::new(tasks, workers, 0);
    for (number, (task, ranks)) in tasks.iter().zip(placed).enumerate() {
        let refused = |instance: usize, constraint| Error::Unplaceable {
            task: task.name.clone(),
            instance: instance as u32,
            constraint,
        };
        if ranks.len() != task.instances as usize {
            let reason = format!(
                "{} of its instances have a place, of {}",
                ranks.len(),
                task.instances
            );
            return Err(refused(ranks.len(), Constraint::Placed(reason)));
        }
        for (instance, &rank) in ranks.iter().enumerate() {
            let Some(worker) = worker_of(rank) else {
                let reason = format!("it was placed on rank {rank}, which the job does not have");
                return Err(refused(instance, Constraint::Placed(reason)));
            };
            seats
                .fits_one(number, instance as u32, worker)
                .map_err(|constraint| refused(instance, constraint))?;
            seats.take(number, instance as u32, rank, worker);
        }
    }
    for (task, ranks) in tasks.iter().zip(placed) {
        let Some(other) = &task.with else { continue };
        let Some(number) = tasks.iter().position(|task| task.name == *other) else {
            continue;
        };
        for (instance, &rank) in ranks.iter().enumerate() {
            let its = instance * placed[number].len() / ranks.len();
            if worker_of(rank) != worker_of(placed[number][its]) {
                return Err(Error::Unplaceable {
                    task: task.name.clone(),
                    instance: instance as u32,
                    constraint: Constraint::With(other.clone()),
                });
            }
        }
    }
    Ok(())
}
