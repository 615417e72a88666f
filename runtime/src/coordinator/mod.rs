//! The control plane of a job: who is in it, where they listen, how they fare.
//!
//! Each job has one [`Coordinator`]; each worker has a [`Client`] of it. They prove to each other
//! that they know the job's secret, the worker registers the addresses of its executors and what sets it apart, and
//! once all have done so everyone gets the [`Book`] of all. From then on the
//! workers talk to one another, and the coordinator only hears how they fare: it is never in the
//! path of the data.
//!
//! Whatever goes wrong ends a wait. A worker that dies is an [`Event::Lost`] at the coordinator; a
//! coordinator that dies, or gives the job up, is a call of what [`Client::watch`] was given.
//!
//! ```
//! use std::sync::mpsc;
//! use updraft::coordinator::{Client, Coordinator, Entry, Event, Membership};
//!
//! let (events, heard) = mpsc::channel();
//! let coordinator = Coordinator::start(1, move |event| events.send(event).unwrap())?;
//!
//! let worker = Client::connect(&Membership {
//!     worker: 0,
//!     workers: 1,
//!     coordinator: coordinator.address(),
//!     secret: coordinator.secret().clone(),
//! })?;
//! let book = worker.register(&Entry::at(["shm:7"]))?;
//! assert_eq!(book[0].addresses, ["shm:7"]);
//! assert_eq!(heard.recv()?, Event::Registered { worker: 0 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod error;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod membership;
mod protocol;
mod server;
mod stream;

pub use client::Client;
pub use error::Error;
pub use membership::Membership;
pub use protocol::Malformed;
pub use server::{Coordinator, Event, Listen};

/// What every worker of a job says of itself.
pub type Book = Vec<Entry>;

/// What a worker says of itself: where its executors listen, and what schedulers go by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Where its executors listen, one address each.
    pub addresses: Vec<String>,
    /// The name of the machine it is on.
    pub host: String,
    /// The cores that it may use, together with the other workers of its host.
    pub cores: u32,
    /// The bytes of memory that it may use.
    pub memory_bytes: u64,
    /// What sets it apart, such as `gpu` or `rack=3`.
    pub attributes: Vec<String>,
}

impl Entry {
    /// That of a worker that says nothing but where it listens.
    pub fn at(addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self {
            addresses: addresses.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }
}

/// The number the coordinator goes by in a proof, which no worker has.
const COORDINATOR: transport::Rank = transport::Rank::MAX;

#[cfg(test)]
mod tests;
