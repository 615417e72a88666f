//! Runs dataflow jobs on pinned executors: one thread a core, one event loop each, over shared memory
//! inside a node, and RDMA or TCP between nodes.
//!
//! A job is an ordinary program. Started by itself it is one *worker* with an *executor* on every core;
//! started by `updraft run -n 4 -- ./job` it is four of them, which all run the same `main`, build the
//! same graphs, and share the work. [`run`] finds out which. An executor's number among all is its *rank*.
//!
//! # A graph
//!
//! A [`TSet`](dataflow::TSet) says what becomes of a set of records that is spread over the ranks. It ends in a
//! [`Job`](dataflow::Job), which [`Env::run`] does. Functions are given what they read where it lies (`&str` for a
//! `String`), and what they push is written straight into the memory that travels.
//!
//! ```
//! use updraft::prelude::*;
//!
//! let counts = updraft::run(Config::default(), |env| {
//!     let counts = env
//!         .lines("src/*.rs")?
//!         .flat_map(|line, out| for word in line.split_whitespace() { out.push((word, 1u64)) })
//!         .reduce_by_key(|a, b| a + b)
//!         .collect();
//!     env.run(&counts)
//! })?;
//! assert!(counts.iter().any(|(word, count)| word == "pub" && *count > 10));
//! # Ok::<(), updraft::Error>(())
//! ```
//!
//! # The same steps on all ranks
//!
//! [`bsp`] runs a program in the manner of MPI: every rank calls it with the [`Group`](collectives::Group) of all.
//!
//! ```
//! use updraft::{collectives::op::Sum, prelude::*};
//!
//! let sums = updraft::bsp(Config { executors: Some(2), ..Config::default() }, |world| {
//!     let mut sum = [world.rank() as u64 + 1];
//!     world.all_reduce(&mut sum, Sum).wait()?;
//!     Ok(sum[0])
//! })?;
//! assert_eq!(sums, [3, 3]);
//! # Ok::<(), updraft::Error>(())
//! ```
//!
//! # Where to go on
//!
//! | to | see |
//! | --- | --- |
//! | begin, and know what a job is given | [`run`], [`Env`], [`Config`] |
//! | write graphs | [`dataflow`], [`TSet`](dataflow::TSet), [`Job`](dataflow::Job), [`Record`](dataflow::Record) |
//! | read and write what nothing here does | [`source`](dataflow::source()), [`TSet::write_to`](dataflow::TSet::write_to) |
//! | keep what a job has made for others | [`TSet::cache`](dataflow::TSet::cache), [`TSet::persist`](dataflow::TSet::persist), [`TSet::checkpoint`](dataflow::TSet::checkpoint) |
//! | write tasks with several inputs and outputs | [`GraphBuilder`](dataflow::GraphBuilder), [`TaskBuilder`](dataflow::TaskBuilder), [`Outputs`](dataflow::Outputs) |
//! | say where they run | [`dataflow::schedule`], [`Scheduler`](dataflow::schedule::Scheduler), [`Env::set_scheduler`] |
//! | repeat a step | [`Env::iterate`], [`Env::repeat`], [`Variable`](dataflow::Variable), [`Cached`](dataflow::Cached) |
//! | say how far a loop is | [`Env::rounds`] |
//! | work on what has no end, by the times of events | [`channel`](dataflow::channel()), [`tail`](dataflow::tail()), [`Windows`](dataflow::Windows), [`Stop`](dataflow::Stop) |
//! | drive operators by hand, in a program of all ranks | [`Operator`](dataflow::Operator) |
//! | reduce, gather, exchange by hand | [`collectives`], [`collectives::harp`], [`Env::bsp`] |
//! | send messages, and nothing else | [`transport`], [`Env::on_executors`] |
//! | cancel or pause what runs | [`Env::controller`], [`Controller::cancel`], [`Controller::pause`] |
//! | know why it failed | [`Error`], [`dataflow::Error`], [`exit`] |
//! | see what it will do | [`Job::explain`](dataflow::Job::explain), [`Job::to_dot`](dataflow::Job::to_dot), [`Job::to_json`](dataflow::Job::to_json) |
//!
//! A guide that goes through all of this step by step is a book beside the sources: `mdbook build runtime/guide`.
//!
//! In tests, [`dataflow::inline`] runs a job on the calling thread.
#![forbid(unsafe_code)]

pub use collectives;
pub use dataflow;
pub use transport;

mod affinity;
mod config;
mod control;
mod cooperative;
pub mod coordinator;
mod counters;
mod env;
mod error;
mod executor;
mod helpers;
mod hosts;
mod iterate;
mod links;
mod memory;
pub mod progress;
mod repeat;
mod signals;
mod summary;

pub use config::Config;
pub use control::Controller;
pub use env::{Env, bsp, run};
pub use error::{Error, exit};
pub use iterate::{Iterated, Round};

/// What a program that defines a job needs.
pub mod prelude {
    pub use collectives::Group;
    pub use dataflow::{
        Cached, Encode, Job, Key, Level, Operator, Record, Sent, Slice, TSet, Variable, record,
    };

    pub use crate::{Config, Env, Round};
}

/// The programs of the guide, which are compiled and run as tests.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../guide/src/quick-start.md")]
    mod quick_start {}
    #[doc = include_str!("../guide/src/concepts.md")]
    mod concepts {}
    #[doc = include_str!("../guide/src/tsets.md")]
    mod tsets {}
    #[doc = include_str!("../guide/src/joins.md")]
    mod joins {}
    #[doc = include_str!("../guide/src/runs.md")]
    mod runs {}
    #[doc = include_str!("../guide/src/loops.md")]
    mod loops {}
    #[doc = include_str!("../guide/src/streams.md")]
    mod streams {}
    #[doc = include_str!("../guide/src/groups.md")]
    mod groups {}
    #[doc = include_str!("../guide/src/operators.md")]
    mod operators {}
    #[doc = include_str!("../guide/src/messages.md")]
    mod messages {}
    #[doc = include_str!("../guide/src/tasks.md")]
    mod tasks {}
    #[doc = include_str!("../guide/src/memory.md")]
    mod memory {}
    #[doc = include_str!("../guide/src/failure.md")]
    mod failure {}
    #[doc = include_str!("../guide/src/tuning.md")]
    mod tuning {}
    #[doc = include_str!("../guide/src/deployment.md")]
    mod deployment {}
}
