//! A queue of one-line entries between exactly one producer and one consumer, which may be two
//! processes.
//!
//! # Invariant
//!
//! `taken` counts the entries whose slots the consumer has handed back, and the producer has put
//! at most `taken + N`. Entry `p` is in slot `p % N`, and it is there once the slot's stamp says
//! `p + 1`: the stamp is stored last and in the line that it guards, so that one line carries flag
//! and payload, as in UCX and Aeron. Only the producer writes slots, only the consumer moves
//! `taken`, and it does so once in a quarter of the ring, so the line of `taken` rarely travels.
//!
//! The words of a slot are atomics, loaded and stored relaxed (plain moves on every machine): a
//! peer that breaks the protocol can make us read nonsense, which is checked, but no undefined
//! behaviour.

use std::ops::Deref;

use crate::{
    arena::{prefetch_read, prefetch_write},
    sync::{AtomicU64, Ordering},
};

/// What an entry carries beside its [`Note`].
pub(crate) const ENTRY_WORDS: usize = 7;

/// The payload of an entry.
pub(crate) type Entry = [u64; ENTRY_WORDS];

/// Sixteen bits that travel in the stamp of an entry; what they mean is up to the link.
pub(crate) type Note = u16;

const NOTE_BITS: u32 = Note::BITS;

/// Entries that follow one another without a pause before they count as a stream.
const STREAM: u64 = 16;
/// Lines that are fetched ahead in a stream: one that is asked for when its turn comes takes as long as many together.
const AHEAD: u64 = 8;

/// The memory of a ring. All zero is an empty ring.
#[repr(C, align(128))]
pub(crate) struct Ring<const N: usize> {
    taken: Taken,
    slots: [Slot; N],
}

/// Alone in its pair of lines, which processors prefetch together.
#[repr(C, align(128))]
struct Taken(AtomicU64);

#[repr(C, align(64))]
struct Slot {
    stamp: AtomicU64,
    words: [AtomicU64; ENTRY_WORDS],
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Slot>() == 64 && size_of::<Ring<4>>() == 128 + 4 * 64);

/// The stamp of entry `position`: its number, counted from one, above its note.
fn stamp(position: u64, note: Note) -> u64 {
    (position.wrapping_add(1) << NOTE_BITS) | u64::from(note)
}

/// The end that puts entries in.
pub(crate) struct Producer<R> {
    ring: R,
    /// Entries put so far; only we count them.
    put: u64,
    /// `taken` as we last read it.
    taken: u64,
}

/// The consumer claims to have taken entries that were never put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Corrupt;

impl<R: Deref<Target = Ring<N>>, const N: usize> Producer<R> {
    pub(crate) fn new(ring: R) -> Self {
        Self {
            ring,
            put: 0,
            taken: 0,
        }
    }

    /// Whether `entries` fit; asks the consumer's counter only when our copy of it says no.
    #[inline]
    pub(crate) fn has_room(&mut self, entries: u64) -> Result<bool, Corrupt> {
        let last = N as u64 - entries;
        if self.put.wrapping_sub(self.taken) <= last {
            return Ok(true);
        }
        self.has_room_by_now(last)
    }

    #[cold]
    fn has_room_by_now(&mut self, last: u64) -> Result<bool, Corrupt> {
        let taken = self.ring.taken.0.load(Ordering::Acquire); // Pairs with the Release in `hand_back`.
        if self.put.wrapping_sub(taken) > N as u64 {
            return Err(Corrupt);
        }
        self.taken = taken;
        Ok(self.put.wrapping_sub(taken) <= last)
    }

    /// Entries put so far.
    #[inline]
    pub(crate) fn put(&self) -> u64 {
        self.put
    }

    /// Has the processor fetch the line that the next entry will be in, for writing.
    #[inline]
    pub(crate) fn fetch(&self) {
        self.fetch_at(self.put);
    }

    /// The same for the one behind it.
    #[inline]
    pub(crate) fn fetch_second(&self) {
        self.fetch_at(self.put.wrapping_add(1));
    }

