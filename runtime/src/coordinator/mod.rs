//! The control plane of a job: who is in it, where they listen, how they fare.
//!
//! Each job has one [`Coordinator`]; each worker has a [`Client`] of it. They prove to each other
//! that they know the job's secret, the worker registers the addresses of its executors, and once
//! all have done so everyone gets the [`Book`] of all addresses. From then on the
//! workers talk to one another, and the coordinator only hears how they fare: it is never in the
//! path of the data.
//!
//! Whatever goes wrong ends a wait. A worker that dies is an [`Event::Lost`] at the coordinator; a
//! coordinator that dies, or gives the job up, is a call of what [`Client::watch`] was given.
//!
//! ```
//! use std::sync::mpsc;
//! use updraft::coordinator::{Client, Coordinator, Event, Membership};
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
//! let book = worker.register(&["shm:7".to_owned()])?;
//! assert_eq!(book, [["shm:7"]]);
//! assert_eq!(heard.recv()?, Event::Registered { worker: 0 });
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod client;
mod error;
mod membership;
mod protocol;
mod server;
mod stream;

pub use client::Client;
pub use error::Error;
pub use membership::Membership;
pub use protocol::Malformed;
pub use server::{Coordinator, Event, Listen};

/// The addresses of every executor of a job, by worker.
pub type Book = Vec<Vec<String>>;

/// The number the coordinator goes by in a proof, which no worker has.
const COORDINATOR: transport::Rank = transport::Rank::MAX;

#[cfg(test)]
mod tests;
