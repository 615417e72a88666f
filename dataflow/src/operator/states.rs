//! What is kept by key, in memory that is entered on the ledger.

use std::mem;

use hashbrown::{HashTable, hash_table};
use transport::prefetch_write;

use super::{reduce::Accumulate, room::Room};
use crate::{Error, Key, Record, stage::Place};

/// Memory that comes and goes in small pieces. It is entered on the ledger before it is allocated, some more at a time.
pub(crate) struct Account {
    room: Room,
    used: u64,
    /// What stays entered, so that there is always room for it.
    least: u64,
}

/// Bytes that are entered at a time.
const STEP: u64 = 16 << 10;

impl Account {
    pub(crate) fn new(place: &Place, holder: &'static str) -> Result<Self, Error> {
        Self::with_least(place, holder, 0)
    }

    /// An account that has room for so many bytes in any case.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn with_least(
        place: &Place,
        holder: &'static str,
        least: usize,
    ) -> Result<Self, Error> {
        let least = least as u64;
        let mut room = Room::new(place, holder)?;
        room.insist(least)?;
        Ok(Self {
            room,
            used: 0,
            least,
        })
    }

    /// Takes so many bytes, if there is room for them.
    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> bool {
        let is_entered = self.grew(bytes);
        if !is_entered {
            self.used -= bytes as u64;
        }
        is_entered
    }

    /// Takes so many bytes that it cannot go on without.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn insist(&mut self, bytes: usize) -> Result<(), Error> {
        self.used += bytes as u64;
        self.insist_on_used()
    }

    /// Enters all that there is, whatever room there should be left for others.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    #[inline]
    pub(crate) fn insist_on_used(&mut self) -> Result<(), Error> {
        if self.used <= self.room.bytes() {
            return Ok(());
        }
        self.room.insist(self.missing())
    }

    fn missing(&self) -> u64 {
        self.used.next_multiple_of(STEP) - self.room.bytes()
    }

    /// Takes note of so many bytes more that are there already; false when there is no room for them.
    #[inline]
    fn grew(&mut self, bytes: usize) -> bool {
        self.used += bytes as u64;
        self.used <= self.room.bytes() || self.enter()
    }

    #[cold]
    fn enter(&mut self) -> bool {
        let missing = self.missing();
        self.room.take(missing)
    }

    #[inline]
    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes as u64);
        let enough = self.used.next_multiple_of(STEP).max(self.least);
        if self.room.bytes() > 2 * enough {
            self.room.shrink_to(enough);
        }
    }

    /// Takes note that something has become larger or smaller; false when there is no room for that.
    #[inline]
    pub(crate) fn change(&mut self, before: usize, after: usize) -> bool {
        if after > before {
            return self.grew(after - before);
        }
        self.give_back(before - after);
        true
    }

    /// Bytes that are there.
    #[inline]
    pub(crate) fn used(&self) -> u64 {
        self.used
    }
}

/// Adds a value to a state, which may take more memory then; false when there is no room for that.
#[inline]
pub(crate) fn add<V: Record, A: Accumulate<V>>(
    accumulate: &A,
    state: &mut A::State,
    value: V::View<'_>,
    account: &mut Account,
) -> bool {
    if !mem::needs_drop::<A::State>() {
        accumulate.add(state, value);
        return true;
    }
    let (before, after) = accumulate.add_and_weigh(state, value);
    account.change(before, after)
}

/// The same, of what has to stay in memory.
///
/// # Errors
///
/// [`transport::Error::LedgerLimit`].
#[inline]
pub(crate) fn must_add<V: Record, A: Accumulate<V>>(
    accumulate: &A,
    state: &mut A::State,
    value: V::View<'_>,
    account: &mut Account,
) -> Result<(), Error> {
    if add(accumulate, state, value, account) {
        return Ok(());
    }
    account.insist_on_used()
}

/// A copy of a state, to be given while the state stays.
#[inline]
pub(crate) fn copy<S: Record>(state: &S) -> S {
    state.with_view(|view| S::own(view))
}

/// Something for each key.
pub(crate) struct States<K: Key, S> {
    entries: HashTable<Entry<K, S>>,
    /// Whether keys that are not there are refused when values are [merged](Self::merge).
    pub(crate) is_frozen: bool,
}

/// What a table keeps of a key. (Not its hash, which is soon found again: the smaller an entry is, the more of them are in
/// the caches.)
pub(crate) struct Entry<K: Key, S> {
    pub(crate) key: K::Stored,
    pub(crate) state: S,
}

