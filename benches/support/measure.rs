//! Compares programs by running each as a process of its own, in turns.
//!
//! In every round each [`Case`] runs once, so whatever slows the machine for a while slows them
//! all, and a ratio compares only runs of the same round. A child says how it went in three lines,
//! which [`child`] prints for it:
//!
//! ```text
//! seconds=1.234567
//! peak_bytes=123456789
//! answer=distinct=970151 total=31337210 top=2177730
//! ```

use super::options;
use std::fmt::{self, Display, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;
use std::{env, fs, io, iter, thread};

/// One of the programs that are compared.
#[derive(Debug)]
pub struct Case {
    /// What reports call it.
    pub name: String,
    /// How to start it. Its errors go where ours go.
    pub command: Command,
}

impl Case {
    /// The program that is running now, with other arguments.
    pub fn of_this_program(name: &str, arguments: &[&str]) -> io::Result<Self> {
        let mut command = Command::new(env::current_exe()?);
        command.args(arguments);
        Ok(Self {
            name: name.to_owned(),
            command,
        })
    }

    /// The script of what other systems do, with the arguments that tell it what that is.
    pub fn of_python(name: &str, python: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(python);
        command.args(["-c", options::PEER]).args(arguments);
        Self {
            name: name.to_owned(),
            command,
        }
    }

    /// Runs the program once.
    fn run(&mut self) -> io::Result<Run> {
        let start = Instant::now();
        let output = self
            .command
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()?;
        let process_seconds = start.elapsed().as_secs_f64();
        if !output.status.success() {
            return Err(self.error(&format!("failed: {}", output.status)));
        }
        Run::parse(&String::from_utf8_lossy(&output.stdout), process_seconds)
            .ok_or_else(|| self.error("did not print seconds=, peak_bytes= and answer="))
    }

    fn error(&self, what: &str) -> io::Error {
        io::Error::other(format!("case {} {what}", self.name))
    }
}

/// Runs all cases in turns, `rounds` times after a first round that only warms the machine up.
///
/// It is an error when a case fails, or when two cases have different answers.
pub fn measure(mut cases: Vec<Case>, rounds: usize) -> io::Result<Report> {
    let mut round = || {
        cases
            .iter_mut()
            .map(Case::run)
            .collect::<io::Result<Vec<_>>>()
    };
    round()?;
    let rounds = (0..rounds).map(|_| round()).collect::<io::Result<_>>()?;
    let names = cases.into_iter().map(|case| case.name).collect();
    let report = Report { names, rounds };
    report.check_answers()?;
    Ok(report)
}

/// How all runs went.
#[derive(Debug)]
pub struct Report {
    names: Vec<String>,
    /// The runs of each round, in the order of `names`.
    rounds: Vec<Vec<Run>>,
}

impl Report {
    /// What all cases answered.
    pub fn answer(&self) -> &str {
        self.rounds
            .first()
            .and_then(|runs| runs.first())
            .map_or("", |run| &run.answer)
    }

    /// A line for each case, with the speed of a case that reads `bytes` bytes.
    pub fn table(&self, bytes: u64) -> String {
        let head = [
            "case", "seconds", "min", "max", "process", "peak MiB", "MB/s",
        ];
        let rows = self.names.iter().map(|name| self.row(name, bytes));
        align(
            &iter::once(head.map(str::to_owned))
                .chain(rows)
                .collect::<Vec<_>>(),
        )
    }

    fn row(&self, name: &str, bytes: u64) -> [String; 7] {
        let seconds = self.spread(name, |run| run.seconds);
        let process = self.spread(name, |run| run.process_seconds);
        let peak_bytes = self.spread(name, |run| run.peak_bytes as f64);
        [
            name.to_owned(),
            format!("{:.3}", seconds.median),
            format!("{:.3}", seconds.min),
            format!("{:.3}", seconds.max),
            format!("{:.3}", process.median),
            format!("{:.1}", peak_bytes.max / f64::from(1 << 20)),
            format!("{:.0}", bytes as f64 / 1e6 / seconds.median),
        ]
    }

    /// A line that says how the seconds of `case` compare with those of `base`, and whether the
    /// median is `at_most` what it should be.
    pub fn ratio_line(&self, case: &str, base: &str, at_most: f64) -> String {
        let ratio = self.ratio(case, base, |run| run.seconds);
        let verdict = ratio.verdict(at_most);
        format!("ratio {case}/{base} {ratio} target <= {at_most:.2} {verdict}")
    }

    /// `quantity` of `case` divided by that of `base`, round by round.
    ///
    /// Panics when there is no case of that name.
    pub fn ratio(&self, case: &str, base: &str, quantity: impl Fn(&Run) -> f64) -> Spread {
        let pairs = self.pairs(case, base, quantity);
        Spread::of(pairs.into_iter().map(|(case, base)| case / base))
    }

    /// `quantity` of `case` and of `base`, round by round.
    ///
    /// Panics when there is no case of that name.
    pub fn pairs(&self, case: &str, base: &str, quantity: impl Fn(&Run) -> f64) -> Vec<(f64, f64)> {
        let (case, base) = (self.index(case), self.index(base));
        let rounds = self.rounds.iter();
        rounds
            .map(|runs| (quantity(&runs[case]), quantity(&runs[base])))
            .collect()
    }

    /// `quantity` of `case` in all rounds.
    ///
    /// Panics when there is no case of that name.
    pub fn spread(&self, case: &str, quantity: impl Fn(&Run) -> f64) -> Spread {
        let case = self.index(case);
        Spread::of(self.rounds.iter().map(|runs| quantity(&runs[case])))
    }

    fn index(&self, case: &str) -> usize {
        let index = self.names.iter().position(|name| name == case);
        index.unwrap_or_else(|| panic!("there is no case {case}"))
    }

    fn check_answers(&self) -> io::Result<()> {
        let answer = self.answer();
        let mut runs = self
            .rounds
            .iter()
            .flat_map(|runs| self.names.iter().zip(runs));
        match runs.find(|(_, run)| run.answer != answer) {
            None => Ok(()),
            Some((name, run)) => {
                let found = &run.answer;
                Err(io::Error::other(format!(
                    "case {name} answered {found} and not {answer}"
                )))
            }
        }
    }
}

/// The rows as lines, with the first column on the left and the others on the right.
fn align<const COLUMNS: usize>(rows: &[[String; COLUMNS]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        let _ = write!(text, "{:<1$}", row[0], width(0));
        for (column, cell) in row.iter().enumerate().skip(1) {
            let _ = write!(text, "  {cell:>0$}", width(column));
        }
        text.push('\n');
    }
    text
}

/// The middle and the ends of several values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle value, or the mean of the two in the middle.
    pub median: f64,
    /// The least value.
    pub min: f64,
    /// The greatest value.
    pub max: f64,
}

