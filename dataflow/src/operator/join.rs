//! Joins by hash: the right side is kept by key, the left side passes by.
//!
//! Both sides are exchanged by key, so that what belongs together meets. The right side comes first; while it does,
//! the left side waits in its windows, or, where that could stop the right side (see [`crate::graph`]), is kept too.
//! All that is kept is entered on the ledger, and a ledger that is full is an error that names the join.

use std::{collections::VecDeque, fmt, marker::PhantomData};

use transport::{Buffer, Rank, Reservation};

use crate::{
    Error, Key, Record,
    batch::{Batch, Kept, try_with_encoded},
    exchange::{ByKey, Direct, Outbox, Receiver, Routed, ToFirst},
    operator::{
        index::{Index, Row, Rows},
        narrow::Pass,
    },
    stage::{Input, Narrow, Place, Progress, Push, Sink},
    stream::{Source, Stream},
};

/// The port of each side.
const LEFT: usize = 0;
const RIGHT: usize = 1;

/// What the streams joined and their keys are.
type Joins<K, L, R, J> = Stream<Joined<K, L, R, J>, Pass>;

impl<S, N, K, L> Stream<S, N>
where
    S: Source,
    K: Key,
    L: Record,
    N: Narrow<S::Out, Out = (K, L)>,
{
    /// Every pair of values, of this stream and the other, that have the same key. A key that [is
    /// null](Key::is_null) is like no other. The other stream, which should be the smaller one, is kept in memory.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let people = collection(vec![(1u64, "Ada".to_owned()), (2, "Kurt".to_owned())]);
    /// let papers = collection(vec![(1u64, 1843u64), (1, 1842), (3, 1931)]);
    /// let mut both = inline(&people.join(papers).collect())?;
    /// both.sort();
    /// assert_eq!(both, [(1, ("Ada".to_owned(), 1842)), (1, ("Ada".to_owned(), 1843))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn join<S2, N2, R>(self, other: Stream<S2, N2>) -> Joins<K, L, R, Inner>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("join", other)
    }

    /// As [`join`](Self::join), and the values of this stream without a partner, with `None`.
    pub fn left_join<S2, N2, R>(self, other: Stream<S2, N2>) -> Joins<K, L, R, Left>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("left_join", other)
    }

    /// As [`join`](Self::join), and the values of the other stream without a partner, with `None`.
    pub fn right_join<S2, N2, R>(self, other: Stream<S2, N2>) -> Joins<K, L, R, Right>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("right_join", other)
    }

    /// As [`join`](Self::join), and the values of either stream without a partner, with `None`.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let left = collection(vec![(1u64, 'a'), (2, 'b')]);
    /// let right = collection(vec![(2u64, 'c'), (3, 'd')]);
    /// let mut all = inline(&left.full_join(right).collect())?;
    /// all.sort();
    /// assert_eq!(all, [(1, (Some('a'), None)), (2, (Some('b'), Some('c'))), (3, (None, Some('d')))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn full_join<S2, N2, R>(self, other: Stream<S2, N2>) -> Joins<K, L, R, Full>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("full_join", other)
    }

    /// The pairs of this stream whose key the other has too, each once.
    pub fn semi_join<S2, N2, R>(self, other: Stream<S2, N2>) -> Joins<K, L, R, Semi>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("semi_join", other)
    }

    /// The pairs of this stream whose key the other has not; those whose key is null among them.
    pub fn anti_join<S2, N2, R>(self, other: Stream<S2, N2>) -> Joins<K, L, R, Anti>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("anti_join", other)
    }

    fn join_as<J, S2, N2, R>(self, name: &'static str, other: Stream<S2, N2>) -> Joins<K, L, R, J>
    where
        J: Join,
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        let sides = vec![self.end(name, by_key), other.end(name, by_key)];
        let source = Joined {
            name,
            sides: PhantomData,
        };
        Stream::after(sides, source, format!("after {name}"))
    }

    /// For each key that one of the streams has, all values that each has. Null keys are keys like others here.
    /// Both streams are kept in memory; the values of one key have to fit into one record.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let left = collection(vec![(1u64, 'a'), (1, 'b')]);
    /// let right = collection(vec![(2u64, 'c')]);
    /// let mut all = inline(&left.cogroup(right).collect())?;
    /// all.iter_mut().for_each(|(_, (left, _))| left.sort());
    /// all.sort();
    /// assert_eq!(all, [(1, (vec!['a', 'b'], vec![])), (2, (vec![], vec!['c']))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn cogroup<S2, N2, R>(self, other: Stream<S2, N2>) -> Stream<Cogrouped<K, L, R>, Pass>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        let sides = vec![self.end("cogroup", by_key), other.end("cogroup", by_key)];
        Stream::after(sides, Cogrouped(PhantomData), "after cogroup")
    }

    /// All values of each key, in no particular order: they are kept in memory, and those of one key have to fit
    /// into one record. Where a value can be made of them on the way, [`reduce_by_key`](Self::reduce_by_key) or
    /// [`aggregate_by_key`](Self::aggregate_by_key) take less of both memory and time.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let pairs = collection(vec![('a', 1u64), ('b', 2), ('a', 3)]);
    /// let mut groups = inline(&pairs.group_by_key().map(|(key, values)| (key, values.iter().sum::<u64>())).collect())?;
    /// groups.sort();
    /// assert_eq!(groups, [('a', 4), ('b', 2)]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn group_by_key(self) -> Stream<Grouped<K, L, Unordered>, Pass> {
        self.group_as("group_by_key", Unordered)
    }

    /// All values of each key, in the order of what `order` makes of them; otherwise as
    /// [`group_by_key`](Self::group_by_key).
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let pairs = collection(vec![('a', 3u64), ('a', 1), ('a', 2)]);
    /// let groups = inline(&pairs.group_by_key_sorted(|value| std::cmp::Reverse(value)).collect())?;
    /// assert_eq!(groups, [('a', vec![3, 2, 1])]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn group_by_key_sorted<O, F>(self, order: F) -> Stream<Grouped<K, L, By<F, O>>, Pass>
    where
        O: Ord + 'static,
        F: Fn(L::View<'_>) -> O + Clone + Send + Sync + 'static,
    {
        self.group_as("group_by_key_sorted", By(order, PhantomData))
    }

    fn group_as<O: Order<L>>(self, name: &'static str, order: O) -> Stream<Grouped<K, L, O>, Pass> {
        let source = Grouped {
            name,
            order,
            pair: PhantomData,
        };
        self.exchange(name, by_key, source)
    }
}

