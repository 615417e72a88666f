//! Operations in which several ranks take part: the collectives of MPI, as futures.
//!
//! A [`Group`] is a set of ranks that act together; [`Engine::world`] makes the one of all ranks. Its operations are
//! methods, and each gives an [`Operation`], to be awaited or waited for. Vectors are slices of fixed-size
//! [`Element`]s; how two of them become one is an [`op::Op`]. Which algorithm carries an operation out is
//! chosen by a cost [`Model`] that is measured when the job begins, and can be [forced](Group::force).
//!
//! Beside vectors, members give each other [values](Value) of any type that rkyv archives, whole
//! [buffers](Group::broadcast_buffer) without a copy, and [messages](Group::send) one by one. A [grid](Cartesian) or a
//! [graph](Graph) says who is next to whom; [exact sums](ExactSum) are the same bits for any number of members; and what is
//! run often can be [planned](Persistent) once.
//!
//! When a member is lost all others get an [`Error`] that names it. Those that are left can [agree](Group::agree) on what
//! to do, and [go on without it](Group::shrink).
//!
//! Nothing here starts a thread, and nothing waits but [`Operation::wait`]: many operations can be under way beside
//! each other and beside other work, and a whole job can run on one thread.
//!
//! ```
//! use collectives::{Engine, op::Sum};
//! use transport::{Arena, Fabric, Ledger};
//!
//! // A job of one rank; `updraft::bsp` runs one on every core, and on many machines.
//! let fabric = Fabric::alone(Arena::new(&Ledger::new(1 << 20), 1 << 20)?);
//! let engine = Engine::simulated(fabric);
//! let sums = engine.block_on(async {
//!     let world = engine.world().await?;
//!     let mut numbers = [1, 2, 3];
//!     world.all_reduce(&mut numbers, Sum).await?;
//!     Ok(numbers)
//! })?;
//! assert_eq!(sums, [1, 2, 3]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

mod agree;
mod all_gather;
mod all_reduce;
mod all_to_all;
mod announce;
mod attend;
mod barrier;
mod board;
mod broadcast;
mod buffer;
mod caches;
mod call;
mod cancel;
mod cooperate;
mod element;
mod engine;
mod error;
mod exact;
mod fate;
mod gather;
mod group;
pub mod harp;
mod hierarchy;
mod message;
mod notice;
pub mod op;
mod operation;
mod parts;
mod persistent;
mod plan;
mod reduce;
mod reduce_scatter;
mod rounds;
mod scan;
mod scratch;
mod slots;
mod sync;
mod tag;
mod topology;
mod value;

use std::ops::Range;

pub use agree::Agreement;
pub use announce::AllGather;
pub use attend::Attend;
pub use bytemuck;
pub use cooperate::{Part, cooperate};
pub use element::Element;
pub use engine::Engine;
pub use error::Error;
pub use exact::{ExactSum, ExactWords, MergeExact};
pub use group::Group;
pub use message::{Envelope, Message};
pub use operation::Operation;
pub use parts::Parts;
pub use persistent::Persistent;
pub use plan::{Algorithm, Model, Operator};
pub use rkyv;
pub use topology::{Cartesian, Dimension, Graph, Neighbours, balanced_dims};
pub use value::Value;

/// The part of a vector of `len` elements that is member `member`'s of `size`: parts differ by one element at most.
pub(crate) fn parts_of(len: usize, size: usize, member: usize) -> Range<usize> {
    let (least, longer) = (len / size, len % size);
    let start = member * least + member.min(longer);
    start..start + least + usize::from(member < longer)
}

/// The ranges that a vector of `len` elements is sent in, each of at most `bytes` bytes. An empty vector is one.
pub(crate) fn segments<T: Element>(len: usize, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let most = (bytes / size_of::<T>()).max(1);
    let count = len.div_ceil(most).max(1);
    (0..count).map(move |index| index * most..((index + 1) * most).min(len))
}

/// Bytes that are copied at a time.
const PIECE: usize = 1024;

/// Copies a slice to one as long.
///
/// The C library copies more than a few pages by one instruction of the processor, which on some (AMD's Zen 3 and 4) takes four
/// times as long when the two lie alike within their pages, as a vector on the heap and a loan do. So it is
/// given small pieces, which it copies by vectors.
#[inline]
pub(crate) fn copy<T: Element>(into: &mut [T], from: &[T]) {
    let into: &mut [u8] = bytemuck::cast_slice_mut(into);
    let from: &[u8] = bytemuck::cast_slice(from);
    for (into, from) in into.chunks_mut(PIECE).zip(from.chunks(PIECE)) {
        into.copy_from_slice(from);
    }
}
