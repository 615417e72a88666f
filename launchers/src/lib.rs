//! Starts the workers of a job, and stays until the last of them is gone.
//!
//! A *launcher* is what turns one command line into the processes of a job. Each *worker* runs the
//! same program; the launcher tells it in its environment which one it is and where the job's
//! coordinator listens. A program that knows nothing of Updraft can be launched as well, as with
//! `mpirun`.
//!
//! The one rule: a job ends as a whole. When one worker fails the others are stopped, nothing that
//! a worker started outlives the job, and the launcher says which worker failed first and how.
//!
//! ```
//! let options = launchers::local::Options {
//!     workers: 2,
//!     job: vec!["sh".into(), "-c".into(), "exit 5".into()],
//!     ..Default::default()
//! };
//! assert_eq!(options.workers, 2);
//! ```
//!
//! `updraft run` is [`local::run`] with the [`command`] line's options.

#![forbid(unsafe_code)]

pub mod bench;
pub mod command;
mod doctor;
mod error;
mod input;
mod kernel;
pub mod local;
mod output;
mod program;
mod signals;
mod topology;
mod verdict;
pub mod watchdog;
pub mod worker;

pub use error::Error;