impl<S, N, L> Stream<S, N>
where
    S: Source,
    L: Record,
    N: Narrow<S::Out, Out = L>,
{
    /// Every pair of a record of this stream and one of the other. The other stream, which should be the smaller
    /// one, is kept in memory on every rank.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let pairs = collection(vec![1u64, 2]).cross_join(collection(vec!['a', 'b', 'c']));
    /// assert_eq!(inline(&pairs.collect())?.len(), 6);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn cross_join<S2, N2, R>(self, other: Stream<S2, N2>) -> Stream<Crossed<L, R>, Pass>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = R>,
    {
        let stay = |place: &Place| Ok(Routed::new(Outbox::to_each(place)?, Direct::new(place)));
        let to_all = |place: &Place| Ok(Routed::new(Outbox::to_all(place)?, ToFirst));
        let sides = vec![
            self.end("cross_join", stay),
            other.end("cross_join", to_all),
        ];
        Stream::after(sides, Crossed(PhantomData), "after cross_join")
    }
}

/// The output of a side that is exchanged by key.
fn by_key<K: Key, V: Record>(place: &Place) -> Result<Routed<(K, V), ByKey>, Error> {
    Ok(Routed::new(Outbox::to_each(place)?, ByKey))
}

/// Which pairs a join gives, and what it makes of rows without a partner.
pub trait Join: Send + Sync + 'static {
    /// What it gives.
    type Out<K: Key, L: Record, R: Record>: Record;

    /// What is noted of a key of the right side that has found a partner.
    type Mark: Mark;

    /// Whether a row of the left side is done with when one partner is found.
    const ONCE: bool = false;

    /// Whether rows of the right side are given without a partner.
    const RIGHT_ALONE: bool = false;

    /// Pushes what becomes of two rows of the same key.
    fn pair<K: Key, L: Record, R: Record>(
        key: K::View<'_>,
        left: L::View<'_>,
        right: R::View<'_>,
        down: &mut impl Push<Self::Out<K, L, R>>,
    );

    /// Pushes what becomes of a row of the left side without a partner.
    fn left_alone<K: Key, L: Record, R: Record>(
        _key: K::View<'_>,
        _left: L::View<'_>,
        _down: &mut impl Push<Self::Out<K, L, R>>,
    ) {
    }

    /// Pushes what becomes of a row of the right side without a partner.
    fn right_alone<K: Key, L: Record, R: Record>(
        _key: K::View<'_>,
        _right: R::View<'_>,
        _down: &mut impl Push<Self::Out<K, L, R>>,
    ) {
    }
}

