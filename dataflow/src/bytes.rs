//! Memory of our own for what is built or read outside of an arena.

use std::ops::{Deref, DerefMut};

use rkyv::util::AlignedVec;

/// Alignment of a batch's memory, and of its parts in it; what rkyv needs of itself is at most 16.
pub(crate) const ALIGN: usize = 64;

/// What `malloc` aligns to by itself.
const MALLOC_ALIGN: usize = 16;

/// Bytes that start at a multiple of [`ALIGN`].
///
/// They lie in a piece of memory that is a little larger and not aligned to that. If `malloc` is asked to align them, glibc
/// takes a larger piece and cuts it to size, and until its release 2.38 what is given back is then too small for
/// the next that asks for as much: a job that spilled for long took several times the memory that it held.
#[derive(Debug)]
pub(crate) struct Bytes {
    memory: AlignedVec<MALLOC_ALIGN>,
    /// Where the bytes start.
    start: usize,
}

impl Bytes {
    pub(crate) fn new() -> Self {
        Self {
            memory: AlignedVec::new(),
            start: 0,
        }
    }

    /// Room for so many bytes, without any in it.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        if bytes == 0 {
            return Self::new();
        }
        let mut memory = AlignedVec::with_capacity(bytes + (ALIGN - MALLOC_ALIGN));
        let start = memory.as_ptr().align_offset(ALIGN);
        memory.resize(start, 0);
        Self { memory, start }
    }

    /// So many bytes, which are 0.
    pub(crate) fn zeroed(bytes: usize) -> Self {
        let mut zeroed = Self::with_capacity(bytes);
        zeroed.resize(bytes);
        zeroed
    }

    /// A copy of some bytes.
    pub(crate) fn copy_of(bytes: &[u8]) -> Self {
        let mut copy = Self::with_capacity(bytes.len());
        copy.memory.extend_from_slice(bytes);
        copy
    }

    /// Bytes that there is room for.
    pub(crate) fn capacity(&self) -> usize {
        let slack = if self.memory.capacity() == 0 {
            0
        } else {
            ALIGN - MALLOC_ALIGN
        };
        self.memory.capacity() - slack
    }

    /// Cuts them, or adds zeros, for which there may have to be other memory.
    pub(crate) fn resize(&mut self, len: usize) {
        if len > self.capacity() {
            let mut larger = Self::with_capacity(len);
            larger.memory.extend_from_slice(self);
            *self = larger;
        }
        self.memory.resize(self.start + len, 0);
    }
}

impl Default for Bytes {
    fn default() -> Self {
        Self::new()
    }
}

impl Deref for Bytes {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.memory[self.start..]
    }
}

impl DerefMut for Bytes {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_stay_aligned_and_keep_their_contents_as_they_grow() {
        let mut bytes = Bytes::new();
        for len in [0, 1, 63, 64, 1000, 100, 4096, 70_000, 65_536, 200_000] {
            let kept = bytes.len().min(len);
            let before = bytes[..kept].to_vec();
            bytes.resize(len);
            assert_eq!(bytes.len(), len);
            assert!(bytes.capacity() >= len);
            assert_eq!(&bytes[..kept], before);
            assert!(bytes[kept..].iter().all(|&byte| byte == 0));
            assert!(len == 0 || bytes.as_ptr().cast::<u8>().align_offset(ALIGN) == 0);
            bytes.fill(len as u8 | 1);
        }
        assert_eq!(&*Bytes::copy_of(b"abc"), b"abc");
        assert_eq!(Bytes::with_capacity(1 << 16).capacity(), 1 << 16);
        assert_eq!(Bytes::zeroed(3)[..], [0; 3]);
    }
}
