//! Tables of partitions, and operations on them: the programming model of Harp.
//!
//! A [`Table`] holds *partitions*, each with a number, its *id*. Members of a group have a table each; together these are one
//! distributed table. A table has a [`Combiner`]: it makes one of two partitions that meet under one id. The
//! operations move partitions among the members:
//!
//! | operation | each member has afterwards |
//! |---|---|
//! | [`broadcast`](Table::broadcast) | the root's partitions as well |
//! | [`reduce`](Table::reduce) | at the root, all partitions, combined by id |
//! | [`all_gather`](Table::all_gather), [`all_reduce`](Table::all_reduce) | all partitions, combined by id |
//! | [`regroup`](Table::regroup) | the partitions that a [`Partitioner`] gives it, combined by id: a shuffle |
//! | [`aggregate`](Table::aggregate) | all partitions, combined by id, after a function was applied to each where it was regrouped to |
//! | [`rotate`](Table::rotate) | those of the member before it |
//! | [`rotate_with`](Table::rotate_with) | its own, after they have been at every member, each working on those that are there while others are on their way |
//! | [`push`](Table::push) | in the global table, its own partitions and what all local tables had for them |
//! | [`pull`](Table::pull) | in its local table, what the global table has under its ids |
//! | [`join`](Table::join) | the partitions whose ids another table has at this member |
//! | [`group_by_key`] | the values of the keys that are its, combined by key |
//!
//! Partitions that meet are combined in the order of the members, whatever arrives first. So results do not depend on
//! timing, and all members get the same bits.
//!
//! A partition is any [`Payload`]: a vector of [`Element`](crate::Element)s, which is copied once into memory lent by the links
//! and once out of it (or combined right there), or a [`Single`] [`Value`](crate::Value) of any other type, whose archive is
//! validated where it arrives.
//!
//! # Many cores
//!
//! A worker of Harp is a process with a thread for each core, and its dynamic scheduler gives a process's partitions to
//! threads that are free. Here every core has a rank of its own, and the table of such a worker is spread over the
//! ranks of a process. A [`Scheduler`] does the same among those: ranks of a process that are done with their own partitions
//! take over partitions of others, which get them back.
//!
//! # Sources
//!
//! Zhang, Ruan, Qiu: "Harp: Collective communication on Hadoop", IC2E 2015, for tables, partitions, combiners and the
//! operations; Zhang, Peng, Qiu: "Model-centric computation abstractions in machine learning applications", BeyondMR 2016, for
//! push, pull and rotation; Peng and others: "HarpLDA+: Optimizing latent Dirichlet allocation for parallel
//! efficiency", IEEE Big Data 2017, for rotation with computation overlapped and the dynamic scheduler. Where the papers
//! leave something open, this does as Harp's own `harp-collective` does; what differs is said at each operation.
//!
//! ```
//! use collectives::{Engine, harp::{Elementwise, Table}, op::Sum};
//! use transport::{Arena, Fabric, Ledger};
//!
//! let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
//! let engine = Engine::simulated(fabric);
//! let sum = engine.block_on(async {
//!     let world = engine.world().await?;
//!     let mut table = Table::new(Elementwise(Sum));
//!     table.add(7, vec![1.0, 2.0])?;
//!     table.add(7, vec![0.5, 0.5])?;
//!     table.all_reduce(&world).await?;
//!     Ok(table)
//! })?;
//! assert_eq!(sum.get(7), Some(&vec![1.5, 2.5]));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod combine;
mod exchange;
mod global;
mod keys;
mod operations;
mod partitioner;
mod payload;
mod rotation;
mod scheduler;
mod stream;
mod table;

pub use combine::{Combiner, Elementwise, Replace};
pub use keys::group_by_key;
pub use partitioner::{Modulo, Partitioner, Stay};
pub use payload::{Payload, Single};
pub use scheduler::{Scheduler, Seat};
pub use table::Table;
