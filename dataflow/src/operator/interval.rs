//! Joins of records that happen within some time of each other.
//!
//! Each side keeps its records by key, in the order of their times, for as long as the other side can still bring a
//! partner: that follows from how far event time is there. So state is bounded by what happens within the interval,
//! and by how far one side is ahead of the other.

use std::{collections::VecDeque, fmt, marker::PhantomData, ops::RangeInclusive};

use transport::{Buffer, Rank};

use crate::{
    Accumulator, Error, Key, Record,
    batch::Batch,
    exchange::Receiver,
    operator::{
        join::{LEFT, RIGHT, by_key},
        narrow::Pass,
        states::{Account, States},
    },
    stage::{Input, Narrow, Place, Progress, Sink},
    time::{EventTime, Watermark},
    tset::{Source, TSet},
};

impl<S, N, K, L> TSet<S, N>
where
    S: Source,
    K: Key,
    L: Record,
    N: Narrow<S::Out, Out = (K, L)>,
{
    /// Pairs each value with those of the same key on the `right` side whose time minus its own is in `within`: all pairs
    /// for which `left_time + within.start() <= right_time <= left_time + within.end()`. Keys that are [null](Key::is_null) have no partners.
    ///
    /// Values are kept until event time says that no partner can come any more. What is late on its own side is dropped, and can be [counted](TSet::count_late). The time of a pair is the later of both.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let orders = collection(vec![(7u64, 10i64), (8, 11)]);
    /// let payments = collection(vec![(7u64, 12i64), (7, 30), (8, 9)]);
    /// let paid_in_time = orders.interval_join(payments, 0..=5, |ordered| ordered, |paid| paid);
    /// assert_eq!(inline(&paid_in_time.collect())?, [(7, (10, 12))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn interval_join<S2, N2, R, F, G>(
        self,
        right: TSet<S2, N2>,
        within: RangeInclusive<EventTime>,
        left_time: F,
        right_time: G,
    ) -> TSet<IntervalJoined<K, L, R, F, G>, Pass>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
        F: Fn(L::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
        G: Fn(R::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
    {
        let sides = vec![
            self.end_by_key("interval_join", by_key),
            right.end_by_key("interval_join", by_key),
        ];
        let joined = IntervalJoined {
            within,
            left_time,
            right_time,
            late: None,
            types: PhantomData,
        };
        TSet::after(sides, joined, "after interval_join")
    }
}

impl<K, L, R, F, G> TSet<IntervalJoined<K, L, R, F, G>, Pass>
where
    K: Key,
    L: Record,
    R: Record,
    F: Fn(L::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
    G: Fn(R::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    /// Counts the values of both sides that were late.
    pub fn count_late(self, count: &Accumulator) -> Self {
        let count_it = |source: &IntervalJoined<K, L, R, F, G>| IntervalJoined {
            within: source.within.clone(),
            left_time: source.left_time.clone(),
            right_time: source.right_time.clone(),
            late: Some(count.clone()),
            types: PhantomData,
        };
        self.with_source(count_it, "")
    }
}

/// Pairs of values that happen within some time of each other.
pub struct IntervalJoined<K, L, R, F, G> {
    within: RangeInclusive<EventTime>,
    left_time: F,
    right_time: G,
    late: Option<Accumulator>,
    types: PhantomData<fn(K, L) -> R>,
}

impl<K, L, R, F, G> Source for IntervalJoined<K, L, R, F, G>
where
    K: Key,
    L: Record,
    R: Record,
    F: Fn(L::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
    G: Fn(R::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    type Input = IntervalJoin<K, L, R, F, G>;
    type Out = (K, (L, R));

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        let (lower, upper) = (*self.within.start(), *self.within.end());
        Ok(IntervalJoin {
            left: Side::new(place, LEFT, self.left_time.clone(), (lower, upper)),
            // Seen from the right side, the interval lies the other way round.
            right: Side::new(
                place,
                RIGHT,
                self.right_time.clone(),
                (upper.saturating_neg(), lower.saturating_neg()),
            ),
            states: States::new(),
            account: Account::new(place, "interval_join")?,
            kept: 0,
            kept_max: KEPT_MIN,
            is_right_next: false,
            late: self.late.clone(),
        })
    }

    fn is_by_key(&self) -> bool {
        true
    }
}

impl<K, L, R, F, G> fmt::Debug for IntervalJoined<K, L, R, F, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntervalJoined")
            .field("within", &self.within)
            .finish_non_exhaustive()
    }
}

