//! Joins by merging: both sides are in the same order, and are gone through side by side.
//!
//! Rows of one key make a *stretch* on either side. Those of the right side are read into a block of memory, and each
//! row of the left side is paired with all that are there. Nearly always that is all. When the block has no room for
//! the whole stretch, because so many rows have one key, the rows of the left side are also written to disk, and read
//! again for each block that the rest of the right side fills: a block nested loop, for that key alone.
//!
//! Where the order is that of hashes, a stretch may have rows of several keys; so keys are compared all the same.

use std::{cmp::Ordering, fmt, marker::PhantomData};

use transport::{Buffer, Rank};

use super::{GIVEN_A_TURN, Join, Joined, LEFT, RIGHT};
use crate::{
    Error, Key, Ordered, Record,
    exchange::Receiver,
    graph::Extent,
    operator::{
        again::Again,
        aside::{Aside, Block, KeyOrder},
        sort::{First, OrderBy},
    },
    stage::{Input, Place, Progress, Sink},
    tset::Source,
};

/// Streams that are joined by merging.
pub struct MergeJoined<K, L, R, J> {
    name: &'static str,
    #[allow(clippy::type_complexity, reason = "it names what is joined and how")]
    sides: PhantomData<fn() -> (K, L, R, J)>,
}

impl<K, L, R, J> MergeJoined<K, L, R, J> {
    pub(super) fn of(joined: &Joined<K, L, R, J>) -> Self {
        Self {
            name: joined.name(),
            sides: PhantomData,
        }
    }
}

impl<K: Key + Ordered, L: Record, R: Record, J: Join> Source for MergeJoined<K, L, R, J> {
    type Input = MergeJoin<K, L, R, J>;
    type Out = J::Out<K, L, R>;

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(MergeJoin {
            left: Receiver::new(place, LEFT),
            right: Receiver::new(place, RIGHT),
            merger: Merger::new(place, First, self.name)?,
            is_merging: false,
        })
    }

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }

    fn is_by_key(&self) -> bool {
        true
    }
}

impl<K, L, R, J> fmt::Debug for MergeJoined<K, L, R, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MergeJoined")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Joins two streams whose keys have an order.
pub struct MergeJoin<K: Key + Ordered, L: Record, R: Record, J: Join> {
    left: Receiver<(K, L)>,
    right: Receiver<(K, R)>,
    merger: Merger<K, L, R, J, First>,
    is_merging: bool,
}

impl<K: Key + Ordered, L: Record, R: Record, J: Join> Input for MergeJoin<K, L, R, J> {
    type Out = J::Out<K, L, R>;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        match port {
            LEFT => self.left.receive(port, from, batch),
            _ => self.right.receive(port, from, batch),
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        match port {
            LEFT => self.left.ended(port, from),
            _ => self.right.ended(port, from),
        }
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.is_merging {
            return self.merger.poll(down);
        }
        if self.merger.go_on()? {
            return Ok(Progress::Made);
        }
        let (left, right) = (self.left.next_batch(), self.right.next_batch());
        if left.is_none() && right.is_none() {
            if !self.left.is_done() || !self.right.is_done() {
                return Ok(Progress::None);
            }
            self.merger.end()?;
            self.is_merging = true;
        }
        if let Some((_, batch)) = left {
            order(&mut self.merger.left, batch.views(0))?;
        }
        if let Some((_, batch)) = right {
            order(&mut self.merger.right, batch.views(0))?;
        }
        Ok(Progress::Made)
    }
}

impl<K: Key + Ordered, L: Record, R: Record, J: Join> fmt::Debug for MergeJoin<K, L, R, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MergeJoin")
    }
}

/// Has some records put in order.
pub(crate) fn order<'a, T: Record, O: OrderBy<T>>(
    aside: &mut Aside<T, O>,
    mut views: impl Iterator<Item = T::View<'a>>,
) -> Result<(), Error> {
    views.try_for_each(|view| aside.push(view))
}

/// Puts two sides in order, and joins them.
pub(super) struct Merger<K, L, R, J, O>
where
    K: Key,
    L: Record,
    R: Record,
    O: KeyOrder<K> + OrderBy<(K, L)> + OrderBy<(K, R)>,
{
    pub(super) left: Aside<(K, L), O>,
    pub(super) right: Aside<(K, R), O>,
    step: Step,
    /// The prefix of the stretch, and one of its keys.
    stretch: Option<(u64, K::Stored)>,
    /// Rows of the right side.
    block: Block<(K, R)>,
    /// Their keys, and those of blocks before.
    right_keys: Vec<K::Stored>,
    /// Keys of the left side, if it matters who has no partner there.
    left_keys: Vec<K::Stored>,
    /// Whether the right side has more of the stretch.
    has_more: bool,
    /// Rows of the left side of the stretch, and whether it is there that they are read.
    again: Again<(K, L)>,
    is_again: bool,
    kind: PhantomData<fn() -> J>,
}

