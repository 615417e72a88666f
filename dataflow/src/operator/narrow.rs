//! Operators that look at one record at a time.

use std::{fmt, marker::PhantomData};

use crate::{
    Encode, Record,
    blame::Culprit,
    stage::{Failure, Narrow, Place, Push},
    time::{Clock, Watermark},
};

/// Passes every record on.
#[derive(Debug, Clone, Copy)]
pub struct Pass;

impl<T: Record> Narrow<T> for Pass {
    type Out = T;

    #[inline]
    fn push<D: Push<T>>(&mut self, view: T::View<'_>, down: &mut D) {
        down.push(view);
    }

    fn keeps_keys(&self) -> bool {
        true
    }
}

/// One operator after another.
#[derive(Debug)]
pub struct Then<N, M, T> {
    first: N,
    second: M,
    /// The second.
    culprit: Culprit,
    between: PhantomData<fn(T)>,
}

impl<N, M, T> Then<N, M, T> {
    pub(crate) fn new(first: N, second: M, culprit: Culprit) -> Self {
        Self {
            first,
            second,
            culprit,
            between: PhantomData,
        }
    }

    /// The operator that was written last.
    pub(crate) fn last_mut(&mut self) -> &mut M {
        &mut self.second
    }
}

impl<N: Clone, M: Clone, T> Clone for Then<N, M, T> {
    fn clone(&self) -> Self {
        Self::new(self.first.clone(), self.second.clone(), self.culprit)
    }

    fn clone_from(&mut self, source: &Self) {
        self.first.clone_from(&source.first);
        self.second.clone_from(&source.second);
    }
}

/// The second of two operators in front of what follows.
struct Second<'a, M, D> {
    operator: &'a mut M,
    culprit: Culprit,
    down: &'a mut D,
}

impl<T: Record, M: Narrow<T>, D: Push<M::Out>> Push<T> for Second<'_, M, D> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        self.culprit.calls(|| self.operator.push(view, self.down));
    }
}

impl<S: Record, T: Record, N: Narrow<S, Out = T>, M: Narrow<T>> Narrow<S> for Then<N, M, T> {
    type Out = M::Out;

    #[inline]
    fn push<D: Push<M::Out>>(&mut self, view: S::View<'_>, down: &mut D) {
        self.first.push(
            view,
            &mut Second {
                operator: &mut self.second,
                culprit: self.culprit,
                down,
            },
        );
    }

    fn begin(&mut self, place: &Place) {
        self.first.begin(place);
        self.second.begin(place);
    }

    fn end<D: Push<M::Out>>(&mut self, down: &mut D) {
        self.first.end(&mut Second {
            operator: &mut self.second,
            culprit: self.culprit,
            down,
        });
        self.culprit.calls(|| self.second.end(down));
    }

    fn watermark(&mut self, before: Watermark, clock: &Clock) -> Watermark {
        let between = self.first.watermark(before, clock);
        self.second.watermark(between, clock)
    }

    fn gives_time(&self) -> bool {
        self.first.gives_time() || self.second.gives_time()
    }

    fn keeps_keys(&self) -> bool {
        self.first.keeps_keys() && self.second.keeps_keys()
    }

    #[inline]
    fn has_failed(&self) -> bool {
        self.first.has_failed() || self.second.has_failed()
    }

    fn failure(&mut self) -> Option<Failure> {
        self.first.failure().or_else(|| self.second.failure())
    }
}

/// Turns each record into another.
#[derive(Debug, Clone, Copy)]
pub struct Map<F>(pub(crate) F);

