//! Exchanges that change nothing but where records are.

use crate::{
    Error, Key, Record,
    exchange::{ByFunction, ByHash, Direct, Outbox, Rebalance, RoundRobin, Route, Routed, ToFirst},
    operator::narrow::{Numbered, Pass, Then},
    stage::{Narrow, Place},
    tset::{Received, Source, TSet},
};

impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// Sends equal records to the same instance.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![1u64, 2, 1]).exchange_by_hash().collect();
    /// assert_eq!(inline(&job)?.len(), 3);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn exchange_by_hash(self) -> TSet<Received<T>, Pass>
    where
        T: Key,
    {
        self.route("exchange_by_hash", |_| ByHash)
    }

    /// Sends each record to the instance whose number `function` gives, modulo how many there are.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![1u64, 2, 3]).partition(|n| n / 2).collect();
    /// assert_eq!(inline(&job)?.len(), 3);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn partition<F>(self, function: F) -> TSet<Received<T>, Pass>
    where
        F: FnMut(T::View<'_>) -> u64 + Clone + Send + Sync + 'static,
    {
        self.route("partition", move |_| ByFunction(function.clone()))
    }

    /// Sends one record to each instance in turn, so that all get the same number.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let dealt = collection((0..6u64).collect()).parallelism(1).round_robin().parallelism(2);
    /// let counts = dealt.map_partition(0u64, |count, _, _| *count += 1, |count, out| out.push(count));
    /// assert_eq!(inline(&counts.collect())?, [3, 3]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn round_robin(self) -> TSet<Received<T>, Pass> {
        self.route("round_robin", RoundRobin::new)
    }

    /// Sends records to the instances that are the furthest in reading what they were sent, so that slow ones
    /// get less.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection((0..6u64).collect()).rebalance().parallelism(2).count().first();
    /// assert_eq!(inline(&job)?, Some(6));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn rebalance(self) -> TSet<Received<T>, Pass> {
        self.route("rebalance", Rebalance::new)
    }

    /// Sends the records of each instance to the instance of the same number (or in the same part of all, if
    /// their numbers differ). Clones of the stream that follows share the work before it.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let squares = collection(vec![1u64, 2, 3]).map(|n| n * n).direct();
    /// let odd = squares.clone().filter(|n| n % 2 == 1);
    /// let mut both = inline(&odd.union(squares).collect())?;
    /// both.sort();
    /// assert_eq!(both, [1, 1, 4, 9, 9]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn direct(self) -> TSet<Received<T>, Pass> {
        let by_key_at = self.is_by_key().then(|| self.placement());
        self.route("direct", Direct::new).by_key_at(by_key_at)
    }

    /// Sends every record to all instances. It travels to each rank once.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![1u64, 2]).broadcast().parallelism(3).collect();
    /// assert_eq!(inline(&job)?.len(), 6);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn broadcast(self) -> TSet<Received<T>, Pass> {
        let output = |place: &Place| Ok(Routed::new(Outbox::to_all(place)?, ToFirst));
        self.exchange("broadcast", output, Received::new())
    }

    /// Pairs each record with the number of the instance that has it: before [`gather`](Self::gather) or
    /// [`broadcast`](Self::broadcast), who sent what.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let parts = collection(vec!['a', 'b', 'c', 'd']).parallelism(2).with_instance().gather();
    /// let mut parts = inline(&parts.collect())?;
    /// parts.sort();
    /// assert_eq!(parts, [(0, 'a'), (0, 'b'), (1, 'c'), (1, 'd')]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    #[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
    #[track_caller]
    pub fn with_instance(self) -> TSet<S, Then<N, Numbered, T>> {
        self.then(Numbered::default(), "with_instance")
    }

    /// Sends every record to one instance.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let all = collection(vec![1u64, 2, 3]).parallelism(3).gather();
    /// let sums = all.map_partition(0, |sum, n, _| *sum += n, |sum, out| out.push(sum));
    /// assert_eq!(inline(&sums.collect())?, [6]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn gather(self) -> TSet<Received<T>, Pass> {
        self.route("gather", |_| ToFirst).on_one()
    }

    fn route<R: Route<T> + 'static>(
        self,
        name: &str,
        route: impl Fn(&Place) -> R + Send + Sync + 'static,
    ) -> TSet<Received<T>, Pass> {
        let output = move |place: &Place| -> Result<_, Error> {
            Ok(Routed::new(Outbox::to_each(place)?, route(place)))
        };
        self.exchange(name, output, Received::new())
    }
}
