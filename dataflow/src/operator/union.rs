//! Several streams as one.

use std::{fmt, marker::PhantomData};

use transport::{Buffer, Rank};

use crate::{
    Error, Record,
    exchange::{Direct, Outbox, Receiver, Routed},
    operator::narrow::Pass,
    stage::{Input, Narrow, Place, Progress, Sink},
    time::Watermark,
    tset::{Source, TSet},
};

impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// The records of both streams; equal ones stay as often as they are there.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let mut all = inline(&collection(vec![1u64, 2]).union(collection(vec![2, 3])).collect())?;
    /// all.sort();
    /// assert_eq!(all, [1, 2, 2, 3]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn union<S2, N2>(self, other: TSet<S2, N2>) -> TSet<United<T>, Pass>
    where
        S2: Source,
        N2: Narrow<S2::Out, Out = T>,
    {
        fn output<T: Record>(place: &Place) -> Result<Routed<T, Direct>, Error> {
            Ok(Routed::new(Outbox::to_each(place)?, Direct::new(place)))
        }
        let sides = vec![self.end("union", output), other.end("union", output)];
        TSet::after(sides, United(PhantomData), "after union")
    }
}

/// Records that come from several streams.
#[derive(Debug)]
pub struct United<T>(PhantomData<fn() -> T>);

impl<T: Record> Source for United<T> {
    type Input = Union<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Union<T>, Error> {
        let ports = 0..place.wiring.senders.len();
        Ok(Union {
            sides: ports.map(|port| Receiver::new(place, port)).collect(),
            next: 0,
        })
    }
}

/// Takes turns between its ports.
pub struct Union<T> {
    sides: Vec<Receiver<T>>,
    next: usize,
}

impl<T: Record> Input for Union<T> {
    type Out = T;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.sides[port].receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.sides[port].ended(port, from);
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        self.sides[port].advance(port, sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        Watermark::least(self.sides.iter_mut().map(Input::watermark))
    }

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let mut all = Progress::Done;
        for _ in 0..self.sides.len() {
            let side = self.next;
            self.next = (side + 1) % self.sides.len();
            match self.sides[side].poll(down)? {
                Progress::Made => return Ok(Progress::Made),
                Progress::None => all = Progress::None,
                Progress::Done => {}
            }
        }
        Ok(all)
    }

    fn again(&mut self) -> bool {
        self.next = 0;
        self.sides.iter_mut().all(Receiver::again)
    }

    fn last(&self) -> String {
        let sides = self.sides.len();
        let side = (self.next + sides - 1) % sides;
        format!("{} on side {side}", self.sides[side].last())
    }
}

impl<T> fmt::Debug for Union<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Union")
            .field("sides", &self.sides.len())
            .finish_non_exhaustive()
    }
}
