//! Windows: what is made of the values of each key that belong together by their times, or their numbers.
//!
//! Values go to the instance of their key, which keeps for each window what was made of its values so far, never the
//! values (but [`group`](ByWindow::group) does). When event time has come to the end of a window, its results are given. How far
//! event time is follows from the watermarks of all senders; where there are none, it comes to the end of all windows
//! when the input ends.
//!
//! What is kept of windows that begin at the same times for all keys goes to disk where memory has no room for it. Sessions and
//! windows of so many values have to stay in memory.

mod count;
mod session;
mod sliced;
mod slices;
mod travel;

use std::{fmt, marker::PhantomData};

use transport::{Buffer, Rank};

pub use self::travel::{OfParts, OneByOne, Part, Parts, Together, Travel, Travelled, Values};
use self::{count::Counts, session::Sessions, sliced::Sliced};
use crate::{
    Accumulator, Encode, Error, Key, Record, Slice,
    batch::Batch,
    exchange::Receiver,
    operator::{
        aggregate::{Aggregate, Before, Fold, Merged, Of},
        narrow::Pass,
        reduce::{Accumulate, Reducing},
        states::Account,
    },
    stage::{Input, Narrow, Place, Progress, Push, Sink},
    time::{EventTime, Watermark},
    tset::{Source, TSet},
};

/// A window: the first time that belongs to it, and the first after it that does not. Of windows of so many records,
/// the numbers of these instead, counted from 0 for each key.
pub type Window = (EventTime, EventTime);

/// How values are shared out among windows. Sizes below 1 are taken as 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    shape: Shape,
    lateness: EventTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Aligned { size: EventTime, step: EventTime },
    Session { gap: EventTime },
    Count { size: u64, step: u64 },
}

impl Windows {
    /// Windows of one size that follow one another without a gap, from time 0 in both directions.
    pub fn tumbling(size: EventTime) -> Self {
        Self::sliding(size, size)
    }

    /// Windows of one size, of which one begins at each multiple of `step`. With a step below the size they overlap, and a value belongs to several; what
    /// windows have in common is made once, and each is merged of such slices when it is over. With a greater one, some values belong to none.
    pub fn sliding(size: EventTime, step: EventTime) -> Self {
        Self::of(Shape::Aligned {
            size: size.max(1),
            step: step.max(1),
        })
    }

    /// Windows for each key, which end when no value has come for so long: values of the same window are less than `gap` apart from one another in time. The end of one is `gap`
    /// after its last value.
    pub fn session(gap: EventTime) -> Self {
        Self::of(Shape::Session { gap: gap.max(1) })
    }

    /// Windows of so many values of a key, in the order in which they come. They are given when they are full, and
    /// those that are not when the input ends. Time plays no part.
    pub fn count(size: u64) -> Self {
        Self::sliding_count(size, size)
    }

    /// The same, of which one begins after each `step` values of the key.
    pub fn sliding_count(size: u64, step: u64) -> Self {
        Self::of(Shape::Count {
            size: size.max(1),
            step: step.max(1),
        })
    }

    fn of(shape: Shape) -> Self {
        Self { shape, lateness: 0 }
    }

    /// Keeps windows for so much longer than event time says. A value that comes within that changes its window, which is
    /// given again for its key, as it is then: at once, or, if some of the window is on disk, when it changes no more. What comes
    /// later is late.
    pub fn lateness(self, allowed: EventTime) -> Self {
        Self {
            lateness: allowed.max(0),
            ..self
        }
    }
}

