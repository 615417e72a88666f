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

    /// The owner does not expose this memory, or no longer.
    #[error("rank {peer} does not expose this memory, or no longer")]
    NotExposed {
        /// The rank that was asked.
        peer: Rank,
    },

    /// An operation names bytes that are not all exposed.
    #[error("{bytes} bytes from {offset} on are not within the {limit} that rank {peer} exposes")]
    OutOfRegion {
        /// The rank whose memory it is.
        peer: Rank,
        /// The first byte named.
        offset: u64,
        /// Bytes named.
        bytes: u64,
        /// Bytes exposed.
        limit: u64,
    },

    /// An atomic operation names no word: those begin at multiples of eight.
    #[error("no word of eight bytes begins at {offset}")]
    Misaligned {
        /// The byte named.
        offset: u64,
    },

    /// Memory to be exposed was not lent by the arena of the fabric.
    #[error("the memory to be exposed is not in the arena of this rank")]
    ForeignLoan,

    /// The owner of exposed memory has none left to answer with, and did not read it.
    #[error("rank {peer} has no memory to answer with {bytes} bytes")]
    PeerFull {
        /// The rank that was asked.
        peer: Rank,
        /// Bytes asked for.
        bytes: u64,
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

    /// Only RDMA may be used, and it cannot be.
    #[error("could not use RDMA")]
    Rdma(#[from] Unusable),

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

/// Why RDMA cannot be used, here or to a peer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unusable {
    /// The library of the verbs cannot be opened.
    #[error("libibverbs.so.1 (Debian: libibverbs1 and ibverbs-providers) cannot be opened: {0}")]
    Library(String),
    /// The kernel knows no RDMA.
    #[error("the kernel has no RDMA support (module ib_uverbs)")]
    Kernel,
    /// No device with an active port is there, or not the one that was asked for.
    #[error(
        "no {} with an active port was found{}",
        .wanted.as_deref().map_or("RDMA device".into(), |name| format!("RDMA device {name}")),
        if .inactive.is_empty() { String::new() } else { format!("; not usable: {}", .inactive) }
    )]
    Device {
        /// The device asked for.
        wanted: Option<String>,
        /// The ports that are there and of no use.
        inactive: String,
    },
    /// The arena may not be locked in memory.
    #[error(
        "device {device} cannot lock the arena's {bytes} bytes in memory: the limit is {limit} \
         bytes; raise it with `ulimit -l unlimited`, or LimitMEMLOCK=infinity in a systemd unit"
    )]
    LockedMemory {
        /// The device.
        device: String,
        /// Bytes to be locked.
        bytes: u64,
        /// What `RLIMIT_MEMLOCK` allows, in bytes.
        limit: u64,
    },
    /// The arena has no room for the receive slots of one more link.
    #[error("the arena has no room for the receive slots of a link")]
    Room,
    /// The device's queues hold no more links.
    #[error("the device's queues serve {0} links and no more")]
    Links(u32),
    /// The peer does not use RDMA, or another kind of it.
    #[error("the peer cannot be reached by RDMA: {0}")]
    Peer(String),
    /// A verb failed.
    #[error("{0}")]
    Verb(String),
}

impl From<crate::verbs::VerbError> for Unusable {
    fn from(error: crate::verbs::VerbError) -> Self {
        Self::Verb(error.to_string())
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
