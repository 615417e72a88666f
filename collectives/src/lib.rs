//! Operations in which all ranks of a job take part.
//!
//! An operation is a value that its caller drives: it is started with this rank's contribution, is
//! given the messages that carry its tag, and says when it is complete. It starts no thread and waits
//! for nothing, so that many can be under way beside other work.
#![forbid(unsafe_code)]

mod all_gather;

pub use all_gather::AllGather;