impl<K: Key, S> Entry<K, S> {
    fn hash(&self) -> u64 {
        K::hash(K::stored(&self.key))
    }

    /// Bytes that the key keeps outside of itself.
    pub(crate) fn key_bytes(&self) -> usize {
        K::stored_bytes(&self.key)
    }
}

impl<K: Key, S: Record> Entry<K, S> {
    /// Bytes that it keeps outside of itself.
    pub(crate) fn outside_bytes(&self) -> usize {
        self.key_bytes() + self.state.heap_bytes()
    }
}

/// Keys that are looked for together in a table that is larger than a cache: first it is found out where they may be, and
/// those places are asked for, so that the processor waits for many of them at a time and not for each in turn (as in
/// Chen, Ailamaki, Gibbons, Mowry: "Improving hash join performance through prefetching", 2004).
pub(crate) const GROUP: usize = 32;

/// Bytes of entries that are in a core's own cache most of the time, which need not be asked for. (Few where it is debugged, so
/// that tests go both ways.)
const NEAR_BYTES: usize = if cfg!(debug_assertions) {
    1 << 10
} else {
    128 << 10
};

/// Where the entry of a key may be.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    hash: u64,
    bucket: usize,
}

impl Ahead {
    /// Nowhere known.
    pub(crate) const UNKNOWN: Self = Self {
        hash: 0,
        bucket: usize::MAX,
    };
}

/// What became of a value.
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

/// What was in a table, on its way out.
pub(crate) struct Drain<K: Key, S> {
    entries: hash_table::IntoIter<Entry<K, S>>,
    bytes: usize,
}

impl<K: Key, S> Drain<K, S> {
    /// The next entry, whose bytes are still on the account; after the last, the memory of the table is given back.
    pub(crate) fn next(&mut self, account: &mut Account) -> Option<Entry<K, S>> {
        let next = self.entries.next();
        if next.is_none() {
            account.give_back(mem::take(&mut self.bytes));
        }
        next
    }
}

impl<K: Key, S: Record> Drain<K, S> {
    /// The next entry, whose bytes are given back.
    #[inline]
    pub(crate) fn next_given_back(&mut self, account: &mut Account) -> Option<Entry<K, S>> {
        let next = self.next(account)?;
        let bytes = next.outside_bytes();
        if bytes > 0 {
            account.give_back(bytes);
        }
        Some(next)
    }

    /// Drops what is left.
    pub(crate) fn forget(&mut self, account: &mut Account) {
        while self.next_given_back(account).is_some() {}
    }
}

impl<K: Key, S> States<K, S> {
    pub(crate) fn new() -> Self {
        Self {
            entries: HashTable::new(),
            is_frozen: false,
        }
    }

    /// How many keys there are.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// What there is of a key.
    #[inline]
    pub(crate) fn find(&mut self, hash: u64, key: K::View<'_>) -> Option<&mut S> {
        let same = |entry: &Entry<K, S>| K::is(&entry.key, key);
        self.entries
            .find_mut(hash, same)
            .map(|entry| &mut entry.state)
    }

    /// Whether the table is so large that it is worth while to [look ahead](Self::look_ahead).
    #[inline]
    pub(crate) fn is_far(&self) -> bool {
        self.entries.len() > const { NEAR_BYTES / (size_of::<Entry<K, S>>() + 1) }
    }

    /// Has the processor fetch the entry that a key most likely has, before it is needed.
    #[inline]
    pub(crate) fn look_ahead(&self, key: K::View<'_>) -> Ahead {
        let hash = K::hash(key);
        // The first whose bits of the hash are the same; its key is not looked at yet.
        let bucket = self.entries.find_bucket_index(hash, |_| true);
        let bucket = bucket.unwrap_or(usize::MAX);
        if let Some(entry) = self.entries.get_bucket(bucket) {
            prefetch_write((&raw const *entry).cast());
        }
        Ahead { hash, bucket }
    }

