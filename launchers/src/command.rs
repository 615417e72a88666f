//! The command line of `updraft`.

use std::ffi::OsString;

use clap::{Args, Parser, Subcommand};

use crate::{Error, bench, doctor, kernel, local, topology, watchdog, worker};

/// Runs jobs of the Updraft dataflow engine.
#[derive(Debug, Parser)]
#[command(name = "updraft", version)]
pub struct Command {
    #[command(subcommand)]
    action: Action,
}

impl Command {
    /// Does what the command line says. Returns the code to exit with.
    ///
    /// # Errors
    ///
    /// What kept the launcher from doing it.
    pub fn run(self) -> Result<u8, Error> {
        match self.action {
            Action::Run(arguments) => local::run(&arguments.into()),
            Action::Bench { action } => action.run(),
            Action::Doctor(arguments) => Ok(doctor::run(&arguments)),
            Action::Topology(arguments) => {
                topology::run(&arguments);
                Ok(0)
            }
            Action::Worker(arguments) => Err(worker::become_job(&arguments)),
            Action::Watchdog => watchdog::watch().map(|()| 0),
        }
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Start a job's workers on this machine, and wait for them
    ///
    /// Each line they print is marked with the worker's number. When a worker fails, the others
    /// are stopped, and the exit code is that of the first to fail, or 128 and the number of the
    /// signal that killed it. Worker 0 reads the standard input.
    #[command(
        after_help = "Exit codes: 0 ok; 2 wrong usage; 3 the launcher failed; 4 there is \
        no such program; else those of the job."
    )]
    Run(RunArguments),

    /// Measure messages, the machine, and peers
    ///
    /// The ranks that measure are a job of their own, started as `updraft run` starts one.
    #[command(
        after_help = "Exit codes: 0 ok; 1 a target was missed, with --strict; 2 wrong usage; 3 the \
        launcher failed; 9 a file cannot be written; else those of the job that measures."
    )]
    Bench {
        #[command(subcommand)]
        action: bench::Command,
    },

    /// Tell what keeps jobs from running well on this machine, and the fix
    ///
    /// One line for each thing: whether it is well, how it is, what that costs, and the command that
    /// mends it.
    #[command(after_help = "Exit codes: 0 ok; 1 something fails; 2 wrong usage.")]
    Doctor(kernel::Arguments),

    /// Show the cores, caches, memory and networks of this machine
    Topology(kernel::Arguments),

    /// What a worker is until it becomes the job's program.
    #[command(name = "__worker", hide = true)]
    Worker(WorkerArguments),

    /// What clears up after a launcher that was killed.
    #[command(name = "__watchdog", hide = true)]
    Watchdog,
}

#[derive(Debug, Args)]
struct RunArguments {
    /// How many workers to start
    #[arg(short = 'n', long, alias = "np", value_name = "WORKERS", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    workers: u32,

    /// How many executors each worker has; as many as it has cores if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=4096))]
    executors: Option<u32>,

    /// What carries the messages between workers
    #[arg(long, value_enum)]
    transport: Option<local::Transport>,

    /// Where other machines reach the workers: an interface, an address, or a network, such as eth0, ::1 or 10.0.0.0/8
    #[arg(long, value_name = "ADDRESS|NAME")]
    interface: Option<String>,

    /// How long the machine of a worker may be silent before the worker is lost, such as 2s or 700ms
    #[arg(long, value_name = "TIME", value_parser = parse_milliseconds)]
    silence: Option<u64>,

    /// Encrypt what goes over TCP, by TLS 1.3 with a certificate of the job
    #[arg(long)]
    tls: bool,

    /// How much memory each worker may use for messages and state, such as 512m or 4g
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,

    /// A directory for what this memory has no room for; several are used in turns
    #[arg(long, value_name = "DIR", value_parser = parse_directory)]
    spill: Vec<String>,

    /// What decides where the instances of tasks run
    #[arg(long, value_enum)]
    scheduler: Option<local::Scheduler>,

    /// What sets workers apart for schedulers, such as gpu,rack=3; of worker 1 alone, 1:gpu
    #[arg(long, value_name = "[WORKER:]LIST", value_parser = parse_attributes)]
    attributes: Vec<local::Attributes>,

    /// Say what each run does and where, before it begins
    #[arg(long)]
    explain: bool,

    /// Measure how long each task is at work, and tell it with what came and went at the end
    #[arg(long)]
    metrics: bool,

    /// The program to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "JOB")]
    job: Vec<OsString>,
}

impl From<RunArguments> for local::Options {
    fn from(arguments: RunArguments) -> Self {
        Self {
            workers: arguments.workers,
            executors: arguments.executors,
            transport: arguments.transport,
            interface: arguments.interface,
            silence_ms_max: arguments.silence,
            tls: arguments.tls,
            memory_bytes: arguments.memory,
            spill: arguments.spill,
            scheduler: arguments.scheduler,
            attributes: arguments.attributes,
            explain: arguments.explain,
            metrics: arguments.metrics,
            quiet: false,
            job: arguments.job,
        }
    }
}

