//! Memory of one rank that other ranks read and write by themselves.
//!
//! The owner [exposes](crate::Fabric::expose) a loan and sends the [`RegionHandle`] of it around. Who has the
//! handle attaches to the memory, which takes a question to the owner and its answer, and then puts, gets
//! and operates on words. On shared memory these are loads and stores of the rank that asks, and the owner
//! has no part in them. Over RDMA the devices put and get: the owner's registers the memory for that when somebody attaches, apart
//! from the rest of the arena, which no peer may write to. What a path cannot do goes by frames, beside the messages of the link, which
//! the owner's fabric carries out whenever it is driven, with the same instructions on the same words: so an
//! atomic operation is atomic whoever else operates, by whatever path.
//!
//! # Who may touch the memory
//!
//! The owner counts, in a book of its own, which ranks have mapped what it exposes, or have it registered for
//! their device. Memory goes back to the arena once it is not exposed any more *and* every such rank has let go of
//! it, or its process, or its link over RDMA, has ended. No rank can be made to forget a reference to it, and none has to be
//! believed: memory that goes back is registered no more before, and a device that still asks for it fails its own link.

mod exposed;
mod frame;
mod handle;
mod lane;
mod words;

#[cfg(any(fuzzing, all(test, not(loom))))]
pub(crate) use self::frame::FRAME_BYTES;
pub(crate) use self::{
    exposed::{Attached, Place, Table},
    frame::{Access, Frame, Name, Reason},
    lane::{Asked, Onesided, PIECE_BYTES, piece_of},
    words::{WORD_BYTES, Words, compare_swap, fetch_add, load, load_streaming, store},
};
pub use self::{
    exposed::{Exposed, RemoteRegion},
    handle::RegionHandle,
    lane::{Completion, Issued, Operation, Outcome},
    words::copy_streaming,
};
