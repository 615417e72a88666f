//! Bytes to write, and bytes to read.
//!
//! What a buffer holds on to, a block of an arena or a small payload by value, is in a record that stays where
//! it is while the buffer is moved about: a handle of one word then goes through the layers in a register,
//! where the payload itself would be stored and loaded again at each of them. The records are kept and
//! used again, because a call of the allocator would cost as much as the rest.

use std::{
    cell::Cell,
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    rc::Rc,
    slice,
};

use super::{Mapping, Region, blocks::Lent, region::prefetch_read};

/// Payloads up to this size travel beside the descriptor and need no block.
pub(crate) const INLINE_BYTES: usize = 104;
/// Records a thread keeps for later.
const SPARE_MAX: u32 = 1024;

/// One reference to a block of a mapped arena.
pub(crate) struct Block {
    mapping: Rc<Mapping>,
    start: NonNull<u8>,
    capacity: usize,
    index: u32,
    /// Where the block will likely be that is lent next for such a message; see [`Lent`].
    next: u64,
}

impl Block {
    pub(crate) fn region(&self) -> &Region {
        self.mapping.region()
    }

    pub(super) fn mapping(&self) -> &Rc<Mapping> {
        &self.mapping
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn offset(&self) -> u64 {
        self.region().offset_of(self.start)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if self.mapping.give_up(self.index, self.capacity) {
            self.mapping.settle();
        }
    }
}

/// What a buffer holds on to. All that a message in a block needs is in the first line.
#[repr(C, align(64))]
struct Record {
    /// The block that the bytes are in; they are in `inline` if there is none, as in every record that is kept
    /// for later.
    block: Option<Block>,
    len: usize,
    tag: u64,
    /// How many handles there are.
    handles: Cell<u32>,
    /// The next of the records that are kept for later.
    next: Option<NonNull<Record>>,
    inline: Inline,
}

/// A small payload, by value.
#[derive(Clone, Copy)]
#[repr(align(16))]
struct Inline([u8; INLINE_BYTES]);

/// The records that a thread keeps for later.
struct Spare {
    first: Cell<Option<NonNull<Record>>>,
    /// How many more it may keep: none before it has [`End`] to free them, and none after that is gone.
    room: Cell<u32>,
}

/// Frees the records at the end of a thread. It is a value of its own because one that has to be dropped is asked
/// at each access whether it was.
struct End;

thread_local! {
    static SPARE: Spare = const { Spare { first: Cell::new(None), room: Cell::new(0) } };
    static END: End = {
        SPARE.with(|spare| spare.room.set(SPARE_MAX));
        End
    };
}

impl Drop for End {
    fn drop(&mut self) {
        SPARE.with(|spare| {
            spare.room.set(0);
            while let Some(record) = spare.first.take() {
                // SAFETY: a record in this list came from a box, and nobody else has it.
                let record = unsafe { Box::from_raw(record.as_ptr()) };
                spare.first.set(record.next);
            }
        });
    }
}

/// A handle on a record. Cloning it shares the record; the last handle lets go of the block. It stays on the
/// thread that made it.
struct Held(NonNull<Record>);

impl Held {
    /// A record that nobody else has, without a block, its payload arbitrary and `len` bytes long.
    #[inline]
    fn new(tag: u64, len: usize) -> Self {
        SPARE.with(|spare| {
            let Some(mut first) = spare.first.get() else {
                return Self::allocated(tag, len);
            };
            // SAFETY: a record in this list is valid, and nobody else has it.
            let record = unsafe { first.as_mut() };
            spare.first.set(record.next);
            spare.room.set(spare.room.get() + 1);
            record.handles.set(1);
            record.tag = tag;
            record.len = len;
            Self(first)
        })
    }

    #[cold]
    #[inline(never)]
    fn allocated(tag: u64, len: usize) -> Self {
        // A thread that ends keeps nothing any more.
        let _ = END.try_with(|_| ());
        let record = Box::new(Record {
            block: None,
            len,
            tag,
            handles: Cell::new(1),
            next: None,
            inline: Inline([0; INLINE_BYTES]),
        });
        Self(NonNull::from(Box::leak(record)))
    }

    #[inline]
    fn record(&self) -> &Record {
        // SAFETY: a record lives as long as there is a handle on it, and is written only by who has the only one.
        unsafe { self.0.as_ref() }
    }

    /// The record, if nobody else has it.
    #[inline]
    fn alone(&mut self) -> Option<&mut Record> {
        if self.record().handles.get() != 1 {
            return None;
        }
        // SAFETY: ours is the only handle, and it is borrowed mutably.
        Some(unsafe { self.0.as_mut() })
    }