/// What may be noted of a key.
pub trait Mark: Default + 'static {
    /// Notes that it has a partner.
    fn set(&mut self);

    /// Whether that was noted.
    fn is_set(&self) -> bool;
}

impl Mark for () {
    fn set(&mut self) {}

    fn is_set(&self) -> bool {
        false
    }
}

impl Mark for bool {
    fn set(&mut self) {
        *self = true;
    }

    fn is_set(&self) -> bool {
        *self
    }
}

macro_rules! join {
    ($(#[$doc:meta])* $name:ident<$k:ident, $l:ident, $r:ident>: $out:ty, $mark:ty;
     $($constant:ident)*; pair($key:ident, $left:ident, $right:ident) $pair:expr;
     $(left_alone $left_alone:expr;)? $(right_alone $right_alone:expr;)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Join for $name {
            type Out<$k: Key, $l: Record, $r: Record> = $out;
            type Mark = $mark;
            $(const $constant: bool = true;)*

            #[inline]
            #[allow(unused_variables, reason = "not every join gives pairs")]
            fn pair<$k: Key, $l: Record, $r: Record>(
                $key: $k::View<'_>,
                $left: $l::View<'_>,
                $right: $r::View<'_>,
                down: &mut impl Push<Self::Out<$k, $l, $r>>,
            ) {
                let ($key, $left, $right) = ($k::shorten($key), $l::shorten($left), $r::shorten($right));
                if let Some(view) = $pair {
                    down.push(view);
                }
            }

            $(#[inline]
            fn left_alone<$k: Key, $l: Record, $r: Record>(
                $key: $k::View<'_>,
                $left: $l::View<'_>,
                down: &mut impl Push<Self::Out<$k, $l, $r>>,
            ) {
                let ($key, $left) = ($k::shorten($key), $l::shorten($left));
                down.push($left_alone);
            })?

            $(#[inline]
            fn right_alone<$k: Key, $l: Record, $r: Record>(
                $key: $k::View<'_>,
                $right: $r::View<'_>,
                down: &mut impl Push<Self::Out<$k, $l, $r>>,
            ) {
                let ($key, $right) = ($k::shorten($key), $r::shorten($right));
                down.push($right_alone);
            })?
        }
    };
}

join! {
    /// Pairs.
    Inner<K, L, R>: (K, (L, R)), ();
    ; pair(key, left, right) Some((key, (left, right)));
}

join! {
    /// Pairs, and rows of the left side alone.
    Left<K, L, R>: (K, (L, Option<R>)), ();
    ; pair(key, left, right) Some((key, (left, Some(right))));
    left_alone (key, (left, None));
}

join! {
    /// Pairs, and rows of the right side alone.
    Right<K, L, R>: (K, (Option<L>, R)), bool;
    RIGHT_ALONE; pair(key, left, right) Some((key, (Some(left), right)));
    right_alone (key, (None, right));
}

join! {
    /// Pairs, and rows of either side alone.
    Full<K, L, R>: (K, (Option<L>, Option<R>)), bool;
    RIGHT_ALONE; pair(key, left, right) Some((key, (Some(left), Some(right))));
    left_alone (key, (Some(left), None));
    right_alone (key, (None, Some(right)));
}

join! {
    /// Rows of the left side that have a partner.
    Semi<K, L, R>: (K, L), ();
    ONCE; pair(key, left, _right) Some((key, left));
}

join! {
    /// Rows of the left side that have none.
    Anti<K, L, R>: (K, L), ();
    ONCE; pair(key, left, _right) None;
    left_alone (key, left);
}

/// Streams that are joined.
pub struct Joined<K, L, R, J> {
    name: &'static str,
    #[allow(clippy::type_complexity, reason = "it names what is joined and how")]
    sides: PhantomData<fn() -> (K, L, R, J)>,
}

impl<K: Key, L: Record, R: Record, J: Join> Source for Joined<K, L, R, J> {
    type Input = HashJoin<K, L, R, J>;
    type Out = J::Out<K, L, R>;

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(HashJoin {
            left: Passing::new(place, LEFT, self.name)?,
            right: Receiver::new(place, RIGHT),
            index: Index::new(place, self.name, true)?,
            phase: Phase::Keeping,
        })
    }
}

