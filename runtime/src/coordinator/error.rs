//! What can go wrong between a worker and its coordinator.

use std::{io, path::PathBuf};

use super::Malformed;

/// Why a worker could not take its place in a job, or lost it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no connection to be had.
    #[error("worker {worker} cannot reach the coordinator at {address}")]
    Unreachable {
        /// The worker that tried.
        worker: u32,
        /// Where it tried.
        address: String,
        /// What the system said.
        source: io::Error,
    },

    /// The other end does not know the job's secret.
    #[error("worker {worker} does not trust the coordinator at {address}")]
    Untrusted {
        /// The worker that asked for the proof.
        worker: u32,
        /// Who failed to give it.
        address: String,
        /// What was wrong with it.
        source: transport::Refusal,
    },

    /// The coordinator gave the job up, or would not have this worker in it.
    #[error("the coordinator at {address} told worker {worker} to stop: {reason}")]
    Aborted {
        /// The worker that was told.
        worker: u32,
        /// Who told it.
        address: String,
        /// Why, in words for people.
        reason: String,
    },

    /// The connection ended without a word: most likely the coordinator's process did.
    #[error("worker {worker} lost the coordinator at {address}")]
    Gone {
        /// The worker that noticed.
        worker: u32,
        /// Who is gone.
        address: String,
    },

    /// The connection failed.
    #[error("worker {worker} could not {action} the coordinator at {address}")]
    Connection {
        /// The worker at this end.
        worker: u32,
        /// The coordinator's address.
        address: String,
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },

    /// The coordinator sent what the protocol does not allow.
    #[error("worker {worker} does not understand the coordinator at {address}")]
    Malformed {
        /// The worker that read it.
        worker: u32,
        /// Who sent it.
        address: String,
        /// What was wrong with it.
        source: Malformed,
    },

    /// The address of the coordinator is not one.
    #[error("{text:?} is not a coordinator's address: it is unix:NAME or tcp:HOST:PORT")]
    BadAddress {
        /// What was to be read.
        text: String,
    },

    /// A variable that a launcher sets is missing.
    #[error("UPDRAFT_COORDINATOR is set, and {variable} is not")]
    MissingVariable {
        /// The variable's name.
        variable: &'static str,
    },

    /// A variable that a launcher sets holds something else than it should.
    #[error("{variable} is {text:?}, and should be {expected}")]
    BadVariable {
        /// The variable's name.
        variable: &'static str,
        /// What it holds.
        text: String,
        /// What it should hold.
        expected: &'static str,
    },

    /// The job's secret cannot be read.
    #[error("could not read the job's secret from {}", path.display())]
    UnreadableSecret {
        /// Where it should be.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },

    /// Others than the owner of the job may have read or written its secret.
    #[error("the job's secret in {} is not ours alone: {found}", path.display())]
    ExposedSecret {
        /// Where it is.
        path: PathBuf,
        /// What is wrong with the file.
        found: String,
    },

    /// The system gave no random bytes for a proof.
    #[error("could not prove to the coordinator that we know the job's secret")]
    Proof {
        /// What failed.
        source: transport::Error,
    },
}
