//! How long it takes from the command `updraft run` to the end of a job with one record, and with how many workers.
//!
//! `cargo bench --bench starting`; with `-- --smoke`, few workers, once; with `-- --json FILE`, what `updraft bench
//! compare` reads. What is timed includes the end of the job: the first record comes before it.

#[path = "../tests/support/build.rs"]
mod build;
mod support;

use std::{
    io,
    process::{Command, Stdio},
    time::Instant,
};

use support::{
    measure::{self, Spread},
    options::{Options, Rows},
};

/// Workers, and the most seconds until their job is done.
const CASES: [(u32, &str, f64); 3] = [
    (1, "one machine", 0.05),
    (2, "one machine", 0.05),
    (256, "256 workers", 5.0),
];
const ROUNDS: usize = 7;
/// Workers in a case that takes a moment.
const SMOKE_WORKERS: u32 = 4;
/// Lines at the end of what a launcher says whose job failed.
const LINES_OF_FAILURE: usize = 4;

fn main() -> io::Result<()> {
    let options = Options::read()?;
    let built = build::build().args(["--bin", "updraft"]).status()?;
    if !built.success() {
        return Err(io::Error::other("the command updraft could not be built"));
    }
    println!("{}", measure::machine());
    let mut rows = Rows::default();
    let mut has_failed = false;
    for (workers, part, most) in CASES {
        let (workers, rounds) = if options.smoke {
            (workers.min(SMOKE_WORKERS), 1)
        } else {
            (workers, ROUNDS)
        };
        let point = format!("{workers} workers");
        let runs = (0..=rounds).map(|_| start(workers));
        let pairs = match runs.collect::<io::Result<Vec<(f64, f64)>>>() {
            // The first is there to read the programs from disk.
            Ok(mut pairs) => pairs.split_off(1),
            Err(error) => {
                println!("{error}");
                rows.absent(["P21", part, &point], &error.to_string());
                has_failed = true;
                continue;
            }
        };
        let first = Spread::of(pairs.iter().map(|pair| pair.0));
        let whole = Spread::of(pairs.iter().map(|pair| pair.1));
        let verdict = first.verdict(most);
        println!(
            "{workers} workers: {} ms to the first result, {} ms to the end; target <= {} {verdict}",
            first.times(1e3),
            whole.times(1e3),
            most * 1e3
        );
        let seconds: Vec<(f64, f64)> = pairs.iter().map(|pair| (pair.0, 1.0)).collect();
        rows.pairs(["P21", part, &point, "a second"], &seconds);
    }
    rows.write(&options)?;
    if has_failed {
        return Err(io::Error::other("not every job was done"));
    }
    Ok(())
}

/// Starts a job whose workers count one record. Gives the seconds to its first result, and to its end.
fn start(workers: u32) -> io::Result<(f64, f64)> {
    let results = tempfile::NamedTempFile::new()?;
    let launcher = measure::launcher()?;
    let started = std::time::SystemTime::now();
    let start = Instant::now();
    let output = Command::new(&launcher)
        .args(["run", "-n", &workers.to_string(), "--executors", "1", "--"])
        .arg(&launcher)
        .args([
            "bench",
            "__operator",
            "--operator=count",
            "--record=u64",
            "--records=1",
        ])
        .args(["--keys=1", "--repeats=1", "--warmup=0"])
        .arg(format!("--results={}", results.path().display()))
        .stdout(Stdio::null())
        .output()?;
    let whole = start.elapsed().as_secs_f64();
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        // The launcher says in its last lines who failed first, and why.
        let why: Vec<&str> = said.lines().rev().take(LINES_OF_FAILURE).collect();
        let why = why.iter().rev().copied().collect::<Vec<_>>().join("; ");
        return Err(io::Error::other(format!(
            "{workers} workers failed, {}: {why}",
            output.status
        )));
    }
    let text = std::fs::read_to_string(results.path())?;
    let line = text.lines().find_map(|line| line.strip_prefix("first "));
    let first = line.and_then(|nanoseconds| nanoseconds.parse::<u128>().ok());
    let first = first.ok_or_else(|| io::Error::other("the job did not say when it was done"))?;
    let epoch = started
        .duration_since(std::time::UNIX_EPOCH)
        .map_err(io::Error::other)?;
    Ok(((first - epoch.as_nanos()) as f64 / 1e9, whole))
}