impl Spread {
    /// The spread of `values`. Panics when there are none.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Self {
            median: f64::midpoint(low, high),
            min: sorted[0],
            max: sorted[sorted.len() - 1],
        }
    }
}

impl Spread {
    /// Whether it is met that the median is at most so much.
    pub fn verdict(self, at_most: f64) -> &'static str {
        match self.median <= at_most {
            true => "met",
            false => "missed",
        }
    }

    /// The same in other units.
    pub fn times(self, factor: f64) -> Self {
        Self {
            median: factor * self.median,
            min: factor * self.min,
            max: factor * self.max,
        }
    }
}

impl Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median, self.min, self.max)
    }
}

/// How one run of a case went.
#[derive(Clone, Debug)]
pub struct Run {
    /// The time the work took, by the child's own clock.
    pub seconds: f64,
    /// The time from before the process was started to after it had exited.
    pub process_seconds: f64,
    /// The most memory that was resident at once.
    pub peak_bytes: u64,
    answer: String,
}

impl Run {
    fn parse(output: &str, process_seconds: f64) -> Option<Self> {
        let value = |key| {
            output
                .lines()
                .find_map(|line| line.strip_prefix(key)?.strip_prefix('='))
        };
        Some(Self {
            seconds: value("seconds")?.parse().ok()?,
            process_seconds,
            peak_bytes: value("peak_bytes")?.parse().ok()?,
            answer: value("answer")?.to_owned(),
        })
    }
}

