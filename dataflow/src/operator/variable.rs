//! Operators whose functions read a value that changes between runs.

use std::{
    fmt,
    marker::PhantomData,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    Encode, Record,
    operator::narrow::{OnValues, Out, Then},
    stage::{Narrow, Place, Push},
    tset::{Source, TSet},
};

/// A value that functions of a graph read, and that the program sets between runs: so a graph is written once and run
/// often. (Spark's broadcast variable, and the side input of others.) Each process has its own; the programs of all
/// have to set it alike. A clone is the same variable.
///
/// ```
/// use dataflow::{Variable, collection, inline};
///
/// let factor = Variable::new(2u64);
/// let job = collection(vec![1u64, 2]).map_with(&factor, |n, factor| n * factor).collect();
/// assert_eq!(inline(&job)?, [2, 4]);
/// factor.set(10);
/// assert_eq!(inline(&job)?, [10, 20]);
/// # Ok::<(), dataflow::Error>(())
/// ```
pub struct Variable<V>(Arc<RwLock<Arc<V>>>);

impl<V> Variable<V> {
    /// A variable that has this value first.
    pub fn new(value: V) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(value))))
    }

    /// The value it has now.
    pub fn get(&self) -> Arc<V> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Gives it another value, which runs that begin later read; one that is under way reads the old one to its end.
    pub fn set(&self, value: V) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(value);
    }
}

impl<V> Clone for Variable<V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<V: fmt::Debug> fmt::Debug for Variable<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Variable").field(&self.get()).finish()
    }
}

/// A function and the variable that it reads, with the value that the variable has in this run.
pub struct With<F, V> {
    function: F,
    variable: Variable<V>,
    /// None before the run has begun.
    value: Option<Arc<V>>,
}

impl<F, V> With<F, V> {
    fn new(function: F, variable: &Variable<V>) -> Self {
        Self {
            function,
            variable: variable.clone(),
            value: None,
        }
    }

    fn begin(&mut self) {
        self.value = Some(self.variable.get());
    }

    #[inline]
    fn parts(&mut self) -> (&mut F, &V) {
        let value = &mut self.value;
        let value = value.get_or_insert_with(|| self.variable.get());
        (&mut self.function, &**value)
    }
}

impl<F: Clone, V> Clone for With<F, V> {
    fn clone(&self) -> Self {
        Self::new(self.function.clone(), &self.variable)
    }

    /// Does not touch a variable that is the same already: ranks that begin a run together would wait for one another.
    fn clone_from(&mut self, source: &Self) {
        self.function.clone_from(&source.function);
        if !Arc::ptr_eq(&self.variable.0, &source.variable.0) {
            self.variable = source.variable.clone();
        }
    }
}

