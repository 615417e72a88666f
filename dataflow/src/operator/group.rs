//! All values of each key, of one stream or of two.
//!
//! Pairs are kept by key until all have come. When there is no room for that, all are [set aside](super::aside), with
//! those that were kept already, and read back key by key.

use std::{fmt, marker::PhantomData};

use transport::{Buffer, Rank};

use crate::{
    Encode, Error, Key, Record,
    batch::try_with_encoded,
    exchange::Receiver,
    graph::Extent,
    operator::{
        aside::{Aside, Block, ByHash},
        index::{Found, Index, Row},
        join::{GIVEN_A_TURN, LEFT, RIGHT, by_key},
        narrow::Pass,
    },
    stage::{Input, Narrow, Place, Progress, Push, Sink},
    tset::{Source, TSet},
};

impl<S, N, K, L> TSet<S, N>
where
    S: Source,
    K: Key,
    L: Record,
    N: Narrow<S::Out, Out = (K, L)>,
{
    /// All values of each key, in no particular order: those of one key have to fit in memory, and into one record. Where a value can be made of them on the way, [`reduce_by_key`](Self::reduce_by_key) or
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
    pub fn group_by_key(self) -> TSet<Grouped<K, L, Unordered>, Pass> {
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
    pub fn group_by_key_sorted<O, F>(self, order: F) -> TSet<Grouped<K, L, By<F, O>>, Pass>
    where
        O: Ord + 'static,
        F: Fn(L::View<'_>) -> O + Clone + Send + Sync + 'static,
    {
        self.group_as("group_by_key_sorted", By(order, PhantomData))
    }

    fn group_as<O: Order<L>>(self, name: &'static str, order: O) -> TSet<Grouped<K, L, O>, Pass> {
        let source = Grouped {
            name,
            order,
            pair: PhantomData,
        };
        self.exchange_keys(name, by_key, source)
    }

    /// For each key that one of the streams has, all values that each has. Null keys are keys like others here.
    /// The values of one key have to fit in memory, and into one record.
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
    pub fn cogroup<S2, N2, R>(self, other: TSet<S2, N2>) -> TSet<Cogrouped<K, L, R>, Pass>
    where
        S2: Source,
        R: Record,
        N2: Narrow<S2::Out, Out = (K, R)>,
    {
        let sides = vec![
            self.end_by_key("cogroup", by_key),
            other.end_by_key("cogroup", by_key),
        ];
        TSet::after(sides, Cogrouped(PhantomData), "after cogroup")
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
            keys: Vec::new(),
        })
    }

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }

    fn is_by_key(&self) -> bool {
        true
    }
}

impl<K, V, O> fmt::Debug for Grouped<K, V, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grouped")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// A side that is kept by key, to its end, or set aside. Keys of the other side that were given are marked.
struct Side<K: Key, V: Record> {
    receiver: Receiver<(K, V)>,
    index: Index<K, V>,
    aside: Aside<(K, V), ByHash>,
    keeping: Keeping,
    /// What was set aside of one hash.
    block: Block<(K, V)>,
}

/// Where the rows of a side are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    /// They are kept by key.
    ByKey,
    /// They are set aside, while they come.
    Aside,
    /// They are read.
    Reading,
}

impl<K: Key, V: Record> Side<K, V> {
    fn new(place: &Place, port: usize, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            receiver: Receiver::new(place, port),
            index: Index::new(place, holder, false)?,
            aside: Aside::new(place, ByHash, holder)?,
            keeping: Keeping::ByKey,
            block: Block::new(place, holder)?,
        })
    }

    /// Goes on; done when all rows are kept by key, or can be read in the order of the hashes of their keys.
    fn poll(&mut self) -> Result<Progress, Error> {
        if self.aside.go_on()? {
            return Ok(Progress::Made);
        }
        match self.keeping {
            Keeping::ByKey => {
                if let Some((_, batch)) = self.receiver.next_batch() {
                    if !self.index.keep(&batch)? {
                        self.keeping = Keeping::Aside;
                        self.set_aside(batch.views(0))?;
                    }
                } else if !self.receiver.is_done() {
                    return Ok(Progress::None);
                } else if !self.index.build() {
                    return Ok(Progress::Done);
                }
            }
            Keeping::Aside => {
                if let Some(kept) = self.index.pop() {
                    self.set_aside(kept.views(0))?;
                } else if let Some((_, batch)) = self.receiver.next_batch() {
                    self.set_aside(batch.views(0))?;
                } else if !self.receiver.is_done() {
                    return Ok(Progress::None);
                } else {
                    self.aside.end()?;
                    self.keeping = Keeping::Reading;
                }
            }
            Keeping::Reading => return Ok(Progress::Done),
        }
        Ok(Progress::Made)
    }

    fn set_aside<'a>(
        &mut self,
        mut views: impl Iterator<Item = (K::View<'a>, V::View<'a>)>,
    ) -> Result<(), Error> {
        views.try_for_each(|view| self.aside.push(view))
    }

    /// Whether there was no room to keep all by key.
    fn is_aside(&self) -> bool {
        self.keeping != Keeping::ByKey
    }

    /// The values of the key whose first row this is.
    fn values(&self, first: Row) -> Vec<V::View<'_>> {
        let rows = self.index.rows_from(first);
        rows.map(|row| self.index.rows.view(row).1).collect()
    }

    /// The hash whose rows are next, of those that were set aside.
    fn next_hash(&self) -> Option<u64> {
        Some(self.aside.first()?.0)
    }

    /// Reads all rows of a hash, instead of those read before, and adds their keys.
    ///
    /// # Errors
    ///
    /// [`transport::Error::LedgerLimit`] when they do not fit in memory.
    fn read(&mut self, hash: u64, keys: &mut Vec<K::Stored>) -> Result<(), Error> {
        self.block.clear();
        while let Some((other, (key, value))) = self.aside.first()
            && other == hash
        {
            self.block.must_push((key, value))?;
            if !keys.iter().any(|known| K::is(known, key)) {
                keys.push(K::store(key));
            }
            self.aside.advance()?;
        }
        self.block.seal();
        Ok(())
    }

    /// The values of a key, of the hash that was read.
    fn values_read(&self, key: &K::Stored) -> Vec<V::View<'_>> {
        let rows = self.block.pages().iter().flat_map(|page| page.views(0));
        rows.filter(|(other, _)| K::is(key, *other))
            .map(|(_, value)| value)
            .collect()
    }
}

