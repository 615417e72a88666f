//! Every pair of two streams: the right side is kept on every rank, the left side passes by.
//!
//! What memory has no room for of the right side is written to disk, and read again for each block of the left side. A
//! left side without an end has no blocks: then the right side has to fit in memory.

use std::{fmt, marker::PhantomData};

use transport::{Buffer, Rank};

use crate::{
    Error, Record,
    exchange::{Direct, Outbox, Receiver, Routed, ToFirst},
    graph::Extent,
    operator::{
        again::Again,
        aside::Block,
        index::Rows,
        join::{GIVEN_A_TURN, LEFT, RIGHT},
        narrow::Pass,
        passing::{Part, Passing},
    },
    stage::{Input, Narrow, Place, Progress, Sink},
    time::Watermark,
    tset::{Source, TSet},
};

impl<S, N, L> TSet<S, N>
where
    S: Source,
    L: Record,
    N: Narrow<S::Out, Out = L>,
{
    /// Every pair of a record of this stream and one of the other. The other stream, which should be the smaller
    /// one, is kept on every rank: in memory as far as it has room.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let pairs = collection(vec![1u64, 2]).cross_join(collection(vec!['a', 'b', 'c']));
    /// assert_eq!(inline(&pairs.collect())?.len(), 6);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn cross_join<S2, N2, R>(self, other: TSet<S2, N2>) -> TSet<Crossed<L, R>, Pass>
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
        TSet::after(sides, Crossed(PhantomData), "after cross_join")
    }
}

/// Every pair of two streams.
pub struct Crossed<L, R>(PhantomData<fn() -> (L, R)>);

impl<L: Record, R: Record> Source for Crossed<L, R> {
    type Input = Cross<L, R>;
    type Out = (L, R);

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(Cross {
            left: Passing::new(place, LEFT, NAME)?,
            right: Receiver::new(place, RIGHT),
            rows: Rows::new(place, NAME)?,
            is_kept: false,
            next: (0, 0),
            left_rest: Again::new(place, NAME)?,
            right_rest: Again::new(place, NAME)?,
            block: Block::new(place, NAME)?,
            pairing: Pairing::Gathering,
        })
    }

    fn extent(&self) -> Extent {
        Extent::As(LEFT)
    }
}

impl<L, R> fmt::Debug for Crossed<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Crossed")
    }
}

/// Pairs each row of the left side with each of the right side.
///
/// Rows of the right side that memory has no room for are read from disk for each block of the left side.
pub struct Cross<L: Record, R: Record> {
    left: Passing<L>,
    right: Receiver<R>,
    rows: Rows<R>,
    /// Whether all of the right side is there.
    is_kept: bool,
    /// The batch and the row of the right side that the next row of the left side is paired with next.
    next: (usize, usize),
    /// Rows of the left side that came too early and found no room.
    left_rest: Again<L>,
    /// Rows of the right side that found no room.
    right_rest: Again<R>,
    block: Block<L>,
    pairing: Pairing,
}

/// How far a block of the left side is paired.
#[derive(Debug, Clone, Copy)]
enum Pairing {
    /// It is filled.
    Gathering,
    /// It is paired with the rows in memory from this batch and row on, of which the first has been paired as far as
    /// this page and row of the block.
    Held((usize, usize), (usize, usize)),
    /// The same with the rows on disk.
    Rest((usize, usize)),
}

/// On whose behalf memory is taken.
const NAME: &str = "cross_join";

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

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        if port == LEFT {
            self.left.advance(port, sender, watermark);
        }
    }

    fn watermark(&mut self) -> Watermark {
        match self.is_kept && !self.right_rest.is_used() && !self.left_rest.is_used() {
            true => self.left.watermark(),
            false => Watermark::UNKNOWN,
        }
    }

    fn poll<D: Sink<Self::Out>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if !self.is_kept {
            return self.keep();
        }
        if self.right_rest.is_used() || self.left_rest.is_used() {
            return self.pair_blocks(down);
        }
        let Some(Part { rows, passed }) = self.left.rows() else {
            let is_done = self.left.is_done();
            return Ok(if is_done {
                Progress::Done
            } else {
                Progress::None
            });
        };
        let (batches, next) = (self.rows.batches(), &mut self.next);
        let elements = rows.elements();
        while *passed < elements.len() {
            let left = L::view(&elements[*passed]);
            while let Some(batch) = batches.get(next.0) {
                for right in batch.views(next.1) {
                    if down.is_full() {
                        return Ok(Progress::Made);
                    }
                    down.push((L::shorten(left), R::shorten(right)));
                    next.1 += 1;
                }
                *next = (next.0 + 1, 0);
            }
            *next = (0, 0);
            *passed += 1;
        }
        self.left.next();
        Ok(Progress::Made)
    }
}