impl<K, L, R, J> fmt::Debug for Joined<K, L, R, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Joins two streams.
pub struct HashJoin<K: Key, L: Record, R: Record, J: Join> {
    left: Passing<(K, L)>,
    right: Receiver<(K, R)>,
    index: Index<K, R, J::Mark>,
    phase: Phase,
}

/// How far a join is.
#[derive(Clone, Copy)]
enum Phase {
    /// The right side comes.
    Keeping,
    /// It is all there, and is entered by key.
    Building,
    /// The left side passes by. Its next row has partners from this one on that were not given yet.
    Passing(Row),
    /// Rows of the right side are given that have found no partner, from this one on.
    Alone(Row),
}

impl<K: Key, L: Record, R: Record, J: Join> HashJoin<K, L, R, J> {
    /// Joins rows of the left side, as long as the results are wanted.
    fn pass<D: Sink<J::Out<K, L, R>>>(&mut self, down: &mut D, mut partner: Row) -> Progress {
        let Some(rows) = self.left.rows() else {
            if !self.left.is_done() {
                return Progress::None;
            }
            self.phase = Phase::Alone(Row::NONE);
            return Progress::Made;
        };
        let index = &mut self.index;
        let end = rows.each(|(key, left)| {
            if down.is_full() {
                return false;
            }
            if partner == Row::NONE {
                let found = if K::is_null(key) {
                    None
                } else {
                    index.find(key)
                };
                let Some((first, mark)) = found else {
                    J::left_alone::<K, L, R>(key, left, down);
                    return true;
                };
                mark.set();
                partner = first;
            }
            while partner != Row::NONE {
                if down.is_full() {
                    return false;
                }
                let (_, right) = index.rows.view(partner);
                J::pair::<K, L, R>(key, left, right, down);
                partner = if J::ONCE {
                    Row::NONE
                } else {
                    index.after(partner)
                };
            }
            true
        });
        if end {
            self.left.next();
        }
        self.phase = Phase::Passing(partner);
        Progress::Made
    }

    /// Gives rows of the right side that have found no partner, as long as they are wanted.
    fn give_alone<D: Sink<J::Out<K, L, R>>>(&mut self, down: &mut D, mut row: Row) -> Progress {
        if !J::RIGHT_ALONE {
            return Progress::Done;
        }
        for _ in 0..GIVEN_A_TURN {
            if down.is_full() {
                break;
            }
            if row == Row::NONE {
                let Some(first) = self.index.next_key(|mark| !mark.is_set()) else {
                    return Progress::Done;
                };
                row = first;
            }
            let (key, right) = self.index.rows.view(row);
            J::right_alone::<K, L, R>(key, right, down);
            row = self.index.after(row);
        }
        self.phase = Phase::Alone(row);
        Progress::Made
    }
}

/// Results given in one turn, between which messages are looked for.
const GIVEN_A_TURN: usize = 4096;

