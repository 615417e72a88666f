//! Some of all records: any so many, or the first so many in an order.

use std::{cmp::Ordering, collections::BinaryHeap, fmt, marker::PhantomData};

use transport::{Buffer, Rank, Reservation};

use crate::{
    Error, Record,
    exchange::{Outbox, Receiver},
    graph::Extent,
    operator::narrow::Pass,
    stage::{Input, Narrow, Output, Place, Progress, Push, Sink},
    time::Watermark,
    tset::{Source, TSet},
};

impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// Any `number` of the records, on one instance; all, if there are no more. When that many have come, the
    /// sources are told to stop, unless others need their records too.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let some = inline(&collection((0..1_000_000u64).collect()).take(3).collect())?;
    /// assert_eq!(some.len(), 3);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn take(self, number: u64) -> TSet<Taken<T>, Pass> {
        let output = move |place: &Place| {
            Ok(Limit {
                outbox: Outbox::to_each(place)?,
                number,
                left: number,
            })
        };
        let source = Taken {
            number,
            record: PhantomData,
        };
        self.exchange("take", output, source).on_one()
    }

    /// The `number` records of which `order` makes the greatest, the greatest first, on one instance. Which of equal
    /// ones are among them is not said.
    ///
    /// ```
    /// use std::cmp::Reverse;
    /// use dataflow::{collection, inline};
    ///
    /// let words = collection(vec!["to".to_owned(), "be".to_owned(), "or".to_owned(), "not".to_owned()]);
    /// assert_eq!(inline(&words.clone().top_n(1, str::len).collect())?, ["not"]);
    /// assert_eq!(inline(&words.top_n(2, |word| Reverse(word.to_owned())).collect())?, ["be", "not"]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn top_n<O, F>(self, number: usize, order: F) -> TSet<Topped<T, O, F>, Pass>
    where
        O: Ord + 'static,
        F: Fn(T::View<'_>) -> O + Clone + Send + Sync + 'static,
    {
        let local = order.clone();
        let output = move |place: &Place| {
            Ok(Top {
                best: Best::new(number, local.clone(), place)?,
                outbox: Outbox::to_each(place)?,
            })
        };
        let source = Topped {
            number,
            order,
            records: PhantomData,
        };
        self.exchange("top_n", output, source).on_one()
    }
}

/// Sends on so many records, and wants no more.
struct Limit<T> {
    outbox: Outbox<T>,
    number: u64,
    left: u64,
}

impl<T: Record> Push<T> for Limit<T> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        if self.left > 0 {
            self.left -= 1;
            self.outbox.push_to(0, &view);
        }
    }
}

impl<T: Record> Sink<T> for Limit<T> {
    #[inline]
    fn is_full(&self) -> bool {
        self.left == 0 || self.outbox.is_full()
    }
}

impl<T: Record> Output<T> for Limit<T> {
    fn poll(&mut self) -> Result<bool, Error> {
        self.outbox.poll()
    }

    fn flush(&mut self, watermark: Watermark) -> Result<bool, Error> {
        self.outbox.flush(watermark)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.outbox.finish()
    }

    fn stopped(&mut self, reader: u32) {
        self.outbox.stopped(reader);
    }

    fn is_closed(&self) -> bool {
        self.left == 0 || self.outbox.is_closed()
    }

    fn again(&mut self, run: u32) -> bool {
        self.left = self.number;
        self.outbox.again(run)
    }
}

/// So many of all records.
#[derive(Debug)]
pub struct Taken<T> {
    number: u64,
    record: PhantomData<fn() -> T>,
}

impl<T: Record> Source for Taken<T> {
    type Input = Take<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Take<T>, Error> {
        let number = if place.instance == 0 { self.number } else { 0 };
        Ok(Take {
            receiver: Receiver::new(place, 0),
            number,
            left: number,
        })
    }

    fn extent(&self) -> Extent {
        Extent::Bounded
    }
}

/// Passes on so many of the records that come, and is done then.
pub struct Take<T> {
    receiver: Receiver<T>,
    number: u64,
    left: u64,
}

impl<T: Record> Input for Take<T> {
    type Out = T;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.receiver.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.receiver.ended(port, from);
    }

    fn advance(&mut self, port: usize, sender: u32, watermark: Watermark) {
        self.receiver.advance(port, sender, watermark);
    }

    fn watermark(&mut self) -> Watermark {
        self.receiver.watermark()
    }

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.left == 0 {
            return Ok(Progress::Done);
        }
        let left = &mut self.left;
        self.receiver.poll(&mut AtMost { down, left })
    }

    fn again(&mut self) -> bool {
        self.left = self.number;
        self.receiver.again()
    }

    fn last(&self) -> String {
        self.receiver.last()
    }
}

impl<T> fmt::Debug for Take<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Take")
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

/// Pushes so many records on.
struct AtMost<'a, D> {
    down: &'a mut D,
    left: &'a mut u64,
}

impl<T: Record, D: Sink<T>> Push<T> for AtMost<'_, D> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        if *self.left > 0 {
            *self.left -= 1;
            self.down.push(view);
        }
    }
}

impl<T: Record, D: Sink<T>> Sink<T> for AtMost<'_, D> {
    #[inline]
    fn is_full(&self) -> bool {
        *self.left == 0 || self.down.is_full()
    }
}

/// The greatest records so far.
struct Best<T, O, F> {
    number: usize,
    order: F,
    /// The least of them on top.
    heap: BinaryHeap<Ranked<T, O>>,
    reservation: Reservation,
}

