//! What can go wrong with a job, and what its process says at its end.

use std::{io, process::ExitCode};

use crate::coordinator;

/// Why a job did not run to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The graph could not be built, or did not run.
    #[error(transparent)]
    Dataflow(#[from] dataflow::Error),

    /// The messages between ranks failed.
    #[error(transparent)]
    Transport(#[from] transport::Error),

    /// An operation of a group failed.
    #[error(transparent)]
    Collectives(collectives::Error),

    /// The coordinator could not be reached, or refused this worker.
    #[error(transparent)]
    Coordinator(#[from] coordinator::Error),

    /// What was asked for makes no sense.
    #[error("{reason}")]
    Config {
        /// Why not.
        reason: String,
    },

    /// The program says of itself that it failed.
    #[error(transparent)]
    Program(Box<dyn std::error::Error + Send + Sync>),

    /// A function of the program panicked on an executor.
    #[error("rank {rank} panicked{}: {message}", panicked_at(.operator.as_deref()))]
    Panicked {
        /// The executor.
        rank: transport::Rank,
        /// If it was called by an operator of a graph: which, where in the program that is written, in which instance of
        /// which task.
        operator: Option<String>,
        /// What it said.
        message: String,
    },

    /// The coordinator told this worker to stop, because of something that happened elsewhere.
    #[error("told to stop: {reason}")]
    Aborted {
        /// What happened.
        reason: String,
    },

    /// A thread could not be started.
    #[error("could not start an executor")]
    Thread(#[source] io::Error),
}

/// Where a function panicked, if that is known.
pub(crate) fn panicked_at(operator: Option<&str>) -> String {
    operator.map_or_else(String::new, |operator| format!(" in {operator}"))
}

impl Error {
    /// The error of a program whose own work failed: what a function given to [`bsp`](crate::bsp) or
    /// [`run`](crate::run) returns for a reason that is none of the others.
    pub fn program(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Program(reason.into())
    }

    /// The exit code that tells what kind of error ended a process:
    ///
    /// | code | |
    /// |---|---|
    /// | 1 | the job failed |
    /// | 3 | the system or the coordinator refused something |
    /// | 6 | another worker was lost, or made this one stop |
    /// | 7 | the configuration makes no sense |
    /// | 8 | an input cannot be read |
    /// | 9 | an output, or what memory has no room for, cannot be written |
    /// | 10 | the memory limit is too small |
    /// | 11 | somebody cancelled it |
    pub fn exit_code(&self) -> u8 {
        use dataflow::Error as Flow;
        match self {
            Self::Dataflow(error) => match error {
                Flow::NoInput { .. }
                | Flow::BadPattern { .. }
                | Flow::Input { .. }
                | Flow::NotText { .. }
                | Flow::NotRecords { .. } => 8,
                Flow::Checkpoint { .. } | Flow::CheckpointOfOther { .. } => 9,
                Flow::Output { .. } | Flow::OutputExists { .. } | Flow::Spill { .. } => 9,
                Flow::Remote { .. } => 6,
                Flow::Cancelled { .. } => 11,
                Flow::ArenaTooSmall { .. } | Flow::NoMemory { .. } => 10,
                Flow::BadTask { .. } | Flow::Unplaceable { .. } => 7,
                Flow::Transport(error) => link_code(error),
                Flow::Collectives(error) => group_code(error),
                _ => 1,
            },
            Self::Transport(error) => link_code(error),
            Self::Collectives(error) => group_code(error),
            Self::Coordinator(coordinator::Error::Aborted { .. }) | Self::Aborted { .. } => 6,
            Self::Coordinator(_) | Self::Thread(_) => 3,
            Self::Config { .. } => 7,
            Self::Program(_) | Self::Panicked { .. } => 1,
        }
    }

    /// Whether this is the consequence of what went wrong elsewhere.
    pub(crate) fn is_consequence(&self) -> bool {
        self.exit_code() == 6
    }
}

/// What was cancelled is so by whatever way a rank learns of it.
impl From<collectives::Error> for Error {
    fn from(error: collectives::Error) -> Self {
        match error {
            cancelled @ collectives::Error::Cancelled { .. } => Self::Dataflow(cancelled.into()),
            other => Self::Collectives(other),
        }
    }
}

fn group_code(error: &collectives::Error) -> u8 {
    use collectives::Error as Groups;
    match error {
        Groups::PeerLost { .. } | Groups::Closed { .. } | Groups::GaveUp { .. } => 6,
        Groups::Transport(_) => 3,
        _ => 1,
    }
}

fn link_code(error: &transport::Error) -> u8 {
    use transport::Error as Link;
    match error {
        Link::PeerLost { .. } | Link::Closed { .. } => 6,
        Link::LedgerLimit { .. } | Link::MessageTooLarge { .. } => 10,
        _ => 3,
    }
}

/// What `main` returns for the result of a job: an error is printed in one line, and its kind is told by
/// the [exit code](Error::exit_code).
///
/// ```
/// # use updraft::prelude::*;
/// fn main() -> std::process::ExitCode {
///     updraft::exit(updraft::run(Config::default(), |env| {
///         env.run(&env.collection(vec![1u64, 2]).for_each(|_| {}))
///     }))
/// }
/// ```
pub fn exit(result: Result<(), Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", dataflow::one_line(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