/// What is seen of a row.
type View<'a, K, V> = <(K, V) as Record>::View<'a>;

/// What a merger does.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// It looks for the next stretch that is on both sides.
    Find,
    /// It reads rows of the right side into the block.
    Fill,
    /// Rows of the left side pass by. The next one has partners from this one on that were not given yet.
    Pass(Partner),
    /// Rows in the block are given that have found no partner, from this one on.
    Alone(Partner),
}

/// A row of a block.
#[derive(Debug, Clone, Copy, Default)]
struct Partner {
    page: usize,
    row: usize,
}

impl<K, L, R, J, O> Merger<K, L, R, J, O>
where
    K: Key,
    L: Record,
    R: Record,
    J: Join,
    O: KeyOrder<K> + OrderBy<(K, L)> + OrderBy<(K, R)>,
{
    /// Enters on the ledger what it cannot do without.
    pub(super) fn new(place: &Place, order: O, holder: &'static str) -> Result<Self, Error> {
        Ok(Self {
            left: Aside::new(place, order.clone(), holder)?,
            right: Aside::new(place, order, holder)?,
            step: Step::Find,
            stretch: None,
            block: Block::new(place, holder)?,
            right_keys: Vec::new(),
            left_keys: Vec::new(),
            has_more: false,
            again: Again::new(place, holder)?,
            is_again: false,
            kind: PhantomData,
        })
    }

    /// All rows have come.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        self.left.end()?;
        self.right.end()
    }

    /// Does what goes before rows are taken or joined; false if there is nothing.
    pub(super) fn go_on(&mut self) -> Result<bool, Error> {
        Ok(self.left.go_on()? || self.right.go_on()?)
    }

    /// Joins, as long as the results are wanted.
    pub(super) fn poll<D: Sink<J::Out<K, L, R>>>(
        &mut self,
        down: &mut D,
    ) -> Result<Progress, Error> {
        if self.go_on()? {
            return Ok(Progress::Made);
        }
        let mut left = GIVEN_A_TURN;
        while left > 0 && !down.is_full() {
            left -= 1;
            match self.step {
                Step::Find => {
                    if self.find(down)? {
                        return Ok(Progress::Done);
                    }
                }
                Step::Fill => self.fill(down)?,
                Step::Pass(partner) => self.pass(down, partner, &mut left)?,
                Step::Alone(row) => self.give_alone(down, row)?,
            }
        }
        Ok(Progress::Made)
    }

    /// Gives a row that has no partner, or finds a stretch; true at the end of both sides.
    fn find<D: Sink<J::Out<K, L, R>>>(&mut self, down: &mut D) -> Result<bool, Error> {
        let (left, right) = (self.left.first(), self.right.first());
        let first = match (&left, &right) {
            (None, None) => return Ok(true),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((_, (key, _))), _) if K::is_null(*key) => Ordering::Less,
            (_, Some((_, (key, _)))) if K::is_null(*key) => Ordering::Greater,
            (Some((prefix, (key, _))), Some((other, (other_key, _)))) => {
                let prefixes = prefix.cmp(other);
                prefixes.then_with(|| O::compare_keys(*key, *other_key))
            }
        };
        match (first, left, right) {
            (Ordering::Less, Some((_, (key, value))), _) => {
                J::left_alone::<K, L, R>(key, value, down);
                self.left.advance()?;
            }
            (Ordering::Greater, _, Some((_, (key, value)))) => {
                J::right_alone::<K, L, R>(key, value, down);
                self.right.advance()?;
            }
            (_, Some((prefix, (key, _))), _) => {
                self.stretch = Some((prefix, K::store(key)));
                self.step = Step::Fill;
            }
            _ => unreachable!("who comes first is there"),
        }
        Ok(false)
    }

    /// The row of a side that is next, if it belongs to the stretch.
    fn in_stretch<'a, V: Record>(
        stretch: &Option<(u64, K::Stored)>,
        first: Option<(u64, View<'a, K, V>)>,
    ) -> Option<View<'a, K, V>> {
        let ((prefix, stored), (other, row)) = (stretch.as_ref()?, first?);
        let is_in =
            *prefix == other && O::compare_keys(K::stored(stored), K::shorten(row.0)).is_eq();
        is_in.then_some(row)
    }

    /// Reads a row of the right side into the block; when there are no more, or there is no room, the left side is to
    /// pass.
    fn fill<D: Sink<J::Out<K, L, R>>>(&mut self, down: &mut D) -> Result<(), Error> {
        let row = Self::in_stretch::<R>(&self.stretch, self.right.first());
        self.has_more = row.is_some();
        let Some((key, value)) = row else {
            self.start_passing();
            return Ok(());
        };
        if K::is_null(key) {
            J::right_alone::<K, L, R>(key, value, down);
            return self.right.advance();
        }
        let is_known = self.right_keys.iter().any(|known| K::is(known, key));
        // Where one partner is enough, others are not kept.
        let is_wanted = !J::ONCE || !is_known;
        if is_wanted && !self.block.push((key, value))? {
            self.start_passing();
            return Ok(());
        }
        if !is_known {
            self.right_keys.push(K::store(key));
        }
        self.right.advance()
    }

    fn start_passing(&mut self) {
        self.block.seal();
        self.step = Step::Pass(Partner::default());
    }

    /// Pairs the next row of the left side with those in the block, from one on.
    fn pass<D: Sink<J::Out<K, L, R>>>(
        &mut self,
        down: &mut D,
        mut partner: Partner,
        left: &mut usize,
    ) -> Result<(), Error> {
        let row = if self.is_again {
            self.again.view()
        } else {
            Self::in_stretch::<L>(&self.stretch, self.left.first())
        };
        let Some((key, value)) = row else {
            self.step = Step::Alone(Partner::default());
            return Ok(());
        };
        let known = if K::is_null(key) {
            None
        } else {
            self.right_keys.iter().position(|known| K::is(known, key))
        };
        match known {
            None if self.has_more => {}
            None => J::left_alone::<K, L, R>(key, value, down),
            Some(_) => {
                let is_only_key = self.right_keys.len() == 1;
                while let Some(page) = self.block.pages().get(partner.page) {
                    while partner.row < page.len() {
                        if down.is_full() || *left == 0 {
                            self.step = Step::Pass(partner);
                            return Ok(());
                        }
                        let (other, right) = page.view(partner.row);
                        partner.row += 1;
                        if is_only_key || K::same(other, key) {
                            J::pair::<K, L, R>(key, value, right, down);
                            *left -= 1;
                        }
                    }
                    partner = Partner {
                        page: partner.page + 1,
                        row: 0,
                    };
                }
            }
        }
        self.step = Step::Pass(Partner::default());
        self.next_left()
    }

    /// Goes on to the next row of the left side, which the first time may be needed again.
    fn next_left(&mut self) -> Result<(), Error> {
        if self.is_again {
            return self.again.advance();
        }
        if let Some((_, (key, value))) = self.left.first() {
            if J::RIGHT_ALONE
                && !K::is_null(key)
                && !self.left_keys.iter().any(|known| K::is(known, key))
            {
                self.left_keys.push(K::store(key));
            }
            if self.has_more {
                self.again.push((key, value))?;
            }
        }
        self.left.advance()
    }

    /// Gives the next row in the block that has found no partner; when there are none, goes on with the rest of the
    /// stretch or with the next one.
    fn give_alone<D: Sink<J::Out<K, L, R>>>(
        &mut self,
        down: &mut D,
        mut row: Partner,
    ) -> Result<(), Error> {
        let is_known = |known: &[K::Stored], key| known.iter().any(|known| K::is(known, key));
        let all_known = self
            .right_keys
            .iter()
            .all(|key| is_known(&self.left_keys, K::stored(key)));
        if J::RIGHT_ALONE && !all_known {
            while let Some(page) = self.block.pages().get(row.page) {
                while row.row < page.len() {
                    if down.is_full() {
                        self.step = Step::Alone(row);
                        return Ok(());
                    }
                    let (key, right) = page.view(row.row);
                    row.row += 1;
                    if !is_known(&self.left_keys, key) {
                        J::right_alone::<K, L, R>(key, right, down);
                    }
                }
                row = Partner {
                    page: row.page + 1,
                    row: 0,
                };
            }
        }
        self.block.clear();
        self.is_again = self.has_more;
        if self.has_more {
            self.again.rewind()?;
            self.step = Step::Fill;
            return Ok(());
        }
        self.again.clear();
        self.right_keys.clear();
        self.left_keys.clear();
        self.stretch = None;
        self.step = Step::Find;
        Ok(())
    }
}
