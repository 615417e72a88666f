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
//! inside its memory, which it knows by its start from when it got it until it gives it away; a [`Batch`] or
//! [`Page`] holds bytes that either passed the validator or were built by a builder of the same type in this
//! process. Nobody writes to them after that.
#![allow(
    unsafe_code,
    reason = "the one module that reads and writes record batches"
)]

use std::{cell::RefCell, fmt, marker::PhantomData, mem, ptr::NonNull, slice};

use rkyv::{
    Archive, Place,
    rancor::{self, Strategy},
    ser::{Serializer, allocator::Arena},
    vec::{ArchivedVec, VecResolver},
};
use transport::{Buffer, Loan, Rank};

use crate::{
    Error,
    bytes::{ALIGN, Bytes},
    record::{Encode, OutOfLine, Record, Unfit},
};

/// Bytes that a processor fetches at a time.
const LINE: usize = 64;

/// How far a relative pointer of 32 bits can point.
const OFFSET_MAX: usize = i32::MAX as usize;

type Root<T> = ArchivedVec<<T as Archive>::Archived>;

/// Where a batch is built.
#[derive(Debug)]
pub(crate) enum Memory {
    /// In the loan that will travel.
    Loan(Loan),
    /// In memory of our own, because no loan was to be had in the middle of a record.
    Own(Bytes),
}

impl Memory {
    pub(crate) fn own(bytes: usize) -> Self {
        Self::Own(Bytes::zeroed(bytes))
    }

    fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Loan(loan) => loan,
            Self::Own(own) => own,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Loan(loan) => loan.len(),
            Self::Own(own) => own.len(),
        }
    }

    fn truncate(&mut self, len: usize) {
        match self {
            Self::Loan(loan) => loan.set_len(len),
            Self::Own(own) => own.resize(len),
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

    /// All of it is in elements.
    pub(crate) const FLAT: Self = Self { out_of_line: 0 };

    /// One record that is large, which fixed parts never are.
    pub(crate) const LARGE: Self = Self { out_of_line: 960 };

    fn elements_at(self, bytes: usize) -> usize {
        (bytes * self.out_of_line / 1024) & !(ALIGN - 1)
    }
}

/// A batch that is being built.
pub(crate) struct Builder<T> {
    memory: Memory,
    /// Where the memory starts: to ask it again for each record would take as long as to write one.
    start: NonNull<u8>,
    /// Room in the memory.
    capacity: usize,
    /// Elements that there is room for.
    room: usize,
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

    /// Starts a batch in `memory`, of which all that relative pointers can span may be used.
    pub(crate) fn new(mut memory: Memory, shape: Shape) -> Self {
        let bytes = memory.bytes();
        let capacity = bytes.len().min(OFFSET_MAX);
        let start = NonNull::from(bytes).cast();
        let mut builder = Self {
            memory,
            start,
            capacity,
            room: 0,
            elements_at: 0,
            filled: 0,
            len: 0,
            scratch: Arena::with_capacity(0),
            record: PhantomData,
        };
        builder.clear(shape);
        builder
    }

    /// Starts anew in the same memory.
    pub(crate) fn clear(&mut self, shape: Shape) {
        self.elements_at = shape.elements_at(self.capacity);
        let root = mem::align_of::<Root<T>>() + size_of::<Root<T>>();
        let left = self.capacity.saturating_sub(self.elements_at + root);
        // Records without a size would never fill the memory, but they would overflow the length.
        self.room = left.checked_div(Self::ELEMENT).unwrap_or(left);
        (self.filled, self.len) = (0, 0);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether it has used little of its memory.
    pub(crate) fn is_light(&self) -> bool {
        self.len < self.room / 4 && self.filled <= self.elements_at / 4
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
        if self.len >= self.room {
            return Err(Unfit::Full);
        }
        let resolver = match value.fixed() {
            Some(resolver) => resolver,
            None => self.write(value)?,
        };
        let at = self.elements_at + self.len * Self::ELEMENT;
        // SAFETY: `at` is inside the memory: there is room for one more element (checked above). The memory does
        // not move while we hold it, and is initialised.
        let element = unsafe { self.start.add(at) }.cast::<T::Archived>();
        // SAFETY: `element` has room for one element, is ours alone to write, and is aligned: the memory is to 64,
        // elements start at a multiple of 64, and follow one another.
        let out = unsafe { Place::new_unchecked(at, element.as_ptr()) };
        value.place(resolver, out);
        self.len += 1;
        Ok(())
    }

    /// Writes the out-of-line part of a record; if it does not fit, what is filled is as before.
    #[inline]
    fn write<E: Encode<Record = T>>(&mut self, value: &E) -> Result<E::Resolver, Unfit> {
        // SAFETY: the out-of-line part is the start of the memory, as far as the elements, and ours alone to write. It
        // is initialised, and nothing else refers to it while the slice is there.
        let bytes = unsafe { slice::from_raw_parts_mut(self.start.as_ptr(), self.elements_at) };
        let writer = OutOfLine {
            bytes,
            filled: self.filled,
        };
        let mut serializer = Serializer::new(writer, self.scratch.acquire(), ());
        let resolver = value.write(Strategy::wrap(&mut serializer))?;
        self.filled = serializer.writer.filled;
        Ok(resolver)
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
        self.start = NonNull::from(&mut *loan).cast();
        self.memory = Memory::Loan(loan);
    }

    /// Ends the batch.
    pub(crate) fn seal(mut self) -> Memory {
        let len = self.write_root();
        self.memory.truncate(len);
        self.memory
    }

    /// What the batch is, if it is ended here and takes no more than so many bytes.
    pub(crate) fn small(&mut self, bytes_max: usize) -> Option<&[u8]> {
        if self.root_at() + size_of::<Root<T>>() > bytes_max {
            return None;
        }
        let len = self.write_root();
        Some(&self.memory.bytes()[..len])
    }

    /// Where the root belongs.
    fn root_at(&self) -> usize {
        let end = self.elements_at + self.len * Self::ELEMENT;
        end.next_multiple_of(mem::align_of::<Root<T>>())
    }

    /// Writes the root, and gives the length of the archive.
    fn write_root(&mut self) -> usize {
        let root_at = self.root_at();
        let bytes = &mut self.memory.bytes()[root_at..root_at + size_of::<Root<T>>()];
        let root = bytes.as_mut_ptr().cast::<Root<T>>();
        // SAFETY: `root` is inside the memory, initialised, and aligned by the line above.
        let out = unsafe { Place::new_unchecked(root_at, root) };
        ArchivedVec::resolve_from_len(self.len, VecResolver::from_pos(self.elements_at), out);
        root_at + size_of::<Root<T>>()
    }

    /// Gives up what was built, and its memory, if that is our own.
    pub(crate) fn into_memory(self) -> Bytes {
        match self.memory {
            Memory::Own(bytes) => bytes,
            Memory::Loan(_) => Bytes::new(),
        }
    }

    /// Ends a batch that is built in memory of our own.
    pub(crate) fn into_page(self) -> Page<T> {
        let Memory::Own(bytes) = self.seal() else {
            unreachable!("a page is built in memory of our own")
        };
        Page::trusted(bytes)
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

    pub(crate) fn elements(&self) -> &[T::Archived] {
        // SAFETY: by the invariant of this module, the bytes are a valid archive of `Vec<T>`.
        unsafe { rkyv::access_unchecked::<Root<T>>(&self.buffer) }.as_slice()
    }

    pub(crate) fn len(&self) -> usize {
        self.elements().len()
    }

    /// Bytes that it takes.
    pub(crate) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The view of one record.
    #[inline]
    pub(crate) fn view(&self, index: usize) -> T::View<'_> {
        T::view(&self.elements()[index])
    }

    /// A copy in memory of our own, so that the batch's goes back to its sender.
    pub(crate) fn keep(&self) -> Page<T> {
        let bytes = Bytes::copy_of(&self.buffer);
        Page::trusted(bytes)
    }

    /// The views of the records from the one at `start` on.
    pub(crate) fn views(&self, start: usize) -> impl Iterator<Item = T::View<'_>> {
        self.elements()[start..].iter().map(T::view)
    }
}

/// Records in memory of our own: what an operator keeps, and what comes back from disk.
///
/// Its elements are found once, so that reading one of them touches no other part of the page.
pub(crate) struct Page<T> {
    bytes: Bytes,
    /// Where the elements start.
    elements_at: usize,
    len: usize,
    record: PhantomData<fn() -> T>,
}

impl<T: Record> Page<T> {
    /// Opens a page that comes back from where this process cannot vouch for it: checks it once.
    pub(crate) fn checked(bytes: Bytes) -> Result<Self, rancor::Error> {
        rkyv::access::<Root<T>, rancor::Error>(&bytes)?;
        Ok(Self::trusted(bytes))
    }

    /// Opens what passed the validator or was just built.
    fn trusted(bytes: Bytes) -> Self {
        // SAFETY: all callers have a valid archive of `Vec<T>`.
        let elements = unsafe { rkyv::access_unchecked::<Root<T>>(&bytes) }.as_slice();
        let len = elements.len();
        let elements_at = match len {
            0 => 0,
            _ => elements.as_ptr().addr() - bytes.as_ptr().addr(),
        };
        Self {
            bytes,
            elements_at,
            len,
            record: PhantomData,
        }
    }

    #[inline]
    pub(crate) fn elements(&self) -> &[T::Archived] {
        let first = self.bytes.as_ptr().wrapping_add(self.elements_at);
        // SAFETY: `trusted` found `len` valid elements at `elements_at` of these bytes (if there are none, any
        // aligned pointer will do, and the bytes are aligned), and nobody has written to them since.
        unsafe { slice::from_raw_parts(first.cast::<T::Archived>(), self.len) }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The view of one record.
    #[inline]
    pub(crate) fn view(&self, index: usize) -> T::View<'_> {
        T::view(&self.elements()[index])
    }

    /// The views of the records from the one at `start` on.
    pub(crate) fn views(&self, start: usize) -> impl Iterator<Item = T::View<'_>> {
        self.elements()[start..].iter().map(T::view)
    }

    /// Has the processor fetch the fixed part of a record that is soon to be read.
    #[inline]
    pub(crate) fn prefetch(&self, index: usize) {
        let element = self.elements_at + index * size_of::<T::Archived>();
        let first = self.bytes.as_ptr().wrapping_add(element);
        transport::prefetch_read(first);
        if size_of::<T::Archived>() > LINE {
            transport::prefetch_read(first.wrapping_add(LINE));
        }
    }

    /// The archive.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes that it takes, whether or not they are used.
    pub(crate) fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// Gives its memory up for the next page.
    pub(crate) fn into_memory(self) -> Bytes {
        let mut bytes = self.bytes;
        bytes.resize(bytes.capacity());
        bytes
    }
}

