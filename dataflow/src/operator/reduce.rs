//! One value for each key.
//!
//! Values are combined where they arise, so that of each key at most one pair leaves a rank, and then
//! on the rank that the key belongs to. How much the first table may hold is bounded: when the bound,
//! or the worker's ledger, is reached, it is sent on and starts anew. Where keys hardly repeat, pairs are
//! sent on as they are.
//!
//! When the second table finds no room for more keys, it stays as it is: values of its keys are combined in place as
//! before, and pairs of other keys are [set aside](super::aside), to be combined when they are read in order. So keys
//! that come often, of which one is most likely in the table, cost no more than they did.

use std::{fmt, marker::PhantomData, mem};

use transport::{Buffer, Rank, Reservation};

use crate::{
    Encode, Error, Key, Record,
    batch::Batch,
    exchange::{Outbox, Receiver},
    graph::Extent,
    operator::{
        aside::{Aside, ByHash},
        narrow::{Keyed, Keys, Pass, Then},
        table::{Drain, Merged, Table},
    },
    stage::{Input, Narrow, Output, Place, Progress, Push, Sink},
    tset::{Source, TSet},
};

/// How many values become one.
pub trait Accumulate<I: Record>: Clone + Send + Sync + 'static {
    /// What is kept of them on the way.
    type State: Record;

    /// What is made of that in the end.
    type Out: Encode;

    /// What is kept of the first value.
    fn start(&self, first: I::View<'_>) -> Self::State;

    /// Adds another.
    fn add(&self, state: &mut Self::State, more: I::View<'_>);

    /// The same, with the bytes that the state keeps outside of itself before and after it, or with both less the same.
    #[inline]
    fn add_and_weigh(&self, state: &mut Self::State, more: I::View<'_>) -> (usize, usize) {
        let before = state.heap_bytes();
        self.add(state, more);
        (before, state.heap_bytes())
    }

    /// Ends it.
    fn finish(&self, state: Self::State) -> Self::Out;
}

/// Reduces by a function of two values.
pub struct Reducing<V, F> {
    function: F,
    value: PhantomData<fn() -> V>,
}

impl<V, F> Reducing<V, F> {
    pub(crate) fn new(function: F) -> Self {
        Self {
            function,
            value: PhantomData,
        }
    }
}

impl<V, F: Clone> Clone for Reducing<V, F> {
    fn clone(&self) -> Self {
        Self::new(self.function.clone())
    }
}

impl<V, F> fmt::Debug for Reducing<V, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reducing")
    }
}

impl<V, F> Accumulate<V> for Reducing<V, F>
where
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V + Clone + Send + Sync + 'static,
{
    type State = V;
    type Out = V;

    #[inline]
    fn start(&self, first: V::View<'_>) -> V {
        V::own(first)
    }

    #[inline]
    fn add(&self, state: &mut V, more: V::View<'_>) {
        *state = (self.function)(mem::take(state), more);
    }

    #[inline]
    fn finish(&self, state: V) -> V {
        state
    }
}

impl<S, N, K, V> TSet<S, N>
where
    S: Source,
    K: Key,
    V: Record,
    N: Narrow<S::Out, Out = (K, V)>,
{
    /// Reduces the values of each key to one. `reduce` is given a value of its own and the view of
    /// another and has to be associative and commutative: values are combined on every rank before
    /// they meet on the rank of their key. (A default value stands in for the first argument while
    /// `reduce` runs.)
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec!["a", "b", "a"].into_iter().map(String::from).collect())
    ///     .flat_map(|word, out| out.push((word, 1u64)))
    ///     .reduce_by_key(|a, b| a + b)
    ///     .collect();
    /// let mut counts = inline(&job)?;
    /// counts.sort();
    /// assert_eq!(counts, [("a".to_owned(), 2), ("b".to_owned(), 1)]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn reduce_by_key<F>(self, reduce: F) -> TSet<Reduced<K, V, Reducing<V, F>>, Pass>
    where
        V: Default,
        F: Fn(V, V::View<'_>) -> V + Clone + Send + Sync + 'static,
    {
        let reduce = Reducing::new(reduce);
        self.accumulate_by_key("reduce_by_key", reduce.clone(), reduce)
    }

    /// Combines what `before` keeps of each key where it arises, and by `after` on the instance of the key.
    pub(crate) fn accumulate_by_key<A, B>(
        self,
        name: &'static str,
        before: A,
        after: B,
    ) -> TSet<Reduced<K, A::State, B>, Pass>
    where
        A: Accumulate<V>,
        B: Accumulate<A::State, State = A::State>,
    {
        let output = move |place: &Place| {
            Combine::<K, V, A>::new(before.clone(), place, Outbox::to_each(place)?)
        };
        self.exchange_keys(
            name,
            output,
            Reduced {
                name,
                accumulate: after,
                pair: PhantomData,
            },
        )
    }
}

impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Key,
    N: Narrow<S::Out, Out = T>,
{
    /// Each record once, however often it is there.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let mut once = inline(&collection(vec![2u64, 1, 2]).distinct().collect())?;
    /// once.sort();
    /// assert_eq!(once, [1, 2]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
    pub fn distinct(self) -> TSet<Reduced<T, (), Once>, Then<Pass, Keys, (T, ())>> {
        let records = self.then(Keyed, "as key");
        records
            .accumulate_by_key("distinct", Once, Once)
            .then(Keys, "its key")
    }
}

/// Keeps nothing of a value but that it was there.
#[derive(Debug, Clone, Copy)]
pub struct Once;

impl Accumulate<()> for Once {
    type State = ();
    type Out = ();

    fn start(&self, (): ()) {}

    fn add(&self, (): &mut (), (): ()) {}

    fn finish(&self, (): ()) {}
}

/// One pair for each key.
pub struct Reduced<K, I, A> {
    name: &'static str,
    accumulate: A,
    pair: PhantomData<fn() -> (K, I)>,
}

impl<K, I, A> Source for Reduced<K, I, A>
where
    K: Key,
    I: Record,
    A: Accumulate<I, State = I>,
{
    type Input = Reduce<K, I, A>;
    type Out = (K, <A::Out as Encode>::Record);

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(Reduce {
            receiver: Receiver::new(place, 0),
            table: Table::new(self.accumulate.clone(), place, self.name)?,
            aside: Aside::new(place, ByHash, self.name)?,
            rest: Rest::Nothing,
            reading: Reading {
                hash: 0,
                values: Vec::new(),
            },
            for_reading: place.ledger.reserve(self.name, 0)?,
            phase: Phase::Taking,
        })
    }

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }

    fn is_by_key(&self) -> bool {
        true
    }
}

impl<K, I, A> fmt::Debug for Reduced<K, I, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reduced")
    }
}

/// The most bytes that values combined before the exchange may take.
const COMBINE_BYTES_MAX: u64 = 512 << 20;

/// Combines the pairs of each key before they are exchanged.
struct Combine<K: Key, I: Record, A: Accumulate<I>> {
    table: Table<K, I, A>,
    bytes_max: u64,
    /// Pairs since the table was empty.
    seen: u64,
    /// Pairs that are to be sent on as they are.
    passing: u64,
    /// The only lane, if each key belongs to this instance: there is one table for them already, and none is needed here.
    own: Option<usize>,
    drain: Option<Drain<K, A::State>>,
    outbox: Outbox<(K, A::State)>,
}

impl<K: Key, I: Record, A: Accumulate<I>> Combine<K, I, A> {
    fn new(accumulate: A, place: &Place, outbox: Outbox<(K, A::State)>) -> Result<Self, Error> {
        // Two tables a rank, this one and that of the keys that belong here, share what arenas leave.
        let left = place.ledger.free();
        let bytes_max = (left / (4 * u64::from(place.executors))).min(COMBINE_BYTES_MAX);
        let table = Table::new(accumulate, place, "combining by key before an exchange")?;
        let own = place.own_lane();
        Ok(Self {
            table,
            bytes_max,
            seen: 0,
            passing: 0,
            own,
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
            let key = K::stored(&entry.key);
            let lane = self.outbox.lane_of(K::hash(key));
            entry.value.with_view(|value| {
                self.outbox
                    .push_to(lane, &(K::shorten(key), A::State::shorten(value)));
            });
        }
        false
    }
}

impl<K: Key, I: Record, A: Accumulate<I>> Push<(K, I)> for Combine<K, I, A> {
    #[inline]
    fn push(&mut self, (key, value): (K::View<'_>, I::View<'_>)) {
        if self.passing > 0 || self.own.is_some() {
            self.passing = self.passing.saturating_sub(1);
            self.pass(key, value);
            return;
        }
        self.seen += 1;
        match self.table.merge(key, value) {
            Merged::Combined => {}
            Merged::New => self.look(),
            // Whatever has no room, what there is can be sent on to make some.
            Merged::TooMuch => self.start_drain(),
            Merged::Refused => {
                self.pass(key, value);
                self.start_drain();
            }
        }
    }
}

impl<K: Key, I: Record, A: Accumulate<I>> Combine<K, I, A> {
    /// Sends a pair on as it is.
    #[inline]
    fn pass(&mut self, key: K::View<'_>, value: I::View<'_>) {
        let lane = (self.own).unwrap_or_else(|| self.outbox.lane_of(K::hash(key)));
        let state = self.table.accumulate.start(value);
        state.with_view(|state| {
            self.outbox
                .push_to(lane, &(K::shorten(key), A::State::shorten(state)));
        });
    }

