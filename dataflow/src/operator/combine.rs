//! Values that are combined where they arise, before they are exchanged.
//!
//! Of those that belong together at most one leaves an instance, as long as what is kept of them has room: when a bound,
//! or the worker's ledger, is reached, it is sent on and the table starts anew. Where values hardly belong together,
//! they are sent on one by one.

use std::mem;

use super::{
    reduce::Accumulate,
    states::{Account, Ahead, Drain, GROUP, Merged, States},
};
use crate::{
    Error, Key, Record,
    exchange::Outbox,
    stage::{Output, Place, Push, Sink},
    time::Watermark,
};

/// Which values of a pair of `K` and `V` are combined, and how what was made of them travels.
pub(crate) trait Combined<K: Key, V: Record> {
    /// What values have in common that are combined.
    type By: Key;
    /// What is made of them.
    type Accumulate: Accumulate<V>;
    /// What travels.
    type Sent: Record;

    /// Whether event time flows, and waits for what is combined.
    const IS_LIVE: bool;

    fn accumulate(&self) -> &Self::Accumulate;

    fn by<'v>(&self, key: K::View<'v>, value: V::View<'v>) -> <Self::By as Record>::View<'v>;

    /// The same for a value that goes alone, where that is known for less.
    #[inline]
    fn alone<'v>(&self, key: K::View<'v>, value: V::View<'v>) -> <Self::By as Record>::View<'v> {
        self.by(key, value)
    }

    /// The hash of the key, which says where it belongs.
    fn hash(by: <Self::By as Record>::View<'_>) -> u64;

    /// Sends what was made of some values.
    fn send(
        by: <Self::By as Record>::View<'_>,
        state: &<Self::Accumulate as Accumulate<V>>::State,
        lane: usize,
        outbox: &mut Outbox<Self::Sent>,
    );
}

/// What combined values are kept as.
type State<K, V, C> = <<C as Combined<K, V>>::Accumulate as Accumulate<V>>::State;

/// Values whose entries the processor fetches meanwhile, at most a [`GROUP`].
type Waiting<K, V> = Vec<(Ahead, <K as Key>::Stored, V)>;

/// The most bytes that values combined before an exchange may take.
const COMBINE_BYTES_MAX: u64 = 512 << 20;

/// Combines values before they are exchanged.
pub(crate) struct Combine<K: Key, V: Record, C: Combined<K, V>> {
    combined: C,
    states: States<C::By, State<K, V, C>>,
    waiting: Waiting<C::By, V>,
    account: Account,
    bytes_max: u64,
    pays: Pays,
    /// The only lane, if each key belongs to this instance.
    own: Option<usize>,
    drain: Option<Drain<C::By, State<K, V, C>>>,
    outbox: Outbox<C::Sent>,
}

impl<K: Key, V: Record, C: Combined<K, V>> Combine<K, V, C> {
    pub(crate) fn new(combined: C, place: &Place) -> Result<Self, Error> {
        // Two tables a rank, this one and that of the keys that belong here, share what arenas leave.
        let left = place.ledger.free();
        Ok(Self {
            combined,
            states: States::new(),
            waiting: Vec::new(),
            account: Account::new(place, "combining by key before an exchange")?,
            bytes_max: (left / (4 * u64::from(place.executors))).min(COMBINE_BYTES_MAX),
            // Where all pairs of a key are here, there is one table for them already.
            pays: Pays::new(place.own_lane().is_some()),
            own: place.own_lane(),
            drain: None,
            outbox: Outbox::to_each(place)?,
        })
    }

    /// The same where no values belong together.
    pub(crate) fn never(combined: C, place: &Place) -> Result<Self, Error> {
        let mut never = Self::new(combined, place)?;
        never.pays = Pays::new(true);
        Ok(never)
    }

    /// Whether values are plain and small, so that they can be [waiting](Waiting) at little cost.
    const CAN_WAIT: bool = {
        let is_plain = !mem::needs_drop::<V>() && !mem::needs_drop::<<C::By as Key>::Stored>();
        is_plain && size_of::<(<C::By as Key>::Stored, V)>() <= WAITING_BYTES_MAX
    };

    /// Sends a value on as it is.
    #[inline]
    fn pass(&mut self, by: <C::By as Record>::View<'_>, value: V::View<'_>) {
        let lane = (self.own).unwrap_or_else(|| self.outbox.lane_of(C::hash(by)));
        let state = self.combined.accumulate().start(value);
        C::send(by, &state, lane, &mut self.outbox);
    }

    /// Combines the values that are waiting.
    fn combine_waiting(&mut self) {
        let mut waiting = mem::take(&mut self.waiting);
        for (ahead, by, value) in waiting.drain(..) {
            let by = C::By::stored(&by);
            value.with_view(|value| {
                let accumulate = self.combined.accumulate();
                let account = &mut self.account;
                let merged =
                    (self.states).merge_ahead::<V, _>(accumulate, ahead, (by, value), account);
                if merged != Merged::Combined {
                    self.grown(merged, by, value);
                }
            });
        }
        self.waiting = waiting;
    }

    /// What follows when a value was not just combined with another.
    #[inline]
    fn grown(&mut self, merged: Merged, by: <C::By as Record>::View<'_>, value: V::View<'_>) {
        match merged {
            Merged::Combined => {}
            Merged::New => self.look(),
            // Whatever has no room, what there is can be sent on to make some.
            Merged::TooMuch => self.start_drain(),
            Merged::Refused => {
                self.pass(by, value);
                self.start_drain();
            }
        }
    }

