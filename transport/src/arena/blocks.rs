//! Which bytes of an arena are lent: the owner's private book, which no peer can write.
//!
//! Blocks come in size classes, four to each doubling, so that at most a fifth of a block is not
//! asked for. A block that comes back waits in its class for the next loan of that size, the
//! latest first, because its pages are present and its lines may be cached. Only when no block
//! and no untouched bytes are left are all idle blocks merged with their neighbours and cut anew.

use std::collections::BTreeMap;

/// Alignment and smallest size of a block.
const UNIT: u64 = 64;
/// Blocks from this size on start on a page.
const PAGED: u64 = 16 << 10;
const PAGE: u64 = 4 << 10;

/// The book of an arena of `bytes` bytes with at most `blocks_max` blocks.
#[derive(Debug)]
pub(crate) struct Blocks {
    /// Uncut bytes: start and length of each stretch.
    uncut: BTreeMap<u64, u64>,
    /// Idle blocks of each class.
    idle: Vec<Vec<Idle>>,
    idle_bytes: u64,
    /// Every block by its number.
    blocks: Vec<Block>,
    /// Numbers in `blocks` that stand for no bytes.
    vacant: Vec<u32>,
    blocks_max: usize,
    /// The bytes that could not be found since the last block came back.
    fruitless: Option<u64>,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    offset: u64,
    bytes: u64,
    class: u32,
    lent: bool,
}

/// A block that waits for a loan of its size. It says where it is, so that nothing else has to be looked up.
#[derive(Debug, Clone, Copy)]
struct Idle {
    offset: u64,
    index: u32,
}

/// A block that was lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lent {
    pub(crate) index: u32,
    pub(crate) offset: u64,
    pub(crate) bytes: u64,
    /// Where the block is that will be lent next for this size unless others come back, plus one; zero when there
    /// is none.
    pub(crate) next: u64,
}

/// The class of a block with room for `bytes`, and its size: 64, 128, 192, 256, then four steps to
/// each doubling.
fn class_of(bytes: u64) -> (usize, u64) {
    let units = bytes.div_ceil(UNIT).max(1);
    if units <= 4 {
        return (units as usize - 1, units * UNIT);
    }
    let doubling = (units - 1).ilog2() - 2;
    let steps = units.div_ceil(1 << doubling);
    (
        4 * doubling as usize + steps as usize - 1,
        (steps << doubling) * UNIT,
    )
}

impl Blocks {
    pub(crate) fn new(bytes: u64, blocks_max: usize) -> Self {
        Self {
            uncut: BTreeMap::from([(0, bytes)]),
            idle: vec![Vec::new(); class_of(bytes).0 + 1],
            idle_bytes: 0,
            blocks: Vec::new(),
            vacant: Vec::new(),
            blocks_max,
            fruitless: None,
        }
    }

    /// Whether a block of `size` bytes is what would be lent for `bytes`.
    #[inline]
    pub(crate) fn fits(bytes: u64, size: u64) -> bool {
        class_of(bytes).1 == size
    }

    /// Lends a block of at least `bytes`, or nothing while there is none.
    #[inline(always)]
    pub(crate) fn lend(&mut self, bytes: u64) -> Option<Lent> {
        let (class, size) = class_of(bytes);
        let idle = self.idle.get_mut(class)?;
        let Some(Idle { offset, index }) = idle.pop() else {
            return self.lend_afresh(class, size);
        };
        let next = idle.last().map_or(0, |next| next.offset + 1);
        self.idle_bytes -= size;
        self.blocks[index as usize].lent = true;
        Some(Lent {
            index,
            offset,
            bytes: size,
            next,
        })
    }

    #[cold]
    fn lend_afresh(&mut self, class: usize, size: u64) -> Option<Lent> {
        if let Some(lent) = self.cut(class, size) {
            return Some(lent);
        }
        if self.fruitless.is_some_and(|missed| missed <= size) || self.idle_bytes == 0 {
            return None;
        }
        self.merge();
        let lent = self.cut(class, size);
        if lent.is_none() {
            self.fruitless = Some(size);
        }
        lent
    }

    /// Takes a block back; false if it was not lent.
    #[inline]
    pub(crate) fn take_back(&mut self, index: u32) -> bool {
        let Some(block) = self
            .blocks
            .get_mut(index as usize)
            .filter(|block| block.lent)
        else {
            return false;
        };
        block.lent = false;
        self.idle_bytes += block.bytes;
        self.idle[block.class as usize].push(Idle {
            offset: block.offset,
            index,
        });
        self.fruitless = None;
        true
    }

