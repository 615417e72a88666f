//! Values of windows that are combined where they arise.
//!
//! Of the values of a key that belong to the same slice of time, and so to the same windows, one part travels instead of each.
//! Parts go on before event time does, and when there are many; so nothing is later than it would be.

use std::{
    collections::{BTreeMap, btree_map},
    fmt,
    marker::PhantomData,
    mem,
};

use super::{
    ByWindow, Give, Shape, Window, Windowed,
    sliding::slice_of,
    states::{Account, Drain, States, add},
};
use crate::{
    Encode, Error, EventTime, Key, Record,
    exchange::Outbox,
    operator::{
        aggregate::{Aggregate, Before, Fold, Merged, Of},
        narrow::Pass,
        reduce::{Accumulate, Reducing},
    },
    stage::{Narrow, Output, Place, Push, Sink},
    time::Watermark,
    tset::{Source, TSet},
};

/// What travels of some values of a key: the start of their slice, how many they are, and what was kept of them.
pub type Part<T> = (EventTime, (u64, T));

/// Finds the slice of a part.
pub type SliceOf<T> = for<'a> fn(<Part<T> as Record>::View<'a>) -> EventTime;

fn slice_of_part<T: Record>(part: <Part<T> as Record>::View<'_>) -> EventTime {
    part.0
}

impl<S, N, F> ByWindow<S, N, F> {
    /// Has values be combined before they are exchanged, for what is associative and commutative: of those of a key that belong to
    /// the same windows, and come within a millisecond of one another (or as long as there is room, where event time does not
    /// flow), one part travels. It pays where keys come often, and costs a table where they do not. Windows of so many values are as without
    /// it.
    ///
    /// What is late is so with its part, which is counted as so many; what it was cannot be [given](TSet::with_late).
    ///
    /// ```
    /// use dataflow::{Windows, collection, inline};
    ///
    /// let clicks = collection(vec![('a', 1i64), ('a', 3), ('b', 4), ('a', 12)]);
    /// let counts = clicks
    ///     .window_by_key(Windows::tumbling(10), |time| time)
    ///     .combining()
    ///     .aggregate(|of| of.count());
    /// let mut counts = inline(&counts.collect())?;
    /// counts.sort();
    /// assert_eq!(counts, [('a', ((0, 10), 2)), ('a', ((10, 20), 1)), ('b', ((0, 10), 1))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn combining(self) -> Combining<S, N, F> {
        Combining(self)
    }
}

/// Values that are shared out among windows and combined before they are exchanged, until it is said what is made of them.
#[must_use = "nothing is made of the values in windows yet"]
pub struct Combining<S, N, F>(ByWindow<S, N, F>);

impl<S, N, F> fmt::Debug for Combining<S, N, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Combining").field(&self.0).finish()
    }
}

/// What was made of the parts of values in windows.
type Combined<K, T, B> = TSet<Windowed<K, Part<T>, SliceOf<T>, Parts<B>, B, OfParts>, Pass>;