impl<T, E, F> Narrow<T> for Map<F>
where
    T: Record,
    E: Encode,
    F: FnMut(T::View<'_>) -> E + Clone + Send + Sync + 'static,
{
    type Out = E::Record;

    #[inline]
    fn push<D: Push<E::Record>>(&mut self, view: T::View<'_>, down: &mut D) {
        (self.0)(view).with_view(|view| down.push(view));
    }
}

/// Keeps the records that a function says yes to.
#[derive(Debug, Clone, Copy)]
pub struct Filter<F>(pub(crate) F);

impl<T, F> Narrow<T> for Filter<F>
where
    T: Record,
    F: FnMut(T::View<'_>) -> bool + Clone + Send + Sync + 'static,
{
    type Out = T;

    #[inline]
    fn push<D: Push<T>>(&mut self, view: T::View<'_>, down: &mut D) {
        if (self.0)(view) {
            down.push(view);
        }
    }

    fn keeps_keys(&self) -> bool {
        true
    }
}

/// Makes each record the key of nothing.
#[derive(Debug, Clone, Copy)]
pub struct Keyed;

impl<T: Record> Narrow<T> for Keyed {
    type Out = (T, ());

    #[inline]
    fn push<D: Push<(T, ())>>(&mut self, view: T::View<'_>, down: &mut D) {
        down.push((view, ()));
    }
}

/// Keeps the keys of pairs.
#[derive(Debug, Clone, Copy)]
pub struct Keys;

impl<K: Record, V: Record> Narrow<(K, V)> for Keys {
    type Out = K;

    #[inline]
    fn push<D: Push<K>>(&mut self, (key, _): (K::View<'_>, V::View<'_>), down: &mut D) {
        down.push(key);
    }
}

/// Pairs each record with the number of the instance.
#[derive(Debug, Clone, Copy, Default)]
pub struct Numbered(u32);

impl<T: Record> Narrow<T> for Numbered {
    type Out = (u32, T);

    #[inline]
    fn push<D: Push<(u32, T)>>(&mut self, view: T::View<'_>, down: &mut D) {
        down.push((self.0, view));
    }

    fn begin(&mut self, place: &Place) {
        self.0 = place.instance;
    }
}

/// Turns each record into any number of others.
pub struct FlatMap<F, U> {
    function: F,
    record: PhantomData<fn(U)>,
}

impl<F, U> FlatMap<F, U> {
    pub(crate) fn new(function: F) -> Self {
        Self {
            function,
            record: PhantomData,
        }
    }
}

impl<F: Clone, U> Clone for FlatMap<F, U> {
    fn clone(&self) -> Self {
        Self::new(self.function.clone())
    }
}

impl<F, U> fmt::Debug for FlatMap<F, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FlatMap")
    }
}

impl<T, U, F> Narrow<T> for FlatMap<F, U>
where
    T: Record,
    U: Record,
    F: FnMut(T::View<'_>, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
{
    type Out = U;

    #[inline]
    fn push<D: Push<U>>(&mut self, view: T::View<'_>, down: &mut D) {
        (self.function)(view, &mut Out { down });
    }
}

/// Does with the value of each pair what another operator does with records, and leaves the key.
#[derive(Debug)]
pub struct OnValues<M>(pub(crate) M);

impl<M: Clone> Clone for OnValues<M> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }

    fn clone_from(&mut self, source: &Self) {
        self.0.clone_from(&source.0);
    }
}

/// Puts a key before what is pushed.
struct WithKey<'a, K: Record, D> {
    key: K::View<'a>,
    down: &'a mut D,
}

impl<K: Record, U: Record, D: Push<(K, U)>> Push<U> for WithKey<'_, K, D> {
    #[inline]
    fn push(&mut self, value: U::View<'_>) {
        let (key, value) = (K::shorten(self.key), U::shorten(value));
        self.down.push((key, value));
    }
}

impl<K: Record, V: Record, M: Narrow<V>> Narrow<(K, V)> for OnValues<M> {
    type Out = (K, M::Out);

    #[inline]
    fn push<D: Push<(K, M::Out)>>(
        &mut self,
        (key, value): (K::View<'_>, V::View<'_>),
        down: &mut D,
    ) {
        let key = K::shorten(key);
        self.0.push(value, &mut WithKey::<K, D> { key, down });
    }

    fn begin(&mut self, place: &Place) {
        self.0.begin(place);
    }

    fn keeps_keys(&self) -> bool {
        true
    }
}

/// Where a function given to `flat_map` puts its records.
pub struct Out<'a, U: Record> {
    down: &'a mut dyn Push<U>,
}

impl<'a, U: Record> Out<'a, U> {
    pub(crate) fn new(down: &'a mut dyn Push<U>) -> Self {
        Self { down }
    }

    /// Puts one record: the record itself, its view, or parts of both.
    #[inline]
    pub fn push<E: Encode<Record = U>>(&mut self, value: E) {
        value.with_view(|view| self.down.push(view));
    }
}

impl<U: Record> fmt::Debug for Out<'_, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Out")
    }
}
