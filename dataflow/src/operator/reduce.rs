//! One value for each key.
//!
//! Values are combined where they arise, so that of each key at most one pair leaves a rank, and then
//! on the rank that the key belongs to. How much the first table may hold is bounded: when the bound,
//! or the worker's ledger, is reached, it is sent on and starts anew.

use std::{fmt, mem};

use hashbrown::{HashTable, hash_table};
use transport::{Buffer, Rank, Reservation};

use crate::{
    Error, Key, Record,
    exchange::{Outbox, Receiver},
    stage::{Input, Output, Place, Progress, Push, Sink},
};

/// The most bytes that values combined before the exchange may take.
const COMBINE_BYTES_MAX: u64 = 512 << 20;

/// What a table keeps of a key.
struct Entry<K: Key, V> {
    hash: u64,
    key: K::Stored,
    value: V,
}

/// The values by key.
struct Table<K: Key, V, F> {
    entries: HashTable<Entry<K, V>>,
    reduce: F,
    /// Bytes that keys keep outside of the table.
    key_bytes: usize,
    /// Bytes of what was drained and is not all gone.
    draining: u64,
    reservation: Reservation,
}

/// The values of a table on their way out.
type Drain<K, V> = hash_table::IntoIter<Entry<K, V>>;

impl<K, V, F> Table<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    fn new(reduce: F, place: &Place, holder: &'static str) -> Result<Self, Error> {
        let reservation = place.ledger.reserve(holder, 0)?;
        Ok(Self {
            entries: HashTable::new(),
            reduce,
            key_bytes: 0,
            draining: 0,
            reservation,
        })
    }

    /// Combines a pair with what is there. It is taken also when the ledger refuses the growth.
    #[inline]
    fn merge(&mut self, key: K::View<'_>, value: V::View<'_>) -> Result<(), Error> {
        let hash = K::hash(key);
        let same = |entry: &Entry<K, V>| entry.hash == hash && K::is(&entry.key, key);
        match self.entries.find_mut(hash, same) {
            Some(entry) => {
                entry.value = (self.reduce)(mem::take(&mut entry.value), value);
                Ok(())
            }
            None => self.insert(hash, key, value),
        }
    }

    #[cold]
    #[inline(never)]
    fn insert(&mut self, hash: u64, key: K::View<'_>, value: V::View<'_>) -> Result<(), Error> {
        let room = if self.entries.len() == self.entries.capacity() {
            self.make_room()
        } else {
            Ok(())
        };
        let entry = Entry {
            hash,
            key: K::store(key),
            value: V::own(value),
        };
        let bytes = K::stored_bytes(&entry.key);
        self.key_bytes += bytes;
        self.entries.insert_unique(hash, entry, |entry| entry.hash);
        if bytes > 0 {
            self.reservation.grow(bytes as u64)?;
        }
        room
    }

    /// Enters the doubled table on the ledger. While it grows, the old one is there too.
    fn make_room(&mut self) -> Result<(), Error> {
        let before = self.entries.allocation_size();
        let capacity = self.entries.capacity();
        let after = 2 * before.max(8 * size_of::<Entry<K, V>>());
        let room = self.reservation.grow(after as u64);
        self.entries.reserve(capacity.max(1), |entry| entry.hash);
        self.forget_what_is_gone();
        Ok(room?)
    }

    /// Leaves on the ledger what is still there.
    fn forget_what_is_gone(&mut self) {
        let here = (self.entries.allocation_size() + self.key_bytes) as u64;
        self.reservation.shrink_to(self.draining + here);
    }

    fn bytes(&self) -> u64 {
        self.reservation.bytes()
    }

    fn drain(&mut self) -> Drain<K, V> {
        self.key_bytes = 0;
        self.draining = self.reservation.bytes();
        mem::take(&mut self.entries).into_iter()
    }

    /// What was drained is gone; there may be new entries.
    fn drained(&mut self) {
        self.draining = 0;
        self.forget_what_is_gone();
    }
}

/// Combines the pairs of each key before they are exchanged.
pub(crate) struct Combine<K: Key, V: Record, F> {
    table: Table<K, V, F>,
    bytes_max: u64,
    drain: Option<Drain<K, V>>,
    outbox: Outbox<(K, V)>,
}

