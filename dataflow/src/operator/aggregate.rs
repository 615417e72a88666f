//! One value of many: of all, or of those of each key.
//!
//! What is kept on the way is a record too, so each instance makes its part of it, and only the parts travel.

use std::{cmp::Ordering, fmt, marker::PhantomData, ops::AddAssign};

use transport::{Buffer, Rank, Reservation};

use crate::{
    Encode, Error, Key, Record,
    exchange::{Outbox, Receiver},
    graph::Extent,
    operator::{
        narrow::Pass,
        reduce::{Accumulate, Reduced, Reducing},
    },
    stage::{Input, KEPT_BYTES, Narrow, Output, Place, Progress, Push, Sink},
    tset::{Received, Source, TSet},
};

/// A way to make one value of many. It has to give the same whatever the order of the values, and however they are
/// shared out before they are merged. A tuple of aggregates is one: all are made at once.
pub trait Aggregate<T: Record>: Clone + Send + Sync + 'static {
    /// What is kept on the way.
    type State: Record;

    /// What is made of it in the end.
    type Out: Encode;

    /// What there is before the first value.
    fn start(&self) -> Self::State;

    /// Adds a value.
    fn add(&self, state: &mut Self::State, value: T::View<'_>);

    /// Adds what was kept elsewhere.
    fn merge(&self, state: &mut Self::State, other: <Self::State as Record>::View<'_>);

    /// Ends it.
    fn finish(&self, state: Self::State) -> Self::Out;
}

/// Makes aggregates of records of type `T`.
pub struct Of<T>(pub(crate) PhantomData<fn() -> T>);

impl<T: Record> Of<T> {
    /// How many there are.
    pub fn count(&self) -> Count {
        Count
    }

    /// The sum of what `function` makes of each.
    pub fn sum<N, F>(&self, function: F) -> Sum<F, N>
    where
        F: Fn(T::View<'_>) -> N + Clone + Send + Sync + 'static,
    {
        Sum(function, PhantomData)
    }

    /// The least of what `function` makes of each, if there is any.
    pub fn min<O, F>(&self, function: F) -> Extreme<F, O>
    where
        F: Fn(T::View<'_>) -> O + Clone + Send + Sync + 'static,
    {
        Extreme(function, Ordering::Less, PhantomData)
    }

    /// The greatest of what `function` makes of each, if there is any.
    pub fn max<O, F>(&self, function: F) -> Extreme<F, O>
    where
        F: Fn(T::View<'_>) -> O + Clone + Send + Sync + 'static,
    {
        Extreme(function, Ordering::Greater, PhantomData)
    }

    /// The mean of what `function` makes of each, if there is any.
    pub fn mean<F>(&self, function: F) -> Mean<F>
    where
        F: Fn(T::View<'_>) -> f64 + Clone + Send + Sync + 'static,
    {
        Mean(function)
    }

    /// What `add` makes of `start` and each, and `merge` of the parts.
    pub fn fold<A, F, G>(&self, start: A, add: F, merge: G) -> Fold<A, F, G>
    where
        A: Record + Clone + Sync,
        F: Fn(&mut A, T::View<'_>) + Clone + Send + Sync + 'static,
        G: Fn(&mut A, A::View<'_>) + Clone + Send + Sync + 'static,
    {
        Fold { start, add, merge }
    }
}

impl<T> fmt::Debug for Of<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Of")
    }
}

/// Counts.
#[derive(Debug, Clone, Copy)]
pub struct Count;

impl<T: Record> Aggregate<T> for Count {
    type State = u64;
    type Out = u64;

    fn start(&self) -> u64 {
        0
    }

    #[inline]
    fn add(&self, state: &mut u64, _value: T::View<'_>) {
        *state += 1;
    }

    #[inline]
    fn merge(&self, state: &mut u64, other: u64) {
        *state += other;
    }

    fn finish(&self, state: u64) -> u64 {
        state
    }
}

/// Adds up. Integers wrap around as their `+=` does.
#[derive(Debug)]
pub struct Sum<F, N>(F, PhantomData<fn() -> N>);

impl<F: Clone, N> Clone for Sum<F, N> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<T, F, N> Aggregate<T> for Sum<F, N>
where
    T: Record,
    F: Fn(T::View<'_>) -> N + Clone + Send + Sync + 'static,
    N: Record + Default + AddAssign,
{
    type State = N;
    type Out = N;

    fn start(&self) -> N {
        N::default()
    }

    #[inline]
    fn add(&self, state: &mut N, value: T::View<'_>) {
        *state += (self.0)(value);
    }

    #[inline]
    fn merge(&self, state: &mut N, other: N::View<'_>) {
        *state += N::own(other);
    }

    fn finish(&self, state: N) -> N {
        state
    }
}

/// Keeps the least or the greatest.
#[derive(Debug)]
pub struct Extreme<F, O>(F, Ordering, PhantomData<fn() -> O>);

impl<F, O: Ord> Extreme<F, O> {
    fn take(&self, state: &mut Option<O>, other: O) {
        if state.as_ref().is_none_or(|best| other.cmp(best) == self.1) {
            *state = Some(other);
        }
    }
}

impl<F: Clone, O> Clone for Extreme<F, O> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), self.1, PhantomData)
    }
}

impl<T, F, O> Aggregate<T> for Extreme<F, O>
where
    T: Record,
    F: Fn(T::View<'_>) -> O + Clone + Send + Sync + 'static,
    O: Record + Ord,
{
    type State = Option<O>;
    type Out = Option<O>;

    fn start(&self) -> Option<O> {
        None
    }

    #[inline]
    fn add(&self, state: &mut Option<O>, value: T::View<'_>) {
        self.take(state, (self.0)(value));
    }

    fn merge(&self, state: &mut Option<O>, other: Option<O::View<'_>>) {
        if let Some(other) = other {
            self.take(state, O::own(other));
        }
    }

    fn finish(&self, state: Option<O>) -> Option<O> {
        state
    }
}

/// The arithmetic mean.
#[derive(Debug, Clone, Copy)]
pub struct Mean<F>(F);

impl<T, F> Aggregate<T> for Mean<F>
where
    T: Record,
    F: Fn(T::View<'_>) -> f64 + Clone + Send + Sync + 'static,
{
    type State = (f64, u64);
    type Out = Option<f64>;

    fn start(&self) -> (f64, u64) {
        (0.0, 0)
    }

    #[inline]
    fn add(&self, (sum, number): &mut (f64, u64), value: T::View<'_>) {
        *sum += (self.0)(value);
        *number += 1;
    }

    fn merge(&self, (sum, number): &mut (f64, u64), (more, numbers): (f64, u64)) {
        *sum += more;
        *number += numbers;
    }

    fn finish(&self, (sum, number): (f64, u64)) -> Option<f64> {
        (number > 0).then(|| sum / number as f64)
    }
}

/// What functions of the program make.
#[derive(Debug, Clone)]
pub struct Fold<A, F, G> {
    start: A,
    add: F,
    merge: G,
}

impl<T, A, F, G> Aggregate<T> for Fold<A, F, G>
where
    T: Record,
    A: Record + Clone + Sync,
    F: Fn(&mut A, T::View<'_>) + Clone + Send + Sync + 'static,
    G: Fn(&mut A, A::View<'_>) + Clone + Send + Sync + 'static,
{
    type State = A;
    type Out = A;

    fn start(&self) -> A {
        self.start.clone()
    }

    #[inline]
    fn add(&self, state: &mut A, value: T::View<'_>) {
        (self.add)(state, value);
    }

    #[inline]
    fn merge(&self, state: &mut A, other: A::View<'_>) {
        (self.merge)(state, other);
    }

    fn finish(&self, state: A) -> A {
        state
    }
}

macro_rules! tuple {
    ($($type:ident $index:tt),*) => {
        impl<T: Record, $($type: Aggregate<T>),*> Aggregate<T> for ($($type,)*) {
            type State = ($($type::State,)*);
            type Out = ($($type::Out,)*);

            fn start(&self) -> Self::State {
                ($(self.$index.start(),)*)
            }

            #[inline]
            fn add(&self, state: &mut Self::State, value: T::View<'_>) {
                $(self.$index.add(&mut state.$index, value);)*
            }

            #[inline]
            fn merge(&self, state: &mut Self::State, other: <Self::State as Record>::View<'_>) {
                $(self.$index.merge(&mut state.$index, other.$index);)*
            }

            fn finish(&self, state: Self::State) -> Self::Out {
                ($(self.$index.finish(state.$index),)*)
            }
        }
    };
}

tuple!(A 0);
tuple!(A 0, B 1);
tuple!(A 0, B 1, C 2);
tuple!(A 0, B 1, C 2, D 3);
tuple!(A 0, B 1, C 2, D 3, E 4);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6);
tuple!(A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7);

/// An aggregate before the exchange: what it keeps is what travels.
#[derive(Debug)]
pub struct Before<A, T>(pub(crate) A, pub(crate) PhantomData<fn() -> T>);

impl<A: Clone, T> Clone for Before<A, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<T: Record, A: Aggregate<T>> Accumulate<T> for Before<A, T> {
    type State = A::State;
    type Out = A::State;

    #[inline]
    fn start(&self, first: T::View<'_>) -> A::State {
        let mut state = self.0.start();
        self.0.add(&mut state, first);
        state
    }

    #[inline]
    fn add(&self, state: &mut A::State, more: T::View<'_>) {
        self.0.add(state, more);
    }

    fn finish(&self, state: A::State) -> A::State {
        state
    }
}

/// An aggregate behind the exchange: of what others kept.
pub struct Merged<A, T>(pub(crate) A, pub(crate) PhantomData<fn() -> T>);

impl<A: Clone, T> Clone for Merged<A, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<A, T> fmt::Debug for Merged<A, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Merged")
    }
}

impl<T: Record, A: Aggregate<T>> Accumulate<A::State> for Merged<A, T> {
    type State = A::State;
    type Out = A::Out;

    #[inline]
    fn start(&self, first: <A::State as Record>::View<'_>) -> A::State {
        A::State::own(first)
    }

    #[inline]
    fn add(&self, state: &mut A::State, more: <A::State as Record>::View<'_>) {
        self.0.merge(state, more);
    }

    fn finish(&self, state: A::State) -> A::Out {
        self.0.finish(state)
    }
}

impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// Makes one record of all, on one instance: several aggregates at once, say. It is there also when there
    /// are no records. Parts are merged in the order of the ranks, so floats give the same each time where each
    /// rank sees its records in one order.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![3u64, 1, 2])
    ///     .aggregate(|of| (of.count(), of.sum(|n| n), of.min(|n| n), of.mean(|n| n as f64)))
    ///     .collect();
    /// assert_eq!(inline(&job)?, [(3, 6, Some(1), Some(2.0))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn aggregate<A: Aggregate<T>>(
        self,
        of: impl FnOnce(Of<T>) -> A,
    ) -> TSet<Made<A::State, Whole<A, T>>, Pass> {
        self.aggregate_as("aggregate", of(Of(PhantomData)))
    }

    /// How many records there are.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// assert_eq!(inline(&collection(vec!['a', 'b']).count().collect())?, [2]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn count(self) -> TSet<Made<u64, Whole<Count, T>>, Pass> {
        self.aggregate_as("count", Count)
    }

    /// Adds each record to a copy of `start`, one on each instance, and merges these on one instance.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let longest = collection(vec!["a".to_owned(), "abc".to_owned()])
    ///     .fold(0u64, |max, text| *max = (*max).max(text.len() as u64), |max, other| *max = (*max).max(other));
    /// assert_eq!(inline(&longest.collect())?, [3]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
    pub fn fold<A, F, G>(
        self,
        start: A,
        add: F,
        merge: G,
    ) -> TSet<Made<A, Whole<Fold<A, F, G>, T>>, Pass>
    where
        A: Record + Clone + Sync,
        F: Fn(&mut A, T::View<'_>) + Clone + Send + Sync + 'static,
        G: Fn(&mut A, A::View<'_>) + Clone + Send + Sync + 'static,
    {
        self.aggregate_as("fold", Fold { start, add, merge })
    }

    fn aggregate_as<A: Aggregate<T>>(
        self,
        name: &'static str,
        aggregate: A,
    ) -> TSet<Made<A::State, Whole<A, T>>, Pass> {
        let before = Before(aggregate.clone(), PhantomData);
        let after = Whole(Merged(aggregate, PhantomData));
        self.make(name, before, after)
    }

    /// Reduces all records to one, on one instance; there is none if there were none. `reduce` has to be associative
    /// and commutative.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// assert_eq!(inline(&collection(vec![3u64, 5, 4]).reduce(|a, b| a.max(b)).collect())?, [5]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn reduce<F>(self, reduce: F) -> TSet<Made<T, Reducing<T, F>>, Pass>
    where
        T: Default,
        F: Fn(T, T::View<'_>) -> T + Clone + Send + Sync + 'static,
    {
        let reduce = Reducing::new(reduce);
        self.make("reduce", reduce.clone(), reduce)
    }

    /// Reduces all records to one, which every instance that follows gets: [`reduce`](Self::reduce), and then
    /// [`broadcast`](Self::broadcast), so that all get the same bits.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let most = collection(vec![3u64, 5, 4]).all_reduce(|a, b| a.max(b)).parallelism(2);
    /// assert_eq!(inline(&most.collect())?, [5, 5]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn all_reduce<F>(self, reduce: F) -> TSet<Received<T>, Pass>
    where
        T: Default,
        F: Fn(T, T::View<'_>) -> T + Clone + Send + Sync + 'static,
    {
        self.reduce(reduce).broadcast()
    }

    /// Makes a part of what is kept on each instance, and the whole on one.
    fn make<A, B>(self, name: &'static str, before: A, after: B) -> TSet<Made<A::State, B>, Pass>
    where
        A: Accumulate<T>,
        B: Conclude<A::State>,
    {
        let output = move |place: &Place| {
            Ok(Part::<T, A> {
                accumulate: before.clone(),
                state: None,
                outbox: Outbox::to_each(place)?,
            })
        };
        let source = Made {
            name,
            conclude: after,
            state: PhantomData,
        };
        self.exchange(name, output, source).on_one()
    }
}

impl<S, N, K, V> TSet<S, N>
where
    S: Source,
    K: Key,
    V: Record,
    N: Narrow<S::Out, Out = (K, V)>,
{
    /// Makes one record of the values of each key: several aggregates at once, say.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let sales = collection(vec![('a', 3u64), ('b', 1), ('a', 5)])
    ///     .aggregate_by_key(|of| (of.count(), of.max(|price| price)))
    ///     .collect();
    /// let mut sales = inline(&sales)?;
    /// sales.sort();
    /// assert_eq!(sales, [('a', (2, Some(5))), ('b', (1, Some(1)))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
    pub fn aggregate_by_key<A: Aggregate<V>>(
        self,
        of: impl FnOnce(Of<V>) -> A,
    ) -> TSet<Reduced<K, A::State, Merged<A, V>>, Pass> {
        let aggregate = of(Of(PhantomData));
        let before = Before(aggregate.clone(), PhantomData);
        self.accumulate_by_key("aggregate_by_key", before, Merged(aggregate, PhantomData))
    }
}

/// Says what is made of all parts, be there any or not.
pub trait Conclude<S: Record>: Accumulate<S> {
    /// What there is when there were no parts.
    fn nothing(&self) -> Option<Self::State>;
}

impl<V, F> Conclude<V> for Reducing<V, F>
where
    V: Record + Default,
    F: Fn(V, V::View<'_>) -> V + Clone + Send + Sync + 'static,
{
    fn nothing(&self) -> Option<V> {
        None
    }
}

/// An aggregate of all records.
pub struct Whole<A, T>(Merged<A, T>);

impl<A: Clone, T> Clone for Whole<A, T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A, T> fmt::Debug for Whole<A, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Whole")
    }
}

impl<T: Record, A: Aggregate<T>> Accumulate<A::State> for Whole<A, T> {
    type State = A::State;
    type Out = A::Out;

    fn start(&self, first: <A::State as Record>::View<'_>) -> A::State {
        self.0.start(first)
    }

    fn add(&self, state: &mut A::State, more: <A::State as Record>::View<'_>) {
        self.0.add(state, more);
    }

    fn finish(&self, state: A::State) -> A::Out {
        self.0.finish(state)
    }
}

impl<T: Record, A: Aggregate<T>> Conclude<A::State> for Whole<A, T> {
    fn nothing(&self) -> Option<A::State> {
        Some(self.0.0.start())
    }
}

/// Makes one instance's part.
struct Part<T: Record, A: Accumulate<T>> {
    accumulate: A,
    state: Option<A::State>,
    outbox: Outbox<A::State>,
}

impl<T: Record, A: Accumulate<T>> Push<T> for Part<T, A> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        match &mut self.state {
            Some(state) => self.accumulate.add(state, view),
            none => *none = Some(self.accumulate.start(view)),
        }
    }
}

impl<T: Record, A: Accumulate<T>> Sink<T> for Part<T, A> {
    #[inline]
    fn is_full(&self) -> bool {
        false
    }
}

impl<T: Record, A: Accumulate<T>> Output<T> for Part<T, A> {
    fn poll(&mut self) -> Result<bool, Error> {
        self.outbox.poll()
    }

    fn finish(&mut self) -> Result<bool, Error> {
        if let Some(state) = self.state.take() {
            self.outbox.push_to(0, &state);
        }
        self.outbox.finish()
    }

    fn stopped(&mut self, reader: u32) {
        self.outbox.stopped(reader);
    }

    fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }

    fn again(&mut self, run: u32) -> bool {
        self.outbox.again(run)
    }
}

/// One record made of all.
pub struct Made<I, A> {
    name: &'static str,
    conclude: A,
    state: PhantomData<fn() -> I>,
}

impl<I: Record, A: Conclude<I>> Source for Made<I, A> {
    type Input = Make<I, A>;
    type Out = <A::Out as Encode>::Record;

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(Make {
            receiver: Receiver::new(place, 0),
            conclude: self.conclude.clone(),
            parts: Vec::new(),
            is_first: place.instance == 0,
            bytes: 0,
            reservation: place.ledger.reserve(self.name, 0)?,
        })
    }

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }
}

