//! Bytes to write, and bytes to read.

use std::{
    fmt,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    rc::Rc,
    slice,
};

use super::{Mapping, Region};

/// Payloads up to this size travel in the descriptor itself and need no block.
pub(crate) const INLINE_BYTES: usize = 48;

/// One reference to a block of a mapped arena.
pub(crate) struct Block {
    mapping: Rc<Mapping>,
    index: u32,
    offset: u64,
    start: NonNull<u8>,
    capacity: usize,
}

impl Block {
    /// Adopts a reference that was counted for us; `None` if the region has no such block or bytes.
    #[inline]
    pub(crate) fn new(mapping: Rc<Mapping>, index: u32, offset: u64, bytes: u64) -> Option<Self> {
        let region = mapping.region();
        let start = region.data(offset, bytes)?;
        if index >= region.geometry().blocks {
            return None;
        }
        Some(Self {
            mapping,
            index,
            offset,
            start,
            capacity: bytes as usize,
        })
    }

    pub(crate) fn region(&self) -> &Region {
        self.mapping.region()
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Lets go of the reference without giving it up: it has been handed to a peer.
    #[inline]
    pub(crate) fn hand_over(self) {
        let mut this = std::mem::ManuallyDrop::new(self);
        let mapping: *mut Rc<Mapping> = &raw mut this.mapping;
        // SAFETY: `this` is never used again and never dropped, so the `Rc` is dropped once.
        unsafe { mapping.drop_in_place() };
    }
}

impl Clone for Block {
    fn clone(&self) -> Self {
        self.region().counts()[self.index as usize].retain();
        Self {
            mapping: self.mapping.clone(),
            ..*self
        }
    }
}

impl Drop for Block {
    #[inline]
    fn drop(&mut self) {
        let region = self.mapping.region();
        if region.counts()[self.index as usize].release() {
            self.mapping.give_back(self.index, self.capacity);
        }
    }
}

/// Bytes of an arena that are ours to write, until we send them. Dropping it returns them.
///
/// It dereferences to a slice of the length that was asked for; the contents are arbitrary at
/// first. It belongs to the thread whose arena lent it.
pub struct Loan {
    block: Block,
    len: usize,
    tag: u64,
}

impl Loan {
    pub(super) fn new(block: Block, len: usize) -> Self {
        Self { block, len, tag: 0 }
    }

    /// Bytes there is room for.
    pub fn capacity(&self) -> usize {
        self.block.capacity
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
        self.len = len;
    }

    /// Sets the number that travels with the message; zero unless set. What it means is up to the
    /// two ends, as in MPI.
    pub fn set_tag(&mut self, tag: u64) {
        self.tag = tag;
    }

    /// Ends the writing: the bytes can now be read and shared.
    #[inline]
    pub fn freeze(self) -> Buffer {
        Buffer {
            tag: self.tag,
            body: Body::Block {
                block: self.block,
                len: self.len,
            },
        }
    }
}

impl Deref for Loan {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: the block is bounds-checked, mapped while we hold it, always initialised (fresh
        // pages are zero), and ours alone until it is frozen.
        unsafe { slice::from_raw_parts(self.block.start.as_ptr(), self.len) }
    }
}

impl DerefMut for Loan {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and we are borrowed mutably.
        unsafe { slice::from_raw_parts_mut(self.block.start.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Loan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Loan")
            .field("len", &self.len)
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}

/// The bytes of a message, to be read in place. Cloning shares them; dropping the last clone, here
/// or at a peer, returns their memory to the arena they are in: at once if its owner waits for memory, and
/// otherwise with others, at the latest when this rank next finds nothing to receive.
///
/// They start at a multiple of 64, or of 16 when they fit in the descriptor (48 bytes). A peer of
/// the same job could still write to them if it broke the rules: what comes from a peer that is
/// not trusted has to be copied before it is checked.
#[derive(Clone)]
pub struct Buffer {
    tag: u64,
    body: Body,
}

#[derive(Clone)]
pub(crate) enum Body {
    Inline(Inline),
    Block { block: Block, len: usize },
}

/// A small payload, held by value.
#[derive(Clone, Copy)]
#[repr(align(16))]
pub(crate) struct Inline {
    bytes: [u8; INLINE_BYTES],
    len: u8,
}

impl Inline {
    /// Words as they are in a descriptor, and how many bytes of them count.
    #[inline]
    pub(crate) fn from_words(words: [u64; INLINE_BYTES / 8], len: usize) -> Option<Self> {
        let mut bytes = [0; INLINE_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        (len <= INLINE_BYTES).then_some(Self {
            bytes,
            len: len as u8,
        })
    }

    #[inline]
    pub(crate) fn words(&self) -> [u64; INLINE_BYTES / 8] {
        std::array::from_fn(|word| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&self.bytes[8 * word..8 * word + 8]);
            u64::from_ne_bytes(bytes)
        })
    }

    pub(crate) fn len(&self) -> usize {
        usize::from(self.len)
    }
}

impl Buffer {
    pub(crate) fn new(tag: u64, body: Body) -> Self {
        Self { tag, body }
    }

    /// A message of at most 48 bytes, held by value; `None` if there are more.
    #[inline]
    pub fn inline(tag: u64, payload: &[u8]) -> Option<Self> {
        let mut bytes = [0; INLINE_BYTES];
        bytes.get_mut(..payload.len())?.copy_from_slice(payload);
        Some(Self {
            tag,
            body: Body::Inline(Inline {
                bytes,
                len: payload.len() as u8,
            }),
        })
    }

    /// The bytes.
    #[inline]
    pub fn as_slice(&self) -> &[u8] {
        match &self.body {
            Body::Inline(inline) => &inline.bytes[..inline.len()],
            // SAFETY: the block is bounds-checked, mapped while we hold it, and initialised; its
            // writer gave it up when it froze it.
            Body::Block { block, len } => unsafe {
                slice::from_raw_parts(block.start.as_ptr(), *len)
            },
        }
    }

    /// The number that its sender gave it.
    pub fn tag(&self) -> u64 {
        self.tag
    }

    /// The same message under another number.
    pub fn with_tag(self, tag: u64) -> Self {
        Self { tag, ..self }
    }

    pub(crate) fn body(&self) -> &Body {
        &self.body
    }

    pub(crate) fn into_parts(self) -> (u64, Body) {
        (self.tag, self.body)
    }
}

impl From<Loan> for Buffer {
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
            .field("tag", &self.tag)
            .finish_non_exhaustive()
    }
}
