//! What ranks say to each other about exposed memory. It travels beside the messages of a link.

/// Bytes of a frame.
pub(crate) const FRAME_BYTES: usize = 48;
const WORDS: usize = FRAME_BYTES / 8;

/// What the owner of exposed memory calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Name {
    /// Its place in the owner's book.
    pub(crate) index: u32,
    /// What tells it from all else that ever had that place, and cannot be guessed.
    pub(crate) key: u64,
}

/// By what the device of another rank reaches exposed memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    /// Opens the memory to puts and gets.
    pub(crate) key: u32,
    /// Whether what the owner's device does to a word is atomic for its processors, too.
    pub(crate) atomics: bool,
}

impl Access {
    const IS_THERE: u64 = 1 << 32;
    const ATOMICS: u64 = 1 << 33;

    fn to_word(access: Option<Self>) -> u64 {
        access.map_or(0, |access| {
            let atomics = if access.atomics { Self::ATOMICS } else { 0 };
            u64::from(access.key) | Self::IS_THERE | atomics
        })
    }

    fn from_word(word: u64) -> Option<Self> {
        (word & Self::IS_THERE != 0).then_some(Self {
            key: word as u32,
            atomics: word & Self::ATOMICS != 0,
        })
    }
}

/// Why an owner does not do what it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Nothing is exposed by that name, or not all of it, or no word begins there.
    NotExposed = 1,
    /// It has no memory for the answer, and too much waits behind that.
    NoRoom = 2,
}

/// Questions, answers and notices. Each question has a number, which its answer repeats, and the answers come
/// in the order of the questions. `bytes` bytes of data follow a `Put`, in several pieces if they are many,
/// and a `Read`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frame {
    Attach(Name),
    Put {
        name: Name,
        offset: u64,
        bytes: u64,
    },
    Get {
        name: Name,
        offset: u64,
        bytes: u64,
    },
    FetchAdd {
        name: Name,
        offset: u64,
        value: u64,
    },
    CompareSwap {
        name: Name,
        offset: u64,
        expected: u64,
        new: u64,
    },

    /// The memory is there in the owner's arena, and our device may use it if there is an `access`.
    Attached {
        offset: u64,
        bytes: u64,
        access: Option<Access>,
    },
    Written,
    /// A part of what was to be read, in its order.
    Read {
        bytes: u64,
    },
    /// The word as it was.
    Old {
        value: u64,
    },
    Refused(Reason),

    /// To the owner: we do not touch it any more.
    Detach(Name),
    /// From the owner: it is not exposed any more.
    Revoked(Name),
}

impl Frame {
    pub(crate) fn encode(self) -> [u8; FRAME_BYTES] {
        const NONE: Name = Name { index: 0, key: 0 };
        let (kind, name, operands) = match self {
            Self::Attach(name) => (1, name, [0; 3]),
            Self::Put {
                name,
                offset,
                bytes,
            } => (2, name, [offset, bytes, 0]),
            Self::Get {
                name,
                offset,
                bytes,
            } => (3, name, [offset, bytes, 0]),
            Self::FetchAdd {
                name,
                offset,
                value,
            } => (4, name, [offset, value, 0]),
            Self::CompareSwap {
                name,
                offset,
                expected,
                new,
            } => (5, name, [offset, expected, new]),
            Self::Attached {
                offset,
                bytes,
                access,
            } => (6, NONE, [offset, bytes, Access::to_word(access)]),
            Self::Written => (7, NONE, [0; 3]),
            Self::Read { bytes } => (8, NONE, [bytes, 0, 0]),
            Self::Old { value } => (9, NONE, [value, 0, 0]),
            Self::Refused(reason) => (10, NONE, [reason as u64, 0, 0]),
            Self::Detach(name) => (11, name, [0; 3]),
            Self::Revoked(name) => (12, name, [0; 3]),
        };
        let [a, b, c] = operands;
        let words: [u64; WORDS] = [kind | u64::from(name.index) << 32, name.key, a, b, c, 0];
        let mut bytes = [0; FRAME_BYTES];
        for (chunk, word) in bytes.chunks_exact_mut(8).zip(words) {
            chunk.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The frame that these bytes are, if they are just what [`encode`](Self::encode) makes.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; FRAME_BYTES] = bytes.try_into().ok()?;
        let words: [u64; WORDS] = std::array::from_fn(|index| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[8 * index..8 * index + 8]);
            u64::from_le_bytes(word)
        });
        let [first, key, a, b, c, _] = words;
        let name = Name {
            index: (first >> 32) as u32,
            key,
        };
        let frame = match first as u32 {
            1 => Self::Attach(name),
            2 => Self::Put {
                name,
                offset: a,
                bytes: b,
            },
            3 => Self::Get {
                name,
                offset: a,
                bytes: b,
            },
            4 => Self::FetchAdd {
                name,
                offset: a,
                value: b,
            },
            5 => Self::CompareSwap {
                name,
                offset: a,
                expected: b,
                new: c,
            },
            6 => Self::Attached {
                offset: a,
                bytes: b,
                access: Access::from_word(c),
            },
            7 => Self::Written,
            8 => Self::Read { bytes: a },
            9 => Self::Old { value: a },
            10 => Self::Refused(match a {
                1 => Reason::NotExposed,
                2 => Reason::NoRoom,
                _ => return None,
            }),
            11 => Self::Detach(name),
            12 => Self::Revoked(name),
            _ => return None,
        };
        (frame.encode() == *bytes).then_some(frame)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_frame_is_read_as_it_was_written(
            index: u32, key: u64, offset: u64, a: u64, b: u64, opens: u32, atomics: bool,
        ) {
            let name = Name { index, key };
            let access = Some(Access { key: opens, atomics });
            for frame in [
                Frame::Attach(name),
                Frame::Put { name, offset, bytes: a },
                Frame::Get { name, offset, bytes: a },
                Frame::FetchAdd { name, offset, value: a },
                Frame::CompareSwap { name, offset, expected: a, new: b },
                Frame::Attached { offset, bytes: a, access: None },
                Frame::Attached { offset, bytes: a, access },
                Frame::Written,
                Frame::Read { bytes: a },
                Frame::Old { value: a },
                Frame::Refused(Reason::NotExposed),
                Frame::Refused(Reason::NoRoom),
                Frame::Detach(name),
                Frame::Revoked(name),
            ] {
                prop_assert_eq!(Frame::decode(&frame.encode()), Some(frame));
            }
        }

        #[test]
        fn what_no_one_writes_is_not_a_frame(mut bytes: [u8; FRAME_BYTES], kind in 0..14u8) {
            bytes[..4].copy_from_slice(&[kind, 0, 0, 0]);
            if let Some(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
            prop_assert_eq!(Frame::decode(&bytes[1..]), None);
        }
    }
}
