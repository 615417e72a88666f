//! Joins by hash: the right side is kept by key, the left side passes by.
//!
//! The right side comes first; while it does, the left side waits in its windows, or, where that could stop the right
//! side (see [`crate::graph`]), is kept too. When there is no room for that, both sides are set aside, with what was
//! kept already, and [merged](super::merge) in the order of the hashes of their keys. A left side without an end is never
//! set aside: what it passes by has to fit in memory.

use std::{fmt, marker::PhantomData};

use transport::{Buffer, Rank};

use super::{
    GIVEN_A_TURN, Join, LEFT, RIGHT,
    merge::{Merger, order},
};
use crate::{
    Error, Key, Record,
    exchange::Receiver,
    graph::Extent,
    operator::{
        aside::ByHash,
        index::{Found, GROUP, Index, Row},
        passing::{Part, Passing},
    },
    stage::{Input, Place, Progress, Sink},
    time::Watermark,
    tset::Source,
};

/// Streams that are joined.
pub struct Joined<K, L, R, J> {
    name: &'static str,
    #[allow(clippy::type_complexity, reason = "it names what is joined and how")]
    sides: PhantomData<fn() -> (K, L, R, J)>,
}

impl<K, L, R, J> Joined<K, L, R, J> {
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            sides: PhantomData,
        }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }
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
            name: self.name,
            phase: Phase::Keeping,
            merger: Merger::new(place, ByHash, self.name)?,
        })
    }

    fn extent(&self) -> Extent {
        // Of a right side, only the end of the left one tells which rows have no partner.
        match J::RIGHT_ALONE {
            true => Extent::AtEnd,
            false => Extent::As(LEFT),
        }
    }

    fn is_by_key(&self) -> bool {
        true
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
    name: &'static str,
    phase: Phase,
    /// What there is no room for is set aside in it.
    merger: Merger<K, L, R, J, ByHash>,
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
    /// Both sides are set aside.
    Aside,
    /// They are merged.
    Merging,
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

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        if port == LEFT {
            self.left.advance(port, sender, watermark);
        }
    }

    fn watermark(&mut self) -> Watermark {
        match self.phase {
            Phase::Passing(_) if !J::RIGHT_ALONE => self.left.watermark(),
            _ => Watermark::UNKNOWN,
        }
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        match self.phase {
            Phase::Keeping | Phase::Building if self.left.is_refused() => {
                self.phase = Phase::Aside;
            }
            Phase::Keeping => {
                if let Some((_, batch)) = self.right.next_batch() {
                    if !self.index.keep(&batch)? {
                        if self.left.is_endless() {
                            return Err(self.index.rows.refusal(self.name, &batch));
                        }
                        self.phase = Phase::Aside;
                        order(&mut self.merger.right, batch.views(0))?;
                    }
                } else if self.right.is_done() {
                    self.phase = Phase::Building;
                } else {
                    return Ok(Progress::None);
                }
            }
            Phase::Building => {
                if !self.index.build() {
                    self.phase = Phase::Passing(Row::NONE);
                }
            }
            Phase::Passing(partner) => return Ok(self.pass(down, partner)),
            Phase::Alone(row) => return Ok(self.give_alone(down, row)),
            Phase::Aside => return self.set_aside(),
            Phase::Merging => return self.merger.poll(down),
        }
        Ok(Progress::Made)
    }
}

impl<K: Key, L: Record, R: Record, J: Join> HashJoin<K, L, R, J> {
    /// Sets some more aside of what was kept and of what comes.
    fn set_aside(&mut self) -> Result<Progress, Error> {
        if self.merger.go_on()? {
            return Ok(Progress::Made);
        }
        if let Some(kept) = self.index.pop() {
            order(&mut self.merger.right, kept.views(0))?;
            return Ok(Progress::Made);
        }
        if let Some(kept) = self.left.pop() {
            order(&mut self.merger.left, kept.views(0))?;
            return Ok(Progress::Made);
        }
        let (left, right) = (self.left.receiver.next_batch(), self.right.next_batch());
        if left.is_none() && right.is_none() {
            if !self.left.receiver.is_done() || !self.right.is_done() {
                return Ok(Progress::None);
            }
            self.merger.end()?;
            self.phase = Phase::Merging;
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

impl<K: Key, L: Record, R: Record, J: Join> fmt::Debug for HashJoin<K, L, R, J> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HashJoin")
    }
}
