//! `updraft bench`: how fast messages are, what the machine allows, and how peers fare at the same.
//!
//! The ranks of a measurement are the executors of a job that the launcher starts as any other: the
//! command runs itself. Every buffer is written by its sender and read by its receiver unless told
//! otherwise, because a benchmark that sends an untouched buffer again measures nothing a user does.

mod collectives;
mod compare;
mod limits;
mod machine;
mod operators;
mod plot;
mod rank;
mod report;
mod samples;
mod sizes;

use std::{
    ffi::OsString,
    io::{self, Write},
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    process,
};

use clap::{Args, Subcommand};
use nix::sys::memfd::{MFdFlags, memfd_create};
use updraft::dataflow::one_line;

use self::{
    rank::Measure,
    report::{Outputs, Report, Unit},
    samples::Samples,
    sizes::Sizes,
};
use crate::{Error, local, worker};

/// What `updraft bench` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// How long a message takes one way: half of each round trip, and how the times are spread
    Latency(LatencyArguments),

    /// How long a message and its answer take together
    Pingpong(LatencyArguments),

    /// How many bytes a second a stream of messages carries
    Bandwidth(BandwidthArguments),

    /// How many short messages a second a stream carries
    Rate(RateArguments),

    /// How long operations among a group of ranks take, and by which algorithms
    Collectives(collectives::Arguments),

    /// How fast parallel operators on records are, and whether they give what a plain loop gives
    ///
    /// Prints a line for each operator, type and number of records: the seconds of a run, with the least and the most,
    /// records and bytes of its input in a second, what went to disk in a run because memory had no room for it, and the
    /// most memory that the workers had together. Records are made where they are needed, and what comes out is read.
    #[command(after_help = "Examples:\n  \
        updraft bench operators --only join,merge-join --records 1M,10M --verify\n  \
        updraft bench operators --only sort --records 10M --record text --memory 64m --verify\n  \
        updraft bench operators --only exchange-by-hash --record u64 -n 1 --executors 2 --csv rates.csv --plot rates.svg\n\n\
        Exit codes: 0 ok; 1 a result is wrong, with --verify; 2 wrong usage; 9 a file cannot be written; else those of the \
        job that measures.")]
    Operators(operators::Arguments),

    /// What the machine itself allows: cache lines, memory, wake-ups, bare sockets
    Limits(limits::Arguments),

    /// The peers installed on this machine, measured by the same method, and how far the targets are reached
    ///
    /// Prints a line for each target and point: the ratio to the best peer, or to the bare machine, with its
    /// spread and what it is made of; then how many are met. Peers are run in turns with ours, and figures
    /// are compared only where the cores were at the same distance.
    ///
    /// Where a point against MPI is missed, the line ends with the bare floor, measured beside ours, and its ratio to
    /// the peer: how far the machine itself lets the point come. It is the bare hand-over of the bytes between two ranks, or,
    /// from 4 KiB on in operations of groups, the bare copy of what the other rank has just written.
    Compare(compare::Arguments),

    /// What a rank of a measurement is.
    #[command(name = "__rank", hide = true)]
    Rank(rank::Arguments),

    /// What a worker of a measurement of operators is.
    #[command(name = "__operator", hide = true)]
    Operator(operators::RankArguments),
}

impl Command {
    /// Does it. Returns the code to exit with.
    pub(crate) fn run(self) -> Result<u8, Error> {
        match self {
            Self::Latency(given) => given.run("latency", Unit::OneWay),
            Self::Pingpong(given) => given.run("pingpong", Unit::RoundTrip),
            Self::Bandwidth(BandwidthArguments { sizes, job }) => {
                job.run("bandwidth", Unit::Bandwidth, &sizes, Measure::Stream)
            }
            Self::Rate(RateArguments { sizes, job }) => {
                job.run("rate", Unit::Rate, &sizes, Measure::Stream)
            }
            Self::Collectives(arguments) => collectives::run(&arguments),
            Self::Operators(arguments) => operators::run(&arguments),
            Self::Limits(arguments) => limits::run(&arguments),
            Self::Compare(arguments) => compare::run(&arguments),
            Self::Rank(arguments) => Ok(be_worker(rank::run(arguments))),
            Self::Operator(arguments) => Ok(be_worker(operators::run_rank(&arguments))),
        }
    }
}

/// A worker's errors are those of a job: the launcher says which one had them.
fn be_worker(ended: Result<(), updraft::Error>) -> u8 {
    match ended {
        Ok(()) => 0,
        Err(error) => {
            // Where nobody listens there is nobody to tell.
            let _ = writeln!(io::stderr(), "error: {}", one_line(&error));
            error.exit_code()
        }
    }
}

/// Of `latency` and `pingpong`.
#[derive(Debug, Args)]
pub struct LatencyArguments {
    /// Bytes of the messages: sizes, and ranges that double, such as 8,64,1Ki..4Mi
    #[arg(long, default_value = "8,64,1Ki,8Ki,64Ki,1Mi,4Mi")]
    sizes: Sizes,

    #[command(flatten)]
    job: JobArguments,
}

impl LatencyArguments {
    fn run(&self, name: &'static str, unit: Unit) -> Result<u8, Error> {
        self.job.run(name, unit, &self.sizes, Measure::Latency)
    }
}