    /// Size of a block, lent or idle.
    pub(crate) fn bytes(&self, index: u32) -> u64 {
        self.blocks[index as usize].bytes
    }

    /// Cuts a block from the first stretch that has room for it.
    fn cut(&mut self, class: usize, size: u64) -> Option<Lent> {
        if self.vacant.is_empty() && self.blocks.len() == self.blocks_max {
            return None;
        }
        let align = if size < PAGED { UNIT } else { PAGE };
        let (start, length, offset) = self.uncut.iter().find_map(|(&start, &length)| {
            let offset = start.next_multiple_of(align);
            (offset + size <= start + length).then_some((start, length, offset))
        })?;
        self.uncut.remove(&start);
        for (from, to) in [(start, offset), (offset + size, start + length)] {
            if from < to {
                self.uncut.insert(from, to - from);
            }
        }
        let block = Block {
            offset,
            bytes: size,
            class: class as u32,
            lent: true,
        };
        let index = match self.vacant.pop() {
            Some(index) => {
                self.blocks[index as usize] = block;
                index
            }
            None => {
                self.blocks.push(block);
                self.blocks.len() as u32 - 1
            }
        };
        Some(Lent {
            index,
            offset,
            bytes: size,
            next: 0,
        })
    }

    /// Turns all idle blocks into uncut bytes again, neighbours into one stretch.
    fn merge(&mut self) {
        for class in &mut self.idle {
            for Idle { index, .. } in class.drain(..) {
                let block = self.blocks[index as usize];
                self.uncut.insert(block.offset, block.bytes);
                self.vacant.push(index);
            }
        }
        self.idle_bytes = 0;
        let mut stretches = std::mem::take(&mut self.uncut).into_iter();
        let Some(mut last) = stretches.next() else {
            return;
        };
        for (start, length) in stretches {
            if last.0 + last.1 == start {
                last.1 += length;
            } else {
                self.uncut.insert(last.0, last.1);
                last = (start, length);
            }
        }
        self.uncut.insert(last.0, last.1);
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The size of the blocks of a class.
    fn bytes_of(class: usize) -> u64 {
        if class < 4 {
            return (class as u64 + 1) * UNIT;
        }
        let doubling = class / 4 - 1;
        ((class % 4 + 5) as u64) << doubling << UNIT.trailing_zeros()
    }

    proptest! {
        #[test]
        fn a_class_has_room_and_wastes_less_than_a_quarter(bytes in 0u64..1 << 40) {
            let (class, size) = class_of(bytes);
            prop_assert_eq!(bytes_of(class), size);
            prop_assert!(size >= bytes && size % UNIT == 0);
            prop_assert!(bytes <= 256 || (size - bytes) * 4 < bytes + 4 * UNIT);
            prop_assert_eq!(class_of(size), (class, size), "a size is its own class");
        }

        #[test]
        fn lent_blocks_never_overlap_and_all_bytes_come_back(
            steps in prop::collection::vec((0usize..8, 1u64..200_000), 1..300),
        ) {
            const ARENA: u64 = 1 << 20;
            let mut blocks = Blocks::new(ARENA, 1 << 10);
            let mut lent: Vec<Lent> = Vec::new();
            for (choice, bytes) in steps {
                if choice < 5 {
                    if let Some(new) = blocks.lend(bytes) {
                        prop_assert!(new.bytes >= bytes && new.offset + new.bytes <= ARENA);
                        let apart = |old: &Lent| {
                            old.offset + old.bytes <= new.offset || new.offset + new.bytes <= old.offset
                        };
                        prop_assert!(lent.iter().all(apart));
                        lent.push(new);
                    }
                } else if !lent.is_empty() {
                    let block = lent.swap_remove(choice * 31 % lent.len());
                    prop_assert!(blocks.take_back(block.index));
                    prop_assert!(!blocks.take_back(block.index), "a block comes back once");
                }
            }
            for block in lent {
                blocks.take_back(block.index);
            }
            prop_assert!(blocks.lend(ARENA).is_some(), "everything merged into one block again");
        }
    }

    #[test]
    fn the_block_that_came_back_last_is_lent_first() {
        let mut blocks = Blocks::new(1 << 20, 16);
        let (first, second) = (blocks.lend(100).unwrap(), blocks.lend(100).unwrap());
        blocks.take_back(first.index);
        blocks.take_back(second.index);
        assert_eq!(blocks.lend(128).unwrap().offset, second.offset);
    }
}
