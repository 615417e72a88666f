//! What the benches share: deterministic texts and records, a harness that compares programs as whole
//! processes, and the same word count and sort as others would write them.
//!
//! A bench is one executable. Without arguments it measures: for every [`measure::Case`] it starts
//! itself again with the arguments that name the case, and the child prints what it saw.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each bench uses the part it needs, as a library, and leaves its tests to `tests/benches.rs`"
)]

pub mod answer;
pub mod counts;
pub mod hand_written;
pub mod measure;
pub mod options;
pub mod programs;
pub mod split;
pub mod tables;
pub mod tera;
pub mod timely_operators;
pub mod timely_peer;
pub mod timely_sort;
pub mod zipf;
