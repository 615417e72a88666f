//! What each worker of a measurement of operators does.

use std::{
    fs,
    path::PathBuf,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use clap::Args;
use updraft::{Config, Env, dataflow::Totals};

use super::{
    super::rank::{failed, write},
    Shape, jobs,
    kinds::{Operator, RecordType},
};

/// What the hidden subcommand is told.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    #[arg(long, value_enum)]
    pub(crate) operator: Operator,
    #[arg(long, value_enum)]
    pub(crate) record: RecordType,
    #[arg(long)]
    pub(crate) records: u64,
    #[arg(long)]
    pub(crate) keys: u64,
    /// Runs that count.
    #[arg(long)]
    pub(crate) repeats: u32,
    /// Runs before them that do not.
    #[arg(long)]
    pub(crate) warmup: u32,
    /// Where the results go.
    #[arg(long)]
    pub(crate) results: PathBuf,
}

impl Arguments {
    /// The words that say the same again.
    pub(crate) fn words(&self) -> Vec<String> {
        vec![
            format!("--operator={}", self.operator.name()),
            format!("--record={}", self.record.name()),
            format!("--records={}", self.records),
            format!("--keys={}", self.keys),
            format!("--repeats={}", self.repeats),
            format!("--warmup={}", self.warmup),
            format!("--results={}", self.results.display()),
        ]
    }
}

/// Is a worker of the job that measures. The first writes when its first run was
/// over, and a line for each run that counts; all write how much memory they had.
pub(crate) fn run(arguments: &Arguments) -> Result<(), updraft::Error> {
    updraft::run(Config::default(), |env| {
        let mut lines = String::new();
        let measured = measure(env, arguments, &mut lines);
        if env.worker() > 0 {
            lines.clear();
        }
        lines += &format!("peak {}\n", peak_bytes());
        write(&arguments.results, &lines).map_err(failed("write the results"))?;
        measured
    })
}

fn measure(env: &mut Env, arguments: &Arguments, lines: &mut String) -> Result<(), updraft::Error> {
    let shape = Shape {
        operator: arguments.operator,
        record: arguments.record,
        records: arguments.records,
        keys: arguments.keys,
        ranks: env.ranks(),
    };
    let Some(job) = jobs::job(&shape) else {
        let reason = shape.needs_pairs();
        return Err(updraft::Error::Config { reason });
    };
    for run in 0..arguments.warmup + arguments.repeats {
        let before = spilled(env.totals());
        let start = Instant::now();
        let digest = env.run(&job)?;
        let seconds = start.elapsed().as_secs_f64();
        if run == 0 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH);
            *lines += &format!("first {}\n", now.map_or(0, |now| now.as_nanos()));
        }
        if run >= arguments.warmup {
            let spilled = spilled(env.totals()) - before;
            *lines += &format!("run {seconds} {spilled} {digest}\n");
        }
    }
    Ok(())
}

/// Bytes that all ranks have written to disk.
fn spilled(totals: &[Totals]) -> u64 {
    totals.iter().map(|rank| rank.spilled).sum()
}

/// The most memory this process has had resident at once; 0 where the system does not tell.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kibibytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kibibytes.map_or(0, |kibibytes| kibibytes << 10)
}
