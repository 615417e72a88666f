//! What can go wrong in a dataflow.

use std::{io, path::PathBuf};

use rkyv::rancor;
use transport::Rank;

use crate::schedule::Constraint;

/// Why a graph could not be built or did not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No file matches a pattern.
    #[error("no file matches {pattern:?}")]
    NoInput {
        /// The pattern.
        pattern: String,
    },

    /// A pattern is not one.
    #[error("{pattern:?} is not a pattern of file names: {reason}")]
    BadPattern {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        reason: &'static str,
    },

    /// An input file could not be read.
    #[error("cannot read {}", path.display())]
    Input {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// An input file is not text.
    #[error("{} is not UTF-8 at byte {offset}{}", path.display(), in_line(*.line))]
    NotText {
        /// The file.
        path: PathBuf,
        /// Where the first bad byte is, from the start of the file.
        offset: u64,
        /// The number of its line, from 1, unless it is too far on to be counted.
        line: Option<u64>,
    },

    /// An input file is not made of records of one size.
    #[error("{} has {bytes} bytes, which are no records of {record_bytes}", path.display())]
    NotRecords {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// Bytes of a record.
        record_bytes: usize,
    },

    /// An output file could not be written.
    #[error("cannot write {}", path.display())]
    Output {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// The output folder holds the output of another run.
    #[error("{} exists already", path.display())]
    OutputExists {
        /// The file that is there.
        path: PathBuf,
    },

    /// Records that memory has no room for could not be kept on disk.
    #[error("{holder} cannot {action} in {}", directory.display())]
    Spill {
        /// What was attempted.
        action: &'static str,
        /// The operator that the records belong to.
        holder: &'static str,
        /// Where it keeps them.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// What was read back from disk is not what was written. (The file has no name: it is gone.)
    #[error(
        "the {bytes} bytes that {holder} wrote at byte {offset} of a file in {} are damaged: {reason}",
        directory.display()
    )]
    SpillDamaged {
        /// The operator that the records belong to.
        holder: &'static str,
        /// Where the file is.
        directory: PathBuf,
        /// Where the damaged block starts.
        offset: u64,
        /// Bytes of the block.
        bytes: u64,
        /// How it shows.
        reason: &'static str,
    },

    /// A folder has the checkpoint of another stage.
    #[error("{} has the checkpoint of \"{theirs}\", not of \"{ours}\"", folder.display())]
    CheckpointOfOther {
        /// The folder.
        folder: PathBuf,
        /// What the checkpoint was made of: the tasks, and the type of the records.
        theirs: String,
        /// What it should be of.
        ours: String,
    },

    /// A checkpoint could not be read or written.
    #[error("cannot {action} the checkpoint {}", path.display())]
    Checkpoint {
        /// What was attempted.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// A peer sent bytes that are not a batch of the records expected.
    #[error("rank {peer} sent a malformed batch")]
    Malformed {
        /// The peer.
        peer: Rank,
        /// What the validator found.
        source: rancor::Error,
    },

    /// A peer sent a message that no part of the graph expects.
    #[error("rank {peer} sent a message that no task expects (tag {tag:#x})")]
    Unexpected {
        /// The peer.
        peer: Rank,
        /// The message's tag.
        tag: u64,
    },

    /// One record is larger than any batch may be.
    #[error("a record of {record} does not fit in {limit} bytes")]
    RecordTooLarge {
        /// The type of the record.
        record: &'static str,
        /// The largest batch, in bytes.
        limit: usize,
    },

    /// A function of the program failed.
    #[error("{operator} failed in instance {instance} of task \"{task}\", for {record}")]
    Function {
        /// The operator that called it, and where in the program it is written.
        operator: String,
        /// The task, by its operators.
        task: String,
        /// The instance of the task.
        instance: u32,
        /// The record that came into the task.
        record: String,
        /// What the function said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// A graph has more of something than can be numbered.
    #[error("{what} are too many: at most {limit}")]
    GraphTooLarge {
        /// How many of what.
        what: String,
        /// The most there may be.
        limit: u32,
    },

    /// The channels of a graph cannot each have a share of the arena without waiting for one another.
    #[error(
        "an arena of {bytes} bytes is too small for {channels} channels, which need {needed}: have workers use more memory \
         (--memory), or tasks fewer instances"
    )]
    ArenaTooSmall {
        /// The arena.
        bytes: u64,
        /// Pairs of instances that send to each other, at one rank.
        channels: u64,
        /// The least arena.
        needed: u64,
    },

    /// A task needs more memory than its worker may use: which, in what instance, and its operator with how much.
    #[error(
        "instance {instance} of task \"{task}\" needs more memory than its worker may use (--memory, or UPDRAFT_MEMORY, \
         gives it more)"
    )]
    NoMemory {
        /// The task, by its operators.
        task: String,
        /// The instance of the task.
        instance: u32,
        /// [`LedgerLimit`](transport::Error::LedgerLimit).
        source: transport::Error,
    },

    /// Clones of a sorted stream are read by different numbers of instances.
    #[error("what \"{task}\" sorts is read by different numbers of instances: sort it for each")]
    SortedTwice {
        /// The task that takes in what is sorted.
        task: String,
    },

    /// Cached records are read by instances that do not have them.
    #[error(
        "instance {instance} of {instances} has no part here of what {cached} instances cached: \
         read it by as many, and put an exchange before another parallelism"
    )]
    NotCachedHere {
        /// The instance that should read them.
        instance: u32,
        /// How many there are.
        instances: u32,
        /// How many cached them.
        cached: u32,
    },

    /// A variable had pairs that were where their keys belong when a graph was written, and has others now.
    #[error(
        "task {task:?} reads a variable whose records were cached by key when the graph was written, and now are not: \
         cache what comes from an exchange by key in every round, with its keys as they were"
    )]
    NotCachedByKey {
        /// The operators of the task that reads it.
        task: String,
    },

    /// What a program sends to an operator is read by instances that the program is not beside.
    #[error(
        "what is sent to an operator is read by {instances} instances, but {ranks} ranks send: \
         put an exchange before another parallelism"
    )]
    NotSentHere {
        /// How many read it.
        instances: u32,
        /// Ranks of the job.
        ranks: u32,
    },

    /// Two tasks read what a program sends to an operator.
    #[error(
        "what is sent to an operator is read twice: put an exchange, such as direct, before the clones"
    )]
    SentTwice,

    /// An operator was made by a group that is not all ranks of a job.
    #[error(
        "operators are made by the {ranks} ranks of a job together, and not by {members} of them"
    )]
    NotAllRanks {
        /// Members of the group.
        members: u32,
        /// Ranks of the job.
        ranks: u32,
    },

    /// A program sends to an operator after it has said that this was all.
    #[error("a record was sent to an operator after the end: reset it first")]
    SentTooLate,

    /// What a task demands makes no sense.
    #[error("task {task:?}: {reason}")]
    BadTask {
        /// The task.
        task: String,
        /// What is wrong with it.
        reason: String,
    },

    /// A scheduler found no place for an instance of a task.
    #[error("no worker can have instance {instance} of task {task:?}: {constraint}")]
    Unplaceable {
        /// The task.
        task: String,
        /// The instance.
        instance: u32,
        /// What could not be kept.
        constraint: Constraint,
    },

    /// A graph was placed for a job of another size.
    #[error("the graph was placed on {placed} ranks, but the job has {size}")]
    PlacedElsewhere {
        /// Ranks that it was placed on.
        placed: u32,
        /// Ranks of the job.
        size: u32,
    },

    /// A task waits for the end of an input that has none.
    #[error(
        "task \"{task}\" needs the end of an input, but \"{input}\" goes on until it is stopped: \
         put a window between them, or take so many; of a join, it may be the left side, if nothing is given of the \
         right side alone"
    )]
    Unbounded {
        /// The task that waits.
        task: String,
        /// The task that goes on.
        input: String,
    },

    /// Two ranks built different graphs.
    #[error("rank {here} built the graph \"{ours}\", but rank {peer} built \"{theirs}\"")]
    PlansDiffer {
        /// This rank.
        here: Rank,
        /// Its graph.
        ours: String,
        /// The other rank.
        peer: Rank,
        /// Its graph.
        theirs: String,
    },

    /// Somebody ended the run.
    #[error("{by} cancelled the run: {reason}")]
    Cancelled {
        /// Who did.
        by: String,
        /// Why.
        reason: String,
    },

    /// Another rank failed.
    #[error("rank {rank} failed: {message}")]
    Remote {
        /// The rank that failed.
        rank: Rank,
        /// Its error.
        message: String,
    },

    /// A rank takes part in nothing any more, or the links failed altogether.
    #[error(transparent)]
    Collectives(collectives::Error),

    /// The messages between ranks failed.
    #[error(transparent)]
    Transport(#[from] transport::Error),
}

/// What was cancelled is so by whatever way a rank learns of it.
impl From<collectives::Error> for Error {
    fn from(error: collectives::Error) -> Self {
        match error {
            collectives::Error::Cancelled { by, reason } => Self::Cancelled { by, reason },
            other => Self::Collectives(other),
        }
    }
}

fn in_line(line: Option<u64>) -> String {
    line.map_or_else(String::new, |line| format!(", in line {line}"))
}

/// An error with its causes, in one line: for the edges, where errors become text for people.
pub fn one_line(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |line, cause| format!("{line}: {cause}"))
}