/// A batch, how many of its records were joined, and how many partners the next one has had.
type Now<T> = (Batch<T>, usize, usize);

/// One of the two sides.
struct Side<K, T, F> {
    receiver: Receiver<(K, T)>,
    /// What is joined.
    now: Option<Now<(K, T)>>,
    time: F,
    /// Where partners are, from the time of a record on.
    within: (EventTime, EventTime),
    /// How far event time is.
    at: EventTime,
}

impl<K: Key, T: Record, F> Side<K, T, F> {
    fn new(place: &Place, port: usize, time: F, within: (EventTime, EventTime)) -> Self {
        Self {
            receiver: Receiver::new(place, port),
            now: None,
            time,
            within,
            at: EventTime::MIN,
        }
    }

    /// How far event time is in what follows.
    fn watermark(&mut self) -> Watermark {
        if self.now.is_none() && self.receiver.is_done() {
            return Watermark::END;
        }
        self.receiver.watermark_behind(self.now.is_some())
    }

    /// Takes in what is next; true if that is a batch.
    fn take_next(&mut self) -> bool {
        if self.now.is_some() {
            return true;
        }
        if let Watermark::At(time) = self.watermark() {
            self.at = self.at.max(time);
        }
        let next = self.receiver.next_batch();
        self.now = next.map(|(_, batch)| (batch, 0, 0));
        self.now.is_some()
    }

    /// Whether the next record has had some of its partners.
    fn is_amid(&self) -> bool {
        self.now
            .as_ref()
            .is_some_and(|(_, _, partners)| *partners > 0)
    }

    fn is_done(&self) -> bool {
        self.now.is_none() && self.receiver.is_done()
    }
}

/// What is kept of a key on one side, the earliest first.
struct Kept<T>(VecDeque<(EventTime, T)>);

impl<T: Record> Kept<T> {
    const NONE: Self = Self(VecDeque::new());

    fn keep(&mut self, time: EventTime, value: T, account: &mut Account) -> Result<(), Error> {
        account.insist(Self::bytes(&value))?;
        let place = self.0.partition_point(|(other, _)| *other <= time);
        self.0.insert(place, (time, value));
        Ok(())
    }

    /// Forgets what happened before a time.
    fn forget(&mut self, before: EventTime, account: &mut Account) -> usize {
        let number = self.0.partition_point(|(time, _)| *time < before);
        for (_, value) in self.0.drain(..number) {
            account.give_back(Self::bytes(&value));
        }
        if self.0.capacity() > 4 * self.0.len() {
            self.0.shrink_to(2 * self.0.len());
        }
        number
    }

    fn bytes(value: &T) -> usize {
        size_of::<(EventTime, T)>() + value.heap_bytes()
    }
}

struct Both<L, R> {
    left: Kept<L>,
    right: Kept<R>,
}

/// Records above which it is looked for what can be forgotten, the first time.
const KEPT_MIN: usize = 1 << 10;

/// Joins what is near in time.
pub struct IntervalJoin<K: Key, L, R, F, G> {
    left: Side<K, L, F>,
    right: Side<K, R, G>,
    states: States<K, Both<L, R>>,
    account: Account,
    /// Records in all states, and with how many it is looked for what can be forgotten.
    kept: usize,
    kept_max: usize,
    is_right_next: bool,
    late: Option<Accumulator>,
}

