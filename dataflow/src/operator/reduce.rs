//! One value for each key.
//!
//! Values are [combined](super::combine) where they arise, so that of each key few pairs leave a rank, and then
//! on the rank that the key belongs to.
//!
//! When the table there finds no room for more keys, it stays as it is: values of its keys are combined in place as
//! before, and pairs of other keys are [set aside](super::aside), to be combined when they are read in order. So keys
//! that come often, of which one is most likely in the table, cost no more than they did.

use std::{fmt, marker::PhantomData, mem};

use transport::{Buffer, Rank};

use crate::{
    Encode, Error, Key, Record,
    batch::Batch,
    exchange::{Outbox, Receiver},
    graph::Extent,
    operator::{
        aside::{Aside, ByHash},
        combine::{Combine, Combined},
        narrow::{Keyed, Keys, Pass, Then},
        states::{Account, Ahead, Drain, GROUP, Merged, States, add},
    },
    stage::{Input, Narrow, Place, Progress, Sink},
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
        let output =
            move |place: &Place| Combine::<K, V, _>::new(WholeStream(before.clone()), place);
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
    #[track_caller]
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

/// All values of a key are combined, whenever they come.
struct WholeStream<A>(A);

impl<K: Key, V: Record, A: Accumulate<V>> Combined<K, V> for WholeStream<A> {
    type By = K;
    type Accumulate = A;
    type Sent = (K, A::State);

    const IS_LIVE: bool = false;

    #[inline]
    fn accumulate(&self) -> &A {
        &self.0
    }

    #[inline]
    fn by<'v>(&self, key: K::View<'v>, _value: V::View<'v>) -> K::View<'v> {
        key
    }

    #[inline]
    fn hash(key: K::View<'_>) -> u64 {
        K::hash(key)
    }

    #[inline]
    fn send(key: K::View<'_>, state: &A::State, lane: usize, outbox: &mut Outbox<Self::Sent>) {
        state.with_view(|state| {
            outbox.push_to(lane, &(K::shorten(key), A::State::shorten(state)));
        });
    }
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
            reduction: Reduction::new(place, self.accumulate.clone(), self.name)?,
            is_giving: false,
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

/// Reduces the pairs of the keys that belong to this rank, and gives one pair for each key when all
/// have come.
pub struct Reduce<K: Key, I: Record, A: Accumulate<I>> {
    receiver: Receiver<(K, I)>,
    reduction: Reduction<K, I, A>,
    is_giving: bool,
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
        if self.is_giving {
            return self.give(down);
        }
        if self.reduction.go_on()? {
            return Ok(Progress::Made);
        }
        if let Some((_, batch)) = self.receiver.next_batch() {
            self.reduction.take_all(&batch)?;
        } else if self.receiver.is_done() {
            self.reduction.end()?;
            self.is_giving = true;
        } else {
            return Ok(Progress::None);
        }
        Ok(Progress::Made)
    }

    fn again(&mut self) -> bool {
        self.is_giving = false;
        self.reduction.again() && self.receiver.again()
    }
}

impl<K, I, A> Reduce<K, I, A>
where
    K: Key,
    I: Record,
    A: Accumulate<I, State = I>,
{
    fn give<D>(&mut self, down: &mut D) -> Result<Progress, Error>
    where
        D: Sink<(K, <A::Out as Encode>::Record)>,
    {
        for _ in 0..GIVEN_A_TURN {
            if down.is_full() {
                break;
            }
            match self.reduction.next()? {
                Next::Entry(key, state) => {
                    let value = self.reduction.accumulate.finish(state);
                    (K::stored(&key), value).with_view(|pair| down.push(pair));
                }
                Next::Later => break,
                Next::Nothing => return Ok(Progress::Done),
            }
        }
        Ok(Progress::Made)
    }
}

impl<K: Key, I: Record, A: Accumulate<I>> fmt::Debug for Reduce<K, I, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reduce")
            .field("keys", &self.reduction.states.len())
            .finish_non_exhaustive()
    }
}