impl<S, N, K, V> TSet<S, N>
where
    S: Source,
    K: Key,
    V: Record,
    N: Narrow<S::Out, Out = (K, V)>,
{
    /// Shares out the values of each key among windows, by the times that `time` finds in them. What is to be made of
    /// them is said next.
    ///
    /// ```
    /// use dataflow::{Windows, collection, inline};
    ///
    /// // Sensors, the times of their readings, and these.
    /// let readings = collection(vec![(1u64, (0i64, 20u64)), (1, (4, 22)), (2, (5, 9)), (1, (11, 21))]);
    /// let highest = readings
    ///     .window_by_key(Windows::tumbling(10), |(time, _)| time)
    ///     .aggregate(|of| of.max(|(_, reading)| reading));
    /// let mut highest = inline(&highest.collect())?;
    /// highest.sort();
    /// assert_eq!(highest, [(1, ((0, 10), Some(22))), (1, ((10, 20), Some(21))), (2, ((0, 10), Some(9)))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn window_by_key<F>(self, windows: Windows, time: F) -> ByWindow<S, N, F>
    where
        F: Fn(V::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
    {
        ByWindow {
            stream: self,
            windows,
            time,
            travel: PhantomData,
        }
    }
}

/// Values that are shared out among windows, until it is said what is made of them.
///
/// That is a stream of keys, each with a window and what was made of the key's values in it. A result belongs to the last instant of its window: it is no
/// later than the watermarks that follow it if that is taken for its time.
#[must_use = "nothing is made of the values in windows yet"]
pub struct ByWindow<S, N, F, H = Together> {
    stream: TSet<S, N>,
    windows: Windows,
    time: F,
    travel: PhantomData<fn() -> H>,
}

impl<S, N, F, H> ByWindow<S, N, F, H> {
    fn travelling<I>(self) -> ByWindow<S, N, F, I> {
        ByWindow {
            stream: self.stream,
            windows: self.windows,
            time: self.time,
            travel: PhantomData,
        }
    }
}

impl<S, N, F, H> fmt::Debug for ByWindow<S, N, F, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByWindow")
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
}