    /// Looks, when the table has a new key, whether it pays and has room.
    #[inline]
    fn look(&mut self) {
        if !self.pays.with_another_key() || self.account.used() > self.bytes_max {
            self.start_drain();
        }
    }

    #[cold]
    fn start_drain(&mut self) {
        if self.drain.is_none() {
            self.drain = Some(self.states.drain());
        }
        self.send_on();
    }

    /// Sends on what was combined, as long as there is room; true when all of it is out.
    fn send_on(&mut self) -> bool {
        let Some(drain) = &mut self.drain else {
            return true;
        };
        while !self.outbox.is_full() {
            let Some(entry) = drain.next_given_back(&mut self.account) else {
                self.drain = None;
                return true;
            };
            let by = <C::By as Key>::stored(&entry.key);
            let lane = self.outbox.lane_of(C::hash(by));
            C::send(by, &entry.state, lane, &mut self.outbox);
        }
        false
    }

    /// Has all sent on that was combined; true when it is out.
    fn send_all(&mut self) -> bool {
        self.combine_waiting();
        if self.send_on() && self.states.len() > 0 {
            self.start_drain();
        }
        self.drain.is_none() && self.states.len() == 0
    }
}

impl<K: Key, V: Record, C: Combined<K, V>> Push<(K, V)> for Combine<K, V, C> {
    #[inline]
    fn push(&mut self, (key, value): (K::View<'_>, V::View<'_>)) {
        let (key, value) = (K::shorten(key), V::shorten(value));
        if self.pays.passes() {
            self.pass(self.combined.alone(key, value), value);
            return;
        }
        let by = self.combined.by(key, value);
        if Self::CAN_WAIT && self.states.is_far() {
            let ahead = self.states.look_ahead(by);
            self.waiting.push((ahead, C::By::store(by), V::own(value)));
            if self.waiting.len() == GROUP {
                self.combine_waiting();
            }
            return;
        }
        let accumulate = self.combined.accumulate();
        let merged = (self.states).merge::<V, _>(accumulate, (by, value), &mut self.account);
        self.grown(merged, by, value);
    }
}

impl<K: Key, V: Record, C: Combined<K, V>> Sink<(K, V)> for Combine<K, V, C> {
    #[inline]
    fn is_full(&self) -> bool {
        self.drain.is_some() || self.outbox.is_full()
    }
}

impl<K: Key, V: Record, C: Combined<K, V>> Output<(K, V)> for Combine<K, V, C> {
    fn poll(&mut self) -> Result<bool, Error> {
        let moved = self.outbox.poll()?;
        let sends = self.drain.is_some() && !self.outbox.is_full();
        self.send_on();
        Ok(moved || sends)
    }

    fn flush(&mut self, watermark: Watermark) -> Result<bool, Error> {
        if !C::IS_LIVE {
            return Ok(false);
        }
        // Event time waits for what comes before it.
        let told = if self.send_all() {
            watermark
        } else {
            Watermark::UNKNOWN
        };
        self.outbox.flush(told)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        Ok(self.send_all() && self.outbox.finish()?)
    }

    fn stopped(&mut self, reader: u32) {
        self.outbox.stopped(reader);
    }

    fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }

    fn again(&mut self, run: u32) -> bool {
        // If nobody wanted more, there may be something left.
        self.waiting.clear();
        let left = [self.drain.take(), Some(self.states.drain())];
        for mut drain in left.into_iter().flatten() {
            drain.forget(&mut self.account);
        }
        self.pays.again();
        self.outbox.again(run)
    }
}

/// The most bytes of a value that waits, with its key.
const WAITING_BYTES_MAX: usize = 64;

/// Keys by which it is judged whether it pays to combine: a table of that many is about what a core's cache holds.
const KEYS_TO_LOOK: u64 = 1 << 16;
/// Values that there have to be of each key until then. With fewer, looking for keys in a table that is larger than
/// the cache takes longer than to send the values to the table where they are looked for anyway.
const VALUES_A_KEY_MIN: u64 = 2;
/// Values that are sent on as they are before it is tried again, since later ones may have fewer keys.
const PASSED_BEFORE_A_LOOK: u64 = 1 << 22;

/// Whether it pays to combine, as far as can be seen from the values that came.
#[derive(Debug)]
struct Pays {
    values: u64,
    keys: u64,
    /// Values that are to be sent on as they are: without an end if it never pays.
    passing: u64,
    never: bool,
}

impl Pays {
    fn new(never: bool) -> Self {
        Self {
            values: 0,
            keys: 0,
            passing: if never { u64::MAX } else { 0 },
            never,
        }
    }

    fn again(&mut self) {
        *self = Self::new(self.never);
    }

    /// Whether the next value is to be sent on as it is.
    #[inline]
    fn passes(&mut self) -> bool {
        if self.passing > 0 {
            self.passing -= 1;
            return true;
        }
        self.values += 1;
        false
    }

    /// Takes note that the value was the first of its key; false if it does not pay.
    #[inline]
    fn with_another_key(&mut self) -> bool {
        self.keys += 1;
        if self.keys < KEYS_TO_LOOK {
            return true;
        }
        let pays = self.values >= VALUES_A_KEY_MIN * self.keys;
        self.passing = if pays { 0 } else { PASSED_BEFORE_A_LOOK };
        (self.values, self.keys) = (0, 0);
        pays
    }
}
