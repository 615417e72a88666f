//! Every pair of two streams: the right side is kept on every rank, the left side passes by.

use std::{fmt, marker::PhantomData};

use transport::{Buffer, Rank};

use crate::{
    Error, Record,
    exchange::{Direct, Outbox, Receiver, Routed, ToFirst},
    operator::{
        index::Rows,
        join::{LEFT, RIGHT},
        narrow::Pass,
        passing::{Part, Passing},
    },
    stage::{Input, Narrow, Place, Progress, Sink},
    stream::{Source, Stream},
};

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
            self.left.receive(port, from, batch, !self.is_kept)?;
            if self.left.is_refused() {
                self.left.must_keep()?;
            }
            Ok(())
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
                self.rows.must_keep(&batch)?;
            } else if self.right.is_done() {
                self.is_kept = true;
            } else {
                return Ok(Progress::None);
            }
            return Ok(Progress::Made);
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

impl<L: Record, R: Record> fmt::Debug for Cross<L, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Cross")
    }
}
