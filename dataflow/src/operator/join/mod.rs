//! Joins: pairs of two streams that have the same key.
//!
//! Both sides are exchanged by key, so that what belongs together meets. A [`HashJoin`] keeps the right side by key,
//! and has the left side pass by. When the ledger has no room for that, and for a [`MergeJoin`] from the start, both
//! sides are put in order, on disk as far as they have to be, and gone through side by side.

mod hash;
mod merge;

pub use self::{
    hash::{HashJoin, Joined},
    merge::{MergeJoin, MergeJoined},
};
use crate::{
    Error, Key, Ordered, Record,
    exchange::{ByKey, Outbox, Routed},
    operator::narrow::Pass,
    stage::{Narrow, Place, Push},
    tset::{Source, TSet},
};

/// The port of each side.
pub(super) const LEFT: usize = 0;
pub(super) const RIGHT: usize = 1;

/// What the streams joined and their keys are.
type Joins<K, L, R, J> = TSet<Joined<K, L, R, J>, Pass>;

impl<S, N, K, L> TSet<S, N>
where
    S: Source,
    K: Key,
    L: Record,
    N: Narrow<S::Out, Out = (K, L)>,
{
    /// Every pair of values, of this stream and the other, that have the same key. A key that [is
    /// null](Key::is_null) is like no other. The other stream, which should be the smaller one, is kept in memory;
    /// where there is no room for it, both are kept on disk.
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
    pub fn join<S2, N2, R>(self, other: TSet<S2, N2>) -> Joins<K, L, R, Inner>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("join", other)
    }

    /// As [`join`](Self::join), and the values of this stream without a partner, with `None`.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let left = collection(vec![(1u64, 'a'), (2, 'b')]);
    /// let right = collection(vec![(2u64, 'c'), (3, 'd')]);
    /// let mut all = inline(&left.left_join(right).collect())?;
    /// all.sort();
    /// assert_eq!(all, [(1, ('a', None)), (2, ('b', Some('c')))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn left_join<S2, N2, R>(self, other: TSet<S2, N2>) -> Joins<K, L, R, Left>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("left_join", other)
    }

    /// As [`join`](Self::join), and the values of the other stream without a partner, with `None`.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let left = collection(vec![(1u64, 'a'), (2, 'b')]);
    /// let right = collection(vec![(2u64, 'c'), (3, 'd')]);
    /// let mut all = inline(&left.right_join(right).collect())?;
    /// all.sort();
    /// assert_eq!(all, [(2, (Some('b'), 'c')), (3, (None, 'd'))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn right_join<S2, N2, R>(self, other: TSet<S2, N2>) -> Joins<K, L, R, Right>
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
    pub fn full_join<S2, N2, R>(self, other: TSet<S2, N2>) -> Joins<K, L, R, Full>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("full_join", other)
    }

    /// The pairs of this stream whose key the other has too, each once.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let left = collection(vec![(1u64, 'a'), (2, 'b')]);
    /// let right = collection(vec![(2u64, 'c'), (3, 'd')]);
    /// let mut all = inline(&left.semi_join(right).collect())?;
    /// all.sort();
    /// assert_eq!(all, [(2, 'b')]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn semi_join<S2, N2, R>(self, other: TSet<S2, N2>) -> Joins<K, L, R, Semi>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("semi_join", other)
    }

    /// The pairs of this stream whose key the other has not; those whose key is null among them.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let left = collection(vec![(1u64, 'a'), (2, 'b')]);
    /// let right = collection(vec![(2u64, 'c'), (3, 'd')]);
    /// let mut all = inline(&left.anti_join(right).collect())?;
    /// all.sort();
    /// assert_eq!(all, [(1, 'a')]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn anti_join<S2, N2, R>(self, other: TSet<S2, N2>) -> Joins<K, L, R, Anti>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        self.join_as("anti_join", other)
    }

    fn join_as<J, S2, N2, R>(self, name: &'static str, other: TSet<S2, N2>) -> Joins<K, L, R, J>
    where
        J: Join,
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        let sides = vec![
            self.end_by_key(name, by_key),
            other.end_by_key(name, by_key),
        ];
        TSet::after(sides, Joined::new(name), format!("after {name}"))
    }
}

impl<K: Key, L: Record, R: Record, J: Join> TSet<Joined<K, L, R, J>, Pass> {
    /// Has it joined by putting both sides in the order of their keys, and going through them side by side. Each
    /// instance then gives what it gives in the order of the keys. Neither side has to fit in memory.
    ///
    /// That takes longer than to join by hash where the right side has room in memory, but nothing is kept of either
    /// side by key: so it is the better choice for two large sides.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let left = collection(vec![(3u64, 'a'), (1, 'b'), (2, 'c')]);
    /// let right = collection(vec![(2u64, 'd'), (3, 'e')]);
    /// let both = inline(&left.left_join(right).by_merging().collect())?;
    /// assert_eq!(both, [(1, ('b', None)), (2, ('c', Some('d'))), (3, ('a', Some('e')))]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn by_merging(self) -> TSet<MergeJoined<K, L, R, J>, Pass>
    where
        K: Ordered,
    {
        self.with_source(MergeJoined::of, " by merging")
    }
}

/// The output of a side that is exchanged by key.
pub(crate) fn by_key<K: Key, V: Record>(place: &Place) -> Result<Routed<(K, V), ByKey>, Error> {
    Ok(Routed::new(Outbox::to_each(place)?, ByKey::new(place)))
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

/// Results given in one turn, between which messages are looked for.
pub(super) const GIVEN_A_TURN: usize = 4096;