impl<K: Key, L: Record, R: Record, J: Join> Input for HashJoin<K, L, R, J> {
    type Out = J::Out<K, L, R>;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        if port == RIGHT {
            return self.right.receive(port, from, batch);
        }
        let is_early = matches!(self.phase, Phase::Keeping | Phase::Building);
        self.left.receive(port, from, batch, is_early)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        if port == RIGHT {
            self.right.ended(port, from);
        } else {
            self.left.receiver.ended(port, from);
        }
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        match self.phase {
            Phase::Keeping => {
                if let Some((_, batch)) = self.right.next_batch() {
                    self.index.rows.keep(&batch)?;
                } else if self.right.is_done() {
                    self.phase = Phase::Building;
                } else {
                    return Ok(Progress::None);
                }
            }
            Phase::Building => {
                if !self.index.build()? {
                    self.phase = Phase::Passing(Row::NONE);
                }
            }
            Phase::Passing(partner) => return Ok(self.pass(down, partner)),
            Phase::Alone(row) => return Ok(self.give_alone(down, row)),
        }
        Ok(Progress::Made)
    }
}

impl<K: Key, L: Record, R: Record, J: Join> fmt::Debug for HashJoin<K, L, R, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashJoin")
    }
}

/// A side that passes by, in parts, and is kept until then where it must not be left unread.
struct Passing<T> {
    receiver: Receiver<T>,
    /// Batches that came too early.
    early: VecDeque<Kept<T>>,
    reservation: Reservation,
    may_wait: bool,
    /// The batch that passes, and how many of its rows have.
    now: Option<Part<T>>,
}

/// A batch that passes by.
struct Part<T> {
    rows: Held<T>,
    passed: usize,
}

/// A batch, where it is.
enum Held<T> {
    Arrived(Batch<T>),
    Kept(Kept<T>),
}

impl<T: Record> Part<T> {
    /// Calls `function` with each row that has not passed, until it says no; true when all have passed.
    #[inline]
    fn each(&mut self, function: impl FnMut(T::View<'_>) -> bool) -> bool {
        match &self.rows {
            Held::Arrived(batch) => each(batch.views(self.passed), &mut self.passed, function),
            Held::Kept(kept) => each(kept.views(self.passed), &mut self.passed, function),
        }
    }
}

#[inline]
fn each<V>(
    views: impl Iterator<Item = V>,
    passed: &mut usize,
    mut function: impl FnMut(V) -> bool,
) -> bool {
    for view in views {
        if !function(view) {
            return false;
        }
        *passed += 1;
    }
    true
}

impl<T: Record> Passing<T> {
    fn new(place: &Place, port: usize, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            receiver: Receiver::new(place, port),
            early: VecDeque::new(),
            reservation: place.ledger.reserve(holder, 0)?,
            may_wait: place.wiring.may_wait,
            now: None,
        })
    }

    /// Takes in a batch, which may come before it can pass.
    fn receive(
        &mut self,
        port: usize,
        from: Rank,
        batch: Buffer,
        is_early: bool,
    ) -> Result<(), Error> {
        self.receiver.receive(port, from, batch)?;
        if is_early
            && !self.may_wait
            && let Some((_, batch)) = self.receiver.next_batch()
        {
            self.reservation.grow(batch.bytes() as u64)?;
            self.early.push_back(batch.keep());
        }
        Ok(())
    }

    /// The batch whose turn it is.
    fn rows(&mut self) -> Option<&mut Part<T>> {
        if self.now.is_none() {
            let rows = match self.early.pop_front() {
                Some(kept) => Held::Kept(kept),
                None => Held::Arrived(self.receiver.next_batch()?.1),
            };
            self.now = Some(Part { rows, passed: 0 });
        }
        self.now.as_mut()
    }

    /// Gives the batch back that has passed.
    fn next(&mut self) {
        if let Some(Part {
            rows: Held::Kept(kept),
            ..
        }) = self.now.take()
        {
            let left = self.reservation.bytes() - kept.bytes() as u64;
            self.reservation.shrink_to(left);
        }
    }

    fn is_done(&self) -> bool {
        self.now.is_none() && self.early.is_empty() && self.receiver.is_done()
    }
}

/// Every pair of two streams.
pub struct Crossed<L, R>(PhantomData<fn() -> (L, R)>);

impl<L: Record, R: Record> Source for Crossed<L, R> {
    type Input = Cross<L, R>;
    type Out = (L, R);

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(Cross {
            left: Passing::new(place, LEFT, "cross_join")?,
            right: Receiver::new(place, RIGHT),
            rows: Rows::new(place, "cross_join")?,
            is_kept: false,
            next: (0, 0),
        })
    }
}

