//! A total order over all ranks.
//!
//! Three tasks sort. On each rank, [`Collect`] takes in all of the rank's records, into sorted runs, which go to
//! disk when the ledger is tight. It also takes a sample of their keys, at even distances in the sorted order, and
//! tells it to every rank. So, when all input is over, all ranks know how the keys of the whole are distributed, and
//! find the same *splitters* between the instances of the task that follows. [`Spread`] then merges what its rank
//! has once for each of them, from splitter to splitter, and sends it in order; and [`Merge`] merges what arrives.
//! Every record is on disk at most once (but with very many runs), and no instance gets much more than its part,
//! whatever the order of the input: the sample is of all of it.
//!
//! That many records have the same key does not matter: a splitter also tells from which rank's records on it
//! holds, so equal keys may be split between ranks, where they are neighbours. Who needs equal keys on one rank
//! groups by key instead.

mod collect;
mod merge;
mod radix;
mod sample;
mod spread;
mod store;

use std::{cmp::Ordering, fmt, marker::PhantomData, rc::Rc, sync::Arc};

pub(crate) use self::store::{Sizes, Sources, Step, Store};
use self::{
    collect::{Collect, Shared},
    merge::Merge,
    spread::Spread,
};
use crate::{
    Encode, Error, Ordered, Record,
    graph::{Extent, Node, Placement},
    operator::narrow::Pass,
    stage::{Narrow, Place},
    tset::{Source, TSet},
};

/// What records are put in order by.
pub trait OrderBy<T: Record>: Clone + Send + Sync + 'static {
    /// The key.
    type Key: Ordered;

    /// Finds the key in a record and hands its view to `function`.
    fn with_key<R>(
        &self,
        view: T::View<'_>,
        function: impl FnOnce(<Self::Key as Record>::View<'_>) -> R,
    ) -> R;

    /// The number of a record's key.
    #[inline]
    fn prefix(&self, view: T::View<'_>) -> u64 {
        self.with_key(view, |key| Self::Key::prefix(key))
    }

    /// How the keys of two records compare.
    #[inline]
    fn compare(&self, a: T::View<'_>, b: T::View<'_>) -> Ordering {
        self.with_key(a, |a| self.with_key(b, |b| Self::Key::compare(a, b)))
    }
}

/// Records are their own keys.
#[derive(Debug, Clone, Copy)]
pub struct Itself;

impl<T: Ordered> OrderBy<T> for Itself {
    type Key = T;

    #[inline]
    fn with_key<R>(&self, view: T::View<'_>, function: impl FnOnce(T::View<'_>) -> R) -> R {
        function(view)
    }
}

/// The first of a pair is the key.
#[derive(Debug, Clone, Copy)]
pub struct First;

impl<K: Ordered, V: Record> OrderBy<(K, V)> for First {
    type Key = K;

    #[inline]
    fn with_key<R>(
        &self,
        (key, _): (K::View<'_>, V::View<'_>),
        function: impl FnOnce(K::View<'_>) -> R,
    ) -> R {
        function(key)
    }
}

/// A function finds the key.
#[derive(Clone)]
pub struct SortBy<F>(F);

impl<F> fmt::Debug for SortBy<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SortBy")
    }
}

impl<T, E, F> OrderBy<T> for SortBy<F>
where
    T: Record,
    E: Encode<Record: Ordered>,
    F: Fn(T::View<'_>) -> E + Clone + Send + Sync + 'static,
{
    type Key = E::Record;

    #[inline]
    fn with_key<R>(
        &self,
        view: T::View<'_>,
        function: impl FnOnce(<E::Record as Record>::View<'_>) -> R,
    ) -> R {
        (self.0)(view).with_view(function)
    }
}

/// Records in order: each rank has those between two splitters.
pub struct Sorted<T, O> {
    order: O,
    record: PhantomData<fn() -> T>,
}

impl<T: Record, O: OrderBy<T>> Source for Sorted<T, O> {
    type Input = Merge<T, O>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Merge<T, O>, Error> {
        Ok(Merge::new(place, self.order.clone()))
    }

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }
}

impl<T, O> fmt::Debug for Sorted<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sorted")
    }
}

