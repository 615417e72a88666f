//! What can go wrong between two ranks.

use std::{io, time::Duration};

use crate::{Rank, Refusal};

/// Why a transport operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The peer's process died, or the connection to it broke, before it closed its end.
    #[error("rank {peer} was lost: {cause}")]
    PeerLost {
        /// The rank that went away.
        peer: Rank,
        /// How its loss was noticed.
        cause: Loss,
    },

    /// The peer closed its end, in order, and receives nothing more.
    #[error("rank {peer} has closed its end")]
    Closed {
        /// The rank that went away.
        peer: Rank,
    },

    /// A reservation would pass the limit of the worker's ledger.
    #[error("{holder} needs {bytes} bytes, but {used} of the ledger's {limit} are in use")]
    LedgerLimit {
        /// Who asked.
        holder: &'static str,
        /// Bytes asked for.
        bytes: u64,
        /// Bytes in use when it asked.
        used: u64,
        /// The ledger's limit, in bytes.
        limit: u64,
    },

    /// A message is larger than the arena it would have to fit in.
    #[error("a message of {bytes} bytes cannot fit in an arena of {limit} bytes")]
    MessageTooLarge {
        /// Bytes asked for.
        bytes: u64,
        /// The most bytes one message can have.
        limit: u64,
    },

    /// A rank that is not part of the job.
    #[error("rank {rank} is not one of the job's {size}")]
    UnknownRank {
        /// The rank named.
        rank: Rank,
        /// Ranks in the job.
        size: u32,
    },

    /// An address is not one that [`Address`](crate::Address) prints.
    #[error("{text:?} is not a rank's address")]
    BadAddress {
        /// What was to be read.
        text: String,
    },

    /// No interface of this machine is the one that was chosen.
    #[error("{text:?} is no interface or address of this machine, which has {there}")]
    NoInterface {
        /// What was to be found.
        text: String,
        /// The interfaces there are, with their addresses.
        there: String,
    },

    /// The system's source of randomness failed.
    #[error("the system gave no random bytes")]
    Random,

    /// An operation of the system failed.
    #[error("could not {action}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// How the loss of a peer was noticed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Loss {
    /// The peer's process ended.
    #[error("its process ended")]
    ProcessEnded,
    /// The connection ended without the word that closes it.
    #[error("the connection ended without a goodbye")]
    Disconnected,
    /// The peer's machine acknowledged nothing for this long.
    #[error("its machine has not answered for {0:.1?}")]
    Silent(Duration),
    /// The peer's thread panicked.
    #[error("its thread panicked")]
    Panicked,
    /// The connection could not be made.
    #[error("cannot connect: {0}")]
    Unreachable(String),
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Connection(String),
    /// The peer did not prove that it belongs to the job.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The peer sent what the protocol does not allow; nothing after it is believed.
    #[error("it broke the protocol: {0}")]
    Protocol(&'static str),
    /// The other end of a simulated link was killed.
    #[error("it was killed by the simulation")]
    Simulated,
}

impl From<Box<Error>> for Error {
    fn from(error: Box<Error>) -> Self {
        *error
    }
}

impl Error {
    /// Wraps an error of the system in what was attempted.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// The same for the errors of `nix`.
    pub(crate) fn os(action: &'static str) -> impl FnOnce(nix::Error) -> Self {
        move |source| Self::Io {
            action,
            source: source.into(),
        }
    }
}
