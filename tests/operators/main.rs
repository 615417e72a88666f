//! What operators promise: what a plain reference gives, on one thread, in threads, and over simulated networks,
//! with any number of ranks and instances, and however small the arenas.

mod checkpoints;
mod cluster;
mod control;
mod ends;
mod exchanges;
mod executors;
mod failures;
mod graphs;
mod joins;
mod partitions;
mod processes;
mod reductions;
mod spilling;
mod streams;
#[path = "../support/mod.rs"]
mod support;
mod values;