impl<L: Record, R: Record> Cross<L, R> {
    /// Keeps some more of the right side, and what must not wait of the left side.
    fn keep(&mut self) -> Result<Progress, Error> {
        if self.left.is_refused()
            && let Some((_, batch)) = self.left.receiver.next_batch()
        {
            batch
                .views(0)
                .try_for_each(|view| self.left_rest.push(view))?;
            return Ok(Progress::Made);
        }
        if let Some((_, batch)) = self.right.next_batch() {
            if self.right_rest.is_used() || !self.rows.keep(&batch, 0)? {
                if self.left.is_endless() {
                    return Err(self.rows.refusal(NAME, &batch));
                }
                batch
                    .views(0)
                    .try_for_each(|view| self.right_rest.push(view))?;
            }
        } else if self.right.is_done() {
            self.is_kept = true;
            self.left_rest.rewind()?;
        } else {
            return Ok(Progress::None);
        }
        Ok(Progress::Made)
    }

    /// Gathers a block of the left side, or pairs it with all of the right side.
    fn pair_blocks<D: Sink<(L, R)>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        match self.pairing {
            Pairing::Gathering => return self.gather(),
            Pairing::Held(mut at, mut paired) => {
                let batches = self.rows.batches();
                while let Some(batch) = batches.get(at.0) {
                    while at.1 < batch.len() {
                        if !pair(&self.block, batch.view(at.1), &mut paired, down) {
                            self.pairing = Pairing::Held(at, paired);
                            return Ok(Progress::Made);
                        }
                        at.1 += 1;
                    }
                    at = (at.0 + 1, 0);
                }
                self.right_rest.rewind()?;
                self.pairing = Pairing::Rest((0, 0));
            }
            Pairing::Rest(mut paired) => {
                for _ in 0..GIVEN_A_TURN {
                    let Some(right) = self.right_rest.view() else {
                        self.block.clear();
                        self.pairing = Pairing::Gathering;
                        break;
                    };
                    let is_paired = pair(&self.block, right, &mut paired, down);
                    self.pairing = Pairing::Rest(paired);
                    if !is_paired {
                        break;
                    }
                    self.right_rest.advance()?;
                }
            }
        }
        Ok(Progress::Made)
    }

    /// Fills the block with rows of the left side.
    fn gather(&mut self) -> Result<Progress, Error> {
        if let Some(Part { rows, passed }) = self.left.rows() {
            let elements = rows.elements();
            while *passed < elements.len() {
                if !self.block.push(L::view(&elements[*passed]))? {
                    self.start_pairing();
                    return Ok(Progress::Made);
                }
                *passed += 1;
            }
            self.left.next();
            return Ok(Progress::Made);
        }
        for _ in 0..GIVEN_A_TURN {
            let Some(view) = self.left_rest.view() else {
                if !self.left.is_done() {
                    return Ok(Progress::None);
                }
                if self.block.is_empty() {
                    return Ok(Progress::Done);
                }
                self.start_pairing();
                break;
            };
            if !self.block.push(view)? {
                self.start_pairing();
                break;
            }
            self.left_rest.advance()?;
        }
        Ok(Progress::Made)
    }

    fn start_pairing(&mut self) {
        self.block.seal();
        self.pairing = Pairing::Held((0, 0), (0, 0));
    }
}

/// Pairs a row of the right side with those of a block from a page and row on; false if the rest has to wait.
fn pair<L: Record, R: Record, D: Sink<(L, R)>>(
    block: &Block<L>,
    right: R::View<'_>,
    paired: &mut (usize, usize),
    down: &mut D,
) -> bool {
    while let Some(page) = block.pages().get(paired.0) {
        for left in page.views(paired.1) {
            if down.is_full() {
                return false;
            }
            down.push((L::shorten(left), R::shorten(right)));
            paired.1 += 1;
        }
        *paired = (paired.0 + 1, 0);
    }
    *paired = (0, 0);
    true
}

impl<L: Record, R: Record> fmt::Debug for Cross<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cross")
    }
}