impl<S, N, K, V, F> Combining<S, N, F>
where
    S: Source,
    K: Key,
    V: Record,
    N: Narrow<S::Out, Out = (K, V)>,
    F: Fn(V::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    /// As [`ByWindow::reduce`].
    pub fn reduce<G>(self, reduce: G) -> Combined<K, V, Reducing<V, G>>
    where
        V: Default,
        G: Fn(V, V::View<'_>) -> V + Clone + Send + Sync + 'static,
    {
        let reduce = Reducing::new(reduce);
        self.accumulate("reduce", reduce.clone(), reduce)
    }

    /// As [`ByWindow::aggregate`].
    pub fn aggregate<A: Aggregate<V>>(
        self,
        of: impl FnOnce(Of<V>) -> A,
    ) -> Combined<K, A::State, Merged<A, V>> {
        self.aggregate_as("aggregate", of(Of(PhantomData)))
    }

    /// As [`ByWindow::fold`].
    pub fn fold<T, G, H>(
        self,
        start: T,
        add: G,
        merge: H,
    ) -> Combined<K, T, Merged<Fold<T, G, H>, V>>
    where
        T: Record + Clone + Sync,
        G: Fn(&mut T, V::View<'_>) + Clone + Send + Sync + 'static,
        H: Fn(&mut T, T::View<'_>) + Clone + Send + Sync + 'static,
    {
        self.aggregate_as("fold", Of(PhantomData).fold(start, add, merge))
    }

    fn aggregate_as<A: Aggregate<V>>(
        self,
        name: &'static str,
        aggregate: A,
    ) -> Combined<K, A::State, Merged<A, V>> {
        let before = Before(aggregate.clone(), PhantomData);
        self.accumulate(name, before, Merged(aggregate, PhantomData))
    }

    fn accumulate<A, B>(self, name: &str, before: A, after: B) -> Combined<K, A::State, B>
    where
        A: Accumulate<V>,
        B: Accumulate<A::State, State = A::State>,
    {
        let ByWindow {
            stream,
            windows,
            time,
        } = self.0;
        let windowed = Windowed {
            windows,
            time: slice_of_part::<A::State> as SliceOf<A::State>,
            before: Parts(after.clone()),
            after,
            late: None,
            types: PhantomData,
        };
        let output = move |place: &Place| {
            Combine::<K, V, A, F>::new(windows.shape, time.clone(), before.clone(), place)
        };
        stream.exchange(
            &format!("{name} by window and key, combined"),
            output,
            windowed,
        )
    }
}

/// Makes one state of parts.
#[derive(Debug, Clone)]
pub struct Parts<B>(B);

impl<T: Record, B: Accumulate<T, State = T>> Accumulate<Part<T>> for Parts<B> {
    type State = T;
    type Out = B::Out;

    #[inline]
    fn start(&self, (_, (_, first)): (EventTime, (u64, T::View<'_>))) -> T {
        self.0.start(first)
    }

    #[inline]
    fn add(&self, state: &mut T, (_, (_, more)): (EventTime, (u64, T::View<'_>))) {
        self.0.add(state, more);
    }

    #[inline]
    fn add_and_weigh(
        &self,
        state: &mut T,
        (_, (_, more)): (EventTime, (u64, T::View<'_>)),
    ) -> (usize, usize) {
        self.0.add_and_weigh(state, more)
    }

    fn finish(&self, state: T) -> B::Out {
        self.0.finish(state)
    }
}

/// Gives results, and drops parts that are late.
#[derive(Debug, Clone, Copy)]
pub struct OfParts;

impl<K: Key, T: Record, R: Encode> Give<K, Part<T>, R> for OfParts {
    type Out = (K, (Window, R::Record));

    const IS_BY_KEY: bool = true;

    fn result<D: Push<Self::Out>>(key: K::View<'_>, window: Window, value: R, down: &mut D) {
        (key, (window, value)).with_view(|result| down.push(result));
    }

    fn late<D: Push<Self::Out>>(
        _key: K::View<'_>,
        _part: (EventTime, (u64, T::View<'_>)),
        _down: &mut D,
    ) {
    }

    fn number((_, (number, _)): (EventTime, (u64, T::View<'_>))) -> u64 {
        number
    }
}

/// Parts at which they are sent on, so that a table stays near the size of a cache.
const PARTS_MAX: usize = 1 << 16;
/// Values that there have to be of each part then, for it to pay; otherwise so many are sent on as they are.
const VALUES_A_PART_MIN: u64 = 2;
const PASSED_BEFORE_A_LOOK: u64 = 1 << 20;

/// Combines values before they are exchanged.
struct Combine<K: Key, V: Record, A: Accumulate<V>, F> {
    shape: Shape,
    time: F,
    before: A,
    slices: BTreeMap<EventTime, Slice<K, A::State>>,
    parts: usize,
    account: Account,
    /// Values since there was no part, and those that are to be sent on as they are.
    seen: u64,
    passing: u64,
    /// What is sent on.
    slice: Option<(EventTime, Leaving<K, A::State>)>,
    draining: btree_map::IntoIter<EventTime, Slice<K, A::State>>,
    outbox: Outbox<(K, Part<A::State>)>,
    value: PhantomData<fn() -> V>,
}

/// How many values there are of each key, and what is kept of them.
type Slice<K, T> = States<K, (u64, T)>;
/// The same on its way out.
type Leaving<K, T> = Drain<K, (u64, T)>;

impl<K, V, A, F> Combine<K, V, A, F>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    F: Fn(V::View<'_>) -> EventTime,
{
    fn new(shape: Shape, time: F, before: A, place: &Place) -> Result<Self, Error> {
        Ok(Self {
            shape,
            time,
            before,
            slices: BTreeMap::new(),
            parts: 0,
            account: Account::new(place, "combining values of windows")?,
            seen: 0,
            passing: 0,
            slice: None,
            draining: BTreeMap::new().into_iter(),
            outbox: Outbox::to_each(place)?,
            value: PhantomData,
        })
    }

    /// Adds a value to its part; false if there is no room for more.
    fn combine(&mut self, key: K::View<'_>, value: V::View<'_>, slice: EventTime) -> bool {
        let hash = K::hash(key);
        let account = &mut self.account;
        let states = self.slices.entry(slice).or_insert_with(States::new);
        if let Some((number, state)) = states.find(hash, key) {
            *number += 1;
            // What it has grown by is given up next if there is no room for it.
            return add(&self.before, state, value, account).is_ok();
        }
        let (key, state) = (K::store(key), self.before.start(value));
        let bytes = K::stored_bytes(&key) + state.heap_bytes();
        if states.make_room(account).is_err() || account.take(bytes).is_err() {
            self.send(hash, K::stored(&key), slice, 1, &state);
            return false;
        }
        states.put(hash, key, (1, state));
        self.parts += 1;
        self.parts < PARTS_MAX
    }

    /// Sends a part.
    fn send(
        &mut self,
        hash: u64,
        key: K::View<'_>,
        slice: EventTime,
        number: u64,
        state: &A::State,
    ) {
        let lane = self.outbox.lane_of(hash);
        state.with_view(|state| {
            let part = (slice, (number, A::State::shorten(state)));
            self.outbox.push_to(lane, &(K::shorten(key), part));
        });
    }

    #[cold]
    fn start_drain(&mut self) {
        if self.parts >= PARTS_MAX && self.seen < VALUES_A_PART_MIN * self.parts as u64 {
            self.passing = PASSED_BEFORE_A_LOOK;
        }
        (self.parts, self.seen) = (0, 0);
        if self.is_sent() {
            self.draining = mem::take(&mut self.slices).into_iter();
        }
        self.send_on();
    }

    /// Whether what was to be sent on is out.
    fn is_sent(&self) -> bool {
        self.slice.is_none() && self.draining.len() == 0
    }

    /// Sends on parts, as long as there is room; true when all that were to be are out.
    fn send_on(&mut self) -> bool {
        while !self.outbox.is_full() {
            let Some((slice, drain)) = &mut self.slice else {
                let Some((slice, mut states)) = self.draining.next() else {
                    return true;
                };
                self.slice = Some((slice, states.drain()));
                continue;
            };
            let slice = *slice;
            let Some(entry) = drain.next(&mut self.account) else {
                self.slice = None;
                continue;
            };
            let (number, state) = &entry.state;
            let bytes = entry.key_bytes() + state.heap_bytes();
            self.send(entry.hash, K::stored(&entry.key), slice, *number, state);
            self.account.give_back(bytes);
        }
        self.is_sent()
    }
}

impl<K, V, A, F> Push<(K, V)> for Combine<K, V, A, F>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    F: Fn(V::View<'_>) -> EventTime,
{
    #[inline]
    fn push(&mut self, (key, value): (K::View<'_>, V::View<'_>)) {
        let time = (self.time)(value);
        let slice = match self.shape {
            Shape::Aligned { size, step } => slice_of(time, size, step),
            // Values of the same time are in the same session.
            Shape::Session { .. } => time,
            Shape::Count { .. } => {
                self.passing = 1;
                time
            }
        };
        if self.passing > 0 {
            self.passing -= 1;
            let state = self.before.start(value);
            self.send(K::hash(key), key, slice, 1, &state);
            return;
        }
        self.seen += 1;
        if !self.combine(key, value, slice) {
            self.start_drain();
        }
    }
}

impl<K, V, A, F> Sink<(K, V)> for Combine<K, V, A, F>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    F: Fn(V::View<'_>) -> EventTime,
{
    #[inline]
    fn is_full(&self) -> bool {
        self.slice.is_some() || self.draining.len() > 0 || self.outbox.is_full()
    }
}

impl<K, V, A, F> Output<(K, V)> for Combine<K, V, A, F>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    F: Fn(V::View<'_>) -> EventTime,
{
    fn poll(&mut self) -> Result<bool, Error> {
        let moved = self.outbox.poll()?;
        let sends = !self.is_sent() && !self.outbox.is_full();
        self.send_on();
        Ok(moved || sends)
    }

    fn flush(&mut self, watermark: Watermark) -> Result<bool, Error> {
        if self.send_on() && !self.slices.is_empty() {
            self.start_drain();
        }
        let is_out = self.is_sent() && self.slices.is_empty();
        // Event time waits for the parts that come before it.
        let told = if is_out {
            watermark
        } else {
            Watermark::UNKNOWN
        };
        self.outbox.flush(told)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        if self.send_on() && !self.slices.is_empty() {
            self.start_drain();
        }
        let is_out = self.is_sent() && self.slices.is_empty();
        Ok(is_out && self.outbox.finish()?)
    }

    fn stopped(&mut self, reader: u32) {
        self.outbox.stopped(reader);
    }

    fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }
}
