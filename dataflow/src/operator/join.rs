//! Joins by hash: the right side is kept by key, the left side passes by.
//!
//! Both sides are exchanged by key, so that what belongs together meets. The right side comes first; while it does,
//! the left side waits in its windows, or, where that could stop the right side (see [`crate::graph`]), is kept too.
//! All that is kept is entered on the ledger, and a ledger that is full is an error that names the join.

use std::{collections::VecDeque, fmt, marker::PhantomData};

use transport::{Buffer, Rank, Reservation};

use crate::{
    Error, Key, Record,
    batch::{Batch, Page},
    exchange::{ByKey, Outbox, Receiver, Routed},
    operator::{
        index::{Found, GROUP, Index, Row},
        narrow::Pass,
    },
    stage::{Input, Narrow, Place, Progress, Push, Sink},
    stream::{Source, Stream},
};

/// The port of each side.
pub(super) const LEFT: usize = 0;
pub(super) const RIGHT: usize = 1;

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
}

/// The output of a side that is exchanged by key.
pub(super) fn by_key<K: Key, V: Record>(place: &Place) -> Result<Routed<(K, V), ByKey>, Error> {
    Ok(Routed::new(Outbox::to_each(place)?, ByKey))
}

/// Which pairs a join gives, and what it makes of rows without a partner.
pub trait Join: Send + Sync + 'static {
    /// What it gives.
    type Out<K: Key, L: Record, R: Record>: Record;

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

macro_rules! join {
    ($(#[$doc:meta])* $name:ident<$k:ident, $l:ident, $r:ident>: $out:ty;
     $($constant:ident)*; pair($key:ident, $left:ident, $right:ident) $pair:expr;
     $(left_alone $left_alone:expr;)? $(right_alone $right_alone:expr;)?) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy)]
        pub struct $name;

        impl Join for $name {
            type Out<$k: Key, $l: Record, $r: Record> = $out;
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
    Inner<K, L, R>: (K, (L, R));
    ; pair(key, left, right) Some((key, (left, right)));
}

join! {
    /// Pairs, and rows of the left side alone.
    Left<K, L, R>: (K, (L, Option<R>));
    ; pair(key, left, right) Some((key, (left, Some(right))));
    left_alone (key, (left, None));
}

join! {
    /// Pairs, and rows of the right side alone.
    Right<K, L, R>: (K, (Option<L>, R));
    RIGHT_ALONE; pair(key, left, right) Some((key, (Some(left), right)));
    right_alone (key, (None, right));
}

join! {
    /// Pairs, and rows of either side alone.
    Full<K, L, R>: (K, (Option<L>, Option<R>));
    RIGHT_ALONE; pair(key, left, right) Some((key, (Some(left), Some(right))));
    left_alone (key, (Some(left), None));
    right_alone (key, (None, Some(right)));
}

join! {
    /// Rows of the left side that have a partner.
    Semi<K, L, R>: (K, L);
    ONCE; pair(key, left, _right) Some((key, left));
}

join! {
    /// Rows of the left side that have none.
    Anti<K, L, R>: (K, L);
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
            found: (usize::MAX, [Found::NOTHING; GROUP]),
            kind: PhantomData,
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
    index: Index<K, R>,
    /// Where the keys are of the rows of the left side from a number on.
    found: (usize, [Found; GROUP]),
    kind: PhantomData<fn() -> J>,
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
        let Some(Part { rows, passed }) = self.left.rows() else {
            if !self.left.is_done() {
                return Progress::None;
            }
            self.phase = Phase::Alone(Row::NONE);
            return Progress::Made;
        };
        let index = &mut self.index;
        let (from, found) = &mut self.found;
        let elements = rows.elements();
        // What was given before this turn was the first partner or another.
        let mut is_followed = true;
        while *passed < elements.len() && !down.is_full() {
            if !(*from..from.saturating_add(GROUP)).contains(passed) {
                let group = *passed..elements.len().min(*passed + GROUP);
                index.find_all::<L>(&elements[group], found);
                *from = *passed;
            }
            let (key, left) = <(K, L)>::view(&elements[*passed]);
            if partner == Row::NONE {
                let found = found[*passed - *from];
                if found == Found::NOTHING {
                    J::left_alone::<K, L, R>(key, left, down);
                    *passed += 1;
                    continue;
                }
                if J::RIGHT_ALONE {
                    index.mark(found);
                }
                (partner, is_followed) = index.first(found);
            }
            loop {
                let (_, right) = index.rows.view(partner);
                J::pair::<K, L, R>(key, left, right, down);
                let is_last = J::ONCE || !is_followed;
                partner = if is_last {
                    Row::NONE
                } else {
                    index.after(partner)
                };
                if partner == Row::NONE {
                    *passed += 1;
                    break;
                }
                if down.is_full() {
                    break;
                }
            }
        }
        if *passed == elements.len() {
            self.left.next();
            *from = usize::MAX;
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
                let Some(first) = self.index.next_unmarked() else {
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
pub(super) const GIVEN_A_TURN: usize = 4096;

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
pub(super) struct Passing<T> {
    pub(super) receiver: Receiver<T>,
    /// Batches that came too early.
    early: VecDeque<Page<T>>,
    reservation: Reservation,
    may_wait: bool,
    /// The batch that passes, and how many of its rows have.
    now: Option<Part<T>>,
}

/// A batch that passes by, and how many of its rows have.
pub(super) struct Part<T> {
    pub(super) rows: Held<T>,
    pub(super) passed: usize,
}

/// A batch, where it is.
pub(super) enum Held<T> {
    Arrived(Batch<T>),
    Kept(Page<T>),
}

impl<T: Record> Held<T> {
    pub(super) fn elements(&self) -> &[T::Archived] {
        match self {
            Self::Arrived(batch) => batch.elements(),
            Self::Kept(kept) => kept.elements(),
        }
    }
}

impl<T: Record> Passing<T> {
    pub(super) fn new(place: &Place, port: usize, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            receiver: Receiver::new(place, port),
            early: VecDeque::new(),
            reservation: place.ledger.reserve(holder, 0)?,
            may_wait: place.wiring.may_wait,
            now: None,
        })
    }

    /// Takes in a batch, which may come before it can pass.
    pub(super) fn receive(
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
    pub(super) fn rows(&mut self) -> Option<&mut Part<T>> {
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
    pub(super) fn next(&mut self) {
        if let Some(Part {
            rows: Held::Kept(kept),
            ..
        }) = self.now.take()
        {
            let left = self.reservation.bytes() - kept.capacity() as u64;
            self.reservation.shrink_to(left);
        }
    }

    pub(super) fn is_done(&self) -> bool {
        self.now.is_none() && self.early.is_empty() && self.receiver.is_done()
    }
}
