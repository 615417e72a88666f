//! Moves buffers between ranks without copying them.
//!
//! A job is a set of *ranks*, each a thread with an [`Arena`] of memory. Between each pair of ranks
//! there is a *link*, over the best path they share: shared memory inside a node, RDMA where both have
//! a device for it, TCP otherwise. Whatever the path, a *message* is written once, in a [`Loan`] of the arena, and read once, in place, as a
//! [`Buffer`]. A [`Fabric`] holds all links of a rank.
//!
//! The loan is the room: a sender whose loans are all on their way or unread gets no more until
//! receivers have dropped what they read. There is no other place where a sender waits, and no queue
//! without a bound.
//!
//! Nothing here starts a thread or reads a clock, and one call waits, [`Fabric::wait`]: whoever owns
//! a fabric drives it. So a whole job can run on one thread, from a seed: see [`Simulation`].
//!
//! ```
//! use transport::{Arena, Event, Fabric, Ledger};
//!
//! let mut fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
//! let mut loan = fabric.loan(5)?.expect("nothing is lent yet");
//! loan.copy_from_slice(b"hello");
//! fabric.send(0, loan)?;
//! let Some(Event::Message { buffer, .. }) = fabric.receive()? else { panic!("it was sent") };
//! assert_eq!(buffer.as_slice(), b"hello");
//! # Ok::<(), transport::Error>(())
//! ```

mod address;
mod arena;
mod bell;
mod error;
mod fabric;
#[cfg(any(fuzzing, all(test, not(loom))))]
pub mod fuzzing;
mod handover;
mod interface;
mod ledger;
mod link;
mod remote;
mod secret;
mod simulation;
mod sync;
mod verbs;

pub use address::Address;
pub use arena::{Arena, Buffer, Loan, Window, prefetch_read, prefetch_write};
pub use error::{Error, Loss, Unusable};
pub use fabric::{Config, Counters, Event, Fabric, Flow, Peer, Transport, Waker, Why};
pub use handover::{Handover, Stores};
pub use interface::Interface;
pub use ledger::{Ledger, Offer, Reservation, Yielding};
pub use link::{Endpoint, EndpointExt, Path, rdma::RdmaConfig};
pub use remote::{
    Completion, Exposed, Issued, Operation, Outcome, RegionHandle, RemoteRegion, copy_streaming,
};
pub use secret::{ANSWER_BYTES, Acceptor, Connector, FINISH_BYTES, HELLO_BYTES, Refusal, Secret};
pub use simulation::Simulation;

/// The number of an executor in its job, from 0.
pub type Rank = u32;