    #[inline(always)]
    fn fetch_at(&self, position: u64) {
        prefetch_write((&raw const self.ring.slots[position as usize % N]).cast());
    }

    /// Puts an entry in, of at most seven words; further ones are left as they are. There must be room: see
    /// [`has_room`](Self::has_room).
    #[inline(always)]
    pub(crate) fn push(&mut self, note: Note, words: impl Iterator<Item = u64>) {
        debug_assert!(
            self.put.wrapping_sub(self.taken) < N as u64,
            "the ring is full"
        );
        self.put_at(self.put, note, words);
        self.put = self.put.wrapping_add(1);
    }

    /// Puts two entries in, the second before the first: who sees the first sees both. There must be
    /// room for both.
    #[inline(always)]
    pub(crate) fn push_pair(
        &mut self,
        (note, words): (Note, impl Iterator<Item = u64>),
        (second_note, second_words): (Note, impl Iterator<Item = u64>),
    ) {
        debug_assert!(
            self.put.wrapping_sub(self.taken) < N as u64 - 1,
            "the ring has no room for two"
        );
        self.put_at(self.put.wrapping_add(1), second_note, second_words);
        self.put_at(self.put, note, words);
        self.put = self.put.wrapping_add(2);
    }

    #[inline(always)]
    fn put_at(&self, position: u64, note: Note, words: impl Iterator<Item = u64>) {
        let slot = &self.ring.slots[position as usize % N];
        for (word, value) in slot.words.iter().zip(words) {
            word.store(value, Ordering::Relaxed);
        }
        slot.stamp.store(stamp(position, note), Ordering::Release); // Hands the slot over.
    }
}

impl<R: Deref<Target = Ring<N>>, const N: usize> Producer<R> {
    /// What a consumer that is gone, and said exactly how far it came, has not taken.
    pub(crate) fn unread(&mut self) -> Vec<(Note, Entry)> {
        if self.has_room(1).is_err() {
            return Vec::new();
        }
        // Relaxed: the slots from here on are ours, and the consumer has not read what they name.
        let taken = self.ring.taken.0.load(Ordering::Relaxed);
        let first = taken.clamp(self.put.saturating_sub(N as u64), self.put);
        let unread = (first..self.put).map(|position| {
            let slot = &self.ring.slots[position as usize % N];
            let entry = std::array::from_fn(|word| slot.words[word].load(Ordering::Relaxed));
            (slot.stamp.load(Ordering::Relaxed) as Note, entry)
        });
        let unread = unread.collect();
        self.taken = self.put;
        unread
    }
}

/// The end that takes entries out.
pub(crate) struct Consumer<R> {
    ring: R,
    /// Entries taken so far; only we count them.
    position: u64,
    /// How many of them the producer knows of.
    handed_back: u64,
    /// How many had been taken when there was none last.
    caught_up: u64,
}

impl<R: Deref<Target = Ring<N>>, const N: usize> Consumer<R> {
    pub(crate) fn new(ring: R) -> Self {
        Self {
            ring,
            position: 0,
            handed_back: 0,
            caught_up: 0,
        }
    }

    /// Whether an entry is there.
    #[inline]
    pub(crate) fn is_ready(&self) -> bool {
        self.arrived().is_some()
    }

    /// Has the processor fetch the line behind the one that the next entry will be in.
    #[inline]
    pub(crate) fn fetch_second(&self) {
        let second = self.position.wrapping_add(1);
        prefetch_read((&raw const self.ring.slots[second as usize % N]).cast());
    }

    #[inline(always)]
    fn arrived(&self) -> Option<(Note, &Slot)> {
        let slot = &self.ring.slots[self.position as usize % N];
        let seen = slot.stamp.load(Ordering::Acquire); // Pairs with the Release in `push`.
        let note = Note::try_from(seen.wrapping_sub(stamp(self.position, 0))).ok()?;
        Some((note, slot))
    }

