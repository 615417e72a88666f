//! What a job does: records, batches, the graph, its operators.
//!
//! A program writes a [`TSet`]: a source, narrow operators such as [`map`](TSet::map), exchanges such as
//! [`reduce_by_key`](TSet::reduce_by_key), and a sink, which gives a [`Job`]. A job is a value; writing it
//! has no effect. When it runs, each rank builds its instance of every task and is driven by calls.
//!
//! What memory has no room for is kept on disk, by the operators themselves: see [`spill`].
//!
//! Where operators are not enough, a [`GraphBuilder`] takes tasks that the program writes itself, with named inputs
//! and outputs. Where instances of tasks run is for a scheduler to decide: see [`schedule`].
//!
//! Records cross an exchange in batches that are written once, in the memory that travels, and read
//! where they lie: see [`Record`]. What ranks say to one another beside records (that a run is cancelled or stands still, that a
//! reader wants no more) needs no loan, so that backpressure does not hold it back, and takes effect before any record that waits:
//! within a turn, in which a task gets through one batch at most. A function for which that is long belongs to
//! [helpers](TSet::map_blocking).
//!
//! ```
//! use dataflow::{collection, inline};
//!
//! let words = collection(vec!["to be or".to_owned(), "not to be".to_owned()])
//!     .flat_map(|line, out| for word in line.split(' ') { out.push((word, 1u64)) })
//!     .reduce_by_key(|a, b| a + b)
//!     .collect();
//! let mut counts = inline(&words)?;
//! counts.sort();
//! assert_eq!(counts[0], ("be".to_owned(), 2));
//! # Ok::<(), dataflow::Error>(())
//! ```
#![deny(unsafe_code)]

mod accumulator;
mod batch;
mod blame;
mod bytes;
mod cache;
mod checkpoint;
mod demand;
mod error;
mod exchange;
#[cfg(any(fuzzing, test))]
pub mod fuzzing;
mod graph;
mod inline;
mod kept;
mod operated;
mod operator;
mod pages;
mod persist;
mod record;
mod reports;
mod run;
pub mod schedule;
mod sink;
mod source;
pub mod spill;
mod stage;
mod stop;
mod time;
mod tset;

pub use accumulator::Accumulator;
pub use cache::{Cached, CachedVariable, Partition, Replay};
pub use checkpoint::{Checkpointed, Restored};
pub use error::{Error, one_line};
pub use exchange::Receiver;
pub use graph::{
    Extent, GraphBuilder, Job, Outputs, Port, TaskBuilder, TaskGraph, TaskOutput, TaskOutputs,
};
pub use inline::{inline, simulate, simulate_on};
pub use operated::{Inlet, Inputs, One, Operator, Operators, Sent, Taking, Two};
pub use operator::{
    aggregate::{
        Aggregate, Before, Conclude, Count, Extreme, Fold, Made, Make, Mean, Merged, Of, Sum, Whole,
    },
    align::{InStep, Stepping},
    blocking::Helpers,
    boxed::{Boxed, BoxedInput},
    cross::{Cross, Crossed},
    fallible::{TryFlatMap, TryMap},
    group::{By, Cogroup, Cogrouped, Group, Grouped, Order, Unordered},
    interval::IntervalJoined,
    join::{Anti, Full, HashJoin, Inner, Join, Joined, Left, MergeJoin, MergeJoined, Right, Semi},
    limit::{Take, Taken, TopN, Topped},
    narrow::{Filter, FlatMap, Keyed, Keys, Map, Numbered, OnValues, Out, Pass, Then},
    partition::{KeyBy, MapPartition, Sample, UniqueId},
    reduce::{Accumulate, Once, Reduce, Reduced, Reducing},
    running::Running,
    sort::{First, Itself, OrderBy, SortBy, Sorted},
    statistics::{Histogram, Moments, Statistics},
    union::{Union, United},
    variable::{FilterWith, FlatMapWith, MapWith, Variable, With},
    watermarks::Watermarks,
    window::{
        All, AllOf, ByWindow, Give, OfParts, OnTime, OneByOne, Part, Parts, Together, Travel,
        Travelled, Values, Window, Windowed, Windows, WithLate,
    },
    zip::{Indexed, Indexing},
};
pub use persist::{Level, Persisted, Recall, Stored};
pub use record::{Encode, Encoder, Fields, Key, Ordered, OutOfLine, Record, Slice, Unfit};
pub use rkyv;
pub use run::{Run, Site, TaskTotals, Totals, run_after, run_of, tell_failure};
pub use source::{
    Channel, Closed, Collection, Follower, Found, Generate, Generator, HostFile, Lines, Records,
    Sender, Tail, channel, collection, find_files, generate, generate_unbounded, lines, lines_at,
    lines_of, records_at, records_of, tail,
};
pub use stage::{Counters, Failure, Input, Narrow, Output, Place, Progress, Push, Sink};
pub use stop::Stop;
pub use time::{Clock, EventTime, Watermark};
pub use tset::{Received, Source, TSet, source};

#[doc(hidden)]
pub use record::parts as record_parts;
