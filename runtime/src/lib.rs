//! Runs dataflow jobs on pinned executors: one thread a core, one event loop each, over shared memory
//! inside a node, and RDMA or TCP between nodes.
//!
//! A job is an ordinary program. Started by itself it is one *worker* with an *executor* on every core;
//! started by `updraft run -n 4 -- ./job` it is four of them, which all run the same `main`, build the
//! same graphs, and share the work. [`run`] finds out which.
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
#![forbid(unsafe_code)]

pub use collectives;
pub use dataflow;
pub use transport;

mod affinity;
mod config;
pub mod coordinator;
mod counters;
mod env;
mod error;
mod executor;
mod iterate;
mod links;
mod memory;
pub mod progress;
mod repeat;
mod summary;

pub use config::Config;
pub use env::{Env, bsp, run};
pub use error::{Error, exit};
pub use iterate::{Iterated, Round};

/// What a program that defines a job needs.
pub mod prelude {
    pub use collectives::Group;
    pub use dataflow::{Cached, Encode, Job, Key, Record, Slice, Stream, TSet, Variable, record};

    pub use crate::{Config, Env, Round};
}
