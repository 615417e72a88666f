//! Numbers for all records, one after the other.

use std::{fmt, marker::PhantomData, sync::Arc};

use transport::{Buffer, Rank};

use crate::{
    Error, Record,
    exchange::{Outbox, Receiver, Routed, ToFirst},
    graph::Extent,
    operator::{
        again::Again,
        narrow::{Out, Pass},
    },
    pages::{At, PageWriter, Pages},
    stage::{Input, Narrow, Place, Progress, Push, Sink},
    tset::{Source, TSet},
};

impl<S, N, T> TSet<S, N>
where
    S: Source,
    T: Record,
    N: Narrow<S::Out, Out = T>,
{
    /// Pairs each record with its number among all, from 0: the records of the first instance come first, in their order, then
    /// those of the second, and so on.
    ///
    /// That takes the number of records of each instance, so an instance keeps its own until those before it have told theirs:
    /// in memory, or on disk what there is no room for. Where numbers may have gaps,
    /// [`zip_with_unique_id`](Self::zip_with_unique_id) waits for nothing.
    ///
    /// ```
    /// use dataflow::{collection, inline};
    ///
    /// let job = collection(vec!['a', 'b', 'c', 'd']).parallelism(3).zip_with_index().collect();
    /// assert_eq!(inline(&job)?, [(0, 'a'), (1, 'b'), (2, 'c'), (3, 'd')]);
    /// # Ok::<(), dataflow::Error>(())
    /// ```
    pub fn zip_with_index(self) -> TSet<Indexed<T>, Pass> {
        let placement = self.placement();
        let records = self.direct().placed(placement.clone());
        let count = |count: &mut u64, _: T::View<'_>, _: &mut Out<'_, u64>| *count += 1;
        let counts = records
            .clone()
            .map_partition(0u64, count, |count, out| out.push(count))
            .with_instance()
            .end("zip_with_index", |place: &Place| {
                Ok(Routed::new(Outbox::to_all(place)?, ToFirst))
            });
        let mut ports = records.into_inputs();
        ports.insert(0, Arc::new(counts));
        TSet::behind(ports, Indexed(PhantomData), "after zip_with_index").placed(placement)
    }
}

/// The source of [`zip_with_index`](TSet::zip_with_index).
pub struct Indexed<T>(PhantomData<fn() -> T>);

impl<T> fmt::Debug for Indexed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Indexed")
    }
}

/// Who keeps records, on the ledger.
const HOLDER: &str = "zip_with_index";
/// Records pushed in one turn.
const PUSHED_A_TURN: usize = 1024;

impl<T: Record> Source for Indexed<T> {
    type Input = Indexing<T>;
    type Out = (u64, T);

    fn extent(&self) -> Extent {
        Extent::AtEnd
    }

    fn build(&self, place: &Place) -> Result<Indexing<T>, Error> {
        Ok(Indexing {
            counts: Receiver::new(place, 0),
            records: Receiver::new(place, 1),
            next: 0,
            waiting: Some(PageWriter::new(place, HOLDER, true)?),
            pages: None,
            rest: Again::new(place, HOLDER)?,
            place: place.clone(),
        })
    }
}

/// Numbers the records of an instance.
pub struct Indexing<T> {
    counts: Receiver<(u32, u64)>,
    records: Receiver<T>,
    /// The number of the next record, once all counts are there.
    next: u64,
    /// Records that wait for their numbers: the first in memory, and the rest on disk.
    waiting: Option<PageWriter<T>>,
    pages: Option<(Pages<T>, At)>,
    rest: Again<T>,
    place: Place,
}

/// Gives records their numbers.
struct Numbering<'a, D> {
    next: &'a mut u64,
    down: &'a mut D,
}

impl<T: Record, D: Sink<(u64, T)>> Push<T> for Numbering<'_, D> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        self.down.push((*self.next, view));
        *self.next += 1;
    }
}

impl<T: Record, D: Sink<(u64, T)>> Sink<T> for Numbering<'_, D> {
    #[inline]
    fn is_full(&self) -> bool {
        self.down.is_full()
    }
}

impl<T: Record> Indexing<T> {
    /// Takes in counts, and records that have to wait for them; whether there were any.
    fn wait(&mut self) -> Result<bool, Error> {
        let mut moved = false;
        while let Some((_, batch)) = self.counts.next_batch() {
            moved = true;
            for (instance, count) in batch.views(0) {
                if instance < self.place.instance {
                    self.next += count;
                }
            }
        }
        while let Some((_, batch)) = self.records.next_batch() {
            moved = true;
            for view in batch.views(0) {
                let in_memory = match &mut self.waiting {
                    Some(writer) if !self.rest.is_used() => writer.push(T::shorten(view))?,
                    _ => false,
                };
                if !in_memory {
                    self.rest.push(view)?;
                }
            }
        }
        Ok(moved)
    }
}

impl<T: Record> Input for Indexing<T> {
    type Out = (u64, T);

    fn receive(&mut self, port: usize, from: Rank, batch: Buffer) -> Result<(), Error> {
        match port {
            0 => self.counts.receive(port, from, batch),
            _ => self.records.receive(port, from, batch),
        }
    }

    fn ended(&mut self, port: usize, from: Rank) {
        match port {
            0 => self.counts.ended(port, from),
            _ => self.records.ended(port, from),
        }
    }

    fn poll<D: Sink<(u64, T)>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.waiting.is_some() {
            let moved = self.wait()?;
            if !self.counts.is_done() {
                return Ok(if moved {
                    Progress::Made
                } else {
                    Progress::None
                });
            }
            self.rest.rewind()?;
        }
        if let Some(writer) = self.waiting.take() {
            self.pages = Some((writer.finish(), At::default()));
        }
        let mut down = Numbering {
            next: &mut self.next,
            down,
        };
        if let Some((pages, at)) = &mut self.pages {
            if pages.push_on(at, &mut down).is_none() {
                self.pages = None;
            }
            return Ok(Progress::Made);
        }
        for _ in 0..PUSHED_A_TURN {
            let Some(view) = self.rest.view() else {
                return self.records.poll(&mut down);
            };
            if Sink::<T>::is_full(&down) {
                break;
            }
            Push::<T>::push(&mut down, view);
            self.rest.advance()?;
        }
        Ok(Progress::Made)
    }

    fn last(&self) -> String {
        format!("the record of number {}", self.next.wrapping_sub(1))
    }
}

impl<T> fmt::Debug for Indexing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Indexing")
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