impl<L, R> fmt::Debug for Crossed<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Crossed")
    }
}

/// Pairs each row of the left side with each of the right side.
pub struct Cross<L: Record, R: Record> {
    left: Passing<L>,
    right: Receiver<R>,
    rows: Rows<R>,
    /// Whether all of the right side is there.
    is_kept: bool,
    /// The batch and the row of the right side that the next row of the left side is paired with next.
    next: (usize, usize),
}

impl<L: Record, R: Record> Input for Cross<L, R> {
    type Out = (L, R);

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        if port == RIGHT {
            self.right.receive(port, from, batch)
        } else {
            self.left.receive(port, from, batch, !self.is_kept)
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        if port == RIGHT {
            self.right.ended(port, from);
        } else {
            self.left.receiver.ended(port, from);
        }
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if !self.is_kept {
            if let Some((_, batch)) = self.right.next_batch() {
                self.rows.keep(&batch)?;
            } else if self.right.is_done() {
                self.is_kept = true;
            } else {
                return Ok(Progress::None);
            }
            return Ok(Progress::Made);
        }
        let Some(part) = self.left.rows() else {
            let is_done = self.left.is_done();
            return Ok(if is_done {
                Progress::Done
            } else {
                Progress::None
            });
        };
        let (batches, next) = (self.rows.batches(), &mut self.next);
        let end = part.each(|left| {
            while let Some(batch) = batches.get(next.0) {
                for right in batch.views(next.1) {
                    if down.is_full() {
                        return false;
                    }
                    down.push((L::shorten(left), R::shorten(right)));
                    next.1 += 1;
                }
                *next = (next.0 + 1, 0);
            }
            *next = (0, 0);
            true
        });
        if end {
            self.left.next();
        }
        Ok(Progress::Made)
    }
}

impl<L: Record, R: Record> fmt::Debug for Cross<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cross")
    }
}

/// In which order the values of a key are given.
pub trait Order<V: Record>: Clone + Send + Sync + 'static {
    /// Puts them in order.
    fn sort(&self, values: &mut [V::View<'_>]);
}

/// No particular one.
#[derive(Debug, Clone, Copy)]
pub struct Unordered;

impl<V: Record> Order<V> for Unordered {
    fn sort(&self, _values: &mut [V::View<'_>]) {}
}

/// That of what a function makes of each.
pub struct By<F, O>(F, PhantomData<fn() -> O>);

impl<F: Clone, O> Clone for By<F, O> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<F, O> fmt::Debug for By<F, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("By")
    }
}

impl<V, F, O> Order<V> for By<F, O>
where
    V: Record,
    O: Ord + 'static,
    F: Fn(V::View<'_>) -> O + Clone + Send + Sync + 'static,
{
    fn sort(&self, values: &mut [V::View<'_>]) {
        values.sort_by_cached_key(|&value| (self.0)(value));
    }
}

/// All values of each key.
pub struct Grouped<K, V, O> {
    name: &'static str,
    order: O,
    pair: PhantomData<fn() -> (K, V)>,
}

impl<K: Key, V: Record, O: Order<V>> Source for Grouped<K, V, O> {
    type Input = Group<K, V, O>;
    type Out = (K, Vec<V>);

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(Group {
            side: Side::new(place, 0, self.name)?,
            order: self.order.clone(),
        })
    }
}

impl<K, V, O> fmt::Debug for Grouped<K, V, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grouped")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A side that is kept by key, to its end. What is noted of a key is whether it was given.
struct Side<K: Key, V: Record> {
    receiver: Receiver<(K, V)>,
    index: Index<K, V, bool>,
}

impl<K: Key, V: Record> Side<K, V> {
    fn new(place: &Place, port: usize, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            receiver: Receiver::new(place, port),
            index: Index::new(place, holder, false)?,
        })
    }

    /// Goes on; done when all rows are kept by key.
    fn poll(&mut self) -> Result<Progress, Error> {
        if let Some((_, batch)) = self.receiver.next_batch() {
            self.index.rows.keep(&batch)?;
        } else if !self.receiver.is_done() {
            return Ok(Progress::None);
        } else if !self.index.build()? {
            return Ok(Progress::Done);
        }
        Ok(Progress::Made)
    }

    /// The values of the key whose first row this is.
    fn values(&self, first: Row) -> Vec<V::View<'_>> {
        let rows = self.index.rows_from(first);
        rows.map(|row| self.index.rows.view(row).1).collect()
    }
}

