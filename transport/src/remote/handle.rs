//! What names exposed memory in messages.

use super::frame::Name;
use crate::Rank;

/// Names memory that a rank has exposed: plain data, to be sent to whoever is to use it.
///
/// It holds the owner, where the memory is in its arena, and a key drawn at random when it was exposed.
/// Whoever has it can [attach](crate::Fabric::attach) to the memory until the owner takes that back; the
/// owner checks the key, and says itself where the memory is, so nothing comes of a handle that was made up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegionHandle {
    pub(crate) owner: Rank,
    pub(crate) name: Name,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
}

impl RegionHandle {
    /// Bytes of a handle as it travels.
    pub const BYTES: usize = 32;

    /// The rank that exposed the memory.
    pub fn owner(&self) -> Rank {
        self.owner
    }

    /// Bytes exposed.
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether no bytes are exposed.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The handle as it travels.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let words = [
            u64::from(self.owner) | u64::from(self.name.index) << 32,
            self.name.key,
            self.offset,
            self.bytes,
        ];
        let mut bytes = [0; Self::BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// Reads a handle. Any bytes are one; whether it names something is found out when it is used.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let word = |index: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_le_bytes(word)
        };
        Self {
            owner: word(0) as Rank,
            name: Name {
                index: (word(0) >> 32) as u32,
                key: word(1),
            },
            offset: word(2),
            bytes: word(3),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_handle_is_read_as_it_was_written(bytes: [u8; RegionHandle::BYTES]) {
            prop_assert_eq!(RegionHandle::from_bytes(&bytes).to_bytes(), bytes);
        }
    }
}
