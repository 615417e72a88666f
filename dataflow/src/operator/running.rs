//! Results that are given anew with each input.

use std::{fmt, marker::PhantomData};

use transport::{Buffer, Rank};

use crate::{
    Encode, Error, Key, Record,
    batch::Batch,
    exchange::Receiver,
    operator::{
        aggregate::{Aggregate, Before, Merged, Of},
        join::by_key,
        narrow::Pass,
        reduce::{Accumulate, Reducing},
        states::{Account, States, copy, must_add},
    },
    stage::{Input, Narrow, Place, Progress, Sink},
    time::Watermark,
    tset::{Source, TSet},
};

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N, K, V> TSet<S, N>
where
    S: Source,
    K: Key,
    V: Record,
    N: Narrow<S::Out, Out = (K, V)>,
{
    /// Reduces the values of each key as they come, and gives what that is after each of them: the last result of a key is
    /// what [`reduce_by_key`](Self::reduce_by_key) gives. One value of each key is kept for as long as the job runs.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![('a', 1u64), ('b', 5), ('a', 2)]).running_reduce_by_key(|a, b| a + b).collect();
    /// assert_eq!(inline(&job)?, [('a', 1), ('b', 5), ('a', 3)]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn running_reduce_by_key<F>(
        self,
        reduce: F,
    ) -> TSet<Running<K, V, Reducing<V, F>, Reducing<V, F>>, Pass>
    where
        V: Default,
        F: Fn(V, V::View<'_>) -> V + Clone + Send + Sync + 'static,
    {
        let reduce = Reducing::new(reduce);
        self.run_on("running_reduce_by_key", reduce.clone(), reduce)
    }

    /// Makes one record of the values of each key as they come, and gives what that is after each of them: see
    /// [`aggregate_by_key`](Self::aggregate_by_key).
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![('a', 1u64), ('a', 2)])
    ///     .running_aggregate_by_key(|of| (of.count(), of.mean(|n| n as f64)))
    ///     .collect();
    /// assert_eq!(inline(&job)?, [('a', (1, Some(1.0))), ('a', (2, Some(1.5)))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn running_aggregate_by_key<A: Aggregate<V>>(
        self,
        of: impl FnOnce(Of<V>) -> A,
    ) -> TSet<Running<K, V, Before<A, V>, Merged<A, V>>, Pass> {
        let aggregate = of(Of(PhantomData));
        let before = Before(aggregate.clone(), PhantomData);
        let after = Merged(aggregate, PhantomData);
        self.run_on("running_aggregate_by_key", before, after)
    }

    fn run_on<A, B>(self, name: &str, before: A, after: B) -> TSet<Running<K, V, A, B>, Pass>
    where
        A: Accumulate<V>,
        B: Accumulate<A::State, State = A::State>,
    {
        let running = Running {
            before,
            after,
            types: PhantomData,
        };
        self.exchange_keys(name, by_key, running)
    }
}

/// What was made of the values of each key so far, after each of them.
pub struct Running<K, V, A, B> {
    before: A,
    after: B,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V, A, B> Source for Running<K, V, A, B>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    B: Accumulate<A::State, State = A::State>,
{
    type Input = Update<K, V, A, B>;
    type Out = (K, <B::Out as Encode>::Record);

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(Update {
            receiver: Receiver::new(place, 0),
            now: None,
            states: States::new(),
            account: Account::new(place, "running results")?,
            before: self.before.clone(),
            after: self.after.clone(),
        })
    }

    fn is_by_key(&self) -> bool {
        true
    }
}

impl<K, V, A, B> fmt::Debug for Running<K, V, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Running")
    }
}

/// Keeps what was made of the values of each key, and gives it after each of them.
pub struct Update<K: Key, V: Record, A: Accumulate<V>, B> {
    receiver: Receiver<(K, V)>,
    /// The batch whose records are added, and how many of them were.
    now: Option<(Batch<(K, V)>, usize)>,
    states: States<K, A::State>,
    account: Account,
    before: A,
    after: B,
}

impl<K, V, A, B> Input for Update<K, V, A, B>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    B: Accumulate<A::State, State = A::State>,
{
    type Out = (K, <B::Out as Encode>::Record);

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.receiver.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.receiver.ended(port, from);
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        self.receiver.advance(port, sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        self.receiver.watermark_behind(self.now.is_some())
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let Some((batch, next)) = &mut self.now else {
            return Ok(match self.receiver.next_batch() {
                Some((_, batch)) => {
                    self.now = Some((batch, 0));
                    Progress::Made
                }
                None if self.receiver.is_done() => Progress::Done,
                None => Progress::None,
            });
        };
        for (key, value) in batch.views(*next) {
            if down.is_full() {
                return Ok(Progress::Made);
            }
            let hash = K::hash(key);
            let state = match self.states.find(hash, key) {
                Some(state) => {
                    must_add(&self.before, state, value, &mut self.account)?;
                    state
                }
                None => {
                    let state = self.before.start(value);
                    self.account.insist(state.heap_bytes())?;
                    self.states.insert(hash, key, state, &mut self.account)?
                }
            };
            let value = self.after.finish(copy(state));
            (key, value).with_view(|pair| down.push(pair));
            *next += 1;
        }
        self.now = None;
        Ok(Progress::Made)
    }
}

impl<K: Key, V: Record, A: Accumulate<V>, B> fmt::Debug for Update<K, V, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Update")
    }
}