    /// Looks, when the table has a new key, whether it pays and has room.
    #[inline]
    fn look(&mut self) {
        let len = self.table.len();
        if self.table.bytes() > self.bytes_max {
            self.start_drain();
        } else if len == KEYS_TO_LOOK && self.seen < PAIRS_A_KEY_MIN * len as u64 {
            self.passing = PASSED_BEFORE_A_LOOK;
            self.start_drain();
        }
    }

    #[cold]
    fn start_drain(&mut self) {
        self.seen = 0;
        if self.drain.is_none() {
            self.drain = Some(self.table.drain());
        }
        self.send_on();
    }
}

/// Keys by which it is judged whether it pays to combine: a table of that many is about what a core's cache holds.
const KEYS_TO_LOOK: usize = 1 << 16;
/// Pairs that there have to be of each key until then. With fewer, looking for keys in a table that is larger than
/// the cache takes longer than to send the pairs to the table where they are looked for anyway.
const PAIRS_A_KEY_MIN: u64 = 2;
/// Pairs that are sent on as they are before it is tried again, since later ones may have fewer keys.
const PASSED_BEFORE_A_LOOK: u64 = 1 << 22;

impl<K: Key, I: Record, A: Accumulate<I>> Sink<(K, I)> for Combine<K, I, A> {
    #[inline]
    fn is_full(&self) -> bool {
        self.drain.is_some() || self.outbox.is_full()
    }
}

impl<K: Key, I: Record, A: Accumulate<I>> Output<(K, I)> for Combine<K, I, A> {
    fn poll(&mut self) -> Result<bool, Error> {
        let moved = self.outbox.poll()?;
        let sent = self.drain.is_some() && !self.outbox.is_full();
        self.send_on();
        Ok(moved || sent)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        if self.drain.is_none() && self.table.len() > 0 {
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

    fn again(&mut self, run: u32) -> bool {
        // If nobody wanted more, there may be something left.
        self.drain = None;
        self.table.drain();
        self.table.drained();
        (self.seen, self.passing) = (0, 0);
        self.outbox.again(run)
    }
}

/// Reduces the pairs of the keys that belong to this rank, and gives one pair for each key when all
/// have come.
pub struct Reduce<K: Key, I: Record, A: Accumulate<I>> {
    receiver: Receiver<(K, I)>,
    table: Table<K, I, A>,
    /// Pairs that found no room in the table.
    aside: Aside<(K, I), ByHash>,
    rest: Rest,
    /// The keys of the hash that is being read.
    reading: Reading<K, A::State>,
    /// For what their values keep outside of themselves.
    for_reading: Reservation,
    phase: Phase<K, A::State>,
}

/// What was set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rest {
    Nothing,
    /// Pairs of keys that are not in the table.
    Others,
    /// Pairs of any key, because values in the table had become too large.
    Any,
}

/// How far it is.
enum Phase<K: Key, V> {
    Taking,
    /// It gives what is in the table.
    Giving(Drain<K, V>),
    /// It gives what was set aside.
    Reading,
}

/// What is combined of the pairs of one hash: nearly always of one key.
struct Reading<K: Key, V> {
    hash: u64,
    values: Vec<(K::Stored, V)>,
}

impl<K, I, A> Reduce<K, I, A>
where
    K: Key,
    I: Record,
    A: Accumulate<I, State = I>,
{
    /// Takes in a batch.
    fn take(&mut self, batch: &Batch<(K, I)>) -> Result<(), Error> {
        for (key, value) in batch.views(0) {
            match self.table.merge(key, value) {
                Merged::Combined | Merged::New => {}
                Merged::Refused => self.set_aside(key, value)?,
                Merged::TooMuch => self.set_table_aside()?,
            }
        }
        Ok(())
    }

    /// Sets a pair aside whose key finds no room in the table.
    #[cold]
    fn set_aside(&mut self, key: K::View<'_>, value: I::View<'_>) -> Result<(), Error> {
        self.table.is_frozen = true;
        if self.rest == Rest::Nothing {
            self.rest = Rest::Others;
        }
        self.aside.push((K::shorten(key), I::shorten(value)))
    }

    /// Sets all aside that is in the table, so that the values there, which have grown, make room.
    fn set_table_aside(&mut self) -> Result<(), Error> {
        self.rest = Rest::Any;
        for entry in self.table.drain() {
            let key = K::stored(&entry.key);
            entry
                .value
                .with_view(|value| self.aside.push((K::shorten(key), I::shorten(value))))?;
        }
        self.table.drained();
        self.table.is_frozen = false;
        Ok(())
    }

    /// All have come.
    fn start_giving(&mut self) -> Result<(), Error> {
        if self.rest == Rest::Any {
            self.set_table_aside()?;
        }
        self.phase = Phase::Giving(self.table.drain());
        Ok(())
    }

    /// Gives what was set aside, combined by key.
    fn read<D>(&mut self, down: &mut D) -> Result<Progress, Error>
    where
        D: Sink<(K, <A::Out as Encode>::Record)>,
    {
        let accumulate = &self.table.accumulate;
        let Reading { hash, values } = &mut self.reading;
        for _ in 0..GIVEN_A_TURN {
            let first = self.aside.first();
            match first {
                Some((other, (key, value))) if other == *hash || values.is_empty() => {
                    *hash = other;
                    let known = values.iter_mut().find(|(stored, _)| K::is(stored, key));
                    let (before, after) = match known {
                        Some((_, state)) => {
                            let before = state.heap_bytes();
                            accumulate.add(state, value);
                            (before, state.heap_bytes())
                        }
                        None => {
                            let state = accumulate.start(value);
                            let bytes = state.heap_bytes();
                            values.push((K::store(key), state));
                            (0, bytes)
                        }
                    };
                    // One key's value is all that has to fit.
                    if after > before {
                        self.for_reading.grow((after - before) as u64)?;
                    }
                    self.aside.advance()?;
                    continue;
                }
                _ => {}
            }
            if down.is_full() {
                break;
            }
            let Some((key, state)) = values.pop() else {
                return Ok(Progress::Done);
            };
            let value = accumulate.finish(state);
            (K::stored(&key), value).with_view(|pair| down.push(pair));
            if values.is_empty() {
                self.for_reading.shrink_to(0);
            }
        }
        Ok(Progress::Made)
    }
}

/// Results given in one turn, between which messages are looked for.
const GIVEN_A_TURN: usize = 4096;

impl<K, I, A> Input for Reduce<K, I, A>
where
    K: Key,
    I: Record,
    A: Accumulate<I, State = I>,
{
    type Out = (K, <A::Out as Encode>::Record);

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.receiver.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.receiver.ended(port, from);
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.aside.go_on()? {
            return Ok(Progress::Made);
        }
        match &mut self.phase {
            Phase::Taking => {
                if let Some((_, batch)) = self.receiver.next_batch() {
                    self.take(&batch)?;
                } else if self.receiver.is_done() {
                    self.start_giving()?;
                } else {
                    return Ok(Progress::None);
                }
            }
            Phase::Giving(drain) => {
                for _ in 0..GIVEN_A_TURN {
                    if down.is_full() {
                        return Ok(Progress::Made);
                    }
                    let Some(entry) = drain.next() else {
                        return self.end_giving();
                    };
                    let value = self.table.accumulate.finish(entry.value);
                    (K::stored(&entry.key), value).with_view(|pair| down.push(pair));
                }
            }
            Phase::Reading => return self.read(down),
        }
        Ok(Progress::Made)
    }

    fn again(&mut self) -> bool {
        if self.rest != Rest::Nothing {
            return false;
        }
        self.phase = Phase::Taking;
        self.table.drain();
        self.table.drained();
        self.table.is_frozen = false;
        self.receiver.again()
    }
}

impl<K, I, A> Reduce<K, I, A>
where
    K: Key,
    I: Record,
    A: Accumulate<I, State = I>,
{
    /// The table is given, and makes room for reading what was set aside.
    fn end_giving(&mut self) -> Result<Progress, Error> {
        self.phase = Phase::Reading;
        self.table.drained();
        if self.rest == Rest::Nothing {
            return Ok(Progress::Done);
        }
        self.aside.end()?;
        Ok(Progress::Made)
    }
}

impl<K: Key, I: Record, A: Accumulate<I>> fmt::Debug for Reduce<K, I, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reduce")
            .field("keys", &self.table.len())
            .finish_non_exhaustive()
    }
}