/// What a launcher tells the process that is to become a worker.
#[derive(Debug, Args)]
pub struct WorkerArguments {
    /// The process that must still be our parent.
    #[arg(long)]
    pub(crate) launcher: u32,

    /// The file of the job's program.
    #[arg(long)]
    pub(crate) program: OsString,

    /// The program's name and arguments.
    #[arg(required = true, last = true)]
    pub(crate) job: Vec<OsString>,
}

/// Reads the name of a directory that can be told to workers in a list.
fn parse_directory(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(':') {
        return Err("it is empty, or has a colon, which separates directories".to_owned());
    }
    Ok(text.to_owned())
}

/// Reads `gpu,rack=3`, or `1:gpu,rack=3` for worker 1 alone.
fn parse_attributes(text: &str) -> Result<local::Attributes, String> {
    let (worker, list) = match text.split_once(':') {
        Some((worker, list)) => match worker.parse() {
            Ok(worker) => (Some(worker), list),
            Err(_) => return Err(format!("{worker:?} is no number of a worker")),
        },
        None => (None, text),
    };
    if list.split(',').any(str::is_empty) {
        return Err("one of the attributes is empty".to_owned());
    }
    Ok(local::Attributes {
        worker,
        list: list.to_owned(),
    })
}

/// Reads an amount of memory, in bytes: `4096`, `64k`, `512m`, `4g` or `1t`.
pub(crate) fn parse_bytes(text: &str) -> Result<u64, String> {
    bytes_of(text)
        .filter(|&number| number > 0)
        .ok_or_else(|| "a number of bytes is 4096, 64k, 512m or 4g".to_owned())
}

/// The bytes that a number and its unit stand for: `8`, `8B`, `64k`, `64Ki` or `64KiB`. Units are powers of 1024.
pub(crate) fn bytes_of(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let shift = match &text[digits.len()..] {
        "" | "B" => 0,
        "k" | "K" | "Ki" | "KiB" => 10,
        "m" | "M" | "Mi" | "MiB" => 20,
        "g" | "G" | "Gi" | "GiB" => 30,
        "t" | "T" | "Ti" | "TiB" => 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Reads `700ms`, `2s` or `1m`.
fn parse_milliseconds(text: &str) -> Result<u64, String> {
    let units = [("ms", 1), ("s", 1_000), ("m", 60_000)];
    units
        .iter()
        .find_map(|(unit, milliseconds)| {
            let number: u64 = text.strip_suffix(unit)?.parse().ok()?;
            number.checked_mul(*milliseconds)
        })
        .filter(|&number| number > 0)
        .ok_or_else(|| "a time is 700ms, 2s or 1m".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn options(line: &str) -> Result<local::Options, ErrorKind> {
        let command = Command::try_parse_from(line.split(' ')).map_err(|error| error.kind())?;
        match command.action {
            Action::Run(arguments) => Ok(arguments.into()),
            action => panic!("{action:?} is not run"),
        }
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Command::command().debug_assert();
    }

    #[test]
    fn a_job_needs_no_dashes_before_it_and_keeps_its_own() {
        for line in [
            "updraft run -n 3 ./job -n 7 --memory 1",
            "updraft run -n 3 -- ./job -n 7 --memory 1",
        ] {
            let options = options(line).unwrap();
            assert_eq!(options.workers, 3);
            assert_eq!(options.memory_bytes, None);
            assert_eq!(options.job, ["./job", "-n", "7", "--memory", "1"]);
        }
    }

    #[test]
    fn what_is_not_an_option_is_refused() {
        for line in [
            "updraft run -n 0 ./job",
            "updraft run -n many ./job",
            "updraft run --bogus ./job",
            "updraft run --transport pigeon ./job",
            "updraft run --memory 4x ./job",
            "updraft run -n 2",
        ] {
            assert!(options(line).is_err(), "{line}");
        }
    }

    #[test]
    fn attributes_are_those_of_one_worker_or_of_all() {
        let options =
            options("updraft run --attributes gpu,rack=3 --attributes 1:disk ./job").unwrap();
        assert_eq!(options.attributes_of(0), "gpu,rack=3");
        assert_eq!(options.attributes_of(1), "gpu,rack=3,disk");
        for text in ["", "gpu,", "one:gpu", "1:"] {
            assert!(parse_attributes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn bytes_have_the_usual_suffixes() {
        assert_eq!(parse_bytes("4096"), Ok(4096));
        assert_eq!(parse_bytes("64K"), Ok(64 << 10));
        assert_eq!(parse_bytes("2g"), Ok(2 << 30));
        assert_eq!(parse_bytes("3MiB"), Ok(3 << 20));
        for text in ["", "g", "0", "-1", "1kb", "99999999999t", "é"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_have_a_unit() {
        assert_eq!(parse_milliseconds("700ms"), Ok(700));
        assert_eq!(parse_milliseconds("2s"), Ok(2_000));
        assert_eq!(parse_milliseconds("1m"), Ok(60_000));
        for text in ["", "2", "s", "0s", "-1s", "1h", "99999999999999999999s"] {
            assert!(parse_milliseconds(text).is_err(), "{text}");
        }
    }
}