#[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
impl<S, N, K, V, F, H> ByWindow<S, N, F, H>
where
    S: Source,
    K: Key,
    V: Record,
    N: Narrow<S::Out, Out = (K, V)>,
    F: Fn(V::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    /// Reduces the values of each window to one, as [`reduce_by_key`](TSet::reduce_by_key) does.
    ///
    /// ```
    /// use dataflow::{Windows, collection, inline};
    ///
    /// let clicks = collection(vec![('a', (0i64, 1u64)), ('a', (3, 1)), ('a', (20, 1))]);
    /// let visits = clicks
    ///     .window_by_key(Windows::session(10), |(time, _)| time)
    ///     .reduce(|(time, count), (_, more)| (time, count + more));
    /// assert_eq!(inline(&visits.collect())?, [('a', ((0, 13), (0, 2))), ('a', ((20, 30), (20, 1)))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn reduce<G>(self, reduce: G) -> H::Made<K, V, F, V, Reducing<V, G>, Reducing<V, G>>
    where
        V: Default,
        G: Fn(V, V::View<'_>) -> V + Clone + Send + Sync + 'static,
        H: Travel,
    {
        let reduce = Reducing::new(reduce);
        self.accumulate("reduce by window and key", (reduce.clone(), reduce))
    }

    /// Makes one record of the values of each window: several aggregates at once, say.
    pub fn aggregate<A: Aggregate<V>>(
        self,
        of: impl FnOnce(Of<V>) -> A,
    ) -> H::Made<K, V, F, A::State, Before<A, V>, Merged<A, V>>
    where
        H: Travel,
    {
        self.aggregate_as("aggregate by window and key", of(Of(PhantomData)))
    }

    /// Adds each value to a copy of `start`, of which there are several for each window. `merge` makes one of two.
    ///
    /// ```
    /// use dataflow::{Windows, collection, inline};
    ///
    /// let steps = collection(vec![('a', 1i64), ('a', 2), ('a', 4), ('a', 8)]);
    /// let sums = steps
    ///     .window_by_key(Windows::sliding_count(2, 1), |time| time)
    ///     .fold(0, |sum, step| *sum += step, |sum, other| *sum += other);
    /// let sums: Vec<_> = inline(&sums.collect())?.into_iter().map(|(_, (_, sum))| sum).collect();
    /// assert_eq!(sums, [3, 6, 12, 8]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn fold<T, G, M>(
        self,
        start: T,
        add: G,
        merge: M,
    ) -> H::Made<K, V, F, T, Before<Fold<T, G, M>, V>, Merged<Fold<T, G, M>, V>>
    where
        T: Record + Clone + Sync,
        G: Fn(&mut T, V::View<'_>) + Clone + Send + Sync + 'static,
        M: Fn(&mut T, T::View<'_>) + Clone + Send + Sync + 'static,
        H: Travel,
    {
        let fold = Of(PhantomData).fold(start, add, merge);
        self.aggregate_as("fold by window and key", fold)
    }

    /// All values of each window. Those of one have to fit in memory, and into one record.
    ///
    /// ```
    /// use dataflow::{Windows, collection, inline};
    ///
    /// let steps = collection(vec![('a', 1i64), ('a', 2), ('a', 14)]);
    /// let groups = steps.window_by_key(Windows::tumbling(10), |time| time).group();
    /// assert_eq!(inline(&groups.collect())?, [('a', ((0, 10), vec![1, 2])), ('a', ((10, 20), vec![14]))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn group(self) -> TSet<Windowed<K, V, Values<F>, All, AllOf>, Pass> {
        // Together, values are as many as one by one.
        self.travelling::<OneByOne>()
            .accumulate("group by window and key", (All, AllOf))
    }

    fn aggregate_as<A: Aggregate<V>>(
        self,
        name: &'static str,
        aggregate: A,
    ) -> H::Made<K, V, F, A::State, Before<A, V>, Merged<A, V>>
    where
        H: Travel,
    {
        let before = Before(aggregate.clone(), PhantomData);
        self.accumulate(name, (before, Merged(aggregate, PhantomData)))
    }

    fn accumulate<A, B>(self, name: &'static str, of: (A, B)) -> H::Made<K, V, F, A::State, A, B>
    where
        A: Accumulate<V>,
        B: Accumulate<A::State, State = A::State>,
        H: Travel,
    {
        H::send(self.stream, self.windows, self.time, name, of)
    }
}

/// Keeps all values.
#[derive(Debug, Clone, Copy)]
pub struct All;

impl<V: Record> Accumulate<V> for All {
    type State = Vec<V>;
    type Out = Vec<V>;

    fn start(&self, first: V::View<'_>) -> Vec<V> {
        vec![V::own(first)]
    }

    fn add(&self, state: &mut Vec<V>, more: V::View<'_>) {
        state.push(V::own(more));
    }

    fn add_and_weigh(&self, state: &mut Vec<V>, more: V::View<'_>) -> (usize, usize) {
        let more = V::own(more);
        let (before, inside) = (state.capacity(), more.heap_bytes());
        state.push(more);
        let element = size_of::<V>();
        (before * element, state.capacity() * element + inside)
    }

    fn finish(&self, state: Vec<V>) -> Vec<V> {
        state
    }
}

/// Keeps all values that others kept.
#[derive(Debug, Clone, Copy)]
pub struct AllOf;

impl<V: Record> Accumulate<Vec<V>> for AllOf {
    type State = Vec<V>;
    type Out = Vec<V>;

    fn start(&self, first: Slice<'_, V>) -> Vec<V> {
        Vec::own(first)
    }

    fn add(&self, state: &mut Vec<V>, more: Slice<'_, V>) {
        state.extend(more.iter().map(V::own));
    }

    fn finish(&self, state: Vec<V>) -> Vec<V> {
        state
    }
}

/// What was made of the values in windows.
pub struct Windowed<K, V, W, A, B, G = OnTime> {
    name: &'static str,
    windows: Windows,
    travelled: W,
    before: A,
    after: B,
    late: Option<Accumulator>,
    types: PhantomData<fn(K, V) -> G>,
}

impl<K, V, W, A, B, G> Windowed<K, V, W, A, B, G> {
    fn new(name: &'static str, windows: Windows, travelled: W, before: A, after: B) -> Self {
        Self {
            name,
            windows,
            travelled,
            before,
            after,
            late: None,
            types: PhantomData,
        }
    }
}

impl<K, V, W: Clone, A: Clone, B: Clone, G> Windowed<K, V, W, A, B, G> {
    fn giving<H>(&self) -> Windowed<K, V, W, A, B, H> {
        Windowed {
            name: self.name,
            windows: self.windows,
            travelled: self.travelled.clone(),
            before: self.before.clone(),
            after: self.after.clone(),
            late: self.late.clone(),
            types: PhantomData,
        }
    }
}

impl<K, V, W, A, B, G> TSet<Windowed<K, V, W, A, B, G>, Pass>
where
    K: Key,
    V: Record,
    W: Travelled<V>,
    A: Accumulate<V>,
    B: Accumulate<A::State, State = A::State>,
    G: Give<K, V, B::Out>,
{
    /// Counts the values that were too late for all their windows.
    ///
    /// ```
    /// use dataflow::{Accumulator, Windows, collection, inline};
    ///
    /// let late = Accumulator::new();
    /// let sums = collection(vec![('a', 1i64), ('a', 2)])
    ///     .window_by_key(Windows::tumbling(10), |time| time)
    ///     .aggregate(|of| of.sum(|time| time))
    ///     .count_late(&late);
    /// assert_eq!(inline(&sums.collect().with_total(&late))?, (vec![('a', ((0, 10), 3))], 0));
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn count_late(self, count: &Accumulator) -> Self {
        let count_it = |source: &Windowed<K, V, W, A, B, G>| Windowed {
            late: Some(count.clone()),
            ..source.giving()
        };
        self.with_source(count_it, "")
    }
}

impl<K, V, F, A, B> TSet<Windowed<K, V, Values<F>, A, B>, Pass>
where
    K: Key,
    V: Record,
    F: Fn(V::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
    A: Accumulate<V>,
    B: Accumulate<A::State, State = A::State>,
{
    /// Gives as well what was too late for all its windows: each record is either a result, or a key with a value that was late. Clones of
    /// the stream behind a [`direct`](TSet::direct) can go separate ways. It is for values that travel [one by one](ByWindow::one_by_one).
    #[allow(clippy::type_complexity, reason = "the type of a chain is the chain")]
    pub fn with_late(self) -> TSet<Windowed<K, V, Values<F>, A, B, WithLate>, Pass> {
        self.with_source(Windowed::giving, " with late")
    }
}

/// Gives results, and drops what is late.
#[derive(Debug, Clone, Copy)]
pub struct OnTime;

/// Gives results, and what is late.
#[derive(Debug, Clone, Copy)]
pub struct WithLate;

/// Says what a window operator gives.
pub trait Give<K: Key, V: Record, R: Encode>: 'static {
    /// The records that it gives.
    type Out: Record;

    /// Whether these are pairs of the same keys.
    const IS_BY_KEY: bool;

    /// Gives a result.
    fn result<D: Push<Self::Out>>(key: K::View<'_>, window: Window, value: R, down: &mut D);

    /// Gives what is late.
    fn late<D: Push<Self::Out>>(key: K::View<'_>, value: V::View<'_>, down: &mut D);
}

impl<K: Key, V: Record, R: Encode> Give<K, V, R> for OnTime {
    type Out = (K, (Window, R::Record));

    const IS_BY_KEY: bool = true;

    fn result<D: Push<Self::Out>>(key: K::View<'_>, window: Window, value: R, down: &mut D) {
        (key, (window, value)).with_view(|result| down.push(result));
    }

    fn late<D: Push<Self::Out>>(_key: K::View<'_>, _value: V::View<'_>, _down: &mut D) {}
}

impl<K: Key, V: Record, R: Encode> Give<K, V, R> for WithLate {
    type Out = (Option<(K, (Window, R::Record))>, Option<(K, V)>);

    const IS_BY_KEY: bool = false;

    fn result<D: Push<Self::Out>>(key: K::View<'_>, window: Window, value: R, down: &mut D) {
        let result = (Some((key, (window, value))), None::<(K, V)>);
        result.with_view(|result| down.push(result));
    }

    fn late<D: Push<Self::Out>>(key: K::View<'_>, value: V::View<'_>, down: &mut D) {
        let late = (None::<(K, (Window, R::Record))>, Some((key, value)));
        late.with_view(|late| down.push(late));
    }
}

impl<K, V, W, A, B, G> Source for Windowed<K, V, W, A, B, G>
where
    K: Key,
    V: Record,
    W: Travelled<V>,
    A: Accumulate<V>,
    B: Accumulate<A::State, State = A::State>,
    G: Give<K, V, B::Out>,
{
    type Input = Windowing<K, V, W, A, B, G>;
    type Out = G::Out;

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        let Windows { shape, lateness } = self.windows;
        Ok(Windowing {
            receiver: Receiver::new(place, 0),
            now: None,
            travelled: self.travelled.clone(),
            lateness,
            open: match shape {
                Shape::Aligned { size, step } => {
                    let (times, after) = ((size, step, lateness), self.after.clone());
                    Open::Sliced(Box::new(Sliced::new(place, self.name, times, after)?))
                }
                Shape::Session { gap } => Open::Sessions(Sessions::new(gap, lateness)),
                Shape::Count { size, step } => Open::Counts(Counts::new(size, step)),
            },
            finish: self.after.clone(),
            tools: Tools {
                before: self.before.clone(),
                after: self.after.clone(),
                account: Account::new(place, self.name)?,
            },
            late: self.late.clone(),
            closed: EventTime::MIN,
            has_ended: false,
            watermark: Watermark::UNKNOWN,
            give: PhantomData,
        })
    }

    fn is_by_key(&self) -> bool {
        G::IS_BY_KEY
    }
}

impl<K, V, W, A, B, G> fmt::Debug for Windowed<K, V, W, A, B, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windowed")
            .field("windows", &self.windows)
            .finish_non_exhaustive()
    }
}

