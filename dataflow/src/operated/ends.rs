//! The open ends of the graph of an operator: where the program's records come in, and where the results go out.

use std::{fmt, marker::PhantomData, rc::Rc};

use super::queue::Queue;
use crate::{
    Error, Record,
    batch::Page,
    operator::narrow::Pass,
    stage::{Input, Output, Place, Progress, Push, Sink},
    tset::{Source, TSet},
};

/// What the program sends to an [`Operator`](super::Operator), as a stream that becomes its results.
pub type Sent<T> = TSet<Inlet<T>, Pass>;

/// The source of the records that the program sends.
pub struct Inlet<T> {
    /// Under which number the instances on a rank find what the program fills.
    number: usize,
    record: PhantomData<fn() -> T>,
}

impl<T: Record> Inlet<T> {
    pub(super) fn new(number: usize) -> Sent<T> {
        let record = PhantomData;
        TSet::from_source(Self { number, record }, "sent".to_owned())
    }
}

impl<T> fmt::Debug for Inlet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inlet").finish_non_exhaustive()
    }
}

impl<T: Record> Source for Inlet<T> {
    type Input = Taking<T>;
    type Out = T;

    fn build(&self, place: &Place) -> Result<Taking<T>, Error> {
        if place.instances != place.size || place.instance != place.rank {
            return Err(Error::NotSentHere {
                instances: place.instances,
                ranks: place.size,
            });
        }
        let queue = place.handoff.share(self.number, || Ok(Queue::new()))?;
        if queue.take(true) {
            return Err(Error::SentTwice);
        }
        queue.enter(place, "records sent to an operator")?;
        queue.open();
        Ok(Taking {
            queue,
            page: None,
            pushed: 0,
            place: place.clone(),
        })
    }
}

/// Takes what the program of this rank has sent.
pub struct Taking<T: Record> {
    queue: Rc<Queue<T>>,
    page: Option<Page<T>>,
    /// Records of the page that were pushed already.
    pushed: usize,
    place: Place,
}

impl<T: Record> Input for Taking<T> {
    type Out = T;

    fn poll<D: Sink<T>>(&mut self, down: &mut D) -> Result<Progress, Error> {
        if self.page.is_none() {
            (self.page, self.pushed) = (self.queue.pop()?, 0);
        }
        let Some(page) = &self.page else {
            return Ok(match self.queue.is_ended() {
                true => Progress::Done,
                false => Progress::None,
            });
        };
        let before = self.pushed;
        for view in page.views(self.pushed) {
            if down.is_full() {
                break;
            }
            down.push(view);
            self.pushed += 1;
        }
        self.place.counters.read((self.pushed - before) as u64, 0);
        if self.pushed == page.len()
            && let Some(page) = self.page.take()
        {
            self.queue.give_back(page);
        }
        Ok(Progress::Made)
    }

    fn again(&mut self) -> bool {
        self.page = None;
        self.queue.close();
        true
    }

    fn last(&self) -> String {
        "a record that was sent here".to_owned()
    }
}

impl<T: Record> Drop for Taking<T> {
    fn drop(&mut self) {
        self.queue.take(false);
        self.queue.close();
    }
}

impl<T: Record> fmt::Debug for Taking<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Taking").finish_non_exhaustive()
    }
}

/// Gives the results to the program of this rank.
pub(super) struct Giving<T> {
    queue: Rc<Queue<T>>,
    error: Option<Error>,
}

impl<T: Record> Giving<T> {
    /// Gives to the queue of this number on the rank.
    pub(super) fn new(number: usize, place: &Place) -> Result<Self, Error> {
        let queue = place.handoff.share(number, || Ok(Queue::new()))?;
        queue.enter_with_disk(place, "results of an operator that nobody has polled")?;
        Ok(Self { queue, error: None })
    }
}

impl<T: Record> Push<T> for Giving<T> {
    #[inline]
    fn push(&mut self, view: T::View<'_>) {
        if let Err(error) = self.queue.push(&view) {
            self.error.get_or_insert(error);
        }
    }
}

impl<T: Record> Sink<T> for Giving<T> {
    #[inline]
    fn is_full(&self) -> bool {
        self.error.is_some()
    }
}

impl<T: Record> Output<T> for Giving<T> {
    fn poll(&mut self) -> Result<bool, Error> {
        self.error.take().map_or(Ok(false), Err)
    }

    fn finish(&mut self) -> Result<bool, Error> {
        self.poll()?;
        Ok(true)
    }

    fn again(&mut self, _run: u32) -> bool {
        true
    }
}