/// Of `bandwidth`.
#[derive(Debug, Args)]
pub struct BandwidthArguments {
    /// Bytes of the messages: sizes, and ranges that double, such as 8,64,1Ki..4Mi
    #[arg(long, default_value = "1Ki,8Ki,64Ki,1Mi,4Mi")]
    sizes: Sizes,

    #[command(flatten)]
    job: JobArguments,
}

/// Of `rate`.
#[derive(Debug, Args)]
pub struct RateArguments {
    /// Bytes of the messages: sizes, and ranges that double, such as 8,64,1Ki..4Mi
    #[arg(long, default_value = "8,64,1Ki")]
    sizes: Sizes,

    #[command(flatten)]
    job: JobArguments,
}

/// Where the job runs that measures.
#[derive(Debug, Clone, Args)]
pub(crate) struct PlaceArguments {
    /// How many workers to start, each a process
    #[arg(short = 'n', long, alias = "np", value_name = "WORKERS", default_value_t = 2,
        value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) workers: u32,

    /// How many executors each worker has, each a pinned thread; -n 1 --executors 2 compares threads
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) executors: u32,

    /// What carries the messages between workers
    #[arg(long, value_enum)]
    transport: Option<local::Transport>,

    /// Where other machines reach the workers: an interface, an address, or a network, such as eth0, ::1 or 10.0.0.0/8
    #[arg(long, value_name = "ADDRESS|NAME")]
    interface: Option<String>,

    /// How much memory each worker may use for messages, such as 512m or 4g
    #[arg(long, value_name = "BYTES", value_parser = crate::command::parse_bytes)]
    memory: Option<u64>,
}

impl PlaceArguments {
    pub(crate) fn ranks(&self) -> u32 {
        self.workers * self.executors
    }

    /// Starts a job there, and waits for it. Its exit code.
    pub(crate) fn start(&self, job: Vec<OsString>) -> Result<u8, Error> {
        local::run(&local::Options {
            workers: self.workers,
            executors: Some(self.executors),
            transport: self.transport,
            interface: self.interface.clone(),
            memory_bytes: self.memory,
            quiet: true,
            job,
            ..local::Options::default()
        })
    }
}

/// The job that measures messages.
#[derive(Debug, Args)]
struct JobArguments {
    #[command(flatten)]
    place: PlaceArguments,

    /// Batches measured of each size
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repeats: u32,

    /// Batches before them that do not count
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    warmup: u32,

    /// Write and read every byte of every message (the default)
    #[arg(long, overrides_with = "no_touch")]
    touch: bool,

    /// Hand messages over without writing or reading more than their first 64 bytes
    #[arg(long)]
    no_touch: bool,

    #[command(flatten)]
    outputs: Outputs,
}

impl JobArguments {
    fn run(
        &self,
        name: &'static str,
        unit: Unit,
        sizes: &Sizes,
        measure: Measure,
    ) -> Result<u8, Error> {
        self.outputs.check()?;
        let ranks = self.ranks();
        if ranks < 2 || !ranks.is_multiple_of(2) {
            let reason = format!("ranks measure in pairs, and {ranks} cannot be paired");
            return Err(Error::Usage { reason });
        }
        let results = Results::new()?;
        let ranks_do = self.ranks_do(measure, sizes, &results);
        let code = self.place.start(job(&ranks_do))?;
        if code != 0 {
            return Ok(code);
        }
        let mut samples = Samples::default();
        samples
            .read_file(&results.path())
            .map_err(Error::io("read the results"))?;
        let report = Report {
            name,
            unit,
            ranks,
            workers: self.place.workers,
            touch: !self.no_touch,
            repeats: self.repeats,
            samples,
        };
        report.print(&self.outputs)?;
        Ok(0)
    }
}

impl JobArguments {
    fn ranks(&self) -> u32 {
        self.place.ranks()
    }

    /// What each rank is told.
    fn ranks_do(&self, measure: Measure, sizes: &Sizes, results: &Results) -> rank::Arguments {
        rank::Arguments {
            measure,
            sizes: sizes.clone(),
            repeats: self.repeats,
            warmup: self.warmup,
            touch: !self.no_touch,
            one_by_one: measure == Measure::Latency,
            floor: false,
            algorithm: None,
            cooperative: None,
            results: results.path(),
        }
    }
}

/// The command line of a rank.
fn job(arguments: &rank::Arguments) -> Vec<OsString> {
    [worker::OURSELVES, "bench", "__rank"]
        .map(OsString::from)
        .into_iter()
        .chain(arguments.words().into_iter().map(OsString::from))
        .collect()
}

/// A file without a name in which the ranks leave what they measured.
#[derive(Debug)]
struct Results(OwnedFd);

impl Results {
    fn new() -> Result<Self, Error> {
        memfd_create("updraft-bench", MFdFlags::MFD_CLOEXEC)
            .map(Self)
            .map_err(Error::io("make room for the results"))
    }

    /// Where other processes of this user find it.
    fn path(&self) -> PathBuf {
        Path::new("/proc")
            .join(process::id().to_string())
            .join("fd")
            .join(self.0.as_raw_fd().to_string())
    }
}