    /// Takes the next entry, if it is there. The flag says that slots were handed back, so that a
    /// producer that waits for room should be told.
    #[inline(always)]
    pub(crate) fn pop(&mut self) -> Option<(Note, Entry, bool)> {
        let Some((note, slot)) = self.arrived() else {
            self.caught_up = self.position;
            return None;
        };
        let entry = std::array::from_fn(|word| slot.words[word].load(Ordering::Relaxed));
        self.step();
        let hand_back = self.position.wrapping_sub(self.handed_back) >= (N as u64).div_ceil(4);
        if hand_back {
            self.hand_back();
        }
        Some((note, entry, hand_back))
    }

    /// Goes on to the next slot. In a stream, a line further on is fetched: its entry is there, or will be soon.
    #[inline(always)]
    fn step(&mut self) {
        self.position = self.position.wrapping_add(1);
        if self.is_stream() {
            let ahead = self.position.wrapping_add(AHEAD);
            prefetch_read((&raw const self.ring.slots[ahead as usize % N]).cast());
        }
    }

    /// In a stream, what the next entry, which is left where it is, has in these places.
    #[inline(always)]
    pub(crate) fn peek<const K: usize>(&self, places: [usize; K]) -> Option<(Note, [u64; K])> {
        if !self.is_stream() {
            return None;
        }
        let (note, slot) = self.arrived()?;
        Some((
            note,
            places.map(|place| slot.words[place].load(Ordering::Relaxed)),
        ))
    }

    /// Whether many entries were taken since there was none.
    #[inline(always)]
    fn is_stream(&self) -> bool {
        self.position.wrapping_sub(self.caught_up) > STREAM
    }

    /// Takes the second entry of a pair, of which the first was taken. None: it is not there, and the producer
    /// did not put in a pair.
    #[inline]
    pub(crate) fn pop_second(&mut self, note: Note) -> Option<Entry> {
        let (seen, slot) = self.arrived()?;
        let entry = std::array::from_fn(|word| slot.words[word].load(Ordering::Relaxed));
        self.step();
        (seen == note).then_some(entry)
    }

    /// Tells the producer exactly how many entries were taken.
    pub(crate) fn hand_back(&mut self) {
        self.handed_back = self.position;
        self.ring.taken.0.store(self.position, Ordering::Release); // Our reads of the slots are done.
    }
}

#[cfg(test)]
impl<const N: usize> Ring<N> {
    pub(crate) fn new() -> Self {
        Self {
            taken: Taken(AtomicU64::new(0)),
            slots: std::array::from_fn(|_| Slot {
                stamp: AtomicU64::new(0),
                words: std::array::from_fn(|_| AtomicU64::new(0)),
            }),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::{collections::VecDeque, iter, rc::Rc};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_behaves_like_a_bounded_queue(pushes in prop::collection::vec(any::<Option<u64>>(), 0..400)) {
            let ring = Rc::new(Ring::<8>::new());
            let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring));
            let mut model = VecDeque::new();
            for push in pushes {
                match push {
                    Some(value) => if producer.has_room(1).unwrap() {
                        producer.push(value as Note, iter::repeat(value));
                        model.push_back(value);
                    } else {
                        prop_assert!(model.len() > 6, "a quarter of the ring may be on its way back");
                    },
                    None => {
                        let popped = consumer.pop().map(|(note, entry, _)| (note, entry));
                        let expected = model.pop_front().map(|value| (value as Note, [value; ENTRY_WORDS]));
                        prop_assert_eq!(popped, expected);
                    }
                }
                prop_assert_eq!(consumer.is_ready(), !model.is_empty());
            }
        }
    }

    #[test]
    fn in_a_stream_the_next_entry_is_seen_before_it_is_taken_and_at_no_other_time() {
        let ring = Rc::new(Ring::<8>::new());
        let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring));
        for stream in 0..3 {
            assert!(consumer.pop().is_none(), "that ends a stream");
            for value in 0..100 {
                assert_eq!(producer.has_room(1), Ok(true));
                producer.push(stream, iter::repeat(value));
                let seen = consumer.peek([0, 6]);
                assert_eq!(seen, (value > STREAM).then_some((stream, [value; 2])));
                assert_eq!(consumer.pop().unwrap().1, [value; ENTRY_WORDS]);
                assert_eq!(consumer.peek([0]), None, "it is not there yet");
            }
        }
    }

    #[test]
    fn a_consumer_that_claims_entries_never_put_is_caught() {
        let ring = Rc::new(Ring::<4>::new());
        let mut producer = Producer::new(ring.clone());
        for _ in 0..4 {
            assert_eq!(producer.has_room(1), Ok(true));
            producer.push(0, iter::empty());
        }
        ring.taken.0.store(77, Ordering::Relaxed);
        assert_eq!(producer.has_room(1), Err(Corrupt));
    }
}