/// Joins records of one side with what is kept of the other. `$ours` and `$theirs` name the sides, and `$pair` makes
/// a pair of an own value and another.
macro_rules! join_side {
    ($join:ident, $down:ident, $ours:ident, $theirs:ident, $ours_type:ty, |$own:ident, $other:ident| $pair:expr) => {{
        let side = &mut $join.$ours;
        let Some((batch, next, partners)) = &mut side.now else {
            return Ok(Progress::None);
        };
        let (lower, upper) = side.within;
        for (key, $own) in batch.views(*next) {
            if $down.is_full() {
                return Ok(Progress::Made);
            }
            let time = (side.time)($own);
            if *partners == 0 && time < side.at {
                if let Some(count) = &$join.late {
                    count.add(1);
                }
                *next += 1;
                continue;
            }
            if K::is_null(key) {
                *next += 1;
                continue;
            }
            let (first, last) = (time.saturating_add(lower), time.saturating_add(upper));
            let hash = K::hash(key);
            let both = match $join.states.find(hash, key) {
                Some(both) => both,
                None => {
                    let none = Both {
                        left: Kept::NONE,
                        right: Kept::NONE,
                    };
                    $join.states.insert(hash, key, none, &mut $join.account)?
                }
            };
            let others = &both.$theirs.0;
            let mut place = others.partition_point(|(other, _)| *other < first) + *partners;
            while let Some((other, value)) = others.get(place)
                && *other <= last
            {
                if $down.is_full() {
                    return Ok(Progress::Made);
                }
                value.with_view(|$other| $down.push((K::shorten(key), $pair)));
                *partners += 1;
                place += 1;
            }
            *partners = 0;
            *next += 1;
            if last >= $join.$theirs.at {
                let own = <$ours_type>::own($own);
                both.$ours.keep(time, own, &mut $join.account)?;
                $join.kept += 1;
            }
        }
        side.now = None;
        $join.forget();
        Ok(Progress::Made)
    }};
}

impl<K: Key, L: Record, R: Record, F, G> IntervalJoin<K, L, R, F, G> {
    /// Forgets what can have no partner any more, if that is likely to be much.
    fn forget(&mut self) {
        if self.kept < self.kept_max {
            return;
        }
        // Who is at time t needs partners from t + lower on.
        let left_from = self.right.at.saturating_add(self.right.within.0);
        let right_from = self.left.at.saturating_add(self.left.within.0);
        let (account, kept) = (&mut self.account, &mut self.kept);
        self.states.retain(account, |both, account| {
            *kept -= both.left.forget(left_from, account);
            *kept -= both.right.forget(right_from, account);
            !both.left.0.is_empty() || !both.right.0.is_empty()
        });
        self.kept_max = (2 * self.kept).max(KEPT_MIN);
    }
}

impl<K, L, R, F, G> Input for IntervalJoin<K, L, R, F, G>
where
    K: Key,
    L: Record,
    R: Record,
    F: Fn(L::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
    G: Fn(R::View<'_>) -> EventTime + Clone + Send + Sync + 'static,
{
    type Out = (K, (L, R));

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        if port == RIGHT {
            self.right.receiver.receive(port, from, batch)
        } else {
            self.left.receiver.receive(port, from, batch)
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        if port == RIGHT {
            self.right.receiver.ended(port, from);
        } else {
            self.left.receiver.ended(port, from);
        }
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        if port == RIGHT {
            self.right.receiver.advance(port, sender, watermark);
        } else {
            self.left.receiver.advance(port, sender, watermark);
        }
    }

    fn watermark(&mut self) -> Watermark {
        Watermark::least([self.left.watermark(), self.right.watermark()])
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let (left, right) = (self.left.take_next(), self.right.take_next());
        // Sides take turns, so that neither is far ahead, but not amid the partners of a record.
        let is_right_next = right && (self.is_right_next || !left);
        if self.right.is_amid() || is_right_next && !self.left.is_amid() {
            self.is_right_next = false;
            return join_side!(self, down, right, left, R, |own, other| (
                L::shorten(other),
                R::shorten(own)
            ));
        }
        if left {
            self.is_right_next = true;
            return join_side!(self, down, left, right, L, |own, other| (
                L::shorten(own),
                R::shorten(other)
            ));
        }
        Ok(if self.left.is_done() && self.right.is_done() {
            Progress::Done
        } else {
            Progress::None
        })
    }
}

impl<K: Key, L, R, F, G> fmt::Debug for IntervalJoin<K, L, R, F, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IntervalJoin")
            .field("kept", &self.kept)
            .finish_non_exhaustive()
    }
}