impl<I, A> fmt::Debug for Made<I, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Made")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Makes the whole of the parts, and gives it when all have come.
pub struct Make<I, A> {
    receiver: Receiver<I>,
    conclude: A,
    /// The parts, and who sent them.
    parts: Vec<(Rank, I)>,
    /// Whether it is for this instance to give it.
    is_first: bool,
    /// Bytes of the parts.
    bytes: u64,
    reservation: Reservation,
}

impl<I: Record, A: Conclude<I>> Input for Make<I, A> {
    type Out = <A::Out as Encode>::Record;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.receiver.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.receiver.ended(port, from);
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let mut progress = Progress::None;
        while let Some((from, batch)) = self.receiver.next_batch() {
            for view in batch.views(0) {
                let part = I::own(view);
                self.bytes += (size_of::<(Rank, I)>() + part.heap_bytes()) as u64;
                self.reservation.grow_to(self.bytes)?;
                self.parts.push((from, part));
            }
            progress = Progress::Made;
        }
        if !self.receiver.is_done() {
            return Ok(progress);
        }
        self.parts.sort_by_key(|&(from, _)| from);
        let mut whole = None;
        for (_, part) in self.parts.drain(..) {
            part.with_view(|view| match &mut whole {
                Some(state) => self.conclude.add(state, view),
                none => *none = Some(self.conclude.start(view)),
            });
        }
        if let Some(state) = whole.or_else(|| self.conclude.nothing())
            && self.is_first
        {
            self.conclude
                .finish(state)
                .with_view(|view| down.push(view));
        }
        Ok(Progress::Done)
    }

    fn again(&mut self) -> bool {
        self.parts.clear();
        self.bytes = 0;
        self.reservation.shrink_to(KEPT_BYTES);
        self.receiver.again()
    }
}

impl<I, A> fmt::Debug for Make<I, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Make")
            .field("parts", &self.parts.len())
            .finish_non_exhaustive()
    }
}
