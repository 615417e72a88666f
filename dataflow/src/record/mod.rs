//! What flows: values that are written once, in place, and read where they lie.
//!
//! A [`Record`] is a type as a program names it: `String`, `(String, u64)`. On its way it exists only as
//! its rkyv archive, and a function that receives it is given a [`View`](Record::View), which borrows
//! from the archive: `&str`, `(&str, u64)`. What such a function gives back is anything that
//! [encodes](Encode) to a record, so borrowed data is written straight through.

mod impls;
mod key;
mod order;
mod structs;

use rkyv::{
    Archive, Place, Portable,
    api::high::HighValidator,
    bytecheck::CheckBytes,
    rancor::{self, Strategy},
    ser::{Positional, Serializer, Writer, allocator::ArenaHandle},
};

#[doc(hidden)]
pub use self::structs::parts;
pub use self::{impls::Slice, key::Key, order::Ordered, structs::Fields};

/// A type whose values can flow along an edge.
///
/// It is implemented for integers but `usize` and `isize` (whose size differs between machines), floats, `bool`,
/// `char`, `()`, `String`, `Option`, `Vec`, arrays of bytes, tuples up to eight, and the structs that
/// [`record!`](crate::record) declares.
pub trait Record:
    Encode<Record = Self>
    + Archive<Archived: Portable + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>>
    + Send
    + 'static
{
    /// What a function sees of it: a copy of small values, a borrow of others.
    type View<'a>: Copy + Encode<Record = Self>;

    /// The view of an archived value.
    fn view(archived: &Self::Archived) -> Self::View<'_>;

    /// The same view, borrowed for a shorter time: says that views are covariant.
    fn shorten<'short, 'long: 'short>(view: Self::View<'long>) -> Self::View<'short>;

    /// A value of its own, with the contents of a view.
    fn own(view: Self::View<'_>) -> Self;

    /// Bytes that the value keeps outside of itself, which whoever holds many enters on the ledger. For structs
    /// that a program declares it is not known, and taken for none.
    fn heap_bytes(&self) -> usize {
        0
    }
}

/// A value that can be written as a record: the record itself, its view, or parts of both, such as a
/// pair of a `&str` and a `u64`.
///
/// It is implemented here and by [`record!`](crate::record) only: batches are read without a check in the
/// process that wrote them, so what is written has to be right.
pub trait Encode: parts::Sealed {
    /// The record that it is written as.
    type Record: Record;

    /// What is known after the out-of-line part was written, for the fixed part.
    type Resolver;

    /// Writes the out-of-line part.
    ///
    /// # Errors
    ///
    /// [`Unfit`] when the batch has no room for it, or never could.
    fn write(&self, encoder: &mut Encoder<'_>) -> Result<Self::Resolver, Unfit>;

    /// What [`write`](Self::write) would give, if there is no out-of-line part: then it need not be called.
    #[inline]
    fn fixed(&self) -> Option<Self::Resolver> {
        None
    }

    /// Writes the fixed part.
    fn place(&self, resolver: Self::Resolver, out: Place<<Self::Record as Archive>::Archived>);

    /// Hands the view of the record to `function`, without writing it if it can be had otherwise.
    fn with_view<R>(&self, function: impl FnOnce(<Self::Record as Record>::View<'_>) -> R) -> R;
}

/// Where the out-of-line parts of records are written.
pub type Encoder<'a> = Strategy<Serializer<OutOfLine<'a>, ArenaHandle<'a>, ()>, Unfit>;

/// The part of a batch that holds what is out of line, filled from the front.
#[derive(Debug)]
pub struct OutOfLine<'a> {
    pub(crate) bytes: &'a mut [u8],
    pub(crate) filled: usize,
}

impl Positional for OutOfLine<'_> {
    fn pos(&self) -> usize {
        self.filled
    }
}

impl Writer<Unfit> for OutOfLine<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> Result<(), Unfit> {
        let end = self.filled + bytes.len();
        self.bytes
            .get_mut(self.filled..end)
            .ok_or(Unfit::Full)?
            .copy_from_slice(bytes);
        self.filled = end;
        Ok(())
    }
}

/// Why a value was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unfit {
    /// The batch is full; another one may have room.
    #[error("the batch is full")]
    Full,
    /// The value cannot be archived, for instance because it is too long for 32-bit offsets.
    #[error("the value cannot be archived")]
    Unarchivable,
}

impl rancor::Trace for Unfit {
    fn trace<R>(self, _trace: R) -> Self {
        self
    }
}

impl rancor::Source for Unfit {
    fn new<E: std::error::Error + Send + Sync + 'static>(_source: E) -> Self {
        Self::Unarchivable
    }
}
