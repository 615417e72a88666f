//! What can go wrong in an operation of a group.

use transport::Rank;

/// Why an operation of a group failed. Ranks are numbered as in the job, not as in the group.
///
/// Whatever the reason, all members learn of it, and the group is of no use any more to any of them. Those that are left
/// can still [agree](crate::Group::agree) on what to do, and [make a group](crate::Group::shrink) of themselves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A member is gone: its process died, or does not answer. The others go on with [`shrink`](crate::Group::shrink).
    #[error("rank {peer} was lost: {cause}")]
    PeerLost {
        /// The rank that went away.
        peer: Rank,
        /// How that was noticed, and by whom.
        cause: String,
    },

    /// A member that is needed has ended its program in order, or closed its links.
    #[error("rank {peer} has closed its end")]
    Closed {
        /// The rank that went away.
        peer: Rank,
    },

    /// Two members called different operations, or the same with other lengths, types, roots, functions or algorithms.
    #[error("rank {here} called {ours}, but rank {peer} called {theirs}")]
    Mismatch {
        /// This rank.
        here: Rank,
        /// What it called.
        ours: String,
        /// The member that called something else.
        peer: Rank,
        /// What that was, as far as it is known.
        theirs: String,
    },

    /// A member gave up: it dropped an operation that was under way, or failed in it.
    #[error("rank {peer} gave up: {reason}")]
    GaveUp {
        /// The member.
        peer: Rank,
        /// What it said.
        reason: String,
    },

    /// Somebody ended what the job does: see [`Engine::cancel`](crate::Engine::cancel).
    #[error("{by} cancelled the run: {reason}")]
    Cancelled {
        /// Who did.
        by: String,
        /// Why.
        reason: String,
    },

    /// An argument makes no sense for the group.
    #[error("{call}: {reason}")]
    Argument {
        /// The operation.
        call: &'static str,
        /// What is wrong with what it was given.
        reason: String,
    },

    /// A member sent what cannot be of this operation.
    #[error("rank {peer} sent {found} bytes where {expected} belong ({call})")]
    Malformed {
        /// The operation.
        call: String,
        /// The member.
        peer: Rank,
        /// Bytes expected; a multiple of this where the length is the sender's to choose.
        expected: usize,
        /// Bytes that came.
        found: usize,
    },

    /// A member sent a value that is not a valid archive of the expected type.
    #[error("rank {peer} sent a malformed value: {reason}")]
    MalformedValue {
        /// The member.
        peer: Rank,
        /// What the validator found.
        reason: String,
    },

    /// No more groups can be told apart.
    #[error("a job can make {limit} groups, one after another, and no more")]
    TooManyGroups {
        /// The most groups.
        limit: u32,
    },

    /// The links failed in another way.
    #[error("{0}")]
    Transport(String),
}

impl Error {
    /// The member that is gone, if that is what it says.
    pub fn lost(&self) -> Option<Rank> {
        match self {
            Self::PeerLost { peer, .. } | Self::Closed { peer } => Some(*peer),
            _ => None,
        }
    }
}

/// An error of the links, in words that can be told to several operations and to other ranks.
impl From<transport::Error> for Error {
    fn from(error: transport::Error) -> Self {
        match error {
            transport::Error::PeerLost { peer, cause } => Self::PeerLost {
                peer,
                cause: cause.to_string(),
            },
            transport::Error::Closed { peer } => Self::Closed { peer },
            other => {
                let mut text = other.to_string();
                let mut source = std::error::Error::source(&other);
                while let Some(cause) = source {
                    text = format!("{text}: {cause}");
                    source = cause.source();
                }
                Self::Transport(text)
            }
        }
    }
}