impl<T> fmt::Debug for Page<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Page")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// Bytes that a record of its own is first tried in, and the most for one.
const RECORD_BYTES: usize = 256;
pub(crate) const RECORD_BYTES_MAX: usize = 1 << 30;

/// One record in a page of its own.
pub(crate) fn page_of<E: Encode>(value: &E) -> Result<Page<E::Record>, Unfit> {
    let mut bytes = RECORD_BYTES;
    let mut shape = Shape::UNKNOWN;
    loop {
        let mut builder = Builder::new(Memory::own(bytes), shape);
        match builder.push(value) {
            Ok(()) => return Ok(builder.into_page()),
            Err(Unfit::Full) if bytes < RECORD_BYTES_MAX => bytes *= 2,
            Err(unfit) => return Err(unfit),
        }
        shape = Shape::LARGE;
    }
}

thread_local! {
    /// Memory for values that have to be encoded to be seen, kept for the next one.
    static SPARE: RefCell<Vec<Bytes>> = const { RefCell::new(Vec::new()) };
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
    match try_with_encoded(value, function) {
        Ok(result) => result,
        Err(unfit) => panic!("a value cannot be archived: {unfit}"),
    }
}

/// The same for values that may be too large for that.
///
/// # Errors
///
/// [`Unfit`] if the value cannot be archived at all.
pub(crate) fn try_with_encoded<E: Encode, R>(
    value: &E,
    function: impl FnOnce(<E::Record as Record>::View<'_>) -> R,
) -> Result<R, Unfit> {
    let mut spare = SPARE.with_borrow_mut(Vec::pop).unwrap_or_default();
    if spare.is_empty() {
        spare.resize(ENCODED_BYTES);
    }
    let memory = loop {
        let mut builder = Builder::<E::Record>::new(Memory::Own(spare), Shape::UNKNOWN);
        match builder.push(value) {
            Ok(()) => break builder.seal(),
            Err(unfit) => {
                let bytes = (builder.capacity() * 2).min(OFFSET_MAX);
                if unfit != Unfit::Full || bytes <= builder.capacity() {
                    return Err(unfit);
                }
                spare = Bytes::zeroed(bytes);
            }
        }
    };
    let Memory::Own(mut bytes) = memory else {
        unreachable!("it was built in our own memory")
    };
    // SAFETY: a builder of the same type has just made these bytes.
    let root = unsafe { rkyv::access_unchecked::<Root<E::Record>>(&bytes) };
    let result = function(E::Record::view(&root.as_slice()[0]));
    if bytes.capacity() <= SPARE_BYTES_MAX {
        let capacity = bytes.capacity();
        bytes.resize(capacity);
        SPARE.with_borrow_mut(|spare| spare.push(bytes));
    }
    Ok(result)
}

/// The most that is kept for the next value: what was needed for a larger one is given back.
const SPARE_BYTES_MAX: usize = 4 << 20;

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::{prelude::*, sample::Index, strategy::Strategy};
    use transport::{Arena, Ledger};

    use super::*;

    fn arena() -> Arena {
        Arena::new(&Ledger::new(1 << 30), 32 << 20).unwrap()
    }

    /// A sealed batch as a peer receives it.
    fn travelled(arena: &Arena, memory: Memory) -> Buffer {
        let Memory::Own(bytes) = memory else {
            unreachable!("the tests build in memory of their own")
        };
        Buffer::inline(0, &bytes).unwrap_or_else(|| {
            let mut loan = arena.loan(bytes.len()).unwrap().expect("it has room");
            loan.copy_from_slice(&bytes);
            loan.freeze()
        })
    }

    /// Writes values into as many batches as it takes, as an outbox does.
    fn batches<E: Encode>(
        values: impl IntoIterator<Item = E>,
        bytes: usize,
        shape: Shape,
    ) -> Vec<Memory> {
        let mut sealed = Vec::new();
        let mut builder = Builder::<E::Record>::new(Memory::own(bytes), shape);
        for value in values {
            while let Err(unfit) = builder.push(&value) {
                assert_eq!(unfit, Unfit::Full);
                let (bytes, shape) = if builder.is_empty() {
                    (2 * builder.capacity().max(64), Shape::LARGE)
                } else {
                    (bytes, builder.shape())
                };
                let full = mem::replace(&mut builder, Builder::new(Memory::own(bytes), shape));
                if !full.is_empty() {
                    sealed.push(full.seal());
                }
            }
        }
        if !builder.is_empty() {
            sealed.push(builder.seal());
        }
        sealed
    }

    /// Opens batches that have travelled.
    fn opened<T: Record>(arena: &Arena, sealed: Vec<Memory>) -> Vec<Batch<T>> {
        let open = |memory| Batch::checked(0, travelled(arena, memory)).unwrap();
        sealed.into_iter().map(open).collect()
    }

    fn owned<T: Record>(batches: &[Batch<T>]) -> Vec<T> {
        let records = batches.iter().flat_map(|batch| batch.views(0));
        records.map(T::own).collect()
    }

    /// Records go out as themselves and again as views, and come out with the same keys.
    fn go_through_batches<T: Record + Clone, K: PartialEq + Debug>(
        records: &[T],
        bytes: usize,
        out_of_line: usize,
        key: impl Fn(&T) -> K,
    ) {
        let (arena, shape) = (arena(), Shape { out_of_line });
        let keys = |records: &[T]| records.iter().map(&key).collect::<Vec<_>>();
        let first = opened::<T>(&arena, batches(records.iter().cloned(), bytes, shape));
        assert_eq!(keys(&owned(&first)), keys(records));
        let lens = first.iter().map(Batch::len).sum::<usize>();
        assert_eq!(lens, records.len());

        let views = first.iter().flat_map(|batch| batch.views(0));
        let second = opened::<T>(&arena, batches(views, bytes, shape));
        assert_eq!(keys(&owned(&second)), keys(records));

        let seen: Vec<T> = records
            .iter()
            .map(|record| record.with_view(T::own))
            .collect();
        assert_eq!(keys(&seen), keys(records));
    }

    /// What may happen to bytes.
    #[derive(Debug, Clone)]
    enum Damage {
        Flip(Index, u32),
        Byte(Index, u8),
        Word(Index, u32),
        Truncate(Index),
    }

    fn damage() -> impl Strategy<Value = Damage> {
        let word = prop_oneof![
            0u32..80,
            any::<u32>(),
            (1u32..80).prop_map(u32::wrapping_neg)
        ];
        prop_oneof![
            8 => (any::<Index>(), 0u32..8).prop_map(|(at, bit)| Damage::Flip(at, bit)),
            4 => (any::<Index>(), any::<u8>()).prop_map(|(at, byte)| Damage::Byte(at, byte)),
            8 => (any::<Index>(), word).prop_map(|(at, word)| Damage::Word(at, word)),
            1 => any::<Index>().prop_map(Damage::Truncate),
        ]
    }

    fn inflict(damage: &Damage, bytes: &mut Bytes) {
        let len = bytes.len();
        if len == 0 {
            return;
        }
        match damage {
            Damage::Flip(at, bit) => bytes[at.index(len)] ^= 1 << bit,
            Damage::Byte(at, byte) => bytes[at.index(len)] = *byte,
            Damage::Word(at, word) => {
                let at = at.index(len) & !3;
                let end = len.min(at + 4);
                bytes[at..end].copy_from_slice(&word.to_le_bytes()[..end - at]);
            }
            Damage::Truncate(at) => bytes.resize(at.index(len)),
        }
    }

    /// Damaged batches are refused, or every byte of their records can be visited.
    fn survive_damage<T: Record + Clone + Debug>(records: &[T], damages: &[Damage]) {
        let arena = arena();
        for memory in batches(records.iter().cloned(), 1 << 10, Shape::UNKNOWN) {
            let Memory::Own(mut bytes) = memory else {
                unreachable!("the tests build in memory of their own")
            };
            for damage in damages {
                inflict(damage, &mut bytes);
                let copy = Memory::Own(Bytes::copy_of(&bytes));
                if let Ok(batch) = Batch::<T>::checked(0, travelled(&arena, copy)) {
                    let records = owned(&[batch]);
                    assert!(format!("{records:?}").len() > 1);
                }
            }
        }
    }

    macro_rules! records {
        ($($kind:ident: $record:expr, by $key:expr;)*) => {$(
            mod $kind {
                use super::*;

                proptest! {
                    #![proptest_config(ProptestConfig::with_cases(128))]

                    #[test]
                    fn come_out_of_a_batch_as_they_went_in(
                        records in prop::collection::vec($record, 0..60),
                        bytes in 0usize..5_000,
                        out_of_line in 0usize..=1024,
                    ) {
                        go_through_batches(&records, bytes, out_of_line, $key);
                    }

                    #[test]
                    fn that_were_damaged_are_refused_or_can_be_read(
                        records in prop::collection::vec($record, 1..8),
                        damages in prop::collection::vec(damage(), 1..32),
                    ) {
                        survive_damage(&records, &damages);
                    }
                }
            }
        )*};
    }

    records! {
        bytes: any::<u8>(), by u8::clone;
        signed_bytes: any::<i8>(), by i8::clone;
        integers_of_two_bytes: any::<(u16, i16)>(), by <(u16, i16)>::clone;
        integers_of_four_bytes: any::<(u32, i32)>(), by <(u32, i32)>::clone;
        integers_of_eight_bytes: any::<(u64, i64)>(), by <(u64, i64)>::clone;
        integers_of_sixteen_bytes: any::<(u128, i128)>(), by <(u128, i128)>::clone;
        floats: any::<u32>().prop_map(f32::from_bits), by |float: &f32| float.to_bits();
        doubles: any::<u64>().prop_map(f64::from_bits), by |float: &f64| float.to_bits();
        truths: any::<bool>(), by bool::clone;
        characters: any::<char>(), by char::clone;
        strings: text(), by String::clone;
        byte_strings: prop::collection::vec(any::<u8>(), 0..90), by Vec::clone;
        lists_of_strings: prop::collection::vec(text(), 0..5), by Vec::clone;
        lists_of_lists: prop::collection::vec(prop::collection::vec(any::<u64>(), 0..5), 0..5), by Vec::clone;
        perhaps_strings: prop::option::of(text()), by Option::clone;
        perhaps_numbers: any::<Option<u64>>(), by Option::clone;
        singles: text().prop_map(|text| (text,)), by <(String,)>::clone;
        pairs: (text(), any::<u64>()), by <(String, u64)>::clone;
        triples: (any::<u8>(), text(), any::<u128>()), by <(u8, String, u128)>::clone;
        quadruples: (any::<u8>(), any::<u16>(), text(), any::<bool>()), by <(u8, u16, String, bool)>::clone;
        quintuples: (text(), any::<char>(), text(), any::<i64>(), any::<u8>()),
            by <(String, char, String, i64, u8)>::clone;
        sextuples: (any::<u8>(), any::<Option<u64>>(), text(), any::<u8>(), any::<Vec<u8>>(), any::<i16>()),
            by <(u8, Option<u64>, String, u8, Vec<u8>, i16)>::clone;
        septuples: (any::<u8>(), text(), any::<u32>(), text(), any::<bool>(), any::<u64>(), any::<char>()),
            by <(u8, String, u32, String, bool, u64, char)>::clone;
        octuples: (any::<u8>(), any::<u64>(), any::<u8>(), text(), any::<u16>(), any::<Vec<u16>>(), text(), any::<u128>()),
            by <(u8, u64, u8, String, u16, Vec<u16>, String, u128)>::clone;
        nested_tuples: ((text(), (any::<u8>(), text())), (prop::option::of((any::<u32>(), text())), any::<bool>())),
            by <((String, (u8, String)), (Option<(u32, String)>, bool))>::clone;
        structs: sample(), by Sample::clone;
        structs_in_lists: (any::<u8>(), prop::collection::vec(sample(), 0..4)), by <(u8, Vec<Sample>)>::clone;
    }

    crate::record! {
        #[derive(Debug, Clone, PartialEq)]
        struct Sample {
            name: String,
            values: Vec<u32>,
            labels: Vec<(u8, String)>,
            mark: Option<String>,
            valid: bool,
        }
    }

    fn sample() -> impl Strategy<Value = Sample> {
        let labels = prop::collection::vec((any::<u8>(), text()), 0..3);
        let mark = prop::option::of(text());
        (text(), any::<Vec<u32>>(), labels, mark, any::<bool>()).prop_map(
            |(name, values, labels, mark, valid)| Sample {
                name,
                values,
                labels,
                mark,
                valid,
            },
        )
    }

    /// Texts that are archived in place, those that are not, and those at the border.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            Just(String::new()),
            "[a-z]{1,9}",
            "\\PC{0,12}",
            "[a-zé𝄞]{100,400}",
        ]
    }

    proptest! {
        #[test]
        fn a_record_that_does_not_fit_leaves_the_batch_as_before(
            records in prop::collection::vec((prop::collection::vec(text(), 0..4), any::<u8>()), 1..40),
            bytes in 0usize..5_000,
            out_of_line in 0usize..=1024,
        ) {
            let mut builder = Builder::new(Memory::own(bytes), Shape { out_of_line });
            let fitting: Vec<_> =
                records.into_iter().filter(|record| builder.push(record).is_ok()).collect();
            if fitting.is_empty() {
                prop_assert!(builder.is_empty());
            } else {
                let batches = opened::<(Vec<String>, u8)>(&arena(), vec![builder.seal()]);
                prop_assert_eq!(owned(&batches), fitting);
            }
        }

        #[test]
        fn a_batch_that_moves_to_a_loan_keeps_its_records_and_takes_more(
            before in prop::collection::vec((text(), any::<u64>()), 0..10),
            after in prop::collection::vec((text(), any::<u64>()), 1..10),
            larger in 0usize..5_000,
        ) {
            let (arena, bytes) = (arena(), 64 << 10);
            let mut builder = Builder::new(Memory::own(bytes), Shape::UNKNOWN);
            for record in &before {
                builder.push(record).unwrap();
            }
            let mut loan = arena.loan(bytes + larger).unwrap().unwrap();
            loan.fill(0xa5);
            builder.move_to(loan);
            prop_assert!(!builder.is_own());
            for record in &after {
                builder.push(record).unwrap();
            }
            let Memory::Loan(loan) = builder.seal() else { panic!("it is in a loan") };
            let batch = Batch::<(String, u64)>::checked(0, loan.freeze()).unwrap();
            prop_assert_eq!(owned(&[batch]), [before, after].concat());
        }

        #[test]
        fn a_small_batch_is_seen_where_it_is_and_its_memory_takes_the_next(
            batches in prop::collection::vec(prop::collection::vec(any::<(u8, u64)>(), 1..12), 1..5),
            bytes in 512usize..5_000,
        ) {
            let shape = Shape { out_of_line: 0 };
            let mut builder = Builder::new(Memory::own(bytes), shape);
            for records in &batches {
                for record in records {
                    builder.push(record).unwrap();
                }
                match builder.small(Buffer::INLINE_BYTES) {
                    Some(small) => {
                        let small = Buffer::inline(0, small).unwrap();
                        let batch = Batch::<(u8, u64)>::checked(0, small).unwrap();
                        prop_assert_eq!(&owned(&[batch]), records);
                    }
                    None => prop_assert!(records.len() > 6, "an element takes 16 bytes, and the root 8"),
                }
                builder.clear(shape);
                prop_assert!(builder.is_empty());
            }
        }

        #[test]
        fn a_value_of_any_size_can_be_seen_encoded_also_within_another(
            outer in prop::collection::vec(prop::collection::vec(text(), 0..20), 0..20),
            inner in sample(),
        ) {
            let seen = with_encoded(&outer, |view| {
                let inner_seen = with_encoded(&inner, Sample::own);
                assert_eq!(inner_seen, inner);
                Vec::<Vec<String>>::own(view)
            });
            prop_assert_eq!(seen, outer);
        }
    }

    #[test]
    fn records_without_contents_fill_a_batch_too() {
        let mut builder = Builder::new(Memory::own(1 << 10), Shape::UNKNOWN);
        let len = (0..1 << 20)
            .take_while(|_| builder.push(&()).is_ok())
            .count();
        assert!((1..1 << 20).contains(&len));
        let batches = opened::<()>(&arena(), vec![builder.seal()]);
        assert_eq!(owned(&batches).len(), len);
    }
}