/// One state for each key, in memory and beyond it. All pairs are taken, and then one state of each key is given.
pub(crate) struct Reduction<K: Key, I: Record, A: Accumulate<I>> {
    pub(crate) accumulate: A,
    states: States<K, A::State>,
    account: Account,
    /// Pairs that found no room in the table.
    aside: Aside<(K, I), ByHash>,
    rest: Rest,
    /// What is combined of the pairs of one hash, nearly always of one key: the hash, and the keys that it has.
    reading: Reading<K, A::State>,
    phase: Phase<K, A::State>,
}

type Reading<K, S> = (u64, Vec<(<K as Key>::Stored, S)>);

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
enum Phase<K: Key, S> {
    Taking,
    /// It gives what is in the table.
    Giving(Drain<K, S>),
    /// It gives what was set aside.
    Reading,
}

/// What is given next.
pub(crate) enum Next<K: Key, S> {
    /// What was made of all values of a key.
    Entry(K::Stored, S),
    /// Something was done, and there may be more.
    Later,
    Nothing,
}

/// Pairs read in one turn, between which messages are looked for.
const READ_A_TURN: usize = 4096;

impl<K, I, A> Reduction<K, I, A>
where
    K: Key,
    I: Record,
    A: Accumulate<I, State = I>,
{
    /// Enters on the ledger what it cannot do without.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`].
    pub(crate) fn new(place: &Place, accumulate: A, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            accumulate,
            states: States::new(),
            account: Account::new(place, holder)?,
            aside: Aside::new(place, ByHash, holder)?,
            rest: Rest::Nothing,
            reading: (0, Vec::new()),
            phase: Phase::Taking,
        })
    }

    /// Takes a pair.
    ///
    /// # Errors
    ///
    /// As [`Aside::push`].
    #[inline]
    pub(crate) fn take(&mut self, key: K::View<'_>, value: I::View<'_>) -> Result<(), Error> {
        let pair = (key, value);
        let merged = (self.states).merge::<I, A>(&self.accumulate, pair, &mut self.account);
        self.merged(merged, pair)
    }

    #[inline]
    fn merged(
        &mut self,
        merged: Merged,
        (key, value): (K::View<'_>, I::View<'_>),
    ) -> Result<(), Error> {
        match merged {
            Merged::Combined | Merged::New => Ok(()),
            Merged::Refused => self.set_aside(key, value),
            Merged::TooMuch => self.set_table_aside(),
        }
    }

    /// Takes the pairs of a batch.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    fn take_all(&mut self, batch: &Batch<(K, I)>) -> Result<(), Error> {
        for group in batch.elements().chunks(GROUP) {
            let pairs = group.iter().map(<(K, I)>::view);
            if !self.states.is_far() {
                pairs
                    .clone()
                    .try_for_each(|(key, value)| self.take(key, value))?;
                continue;
            }
            let mut ahead = [Ahead::UNKNOWN; GROUP];
            for (ahead, (key, _)) in ahead.iter_mut().zip(pairs.clone()) {
                *ahead = self.states.look_ahead(key);
            }
            for (ahead, pair) in ahead.into_iter().zip(pairs) {
                let accumulate = &self.accumulate;
                let account = &mut self.account;
                let merged = (self.states).merge_ahead::<I, A>(accumulate, ahead, pair, account);
                self.merged(merged, pair)?;
            }
        }
        Ok(())
    }

    /// Sets a pair aside whose key finds no room in the table.
    #[cold]
    fn set_aside(&mut self, key: K::View<'_>, value: I::View<'_>) -> Result<(), Error> {
        self.states.is_frozen = true;
        if self.rest == Rest::Nothing {
            self.rest = Rest::Others;
        }
        self.aside.push((K::shorten(key), I::shorten(value)))
    }

    /// Sets all aside that is in the table, so that the values there, which have grown, make room.
    #[cold]
    fn set_table_aside(&mut self) -> Result<(), Error> {
        self.rest = Rest::Any;
        let mut drain = self.states.drain();
        while let Some(entry) = drain.next_given_back(&mut self.account) {
            let key = K::stored(&entry.key);
            entry
                .state
                .with_view(|value| self.aside.push((K::shorten(key), I::shorten(value))))?;
        }
        Ok(())
    }

    /// Does a part of what has to be done before pairs should be taken; false if there is nothing.
    ///
    /// # Errors
    ///
    /// As [`Aside::go_on`].
    pub(crate) fn go_on(&mut self) -> Result<bool, Error> {
        self.aside.go_on()
    }

    /// All have come.
    ///
    /// # Errors
    ///
    /// As [`take`](Self::take).
    pub(crate) fn end(&mut self) -> Result<(), Error> {
        if self.rest == Rest::Any {
            self.set_table_aside()?;
        }
        self.phase = Phase::Giving(self.states.drain());
        Ok(())
    }

    /// The next key, when all have come.
    ///
    /// # Errors
    ///
    /// As [`Aside::go_on`], or [`transport::Error::LedgerLimit`] for a state that is large.
    #[inline]
    pub(crate) fn next(&mut self) -> Result<Next<K, I>, Error> {
        if let Phase::Giving(drain) = &mut self.phase
            && let Some(entry) = drain.next_given_back(&mut self.account)
        {
            return Ok(Next::Entry(entry.key, entry.state));
        }
        self.next_set_aside()
    }

    #[cold]
    fn next_set_aside(&mut self) -> Result<Next<K, I>, Error> {
        if self.rest == Rest::Nothing {
            return Ok(Next::Nothing);
        }
        if !matches!(self.phase, Phase::Reading) {
            self.phase = Phase::Reading;
            self.aside.end()?;
            return Ok(Next::Later);
        }
        if self.aside.go_on()? {
            return Ok(Next::Later);
        }
        self.read()
    }

    /// Combines what was set aside of one hash, and gives its keys one by one.
    fn read(&mut self) -> Result<Next<K, I>, Error> {
        let (accumulate, account) = (&self.accumulate, &mut self.account);
        let (hash, states) = &mut self.reading;
        for _ in 0..READ_A_TURN {
            let (key, value) = match self.aside.first() {
                Some((other, pair)) if other == *hash || states.is_empty() => {
                    *hash = other;
                    pair
                }
                _ => {
                    let Some((key, state)) = states.pop() else {
                        return Ok(Next::Nothing);
                    };
                    account.give_back(state.heap_bytes());
                    return Ok(Next::Entry(key, state));
                }
            };
            match states.iter_mut().find(|(stored, _)| K::is(stored, key)) {
                Some((_, state)) => {
                    if !add(accumulate, state, value, account) {
                        // One key's state is all that has to fit.
                        account.insist_on_used()?;
                    }
                }
                None => {
                    let state = accumulate.start(value);
                    account.insist(state.heap_bytes())?;
                    states.push((K::store(key), state));
                }
            }
            self.aside.advance()?;
        }
        Ok(Next::Later)
    }

    /// Begins anew, once nothing more of it is wanted; false if it has to be made anew.
    pub(crate) fn again(&mut self) -> bool {
        if let Phase::Giving(drain) = &mut self.phase {
            drain.forget(&mut self.account);
        }
        self.states.drain().forget(&mut self.account);
        self.phase = Phase::Taking;
        self.rest == Rest::Nothing
    }

    /// Begins anew, once all was given.
    pub(crate) fn begin(&mut self) {
        self.phase = Phase::Taking;
        if mem::replace(&mut self.rest, Rest::Nothing) != Rest::Nothing {
            self.aside.clear();
        }
    }
}