/// Gives the values of each key when all have come.
pub struct Group<K: Key, V: Record, O> {
    side: Side<K, V>,
    order: O,
}

impl<K: Key, V: Record, O: Order<V>> Input for Group<K, V, O> {
    type Out = (K, Vec<V>);

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.side.receiver.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.side.receiver.ended(port, from);
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let progress = self.side.poll()?;
        if progress != Progress::Done {
            return Ok(progress);
        }
        for _ in 0..GIVEN_A_TURN {
            if down.is_full() {
                break;
            }
            let Some(first) = self.side.index.next_key(|_| true) else {
                return Ok(Progress::Done);
            };
            let mut values = self.side.values(first);
            self.order.sort(&mut values);
            let (key, _) = self.side.index.rows.view(first);
            push_group(&(key, values), down)?;
        }
        Ok(Progress::Made)
    }
}

impl<K: Key, V: Record, O> fmt::Debug for Group<K, V, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Group")
    }
}

/// Pushes the values of a key as one record, if it can be one.
fn push_group<E: crate::Encode, D: Push<E::Record>>(group: &E, down: &mut D) -> Result<(), Error> {
    try_with_encoded(group, |view| down.push(view)).map_err(|_| Error::RecordTooLarge {
        record: std::any::type_name::<E::Record>(),
        limit: i32::MAX as usize,
    })
}

/// The values of two streams by key.
pub struct Cogrouped<K, L, R>(PhantomData<fn() -> (K, L, R)>);

impl<K: Key, L: Record, R: Record> Source for Cogrouped<K, L, R> {
    type Input = Cogroup<K, L, R>;
    type Out = (K, (Vec<L>, Vec<R>));

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(Cogroup {
            left: Side::new(place, LEFT, "cogroup")?,
            right: Side::new(place, RIGHT, "cogroup")?,
        })
    }
}

impl<K, L, R> fmt::Debug for Cogrouped<K, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cogrouped")
    }
}

/// Gives the values of each key on both sides when all have come.
pub struct Cogroup<K: Key, L: Record, R: Record> {
    left: Side<K, L>,
    right: Side<K, R>,
}

impl<K: Key, L: Record, R: Record> Input for Cogroup<K, L, R> {
    type Out = (K, (Vec<L>, Vec<R>));

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        match port {
            LEFT => self.left.receiver.receive(port, from, batch),
            _ => self.right.receiver.receive(port, from, batch),
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        match port {
            LEFT => self.left.receiver.ended(port, from),
            _ => self.right.receiver.ended(port, from),
        }
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        match (self.left.poll()?, self.right.poll()?) {
            (Progress::Done, Progress::Done) => {}
            (Progress::Made, _) | (_, Progress::Made) => return Ok(Progress::Made),
            _ => return Ok(Progress::None),
        }
        for _ in 0..GIVEN_A_TURN {
            if down.is_full() {
                break;
            }
            if let Some(first) = self.left.index.next_key(|_| true) {
                let (key, _) = self.left.index.rows.view(first);
                let partner = self.right.index.find(key).map(|(partner, given)| {
                    *given = true;
                    partner
                });
                let right = self.right.values(partner.unwrap_or(Row::NONE));
                push_group(&(key, (self.left.values(first), right)), down)?;
            } else if let Some(first) = self.right.index.next_key(|given| !given) {
                let (key, _) = self.right.index.rows.view(first);
                let none = Vec::<L::View<'_>>::new();
                push_group(&(key, (none, self.right.values(first))), down)?;
            } else {
                return Ok(Progress::Done);
            }
        }
        Ok(Progress::Made)
    }
}

impl<K: Key, L: Record, R: Record> fmt::Debug for Cogroup<K, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cogroup")
    }
}
