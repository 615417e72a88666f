//! What is combined by key, in memory that is entered on the ledger.

use std::mem;

use hashbrown::{HashTable, hash_table};

use super::{reduce::Accumulate, room::Room};
use crate::{Error, Key, Record, stage::Place};

/// What a table keeps of a key. (Not its hash, which is soon found again: the smaller an entry is, the more of them are in
/// the caches.)
pub(crate) struct Entry<K: Key, V> {
    pub(crate) key: K::Stored,
    pub(crate) value: V,
}

impl<K: Key, V> Entry<K, V> {
    fn hash(&self) -> u64 {
        K::hash(K::stored(&self.key))
    }
}

/// What is kept by key.
pub(crate) struct Table<K: Key, I: Record, A: Accumulate<I>> {
    entries: HashTable<Entry<K, A::State>>,
    pub(crate) accumulate: A,
    /// Bytes that keys and values keep outside of the table, and bytes that are entered for that.
    outside: u64,
    entered: u64,
    /// Bytes of what was drained and is not all gone.
    draining: u64,
    /// Whether keys that are not there are refused.
    pub(crate) is_frozen: bool,
    room: Room,
}

/// What became of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Merged {
    /// It was combined with what was there.
    Combined,
    /// It is the first of its key.
    New,
    /// It would be, but there is no room for another key.
    Refused,
    /// It was combined, and takes more room than there is.
    TooMuch,
}

/// Bytes entered at a time for what is outside of a table.
const ENTERED: u64 = 64 << 10;

/// The values of a table on their way out.
pub(crate) type Drain<K, V> = hash_table::IntoIter<Entry<K, V>>;

impl<K: Key, I: Record, A: Accumulate<I>> Table<K, I, A> {
    pub(crate) fn new(accumulate: A, place: &Place, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            entries: HashTable::new(),
            accumulate,
            outside: 0,
            entered: 0,
            draining: 0,
            is_frozen: false,
            room: Room::new(place, holder)?,
        })
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Combines a pair with what is there.
    #[inline]
    pub(crate) fn merge(&mut self, key: K::View<'_>, value: I::View<'_>) -> Merged {
        let hash = K::hash(key);
        let found = self.entries.find_mut(hash, |entry| K::is(&entry.key, key));
        match found {
            Some(Entry { value: state, .. }) if mem::needs_drop::<A::State>() => {
                let before = state.heap_bytes() as u64;
                self.accumulate.add(state, value);
                let after = state.heap_bytes() as u64;
                self.outside = (self.outside + after).saturating_sub(before);
                if after > before && !self.enter() {
                    return Merged::TooMuch;
                }
                Merged::Combined
            }
            Some(Entry { value: state, .. }) => {
                self.accumulate.add(state, value);
                Merged::Combined
            }
            None => self.insert(hash, key, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn insert(&mut self, hash: u64, key: K::View<'_>, value: I::View<'_>) -> Merged {
        if self.is_frozen {
            return Merged::Refused;
        }
        if self.entries.len() == self.entries.capacity() && !self.make_room() {
            return Merged::Refused;
        }
        let entry = Entry {
            key: K::store(key),
            value: self.accumulate.start(value),
        };
        let bytes = (K::stored_bytes(&entry.key) + entry.value.heap_bytes()) as u64;
        self.outside += bytes;
        if bytes > 0 && !self.enter() {
            self.outside -= bytes;
            return Merged::Refused;
        }
        self.entries.insert_unique(hash, entry, Entry::hash);
        Merged::New
    }

    /// Enters on the ledger what is outside of the table; false when there is no room for it.
    #[inline]
    fn enter(&mut self) -> bool {
        if self.outside <= self.entered {
            return true;
        }
        let more = (self.outside - self.entered).next_multiple_of(ENTERED);
        let is_entered = self.room.take(more);
        if is_entered {
            self.entered += more;
        }
        is_entered
    }

    /// Doubles the table, if there is room for that. While it grows, the old one is there too.
    fn make_room(&mut self) -> bool {
        let before = self.entries.allocation_size();
        let capacity = self.entries.capacity();
        let after = 2 * before.max(8 * size_of::<Entry<K, A::State>>());
        if !self.room.take(after as u64) {
            return false;
        }
        self.entries.reserve(capacity.max(1), Entry::hash);
        self.forget_what_is_gone();
        true
    }

    /// Leaves on the ledger what is still there.
    fn forget_what_is_gone(&mut self) {
        let here = self.entries.allocation_size() as u64 + self.entered;
        self.room.shrink_to(self.draining + here);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.room.bytes()
    }

    pub(crate) fn drain(&mut self) -> Drain<K, A::State> {
        (self.outside, self.entered) = (0, 0);
        self.draining = self.room.bytes();
        mem::take(&mut self.entries).into_iter()
    }

    /// What was drained is gone; there may be new entries.
    pub(crate) fn drained(&mut self) {
        self.draining = 0;
        self.forget_what_is_gone();
    }
}