/// Gives the values of each key when all have come.
pub struct Group<K: Key, V: Record, O> {
    side: Side<K, V>,
    order: O,
    /// Keys of the hash that was read, of which nothing was given yet.
    keys: Vec<K::Stored>,
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
            if self.side.is_aside() {
                if !self.give_read(down)? {
                    return Ok(Progress::Done);
                }
                continue;
            }
            let Some(first) = self.side.index.next_unmarked() else {
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

impl<K: Key, V: Record, O: Order<V>> Group<K, V, O> {
    /// Gives the values of a key that were set aside; false when there are no more.
    fn give_read<D: Push<(K, Vec<V>)>>(&mut self, down: &mut D) -> Result<bool, Error> {
        if self.keys.is_empty() {
            let Some(hash) = self.side.next_hash() else {
                return Ok(false);
            };
            self.side.read(hash, &mut self.keys)?;
        }
        if let Some(key) = self.keys.pop() {
            let mut values = self.side.values_read(&key);
            self.order.sort(&mut values);
            push_group(&(K::stored(&key), values), down)?;
        }
        Ok(true)
    }
}

impl<K: Key, V: Record, O> fmt::Debug for Group<K, V, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Group")
    }
}

/// Pushes the values of a key as one record, if it can be one.
fn push_group<E: Encode, D: Push<E::Record>>(group: &E, down: &mut D) -> Result<(), Error> {
    try_with_encoded(group, |view| down.push(view)).map_err(|_| Error::RecordTooLarge {
        record: std::any::type_name::<E::Record>(),
        limit: i32::MAX as usize,
    })
}

/// The values of two streams by key.
#[allow(clippy::type_complexity, reason = "it names what is grouped")]
pub struct Cogrouped<K, L, R>(PhantomData<fn() -> (K, L, R)>);

impl<K: Key, L: Record, R: Record> Source for Cogrouped<K, L, R> {
    type Input = Cogroup<K, L, R>;
    type Out = (K, (Vec<L>, Vec<R>));

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(Cogroup {
            left: Side::new(place, LEFT, "cogroup")?,
            right: Side::new(place, RIGHT, "cogroup")?,
            keys: Vec::new(),
        })
    }

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }

    fn is_by_key(&self) -> bool {
        true
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
    /// Keys of the hash that was read, of which nothing was given yet.
    keys: Vec<K::Stored>,
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
        // Both sides are kept in the same way.
        if self.left.is_aside() != self.right.is_aside() {
            for keeping in [&mut self.left.keeping, &mut self.right.keeping] {
                if *keeping == Keeping::ByKey {
                    *keeping = Keeping::Aside;
                }
            }
        }
        match (self.left.poll()?, self.right.poll()?) {
            (Progress::Done, Progress::Done) => {}
            (Progress::Made, _) | (_, Progress::Made) => return Ok(Progress::Made),
            _ => return Ok(Progress::None),
        }
        for _ in 0..GIVEN_A_TURN {
            if down.is_full() {
                break;
            }
            if self.left.is_aside() {
                if !self.give_read(down)? {
                    return Ok(Progress::Done);
                }
            } else if let Some(first) = self.left.index.next_unmarked() {
                let (key, _) = self.left.index.rows.view(first);
                let found = self.right.index.find(key);
                let mut partner = Row::NONE;
                if found != Found::NOTHING {
                    self.right.index.mark(found);
                    (partner, _) = self.right.index.first(found);
                }
                let right = self.right.values(partner);
                push_group(&(key, (self.left.values(first), right)), down)?;
            } else if let Some(first) = self.right.index.next_unmarked() {
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

impl<K: Key, L: Record, R: Record> Cogroup<K, L, R> {
    /// Gives the values of a key that were set aside on either side; false when there are no more.
    fn give_read<D: Push<(K, (Vec<L>, Vec<R>))>>(&mut self, down: &mut D) -> Result<bool, Error> {
        if self.keys.is_empty() {
            let hashes = [self.left.next_hash(), self.right.next_hash()];
            let Some(hash) = hashes.into_iter().flatten().min() else {
                return Ok(false);
            };
            self.left.read(hash, &mut self.keys)?;
            self.right.read(hash, &mut self.keys)?;
        }
        if let Some(key) = self.keys.pop() {
            let (left, right) = (self.left.values_read(&key), self.right.values_read(&key));
            push_group(&(K::stored(&key), (left, right)), down)?;
        }
        Ok(true)
    }
}

impl<K: Key, L: Record, R: Record> fmt::Debug for Cogroup<K, L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cogroup")
    }
}