    /// Puts a record that nobody has any more where the next one is taken from.
    #[inline]
    fn keep(mut record: NonNull<Record>) {
        SPARE.with(|spare| {
            let Some(room) = spare.room.get().checked_sub(1) else {
                return Self::free(record);
            };
            spare.room.set(room);
            // SAFETY: the record is valid, and nobody else has it.
            unsafe { record.as_mut() }.next = spare.first.replace(Some(record));
        });
    }

    #[cold]
    #[inline(never)]
    fn free(record: NonNull<Record>) {
        // SAFETY: it came from a box, and the caller says that nobody else has it.
        drop(unsafe { Box::from_raw(record.as_ptr()) });
    }
}

impl Clone for Held {
    fn clone(&self) -> Self {
        let handles = &self.record().handles;
        // So many clones need more memory than there is, unless they are forgotten.
        assert!(handles.get() < u32::MAX, "a message has too many clones");
        handles.set(handles.get() + 1);
        Self(self.0)
    }
}

impl Drop for Held {
    #[inline(always)]
    fn drop(&mut self) {
        let Some(record) = self.alone() else {
            let handles = &self.record().handles;
            handles.set(handles.get() - 1);
            return;
        };
        let Some((mapping, index, capacity)) = record.let_go() else {
            return Self::keep(self.0);
        };
        let enough = mapping.give_up(index, capacity);
        Self::keep(self.0);
        if enough {
            settle(mapping);
        }
    }
}

/// Has the mapping settle what was given up.
#[cold]
#[inline(never)]
fn settle(mapping: Rc<Mapping>) {
    mapping.settle();
}

impl Record {
    /// Takes the block out without giving up the reference to it: its mapping, its number and its size.
    #[inline(always)]
    fn let_go(&mut self) -> Option<(Rc<Mapping>, u32, usize)> {
        let block = self.block.as_ref()?;
        let (index, capacity) = (block.index, block.capacity);
        let mapping = &raw const block.mapping;
        // SAFETY: the field is overwritten at once, so there is one `Rc` still.
        let mapping = unsafe { mapping.read() };
        let place = &raw mut self.block;
        // SAFETY: it is our field; what was in it is not to be dropped, but for the `Rc`, which was taken out.
        unsafe { place.write(None) };
        Some((mapping, index, capacity))
    }
}

/// Bytes of an arena that are ours to write, until we send them. Dropping it returns them.
///
/// It dereferences to a slice of the length that was asked for; the contents are arbitrary at
/// first. It belongs to the thread whose arena lent it.
pub struct Loan(Buffer);

impl Loan {
    #[inline]
    pub(super) fn new(buffer: Buffer) -> Self {
        Self(buffer)
    }

    pub(super) fn block(&self) -> Option<&Block> {
        self.0.block()
    }

    #[inline]
    pub(super) fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Bytes there is room for.
    pub fn capacity(&self) -> usize {
        self.0.block().map_or(0, |block| block.capacity)
    }

    /// Sets how many bytes will be sent.
    ///
    /// # Panics
    ///
    /// If `len` is more than the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "a loan of {} bytes cannot hold {len}",
            self.capacity()
        );
        if let Some(record) = self.0.0.alone() {
            record.len = len;
        }
    }

    /// Sets the number that travels with the message; zero unless set. What it means is up to the
    /// two ends, as in MPI.
    #[inline]
    pub fn set_tag(&mut self, tag: u64) {
        if let Some(record) = self.0.0.alone() {
            record.tag = tag;
        }
    }

    /// Ends the writing: the bytes can now be read and shared.
    #[inline]
    pub fn freeze(self) -> Buffer {
        self.0
    }
}

impl Deref for Loan {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

impl DerefMut for Loan {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        let Some(block) = self.0.block() else {
            return &mut [];
        };
        // SAFETY: the block is bounds-checked, mapped while we hold it, always initialised (fresh
        // pages are zero), as long as `len` says at least, and ours alone until it is frozen; and we
        // are borrowed mutably.
        unsafe { slice::from_raw_parts_mut(block.start.as_ptr(), self.0.len()) }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan")
            .field("len", &self.len())
            .field("tag", &self.0.tag())
            .finish_non_exhaustive()
    }
}