/// Does `work` and prints how it went: what a case does in its process before it exits.
pub fn child<A: Display>(work: impl FnOnce() -> io::Result<A>) -> io::Result<()> {
    let start = Instant::now();
    let answer = work()?;
    print_run(start.elapsed().as_secs_f64(), peak_bytes()?, answer);
    Ok(())
}

/// Prints how a run went, for a case that takes its own time or adds up the peaks of several
/// processes.
pub fn print_run(seconds: f64, peak_bytes: u64, answer: impl Display) {
    println!("seconds={seconds:.6}\npeak_bytes={peak_bytes}\nanswer={answer}");
}

/// The command `updraft`, built as this bench is.
pub fn launcher() -> io::Result<PathBuf> {
    let bench = env::current_exe()?;
    let folder = bench
        .ancestors()
        .nth(2)
        .ok_or_else(|| io::Error::other("a bench is in target/PROFILE/deps"))?;
    Ok(folder.join("updraft"))
}

/// Runs this program in two processes that the launcher starts, with an executor in each.
pub fn in_processes(transport: &str, arguments: &[&str]) -> io::Result<()> {
    let ways = ["-n", "2", "--executors", "1", "--transport", transport];
    in_workers(&ways, arguments)
}

/// Runs this program in processes that the launcher starts as it is told, and prints what they did as one: the time of the
/// slowest, the memory of all, and the answer that all gave.
pub fn in_workers(ways: &[&str], arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(launcher()?)
        .arg("run")
        .args(ways)
        .arg("--")
        .arg(env::current_exe()?)
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!(
            "the job failed: {}",
            output.status
        )));
    }
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = text
        .lines()
        .filter_map(|line| Some(line.split_once("] ")?.1));
    print_together(&told.collect::<Vec<_>>())
}

/// Prints what the lines of several processes that did one thing say: the time of the slowest, the memory of all, and the
/// last answer.
pub fn print_together(lines: &[&str]) -> io::Result<()> {
    let values = |key: &str| {
        let values = lines.iter().filter_map(|line| line.strip_prefix(key));
        values.map(str::to_owned).collect::<Vec<_>>()
    };
    let numbers = |key: &str| {
        values(key)
            .into_iter()
            .filter_map(|text| text.parse::<f64>().ok())
    };
    let answer = values("answer=")
        .pop()
        .ok_or_else(|| io::Error::other("the workers gave no answer"))?;
    let (seconds, peak_bytes) = (
        numbers("seconds=").fold(0.0, f64::max),
        numbers("peak_bytes=").sum::<f64>(),
    );
    print_run(seconds, peak_bytes as u64, answer);
    Ok(())
}

/// The most memory that this process has had resident at once.
pub fn peak_bytes() -> io::Result<u64> {
    proc_bytes("/proc/self/status", "VmHWM")
}

/// The machine in one line, as far as it says what it is.
pub fn machine() -> String {
    let unknown = |_| "unknown".to_owned();
    let processor = proc_value("/proc/cpuinfo", "model name").unwrap_or_else(unknown);
    let cores = thread::available_parallelism().map_or_else(unknown, |cores| cores.to_string());
    let memory = proc_bytes("/proc/meminfo", "MemTotal").map_or_else(unknown, |bytes| {
        format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
    });
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_else(unknown);
    format!(
        "{processor}, {cores} cores, {memory}, Linux {}",
        kernel.trim_end()
    )
}

/// As [`proc_value`], for an amount of memory.
fn proc_bytes(path: &str, key: &str) -> io::Result<u64> {
    let kibibytes = proc_value(path, key)?;
    Ok(kibibytes
        .trim_end_matches(" kB")
        .parse::<u64>()
        .map_err(io::Error::other)?
        << 10)
}

/// What a file of `key: value` lines says about `key` first.
fn proc_value(path: &str, key: &str) -> io::Result<String> {
    let text = fs::read_to_string(path)?;
    let value = text.lines().find_map(|line| {
        let (found, value) = line.split_once(':')?;
        (found.trim_end() == key).then(|| value.trim().to_owned())
    });
    value.ok_or_else(|| io::Error::other(format!("{path} does not tell {key}")))
}