/// What windows of any shape work with.
struct Tools<A, B> {
    before: A,
    after: B,
    account: Account,
}

/// The windows that may still change.
enum Open<K: Key, S: Record, B: Accumulate<S>> {
    Sliced(Box<Sliced<K, S, B>>),
    Sessions(Sessions<K, S>),
    Counts(Counts<K, S>),
}

/// What became of an attempt to give a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gave {
    Result,
    /// Something was done, and there may be one.
    Later,
    /// Nothing more is over.
    Nothing,
}

impl<K: Key, S: Record, B: Accumulate<S, State = S>> Open<K, S, B> {
    /// Adds a value to its windows; false if it is too late for all of them.
    #[inline]
    fn add<V, A>(
        &mut self,
        tools: &mut Tools<A, B>,
        (key, value): (K::View<'_>, V::View<'_>),
        time: EventTime,
        give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<bool, Error>
    where
        V: Record,
        A: Accumulate<V, State = S>,
    {
        match self {
            Self::Sliced(windows) => windows.add::<V, A>(tools, (key, value), time, give),
            Self::Sessions(windows) => windows.add::<V, A, B>(tools, (key, value), time, give),
            Self::Counts(windows) => windows.add::<V, A, B>(tools, (key, value), give),
        }
    }

    /// What ends by this time is over.
    fn close(&mut self, until: EventTime) {
        match self {
            Self::Sliced(windows) => windows.close(until),
            Self::Sessions(windows) => windows.close(until),
            Self::Counts(_) => {}
        }
    }

    /// No more values come, and time is beyond all windows.
    fn end(&mut self) {
        if let Self::Counts(windows) = self {
            windows.end();
        }
    }

    /// Gives one result of what is over.
    fn give<A>(
        &mut self,
        tools: &mut Tools<A, B>,
        give: impl FnMut(K::View<'_>, Window, S),
    ) -> Result<Gave, Error> {
        match self {
            Self::Sliced(windows) => windows.give(give),
            Self::Sessions(windows) => windows.give(tools, give),
            Self::Counts(windows) => windows.give(tools, give),
        }
    }
}

/// Keeps the windows of the keys that belong to this instance, and gives what was made of those that are over.
pub struct Windowing<K: Key, V: Record, W, A: Accumulate<V>, B: Accumulate<A::State>, G> {
    receiver: Receiver<(K, V)>,
    /// The batch whose records are added, and how many of them were.
    now: Option<(Batch<(K, V)>, usize)>,
    travelled: W,
    lateness: EventTime,
    open: Open<K, A::State, B>,
    tools: Tools<A, B>,
    finish: B,
    late: Option<Accumulator>,
    /// How far windows are closed.
    closed: EventTime,
    has_ended: bool,
    /// How far event time is in what was given.
    watermark: Watermark,
    give: PhantomData<fn() -> G>,
}

/// Results given in one turn, between which messages are looked for.
const GIVEN_A_TURN: usize = 4096;

impl<K, V, W, A, B, G> Windowing<K, V, W, A, B, G>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    B: Accumulate<A::State, State = A::State>,
{
    /// All that is over was given, and all that came was added. Goes on with what is next: time, a batch, or the end.
    fn go_on(&mut self) -> Progress {
        let is_done = self.receiver.is_done();
        let watermark = if is_done {
            Watermark::END
        } else {
            self.receiver.watermark()
        };
        self.watermark = match watermark {
            Watermark::At(_) => Watermark::At(self.closed.saturating_sub(self.lateness)),
            Watermark::Idle => Watermark::Idle,
        };
        if let Watermark::At(time) = watermark
            && time > self.closed
        {
            self.closed = time;
            self.open.close(time);
            return Progress::Made;
        }
        if is_done {
            if std::mem::replace(&mut self.has_ended, true) {
                return Progress::Done;
            }
            self.open.end();
            return Progress::Made;
        }
        match self.receiver.next_batch() {
            Some((_, batch)) => {
                self.now = Some((batch, 0));
                Progress::Made
            }
            None => Progress::None,
        }
    }
}

impl<K, V, W, A, B, G> Input for Windowing<K, V, W, A, B, G>
where
    K: Key,
    V: Record,
    W: Travelled<V>,
    A: Accumulate<V>,
    B: Accumulate<A::State, State = A::State>,
    G: Give<K, V, B::Out>,
{
    type Out = G::Out;

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
        self.watermark
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let finish = &self.finish;
        let mut given = 0;
        loop {
            let gave = self.open.give(&mut self.tools, |key, window, state| {
                G::result(key, window, finish.finish(state), down);
            })?;
            given += 1;
            match gave {
                Gave::Nothing => break,
                Gave::Later => return Ok(Progress::Made),
                Gave::Result if given == GIVEN_A_TURN || down.is_full() => {
                    return Ok(Progress::Made);
                }
                Gave::Result => {}
            }
        }
        let Some((batch, next)) = &mut self.now else {
            return Ok(self.go_on());
        };
        for (key, value) in batch.views(*next) {
            if down.is_full() {
                return Ok(Progress::Made);
            }
            let time = self.travelled.time(value);
            let is_taken = self.open.add::<V, A>(
                &mut self.tools,
                (key, value),
                time,
                |key, window, state| {
                    G::result(key, window, finish.finish(state), down);
                },
            )?;
            if !is_taken {
                if let Some(count) = &self.late {
                    count.add(self.travelled.number(value));
                }
                G::late(key, value, down);
            }
            *next += 1;
        }
        self.now = None;
        Ok(Progress::Made)
    }
}

impl<K, V, W, A, B, G> fmt::Debug for Windowing<K, V, W, A, B, G>
where
    K: Key,
    V: Record,
    A: Accumulate<V>,
    B: Accumulate<A::State>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Windowing")
            .field("closed", &self.closed)
            .finish_non_exhaustive()
    }
}
