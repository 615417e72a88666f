//! What can keep a launcher from its work.

use std::{io, path::PathBuf};

/// Why a job could not be launched. How a job itself fails is not an error of its launcher.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The job's program is not there, or nobody may run it.
    #[error("cannot run {}: {found}", program.display())]
    NotRunnable {
        /// The program as it was named.
        program: PathBuf,
        /// What is wrong with it.
        found: String,
    },

    /// An operation of the system failed.
    #[error("could not {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// The command line asks for what makes no sense.
    #[error("{reason}")]
    Usage {
        /// Why not.
        reason: String,
    },

    /// A file for results cannot be written.
    #[error("could not write {}", path.display())]
    Output {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// What was measured is not what it should be.
    #[error("{reason}")]
    Wrong {
        /// What was found, and what should have been.
        reason: String,
    },

    /// A worker could not be started.
    #[error("could not start worker {worker}")]
    Start {
        /// Which.
        worker: u32,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// Wraps an error of the system in what was attempted.
    pub(crate) fn io<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            source: source.into(),
        }
    }

    /// The exit code that stands for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotRunnable { .. } => exit::NOT_FOUND,
            Self::Usage { .. } => exit::USAGE,
            Self::Output { .. } => exit::OUTPUT,
            Self::Wrong { .. } => exit::JOB,
            Self::Io { .. } | Self::Start { .. } => exit::LAUNCHER,
        }
    }
}

/// What the command exits with when it does not pass on the code of a job.
pub(crate) mod exit {
    /// A worker said that it failed, and then left with code 0; a result is wrong, or a target missed.
    pub(crate) const JOB: u8 = 1;
    /// The command line is wrong.
    pub(crate) const USAGE: u8 = 2;
    /// The launcher itself failed.
    pub(crate) const LAUNCHER: u8 = 3;
    /// There is no such program.
    pub(crate) const NOT_FOUND: u8 = 4;
    /// What a worker leaves with when the cause is the loss of another.
    pub(crate) const LOST_A_PEER: u8 = 6;
    /// A file cannot be written.
    pub(crate) const OUTPUT: u8 = 9;
    /// What a worker leaves with when somebody has cancelled the job.
    pub(crate) const CANCELLED: u8 = 11;
    /// The death by a signal, plus its number.
    pub(crate) const SIGNAL: u8 = 128;
}
