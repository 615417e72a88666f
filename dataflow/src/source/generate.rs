//! Records that a function makes of numbers.

use std::{fmt, ops::Range};

use transport::{Buffer, Rank};

use crate::{
    Encode, Error,
    operator::narrow::Pass,
    stage::{Input, Place, Progress, Sink},
    tset::{Source, TSet},
};

/// Records made in one turn, between which messages are looked for.
const MADE_A_TURN: u64 = 4096;

/// What `function` makes of each number from 0 up to `number`, of which each instance takes its share.
///
/// ```
/// use dataflow::{generate, inline};
///
/// let squares = generate(4, |n| n * n).collect();
/// assert_eq!(inline(&squares)?, [0, 1, 4, 9]);
/// # Ok::<(), dataflow::Error>(())
/// ```
pub fn generate<E, F>(number: u64, function: F) -> TSet<Generate<F>, Pass>
where
    E: Encode,
    F: FnMut(u64) -> E + Clone + Send + Sync + 'static,
{
    let name = format!("generate {number}");
    TSet::from_source(Generate { number, function }, name)
}

/// The source of [`generate`].
pub struct Generate<F> {
    number: u64,
    function: F,
}

impl<E, F> Source for Generate<F>
where
    E: Encode,
    F: FnMut(u64) -> E + Clone + Send + Sync + 'static,
{
    type Input = Generator<F>;
    type Out = E::Record;

    fn build(&self, place: &Place) -> Result<Generator<F>, Error> {
        let (number, instances) = (u128::from(self.number), u128::from(place.instances));
        let cut = |instance: u32| (number * u128::from(instance) / instances) as u64;
        Ok(Generator {
            left: cut(place.instance)..cut(place.instance + 1),
            function: self.function.clone(),
            place: place.clone(),
        })
    }
}

impl<F> fmt::Debug for Generate<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generate")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// Makes one instance's share.
pub struct Generator<F> {
    left: Range<u64>,
    function: F,
    place: Place,
}

impl<E, F> Input for Generator<F>
where
    E: Encode,
    F: FnMut(u64) -> E + Clone + Send + Sync + 'static,
{
    type Out = E::Record;

    fn receive(&mut self, _port: usize, peer: Rank, batch: Buffer) -> Result<(), Error> {
        Err(Error::Unexpected {
            peer,
            tag: batch.tag(),
        })
    }

    fn ended(&mut self, _port: usize, _from: Rank) {}

    fn poll<D: Sink<E::Record>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        let (start, end) = (
            self.left.start,
            self.left.end.min(self.left.start + MADE_A_TURN),
        );
        let mut next = start;
        while next < end && !down.is_full() {
            (self.function)(next).with_view(|view| down.push(view));
            next += 1;
        }
        self.left.start = next;
        self.place.counters.read(next - start, 0);
        Ok(if self.left.is_empty() {
            Progress::Done
        } else {
            Progress::Made
        })
    }

    fn last(&self) -> String {
        format!("what was made of {}", self.left.start.wrapping_sub(1))
    }
}

impl<F> fmt::Debug for Generator<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generator")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}