/// A record and its order, the greater one being less: so a heap has the least on top.
struct Ranked<T, O> {
    order: O,
    record: T,
}

impl<T, O: Ord> Ord for Ranked<T, O> {
    fn cmp(&self, other: &Self) -> Ordering {
        other.order.cmp(&self.order)
    }
}

impl<T, O: Ord> PartialOrd for Ranked<T, O> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T, O: Ord> PartialEq for Ranked<T, O> {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl<T, O: Ord> Eq for Ranked<T, O> {}

impl<T, O, F> Best<T, O, F>
where
    T: Record,
    O: Ord,
    F: Fn(T::View<'_>) -> O,
{
    fn new(number: usize, order: F, place: &Place) -> Result<Self, Error> {
        Ok(Self {
            number,
            order,
            heap: BinaryHeap::new(),
            reservation: place.ledger.reserve("top_n", 0)?,
        })
    }

    /// Takes a record if it is among the greatest.
    #[inline]
    fn offer(&mut self, view: T::View<'_>) -> Result<(), Error> {
        let order = (self.order)(view);
        if self.heap.len() < self.number {
            return self.add(order, view);
        }
        match self.heap.peek_mut() {
            Some(mut least) if order > least.order => {
                let record = T::own(view);
                let (before, after) = (least.record.heap_bytes(), record.heap_bytes());
                *least = Ranked { order, record };
                if after > before {
                    self.reservation.grow((after - before) as u64)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    #[cold]
    fn add(&mut self, order: O, view: T::View<'_>) -> Result<(), Error> {
        let record = T::own(view);
        // A vector that grows is twice as large.
        let bytes = 2 * size_of::<Ranked<T, O>>() + record.heap_bytes();
        self.reservation.grow(bytes as u64)?;
        self.heap.push(Ranked { order, record });
        Ok(())
    }
}

/// Keeps the greatest records of an instance, and sends them on in the end.
struct Top<T, O, F> {
    best: Best<T, O, F>,
    outbox: Outbox<T>,
}

impl<T, O, F> Push<T> for Top<T, O, F>
where
    T: Record,
    O: Ord,
    F: Fn(T::View<'_>) -> O,
{
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        if let Err(error) = self.best.offer(view) {
            self.outbox.fail(error);
        }
    }
}

impl<T, O, F> Sink<T> for Top<T, O, F>
where
    T: Record,
    O: Ord,
    F: Fn(T::View<'_>) -> O,
{
    #[inline]
    fn is_full(&self) -> bool {
        self.outbox.is_full()
    }
}

impl<T, O, F> Output<T> for Top<T, O, F>
where
    T: Record,
    O: Ord,
    F: Fn(T::View<'_>) -> O,
{
    fn poll(&mut self) -> Result<bool, Error> {
        self.outbox.poll()
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.outbox.poll()?;
        while !self.outbox.is_full() {
            let Some(Ranked { record, .. }) = self.best.heap.pop() else {
                return self.outbox.finish();
            };
            self.outbox.push_to(0, &record);
        }
        Ok(false)
    }

    fn stopped(&mut self, reader: u32) {
        self.outbox.stopped(reader);
    }

    fn is_closed(&self) -> bool {
        self.outbox.is_closed()
    }
}

/// The greatest of all records.
pub struct Topped<T, O, F> {
    number: usize,
    order: F,
    records: PhantomData<fn() -> (T, O)>,
}

impl<T, O, F> Source for Topped<T, O, F>
where
    T: Record,
    O: Ord + 'static,
    F: Fn(T::View<'_>) -> O + Clone + Send + Sync + 'static,
{
    type Input = TopN<T, O, F>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Self::Input, Error> {
        Ok(TopN {
            receiver: Receiver::new(place, 0),
            best: Best::new(self.number, self.order.clone(), place)?,
            sorted: None,
        })
    }

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }
}

impl<T, O, F> fmt::Debug for Topped<T, O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topped")
            .field("number", &self.number)
            .finish_non_exhaustive()
    }
}

/// Keeps the greatest records of all instances, and gives them when all have come.
pub struct TopN<T, O, F> {
    receiver: Receiver<T>,
    best: Best<T, O, F>,
    /// They, the least first, when all have come.
    sorted: Option<Vec<Ranked<T, O>>>,
}

impl<T, O, F> Input for TopN<T, O, F>
where
    T: Record,
    O: Ord,
    F: Fn(T::View<'_>) -> O,
{
    type Out = T;

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        self.receiver.receive(port, from, batch)
    }

    fn ended(&mut self, port: usize, from: Rank) {
        self.receiver.ended(port, from);
    }

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if let Some((_, batch)) = self.receiver.next_batch() {
            for view in batch.views(0) {
                self.best.offer(view)?;
            }
            return Ok(Progress::Made);
        }
        if !self.receiver.is_done() {
            return Ok(Progress::None);
        }
        let sorted = self.sorted.get_or_insert_with(|| {
            let mut sorted = std::mem::take(&mut self.best.heap).into_sorted_vec();
            sorted.reverse();
            sorted
        });
        while !down.is_full() {
            let Some(Ranked { record, .. }) = sorted.pop() else {
                return Ok(Progress::Done);
            };
            record.with_view(|view| down.push(view));
        }
        Ok(Progress::Made)
    }
}

impl<T, O, F> fmt::Debug for TopN<T, O, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TopN")
            .field("number", &self.best.number)
            .finish_non_exhaustive()
    }
}