impl<F, V> fmt::Debug for With<F, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("With")
    }
}

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// As [`map`](Self::map), with the value that a variable has in this run.
    ///
    /// ```
    /// use dataflow::{Variable, collection, inline};
    ///
    /// let rate = Variable::new(0.5);
    /// let job = collection(vec![10.0, 20.0]).map_with(&rate, |price, rate| price * rate).collect();
    /// assert_eq!(inline(&job)?, [5.0, 10.0]);
    /// rate.set(2.0);
    /// assert_eq!(inline(&job)?, [20.0, 40.0]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn map_with<V, E, F>(
        self,
        variable: &Variable<V>,
        function: F,
    ) -> TSet<S, Then<N, MapWith<F, V>, T>>
    where
        V: Send + Sync + 'static,
        E: Encode,
        F: FnMut(T::View<'_>, &V) -> E + Clone + Send + Sync + 'static,
    {
        self.then(MapWith(With::new(function, variable)), "map_with")
    }

    /// As [`filter`](Self::filter), with the value that a variable has in this run.
    ///
    /// ```
    /// use dataflow::{Variable, collection, inline};
    ///
    /// let least = Variable::new(2u64);
    /// let job = collection(vec![1u64, 2, 3]).filter_with(&least, |n, least| n >= *least).collect();
    /// assert_eq!(inline(&job)?, [2, 3]);
    /// least.set(3);
    /// assert_eq!(inline(&job)?, [3]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn filter_with<V, F>(
        self,
        variable: &Variable<V>,
        function: F,
    ) -> TSet<S, Then<N, FilterWith<F, V>, T>>
    where
        V: Send + Sync + 'static,
        F: FnMut(T::View<'_>, &V) -> bool + Clone + Send + Sync + 'static,
    {
        self.then(FilterWith(With::new(function, variable)), "filter_with")
    }

    /// As [`flat_map`](Self::flat_map), with the value that a variable has in this run.
    ///
    /// ```
    /// use dataflow::{Variable, collection, inline};
    ///
    /// let times = Variable::new(2);
    /// let job = collection(vec!['a', 'b'])
    ///     .flat_map_with(&times, |c, times, out| for _ in 0..*times { out.push(c) })
    ///     .collect();
    /// assert_eq!(inline(&job)?, ['a', 'a', 'b', 'b']);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn flat_map_with<V, U, F>(
        self,
        variable: &Variable<V>,
        function: F,
    ) -> TSet<S, Then<N, FlatMapWith<F, V, U>, T>>
    where
        V: Send + Sync + 'static,
        U: Record,
        F: FnMut(T::View<'_>, &V, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
    {
        let operator = FlatMapWith(With::new(function, variable), PhantomData);
        self.then(operator, "flat_map_with")
    }
}

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N> TSet<S, N>
where
    S: Source,
    N: Narrow<S::Out>,
{
    /// As [`map_values`](Self::map_values), with the value that a variable has in this run.
    ///
    /// ```
    /// use dataflow::{Variable, collection, inline};
    ///
    /// let most = Variable::new(3u64);
    /// let sums = collection(vec![('a', 1u64), ('a', 4)]).reduce_by_key(|a, b| a + b);
    /// let job = sums.map_values_with(&most, |sum, most| sum.min(*most)).collect();
    /// assert_eq!(inline(&job)?, [('a', 3)]);
    /// most.set(10);
    /// assert_eq!(inline(&job)?, [('a', 5)]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn map_values_with<X, K, V, E, F>(
        self,
        variable: &Variable<X>,
        function: F,
    ) -> TSet<S, Then<N, OnValues<MapWith<F, X>>, (K, V)>>
    where
        X: Send + Sync + 'static,
        K: Record,
        V: Record,
        N: Narrow<S::Out, Out = (K, V)>,
        E: Encode,
        F: FnMut(V::View<'_>, &X) -> E + Clone + Send + Sync + 'static,
    {
        self.then(
            OnValues(MapWith(With::new(function, variable))),
            "map_values_with",
        )
    }
}

/// Turns each record into another.
#[derive(Debug)]
pub struct MapWith<F, V>(With<F, V>);

impl<F: Clone, V> Clone for MapWith<F, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }

    fn clone_from(&mut self, source: &Self) {
        self.0.clone_from(&source.0);
    }
}

impl<T, V, E, F> Narrow<T> for MapWith<F, V>
where
    T: Record,
    V: Send + Sync + 'static,
    E: Encode,
    F: FnMut(T::View<'_>, &V) -> E + Clone + Send + Sync + 'static,
{
    type Out = E::Record;

    #[inline]
    fn push<D: Push<E::Record>>(&mut self, view: T::View<'_>, down: &mut D) {
        let (function, value) = self.0.parts();
        function(view, value).with_view(|view| down.push(view));
    }

    fn begin(&mut self, _place: &Place) {
        self.0.begin();
    }
}

/// Keeps the records that a function says yes to.
#[derive(Debug)]
pub struct FilterWith<F, V>(With<F, V>);

impl<F: Clone, V> Clone for FilterWith<F, V> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }

    fn clone_from(&mut self, source: &Self) {
        self.0.clone_from(&source.0);
    }
}

impl<T, V, F> Narrow<T> for FilterWith<F, V>
where
    T: Record,
    V: Send + Sync + 'static,
    F: FnMut(T::View<'_>, &V) -> bool + Clone + Send + Sync + 'static,
{
    type Out = T;

    #[inline]
    fn push<D: Push<T>>(&mut self, view: T::View<'_>, down: &mut D) {
        let (function, value) = self.0.parts();
        if function(view, value) {
            down.push(view);
        }
    }

    fn begin(&mut self, _place: &Place) {
        self.0.begin();
    }

    fn keeps_keys(&self) -> bool {
        true
    }
}

/// Turns each record into any number of others.
#[derive(Debug)]
pub struct FlatMapWith<F, V, U>(With<F, V>, PhantomData<fn(U)>);

impl<F: Clone, V, U> Clone for FlatMapWith<F, V, U> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }

    fn clone_from(&mut self, source: &Self) {
        self.0.clone_from(&source.0);
    }
}

impl<T, V, U, F> Narrow<T> for FlatMapWith<F, V, U>
where
    T: Record,
    V: Send + Sync + 'static,
    U: Record,
    F: FnMut(T::View<'_>, &V, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
{
    type Out = U;

    #[inline]
    fn push<D: Push<U>>(&mut self, view: T::View<'_>, down: &mut D) {
        let (function, value) = self.0.parts();
        function(view, value, &mut Out::new(down));
    }

    fn begin(&mut self, _place: &Place) {
        self.0.begin();
    }
}
