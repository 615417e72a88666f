//! What is kept by key for as long as it may be needed, on the ledger.

use std::mem;

use hashbrown::{HashTable, hash_table};
use transport::Reservation;

use crate::{Error, Key, Record, operator::reduce::Accumulate, stage::Place};

/// Memory of an operator whose state is needed at any moment, and therefore is not put on disk. It is reserved before
/// it is allocated, and when there is none the job ends.
pub(crate) struct Account {
    reservation: Reservation,
    used: u64,
}

/// Bytes that are reserved at a time.
const STEP: u64 = 64 << 10;

impl Account {
    pub(crate) fn new(place: &Place, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            reservation: place.ledger.reserve(holder, 0)?,
            used: 0,
        })
    }

    /// Takes so many bytes.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    #[inline]
    pub(crate) fn take(&mut self, bytes: usize) -> Result<(), Error> {
        self.used += bytes as u64;
        if self.used > self.reservation.bytes() {
            let more = self.used.next_multiple_of(STEP) - self.reservation.bytes();
            self.reservation.grow(more)?;
        }
        Ok(())
    }

    #[inline]
    pub(crate) fn give_back(&mut self, bytes: usize) {
        self.used = self.used.saturating_sub(bytes as u64);
        let enough = self.used.next_multiple_of(STEP) + STEP;
        if self.reservation.bytes() > 2 * enough {
            self.reservation.shrink_to(enough);
        }
    }

    /// Enters that something has become larger or smaller.
    #[inline]
    pub(crate) fn change(&mut self, before: usize, after: usize) -> Result<(), Error> {
        if after > before {
            return self.take(after - before);
        }
        self.give_back(before - after);
        Ok(())
    }
}

/// Adds a value to a state, which may take more memory then.
#[inline]
pub(crate) fn add<V: Record, A: Accumulate<V>>(
    accumulate: &A,
    state: &mut A::State,
    value: V::View<'_>,
    account: &mut Account,
) -> Result<(), Error> {
    if !mem::needs_drop::<A::State>() {
        accumulate.add(state, value);
        return Ok(());
    }
    let (before, after) = accumulate.add_and_weigh(state, value);
    account.change(before, after)
}

/// A copy of a state, to be given while the state stays.
#[inline]
pub(crate) fn copy<S: Record>(state: &S) -> S {
    state.with_view(|view| S::own(view))
}

/// Something for each key.
pub(crate) struct States<K: Key, S> {
    entries: HashTable<Entry<K, S>>,
    bytes: usize,
}

pub(crate) struct Entry<K: Key, S> {
    pub(crate) hash: u64,
    pub(crate) key: K::Stored,
    pub(crate) state: S,
}

impl<K: Key, S> Entry<K, S> {
    /// Bytes that the key keeps outside of itself.
    pub(crate) fn key_bytes(&self) -> usize {
        K::stored_bytes(&self.key)
    }
}

/// What was in a table, on its way out.
pub(crate) struct Drain<K: Key, S> {
    entries: hash_table::IntoIter<Entry<K, S>>,
    bytes: usize,
}

impl<K: Key, S> Drain<K, S> {
    /// The next entry; after the last, the memory of the table is given back.
    pub(crate) fn next(&mut self, account: &mut Account) -> Option<Entry<K, S>> {
        let next = self.entries.next();
        if next.is_none() {
            account.give_back(mem::take(&mut self.bytes));
        }
        next
    }
}

impl<K: Key, S> States<K, S> {
    pub(crate) fn new() -> Self {
        Self {
            entries: HashTable::new(),
            bytes: 0,
        }
    }

    /// What there is of a key.
    #[inline]
    pub(crate) fn find(&mut self, hash: u64, key: K::View<'_>) -> Option<&mut S> {
        let same = |entry: &Entry<K, S>| entry.hash == hash && K::is(&entry.key, key);
        self.entries
            .find_mut(hash, same)
            .map(|entry| &mut entry.state)
    }

    /// Puts something in for a key that is not there.
    pub(crate) fn insert(
        &mut self,
        hash: u64,
        key: K::Stored,
        state: S,
        account: &mut Account,
    ) -> Result<&mut S, Error> {
        self.make_room(account)?;
        account.take(K::stored_bytes(&key))?;
        Ok(self.put(hash, key, state))
    }

    /// Has room for one more in the table.
    pub(crate) fn make_room(&mut self, account: &mut Account) -> Result<(), Error> {
        if self.entries.len() == self.entries.capacity() {
            self.grow(account)?;
        }
        Ok(())
    }

    /// Puts something in for a key that is not there, where [there is room](Self::make_room), and whose bytes were taken.
    pub(crate) fn put(&mut self, hash: u64, key: K::Stored, state: S) -> &mut S {
        let entry = Entry { hash, key, state };
        let entry = self.entries.insert_unique(hash, entry, |entry| entry.hash);
        &mut entry.into_mut().state
    }

    /// Takes out what there is of a key.
    pub(crate) fn remove(
        &mut self,
        hash: u64,
        key: K::View<'_>,
        account: &mut Account,
    ) -> Option<Entry<K, S>> {
        let same = |entry: &Entry<K, S>| entry.hash == hash && K::is(&entry.key, key);
        let found = self.entries.find_entry(hash, same).ok()?;
        let (entry, _) = found.remove();
        account.give_back(entry.key_bytes());
        Some(entry)
    }

    /// Doubles the table. While it grows, the old one is there too.
    #[cold]
    fn grow(&mut self, account: &mut Account) -> Result<(), Error> {
        let (capacity, before) = (self.entries.capacity(), self.bytes);
        let after = 2 * before.max(8 * size_of::<Entry<K, S>>());
        account.take(after)?;
        self.entries.reserve(capacity.max(1), |entry| entry.hash);
        self.bytes = self.entries.allocation_size();
        account.change(before + after, self.bytes)
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
        Drain {
            entries: mem::take(&mut self.entries).into_iter(),
            bytes: mem::take(&mut self.bytes),
        }
    }
}