#[cfg(all(test, loom))]
mod loom_tests {
    use std::iter;

    use loom::{cell::UnsafeCell, sync::Arc, thread};

    use super::*;

    /// A ring of two slots, each with a cell that is touched by whose turn it is. The words of a slot are
    /// atomics, and loom never lets a load see a store that comes later, so they would not tell.
    #[derive(Clone)]
    struct Watched(Arc<(Ring<2>, [UnsafeCell<()>; 2])>);

    impl Deref for Watched {
        type Target = Ring<2>;

        fn deref(&self) -> &Ring<2> {
            &self.0.0
        }
    }

    // SAFETY: nothing is in the cells, and loom checks every access to them.
    unsafe impl Send for Watched {}

    impl Producer<Watched> {
        fn try_push(&mut self, value: u64) -> bool {
            let room = self.has_room(1).unwrap();
            if room {
                self.ring.0.1[self.put as usize % 2].with_mut(|_| ());
                self.push(value as Note, iter::repeat(value));
            }
            room
        }
    }

    impl Consumer<Watched> {
        fn try_pop(&mut self) -> Option<(Note, Entry)> {
            if self.is_ready() {
                self.ring.0.1[self.position as usize % 2].with(|_| ());
            }
            self.pop().map(|(note, entry, _)| (note, entry))
        }
    }

    #[test]
    fn who_sees_the_first_of_a_pair_sees_the_second() {
        loom::model(|| {
            let ring = Watched(Arc::new((Ring::new(), [(), ()].map(UnsafeCell::new))));
            let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring));
            let sender = thread::spawn(move || {
                assert_eq!(producer.has_room(2), Ok(true));
                for cell in &producer.ring.0.1 {
                    cell.with_mut(|_| ());
                }
                producer.push_pair((1, iter::repeat(1)), (2, iter::repeat(2)));
            });
            if let Some((note, entry)) = consumer.try_pop() {
                assert_eq!((note, entry), (1, [1; ENTRY_WORDS]));
                consumer.ring.0.1[1].with(|_| ());
                assert_eq!(consumer.pop_second(2), Some([2; ENTRY_WORDS]));
            }
            sender.join().unwrap();
        });
    }

    #[test]
    fn entries_arrive_once_whole_and_in_order() {
        loom::model(|| {
            let ring = Watched(Arc::new((Ring::new(), [(), ()].map(UnsafeCell::new))));
            let (mut producer, mut consumer) = (Producer::new(ring.clone()), Consumer::new(ring));
            let sender = thread::spawn(move || {
                (1..=3)
                    .take_while(|&value| producer.try_push(value))
                    .count()
            });
            let mut received: Vec<_> = (0..2).filter_map(|_| consumer.try_pop()).collect();
            let sent = sender.join().unwrap();
            received.extend(iter::from_fn(|| consumer.try_pop()));
            assert_eq!(received.len(), sent, "each arrives once");
            for (index, (note, entry)) in received.into_iter().enumerate() {
                assert_eq!(note, index as Note + 1, "in order");
                assert_eq!(entry, [index as u64 + 1; ENTRY_WORDS], "and whole");
            }
        });
    }
}