    /// Puts something in for a key that is not there. What it keeps outside of itself was taken.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn insert(
        &mut self,
        hash: u64,
        key: K::View<'_>,
        state: S,
        account: &mut Account,
    ) -> Result<&mut S, Error> {
        if !self.has_room(account) {
            account.insist(self.bytes_to_grow())?;
            self.grow(account);
        }
        let key = K::store(key);
        account.insist(K::stored_bytes(&key))?;
        let entry = Entry { key, state };
        let entry = self.entries.insert_unique(hash, entry, Entry::hash);
        Ok(&mut entry.into_mut().state)
    }

    /// Takes out what there is of a key.
    pub(crate) fn remove(
        &mut self,
        hash: u64,
        key: K::View<'_>,
        account: &mut Account,
    ) -> Option<Entry<K, S>> {
        let same = |entry: &Entry<K, S>| K::is(&entry.key, key);
        let found = self.entries.find_entry(hash, same).ok()?;
        let (entry, _) = found.remove();
        account.give_back(entry.key_bytes());
        Some(entry)
    }

    /// Has room for one more key; false when there is none.
    #[inline]
    fn has_room(&mut self, account: &mut Account) -> bool {
        if self.entries.len() < self.entries.capacity() {
            return true;
        }
        let has_room = account.take(self.bytes_to_grow());
        if has_room {
            self.grow(account);
        }
        has_room
    }

    /// Bytes of a table of twice the size. While it grows, the old one is there too.
    fn bytes_to_grow(&self) -> usize {
        let least = 8 * size_of::<Entry<K, S>>();
        2 * self.entries.allocation_size().max(least)
    }

    /// Doubles the table, in bytes that were taken.
    fn grow(&mut self, account: &mut Account) {
        let (capacity, before) = (self.entries.capacity(), self.entries.allocation_size());
        let taken = self.bytes_to_grow();
        self.entries.reserve(capacity.max(1), Entry::hash);
        account.change(before + taken, self.entries.allocation_size());
    }

    /// Takes out what `keeps` says no to.
    pub(crate) fn retain(
        &mut self,
        account: &mut Account,
        mut keeps: impl FnMut(&mut S, &mut Account) -> bool,
    ) {
        self.entries.retain(|entry| {
            let keeps = keeps(&mut entry.state, account);
            if !keeps {
                account.give_back(entry.key_bytes());
            }
            keeps
        });
    }

    /// What there is, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry<K, S>> {
        self.entries.iter()
    }

    /// Takes all out.
    pub(crate) fn drain(&mut self) -> Drain<K, S> {
        self.is_frozen = false;
        Drain {
            bytes: self.entries.allocation_size(),
            entries: mem::take(&mut self.entries).into_iter(),
        }
    }
}

/// Adds a value to what there is of its key.
#[inline]
fn merge_into<V: Record, A: Accumulate<V>>(
    accumulate: &A,
    state: &mut A::State,
    value: V::View<'_>,
    account: &mut Account,
) -> Merged {
    match add(accumulate, state, value, account) {
        true => Merged::Combined,
        false => Merged::TooMuch,
    }
}

impl<K: Key, S: Record> States<K, S> {
    /// Adds a value to what there is of its key.
    #[inline]
    pub(crate) fn merge<V, A>(
        &mut self,
        accumulate: &A,
        (key, value): (K::View<'_>, V::View<'_>),
        account: &mut Account,
    ) -> Merged
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        let ahead = Ahead {
            hash: K::hash(key),
            ..Ahead::UNKNOWN
        };
        self.merge_ahead::<V, A>(accumulate, ahead, (key, value), account)
    }

    /// The same for a key that was [looked for](Self::look_ahead), whatever has happened to the table since.
    #[inline]
    pub(crate) fn merge_ahead<V, A>(
        &mut self,
        accumulate: &A,
        ahead: Ahead,
        (key, value): (K::View<'_>, V::View<'_>),
        account: &mut Account,
    ) -> Merged
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        if let Some(entry) = self.entries.get_bucket_mut(ahead.bucket)
            && K::is(&entry.key, key)
        {
            return merge_into::<V, A>(accumulate, &mut entry.state, value, account);
        }
        match self.find(ahead.hash, key) {
            Some(state) => merge_into::<V, A>(accumulate, state, value, account),
            None => self.merge_first::<V, A>(accumulate, ahead.hash, (key, value), account),
        }
    }

    #[cold]
    #[inline(never)]
    fn merge_first<V, A>(
        &mut self,
        accumulate: &A,
        hash: u64,
        (key, value): (K::View<'_>, V::View<'_>),
        account: &mut Account,
    ) -> Merged
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        if self.is_frozen || !self.has_room(account) {
            return Merged::Refused;
        }
        let entry = Entry {
            key: K::store(key),
            state: accumulate.start(value),
        };
        let bytes = entry.outside_bytes();
        if bytes > 0 && !account.take(bytes) {
            return Merged::Refused;
        }
        self.entries.insert_unique(hash, entry, Entry::hash);
        Merged::New
    }
}
