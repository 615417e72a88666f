//! Who still reads a block, and how its last reader gives it back to its owner.
//!
//! # Invariant
//!
//! A block's `count` is the number of references to it, in any process. It is one while the owner
//! holds the block unlent, so the common life of a block (lent, handed over, read, returned) never
//! writes it. Whoever drops the last reference links the block into the `returned` stack of its
//! arena, which only the owner takes, always whole: with no single pops there is no ABA.

use std::iter;

use crate::sync::{AtomicU32, Ordering, fence};

/// The shared record of one block.
#[repr(C, align(64))]
pub(crate) struct Count {
    count: AtomicU32,
    /// The next block in the stack of returned ones, plus one.
    next: AtomicU32,
}

impl Count {
    /// Sets the count of a block that nobody else knows of to one.
    pub(crate) fn reset(&self) {
        if self.count.load(Ordering::Relaxed) != 1 {
            self.count.store(1, Ordering::Relaxed);
        }
    }

    /// Adds a reference. The caller holds one.
    pub(crate) fn retain(&self) {
        // No ordering: what hands the new reference to its holder orders it.
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Gives up a reference; true when it was the last one, and the block is the caller's to return.
    pub(crate) fn release(&self) -> bool {
        // The only holder need not write. The Acquire pairs with the Release of those before us.
        if self.count.load(Ordering::Acquire) == 1 {
            return true;
        }
        if self.count.fetch_sub(1, Ordering::Release) != 1 {
            return false;
        }
        fence(Ordering::Acquire); // Everyone's reads come before what the owner does next.
        self.count.store(1, Ordering::Relaxed);
        true
    }
}

/// The blocks of an arena that their last readers have given back.
#[repr(C, align(64))]
pub(crate) struct Returned {
    /// The block returned last, plus one; zero when there is none.
    head: AtomicU32,
}

impl Returned {
    /// Links blocks in. The caller dropped the last reference to each of them.
    pub(crate) fn push(&self, counts: &[Count], indices: &[u32]) {
        let [first, others @ ..] = indices else {
            return;
        };
        let mut last = first;
        for index in others {
            counts[*last as usize]
                .next
                .store(index + 1, Ordering::Relaxed);
            last = index;
        }
        let mut head = self.head.load(Ordering::Relaxed);
        loop {
            counts[*last as usize].next.store(head, Ordering::Relaxed);
            // Release: our reads of the blocks, and the links, come before the owner's taking them.
            match self.head.compare_exchange_weak(
                head,
                first + 1,
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }

    /// Whether [`take`](Self::take) would find a block.
    pub(crate) fn is_empty(&self) -> bool {
        self.head.load(Ordering::Relaxed) == 0
    }

    /// Takes all returned blocks. The links are shared memory: an index past the end stops the
    /// walk, and the caller bounds it and checks that it lent what comes back.
    pub(crate) fn take<'a>(&self, counts: &'a [Count]) -> impl Iterator<Item = u32> + use<'a> {
        let mut link = match self.head.load(Ordering::Relaxed) {
            0 => 0,
            _ => self.head.swap(0, Ordering::Acquire), // Pairs with the Release in `push`.
        };
        iter::from_fn(move || {
            let index = link.checked_sub(1)?;
            link = counts.get(index as usize)?.next.load(Ordering::Relaxed);
            Some(index)
        })
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{cell::UnsafeCell, sync::Arc, thread};

    use super::*;

    struct Shared {
        counts: [Count; 2],
        returned: Returned,
        payload: [UnsafeCell<u32>; 2],
    }

    impl Shared {
        fn new() -> Arc<Self> {
            Arc::new(Self {
                counts: [0, 1].map(|_| Count {
                    count: AtomicU32::new(1),
                    next: AtomicU32::new(0),
                }),
                returned: Returned {
                    head: AtomicU32::new(0),
                },
                payload: [UnsafeCell::new(7), UnsafeCell::new(7)],
            })
        }

        /// What a reader does with a reference.
        fn read_and_drop(&self, index: u32) {
            self.payload[index as usize].with(|value| {
                // SAFETY: we hold a reference, and the owner writes only once all are gone; loom
                // checks exactly that.
                assert_eq!(unsafe { *value }, 7);
            });
            if self.counts[index as usize].release() {
                self.returned.push(&self.counts, &[index]);
            }
        }

        /// What the owner does with blocks that came back.
        fn reuse(&self) -> usize {
            self.returned
                .take(&self.counts)
                .map(|index| {
                    self.payload[index as usize].with_mut(|value| {
                        // SAFETY: the block came back, so no reference is left; loom checks it.
                        unsafe { *value = 8 };
                    });
                })
                .count()
        }
    }

    // Loom gives this type its `Sync` by checking every access.
    // SAFETY: `payload` is only touched by the protocol under test.
    unsafe impl Sync for Shared {}

    /// Has two readers read and drop a block each, while the owner waits for `blocks` to come back. It
    /// waits here and not for the threads, whose end would put their reads in order.
    fn read_until_back(shared: &Arc<Shared>, readers: [u32; 2], blocks: usize) {
        let readers = readers.map(|index| {
            let shared = shared.clone();
            thread::spawn(move || shared.read_and_drop(index))
        });
        let mut back = 0;
        while back < blocks {
            back += shared.reuse();
            thread::yield_now();
        }
        for reader in readers {
            reader.join().unwrap();
        }
        assert_eq!(back + shared.reuse(), blocks);
    }

    #[test]
    fn a_block_comes_back_once_and_after_its_last_reader() {
        loom::model(|| {
            let shared = Shared::new();
            shared.counts[0].retain();
            read_until_back(&shared, [0, 0], 1);
        });
    }

    #[test]
    fn blocks_returned_at_once_by_two_readers_both_come_back() {
        loom::model(|| read_until_back(&Shared::new(), [0, 1], 2));
    }
}
