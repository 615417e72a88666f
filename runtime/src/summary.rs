//! What a job did, in one line or two.

use std::time::Duration;

use dataflow::Totals;
use indicatif::{HumanBytes, HumanCount};

use crate::{executor::Done, links::Links};

/// What the runs of a job did, on all ranks.
#[derive(Debug, Default)]
pub(crate) struct Summary {
    runs: u32,
    by_rank: Vec<Totals>,
    /// Those of this worker.
    links: Links,
}

impl Summary {
    /// Adds what each rank did in some runs, and notes what the links have carried up to its end.
    pub(crate) fn add(&mut self, done: Done) {
        let Done {
            runs,
            totals,
            links,
        } = done;
        self.links = links;
        self.runs += runs;
        self.by_rank
            .resize(totals.len().max(self.by_rank.len()), Totals::default());
        for (sum, one) in self.by_rank.iter_mut().zip(&totals) {
            *sum += *one;
        }
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

    /// Records, bytes, time, imbalance, what went to disk if anything did, and on a line of its own what went over links, if anything did;
    /// nothing when no graph was run. It is worker 0's that the user sees, so they are its links.
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
        format!(
            "{} records, {} in {seconds:.3} s ({}/s), {} on {workers} {} with {} executors, imbalance {:.2}{spilled}{links}",
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
        };
        for totals in [
            [totals(1000, 0), totals(1000, 500)],
            [totals(0, 0), totals(0, 500)],
        ] {
            summary.add(Done {
                runs: 1,
                totals: totals.into(),
                links: Links::default(),
            });
        }
        assert_eq!(
            summary.text(Duration::from_millis(500), 1),
            "2,000 records, 1000.00 KiB in 0.500 s (1.95 MiB/s), 2 runs on 1 worker with 2 executors, \
             imbalance 1.33, 1000.00 KiB on disk"
        );
    }
}