impl<K, V, F> Combine<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    pub(crate) fn new(reduce: F, place: &Place, outbox: Outbox<(K, V)>) -> Result<Self, Error> {
        // Two tables a rank, this one and that of the keys that belong here, share what arenas leave.
        let left = place.ledger.limit().saturating_sub(place.ledger.used());
        let bytes_max = (left / (4 * u64::from(place.executors))).min(COMBINE_BYTES_MAX);
        let table = Table::new(reduce, place, "combining before reduce_by_key")?;
        Ok(Self {
            table,
            bytes_max,
            drain: None,
            outbox,
        })
    }

    /// Sends on what was combined, as long as there is room; true when all of it is out.
    fn send_on(&mut self) -> bool {
        let Some(drain) = &mut self.drain else {
            return true;
        };
        while !self.outbox.is_full() {
            let Some(entry) = drain.next() else {
                self.drain = None;
                self.table.drained();
                return true;
            };
            let lane = self.outbox.lane_of(entry.hash);
            let key = K::stored(&entry.key);
            entry.value.with_view(|value| {
                self.outbox
                    .push_to(lane, &(K::shorten(key), V::shorten(value)));
            });
        }
        false
    }
}

impl<K, V, F> Push<(K, V)> for Combine<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    #[inline]
    fn push(&mut self, (key, value): (K::View<'_>, V::View<'_>)) {
        // Whatever refused the growth, what there is can be sent on to make room.
        let refused = self.table.merge(key, value).is_err();
        if refused || self.table.bytes() > self.bytes_max {
            self.start_drain();
        }
    }
}

impl<K, V, F> Combine<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    #[cold]
    fn start_drain(&mut self) {
        if self.drain.is_none() {
            self.drain = Some(self.table.drain());
        }
        self.send_on();
    }
}

impl<K, V, F> Sink<(K, V)> for Combine<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    #[inline]
    fn is_full(&self) -> bool {
        self.drain.is_some() || self.outbox.is_full()
    }
}

impl<K, V, F> Output<(K, V)> for Combine<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    fn poll(&mut self) -> Result<bool, Error> {
        let moved = self.outbox.poll()?;
        let sent = self.drain.is_some() && !self.outbox.is_full();
        self.send_on();
        Ok(moved || sent)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        if self.drain.is_none() && !self.table.entries.is_empty() {
            self.drain = Some(self.table.drain());
        }
        Ok(self.send_on() && self.outbox.finish()?)
    }

    fn stopped(&mut self, reader: u32) {
        self.outbox.stopped(reader);
    }

    fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }
}

/// Reduces the pairs of the keys that belong to this rank, and gives one pair for each key when all
/// have come.
pub struct Reduce<K: Key, V: Record, F> {
    receiver: Receiver<(K, V)>,
    table: Table<K, V, F>,
    drain: Option<Drain<K, V>>,
}

impl<K, V, F> Reduce<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    pub(crate) fn new(reduce: F, place: &Place, receiver: Receiver<(K, V)>) -> Result<Self, Error> {
        Ok(Self {
            receiver,
            table: Table::new(reduce, place, "reduce_by_key")?,
            drain: None,
        })
    }

    fn give<D: Sink<(K, V)>>(&mut self, down: &mut D) -> Progress {
        let drain = self.drain.get_or_insert_with(|| self.table.drain());
        for _ in 0..GIVEN_A_TURN {
            if down.is_full() {
                return Progress::Made;
            }
            let Some(entry) = drain.next() else {
                self.table.drained();
                return Progress::Done;
            };
            let key = K::stored(&entry.key);
            entry
                .value
                .with_view(|value| down.push((K::shorten(key), V::shorten(value))));
        }
        Progress::Made
    }
}

/// Results given in one turn, between which messages are looked for.
const GIVEN_A_TURN: usize = 4096;

impl<K, V, F> Input for Reduce<K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    type Out = (K, V);

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.receiver.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.receiver.ended(port, from);
    }

    fn poll<D: Sink<(K, V)>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.drain.is_some() {
            return Ok(self.give(down));
        }
        let mut into = Into {
            table: &mut self.table,
            error: None,
        };
        let progress = self.receiver.poll(&mut into)?;
        if let Some(error) = into.error {
            return Err(error);
        }
        match progress {
            Progress::Done => Ok(self.give(down)),
            progress => Ok(progress),
        }
    }
}

/// Pushes pairs into a table.
struct Into<'a, K: Key, V, F> {
    table: &'a mut Table<K, V, F>,
    error: Option<Error>,
}

impl<K, V, F> Push<(K, V)> for Into<'_, K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    #[inline]
    fn push(&mut self, (key, value): (K::View<'_>, V::View<'_>)) {
        if let Err(error) = self.table.merge(key, value) {
            self.error.get_or_insert(error);
        }
    }
}

impl<K, V, F> Sink<(K, V)> for Into<'_, K, V, F>
where
    K: Key,
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V,
{
    fn is_full(&self) -> bool {
        false
    }
}

impl<K: Key, V: Record, F> fmt::Debug for Reduce<K, V, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reduce")
            .field("keys", &self.table.entries.len())
            .finish_non_exhaustive()
    }
}
