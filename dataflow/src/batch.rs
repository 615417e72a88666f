//! Many records in one piece of memory: what travels.
//!
//! A batch of `T` is one rkyv archive of a `Vec<T>`, built in place in the loan that travels:
//!
//! ```text
//! | out-of-line bytes ->  ...  | elements ->  ...  | root |
//! ```
//!
//! Both parts grow upwards, each in its own share of the memory. The out-of-line bytes come first and
//! the root last, because rkyv's validator wants what is pointed at to lie before what points; so a
//! batch is checked by `rkyv::access` as it stands. How the memory is shared follows from how much the
//! records before needed.
//!
//! # Safety
//!
//! This is the one module of the crate that may use `unsafe`. Its invariant: a [`Builder`] writes only
//! inside its memory, and a [`Batch`] holds a buffer that either passed the validator or was built by a
//! builder of the same type in this process. Nobody writes to a buffer after it was frozen.
#![allow(
    unsafe_code,
    reason = "the one module that reads and writes record batches"
)]

use std::{cell::RefCell, marker::PhantomData, mem};

use rkyv::{
    Archive, Place,
    rancor::{self, Strategy},
    ser::{Serializer, allocator::Arena},
    util::AlignedVec,
    vec::{ArchivedVec, VecResolver},
};
use transport::{Buffer, Loan, Rank};

use crate::{
    Error,
    record::{Encode, OutOfLine, Record, Unfit},
};

/// Alignment of a batch's memory; what rkyv needs is at most 16.
const ALIGN: usize = 64;

type Root<T> = ArchivedVec<<T as Archive>::Archived>;

/// Where a batch is built.
#[derive(Debug)]
pub(crate) enum Memory {
    /// In the loan that will travel.
    Loan(Loan),
    /// In memory of our own, because no loan was to be had in the middle of a record.
    Own(AlignedVec<ALIGN>),
}

impl Memory {
    pub(crate) fn own(bytes: usize) -> Self {
        let mut memory = AlignedVec::with_capacity(bytes);
        memory.resize(bytes, 0);
        Self::Own(memory)
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Loan(loan) => loan,
            Self::Own(own) => own,
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Loan(loan) => loan.set_len(len),
            Self::Own(own) => own.resize(len, 0),
        }
    }
}

/// How the memory of the next batch is shared, learnt from those before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// The part of the memory for out-of-line bytes, in 1/1024.
    out_of_line: usize,
}

impl Shape {
    /// What nothing is known of.
    pub(crate) const UNKNOWN: Self = Self { out_of_line: 512 };

    /// One record that is large, which fixed parts never are.
    pub(crate) const LARGE: Self = Self { out_of_line: 960 };

    fn elements_at(self, bytes: usize) -> usize {
        (bytes * self.out_of_line / 1024) & !(ALIGN - 1)
    }
}

/// A batch that is being built.
pub(crate) struct Builder<T> {
    memory: Memory,
    /// Room in the memory.
    capacity: usize,
    /// Where the elements start.
    elements_at: usize,
    /// Out-of-line bytes so far.
    filled: usize,
    /// Elements so far.
    len: usize,
    scratch: Arena,
    record: PhantomData<fn(T)>,
}

impl<T: Record> Builder<T> {
    const ELEMENT: usize = size_of::<T::Archived>();