/// The bytes of a message, to be read in place. Cloning shares them; dropping the last clone, here
/// or at a peer, returns their memory to the arena they are in: at once if its owner waits for memory, and
/// otherwise with others, at the latest when this rank next finds nothing to receive.
///
/// They start at a multiple of 64, or of 16 when they fit beside the descriptor (104 bytes). A peer of
/// the same job could still write to them if it broke the rules: what comes from a peer that is
/// not trusted has to be copied before it is checked.
#[derive(Clone)]
pub struct Buffer(Held);

impl Buffer {
    /// Payloads up to this size, in bytes, can travel beside the descriptor of a message, and need no loan.
    pub const INLINE_BYTES: usize = INLINE_BYTES;

    /// A message of `len` bytes in a block, a reference to which was counted for us; `None` if the region has
    /// no such block or bytes. The processor is told to `fetch` the first line if it will be read.
    #[inline(always)]
    pub(crate) fn in_block(
        tag: u64,
        mapping: &Rc<Mapping>,
        lent: Lent,
        len: usize,
        fetch: bool,
    ) -> Option<Self> {
        let region = mapping.region();
        let start = region.data(lent.offset, lent.bytes)?;
        if fetch {
            // At once: the rest of what is done here takes as long as a good part of the line's way.
            prefetch_read(start.as_ptr());
        }
        if lent.index >= region.geometry().blocks || len as u64 > lent.bytes {
            return None;
        }
        let mut held = Held::new(tag, len);
        let place = &raw mut held.alone()?.block;
        let block = Block {
            mapping: mapping.clone(),
            start,
            capacity: lent.bytes as usize,
            index: lent.index,
            next: lent.next,
        };
        // Made in its place: a block that is moved there is loaded before its stores have settled.
        // SAFETY: we have the record alone; and a record that is new, or comes back into use, has no block that
        // would have to be dropped.
        unsafe { place.write(Some(block)) };
        Some(Self(held))
    }

    /// A message of at most 104 bytes, held by value; `None` if there are more.
    #[inline]
    pub fn inline(tag: u64, payload: &[u8]) -> Option<Self> {
        if payload.len() > INLINE_BYTES {
            return None;
        }
        let mut held = Held::new(tag, payload.len());
        if let Some(record) = held.alone() {
            record.inline.0[..payload.len()].copy_from_slice(payload);
        }
        Some(Self(held))
    }

    /// The same of words as they are in a ring, of which the first `len` bytes count; `None` if there are too many.
    #[inline(always)]
    pub(crate) fn from_words<'w>(
        tag: u64,
        words: impl Iterator<Item = &'w u64>,
        len: usize,
    ) -> Option<Self> {
        if len > INLINE_BYTES {
            return None;
        }
        let mut held = Held::new(tag, len);
        let (places, _) = held.alone()?.inline.0.as_chunks_mut::<8>();
        for (bytes, word) in places.iter_mut().zip(words) {
            *bytes = word.to_le_bytes();
        }
        Some(Self(held))
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        let record = self.0.record();
        match &record.block {
            None => &record.inline.0[..record.len.min(INLINE_BYTES)],
            // SAFETY: the block is bounds-checked, at least as long, mapped while we hold it, and
            // initialised; its writer gave it up when it froze it.
            Some(block) => unsafe { slice::from_raw_parts(block.start.as_ptr(), record.len) },
        }
    }

    /// How many there are, which takes less than to make a slice of them.
    #[inline]
    pub(crate) fn bytes(&self) -> usize {
        self.0.record().len
    }

    /// The number that its sender gave it.
    #[inline]
    pub fn tag(&self) -> u64 {
        self.0.record().tag
    }

    /// The block that the bytes are in, unless they are held by value.
    #[inline]
    pub(crate) fn block(&self) -> Option<&Block> {
        self.0.record().block.as_ref()
    }

    /// Whether a clone holds on to the same record.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        self.0.record().handles.get() != 1
    }

    /// Lets go of the message. If it is not shared its block is let go too, but the reference is not given up: it
    /// has been handed to a peer. Whether that is so.
    #[inline(always)]
    pub(crate) fn hand_over(mut self) -> bool {
        self.0.alone().map(Record::let_go).is_some()
    }

    /// Takes the block out of a buffer that has not been cloned, or whose clones are gone.
    pub(crate) fn take_block(&mut self) -> Option<Block> {
        self.0.alone()?.block.take()
    }
}

impl From<Loan> for Buffer {
    #[inline]
    fn from(loan: Loan) -> Self {
        loan.freeze()
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len())
            .field("tag", &self.tag())
            .finish_non_exhaustive()
    }
}