impl<S, N> TSet<S, N>
where
    S: Source,
    N: Narrow<S::Out>,
{
    /// Sorts all records: those of an instance come in order, and before those of the instances behind it. So the
    /// files
    /// of [`write_text`](Self::write_text), in the order of their names, are sorted as a whole.
    ///
    /// What memory has no room for is kept on disk: see [`spill::Config`](crate::spill::Config). Records of
    /// which one does not come before the other come in any order, and may be on different ranks.
    ///
    /// Where clones of a sorted stream are read by different numbers of instances, running the job fails with
    /// [`Error::SortedTwice`]: sort each.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let lines = ["b", "c", "a"].map(String::from);
    /// let job = collection(lines.into()).sort().collect();
    /// assert_eq!(inline(&job)?, ["a", "b", "c"]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn sort(self) -> TSet<Sorted<N::Out, Itself>, Pass>
    where
        N::Out: Ordered,
    {
        self.sort_in("sort", Itself)
    }

    /// The same for pairs, by their keys alone.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec![(2u32, 'a'), (1, 'b')]).sort_by_key().collect();
    /// assert_eq!(inline(&job)?, [(1, 'b'), (2, 'a')]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn sort_by_key<K, V>(self) -> TSet<Sorted<(K, V), First>, Pass>
    where
        K: Ordered,
        V: Record,
        N: Narrow<S::Out, Out = (K, V)>,
    {
        self.sort_in("sort_by_key", First)
    }

    /// The same by a key that `key` finds in the view of a record. It gives a value of its own, such as a number,
    /// or an array of bytes, each time two records are compared; to sort by what it borrows, have
    /// [`flat_map`](Self::flat_map) push a pair, and use [`sort_by_key`](Self::sort_by_key).
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let words = ["three", "two"].map(String::from);
    /// let job = collection(words.into()).sort_by(|word| word.len() as u64).collect();
    /// assert_eq!(inline(&job)?, ["two", "three"]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn sort_by<E, F>(self, key: F) -> TSet<Sorted<N::Out, SortBy<F>>, Pass>
    where
        E: Encode<Record: Ordered>,
        F: Fn(<N::Out as Record>::View<'_>) -> E + Clone + Send + Sync + 'static,
    {
        self.sort_in("sort_by", SortBy(key))
    }

    fn sort_in<O>(self, name: &str, order: O) -> TSet<Sorted<N::Out, O>, Pass>
    where
        O: OrderBy<N::Out>,
    {
        // Where the two find what they share on a rank.
        let shared = Arc::new(());
        let (collected, spread, found) = (order.clone(), order.clone(), shared.clone());
        let collect = self.end(name, move |place: &Place| {
            Collect::<N::Out, O>::new(place, share(place, &found, &collected)?)
        });
        let spread = Node {
            name: "sorted runs".to_owned(),
            written_at: Vec::new(),
            inputs: vec![Arc::new(collect)],
            placement: Placement::Everywhere,
            outlet: None,
            extent: Extent::AsInputs,
            gives_time: false,
            aligns: false,
            in_place: false,
            input_names: Vec::new(),
            kept: None,
            build: Box::new(move |place: &Place| {
                let store = share(place, &shared, &spread)?;
                Ok(Box::new(Spread::<N::Out, O>::new(place, store)?))
            }),
        };
        let sorted = Sorted {
            order,
            record: PhantomData,
        };
        TSet::after(vec![spread], sorted, format!("after {name}"))
    }
}

/// What the tasks on a rank share, which has this address in the graph.
fn share<T: Record, O: OrderBy<T>>(
    place: &Place,
    address: &Arc<()>,
    order: &O,
) -> Result<Rc<Shared<T, O>>, Error> {
    let number = Arc::as_ptr(address).addr();
    place
        .handoff
        .share(number, || Shared::new(place, order.clone()))
}