    /// Starts a batch in `memory`, all of which may be used.
    pub(crate) fn new(mut memory: Memory, shape: Shape) -> Self {
        let capacity = memory.bytes().len();
        Self {
            memory,
            capacity,
            elements_at: shape.elements_at(capacity),
            filled: 0,
            len: 0,
            scratch: Arena::with_capacity(0),
            record: PhantomData,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn is_own(&self) -> bool {
        matches!(self.memory, Memory::Own(_))
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Writes a record; if it does not fit, the batch is as before.
    #[inline]
    pub(crate) fn push<E: Encode<Record = T>>(&mut self, value: &E) -> Result<(), Unfit> {
        let at = self.elements_at + self.len * Self::ELEMENT;
        if at + Self::ELEMENT + mem::align_of::<Root<T>>() + size_of::<Root<T>>() > self.capacity {
            return Err(Unfit::Full);
        }
        let (out_of_line, elements) = self.memory.bytes().split_at_mut(self.elements_at);
        let writer = OutOfLine {
            bytes: out_of_line,
            filled: self.filled,
        };
        let mut serializer = Serializer::new(writer, self.scratch.acquire(), ());
        let resolver = value.write(Strategy::wrap(&mut serializer))?;
        let filled = serializer.writer.filled;
        let element = elements[at - self.elements_at..]
            .as_mut_ptr()
            .cast::<T::Archived>();
        // SAFETY: `element` has room for one element (checked above), its bytes are initialised, and it
        // is aligned: the memory is to 64, elements start at a multiple of 64, and follow one another.
        let out = unsafe { Place::new_unchecked(at, element) };
        value.place(resolver, out);
        self.filled = filled;
        self.len += 1;
        Ok(())
    }

    /// How the memory of the next batch should be shared.
    pub(crate) fn shape(&self) -> Shape {
        let elements = (self.len * Self::ELEMENT).max(1);
        let out_of_line = if self.filled == 0 {
            0
        } else {
            (self.filled * 1024 / (self.filled + elements)).clamp(32, 992)
        };
        Shape { out_of_line }
    }

    /// Moves the batch to a loan that is at least as large.
    pub(crate) fn move_to(&mut self, mut loan: Loan) {
        let from = self.memory.bytes();
        loan[..self.filled].copy_from_slice(&from[..self.filled]);
        let elements = self.elements_at..self.elements_at + self.len * Self::ELEMENT;
        loan[elements.clone()].copy_from_slice(&from[elements]);
        self.memory = Memory::Loan(loan);
    }

    /// Ends the batch.
    pub(crate) fn seal(mut self) -> Memory {
        let end = self.elements_at + self.len * Self::ELEMENT;
        let root_at = end.next_multiple_of(mem::align_of::<Root<T>>());
        let bytes = &mut self.memory.bytes()[root_at..root_at + size_of::<Root<T>>()];
        let root = bytes.as_mut_ptr().cast::<Root<T>>();
        // SAFETY: `root` is inside the memory, initialised, and aligned by the line above.
        let out = unsafe { Place::new_unchecked(root_at, root) };
        ArchivedVec::resolve_from_len(self.len, VecResolver::from_pos(self.elements_at), out);
        self.memory.truncate(root_at + size_of::<Root<T>>());
        self.memory
    }
}

/// Records to be read where they are.
#[derive(Debug, Clone)]
pub(crate) struct Batch<T> {
    buffer: Buffer,
    record: PhantomData<fn() -> T>,
}

impl<T: Record> Batch<T> {
    /// Opens a batch that another process sent: checks it once, so that every later read is free.
    pub(crate) fn checked(peer: Rank, buffer: Buffer) -> Result<Self, Error> {
        rkyv::access::<Root<T>, rancor::Error>(&buffer)
            .map_err(|source| Error::Malformed { peer, source })?;
        Ok(Self {
            buffer,
            record: PhantomData,
        })
    }

    /// Opens a batch that a [`Builder`] of the same type made in this process.
    pub(crate) fn trusted(buffer: Buffer) -> Self {
        Self {
            buffer,
            record: PhantomData,
        }
    }

    fn elements(&self) -> &[T::Archived] {
        // SAFETY: by the invariant of this module, the bytes are a valid archive of `Vec<T>`.
        unsafe { rkyv::access_unchecked::<Root<T>>(&self.buffer) }.as_slice()
    }

    pub(crate) fn len(&self) -> usize {
        self.elements().len()
    }

    /// The views of the records from the one at `start` on.
    pub(crate) fn views(&self, start: usize) -> impl Iterator<Item = T::View<'_>> {
        self.elements()[start..].iter().map(T::view)
    }
}

thread_local! {
    /// Memory for values that have to be encoded to be seen, kept for the next one.
    static SPARE: RefCell<Vec<AlignedVec<ALIGN>>> = const { RefCell::new(Vec::new()) };
}

/// Memory that one encoded value is tried in first; twice as much each time it does not fit.
const ENCODED_BYTES: usize = 1 << 10;

/// Hands `function` the view of a value that has to be encoded for that.
///
/// # Panics
///
/// If the value cannot be archived at all, which takes one of over 2 GiB.
#[doc(hidden)]
pub fn with_encoded<E: Encode, R>(
    value: &E,
    function: impl FnOnce(<E::Record as Record>::View<'_>) -> R,
) -> R {
    let mut spare = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if spare.is_empty() {
        spare.resize(ENCODED_BYTES, 0);
    }
    let memory = loop {
        let mut builder = Builder::<E::Record>::new(Memory::Own(spare), Shape::UNKNOWN);
        match builder.push(value) {
            Ok(()) => break builder.seal(),
            Err(unfit) => {
                let bytes = builder.capacity() * 2;
                assert!(
                    unfit == Unfit::Full && bytes < 1 << 32,
                    "a value cannot be archived"
                );
                spare = AlignedVec::with_capacity(bytes);
                spare.resize(bytes, 0);
            }
        }
    };
    let Memory::Own(mut bytes) = memory else {
        unreachable!("it was built in our own memory")
    };
    // SAFETY: a builder of the same type has just made these bytes.
    let root = unsafe { rkyv::access_unchecked::<Root<E::Record>>(&bytes) };
    let result = function(E::Record::view(&root.as_slice()[0]));
    let capacity = bytes.capacity();
    bytes.resize(capacity, 0);
    SPARE.with_borrow_mut(|spare| spare.push(bytes));
    result
}
