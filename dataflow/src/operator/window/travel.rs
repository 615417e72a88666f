//! How the values of windows travel: combined where they arise, or one by one.
//!
//! Of the values of a key that belong to the same slice of time, and so to the same windows, one part travels instead of each.
//! Parts go on before event time does, and when there are many; so nothing is later than it would be.

use super::{ByWindow, Shape, Windowed, Windows, sliced::slice_of};
use crate::{
    Encode, EventTime, Key, Record,
    exchange::Outbox,
    operator::{
        combine::{Combine, Combined},
        join::by_key,
        narrow::Pass,
        reduce::Accumulate,
    },
    stage::{Narrow, Place},
    tset::{Source, TSet},
};

impl<S, N, F> ByWindow<S, N, F> {
    /// Has each value travel by itself, so that what is late can be [given](TSet::with_late) as it was. Otherwise values are
    /// combined before they are exchanged, where they come often enough for that to pay: of those of a key that belong to the
    /// same windows, and come within a millisecond of one another (or as long as there is room, where event time does not
    /// flow), one part travels. What is late is so with its part then, which is [counted](TSet::count_late) as so many.
    ///
    /// ```
    /// use dataflow::{Windows, collection, inline};
    ///
    /// let counts = collection(vec![('a', 1i64), ('a', 12), ('a', 3)])
    ///     .parallelism(1)
    ///     .watermarks(0, |(_, time)| time)
    ///     .window_by_key(Windows::tumbling(10), |time| time)
    ///     .one_by_one()
    ///     .aggregate(|of| of.count())
    ///     .with_late();
    /// let mut values = 0;
    /// for (result, late) in inline(&counts.collect())? {
    ///     values += result.map_or(0, |(_key, (_window, count))| count) + u64::from(late.is_some());
    /// }
    /// assert_eq!(values, 3);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn one_by_one(self) -> ByWindow<S, N, F, OneByOne> {
        self.travelling()
    }
}

/// How the values travel of which windows are made.
pub trait Travel: 'static {
    /// What is made in windows by key of values that travelled so and whose times `F` finds: states of type `T`, by `A` of what
    /// travels and by `B` of others.
    type Made<K: Key, V: Record, F, T: Record, A, B>;

    /// Sends the values of a stream on their way.
    fn send<S, N, K, V, F, A, B>(
        stream: TSet<S, N>,
        windows: Windows,
        time: F,
        name: &'static str,
        of: (A, B),
    ) -> Self::Made<K, V, F, A::State, A, B>
    where
        S: Source,
        N: Narrow<S::Out, Out = (K, V)>,
        K: Key,
        V: Record,
        F: Fn(V::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
        A: Accumulate<V>,
        B: Accumulate<A::State, State = A::State>;
}

/// Each value travels by itself.
#[derive(Debug, Clone, Copy)]
pub struct OneByOne;

impl Travel for OneByOne {
    type Made<K: Key, V: Record, F, T: Record, A, B> = TSet<Windowed<K, V, Values<F>, A, B>, Pass>;

    fn send<S, N, K, V, F, A, B>(
        stream: TSet<S, N>,
        windows: Windows,
        time: F,
        name: &'static str,
        (before, after): (A, B),
    ) -> Self::Made<K, V, F, A::State, A, B>
    where
        S: Source,
        N: Narrow<S::Out, Out = (K, V)>,
        K: Key,
        V: Record,
        F: Fn(V::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
        A: Accumulate<V>,
        B: Accumulate<A::State, State = A::State>,
    {
        let windowed = Windowed::new(name, windows, Values(time), before, after);
        stream.exchange_keys(name, by_key, windowed)
    }
}

/// Values are combined before they travel, where that pays.
#[derive(Debug, Clone, Copy)]
pub struct Together;

impl Travel for Together {
    type Made<K: Key, V: Record, F, T: Record, A, B> =
        TSet<Windowed<K, Part<T>, Parts, OfParts<B>, B>, Pass>;

