//! What a job did, in one line or two.

use std::{cmp::Reverse, time::Duration};

use dataflow::{TaskTotals, Totals};
use indicatif::{HumanBytes, HumanCount};

use crate::{executor::Done, links::Links};

/// What the runs of a job did, on all ranks.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    runs: u32,
    by_rank: Vec<Totals>,
    by_task: Vec<TaskTotals>,
    /// Those of this worker.
    links: Links,
}

impl Summary {
    /// Adds what each rank did in some runs, and notes what the links have carried up to its end.
    pub(crate) fn add(&mut self, done: Done) {
        let Done {
            runs,
            totals,
            by_task,
            links,
        } = done;
        self.links = links;
        self.runs += runs;
        add(&mut self.by_rank, &totals);
        for more in by_task {
            let mut known = self.by_task.iter_mut();
            match known.find(|known| known.task == more.task) {
                Some(known) => add(&mut known.instances, &more.instances),
                None => self.by_task.push(more),
            }
        }
    }

    /// What the instances of each task did, if that is measured.
    pub(crate) fn by_task(&self) -> &[TaskTotals] {
        &self.by_task
    }

    /// What each rank did, in their order.
    pub(crate) fn by_rank(&self) -> &[Totals] {
        &self.by_rank
    }

    /// How much more the busiest rank had to do than the mean: 1.0 is a perfect balance.
    fn imbalance(&self) -> f64 {
        let work = self
            .by_rank
            .iter()
            .map(|rank| (rank.records + rank.received) as f64);
        let (busiest, sum) = work.fold((0.0, 0.0), |(most, sum), one| {
            (f64::max(most, one), sum + one)
        });
        if sum > 0.0 {
            busiest * self.by_rank.len() as f64 / sum
        } else {
            1.0
        }
    }

    /// Records, bytes, time, imbalance, what went to disk if anything did, on a line of its own what went over links, if anything did,
    /// and a line for each task if they were measured; nothing when no graph was run. It is worker 0's that the user sees, so they are its links.
    pub(crate) fn text(&self, elapsed: Duration, workers: u32) -> String {
        if self.runs == 0 {
            return String::new();
        }
        let (records, bytes) = self.by_rank.iter().fold((0, 0), |(records, bytes), rank| {
            (records + rank.records, bytes + rank.bytes)
        });
        let spilled = match self.by_rank.iter().map(|rank| rank.spilled).sum() {
            0 => String::new(),
            bytes => format!(", {} on disk", HumanBytes(bytes)),
        };
        let seconds = elapsed.as_secs_f64();
        let links = match (self.links.is_empty(), workers) {
            (true, _) => String::new(),
            (false, 1) => format!("\nlinks: {}", self.links),
            (false, _) => format!("\nlinks of worker 0: {}", self.links),
        };
        let mut by_task: Vec<&TaskTotals> = self.by_task.iter().collect();
        by_task.sort_by_key(|task| {
            Reverse(task.instances.iter().map(|one| one.busy).sum::<Duration>())
        });
        let by_task: String = by_task.into_iter().map(task_line).collect();
        format!(
            "{} records, {} in {seconds:.3} s ({}/s), {} on {workers} {} with {} executors, imbalance {:.2}{spilled}{links}{by_task}",
            HumanCount(records),
            HumanBytes(bytes),
            HumanBytes((bytes as f64 / seconds.max(1e-9)) as u64),
            count(self.runs, "run"),
            if workers == 1 { "worker" } else { "workers" },
            self.by_rank.len(),
            self.imbalance(),
        )
    }
}

/// Adds what each did to what it did before.
fn add(sums: &mut Vec<Totals>, more: &[Totals]) {
    sums.resize(more.len().max(sums.len()), Totals::default());
    for (sum, one) in sums.iter_mut().zip(more) {
        *sum += *one;
    }
}

/// What a task did, on a line: how long it was at work and what came and went, and the instance with most work if there are several.
fn task_line(task: &TaskTotals) -> String {
    let mut sum = Totals::default();
    task.instances.iter().for_each(|one| sum += *one);
    let mut line = format!("\n{:.3} s in {}:", sum.busy.as_secs_f64(), task.task);
    for (records, bytes, what) in [
        (sum.records, sum.bytes, "read"),
        (sum.received, sum.received_bytes, "received"),
        (sum.sent, sum.sent_bytes, "sent"),
    ] {
        if records > 0 {
            line += &format!(
                " {what} {} records, {};",
                HumanCount(records),
                HumanBytes(bytes)
            );
        }
    }
    if sum.spilled > 0 {
        line += &format!(" {} on disk;", HumanBytes(sum.spilled));
    }
    if sum.waits > 0 {
        line += &format!(" waited {} times for room;", HumanCount(sum.waits));
    }
    let instances = task.instances.iter().enumerate();
    match instances.max_by_key(|(_, one)| one.busy) {
        Some((number, most)) if task.instances.len() > 1 => {
            let (all, seconds) = (task.instances.len(), most.busy.as_secs_f64());
            line + &format!(" {all} instances, {seconds:.3} s in instance {number}")
        }
        _ => line + " 1 instance",
    }
}

fn count(number: u32, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_tells_records_bytes_time_and_imbalance() {
        let mut summary = Summary::default();
        let totals = |records, received| Totals {
            records,
            bytes: records * 512,
            received,
            spilled: received * 1024,
            ..Totals::default()
        };
        for totals in [
            [totals(1000, 0), totals(1000, 500)],
            [totals(0, 0), totals(0, 500)],
        ] {
            summary.add(Done {
                runs: 1,
                totals: totals.into(),
                ..Done::default()
            });
        }
        assert_eq!(
            summary.text(Duration::from_millis(500), 1),
            "2,000 records, 1000.00 KiB in 0.500 s (1.95 MiB/s), 2 runs on 1 worker with 2 executors, \
             imbalance 1.33, 1000.00 KiB on disk"
        );
    }

    #[test]
    fn tasks_are_told_with_what_they_did_those_with_most_work_first() {
        let mut summary = Summary::default();
        let work = |busy_ms, received, waits| Totals {
            received,
            received_bytes: 16 * received,
            waits,
            busy: Duration::from_millis(busy_ms),
            ..Totals::default()
        };
        let task = |task: &str, instances: Vec<Totals>| TaskTotals {
            task: task.to_owned(),
            instances,
        };
        for _ in 0..2 {
            summary.add(Done {
                runs: 1,
                by_task: vec![
                    task("quick", vec![work(1, 10, 0)]),
                    task("slow (main.rs:7)", vec![work(100, 40, 1), work(400, 60, 2)]),
                ],
                ..Done::default()
            });
        }
        let text = summary.text(Duration::from_secs(1), 1);
        let lines: Vec<&str> = text.lines().skip(1).collect();
        assert_eq!(
            lines,
            [
                "1.000 s in slow (main.rs:7): received 200 records, 3.12 KiB; waited 6 times for room; \
                 2 instances, 0.800 s in instance 1",
                "0.002 s in quick: received 20 records, 320 B; 1 instance",
            ]
        );
    }
}
