//! Operators that see the records of an instance as one whole, and those that number, key or choose records.

use std::{fmt, marker::PhantomData};

use crate::{
    Encode, Record,
    graph::Job,
    operator::narrow::{Out, Pass, Then},
    stage::{Narrow, Place, Push},
    tset::{Received, Source, TSet},
};

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// Makes something of all records of each instance: `each` is given the state of its instance, which begins as a clone
    /// of `start`, and every record in turn; `end` is given what the state has become, once, after the last record. Both may push any number of
    /// records.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let sums = collection((1..=6u64).collect())
    ///     .parallelism(2)
    ///     .map_partition(0, |sum, n, _| *sum += n, |sum, out| out.push(sum))
    ///     .collect();
    /// assert_eq!(inline(&sums)?, [6, 15]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn map_partition<A, U, F, G>(
        self,
        start: A,
        each: F,
        end: G,
    ) -> TSet<S, Then<N, MapPartition<A, U, F, G>, T>>
    where
        A: Clone + Send + Sync + 'static,
        U: Record,
        F: FnMut(&mut A, T::View<'_>, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
        G: FnMut(A, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
    {
        let operator = MapPartition {
            state: Some(start),
            each,
            end,
            record: PhantomData,
        };
        self.then(operator, "map_partition")
    }

    /// Pairs each record with the key that `function` gives it.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let words = collection(vec!["to".to_owned(), "be".to_owned(), "not".to_owned()]);
    /// let job = words.key_by(|word| word.len() as u64).group_by_key().collect();
    /// assert!(inline(&job)?.contains(&(3, vec!["not".to_owned()])));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn key_by<E, F>(self, function: F) -> TSet<S, Then<N, KeyBy<F>, T>>
    where
        E: Encode,
        F: FnMut(T::View<'_>) -> E + Clone + Send + Sync + 'static,
    {
        self.then(KeyBy(function), "key_by")
    }

    /// Keeps each record with this probability, from 0 to 1, independently of the others. Which ones follows from `seed`
    /// and the instance: the same again in every run that reads the same.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let some = inline(&collection((0..10_000u64).collect()).sample(0.1, 7).collect())?;
    /// assert!((800..1200).contains(&some.len()));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn sample(self, probability: f64, seed: u64) -> TSet<S, Then<N, Sample, T>> {
        let operator = Sample {
            probability,
            seed,
            state: seed,
        };
        self.then(operator, "sample")
    }

    /// Pairs each record with a number that no other record has: with `n` instances, that of place `i` has `i`, `n + i`,
    /// `2n + i` and so on, in its own order.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec!['a', 'b', 'c', 'd']).parallelism(2).zip_with_unique_id().collect();
    /// assert_eq!(inline(&job)?, [(0, 'a'), (2, 'b'), (1, 'c'), (3, 'd')]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[track_caller]
    pub fn zip_with_unique_id(self) -> TSet<S, Then<N, UniqueId, T>> {
        self.then(UniqueId::default(), "zip_with_unique_id")
    }

    /// Spreads the records over so many instances, to each the same number.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection((0..6u64).collect()).parallelism(1).repartition(3);
    /// let counts = job.map_partition(0u64, |count, _, _| *count += 1, |count, out| out.push(count));
    /// assert_eq!(inline(&counts.collect())?, [2, 2, 2]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn repartition(self, instances: u32) -> TSet<Received<T>, Pass> {
        self.round_robin().parallelism(instances)
    }

    /// Gives one of the records, if there is any: for streams of one record, such as what [`count`](Self::count) gives.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// assert_eq!(inline(&collection(vec![5u64, 6]).count().first())?, Some(2));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn first(self) -> Job<Option<T>> {
        self.take(1)
            .collect()
            .then(|records| records.into_iter().next())
    }
}

/// Makes something of all records of an instance.
pub struct MapPartition<A, U, F, G> {
    /// Gone after the end.
    state: Option<A>,
    each: F,
    end: G,
    record: PhantomData<fn(U)>,
}

impl<A: Clone, U, F: Clone, G: Clone> Clone for MapPartition<A, U, F, G> {
    fn clone(&self) -> Self {
        Self {
            state: self.state.clone(),
            each: self.each.clone(),
            end: self.end.clone(),
            record: PhantomData,
        }
    }
}

impl<T, A, U, F, G> Narrow<T> for MapPartition<A, U, F, G>
where
    T: Record,
    A: Clone + Send + Sync + 'static,
    U: Record,
    F: FnMut(&mut A, T::View<'_>, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
    G: FnMut(A, &mut Out<'_, U>) + Clone + Send + Sync + 'static,
{
    type Out = U;

    #[inline]
    fn push<D: Push<U>>(&mut self, view: T::View<'_>, down: &mut D) {
        if let Some(state) = &mut self.state {
            (self.each)(state, view, &mut Out::new(down));
        }
    }

    fn end<D: Push<U>>(&mut self, down: &mut D) {
        if let Some(state) = self.state.take() {
            (self.end)(state, &mut Out::new(down));
        }
    }
}

impl<A, U, F, G> fmt::Debug for MapPartition<A, U, F, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MapPartition")
    }
}

/// Pairs each record with its key.
#[derive(Debug, Clone, Copy)]
pub struct KeyBy<F>(F);

impl<T, E, F> Narrow<T> for KeyBy<F>
where
    T: Record,
    E: Encode,
    F: FnMut(T::View<'_>) -> E + Clone + Send + Sync + 'static,
{
    type Out = (E::Record, T);

    #[inline]
    fn push<D: Push<(E::Record, T)>>(&mut self, view: T::View<'_>, down: &mut D) {
        (self.0)(view)
            .with_view(|key| down.push((<E::Record as Record>::shorten(key), T::shorten(view))));
    }
}

/// Keeps each record with a probability.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    probability: f64,
    seed: u64,
    state: u64,
}

impl<T: Record> Narrow<T> for Sample {
    type Out = T;

    #[inline]
    fn push<D: Push<T>>(&mut self, view: T::View<'_>, down: &mut D) {
        self.state = self.state.wrapping_add(GOLDEN);
        let drawn = (mixed(self.state) >> 11) as f64 / (1u64 << 53) as f64;
        if drawn < self.probability {
            down.push(view);
        }
    }

    fn begin(&mut self, place: &Place) {
        self.state = mixed(self.seed ^ mixed(place.instance.into()));
    }

    fn keeps_keys(&self) -> bool {
        true
    }
}

/// The step of the generator SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Its mixing function.
fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

/// Numbers records.
#[derive(Debug, Clone, Copy, Default)]
pub struct UniqueId {
    next: u64,
    step: u64,
}

impl<T: Record> Narrow<T> for UniqueId {
    type Out = (u64, T);

    #[inline]
    fn push<D: Push<(u64, T)>>(&mut self, view: T::View<'_>, down: &mut D) {
        down.push((self.next, view));
        self.next += self.step;
    }

    fn begin(&mut self, place: &Place) {
        self.next = place.instance.into();
        self.step = place.instances.into();
    }
}