    fn send<S, N, K, V, F, A, B>(
        stream: TSet<S, N>,
        windows: Windows,
        time: F,
        name: &'static str,
        (before, after): (A, B),
    ) -> Self::Made<K, V, F, A::State, A, B>
    where
        S: Source,
        N: Narrow<S::Out, Out = (K, V)>,
        K: Key,
        V: Record,
        F: Fn(V::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
        A: Accumulate<V>,
        B: Accumulate<A::State, State = A::State>,
    {
        let windowed = Windowed::new(name, windows, Parts, OfParts(after.clone()), after);
        let output = move |place: &Place| {
            let slice = InSlice {
                shape: windows.shape,
                time: time.clone(),
                accumulate: Counted(before.clone()),
            };
            match windows.shape {
                // No two values belong to the same windows of so many.
                Shape::Count { .. } => Combine::<K, V, _>::never(slice, place),
                _ => Combine::new(slice, place),
            }
        };
        stream.exchange_keys(name, output, windowed)
    }
}

/// What travels of some values of a key: a time in their slice, how many they are, and what was kept of them.
pub type Part<T> = (EventTime, (u64, T));

/// What windows have to know of what travelled.
pub trait Travelled<V: Record>: Clone + Send + Sync + 'static {
    /// The time by which it belongs to its windows.
    fn time(&self, value: V::View<'_>) -> EventTime;

    /// How many values it is.
    fn number(&self, value: V::View<'_>) -> u64;
}

/// Values, of which a function finds the times.
#[derive(Debug, Clone, Copy)]
pub struct Values<F>(F);

impl<V, F> Travelled<V> for Values<F>
where
    V: Record,
    F: Fn(V::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    #[inline]
    fn time(&self, value: V::View<'_>) -> EventTime {
        (self.0)(value)
    }

    fn number(&self, _value: V::View<'_>) -> u64 {
        1
    }
}

/// Parts, which know their slices.
#[derive(Debug, Clone, Copy)]
pub struct Parts;

impl<T: Record> Travelled<Part<T>> for Parts {
    #[inline]
    fn time(&self, (slice, _): (EventTime, (u64, T::View<'_>))) -> EventTime {
        slice
    }

    fn number(&self, (_, (number, _)): (EventTime, (u64, T::View<'_>))) -> u64 {
        number
    }
}

/// Values of a key are combined that belong to the same slice of time.
struct InSlice<A, F> {
    shape: Shape,
    time: F,
    accumulate: Counted<A>,
}

impl<K, V, A, F> Combined<K, V> for InSlice<A, F>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    F: Fn(V::View<'_>) -> EventTime,
{
    type By = (EventTime, K);
    type Accumulate = Counted<A>;
    type Sent = (K, Part<A::State>);

    const IS_LIVE: bool = true;

    #[inline]
    fn accumulate(&self) -> &Counted<A> {
        &self.accumulate
    }

    #[inline]
    fn by<'v>(&self, key: K::View<'v>, value: V::View<'v>) -> (EventTime, K::View<'v>) {
        let time = (self.time)(value);
        let slice = match self.shape {
            Shape::Aligned { size, step } => slice_of(time, size, step),
            // Values of the same time are in the same session.
            Shape::Session { .. } | Shape::Count { .. } => time,
        };
        (slice, key)
    }

    /// Any time in a slice says which slice that is.
    #[inline]
    fn alone<'v>(&self, key: K::View<'v>, value: V::View<'v>) -> (EventTime, K::View<'v>) {
        ((self.time)(value), key)
    }

    #[inline]
    fn hash((_, key): (EventTime, K::View<'_>)) -> u64 {
        K::hash(key)
    }

    #[inline]
    fn send(
        (slice, key): (EventTime, K::View<'_>),
        (number, state): &(u64, A::State),
        lane: usize,
        outbox: &mut Outbox<Self::Sent>,
    ) {
        state.with_view(|state| {
            let part = (slice, (*number, A::State::shorten(state)));
            outbox.push_to(lane, &(K::shorten(key), part));
        });
    }
}

/// Counts values besides.
#[derive(Clone)]
struct Counted<A>(A);

impl<V: Record, A: Accumulate<V>> Accumulate<V> for Counted<A> {
    type State = (u64, A::State);
    type Out = (u64, A::State);

    #[inline]
    fn start(&self, first: V::View<'_>) -> (u64, A::State) {
        (1, self.0.start(first))
    }

    #[inline]
    fn add(&self, (number, state): &mut (u64, A::State), more: V::View<'_>) {
        *number += 1;
        self.0.add(state, more);
    }

    #[inline]
    fn add_and_weigh(
        &self,
        (number, state): &mut (u64, A::State),
        more: V::View<'_>,
    ) -> (usize, usize) {
        *number += 1;
        self.0.add_and_weigh(state, more)
    }

    fn finish(&self, counted: (u64, A::State)) -> (u64, A::State) {
        counted
    }
}

/// Makes one state of parts.
#[derive(Debug, Clone)]
pub struct OfParts<B>(B);

impl<T: Record, B: Accumulate<T, State = T>> Accumulate<Part<T>> for OfParts<B> {
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
